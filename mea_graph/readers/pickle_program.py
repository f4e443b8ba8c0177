"""Runs the opcodes of a pickle without importing or calling anything, in time and memory that the size of the file bounds."""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from mea_graph.data.errors import DataError, brief

_SLACK = 32 << 20  # bytes that any file may take
_I4, _U2, _U4, _U8, _F8 = map(struct.Struct, ("<i", "<H", "<I", "<Q", ">d"))
_LARGE = 1 << 16  # bytes from which the contents of an array are left in the mapped file
_GROWTH = 32  # and how many more for each of its own: plain pickles of many small objects reach 25


class Limits:
    """What one file may still take of memory, whatever makes it: opcodes, calls, or objects that stand in many places."""

    def __init__(self, size: int) -> None:
        self.size, self.left = size, _SLACK + _GROWTH * size

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise DataError(f"refused: more than {_SLACK + _GROWTH * self.size} bytes of objects in a file of {self.size} bytes")


class Described:
    """An object that a pickle describes and that is made later; `set_state` takes what BUILD gives it."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        raise DataError("refused: the pickle changes an object that has no state")


def check_key(key: Any) -> Any:
    """Returns a key of a dict or element of a set, or refuses one that could make hashing slow.

    Python hashes nested tuples in exponential time, and a file may hold many numbers with the same hash.
    """
    if isinstance(key, str | bytes | float | Described) or key is None:
        return key
    if isinstance(key, int) and key.bit_length() < 64:
        return key
    if isinstance(key, tuple) and all(isinstance(part, str | bytes) for part in key):
        return key
    raise DataError(f"refused: expected text, numbers of 64 bits or tuples of text as keys and in sets, got {brief(key)}")


class Program:
    """A pickle being read: a stack, a memo and the opcodes that plain data need.

    The opcodes that make an object of a class, ask a registry or refer to something outside of the file are not among them.

    Args:
        file: What to read.
        limits: What it may take.
        find: Gives an object to call for a module and a name.
        mapped: The file's bytes, of which long ones become views instead of copies.
    """

    def __init__(self, file: BinaryIO, limits: Limits, find: Callable[[str, str], Any], mapped: memoryview | None = None) -> None:
        self.file, self.limits, self.find, self.mapped = file, limits, find, mapped
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.far: dict[int, Any] = {}  # memo numbers that do not follow one another, as Python 2 and optimised pickles have them

    def run(self) -> Any:
        """The value that the program leaves."""
        read, handlers = self.file.read, _HANDLERS
        while code := read(1):
            if code == pickle.STOP:
                return self.stack.pop()
            handler = handlers[code[0]]
            if handler is None:
                raise pickle.UnpicklingError(f"opcode {code!r}, which no plain data need")
            handler(self)
        raise EOFError("it ends early")

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.limits.size:  # reading 2**60 bytes would take the memory before it fails
            raise EOFError(f"{count} bytes announced in a file of {self.limits.size}")
        data = self.file.read(count)
        if len(data) != count:
            raise EOFError("it ends early")
        return data

    def value(self, count: int) -> bytes | memoryview:
        """Bytes that are a value, mapped where they are many."""
        if self.mapped is None or count < _LARGE:
            return self.read(count)
        start = self.file.tell()
        if count > len(self.mapped) - start:
            raise EOFError("it ends early")
        self.file.seek(start + count)
        return self.mapped[start : start + count]

    def line(self) -> bytes:
        line = self.file.readline()
        if line[-1:] != b"\n":
            raise EOFError("it ends early")
        return line[:-1]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.read(form.size))[0]

    def since_mark(self) -> list[Any]:
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def put(self, index: int) -> None:
        if not 0 <= index <= self.limits.size:
            raise DataError(f"refused: memo number {brief(index)} in a file of {self.limits.size} bytes")
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        elif index < len(self.memo):
            self.memo[index] = self.stack[-1]
        else:
            self.far[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index] if 0 <= index < len(self.memo) else self.far[index])

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise DataError(f"refused: the pickle appends to {brief(target)}")
        target.extend(items)

    def update(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise DataError(f"refused: the pickle sets items of {brief(target)}")
        self.limits.spend(32 * len(items))
        for i in range(0, len(items), 2):
            target[check_key(items[i])] = items[i + 1]

    def push_tuple(self, items: list[Any]) -> None:
        self.limits.spend(48 + 8 * len(items))
        self.stack.append(tuple(items))

    def push_last(self, count: int) -> None:
        items = self.stack[-count:]
        if len(items) != count:
            raise IndexError("too little on the stack")
        del self.stack[-count:]
        self.push_tuple(items)


_HANDLERS: list[Callable[[Program], None] | None] = [None] * 256


def _opcode(*codes: bytes) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(handler: Callable[..., None]) -> Callable[..., None]:
        for code in codes:
            _HANDLERS[code[0]] = handler
        return handler

    return add


def _values(table: dict[bytes, Callable[[Program], Any]]) -> None:
    """Opcodes that read a value and push it."""

    def push(make: Callable[[Program], Any]) -> Callable[[Program], None]:
        return lambda program: program.stack.append(make(program))

    for code, make in table.items():
        _HANDLERS[code[0]] = push(make)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _changeable(data: bytes | memoryview) -> bytearray | memoryview:
    """A bytearray; one that is mapped is told from bytes by its format."""
    return data.cast("b") if isinstance(data, memoryview) else bytearray(data)


def _old_integer(program: Program) -> int:
    line = program.line()
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line)


def _old_string(program: Program) -> str:
    line = program.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


def _empty(make: Callable[[], Any], cost: int) -> Callable[[Program], Any]:
    def push(program: Program) -> Any:
        program.limits.spend(cost)
        return make()

    return push


_values(
    {
        pickle.NONE: lambda p: None,
        pickle.NEWTRUE: lambda p: True,
        pickle.NEWFALSE: lambda p: False,
        pickle.BININT: lambda p: p.number(_I4),
        pickle.BININT1: lambda p: p.read(1)[0],
        pickle.BININT2: lambda p: p.number(_U2),
        pickle.LONG1: lambda p: pickle.decode_long(p.read(p.read(1)[0])),
        pickle.LONG4: lambda p: pickle.decode_long(p.read(p.number(_I4))),
        pickle.BINFLOAT: lambda p: p.number(_F8),
        pickle.INT: _old_integer,
        pickle.LONG: lambda p: int(p.line().rstrip(b"L")),
        pickle.FLOAT: lambda p: float(p.line()),
        pickle.STRING: _old_string,
        pickle.BINSTRING: lambda p: p.read(p.number(_I4)).decode("latin1"),
        pickle.SHORT_BINSTRING: lambda p: p.read(p.read(1)[0]).decode("latin1"),
        pickle.UNICODE: lambda p: str(p.line(), "raw-unicode-escape"),
        pickle.SHORT_BINUNICODE: lambda p: _text(p.read(p.read(1)[0])),
        pickle.BINUNICODE: lambda p: _text(p.read(p.number(_U4))),
        pickle.BINUNICODE8: lambda p: _text(p.read(p.number(_U8))),
        pickle.SHORT_BINBYTES: lambda p: p.read(p.read(1)[0]),
        pickle.BINBYTES: lambda p: p.value(p.number(_U4)),
        pickle.BINBYTES8: lambda p: p.value(p.number(_U8)),
        pickle.BYTEARRAY8: lambda p: _changeable(p.value(p.number(_U8))),
        pickle.EMPTY_TUPLE: lambda p: (),
        pickle.EMPTY_LIST: _empty(list, 64),
        pickle.EMPTY_DICT: _empty(dict, 64),
        pickle.EMPTY_SET: _empty(set, 216),
    }
)


@_opcode(pickle.PROTO)
def _proto(program: Program) -> None:
    if (version := program.read(1)[0]) > pickle.HIGHEST_PROTOCOL:
        raise ValueError(f"unsupported pickle protocol: {version}")


@_opcode(pickle.FRAME)
def _frame(program: Program) -> None:
    if (size := program.number(_U8)) > program.limits.size:
        raise EOFError(f"a frame of {size} bytes announced")


@_opcode(pickle.MARK)
def _mark(program: Program) -> None:
    program.marks.append(len(program.stack))


@_opcode(pickle.POP)
def _pop(program: Program) -> None:
    if program.marks and program.marks[-1] == len(program.stack):
        program.marks.pop()
    else:
        program.stack.pop()


_opcode(pickle.POP_MARK)(lambda p: p.since_mark())
_opcode(pickle.DUP)(lambda p: p.stack.append(p.stack[-1]))
_opcode(pickle.PUT)(lambda p: p.put(int(p.line())))
_opcode(pickle.BINPUT)(lambda p: p.put(p.read(1)[0]))
_opcode(pickle.LONG_BINPUT)(lambda p: p.put(p.number(_U4)))
_opcode(pickle.MEMOIZE)(lambda p: p.put(len(p.memo) + len(p.far)))
_opcode(pickle.GET)(lambda p: p.get(int(p.line())))
_opcode(pickle.BINGET)(lambda p: p.get(p.read(1)[0]))
_opcode(pickle.LONG_BINGET)(lambda p: p.get(p.number(_U4)))
_opcode(pickle.TUPLE)(lambda p: p.push_tuple(p.since_mark()))
_opcode(pickle.TUPLE1)(lambda p: p.push_last(1))
_opcode(pickle.TUPLE2)(lambda p: p.push_last(2))
_opcode(pickle.TUPLE3)(lambda p: p.push_last(3))
_opcode(pickle.APPEND)(lambda p: p.extend([p.stack.pop()]))
_opcode(pickle.APPENDS)(lambda p: p.extend(p.since_mark()))
_opcode(pickle.SETITEMS)(lambda p: _set_items(p, p.since_mark()))
_opcode(pickle.GLOBAL)(lambda p: p.stack.append(p.find(_text(p.line()), _text(p.line()))))


def _set_items(program: Program, items: list[Any]) -> None:
    program.update(program.stack[-1], items)


@_opcode(pickle.SETITEM)
def _set_item(program: Program) -> None:
    value, key = program.stack.pop(), program.stack.pop()
    program.update(program.stack[-1], [key, value])


@_opcode(pickle.LIST)
def _list(program: Program) -> None:
    program.limits.spend(64)
    program.stack.append(program.since_mark())


@_opcode(pickle.DICT)
def _dict(program: Program) -> None:
    program.limits.spend(64)
    made: dict[Any, Any] = {}
    program.update(made, program.since_mark())
    program.stack.append(made)


@_opcode(pickle.ADDITEMS)
def _add_items(program: Program) -> None:
    items, target = program.since_mark(), program.stack[-1]
    if type(target) is not set:
        raise DataError(f"refused: the pickle adds to {brief(target)}")
    program.limits.spend(64 * len(items))
    target.update(map(check_key, items))


@_opcode(pickle.FROZENSET)
def _frozenset(program: Program) -> None:
    items = program.since_mark()
    program.limits.spend(216 + 64 * len(items))
    program.stack.append(frozenset(map(check_key, items)))


@_opcode(pickle.STACK_GLOBAL)
def _stack_global(program: Program) -> None:
    name, module = program.stack.pop(), program.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise DataError(f"refused: the pickle asks for {brief(name)} of {brief(module)}")
    program.stack.append(program.find(module, name))


@_opcode(pickle.REDUCE)
def _reduce(program: Program) -> None:
    arguments, function = program.stack.pop(), program.stack.pop()
    if not isinstance(function, Described) or not callable(function) or not isinstance(arguments, tuple):
        raise DataError(f"refused: the pickle calls {brief(function)}")
    program.stack.append(function(*arguments))


@_opcode(pickle.BUILD)
def _build(program: Program) -> None:
    state, target = program.stack.pop(), program.stack[-1]
    if not isinstance(target, Described):
        raise DataError(f"refused: the pickle changes {brief(target)}")
    target.set_state(state)


@_opcode(pickle.PERSID, pickle.BINPERSID)
def _outside(program: Program) -> None:
    raise DataError("refused: the pickle refers to an object outside of it")
