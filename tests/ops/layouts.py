"""The same samples in every form that rows come in: one after the other, padded to one length, with gaps anywhere.

Tests draw steps without gaps, and compare in that form: `Layout.place` brings them to a form, `Layout.collect` brings results back.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers

FORMS = ("packed", "padded", "loose")
Run = tuple[int, int]  # first step that is heard, and the step after the last


class Layout:
    """Where the rows of samples of these lengths are in one of `FORMS`."""

    def __init__(self, lengths: Sequence[int], form: str, spare: int = 2) -> None:
        self.lengths, self.form = list(lengths), form
        length = torch.tensor(self.lengths, dtype=torch.int64)
        if form == "packed":
            self.pointers = Pointers.from_ptr(torch.cat([length.new_zeros(1), length.cumsum(0)]))
        elif form == "padded":
            self.pointers = Pointers.from_mask(torch.arange(max(self.lengths, default=0) + spare) < length.unsqueeze(1))
        else:  # a gap before each sample and after the last one
            spare = spare if self.lengths else 0
            start = (length + spare).cumsum(0) - length
            self.pointers = Pointers(start, length, sum(self.lengths) + spare * (len(self.lengths) + 1))
        starts = self.pointers.start.tolist()
        self.rows = torch.tensor([s + i for s, n in zip(starts, self.lengths, strict=True) for i in range(n)], dtype=torch.int64)
        self.gaps = torch.ones(self.pointers.num_rows, dtype=torch.bool).index_fill(0, self.rows, False)

    @property
    def steps(self) -> int:
        """How many rows are no gaps."""
        return len(self.rows)

    @property
    def slices(self) -> list[slice]:
        """The steps of each sample, without gaps."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0).tolist()
        return [slice(a, z) for a, z in pairwise(ends)]

    def place(self, x: Tensor, junk: float = torch.nan) -> Tensor:
        """Steps without gaps to rows (N, *) with junk in the gaps."""
        junk = junk if x.is_floating_point() else 0
        return x.new_full((self.pointers.num_rows, *x.shape[1:]), junk).index_copy(0, self.rows, x)

    def collect(self, x: Tensor) -> Tensor:
        """Rows (N, *) to steps without gaps. Nothing but zero may stand in a gap."""
        assert len(x) == self.pointers.num_rows
        assert not x[self.gaps].any(), "something stands in a gap"
        return x[self.rows]


def windowed(sources: Sequence[Layout], target: Layout, runs: Sequence[Sequence[Run]]) -> IntervalEdges:
    """Edges from runs given by target step and source, as step numbers of the sample."""
    count = len(sources)
    bounds = torch.tensor([r for row in runs for r in row], dtype=torch.int64).view(target.steps, count, 2)
    offset = torch.tensor([0, *(s.pointers.num_rows for s in sources)]).cumsum(0)[:-1]
    sample = torch.tensor([b for b, n in enumerate(target.lengths) for _ in range(n)], dtype=torch.int64)
    start = torch.stack([s.pointers.start[sample] + o for s, o in zip(sources, offset, strict=True)], 1)
    begin, end = (target.place(start + bounds[..., i]) for i in range(2))
    return IntervalEdges([s.pointers for s in sources], target.pointers, begin, end)


def random_runs(sources: Sequence[Layout], target: Layout, seed: int = 0) -> list[list[Run]]:
    """A run of each source for each target step; some are empty, and some steps hear nothing at all."""
    generator = torch.Generator().manual_seed(seed)
    number = lambda top: int(torch.randint(top + 1, (), generator=generator))  # noqa: E731
    runs = []
    for b, length in enumerate(target.lengths):
        for _ in range(length):
            silent = number(4) == 0
            row = []
            for source in sources:
                a, z = sorted((number(source.lengths[b]), number(source.lengths[b])))
                row.append((a, a) if silent else (a, z))
            runs.append(row)
    return runs


def heard(sources: Sequence[Layout], target: Layout, runs: Sequence[Sequence[Run]] | None, sample: int) -> Tensor:
    """(n, sum of the sources' steps), bool: which steps of a sample hear which."""
    sizes = [s.lengths[sample] for s in sources]
    mask = torch.zeros(target.lengths[sample], sum(sizes), dtype=torch.bool)
    if runs is None:
        return mask | True
    for i, row in enumerate(runs[target.slices[sample]]):
        for s, (a, z) in enumerate(row):
            mask[i, sum(sizes[:s]) + a : sum(sizes[:s]) + z] = True
    return mask
