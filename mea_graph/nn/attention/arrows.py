"""The edges between the modalities of a batch, for the layers that pass messages over all of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.nn._sequences import check_heard, check_pairs
from mea_graph.nn._side_by_side import Groups
from mea_graph.nn.attention.modality_reinforcement_unit import Part
from mea_graph.ops import IntervalEdges, Pointers
from mea_graph.ops.eager import is_traced
from mea_graph.ops.pointers import take_rows
from mea_graph.option_types import plain_value

Edges = IntervalEdges | Tensor  # runs of source rows, or an edge_index (2, E)


class Window:
    """Edges between steps that are near each other, for every pair of modalities: `IntervalEdges.window` with the same options."""

    def __init__(self, steps: int | None = None, seconds: float | None = None, causal: bool = False) -> None:
        if not isinstance(causal, bool):
            raise ValueError(f"window.causal: expected bool, got {causal!r}")
        if (steps is None) == (seconds is None):
            raise ValueError(f"window: expected steps or seconds, got {'both' if steps is not None else 'none'}")
        for name, width, kind in (("steps", steps, int), ("seconds", seconds, int | float)):
            if width is not None and (isinstance(width, bool) or not isinstance(width, kind) or not width >= 0):
                number = "an integer" if kind is int else "a number"
                raise ValueError(f"window.{name}: expected {number} of at least 0, got {width!r}")
        self.steps, self.seconds, self.causal = steps, seconds, causal

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Window":
        """Makes a window of a caller's options."""
        if not isinstance(options, Mapping) or set(options) - {"steps", "seconds", "causal"}:
            raise ValueError(f"window: expected a dict of steps or seconds, and causal, got {options!r}")
        return cls(**plain_value(dict(options)))

    def edges(self, pointers: Mapping[str, Pointers], time: Mapping[str, Tensor]) -> dict[tuple[str, str], Edges]:
        """The edges by pair (source, target); a width in seconds needs `time`, the seconds of each row."""
        found: dict[tuple[str, str], Edges] = {}
        for s in pointers:
            for t in pointers:
                times = {} if self.seconds is None else {"source_time": time[s], "target_time": time[t]}
                found[s, t] = IntervalEdges.window(pointers[s], pointers[t], self.steps, self.seconds, causal=self.causal, **times)
        return found


class _Stage(NamedTuple):
    sorted: bool  # whether the rows are read sample by sample
    parts: list[Part]  # which of them the arrows read
    edges: IntervalEdges


