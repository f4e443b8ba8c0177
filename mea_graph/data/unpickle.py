"""Opens pickles of numpy arrays and plain containers without giving them a chance to run anything."""

from __future__ import annotations

import collections
import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mea_graph.data.errors import DataError

_MOST_SHARING = 64
_DTYPE = re.compile(r"([biufSUO])(\d*)$")


def load_pickle(path: str | Path) -> Any:
    """Loads a pickle that holds numpy arrays, numbers, strings, bytes, lists, tuples, dicts and sets; refuses everything else.

    A pickle is a program. This one may name a handful of functions only, and gets stand-ins for those: arrays are built from their
    bytes after the program has ended, so that not even numpy's own reconstruction (which trusts what it is told) is in its reach.
    Pickles written by Python 2 load too, their strings read as latin-1.

    Args:
        path: the file.

    Raises:
        DataError: where the file is truncated or no pickle, or names anything not allowed (the message says what).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.pkl").write_bytes(pickle.dumps({"x": np.arange(3)}))
        ...     load_pickle(Path(folder, "a.pkl"))
        {'x': array([0, 1, 2])}
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_opcodes(file, size)
            value = _Restricted(file, encoding="latin1").load()
            _check_sharing(value, size)
            return _resolve(value, {})
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except RecursionError as error:
        raise DataError(f"{path}: expected containers nested less deeply") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a corrupt pickle can raise nearly anything
        raise DataError(f"{path}: not a whole pickle of arrays and plain containers ({type(error).__name__}: {error})") from error


class _Clamped:
    """A file that is asked for no more than it has: `read(2**60)` on a plain one takes the memory first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size))


def _check_opcodes(file: BinaryIO, size: int) -> None:
    """Walks through the program before it runs: every length must fit into the file, and so must every memo number.

    C's unpickler takes memory for both before it looks at the data.
    """
    for opcode, argument, _ in pickletools.genops(_Clamped(file, size)):  # type: ignore[arg-type]
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > size:
            raise DataError(f"refused: memo number {argument} in a file of {size} bytes")
    file.seek(0)


