"""Opens pickles of numpy arrays and plain containers without giving them a chance to run anything."""

from __future__ import annotations

import collections
import math
import mmap
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mea_graph.data.errors import DataError, brief, no_memory
from mea_graph.readers.pickle_program import Described, Limits, Program, check_key

_DTYPE = re.compile(r"([biufSUO])(\d{0,9})")
_MOST_AXES = 64  # of an array: multiplying many more sizes would take time
_MOST_EMPTY = 1 << 24  # rows and channels of an empty array: a loop over them costs time although they hold no bytes


def load_pickle(path: str | Path) -> Any:
    """Loads a pickle of numpy arrays, numbers, strings, bytes and containers of them; refuses everything else.

    A pickle is a program. `load_pickle` runs it without imports. The program may name a handful of functions only, and gets stand-ins for
    those. Arrays are built from their bytes after the program has ended, so it cannot even reach numpy's own reconstruction, which trusts
    its input. Pickles written by Python 2 load too, their strings read as latin-1.

    Args:
        path: The file.

    Raises:
        DataError: If the file is truncated or no pickle, or names anything not allowed (the message says what).

    >>> import pickle, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.pkl").write_bytes(pickle.dumps({"x": np.arange(3)}))
    ...     load_pickle(Path(folder, "a.pkl"))
    {'x': array([0, 1, 2])}
    """
    return _loaded(path, mapped=False)


def mapped_pickle(path: str | Path) -> Any:
    """Like `load_pickle`, but large arrays are views of the mapped file, for readers, which copy what they take.

    Such an array changes with the file, and is not aligned.
    """
    return _loaded(path, mapped=True)


def _loaded(path: str | Path, mapped: bool) -> Any:
    size = 0
    try:
        with open(path, "rb", buffering=1 << 17) as file:
            size = os.fstat(file.fileno()).st_size
            limits = Limits(size)
            program = Program(file, limits, lambda module, name: _StandIn(module, name, limits), _mapped(file) if mapped else None)
            value = _resolve(program.run(), {}, limits)
            _check_sharing(value, size)
            return value
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except MemoryError as error:
        raise no_memory(path, size) from error
    except RecursionError as error:
        raise DataError(f"{path}: expected containers nested less deeply") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a corrupt pickle can raise nearly anything
        raise DataError(f"{path}: not a whole pickle of arrays and plain containers ({type(error).__name__}: {error})") from error


def _mapped(file: BinaryIO) -> memoryview | None:
    """The bytes of a file, mapped; None where the disk, or an empty file, cannot be."""
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        return None


def _check_sharing(value: Any, size: int) -> None:
    """Refuses an object with so many references that writing out all of them would fill the memory.

    Lists of the same lists of the same lists take a few bytes, of which numpy makes a terabyte; so do a thousand references to one array.
    """
    limits = Limits(size)
    most = limits.left
    weights: dict[int, int] = {}

    def weight(item: Any) -> int:
        if isinstance(item, str | bytes | bytearray):
            return 8 + 4 * len(item)  # as numpy keeps text
        if not isinstance(item, np.ndarray | list | tuple | dict | set | frozenset):
            return 8
        if id(item) not in weights:
            if isinstance(item, np.ndarray) and not item.dtype.hasobject:
                total = 112 + (item.nbytes or 64 * (item.shape[0] if item.ndim else 0))
            else:
                children = [*item.keys(), *item.values()] if isinstance(item, dict) else item.flat if isinstance(item, np.ndarray) else item
                total = 64
                for child in children:
                    total += weight(child)
                    if total > most:
                        break
            if total > most:
                raise DataError(f"refused: containers that hold the same containers or arrays over and over: more than {most} bytes")
            weights[id(item)] = total
        return weights[id(item)]

    weight(value)


class _StandIn(Described):
    """What a pickle gets for a name: can be called, and nothing else can be done to it."""

    __slots__ = ("_limits", "_make", "_name")

    def __init__(self, module: str, name: str, limits: Limits) -> None:
        self._name = f"{module}.{name}"
        if (module, name) not in _ALLOWED:
            raise DataError(f"refused: the pickle asks for {brief(self._name)[1:-1]}; only numpy arrays and plain containers are allowed")
        self._make, self._limits = _ALLOWED[module, name], limits

    def __call__(self, *args: Any) -> Any:
        for part in args:  # each call takes memory in proportion to its arguments
            self._limits.spend(
                64 * len(part) if isinstance(part, list) else len(part) if isinstance(part, str | bytes | bytearray | memoryview) else 128
            )
        try:
            return self._make(*args)
        except TypeError as error:
            raise DataError(f"refused: {self._name} called with unexpected arguments ({error})") from error

    def set_state(self, state: Any) -> None:
        raise DataError(f"refused: the pickle tries to change {self._name}")


class _Pending(Described):
    """A numpy object that the pickle describes; `build` makes it once the whole description is there."""

    __slots__ = ()

    def build(self, done: dict[int, Any], limits: Limits) -> Any:
        raise NotImplementedError


class _Dtype(_Pending):
    __slots__ = ("value",)

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise DataError(f"refused: array of dtype {brief(code)}; expected numbers, strings or plain objects")
        self.value = np.dtype("O" if code[0] == "O" else code)

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise DataError("refused: array with a compound dtype")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise DataError(f"refused: byte order {brief(order)}")
        if order in ("<", ">") and self.value.kind != "O":
            self.value = self.value.newbyteorder(">" if order == ">" else "<")

    def build(self, done: dict[int, Any], limits: Limits) -> np.dtype:
        return self.value


class _Array(_Pending):
    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: tuple[Any, ...] | None = None

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise DataError("refused: array whose state is not (version, shape, dtype, order, data)")
        self.state = state[1:]

    def build(self, done: dict[int, Any], limits: Limits) -> np.ndarray:
        if self.state is None:
            raise DataError("array without contents")
        return _array(self.state, done, limits)


