"""Makes Triton's CPU interpreter as exact, and as strict, as a GPU is.

The interpreter (of Triton 3.6 to 3.9) keeps bfloat16 as bits: it multiplies the bit patterns and truncates instead of rounding. It computes
tf32 products in float32. And it sees neither a wrong address nor a race. All four are mended here, for these tests only.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

from mea_graph.ops import Pointers
from mea_graph.ops.predictive import triton_tiles


class MemoryFault(AssertionError):
    """An access that a GPU would not have forgiven, or not always."""


def _decode(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _encode(x: np.ndarray) -> np.ndarray:
    """Rounds to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded).astype(np.uint16)


def _tf32(x: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.fixture(autouse=True, scope="session")
def exact_interpreter() -> Iterator[None]:
    builder = InterpreterBuilder
    dot, cast, convert, arithmetic = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp, builder.binary_op

    def operand(x: TensorHandle, precision: Any) -> TensorHandle:
        if x.dtype.scalar == tl.bfloat16:
            return TensorHandle(_decode(x.data), tl.float32)
        if x.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
            return TensorHandle(_tf32(x.data), tl.float32)
        return x

    def create_dot(self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, *rest: Any) -> TensorHandle:
        return dot(self, operand(a, precision), operand(b, precision), d, precision, *rest)

    def cast_impl(self: Any, source: TensorHandle, target: Any) -> TensorHandle:
        before, after = source.dtype.scalar, target.scalar
        if before == after or tl.bfloat16 not in (before, after):
            return cast(self, source, target)
        if after == tl.bfloat16:
            return TensorHandle(_encode(source.data), tl.bfloat16)
        decoded = TensorHandle(_decode(source.data), tl.float32)
        return decoded if after == tl.float32 else cast(self, decoded, target)

    def create_fp_to_fp(self: Any, source: TensorHandle, target: Any, rounding: Any) -> TensorHandle:
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            return cast_impl(self, source, target)
        return convert(self, source, target, rounding)

    def binary_op(self: Any, left: TensorHandle, right: TensorHandle, op: Any) -> TensorHandle:
        if tl.bfloat16 in (left.dtype.scalar, right.dtype.scalar):
            raise TypeError("arithmetic on bfloat16, which the interpreter cannot do: convert to float32 first")
        return arithmetic(self, left, right, op)

    with pytest.MonkeyPatch.context() as patch:
        for replacement in (create_dot, cast_impl, create_fp_to_fp, binary_op):
            patch.setattr(builder, replacement.__name__, replacement)
        yield


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` comes filled with NaN, so that what a kernel forgets to write, or reads too early, shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


class _Memory:
    """The tensors of one launch, and which program read or wrote each element. -1: none; -2: several."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        spans = []
        for t in tensors:
            length = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
            spans.append((t.data_ptr(), t.data_ptr() + length * t.element_size(), t.element_size()))
        self.spans: list[tuple[int, int, int]] = []
        for span in sorted(s for s in spans if s[1] > s[0]):
            if self.spans and span[0] < self.spans[-1][1]:  # views of one storage
                start, stop, size = self.spans.pop()
                span = (start, max(stop, span[1]), min(size, span[2]))
            self.spans.append(span)
        self.starts, self.stops = (np.array([s[i] for s in self.spans], np.uint64) for i in (0, 1))
        self.readers, self.writers = ([np.full((b - a) // size, -1, np.int64) for a, b, size in self.spans] for _ in range(2))

    def access(self, kind: str, addresses: np.ndarray, size: int, program: int) -> None:
        found = np.searchsorted(self.starts, addresses, "right").astype(np.int64) - 1
        if (found < 0).any() or (addresses + np.uint64(size) > self.stops[found]).any():
            raise MemoryFault(f"{kind} out of bounds, program {program}")
        for i in np.unique(found):
            at = ((addresses[found == i] - self.starts[i]) // np.uint64(self.spans[i][2])).astype(np.int64)
            readers, writers = self.readers[i], self.writers[i]
            others_wrote = ((writers[at] != -1) & (writers[at] != program)).any()
            if others_wrote or (kind == "store" and ((readers[at] != -1) & (readers[at] != program)).any()):
                raise MemoryFault(f"race: {kind} by program {program} of what another one used")
            if kind == "store":
                if np.unique(at).size != at.size:
                    raise MemoryFault(f"race: two lanes of program {program} store to one address")
                writers[at] = program
            else:
                readers[at] = np.where((readers[at] == -1) | (readers[at] == program), program, -2)


@pytest.fixture
def checked_memory(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Raises MemoryFault on an address outside the tensors of the launch, and on a race between programs.

    Tensors added to the list belong to every launch: a kernel may find their addresses in a table.
    """
    in_tables: list[torch.Tensor] = []
    builder, executor = InterpreterBuilder, GridExecutor
    load, store, init = builder.create_masked_load, builder.create_masked_store, executor._init_args_hst
    memory = _Memory([])

    def check(kind: str, pointers: TensorHandle, mask: TensorHandle | None) -> None:
        addresses = np.asarray(pointers.data)
        if mask is not None:
            addresses = addresses[np.broadcast_to(np.asarray(mask.data), addresses.shape)]
        (x, y, z), (_, height, depth) = interpreter.interpreter_builder.grid_idx, interpreter.interpreter_builder.grid_dim
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        memory.access(kind, addresses.reshape(-1), size, (x * height + y) * depth + z)

    def create_masked_load(self: Any, pointers: TensorHandle, mask: TensorHandle | None, *rest: Any) -> TensorHandle:
        check("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def create_masked_store(self: Any, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle | None, *rest: Any) -> None:
        check("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def init_args(self: Any, args: Any, kwargs: Any) -> Any:
        nonlocal memory
        args, kwargs = init(self, args, kwargs)
        memory = _Memory([a for a in [*args, *kwargs.values(), *in_tables] if isinstance(a, torch.Tensor)])
        return args, kwargs

    monkeypatch.setattr(builder, "create_masked_load", create_masked_load)
    monkeypatch.setattr(builder, "create_masked_store", create_masked_store)
    monkeypatch.setattr(executor, "_init_args_hst", init_args)
    return in_tables


@pytest.fixture
def memory_fault() -> type[MemoryFault]:
    return MemoryFault


def _lay_out(layout: str, lengths: tuple[int, ...]) -> Pointers:
    """Rows of samples: "packed", "padded", or "scattered", with gaps of any size."""
    length = torch.tensor(lengths, dtype=torch.int64)
    if layout == "packed":
        return Pointers.from_ptr(torch.cat([length.new_zeros(1), length.cumsum(0)]))
    if layout == "padded":
        return Pointers.from_mask(torch.arange(max(lengths, default=0) + 2) < length[:, None])
    steps = length + torch.tensor([3, 70, 0, 1, 20])[torch.arange(len(lengths)) % 5]
    return Pointers(steps.cumsum(0) - steps, length, int(steps.sum()))


@pytest.fixture
def lay_out() -> Callable[[str, tuple[int, ...]], Pointers]:
    return _lay_out


def _errors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative to the norm of what is expected; of zeros, absolute."""
    assert found.keys() == expected.keys()
    distances = {n: (found[n].double() - expected[n]).norm() for n in found}
    return {n: float(d / expected[n].norm() if expected[n].any() else d) for n, d in distances.items()}


@pytest.fixture
def errors() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], dict[str, float]]:
    return _errors


@pytest.fixture
def coarse_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of predictive attention. The interpreter's time goes with the number of tiles."""
    monkeypatch.setattr(triton_tiles, "HOPPER", dict.fromkeys(triton_tiles.HOPPER, triton_tiles.Tiles(64, 64, 256, 4, 1)))
