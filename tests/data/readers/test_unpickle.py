"""What the restricted unpickler loads, and what it refuses without running any of it."""

import collections
import os
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mea_graph.data import DataError, load_pickle

VALUES = {
    "arrays": [np.arange(12, dtype=np.float32).reshape(3, 4), np.array(["ab", "cde"]), np.array([b"xy", b"z"]), np.array([True, False])],
    "shapes": [np.array(5), np.zeros((0, 3)), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(20)[::3], np.arange(4, dtype=">i2")],
    "objects": np.array([["a", 1], None, {"k": np.float64(2.5)}], dtype=object),
    "scalars": (np.float32(1.5), np.int64(-3), np.str_("word"), np.bool_(True)),
    "plain": [1, -(2**70), 1.5, "ü", b"", b"bytes\xff", bytearray(b"ba"), None, True, {1, 2}, frozenset({3}), ()],
    "ordered": collections.OrderedDict(b=1, a=2),
}


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and all(map(same, a.ravel().tolist(), b.ravel().tolist()))
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_loads_what_the_field_stores(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(VALUES, protocol))
    loaded = load_pickle(tmp_path / "a.pkl")
    assert same({**VALUES, "ordered": dict(VALUES["ordered"])}, {**loaded, "ordered": dict(loaded["ordered"])})


@pytest.mark.parametrize("core", ["core", "_core"])
def test_loads_both_names_of_numpys_core(tmp_path, core):
    data = pickle.dumps(np.arange(3), 2)
    for name in (b"numpy._core", b"numpy.core"):
        data = data.replace(name, f"numpy.{core}".encode())
    (tmp_path / "a.pkl").write_bytes(data)
    assert load_pickle(tmp_path / "a.pkl").tolist() == [0, 1, 2]


def python2_array(array: np.ndarray) -> bytes:
    """The opcodes that Python 2 wrote for an array: its bytes as a string."""
    raw = array.tobytes()
    code = array.dtype.str[1:].encode()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01("
        + b"".join(b"K" + bytes([n]) for n in array.shape)
        + b"tcnumpy\ndtype\n(U"
        + bytes([len(code)])
        + code
        + b"K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )


def test_loads_pickles_of_python_2(tmp_path):
    array = np.linspace(-1e9, 1e9, 6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}(U\x05audio" + python2_array(array) + b"U\x02idU\x03caf" + b"u.")
    loaded = load_pickle(tmp_path / "a.pkl")
    np.testing.assert_array_equal(loaded["audio"], array)
    assert loaded["id"] == "caf"


@pytest.mark.parametrize(
    "program",
    [
        b"(lp0\nI01\naI00\naI-7\naL123456789012345678901234567890L\naL5\naF-1.5e3\naFnan\na.",
        b"(lS'it\\'s'\naS\"it's\"\naS'\\xff\\n\\\\'\naVna\\u00efve \\U0001f600\na.",
        b"(dp1\nS'a'\n(I1\nI2\ntp2\nsS'b'\ng2\ns.",
        b"(dq\x01U\x01a(K\x01M\x00\x02J\xff\xff\xff\xfftq\x02sU\x01bh\x02s.",
        b"(K\x01K\x02K\x031]2a0N.",
        b"(I1\nI2\nd.",
        b"\x80\x02]r\x14\x00\x00\x00(U\x01ar\x15\x00\x00\x00K\x01j\x15\x00\x00\x00e.",
        pickletools.optimize(pickle.dumps([{"a": ("b", "b")}, "b", 1.5, 2**40, -(2**70), b"c"], 4)),
    ],
    ids=range(8),
)
def test_old_opcodes_mean_what_they_mean_to_python(tmp_path, program):
    (tmp_path / "a.pkl").write_bytes(program)
    assert repr(load_pickle(tmp_path / "a.pkl")) == repr(pickle.loads(program, encoding="latin1"))


def test_shared_objects_are_made_once(tmp_path):
    array = np.arange(3)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([array, array, {"again": array}]))
    first, second, third = load_pickle(tmp_path / "a.pkl")
    assert first is second is third["again"]


class Runs:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def test_a_call_in_a_pickle_is_refused_and_not_made(tmp_path):
    marker = tmp_path / "marker"
    data = pickle.dumps({"train": [1, 2], "x": Runs(os.mkdir, str(marker))})
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.pkl: refused: the pickle asks for (posix|nt)\.mkdir"):
        load_pickle(tmp_path / "a.pkl")
    assert not marker.exists()
    pickle.loads(data)  # the payload does work where nothing stops it
    assert marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "builtins.exec", "numpy.load", "numpy.save", "functools.partial", "os.system"]
)
def test_names_that_could_run_something_are_refused(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    (tmp_path / "a.pkl").write_bytes(f"c{module}\n{attribute}\n(S'1'\ntR.".encode())
    with pytest.raises(DataError, match=f"asks for {name}"):
        load_pickle(tmp_path / "a.pkl")


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
INT8 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00i8K\x00K\x01tR"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"cnumpy\nndarray\n.", "numpy.ndarray as a value"),
        (b"cnumpy\nndarray\n(K\x01tR.", "numpy.ndarray called"),
        (b"cnumpy\nndarray\n)\x81.", "not a whole pickle"),  # NEWOBJ
        (b"cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.", "tries to change numpy.dtype"),  # BUILD on the name itself
        (b"cnumpy\nndarray\n}X\x07\x00\x00\x00__new__K\x01sb.", "tries to change numpy.ndarray"),
        (b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.", "ndarray.__reduce__"),
        (b"\x80\x04\x8c\x08builtins\x8c\x03set\x93K\x05\x85R.", "list expected, got int"),
        (b"c__builtin__\nbytearray\n(K\x05tR.", "bytes expected, got int"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "_codecs.encode"),
        (b"ccollections\nOrderedDict\n(K\x01tR.", "list expected"),
        (b"ccollections\nOrderedDict\n(K\x01K\x02tR.", "unexpected arguments"),
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8tR.", "dtype 'V8'"),
        (b"cnumpy\ndtype\n(X\x05\x00\x00\x00O,i8ttR.", "not a whole pickle|dtype"),
        (b"cnumpy\ndtype\n(K\x01tR.", "dtype 1"),
        (INT8 + b"(K\x03X\x01\x00\x00\x00|NX\x01\x00\x00\x00f}K\x08K\x01K\x00tb.", "compound dtype"),
        (INT8 + b"(K\x03X\x01\x00\x00\x00!NNNtb.", "byte order"),
        (ARRAY + b".", "array without contents"),
        (ARRAY + b"(K\x01tb.", "state is not"),
        (ARRAY + b"(K\x01(K\x01t" + INT8 + b"\x89C\x02ab" + b"tb.", "bytes do not fit"),
        (ARRAY + b"(K\x01(J\xff\xff\xff\xfft" + INT8 + b"\x89C\x00" + b"tb.", "valid shape"),
        (ARRAY + b"(K\x01(K\x01tK\x05\x89C\x08" + bytes(8) + b"tb.", "valid shape or dtype"),
        (
            ARRAY + b"(K\x01(K\x01tcnumpy\ndtype\n(X\x01\x00\x00\x00OtR\x89C\x08" + bytes(8) + b"tb.",
            "contents are not a list",
        ),  # raw object pointers
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00OtRC\x08" + bytes(8) + b"tR.", "contents are not a list"),
        (
            b"cnumpy.core.numeric\n_frombuffer\n(C\x08" + bytes(8) + b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR(K\x01tX\x01\x00\x00\x00CtR.",
            "not a list",
        ),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "outside of it"),  # persistent id
        (b"\x80\x02\x82\x01.", "not a whole pickle"),  # extension registry
        (b"]q\x00h\x00a.", "hold themselves"),
        (b"]r\xff\xff\xff\xff.", "memo number"),
        (b"(" * 50 + b"." + b"]", "not a whole pickle"),
    ],
)
def test_abuse_of_what_is_allowed_is_refused(tmp_path, program, message):
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(DataError, match=message):
        load_pickle(tmp_path / "a.pkl")