class _Scalar(_Pending):
    __slots__ = ("data", "dtype")

    def __init__(self, dtype: Any, data: Any = b"") -> None:
        self.dtype, self.data = dtype, data

    def build(self, done: dict[int, Any], limits: Limits) -> Any:
        return _array(((), self.dtype, False, self.data), done, limits)[()]


class _Buffer(_Pending):
    """`numpy._core.numeric._frombuffer`: how protocol 5 writes a contiguous array."""

    __slots__ = ("state",)

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.state = (shape, dtype, order == "F", data)

    def build(self, done: dict[int, Any], limits: Limits) -> np.ndarray:
        return _array(self.state, done, limits)


def _array(state: tuple[Any, ...], done: dict[int, Any], limits: Limits) -> np.ndarray:
    shape, dtype, fortran, data = state
    sizes = isinstance(shape, tuple) and len(shape) <= _MOST_AXES and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
    if not isinstance(dtype, _Dtype) or not sizes:
        raise DataError("refused: array without a valid shape or dtype")
    order = "F" if fortran is True else "C"
    if dtype.value.kind == "O":
        if not isinstance(data, list):
            raise DataError("refused: array of objects whose contents are not a list")
        limits.spend(112 + 8 * len(data))
        flat = np.empty(len(data), dtype=object)
        for i, item in enumerate(data):
            flat[i] = _resolve(item, done, limits)
        return flat.reshape(shape, order=order)  # type: ignore[call-overload]
    if isinstance(data, str):  # Python 2 wrote its bytes as a string, read here as latin-1
        limits.spend(len(data))
        data = data.encode("latin1")
    count = math.prod(shape)
    if not isinstance(data, bytes | bytearray | memoryview) or len(data) != count * dtype.value.itemsize or (count and not len(data)):
        raise DataError(f"array of shape {shape} and dtype {dtype.value}: its bytes do not fit")
    if not count:
        if math.prod(n or 1 for n in shape) > _MOST_EMPTY:
            raise DataError(f"refused: array of shape {shape}, which is empty; expected at most {_MOST_EMPTY} rows and channels")
        return np.empty(shape, f"{dtype.value.kind}1" if dtype.value.kind in "SU" else dtype.value)
    array = np.frombuffer(data, dtype.value)
    if dtype.value.kind == "U" and array.view(dtype.value.str[0] + "u4").max() > sys.maxunicode:
        raise DataError("refused: array of text with characters that do not exist")
    return array.reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(*_: Any) -> _Array:
    """`numpy.core.multiarray._reconstruct`: an empty array, whose contents follow."""
    return _Array()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`: how Python 3 writes bytes in the protocols that have none."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise DataError("refused: _codecs.encode of something other than text")
    return text.encode(encoding)


def _bytes() -> bytes:
    """How Python 3 writes empty bytes in the protocols that have none."""
    return b""


def _bytearray(data: Any = b"", encoding: Any = "latin1") -> bytearray:
    return bytearray(_encode(data, encoding) if isinstance(data, str) else data if isinstance(data, memoryview) else _exactly(bytes, data))


def _set(items: Any = ()) -> set[Any]:
    return set(map(check_key, _exactly(list, items)))


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(map(check_key, _exactly(list, items)))


def _ordered_dict(items: Any = None) -> collections.OrderedDict[Any, Any]:
    made: collections.OrderedDict[Any, Any] = collections.OrderedDict()
    for pair in _exactly(list, items if items is not None else []):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"refused: a key and a value expected, got {brief(pair)}")
        made[check_key(pair[0])] = pair[1]
    return made


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind and value != ():
        raise DataError(f"refused: {kind.__name__} expected, got {type(value).__name__}")
    return value


def _no_call(*_: Any) -> Any:
    raise DataError("refused: numpy.ndarray called; it may only be named")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _no_call,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered_dict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Buffer for core in ("core", "_core")},
    **{
        (module, name): make
        for module in ("builtins", "__builtin__")
        for name, make in (("set", _set), ("frozenset", _frozenset), ("bytearray", _bytearray), ("bytes", _bytes))
    },
}

_PLAIN = (type(None), bool, int, float, str, bytes, bytearray)


def _resolve(value: Any, done: dict[int, Any], limits: Limits) -> Any:
    """Makes every described numpy object of a value; `done` keeps shared ones, and finds containers that hold themselves."""
    if isinstance(value, _PLAIN):
        return value
    if id(value) in done:
        if done[id(value)] is _resolve:
            raise DataError("expected containers that do not hold themselves")
        return done[id(value)]
    done[id(value)] = _resolve  # a mark: being made
    if isinstance(value, _Pending):
        made: Any = value.build(done, limits)
    elif isinstance(value, memoryview):  # bytes outside an array; a signed format marks a bytearray
        made = bytearray(value) if value.format == "b" else bytes(value)
    elif isinstance(value, dict):
        made = {_resolved_key(k, done, limits): _resolve(v, done, limits) for k, v in value.items()}
    elif isinstance(value, set | frozenset):
        made = type(value)(_resolved_key(v, done, limits) for v in value)
    elif isinstance(value, list | tuple):
        made = type(value)(_resolve(v, done, limits) for v in value)
    else:
        raise DataError(f"refused: {value._name if isinstance(value, _StandIn) else type(value).__name__} as a value")
    done[id(value)] = made
    return made


def _resolved_key(key: Any, done: dict[int, Any], limits: Limits) -> Any:
    """A key as a plain value; it may be a numpy number."""
    made = _resolve(key, done, limits)
    if isinstance(made, np.number | np.bool_) and made.itemsize <= 8:
        return made
    return check_key(made)
