"""Edges between sequences that need no list: each target row listens to runs of consecutive source rows."""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.eager import is_traced
from mea_graph.ops.kept import kept
from mea_graph.ops.places import check_device
from mea_graph.ops.pointers import Pointers, number
from mea_graph.ops.times import place_in_time

__all__ = ["IntervalEdges"]


class IntervalEdges:
    r"""Edges from runs of source rows to target rows, in memory :math:`O(N)` instead of :math:`O(E)`.

    Every target row i listens to the source rows `begin[i]`, ..., `end[i] - 1`. With several sources, whose rows stand one below the other
    in one matrix, it listens to one run of each. `complete` joins each target step to all steps of its sample, as the paper does; `window`
    keeps those that are near, in steps or in seconds.

    Args:
        sources: Where the samples' rows are in each source.
        target: Where the target's rows are, with as many samples.
        begin, end: First row and the row after the last of each run, as numbers in the matrix of all sources. None: all of the sample.

    Shape:
        - begin, end: :math:`(N_t, S)`, int64, inside the sample's rows

    Raises:
        ValueError: If numbers of samples differ, a shape is not as above, or a run leaves the sample's rows (checked on the CPU only).

    >>> import torch
    >>> audio, text = (
    ...     Pointers.from_ptr(torch.tensor([0, 3, 5])),
    ...     Pointers.from_ptr(torch.tensor([0, 1, 2])),
    ... )
    >>> IntervalEdges.complete(audio, text).edge_index().tolist()
    [[0, 1, 2, 3, 4], [0, 0, 0, 1, 1]]
    """

    def __init__(self, sources: Sequence[Pointers], target: Pointers, begin: Tensor | None = None, end: Tensor | None = None) -> None:
        self.sources, self.target, self._begin, self._end = tuple(sources), target, begin, end
        if not self.sources:
            raise ValueError("sources: expected at least one, got none")
        for i, source in enumerate((*self.sources, target)):
            if not isinstance(source, Pointers):
                name = f"sources[{i}]" if i < len(self.sources) else "target"
                raise TypeError(f"{name}: expected Pointers, which Pointers.from_ptr makes, got {type(source).__name__}")
        for i, source in enumerate(self.sources):
            if source.num_samples != target.num_samples:
                raise ValueError(f"sources[{i}]: expected {target.num_samples} samples as the target has, got {source.num_samples}")
            check_device(f"sources[{i}]", source.start, target.start.device, "the target")
        if (begin is None) != (end is None):
            raise ValueError("begin, end: expected both or neither")
        for name, value in (("begin", begin), ("end", end)):
            if value is not None and (value.shape != (target.num_rows, len(self.sources)) or value.dtype != torch.int64):
                expected = (target.num_rows, len(self.sources))
                raise ValueError(f"{name}: expected int64 {expected}, got {value.dtype} {tuple(value.shape)}")
            if value is not None:
                check_device(name, value, target.start.device, "the target")
        self.num_source_rows = sum(source.num_rows for source in self.sources)
        self._made: dict[str, Tensor] = {}
        self._known: Sequence[Pointers] = self.sources  # whose widths bound those of the runs
        if begin is not None and end is not None:
            self._check_runs(begin, end)

    def _check_runs(self, begin: Tensor, end: Tensor) -> None:
        if type(begin) is not Tensor or begin.device.type != "cpu" or is_traced() or not self.target.num_rows:
            return
        first = self.source_start.index_select(0, self.target.sample)
        last = first + self.source_length.index_select(0, self.target.sample)
        outside = ((begin < first) | (end > last) | (begin > end)) & self.target.real.unsqueeze(1)
        if bool(outside.any()):
            row, source = outside.nonzero()[0].tolist()
            expected = f"a run inside the rows {int(first[row, source])} to {int(last[row, source])} of its sample"
            raise ValueError(
                f"begin, end: expected {expected} at row {row}, source {source}, got {int(begin[row, source])} to {int(end[row, source])}"
            )

    @classmethod
    def _of_own(cls, sources: Sequence[Pointers], target: Pointers, begin: Tensor, end: Tensor) -> "IntervalEdges":
        """Makes edges from runs that this class computed, which need no check."""
        edges = cls(sources, target)
        edges._begin, edges._end = begin, end
        return edges

    @classmethod
    def of_runs(
        cls,
        source_start: Tensor,
        source_length: Tensor,
        num_source_rows: int,
        target: Pointers,
        begin: Tensor | None = None,
        end: Tensor | None = None,
        known: Sequence[Pointers] = (),
    ) -> "IntervalEdges":
        """Makes edges whose samples have their source rows anywhere in one matrix: `source_start` and `source_length` are (B, S).

        The lengths are those of `known`; without it the longest one is read from the data where it is needed.

        >>> pointers = Pointers.from_ptr(torch.tensor([0, 1]))
        >>> IntervalEdges.of_runs(
        ...     torch.tensor([[0, 5]]), torch.tensor([[2, 1]]), 6, pointers
        ... ).edge_index().tolist()
        [[0, 1, 5], [0, 0, 0]]
        """
        given = {"source_start": source_start, "source_length": source_length, "begin": begin, "end": end}
        for name, value in given.items():
            if value is not None:
                check_device(name, value, target.start.device, "the target")
        edges = cls.__new__(cls)
        edges.sources, edges.target, edges._begin, edges._end, edges.num_source_rows = (), target, begin, end, num_source_rows
        edges._made = {"source_start": source_start, "source_length": source_length}
        edges._known = known
        return edges

    @classmethod
    def complete(cls, source: Pointers | Sequence[Pointers], target: Pointers) -> "IntervalEdges":
        """Lets every target step hear every source step of its sample.

        >>> steps = Pointers.from_ptr(torch.tensor([0, 2]))
        >>> IntervalEdges.complete(steps, steps).num_edges
        4
        """
        return cls([source] if isinstance(source, Pointers) else source, target)

    @classmethod
    def window(
        cls,
        source: Pointers,
        target: Pointers,
        steps: int | None = None,
        seconds: float | None = None,
        source_time: Tensor | None = None,
        target_time: Tensor | None = None,
        causal: bool = False,
    ) -> "IntervalEdges":
        r"""Lets every target step hear the near source steps of its sample.

        In steps: target step i of :math:`L_t` corresponds to the source step :math:`c = \lfloor (i + 1/2) L_s / L_t \rfloor` (step i itself
        if the lengths are equal) and hears :math:`c - w, \dots, c + w`. In seconds: it hears the steps whose time differs by
        at most `seconds`. With `causal` it hears no later step; `steps` and `seconds` are then optional.

        Args:
            source, target: Pointers to the rows of the samples.
            steps: Half the width of the window w, in source steps, at least 0.
            seconds: Half the width of the window in seconds, at least 0.
            source_time, target_time: The time of each row in seconds, never falling within a sample. Give both or neither.
            causal: Whether a step hears only itself and earlier steps.

        Raises:
            ValueError: If both widths or no limit at all are given, a width is negative, or `seconds` comes without times.

        >>> steps = Pointers.from_ptr(torch.tensor([0, 3]))
        >>> IntervalEdges.window(steps, steps, steps=1).edge_index().tolist()
        [[0, 1, 0, 1, 2, 1, 2], [0, 0, 1, 1, 1, 2, 2]]
        """
        timed = source_time is not None and target_time is not None
        if steps is not None and seconds is not None:
            raise ValueError(f"steps, seconds: expected one of them, got {steps} and {seconds}")
        if steps is None and seconds is None and not causal:
            raise ValueError("steps, seconds, causal: expected a limit, got none; use IntervalEdges.complete")
        for name, width, kind in (("steps", steps, Integral), ("seconds", seconds, Real)):
            if width is not None and (isinstance(width, bool) or not isinstance(width, kind)):
                raise TypeError(f"{name}: expected {'an integer' if kind is Integral else 'a number'}, got {width!r}")
            if width is not None and not width >= 0:
                raise ValueError(f"{name}: expected at least 0, got {width}")
        for name, pointers in (("source", source), ("target", target)):
            if not isinstance(pointers, Pointers):
                raise TypeError(f"{name}: expected Pointers, which Pointers.from_ptr makes, got {type(pointers).__name__}")
        if (source_time is None) != (target_time is None) or (seconds is not None and not timed):
            wanted = "or neither" if seconds is None else "with seconds"
            raise ValueError(f"source_time, target_time: expected both {wanted}, got None")
        if source.num_samples != target.num_samples:
            raise ValueError(f"source: expected {target.num_samples} samples as the target has, got {source.num_samples}")
        start = source.start.index_select(0, target.sample)
        length = source.length.index_select(0, target.sample)
        if seconds is not None or (timed and steps is None):
            reach = float("inf") if seconds is None else seconds
            begin = place_in_time(source, target, source_time, target_time, -reach, right=False)
            end = place_in_time(source, target, source_time, target_time, 0.0 if causal else reach, right=True)
        else:
            own = target.length.index_select(0, target.sample).clamp(min=1)
            centre = ((2 * target.position + 1) * length).div(2 * own, rounding_mode="floor")
            begin = torch.zeros_like(centre) if steps is None else centre - steps
            end = centre + 1 if causal else centre + (steps or 0) + 1
            if timed and causal:
                end = torch.minimum(end, place_in_time(source, target, source_time, target_time, 0.0, right=True))
        begin = torch.minimum(begin.clamp(min=0), length)
        end = torch.maximum(torch.minimum(end, length), begin)
        return cls._of_own([source], target, (start + begin).unsqueeze(1), (start + end).unsqueeze(1))

    @classmethod
    def join(cls, parts: Sequence["IntervalEdges"]) -> "IntervalEdges":
        """Joins the edges of several sources to one target, whose source rows stand one below the other: one softmax hears them all.

        Raises:
            ValueError: If there are no edges, they differ in the sizes of their targets, or they know no sources (those of
                `below_each_other`).

        >>> a, b = (
        ...     Pointers.from_ptr(torch.tensor([0, 1])),
        ...     Pointers.from_ptr(torch.tensor([0, 2])),
        ... )
        >>> IntervalEdges.join(
        ...     [IntervalEdges.complete(a, b), IntervalEdges.complete(b, b)]
        ... ).edge_index().tolist()
        [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1]]
        """
        _check_parts(parts)
        target, sources = parts[0].target, [s for part in parts for s in part.sources]
        for i, part in enumerate(parts):
            if not part.sources:
                raise ValueError(f"parts[{i}]: expected edges made of sources, got those of several graphs below each other")
            if part.target.num_rows != target.num_rows or part.target.num_samples != target.num_samples:
                raise ValueError(f"parts[{i}]: expected edges to {target} as the first, got {part.target}")
        if all(part._begin is None for part in parts):
            return cls(sources, target)
        begins, ends, rows = [], [], 0
        for part in parts:
            begins.append(part.begin + rows)
            ends.append(part.end + rows)
            rows += part.num_source_rows
        return cls._of_own(sources, target, torch.cat(begins, 1), torch.cat(ends, 1))

    @classmethod
    def below_each_other(cls, parts: Sequence["IntervalEdges"]) -> "IntervalEdges":
        """Joins several graphs into one: target rows stand one below the other, source rows too, and each graph keeps its edges.

        >>> a = Pointers.from_ptr(torch.tensor([0, 1]))
        >>> IntervalEdges.below_each_other(
        ...     [IntervalEdges.complete(a, a)] * 2
        ... ).edge_index().tolist()
        [[0, 1], [0, 1]]
        """
        _check_parts(parts)
        target = Pointers.join([part.target for part in parts])
        known = [source for part in parts for source in part._known] if all(part._known for part in parts) else []
        if all(part.sources and part.is_complete for part in parts):
            return cls.of_runs(*_complete_runs(parts), target, known=known)
        runs = max(part.source_start.size(1) for part in parts)
        starts, lengths, begins, ends, rows = [], [], [], [], 0
        for part in parts:
            more = (0, runs - part.source_start.size(1))  # runs without a row
            starts.append(F.pad(part.source_start + rows, more))
            lengths.append(F.pad(part.source_length, more))
            begins.append(F.pad(part.begin + rows, more))
            ends.append(F.pad(part.end + rows, more))
            rows += part.num_source_rows
        return cls.of_runs(torch.cat(starts), torch.cat(lengths), rows, target, torch.cat(begins), torch.cat(ends), known)

    @property
    def is_complete(self) -> bool:
        """Whether every target step listens to all of its sample."""
        return self._begin is None

    @kept
    def source_start(self) -> Tensor:
        """The first row of each sample in the matrix of all sources, `(B, S)`."""
        starts, rows = [], 0
        for source in self.sources:
            starts.append(source.start + rows if rows else source.start)
            rows += source.num_rows
        return torch.stack(starts, 1) if len(starts) != 1 else starts[0].unsqueeze(1)

    @kept
    def source_length(self) -> Tensor:
        """The number of rows of each sample, `(B, S)`."""
        return torch.stack([s.length for s in self.sources], 1) if len(self.sources) != 1 else self.sources[0].length.unsqueeze(1)

    @kept
    def begin(self) -> Tensor:
        """The first source row of each target row's run, `(N_t, S)`."""
        return self.source_start.index_select(0, self.target.sample) if self._begin is None else self._begin

    @kept
    def end(self) -> Tensor:
        """The row after the last of each target row's run, `(N_t, S)`."""
        if self._end is not None:
            return self._end
        return self.begin + self.source_length.index_select(0, self.target.sample)

    def relative(self) -> Tensor:
        """Returns `begin` and `end` of one source, (N_t, 2), counted from the first source row of the sample.

        In this form edges can be stored in a graph: it stays right when graphs are collated.

        >>> steps = Pointers.from_ptr(torch.tensor([0, 1, 3]))
        >>> IntervalEdges.complete(steps, steps).relative().tolist()
        [[0, 1], [0, 2], [0, 2]]
        """
        if self.source_start.size(1) != 1:
            raise ValueError(f"relative: expected edges of one source, got {self.source_start.size(1)}")
        first = self.source_start.index_select(0, self.target.sample)
        return torch.cat([self.begin - first, self.end - first], 1)

    @classmethod
    def from_relative(cls, interval: Tensor, source: Pointers, target: Pointers) -> "IntervalEdges":
        """Makes edges of what `relative` returned.

        >>> steps = Pointers.from_ptr(torch.tensor([0, 1, 3]))
        >>> IntervalEdges.from_relative(
        ...     torch.tensor([[0, 1], [0, 1], [1, 2]]), steps, steps
        ... ).edge_index().tolist()
        [[0, 1, 2], [0, 1, 2]]
        """
        first = source.start.index_select(0, target.sample).unsqueeze(1)
        return cls([source], target, interval[:, :1] + first, interval[:, 1:] + first)

    def pad_sources(self, x: Tensor) -> Tensor:
        """Pads the source rows `(N_s, *)` that each sample hears to `(B, sum of T_s, *)`. Gaps may hold anything, see `source_mask`."""
        if self.sources:
            sizes = [source.num_rows for source in self.sources]
            parts = [source.pad(rows) for source, rows in zip(self.sources, x.split(sizes), strict=True)]
            return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if x.size(0) == 0:
            return x.new_zeros(self.target.num_samples, 0, *x.shape[1:])
        return x.index_select(0, self.source_rows.flatten()).unflatten(0, self.source_rows.shape)

    @property
    def source_mask(self) -> Tensor:
        """Where `pad_sources` holds a step, `(B, sum of T_s)`."""
        if self.sources:
            masks = [source.mask for source in self.sources]
            return masks[0] if len(masks) == 1 else torch.cat(masks, 1)
        steps = torch.arange(self._longest(), device=self.source_length.device)
        return (steps < self.source_length.unsqueeze(-1)).flatten(1)

    @property
    def source_rows(self) -> Tensor:
        """Which source row `pad_sources` holds, `(B, sum of T_s)`."""
        widths = [source.max_length for source in self.sources] or [self._longest()] * self.source_start.size(1)
        steps = [torch.arange(width, device=self.source_start.device) for width in widths]
        rows = torch.cat([self.source_start[:, s : s + 1] + step for s, step in enumerate(steps)], 1)
        return rows.clamp(max=max(self.num_source_rows - 1, 0))

    def _longest(self) -> int:
        if self._known:
            return max(source.max_length for source in self._known)
        return number(self.source_length.max(), "max_length") if self.source_length.numel() else 0

    @property
    def num_edges(self) -> int:
        """E, read from the data."""
        counts = self.end - self.begin
        return number(counts.masked_fill(~self.target.real.unsqueeze(1), 0).sum(), "num_edges")

    def edge_index(self) -> Tensor:
        """Lists the edges as PyG layers take them, (2, E), sorted by target."""
        counts = (self.end - self.begin).masked_fill(~self.target.real.unsqueeze(1), 0).flatten()
        if counts.is_meta:
            number(counts, "num_edges")
        run = torch.arange(counts.numel(), device=counts.device).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        source = self.begin.flatten().index_select(0, run) + torch.arange(run.numel(), device=run.device) - first.index_select(0, run)
        return torch.stack([source, run.div(self.source_start.size(1), rounding_mode="floor")])

    def __repr__(self) -> str:
        kind = "complete" if self.is_complete else "windowed"
        return f"IntervalEdges({kind}, {self.source_start.size(1)} sources, {self.num_source_rows} -> {self.target.num_rows} rows)"


def _check_parts(parts: Sequence[IntervalEdges]) -> None:
    if not parts:
        raise ValueError("parts: expected at least one, got none")


def _complete_runs(parts: Sequence[IntervalEdges]) -> tuple[Tensor, Tensor, int]:
    """`source_start`, `source_length` and the number of rows of complete graphs below each other."""
    runs = max(len(part.sources) for part in parts)
    starts, lengths, rows = [], [], 0
    for part in parts:
        for source in part.sources:
            starts.append(source.start + rows if rows else source.start)
            lengths.append(source.length)
            rows += source.num_rows
        if len(part.sources) < runs:  # runs without a row
            nothing = [torch.zeros_like(part.target.start)] * (runs - len(part.sources))
            starts += nothing
            lengths += nothing
    start, length = (torch.stack(each).unflatten(0, (len(parts), runs)) for each in (starts, lengths))  # (parts, S, B)
    return start.mT.flatten(0, 1), length.mT.flatten(0, 1), rows