def test_deep_nesting_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(DataError, match=r"nested less deeply|not a whole pickle"):
        load_pickle(tmp_path / "a.pkl")


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    data = pickle.dumps(VALUES, 4)
    for end in range(0, len(data) - 1, 7):
        (tmp_path / "a.pkl").write_bytes(data[:end])
        with pytest.raises(DataError, match=r"a\.pkl"):
            load_pickle(tmp_path / "a.pkl")


def test_a_corrupt_file_loads_or_is_refused_but_never_breaks(tmp_path):
    rng = np.random.default_rng(0)
    data = pickle.dumps(VALUES, 2)
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            changed[place] = rng.integers(0, 256)
        (tmp_path / "a.pkl").write_bytes(changed)
        try:
            load_pickle(tmp_path / "a.pkl")
        except DataError:
            refused += 1
    assert refused > 100


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"b\.pkl: cannot be read"):
        load_pickle(tmp_path / "b.pkl")


def test_the_allowed_names_are_few_and_numpys_own_functions_not_among_them():
    from mea_graph.readers import unpickle

    modules = {make.__module__ for make in unpickle._ALLOWED.values()}
    assert modules == {"mea_graph.readers.unpickle"}  # stand-ins only
    assert {module.split(".")[0] for module, _ in unpickle._ALLOWED} == {"numpy", "_codecs", "collections", "builtins", "__builtin__"}


def test_real_misa_pickle_loads_as_pickle_does(recording):
    path: Path = recording("mosi_misa_dev.pkl")
    names = {arg for op, arg, _ in pickletools.genops(path.read_bytes()) if op.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}  # so that loading it plainly is safe here
    ours, plain = load_pickle(path), pickle.loads(path.read_bytes())
    assert len(ours) == len(plain) == 229
    for a, b in zip(ours, plain, strict=True):
        assert a[2] == b[2]
        for left, right in zip([*a[0][:3], a[1]], [*b[0][:3], b[1]], strict=True):
            np.testing.assert_array_equal(left, right)


def shared_lists(depth: int) -> bytes:
    """A list of twice the same list of twice the same list ..."""
    value: list = [1, 1]
    for _ in range(depth):
        value = [value, value]
    return pickle.dumps(value)


def test_a_few_bytes_that_stand_for_a_terabyte_are_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(shared_lists(60))
    with pytest.raises(DataError, match=r"a\.pkl: refused: containers that hold the same containers"):
        load_pickle(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(shared_lists(4))
    assert np.asarray(load_pickle(tmp_path / "b.pkl")).shape == (2,) * 5


@pytest.mark.parametrize("opcode", [b"\x8e", b"\x8d", b"\x96", b"T", b"X", b"B", b"\x8b"], ids=repr)
def test_a_length_beyond_the_end_takes_no_memory(tmp_path, opcode):
    """The opcodes with a length of their own: bytes, text, bytearray, numbers; the length asks for 2**60, or what four bytes can say."""
    length = (2**60).to_bytes(8, "little") if opcode in (b"\x8e", b"\x8d", b"\x96") else b"\xff\xff\xff\x7f"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x05" + opcode + length + b"ab.")
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.pkl"):
        load_pickle(tmp_path / "a.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