def _check_sharing(value: Any, size: int) -> None:
    """Refuses lists of the same lists of the same lists: a few bytes that numpy would write out as a terabyte."""
    limit = _MOST_SHARING * max(size, 1 << 16)
    weights: dict[int, int] = {}

    def weight(item: Any) -> int:
        if not isinstance(item, list | tuple | dict | set | frozenset):
            return 1
        if id(item) not in weights:
            weights[id(item)] = 1  # of one that holds itself, which is refused later
            children = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            weights[id(item)] = 1 + sum(map(weight, children))
            if weights[id(item)] > limit:
                raise DataError(f"refused: containers that hold the same containers more than {_MOST_SHARING} times over")
        return weights[id(item)]

    weight(value)


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(f"refused: the pickle asks for {module}.{name}; only numpy arrays and plain containers are allowed")
        return _StandIn(f"{module}.{name}", _ALLOWED[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"refused: the pickle refers to an object outside of it ({pid!r})")


class _StandIn:
    """What a pickle gets for a name: can be called, and nothing else can be done to it."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self._name, self._make = name, make

    def __call__(self, *args: Any) -> Any:
        try:
            return self._make(*args)
        except TypeError as error:
            raise DataError(f"refused: {self._name} called with unexpected arguments ({error})") from error

    def __setstate__(self, state: Any) -> None:
        raise DataError(f"refused: the pickle tries to change {self._name}")


class _Pending:
    """A numpy object that the pickle describes; `build` makes it once the whole description is there."""

    def build(self, done: dict[int, Any]) -> Any:
        raise NotImplementedError

    def __setstate__(self, state: Any) -> None:
        raise DataError("refused: the pickle changes an object that has no state")


class _Dtype(_Pending):
    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _DTYPE.match(code):
            raise DataError(f"refused: array of dtype {code!r}; expected numbers, strings or plain objects")
        self.value = np.dtype("O" if code[0] == "O" else code)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise DataError("refused: array with a compound dtype")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise DataError(f"refused: byte order {order!r}")
        if order in ("<", ">") and self.value.kind != "O":
            self.value = self.value.newbyteorder(">" if order == ">" else "<")

    def build(self, done: dict[int, Any]) -> np.dtype:
        return self.value


class _Array(_Pending):
    state: tuple[Any, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise DataError("refused: array whose state is not (version, shape, dtype, order, data)")
        self.state = state[1:]

    def build(self, done: dict[int, Any]) -> np.ndarray:
        if self.state is None:
            raise DataError("array without contents")
        return _array(self.state, done)


class _Scalar(_Pending):
    def __init__(self, dtype: Any, data: Any = b"") -> None:
        self.dtype, self.data = dtype, data

    def build(self, done: dict[int, Any]) -> Any:
        return _array(((), self.dtype, False, self.data), done)[()]


class _Buffer(_Pending):
    """`numpy._core.numeric._frombuffer`: how protocol 5 writes a contiguous array."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.state = (shape, dtype, order == "F", data)

    def build(self, done: dict[int, Any]) -> np.ndarray:
        return _array(self.state, done)


def _array(state: tuple[Any, ...], done: dict[int, Any]) -> np.ndarray:
    shape, dtype, fortran, data = state
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise DataError("refused: array whose shape or dtype is none")
    order = "F" if fortran else "C"
    if dtype.value.kind == "O":
        if not isinstance(data, list):
            raise DataError("refused: array of objects whose contents are no list")
        flat = np.empty(len(data), dtype=object)
        for i, item in enumerate(data):
            flat[i] = _resolve(item, done)
        return flat.reshape(shape, order=order)  # type: ignore[call-overload]
    if isinstance(data, str):  # Python 2 wrote its bytes as a string, read here as latin-1
        data = data.encode("latin1")
    count = math.prod(shape)
    if not isinstance(data, bytes | bytearray) or len(data) != count * dtype.value.itemsize or (count and not len(data)):
        raise DataError(f"array of shape {shape} and dtype {dtype.value}: its bytes do not fit")
    if not count:
        return np.empty(shape, dtype.value)
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(*_: Any) -> _Array:
    """`numpy.core.multiarray._reconstruct`: an empty array, whose contents follow."""
    return _Array()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`: how Python 3 writes bytes in the protocols that have none."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise DataError("refused: _codecs.encode of something else than text")
    return text.encode(encoding)


def _bytes() -> bytes:
    """How Python 3 writes empty bytes in the protocols that have none."""
    return b""


def _bytearray(data: Any = b"", encoding: Any = "latin1") -> bytearray:
    return bytearray(_encode(data, encoding) if isinstance(data, str) else _exactly(bytes, data))


def _set(items: Any = ()) -> set[Any]:
    return set(_exactly(list, items))


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(_exactly(list, items))


def _ordered_dict(items: Any = None) -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict(_exactly(list, items if items is not None else []))


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


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """The same value with every described numpy object made; `done` keeps what is shared, and stops at what holds itself."""
    if isinstance(value, _PLAIN):
        return value
    if id(value) in done:
        if done[id(value)] is _resolve:
            raise DataError("expected containers that do not hold themselves")
        return done[id(value)]
    done[id(value)] = _resolve  # a mark: being made
    if isinstance(value, _Pending):
        made: Any = value.build(done)
    elif isinstance(value, dict):
        made = {_resolve(k, done): _resolve(v, done) for k, v in value.items()}
    elif isinstance(value, list | tuple | set | frozenset):
        made = type(value)(_resolve(v, done) for v in value)
    else:
        raise DataError(f"refused: {value._name if isinstance(value, _StandIn) else type(value).__name__} as a value")
    done[id(value)] = made
    return made
