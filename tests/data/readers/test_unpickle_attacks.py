"""Small pickles that would take for ever, or all of the memory: each is refused, in a second and in memory that the file bounds."""

import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest

from mea_graph.data import DataError, load_pickle

ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def shared_tuple(depth: int) -> bytes:
    """A tuple of twice the same tuple of twice the same tuple ...: its hash and its repr take 2**depth steps."""
    return b"K\x01K\x01\x86" + b"2\x86" * depth


def dtype(code: bytes) -> bytes:
    return b"cnumpy\ndtype\n(" + text(code) + b"tR"


def array_of(length: int) -> bytes:
    return (
        ARRAY + b"(K\x01(J" + struct.pack("<i", length) + b"t" + dtype(b"i1") + b"\x89B" + struct.pack("<I", length) + bytes(length) + b"tb"
    )


def empty_array(*shape: int) -> bytes:
    return ARRAY + b"(K\x01(" + b"".join(b"J" + struct.pack("<i", n) for n in shape) + b"t" + dtype(b"f4") + b"\x89C\x00tb"


def many(count: int, item: bytes, first: bytes) -> bytes:
    """A list of `count` times what `item` makes; memo 0 holds what `first` makes."""
    return first + b"q\x000](" + item * count + b"e."


MEGABYTE = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
MEGABYTE_OF_TEXT = b"X" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
PAIRS = b"](" + b"](K\x01K\x02e" * 2_000 + b"e"  # a list of lists

ATTACKS = {
    # the time of a hash
    "key": (b"}" + shared_tuple(150) + b"K\x01s.", "as keys and in sets, got a tuple"),
    "keys": (b"}(" + shared_tuple(150) + b"K\x01u.", "as keys"),
    "dict": (b"(" + shared_tuple(150) + b"K\x01d.", "as keys"),
    "element": (b"\x80\x04\x8f(" + shared_tuple(150) + b"\x90.", "as keys"),
    "frozenset": (b"\x80\x04(" + shared_tuple(150) + b"\x91.", "as keys"),
    "set called": (b"c__builtin__\nset\n(]" + shared_tuple(150) + b"atR.", "as keys"),
    "frozenset called": (b"c__builtin__\nfrozenset\n(]" + shared_tuple(150) + b"atR.", "as keys"),
    "OrderedDict": (b"ccollections\nOrderedDict\n(](" + shared_tuple(150) + b"K\x01latR.", "as keys"),
    "key inside a scalar": (
        b"}cnumpy.core.multiarray\nscalar\n(" + dtype(b"O") + b"]" + shared_tuple(150) + b"atRK\x01s.",
        "as keys",
    ),
    "deep key": (b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.", "as keys"),  # a segmentation fault in C
    "colliding numbers": (
        b"}(" + b"".join(b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(1, 25_000)) + b"u.",
        "as keys and in sets, got an integer of",
    ),
    # the time of a repr
    "persistent id": (b"\x80\x02" + shared_tuple(150) + b"Q.", "outside of it"),
    "dtype code": (b"cnumpy\ndtype\n(" + shared_tuple(150) + b"tR.", "dtype a tuple"),
    "dtype order": (dtype(b"i8") + b"(K\x03" + shared_tuple(150) + b"NNNtb.", "byte order a tuple"),
    "memo number": (b"]p" + b"9" * 4000 + b"\n.", "memo number an integer of"),
    "global": (b"cos\n" + b"x\x1b[31m" * 100_000 + b"\n.", r"refused: the pickle asks for os\.x"),
    "item of": (shared_tuple(150) + b"K\x01K\x01s.", "sets items of a tuple"),
    "called": (shared_tuple(150) + b")R.", "calls a tuple"),
    # memory
    "sharing an array": (many(15_000, b"h\x00", array_of(1 << 20)), "over and over"),
    "sharing text": (many(15_000, b"h\x00", MEGABYTE_OF_TEXT), "over and over"),
    "encode": (many(4_000, b"c_codecs\nencode\n(h\x00tR", MEGABYTE_OF_TEXT), "more than .* bytes of objects"),
    "bytearray": (many(4_000, b"c__builtin__\nbytearray\n(h\x00tR", MEGABYTE), "more than .* bytes of objects"),
    "set": (many(4_000, b"c__builtin__\nset\n(h\x00tR", b"](" + b"M\xff\x01" * 50_000 + b"e"), "more than .* bytes of objects"),
    "OrderedDict of one list": (many(4_000, b"ccollections\nOrderedDict\n(h\x00tR", PAIRS), "more than .* bytes of objects"),
    "text of Python 2 in arrays": (
        many(3_000, ARRAY + b"(K\x01(J" + struct.pack("<i", 1 << 20) + b"t" + dtype(b"i1") + b"\x89h\x00tb", MEGABYTE_OF_TEXT),
        "more than .* bytes of objects",
    ),
    "rows without bytes": (empty_array(10**9, 0, 3) + b".", r"array of shape \(1000000000, 0, 3\), which is empty"),
    "many rows without bytes": (many(5_000, b"h\x00", empty_array(60_000, 0, 3)), "over and over"),
    "axes": (empty_array(*[2**30] * 60_000) + b".", "array without a valid shape or dtype"),
    # text that does not exist
    "code point": (
        ARRAY + b"(K\x01(K\x01t" + dtype(b"U1") + b"\x89C\x04\x00\x00\x11\x00tb.",
        "characters that do not exist",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_is_refused_in_a_second(tmp_path, attack):
    program, message = ATTACKS[attack]
    (tmp_path / "a.pkl").write_bytes(program)
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as refused:
        load_pickle(tmp_path / "a.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 10  # tracing makes it several times as slow
    assert peak < (64 << 20) + 40 * len(program)
    assert len(str(refused.value)) < 4200
    assert str(refused.value).isprintable()


def test_an_empty_array_of_very_long_text_is_one_of_short_text(tmp_path):
    """Joined with others it would make theirs as long."""
    (tmp_path / "a.pkl").write_bytes(ARRAY + b"(K\x01(K\x00t" + dtype(b"U500000000") + b"\x89C\x00tb.")
    assert load_pickle(tmp_path / "a.pkl").dtype == np.dtype("U1")


def test_keys_that_real_files_have(tmp_path):
    keys = ["train", b"x", 3, -(2**62), 1.5, None, True, ("a", "b"), np.int64(7), np.float32(0.5), np.str_("word")]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([dict.fromkeys(keys, 1), set(keys), frozenset(keys)]))
    first, second, third = load_pickle(tmp_path / "a.pkl")
    assert set(first) == second == third == set(keys)