class Arrows:
    """The edges between the modalities of a batch, built once and used by every layer."""

    def __init__(self, pointers: Mapping[str, Pointers], edges: Mapping[tuple[str, str], Edges] | None = None) -> None:
        check_pairs(edges, pointers)
        self.pointers, self.edges = dict(pointers), dict(edges or {})
        for (s, t), heard in self.edges.items():
            check_heard(heard, [self.pointers[s]], self.pointers[t], f"edges[{s!r}, {t!r}]")
        self.listed = any(isinstance(heard, Tensor) for heard in self.edges.values())
        self._heard_by: dict[tuple[str, tuple[str, ...]], Edges] = {}
        self._stages: dict[tuple[tuple[str, tuple[str, ...]], ...], _Stage] = {}
        samples = next(iter(self.pointers.values())).num_samples
        packed = all(p.packed and p.start.device.type == "cpu" for p in self.pointers.values())  # elsewhere, kernels read several runs
        self._may_sort = packed and samples > 1
        sizes = [p.num_rows for p in self.pointers.values()]
        level = not (packed or self.edges or is_traced()) and all(size == sizes[0] for size in sizes)  # a traced graph must fit any sizes
        self.level = sizes[0] if level else 0  # rows that each modality has: see `level`
        self._targets: dict[tuple[str, ...], Pointers] = {}
        self._block_starts: dict[tuple[str, ...], Tensor] = {}
        self._sorted: tuple[Tensor, Tensor] | None = None
        self._by_sample_order: Tensor | None = None
        self._heard: Tensor | None = None
        self._in_block: tuple[Tensor, Tensor] | None = None  # where a row lacks a source, and where it has any
        self._nothing_missing = all(p.packed and p.steps for p in self.pointers.values())  # known from shapes alone

    def of(self, target: str, sources: Sequence[str]) -> IntervalEdges:
        """The edges from the stacked rows of the sources to the target, as runs."""
        heard = self.heard(target, sources)
        if isinstance(heard, Tensor):
            raise ValueError(
                f"edges: expected IntervalEdges from {list(sources)} to {target!r} where a graph stores runs, got an edge_index"
            )
        return heard

    def heard(self, target: str, sources: Sequence[str]) -> Edges:
        """Like `of`, but a list if the edges of any source are a list."""
        key = target, tuple(sources)
        if key not in self._heard_by:
            self._heard_by[key] = self._joined(target, sources)
        return self._heard_by[key]

    def _joined(self, target: str, sources: Sequence[str]) -> Edges:
        own = self.pointers[target]
        if not any((s, target) in self.edges for s in sources):
            return IntervalEdges.complete([self.pointers[s] for s in sources], own)
        complete = {s: IntervalEdges.complete(self.pointers[s], own) for s in sources}
        parts = [self.edges.get((s, target), complete[s]) for s in sources]
        intervals = [part for part in parts if isinstance(part, IntervalEdges)]
        if len(intervals) == len(parts):
            return IntervalEdges.join(intervals)
        lists, rows = [], 0
        for s, part in zip(sources, parts, strict=True):
            source, heard_by = part if isinstance(part, Tensor) else part.edge_index()
            lists.append(torch.stack([source + rows, heard_by]))
            rows += self.pointers[s].num_rows
        return torch.cat(lists, 1)

    def of_stage(self, rows: Tensor, stage: Sequence[tuple[str, list[str]]]) -> tuple[Tensor, list[Part], IntervalEdges]:
        """For the arrows (target, sources) of a stage: the rows to read, the part that each arrow reads, and all edges as one graph.

        No edges of the stage may be a list.
        """
        key = tuple((target, tuple(sources)) for target, sources in stage)
        if key not in self._stages:
            one_source = max(len(sources) for _, sources in stage) == 1
            sorted_by_sample = not self.edges and not one_source and self._may_sort
            if self.level and len({len(sources) for _, sources in stage}) == 1:
                self._stages[key] = self._in_blocks(stage)
            else:
                self._stages[key] = self._by_sample(stage) if sorted_by_sample else self._by_modality(stage)
        found = self._stages[key]
        return self.sorted(rows) if found.sorted else rows, found.parts, found.edges

    def sorted(self, rows: Tensor) -> Tensor:
        """The rows ordered by sample instead of by modality; made once for each matrix of rows."""
        if self._sorted is None or self._sorted[0] is not rows:
            self._sorted = rows, take_rows(rows, self._order())
        return self._sorted[1]

    def _order(self) -> Tensor:
        if self._by_sample_order is None:
            self._by_sample_order = torch.cat([p.sample for p in self.pointers.values()]).argsort(stable=True)
        return self._by_sample_order

    def _by_modality(self, stage: Sequence[tuple[str, list[str]]]) -> "_Stage":
        """Leaves the rows in place: an arrow reads one run of each source."""
        edges = IntervalEdges.below_each_other([self.of(target, sources) for target, sources in stage])
        read = [self.groups(sources) for _, sources in stage]
        return _Stage(False, [Part(u, *rows) for u, groups in enumerate(read) for rows in zip(*groups, strict=True)], edges)

    def _in_blocks(self, stage: Sequence[tuple[str, list[str]]]) -> "_Stage":
        """Leaves the rows in place, equally many of each modality, so that `grouped_linear` can multiply all in one product.

        Arrows with several sources read all rows; those with one source are sorted by it. No index is copied to the device, which would
        have to wait for it.
        """
        names, rows = list(self.pointers), self.level
        if len(stage[0][1]) > 1:
            parts = [Part(u, 0, rows * len(names)) for u in range(len(stage))]
            blocks = [m for _ in stage for m in names]  # the modality of each block of rows that the arrows read
            heard = [u * len(names) + names.index(s) for u, (_, sources) in enumerate(stage) for s in sources]
        else:
            order = sorted(range(len(stage)), key=lambda u: names.index(stage[u][1][0]))
            parts = [Part(u, rows * names.index(stage[u][1][0]), rows) for u in order]
            blocks = [stage[u][1][0] for u in order]
            heard = [order.index(u) for u in range(len(stage))]
        start = self._starts(blocks)
        ends = torch.stack([*(start[i] for i in heard), *(self.pointers[blocks[i]].length for i in heard)])
        starts, lengths = ends.view(2, len(stage), -1, ends.size(1)).mT.flatten(1, 2).unbind()  # (arrows B, S)
        targets = tuple(t for t, _ in stage)
        if targets not in self._targets:
            self._targets[targets] = Pointers.join([self.pointers[t] for t in targets])
        known = [self.pointers[m] for m in blocks]
        return _Stage(False, parts, IntervalEdges.of_runs(starts, lengths, rows * len(blocks), self._targets[targets], known=known))

    def _starts(self, blocks: list[str]) -> Tensor:
        """Where each sample begins in blocks of rows that stand one below the other, (blocks, B); mixed and coarse arrows have the same."""
        found = self._block_starts.get(tuple(blocks))
        if found is None:
            own = torch.stack([self.pointers[m].start for m in blocks])
            found = own + torch.arange(0, self.level * len(blocks), self.level, device=own.device).unsqueeze(1)
            self._block_starts[tuple(blocks)] = found
        return found

    def _by_sample(self, stage: Sequence[tuple[str, list[str]]]) -> "_Stage":
        """Sorts the rows by sample; every arrow reads all of them, and neighbouring sources form one run."""
        names = list(self.pointers)
        length = torch.stack([self.pointers[m].length for m in names])  # (M, B)
        total = length.sum(0)
        start = length.cumsum(0) - length + (total.cumsum(0) - total)
        rows = sum(p.num_rows for p in self.pointers.values())
        runs = max(len(sources) for _, sources in stage)
        start, length = F.pad(start, (0, 0, 0, 1)), F.pad(length, (0, 0, 0, 1))  # one more modality, without rows
        place = [[names.index(s) for s in sources] + [len(names)] * (runs - len(sources)) for _, sources in stage]
        index = torch.tensor(place, device=length.device)  # (arrows, S)
        below = rows * torch.arange(len(stage), device=length.device).view(-1, 1, 1)  # each arrow has keys of its own
        source_start, source_length = (start[index] + below).mT.flatten(0, 1), length[index].mT.flatten(0, 1)
        target = Pointers.join([self.pointers[t] for t, _ in stage])
        edges = IntervalEdges.of_runs(source_start, source_length, rows * len(stage), target)
        return _Stage(True, [Part(u, 0, rows) for u in range(len(stage))], edges)

    def groups(self, names: Sequence[str]) -> Groups:
        """Where the rows of each name are among the stacked rows of all modalities."""
        starts, row = {}, 0
        for m, pointers in self.pointers.items():
            starts[m], row = row, row + pointers.num_rows
        return Groups([starts[m] for m in names], [self.pointers[m].num_rows for m in names])

    def sum_of_present(self, rows: Tensor, instead: Tensor) -> Tensor:
        """Sums the stacked results of each target's fine units over the sources that a sample has; `instead` where it has none."""
        if self.level:
            return self._sum_of_blocks(rows, instead)
        count = len(self.pointers) - 1
        sizes = [p.num_rows for p in self.pointers.values() for _ in range(count)]
        if self._heard is None and not self._nothing_missing:
            there = torch.stack([p.present for p in self.pointers.values()])  # (M, B)
            heard = []
            for i, target in enumerate(self.pointers.values()):
                others = [j for j in range(count + 1) if j != i]
                heard.append(there[others].index_select(1, target.sample).flatten())
            self._heard = torch.cat(heard).unsqueeze(1)  # as rows, (sum of sizes, 1)
            self._nothing_missing = self._heard.device.type == "cpu" and bool(self._heard.all())
        if count == 1 and self._nothing_missing:
            return rows
        if self._heard is not None and not self._nothing_missing:
            rows = rows.masked_fill(~self._heard, 0)
        parts = rows.split(sizes)
        total = torch.cat([torch.stack(parts[i : i + count]).sum(0) if count > 1 else parts[i] for i in range(0, len(parts), count)])
        if self._heard is None or self._nothing_missing:
            return total
        seen = self._heard.split(sizes)
        any_of = torch.cat([torch.stack(seen[i : i + count]).any(0) for i in range(0, len(seen), count)])
        return torch.where(any_of, total, instead)

    def _sum_of_blocks(self, rows: Tensor, instead: Tensor) -> Tensor:
        """Like `sum_of_present`, where all modalities have equally many rows."""
        rows = rows.view(len(self.pointers), -1, self.level, rows.size(1))  # (M, M - 1, n, d)
        if self._nothing_missing:
            return rows.sum(1).flatten(0, 1)
        if self._in_block is None:
            there = [p.present for p in self.pointers.values()]
            others = torch.stack([p for t in range(len(there)) for s, p in enumerate(there) if s != t])
            sample = Pointers.join(list(self.pointers.values())).sample.view(len(there), 1, -1) % others.size(1)  # (M, 1, n)
            heard = others.unflatten(0, rows.shape[:2]).gather(2, sample.expand(rows.shape[:3]))
            self._in_block = ~heard.unsqueeze(-1), heard.any(1).view(-1, 1)
        lacking, any_of = self._in_block
        return rows.masked_fill(lacking, 0).sum(1).flatten(0, 1) + instead.masked_fill(any_of, 0)
