"""A multiprocessor in NumPy that runs PTX: warps of 32 lanes, shared memory, asynchronous copies and tensor cores.

A register is an array of 32 lanes: bool for predicates, else the unsigned integer of its width. Each warp is a generator that stops at
barriers, and warps run one after another between two of them, first to last or last to first: what needs a barrier that is not there
gives another result in one of the two orders. A copy is made when it is asked for, or as late as the program allows.
"""

import ctypes
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
LANE = np.arange(32)
ROW, PAIR = LANE >> 2, LANE & 3  # of an 8 x 8 tile: the row of a lane, and which two of its columns it holds
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {16: np.int16, 32: np.int32, 64: np.int64}
UNWRITTEN = 0x7FC12345  # what registers and shared memory hold before they are written: NaN as a float32, and no address


@functools.cache
def constant(value: int, bits: int) -> Array:
    return np.full(32, value & (1 << bits) - 1, UNSIGNED[bits])


class Fault(AssertionError):
    """What a GPU would not have forgiven, or not always."""


class Global:
    """The memory of the given tensors, at their own addresses; any other access is a fault."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        # Whole storages: a view may be read as far as its storage reaches.
        spans = sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in (t.untyped_storage() for t in tensors) if s.nbytes()})
        self.begin, self.end = (np.array(ends, np.uint64) for ends in zip(*spans, strict=True))
        self.base = int(self.begin[0])
        self.bytes = np.frombuffer((ctypes.c_uint8 * (int(self.end.max()) - self.base)).from_address(self.base), np.uint8)

    def place(self, address: Array, size: int) -> Array:
        span = np.searchsorted(self.begin, address, "right") - 1
        if (span < 0).any() or (address + np.uint64(size) > self.end[span]).any():
            raise Fault("an access to global memory is out of bounds")
        _check_alignment(address, size)
        return (address - np.uint64(self.base)).astype(np.int64)


class Shared:
    def __init__(self, size: int) -> None:
        self.bytes = np.full(size, 0xFF, np.uint8)
        self.in_use = np.zeros(size, np.int32)  # by how many products that nobody has waited for

    def claim(self, at: Array, size: int) -> None:
        """Refuses a write to what an asynchronous product may still read."""
        if self.in_use[at[:, None] + np.arange(size)].any():
            raise Fault("shared memory is written while a product may still read it")

    def release(self, at: Array) -> None:
        self.in_use[at] -= 1

    def place(self, address: Array, size: int) -> Array:
        if (address + np.uint32(size) > self.bytes.size).any():
            raise Fault("an access to shared memory is out of bounds")
        _check_alignment(address, size)
        return address.astype(np.int64)


def _check_alignment(address: Array, size: int) -> None:
    if (address % address.dtype.type(size)).any():
        raise Fault(f"an access of {size} bytes is not aligned")


def _active(guard: Array | None) -> Array:
    return LANE if guard is None else np.flatnonzero(guard)


def load(memory: Global | Shared, address: Array, bits: int, guard: Array | None, before: list[Array]) -> list[Array]:
    """The registers after a load; they keep what they held in lanes that are guarded."""
    on = _active(guard)
    if not on.size:
        return before
    at = memory.place(address[on], bits // 8 * len(before))
    found = memory.bytes[at[:, None] + np.arange(bits // 8 * len(before))].view(UNSIGNED[bits])
    after = [old.copy() for old in before]
    for i, register in enumerate(after):
        register[on] = found[:, i]
    return after


def store(memory: Global | Shared, address: Array, bits: int, guard: Array | None, values: list[Array]) -> None:
    on = _active(guard)
    if on.size:
        at = memory.place(address[on], bits // 8 * len(values))
        written = np.stack([v[on].astype(UNSIGNED[bits]) for v in values], 1).view(np.uint8)
        if isinstance(memory, Shared):
            memory.claim(at, written.shape[1])
        memory.bytes[at[:, None] + np.arange(written.shape[1])] = written


class Pending:
    """What a warp has asked for and not waited for, in groups: each ends by a call."""

    def __init__(self) -> None:
        self.open: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []

    def commit(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait(self, pending: int) -> None:
        while len(self.groups) > pending:
            for end in self.groups.pop(0):
                end()


class Warp:
    """What a program may ask for beside its registers."""

    def __init__(self, index: int, block: Sequence[int], grid: Sequence[int], memory: Global, shared: Shared, late: bool) -> None:
        self.index, self.memory, self.shared = index, memory, shared
        self.parameters: list[Array] = []
        self.thread = (LANE + 32 * index).astype(np.uint32)
        self.ctaid, self.nctaid = ([constant(n, 32) for n in numbers] for numbers in (block, grid))
        self.late, self.copies, self.products = late, Pending(), Pending()


def copy(warp: Warp, to: Array, source: Array, size: int, read: Array, guard: Array | None) -> None:
    """An asynchronous copy to shared memory: `size` bytes for each lane, of which `read` come from the source; the others are zeros."""
    on = _active(guard)
    if not on.size:
        return
    whole, at = read[on] > 0, warp.shared.place(to[on], size)
    warp.shared.claim(at, size)
    where = warp.memory.place(source[on][whole], size) if whole.any() else LANE[:0]

    def run() -> None:
        block = np.zeros((on.size, size), np.uint8)
        block[whole] = warp.memory.bytes[where[:, None] + np.arange(size)]
        block[np.arange(size) >= read[on][:, None]] = 0
        warp.shared.bytes[at[:, None] + np.arange(size)] = block

    if warp.late:
        warp.copies.open.append(run)
    else:
        run()


Program = Callable[[Warp], Generator[None]]


class Kernel(NamedTuple):
    program: Program
    parameters: list[str]  # their types
    threads: int

    def run(
        self,
        grid: Sequence[int],
        arguments: Sequence[float],
        tensors: Sequence[torch.Tensor],
        shared: int,
        backwards: bool,
        late: bool,
    ) -> None:
        """Runs all programs of a launch. `arguments` are numbers and addresses, `tensors` all that may be read or written."""
        memory, grid = Global(tensors), [*grid, 1, 1][:3]
        given = [*arguments, *(0,) * (len(self.parameters) - len(arguments))]  # the last ones are the compiler's own
        parameters = [_parameter(kind, value) for kind, value in zip(self.parameters, given, strict=True)]
        with np.errstate(all="ignore"):
            for block in np.ndindex(*grid):
                own = Shared(shared)
                running = []
                for i in range(self.threads // 32):
                    warp = Warp(i, block, grid, memory, own, late)
                    warp.parameters = parameters
                    running.append(self.program(warp))
                if backwards:
                    running.reverse()
                while running:
                    arrived = [warp for warp in running if next(warp, "ended") is None]
                    if arrived and len(arrived) < len(running):
                        raise Fault("a warp ends while others wait at a barrier")
                    running = arrived


def _parameter(kind: str, value: float) -> Array:
    if kind == "f32":
        return np.full(32, value, np.float32).view(np.uint32)
    return constant(int(value), int(kind[1:]))


def uniform(guard: Array) -> bool:
    """Whether a jump is taken: by all lanes or by none."""
    if guard.all() != guard.any():
        raise Fault("a jump parts the lanes of a warp")
    return bool(guard[0])


# Arithmetic that NumPy lacks.


def floats(bits: Array) -> Array:
    return bits.view(np.float32)


def rounded(x: Array, flush: bool = False) -> Array:
    """To float32, as bits; `flush` makes zeros of numbers that are not normal."""
    single = x.astype(np.float32)
    return (np.where(np.abs(single) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), single), single) if flush else single).view(
        np.uint32
    )


def from_bfloat16(half: Array) -> Array:
    return (half.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(x: Array) -> Array:
    bits = x.astype(np.float32).view(np.uint32)
    return np.where(np.isnan(x), 0x7FFF, (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)


def to_tf32(bits: Array) -> Array:
    return np.where(np.isfinite(floats(bits)), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def shift(bits: Array, by: Array, left: bool, signed: bool) -> Array:
    """Shifts by the width or more leave zeros, or the sign."""
    width = bits.dtype.itemsize * 8
    if left:
        return np.where(by < width, bits << np.minimum(by, width - 1).astype(bits.dtype), 0).astype(bits.dtype)
    value = bits.view(SIGNED[width]) if signed else bits
    moved = value >> np.minimum(by, width - 1).astype(value.dtype)
    return (moved if signed else np.where(by < width, moved, 0).astype(bits.dtype)).view(bits.dtype)


def extract(bits: Array, first: Array, count: Array, signed: bool) -> Array:
    field = (bits.astype(np.int64) >> first) & ((1 << count.astype(np.int64)) - 1)
    if signed:
        field -= np.where(field >> np.maximum(count.astype(np.int64) - 1, 0) & 1, 1 << count.astype(np.int64), 0)
    return field.astype(np.int32).view(np.uint32) if signed else field.astype(np.uint32)


def permute(a: Array, b: Array, selector: Array) -> Array:
    given = np.stack([a, b], 1).view(np.uint8)
    out = np.empty((32, 4), np.uint8)
    for i in range(4):
        choice = selector >> (4 * i) & 15
        byte = given[LANE, choice & 7]
        out[:, i] = np.where(choice & 8, np.where(byte & 0x80, 0xFF, 0), byte)
    return out.view(np.uint32)[:, 0]


def divide(a: Array, b: Array) -> Array:
    """Integers, rounded towards zero."""
    quotient = np.abs(a.astype(np.int64)) // np.maximum(np.abs(b.astype(np.int64)), 1)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def multiply_halves(kind: str, a: Array, b: Array, plus: Array | None = None) -> Array:
    """Products of bfloat16 or float16, one or two in a register, to which something is added before they are rounded."""
    brain = kind.startswith("bf")
    x, y, *rest = (
        (from_bfloat16(h) if brain else h.view(np.float16)).astype(np.float64) for h in map(_halves, (a, b, plus)) if h is not None
    )
    exact = x * y + (rest[0] if rest else 0)
    return np.ascontiguousarray(to_bfloat16(exact) if brain else exact.astype(np.float16).view(np.uint16)).view(a.dtype)[:, 0]


def _halves(register: Array | None) -> Array | None:
    return None if register is None else register.copy()[:, None].view(np.uint16)


# Tensor cores. A tile of 16 rows lies in a warp's registers by ROW and PAIR; sums of float64 are rounded once, to float32.


def _numbers(words: Array, kind: str) -> Array:
    """What registers or memory hold, in float64: the first 19 bits of a float32, or bfloat16, or float16."""
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return (from_bfloat16(words) if kind == "bf16" else words.view(np.float16)).astype(np.float64)


def _factor(registers: list[Array], rows: int, kind: str) -> Array:
    """A tile (rows, k) of the rows of A, or of the columns of B, whose k is 8 for TF32 and 16 else."""
    per = 1 if kind == "tf32" else 2  # numbers in a register
    tile = np.empty((rows, 8 * per))
    for i, register in enumerate(registers):
        down, along = (8 * (i % 2), i // 2) if rows == 16 else (0, i)
        words = register if per == 1 else register.copy()[:, None].view(np.uint16)
        for j in range(per):
            tile[ROW + down, 4 * per * along + per * PAIR + j] = _numbers(words if per == 1 else words[:, j].copy(), kind)
    return tile


def _add(sums: list[Array] | None, product: Array) -> list[Array]:
    found = []
    for i in range(product.shape[1] // 2):
        part = product[ROW + 8 * (i % 4 // 2), 8 * (i // 4) + 2 * PAIR + i % 2]
        found.append((part if sums is None else part + floats(sums[i])).astype(np.float32).view(np.uint32))
    return found


def mma(sums: list[Array], a: list[Array], b: list[Array], kind: str) -> list[Array]:
    return _add(sums, _factor(a, 16, kind) @ _factor(b, 8, kind).T)


def load_matrices(warp: Warp, address: Array, count: int, transposed: bool) -> list[Array]:
    at = warp.shared.place(address[: 8 * count], 16)
    tiles = warp.shared.bytes[at[:, None] + np.arange(16)].view(np.uint16).reshape(count, 8, 8)
    return [
        (t[ROW, 2 * PAIR].astype(np.uint32) | t[ROW, 2 * PAIR + 1].astype(np.uint32) << 16)
        for t in (tiles.swapaxes(1, 2) if transposed else tiles)
    ]


def store_matrices(warp: Warp, address: Array, registers: list[Array]) -> None:
    at = warp.shared.place(address[: 8 * len(registers)], 16).reshape(-1, 8)
    warp.shared.claim(at.ravel(), 16)
    for place, register in zip(at, registers, strict=True):
        tile = np.empty((8, 8), np.uint16)
        tile[ROW, 2 * PAIR], tile[ROW, 2 * PAIR + 1] = register & 0xFFFF, register >> 16
        warp.shared.bytes[place[:, None] + np.arange(16)] = tile.view(np.uint8)


def wgmma(
    warp: Warp, sums: list[Array] | None, a: list[Array] | Array, b: Array, columns: int, kind: str, swapped: tuple[bool, bool]
) -> list[Array]:
    """The 16 rows of a warp of a product of 64; A lies in registers or in shared memory, B in shared memory."""
    rows = _factor(a, 16, kind) if isinstance(a, list) else _described(warp, a, 16 * (warp.index % 4), 16, kind, swapped[0])
    return _add(sums, rows @ _described(warp, b, 0, columns, kind, swapped[1]).T)


def _described(warp: Warp, descriptor: Array, first: int, count: int, kind: str, swapped: bool) -> Array:
    """A matrix (count, k) in shared memory; `swapped`, its rows lie along memory."""
    if (descriptor != descriptor[0]).any():
        raise Fault("lanes describe different matrices")
    bits, size = int(descriptor[0]), 4 if kind == "tf32" else 2
    start, leading, stride = ((bits >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    line, mask = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}[bits >> 62]  # bytes that lie together, and how 16 of them are permuted
    row, k = np.arange(first, first + count)[:, None], np.arange(32 // size)[None]
    along, across = (row * size, k) if swapped else (k * size, row)
    at = start + across // 8 * stride + along // line * leading + across % 8 * line + along % line
    at = at ^ (at >> 7 & mask) << 4
    where = warp.shared.place(at.ravel().astype(np.uint32), size)[:, None] + np.arange(size)
    warp.shared.in_use[where] += 1
    warp.products.open.append(functools.partial(warp.shared.release, where))
    return _numbers(warp.shared.bytes[where].view(UNSIGNED[8 * size])[:, 0], kind).reshape(count, -1)
