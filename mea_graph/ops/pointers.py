"""Where each sample's rows are: the one layout of sequences in this library."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from mea_graph.ops.eager import is_traced, is_transformed
from mea_graph.ops.kept import kept
from mea_graph.ops.places import check_device, check_prefix, check_samples

__all__ = ["Pointers"]


class Pointers:
    r"""Locates the rows of each sample in a matrix of rows `x` :math:`(N, d)`.

    Sample b has the rows `start[b]`, ..., `start[b] + length[b] - 1`. A PyG batch stores them one sample after the other, without gaps
    (`from_ptr`). A padded batch :math:`(B, T, d)` is the same with gaps: its rows are `x.flatten(0, 1)`, and the gaps are its padding
    (`from_mask`). No op reads the contents of a gap.

    Args:
        start: First row of each sample, rising.
        length: Number of rows of each sample; 0 where it has none.
        num_rows: N, gaps included.
        steps: T, where the rows are a padded batch :math:`(B, T)`.
        packed: Whether the samples follow each other without gaps.

    Shape:
        - start, length: :math:`(B,)`, int64

    Raises:
        ValueError: If a shape is not as above, or the samples overlap, fall or leave the rows (checked on a CPU only).

    >>> import torch
    >>> Pointers.from_ptr(torch.tensor([0, 3, 3, 5])).length.tolist()
    [3, 0, 2]
    """

    def __init__(self, start: Tensor, length: Tensor, num_rows: int, steps: int | None = None, packed: bool = False) -> None:
        check_device("length", length, start.device, "start")
        check_samples(start, length, num_rows, steps, packed)
        self._set(start, length, num_rows, steps, packed)

    def _set(self, start: Tensor, length: Tensor, num_rows: int, steps: int | None, packed: bool) -> None:
        self.start, self.length, self.num_rows, self.steps, self.packed = start, length, num_rows, steps, packed
        self._made: dict[str, Any] = {}  # derived tensors, made once

    @classmethod
    def _unchecked(cls, start: Tensor, length: Tensor, num_rows: int, steps: int | None = None, packed: bool = False) -> "Pointers":
        """Makes pointers from numbers that the library computed, which need no check.

        >>> Pointers._unchecked(torch.tensor([0]), torch.tensor([2]), 2).num_rows
        2
        """
        made = cls.__new__(cls)
        made._set(start, length, num_rows, steps, packed)
        return made

    @classmethod
    def from_ptr(cls, ptr: Tensor, num_rows: int | None = None, max_length: int | None = None) -> "Pointers":
        """Makes pointers of a PyG batch: sample b has the rows `ptr[b]` to `ptr[b + 1] - 1`.

        Give `num_rows` and `max_length` if you know them: reading them from a ptr on a device waits for the device. Padding the rows needs
        `max_length`, the longest length or more; the number of rows would do, at B times the memory. Only a CPU checks that it is enough.

        >>> Pointers.from_ptr(torch.tensor([0, 2, 5]), 5)
        Pointers(2 samples, 5 rows)
        """
        if ptr.dim() != 1 or ptr.dtype != torch.int64 or ptr.size(0) == 0:
            raise ValueError(f"ptr: expected int64 (B + 1,), got {ptr.dtype} {tuple(ptr.shape)}")
        if ptr.device.type == "cpu" and not is_traced():
            first, last = int(ptr[0]), int(ptr[-1])
            if first != 0 or (num_rows is not None and last != num_rows) or bool((ptr[1:] < ptr[:-1]).any()):
                rows = "the number of rows" if num_rows is None else f"{num_rows}, the number of rows"
                raise ValueError(
                    f"ptr: expected numbers that rise from 0 to {rows}, got {ptr.tolist() if len(ptr) < 20 else (first, last)}"
                )
        made = cls._unchecked(ptr[:-1], ptr.diff(), number(ptr[-1], "num_rows") if num_rows is None else num_rows, packed=True)
        made._made["ptr"] = ptr
        if max_length is not None:
            if ptr.device.type == "cpu" and not is_traced() and made.num_samples and int(made.length.max()) > max_length:
                raise ValueError(f"max_length: expected at least the longest length, {int(made.length.max())}, got {max_length}")
            made._made["max_length"] = max_length
        return made

    @classmethod
    def from_batch(cls, batch: Tensor, num_samples: int) -> "Pointers":
        """Makes pointers of a sorted PyG batch vector: row i belongs to sample `batch[i]`.

        >>> Pointers.from_batch(torch.tensor([0, 0, 2]), 3).length.tolist()
        [2, 0, 1]
        """
        if batch.dim() != 1 or batch.dtype != torch.int64:
            raise ValueError(f"batch: expected int64 (N,), got {batch.dtype} {tuple(batch.shape)}")
        if batch.device.type == "cpu" and not is_traced() and batch.numel():
            if bool((batch[1:] < batch[:-1]).any()):
                raise ValueError("batch: expected sorted sample indices, got unsorted ones")
            if int(batch[-1]) >= num_samples or int(batch[0]) < 0:
                raise ValueError(f"batch: expected indices of {num_samples} samples, got {int(batch[0])} to {int(batch[-1])}")
        ptr = torch.searchsorted(batch, torch.arange(num_samples + 1, device=batch.device))
        made = cls._unchecked(ptr[:-1], ptr.diff(), batch.size(0), packed=True)
        made._made["ptr"] = ptr
        return made

    @classmethod
    def from_mask(cls, mask: Tensor) -> "Pointers":
        """Makes pointers of the mask of a padded batch: True marks real steps, which come first in every row (checked on a CPU only).

        >>> Pointers.from_mask(
        ...     torch.tensor([[True, True, False], [True, False, False]])
        ... ).length.tolist()
        [2, 1]
        """
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise ValueError(f"mask: expected bool (B, T), True at real steps, got {mask.dtype} {tuple(mask.shape)}")
        if not is_transformed():
            check_prefix(mask, "mask")
        batch, steps = mask.shape
        if is_traced() or not mask.numel():
            start = torch.arange(batch, device=mask.device) * steps
        else:  # one kernel less on a device
            start = torch.arange(0, batch * steps, steps, device=mask.device)
        return cls._unchecked(start, mask.sum(1), batch * steps, steps)

    @classmethod
    def full(cls, batch: int, steps: int, device: torch.device) -> "Pointers":
        """Makes pointers of a padded batch in which every step is real.

        >>> Pointers.full(2, 3, torch.device("cpu")).length.tolist()
        [3, 3]
        """
        length = torch.full((batch,), steps, dtype=torch.int64, device=device)
        return cls._unchecked(torch.arange(batch, device=device) * steps, length, batch * steps, steps, packed=True)

    @classmethod
    def join(cls, parts: Sequence["Pointers"]) -> "Pointers":
        """Joins the pointers of stacked matrices of rows: the samples of the first, then those of the second, and so on.

        >>> a, b = (
        ...     Pointers.from_ptr(torch.tensor([0, 2])),
        ...     Pointers.from_ptr(torch.tensor([0, 1, 4])),
        ... )
        >>> Pointers.join([a, b]).start.tolist()
        [0, 2, 3]
        """
        if len(parts) == 1:
            return parts[0]
        size, whole = parts[0].num_rows, parts[0]._made.get("whole")
        if whole is not None and [(p._made.get("whole"), p._made.get("place")) for p in parts] == [
            (whole, i) for i in range(whole.num_rows // max(size, 1))
        ]:
            return whole
        rows = 0
        if len(parts) > 3 and all(p.num_rows == size for p in parts):  # fewer calls than an addition for each
            rows = size * len(parts)
            first = torch.arange(0, rows, size, device=parts[0].start.device) if size else parts[0].start.new_zeros(len(parts))
            start = (torch.stack([p.start for p in parts]) + first.unsqueeze(1)).flatten()
        else:
            starts = []
            for part in parts:
                starts.append(part.start + rows if rows else part.start)
                rows += part.num_rows
            start = torch.cat(starts)
        return cls._joined(start, parts, rows)

    @classmethod
    def _joined(cls, start: Tensor, parts: Sequence["Pointers"], rows: int) -> "Pointers":
        joined = cls._unchecked(start, torch.cat([p.length for p in parts]), rows, packed=all(p.packed for p in parts))
        joined._made["parts"] = joined._made["widths"] = list(parts)
        return joined

    @classmethod
    def level(cls, parts: Sequence["Pointers"], between: int = 0) -> list["Pointers"]:
        """Adds gaps behind the rows of each matrix, so that all have as many rows as the longest; `between` more behind each sample.

        Their `join` is made once and kept.

        >>> a, b = (
        ...     Pointers.from_ptr(torch.tensor([0, 2])),
        ...     Pointers.from_ptr(torch.tensor([0, 1, 4])),
        ... )
        >>> [p.num_rows for p in Pointers.level([a, b])]
        [4, 4]
        """
        most, samples = max(part.num_rows for part in parts), parts[0].num_samples
        size, device = most + samples * between, parts[0].start.device
        if between and samples:  # all at once, which takes fewer calls than `join` of each
            starts = torch.stack([part.start for part in parts]) + torch.arange(0, samples * between, between, device=device)
            longer = [cls._unchecked(start, part.length, size) for start, part in zip(starts.unbind(), parts, strict=True)]
            first = torch.arange(0, size * len(parts), size, device=device).unsqueeze(1)
            whole = cls._joined((starts + first).flatten(), longer, size * len(parts))
        else:
            longer = [cls._unchecked(part.start, part.length, size) for part in parts]
            whole = cls.join(longer)
        for place, part in enumerate(parts):
            longer[place]._made |= {"widths": [part], "whole": whole, "place": place}
        del whole._made["parts"]  # the parts hold this; a reference back would keep all of them alive
        whole._made["widths"] = list(parts)
        return longer

    @property
    def num_samples(self) -> int:
        """Number of samples, B."""
        return self.start.size(0)

    @kept
    def ptr(self) -> Tensor:
        """Where each sample begins and the last one ends, `(B + 1,)`, as PyG has it. Samples with gaps between them have none."""
        if not self.packed:
            raise ValueError("ptr: expected samples that follow each other without gaps, got a padded batch")
        return torch.nn.functional.pad(self.length.cumsum(0), (1, 0))

    @kept
    def sample(self) -> Tensor:
        """The sample of each row, `(N,)`. A gap has that of the sample before it, or of the first."""
        if "parts" in self._made:
            samples, count = [], 0
            for part in self._made["parts"]:
                samples.append(part.sample + count)
                count += part.num_samples
            return torch.cat(samples)
        if self.steps is not None:
            numbers = torch.arange(self.num_samples, device=self.start.device)
            return numbers.unsqueeze(1).expand(-1, self.steps).reshape(-1)
        rows = torch.arange(self.num_rows, device=self.start.device)
        if is_traced():  # a slice would fix the number of samples in a graph
            return (torch.searchsorted(self.start.contiguous(), rows, right=True) - 1).clamp_(min=0)
        return torch.searchsorted(self.start[1:].contiguous(), rows, right=True)  # how many samples begin after the first, up to this row

    @kept
    def position(self) -> Tensor:
        """The number of each row's step in its sample, `(N,)`; a gap has a number that no step has."""
        return torch.arange(self.num_rows, device=self.start.device) - self.start.index_select(0, self.sample)

    @kept
    def real(self) -> Tensor:
        """Whether each row is a step, not padding, `(N,)`."""
        before_its_end = self.position < self.length.index_select(0, self.sample)
        starts_at_once = self.packed or self.steps is not None
        return before_its_end if starts_at_once else before_its_end & (self.position >= 0)

    @kept
    def gap(self) -> Tensor:
        """Whether each row is a gap, `(N, 1)`."""
        return self.real.logical_not().unsqueeze(1)

    @kept
    def present(self) -> Tensor:
        """Whether each sample has a row, `(B,)`."""
        if "whole" in self._made:  # all parts in one call
            place, samples = self._made["place"], self.num_samples
            return self._made["whole"].present[place * samples : (place + 1) * samples]
        return self.length > 0

    @kept
    def absent(self) -> Tensor:
        """Whether each sample has no row, `(B,)`."""
        return self.present.logical_not()

    @kept
    def segment(self) -> Tensor:
        """The sample of each row, `(N,)`; a gap has the number of samples."""
        return self.sample.masked_fill(self.gap.squeeze(1), self.num_samples)

    @kept
    def count(self) -> Tensor:
        """The divisor that makes a mean of a sum, `(B, 1)`, which is the length, or 1 where that is 0."""
        return self.length.clamp(min=1).unsqueeze(1)

    @kept
    def mask(self) -> Tensor:
        """The mask of the padded form, `(B, T)`; True at real steps."""
        return torch.arange(self.max_length, device=self.start.device) < self.length.unsqueeze(1)

    @property
    def max_length(self) -> int:
        """The width T of a padded batch, otherwise the longest length. Reading that from a GPU waits for it."""
        if self.steps is not None:
            return self.steps
        if "max_length" not in self._made and "widths" in self._made:
            self._made["max_length"] = max(part.max_length for part in self._made["widths"])
        if "max_length" not in self._made:
            self._made["max_length"] = number(self.length.max(), "max_length") if self.num_samples else 0
        return self._made["max_length"]

    @kept
    def _grid_rows(self) -> Tensor:
        """Where each row is in the padded form, `(N,)`; a gap may be anywhere."""
        position = self.position if self.packed else self.position.clamp(0, max(self.max_length - 1, 0))
        return self.sample * self.max_length + position

    def _is_grid(self) -> bool:
        """Whether the rows are the padded form already, as those of a packed batch without padding are."""
        return self.steps is not None or (self.packed and self.num_samples * self.max_length == self.num_rows)

    def strided(self, stride: int) -> "Pointers":
        """Returns pointers of the sequences shortened from T to ceil(T / stride) steps.

        >>> Pointers.from_ptr(torch.tensor([0, 5, 6])).strided(2).length.tolist()
        [3, 1]
        """
        if stride == 1:
            return self
        length = (self.length + stride - 1).div(stride, rounding_mode="floor")
        if self.steps is not None:
            steps = (self.steps + stride - 1) // stride  # not -(-steps // stride): ONNX divides negative numbers in another way
            start = torch.arange(self.num_samples, device=length.device) * steps
            return Pointers._unchecked(start, length, self.num_samples * steps, steps, self.packed)
        end = length.cumsum(0)
        return Pointers._unchecked(end - length, length, number(end[-1], "num_rows") if len(end) else 0, packed=True)

    def compact(self) -> "Pointers":
        """Returns pointers of the same samples without gaps between them."""
        if self.packed and self.steps is None:
            return self
        end = self.length.cumsum(0)
        return Pointers._unchecked(end - self.length, self.length, number(end[-1], "num_rows") if len(end) else 0, packed=True)

    def fills_rows(self) -> bool:
        """Returns whether no row is a gap. It reads the lengths of a padded batch."""
        return self.packed or number(self.length.sum(), "length") == self.num_rows

    def pad(self, x: Tensor) -> Tensor:
        """Turns rows `(N, *)` into a padded batch `(B, T, *)`. The padding is zero if the rows have no gaps, otherwise undefined."""
        if not self._is_grid():
            if self.packed:
                x = put_rows(x, self._grid_rows, self.num_samples * self.max_length)
            elif self.num_rows:
                rows = self.start.unsqueeze(1) + torch.arange(self.max_length, device=x.device)
                x = x.index_select(0, rows.clamp_(max=self.num_rows - 1).flatten())
        return x.unflatten(0, (self.num_samples, self.max_length))

    def unpad(self, x: Tensor) -> Tensor:
        """Turns a padded batch `(B, T, *)` into rows `(N, *)`, the inverse of `pad`."""
        x = x.flatten(0, 1)
        if self._is_grid():
            # An export cannot prove that a view of a view has the strides of the first; a copy has them.
            return x.clone(memory_format=torch.contiguous_format) if is_traced() else x
        if self.packed:
            return take_rows(x, self._grid_rows)
        if self.max_length == 0:  # nothing but gaps: zeros that a gradient flows through
            return x.sum(0, keepdim=True).expand(self.num_rows, *x.shape[1:])
        real = self.real.view(-1, *(1,) * (x.dim() - 1))
        return x.index_select(0, self._grid_rows).masked_fill(~real, 0)

    def to(self, device: torch.device | str) -> "Pointers":
        """Copies to another device."""
        return Pointers._unchecked(self.start.to(device), self.length.to(device), self.num_rows, self.steps, self.packed)

    def __repr__(self) -> str:
        padded = "" if self.steps is None else f", {self.steps} steps each with padding"
        return f"Pointers({self.num_samples} samples, {self.num_rows} rows{padded})"


class _Take(torch.autograd.Function):
    """Takes rows by an index that names each at most once. The backward pass writes rows, where torch's indexing would add them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(0, rows)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.size = len(inputs[0])  # type: ignore[attr-defined]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return put_rows(grads[0], rows, ctx.size), None  # type: ignore[attr-defined]

    @staticmethod
    def jvp(ctx: FunctionCtx, *tangents: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return tangents[0].index_select(0, rows)


def number(value: Tensor, name: str) -> int:
    """Reads a number that decides the size of a tensor."""
    if value.is_meta:
        raise ValueError(f"{name}: expected tensors that hold numbers, got some on meta; Pointers of a padded batch know their sizes there")
    return int(value)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]`, where `rows` names each row at most once."""
    return x.index_select(0, rows) if is_traced() else _Take.apply(x, rows)


def put_rows(x: Tensor, rows: Tensor, size: int) -> Tensor:
    """The inverse of `take_rows`: (size, *), zeros where `rows` names nothing."""
    return x.new_zeros(size, *x.shape[1:]).index_copy(0, rows, x)
