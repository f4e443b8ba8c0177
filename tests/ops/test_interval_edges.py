"""Every way to make edges of runs, against loops over targets and sources."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers

from .layouts import FORMS, Layout, random_runs, windowed

Pair = tuple[int, int]  # (source row, target row)
LENGTHS = [([3, 0, 5], [4, 2, 0]), ([0, 0, 1], [2, 0, 1]), ([6], [6]), ([], []), ([0], [0]), ([5, 4], [2, 9])]
every_form = pytest.mark.parametrize("form", FORMS)
every_pair = pytest.mark.parametrize(("source", "target"), LENGTHS, ids=str)


def pairs(edges: IntervalEdges) -> list[Pair]:
    """The edges, once all that says something of them agrees."""
    found = [tuple(e) for e in edges.edge_index().T.tolist()]
    assert edges.num_edges == len(found)
    assert [t for _, t in found] == sorted(t for _, t in found)
    runs = zip(edges.begin.tolist(), edges.end.tolist(), edges.target.real.tolist(), strict=True)
    assert found == [(j, i) for i, (a, z, real) in enumerate(runs) if real for s in range(len(a)) for j in range(a[s], z[s])]
    return found


def loop(sources: Sequence[Layout], target: Layout, hears: Callable[[int, int, int, int], bool] = lambda *_: True) -> Iterator[Pair]:
    """The edges for which `hears` (sample, target step, source, source step) holds, sorted by target."""
    offsets = [sum(s.pointers.num_rows for s in sources[:i]) for i in range(len(sources))]
    for b, length in enumerate(target.lengths):
        for i in range(length):
            for s, source in enumerate(sources):
                for j in range(source.lengths[b]):
                    if hears(b, i, s, j):
                        yield int(offsets[s] + source.pointers.start[b] + j), int(target.pointers.start[b] + i)


@every_form
@every_pair
def test_complete_joins_all_steps_of_a_sample(source: list[int], target: list[int], form: str) -> None:
    of, to = Layout(source, form), Layout(target, form)
    edges = IntervalEdges.complete(of.pointers, to.pointers)
    assert edges.is_complete
    assert pairs(edges) == list(loop([of], to))
    both = IntervalEdges.complete([of.pointers, to.pointers], to.pointers)
    assert pairs(both) == list(loop([of, to], to))
    assert both.num_source_rows == of.pointers.num_rows + to.pointers.num_rows


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("steps", [None, 0, 1, 3, 100])
@every_form
@every_pair
def test_a_window_in_steps(source: list[int], target: list[int], form: str, steps: int | None, causal: bool) -> None:
    if steps is None and not causal:
        return  # no limit at all is refused, below
    of, to = Layout(source, form), Layout(target, form)

    def hears(b: int, i: int, _: int, j: int) -> bool:
        centre = math.floor((2 * i + 1) * source[b] / (2 * target[b]))
        return (steps is None or abs(j - centre) <= steps) and (not causal or j <= centre)

    edges = IntervalEdges.window(of.pointers, to.pointers, steps=steps, causal=causal)
    assert not edges.is_complete
    assert pairs(edges) == list(loop([of], to, hears))


def times(layout: Layout, seed: int) -> tuple[Tensor, list[list[float]]]:
    """Of each row, junk in gaps; and by sample. In eighths of seconds, some of them twice, so that differences are exact."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, 24, (n,), generator=generator).div(8).sort().values for n in layout.lengths]
    return layout.place(torch.cat([torch.zeros(0), *drawn])), [d.tolist() for d in drawn]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seconds", [None, 0.0, 0.25, 1.0, 100.0])
@every_form
@every_pair
def test_a_window_in_seconds(source: list[int], target: list[int], form: str, seconds: float | None, causal: bool) -> None:
    if seconds is None and not causal:
        return
    of, to = Layout(source, form), Layout(target, form)
    (source_time, own), (target_time, wanted) = times(of, 1), times(to, 2)

    def hears(b: int, i: int, _: int, j: int) -> bool:
        near = seconds is None or abs(own[b][j] - wanted[b][i]) <= seconds
        return near and (not causal or own[b][j] <= wanted[b][i])

    edges = IntervalEdges.window(of.pointers, to.pointers, seconds=seconds, source_time=source_time, target_time=target_time, causal=causal)
    assert pairs(edges) == list(loop([of], to, hears))


@every_form
@pytest.mark.parametrize("causal", [False, True])
def test_times_keep_a_causal_window_in_steps_from_the_future(form: str, causal: bool) -> None:
    of, to = Layout([5, 4, 0], form), Layout([5, 7, 3], form)
    (source_time, own), (target_time, wanted) = times(of, 1), times(to, 2)

    def hears(b: int, i: int, _: int, j: int) -> bool:
        centre = (2 * i + 1) * of.lengths[b] // (2 * to.lengths[b])
        return abs(j - centre) <= 2 and (not causal or (j <= centre and own[b][j] <= wanted[b][i]))

    edges = IntervalEdges.window(of.pointers, to.pointers, steps=2, source_time=source_time, target_time=target_time, causal=causal)
    assert pairs(edges) == list(loop([of], to, hears))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(FORMS),
    st.randoms(),
)
def test_drawn_windows(lengths: list[Pair], width: int, causal: bool, form: str, random: Any) -> None:
    of, to = (Layout([n[i] for n in lengths], form) for i in range(2))
    (source_time, own), (target_time, wanted) = times(of, random.randrange(99)), times(to, random.randrange(99))
    by_step = lambda b, i, s, j: abs(j - (2 * i + 1) * of.lengths[b] // (2 * to.lengths[b])) <= width  # noqa: E731
    in_steps = IntervalEdges.window(of.pointers, to.pointers, steps=width)
    assert pairs(in_steps) == list(loop([of], to, by_step))
    near = lambda b, i, s, j: abs(own[b][j] - wanted[b][i]) <= width / 4 and (not causal or own[b][j] <= wanted[b][i])  # noqa: E731
    in_seconds = IntervalEdges.window(
        of.pointers, to.pointers, seconds=width / 4, source_time=source_time, target_time=target_time, causal=causal
    )
    assert pairs(in_seconds) == list(loop([of], to, near))


@every_form
def test_joined_edges_are_those_of_each_source(form: str) -> None:
    to, sources = Layout([4, 2, 0, 3], form), [Layout(n, form) for n in ([3, 0, 5, 1], [6, 2, 1, 0], [0, 0, 0, 2])]
    parts = [
        IntervalEdges.complete(sources[0].pointers, to.pointers),
        IntervalEdges.window(sources[1].pointers, to.pointers, steps=1),
        IntervalEdges.complete([sources[2].pointers, to.pointers], to.pointers),
    ]
    near = lambda b, i, s, j: s != 1 or abs(j - (2 * i + 1) * sources[1].lengths[b] // (2 * to.lengths[b])) <= 1  # noqa: E731
    joined = IntervalEdges.join(parts)
    assert pairs(joined) == list(loop([*sources, to], to, near))
    assert not joined.is_complete
    offsets = list(itertools.accumulate((part.num_source_rows for part in parts), initial=0))
    every = zip(*(heard(part, first) for part, first in zip(parts, offsets, strict=False)), strict=True)
    assert heard(joined) == [list(itertools.chain(*rows)) for rows in every]
    complete = IntervalEdges.join([parts[0], parts[2]])
    assert complete.is_complete
    assert pairs(complete) == list(loop([sources[0], sources[2], to], to))


def heard(edges: IntervalEdges, first: int = 0) -> list[list[int]]:
    """The source rows of every sample, which the kernels go by; edges alone do not show them where runs are given."""
    return [(rows[mask] + first).tolist() for rows, mask in zip(edges.source_rows, edges.source_mask, strict=True)]


def below(parts: Sequence[IntervalEdges]) -> list[Pair]:
    found, sources, targets = list[Pair](), 0, 0
    for part in parts:
        found += [(j + sources, i + targets) for j, i in pairs(part)]
        sources, targets = sources + part.num_source_rows, targets + part.target.num_rows
    return found


@every_form
def test_graphs_below_each_other_keep_their_edges(form: str) -> None:
    a, b, one = Layout([4, 2, 0], form), Layout([3, 0, 5], form), Layout([2], form)
    complete = [
        IntervalEdges.complete(a.pointers, b.pointers),
        IntervalEdges.complete([b.pointers, a.pointers], a.pointers),
        IntervalEdges.complete(b.pointers, b.pointers),
    ]
    windows = [IntervalEdges.window(a.pointers, b.pointers, steps=1), IntervalEdges.complete(one.pointers, one.pointers)]
    for parts in (complete, complete[:1], [*complete, *windows], windows):
        together = IntervalEdges.below_each_other(parts)
        assert together.target.num_samples == sum(part.target.num_samples for part in parts)
        assert together.num_source_rows == sum(part.num_source_rows for part in parts)
        assert pairs(together) == below(parts)
        offsets = itertools.accumulate((part.num_source_rows for part in parts[:-1]), initial=0)
        assert heard(together) == [rows for part, first in zip(parts, offsets, strict=True) for rows in heard(part, first)]
        assert together.is_complete == all(part.is_complete for part in parts)
    again = IntervalEdges.below_each_other([IntervalEdges.below_each_other(complete), windows[0]])
    assert pairs(again) == below([*complete, windows[0]])


@every_form
def test_padded_sources_hold_each_sample_s_rows(form: str) -> None:
    to, sources = Layout([4, 2, 0], form), [Layout(n, form) for n in ([3, 0, 5], [1, 2, 0])]
    edges = IntervalEdges.complete([s.pointers for s in sources], to.pointers)
    below = IntervalEdges.below_each_other([edges, IntervalEdges.complete(sources[1].pointers, to.pointers)])
    steps = [torch.randn(s.steps, 2) for s in (*sources, sources[1])]
    for of, parts in ((edges, [steps[:2]]), (below, [steps[:2], steps[2:]])):
        placed = [s.place(x) for part in parts for s, x in zip(sources if len(part) == 2 else sources[1:], part, strict=True)]
        x, mask = of.pad_sources(torch.cat(placed)), of.source_mask
        assert x.shape[:2] == mask.shape == of.source_rows.shape
        rows = torch.cat(placed)
        expected = []
        for part in parts:
            for b in range(3):
                own = zip(sources if len(part) == 2 else sources[1:], part, strict=True)
                expected.append(torch.cat([t[s.slices[b]] for s, t in own]))
        for b, wanted in enumerate(expected):
            assert torch.equal(x[b][mask[b]], wanted)
            assert torch.equal(rows[of.source_rows[b][mask[b]]], wanted)


@every_form
def test_relative_runs_come_back(form: str) -> None:
    of, to = Layout([3, 0, 5], form), Layout([4, 2, 3], form)
    for edges in (IntervalEdges.complete(of.pointers, to.pointers), windowed([of], to, random_runs([of], to))):
        relative = edges.relative()
        if not edges.is_complete:
            assert relative[to.rows].tolist() == [list(run) for (run,) in random_runs([of], to)]
        assert pairs(IntervalEdges.from_relative(relative, of.pointers, to.pointers)) == pairs(edges)
    with pytest.raises(ValueError, match="relative: expected edges of one source, got 2"):
        IntervalEdges.complete([of.pointers] * 2, to.pointers).relative()


def test_runs_anywhere_in_one_matrix() -> None:
    target = Layout([2, 1], "packed").pointers
    edges = IntervalEdges.of_runs(torch.tensor([[0, 5], [2, 2]]), torch.tensor([[2, 1], [1, 0]]), 6, target)
    assert pairs(edges) == [(0, 0), (1, 0), (5, 0), (0, 1), (1, 1), (5, 1), (2, 2)]
    assert edges.source_mask.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_it_says_what_it_is() -> None:
    p = Layout([2, 1], "packed").pointers
    assert repr(IntervalEdges.complete([p, p], p)) == "IntervalEdges(complete, 2 sources, 6 -> 3 rows)"
    assert repr(IntervalEdges.window(p, p, steps=1)) == "IntervalEdges(windowed, 1 sources, 3 -> 3 rows)"


A, B = Pointers.from_ptr(torch.tensor([0, 2, 3])), Pointers.from_ptr(torch.tensor([0, 4]))
T3 = torch.tensor([0.0, 1.0, 0.5])
RUNS = torch.zeros(3, 1, dtype=torch.int64)


def in_seconds(**change: Any) -> IntervalEdges:
    return IntervalEdges.window(A, A, **({"seconds": 1.0, "source_time": T3, "target_time": T3} | change))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntervalEdges([], A), "sources: expected at least one, got none"),
        (lambda: IntervalEdges.complete([A, B], A), "sources[1]: expected 2 samples as the target has, got 1"),
        (lambda: IntervalEdges([A], A, RUNS), "begin, end: expected both or neither"),
        (lambda: IntervalEdges([A], A, RUNS[:2], RUNS), "begin: expected int64 (3, 1), got torch.int64 (2, 1)"),
        (lambda: IntervalEdges([A], A, RUNS, RUNS.double()), "end: expected int64 (3, 1), got torch.float64 (3, 1)"),
        (
            lambda: IntervalEdges([A], A, RUNS, torch.tensor([[2], [3], [0]])),
            "begin, end: expected a run inside the rows 0 to 2 of its sample at row 1, source 0, got 0 to 3",
        ),
        (
            lambda: IntervalEdges([A], A, torch.tensor([[0], [0], [1]]), torch.tensor([[2], [0], [3]])),
            "begin, end: expected a run inside the rows 2 to 3 of its sample at row 2, source 0, got 1 to 3",
        ),
        (lambda: IntervalEdges([A], A, torch.tensor([[1], [0], [2]]), torch.tensor([[0], [0], [2]])), "at row 0, source 0, got 1 to 0"),
        (
            lambda: IntervalEdges.from_relative(torch.tensor([[0, 2], [0, 2], [0, 2]]), A, A),
            "begin, end: expected a run inside the rows 2 to 3 of its sample at row 2, source 0, got 2 to 4",
        ),
        (lambda: IntervalEdges.window(A, B, steps=1), "source: expected 1 samples as the target has, got 2"),
        (lambda: IntervalEdges.window(B, A, steps=1), "source: expected 2 samples as the target has, got 1"),
        (lambda: IntervalEdges.window(A, A, steps=1, source_time=T3), "source_time, target_time: expected both or neither, got None"),
        (lambda: IntervalEdges.window(A, A, steps=1, seconds=1.0), "steps, seconds: expected one of them, got 1 and 1.0"),
        (lambda: IntervalEdges.window(A, A), "steps, seconds, causal: expected a limit, got none"),
        (lambda: IntervalEdges.window(A, A, steps=-1), "steps: expected at least 0, got -1"),
        (lambda: in_seconds(seconds=-0.5), "seconds: expected at least 0, got -0.5"),
        (lambda: in_seconds(seconds=math.nan), "seconds: expected at least 0, got nan"),
        (lambda: in_seconds(target_time=None), "source_time, target_time: expected both with seconds, got None"),
        (lambda: in_seconds(source_time=T3[:2]), "source_time: expected floating (3,), got torch.float32 (2,)"),
        (lambda: in_seconds(target_time=T3.long()), "target_time: expected floating (3,), got torch.int64 (3,)"),
        (
            lambda: in_seconds(source_time=torch.tensor([1.0, 0.0, 0.5])),
            "source_time: expected times that rise within each sample, got some that fall",
        ),
        (lambda: in_seconds(source_time=torch.tensor([math.nan, 1.0, 0.5])), "source_time: expected times, got NaN at a step"),
        (lambda: in_seconds(target_time=torch.tensor([0.0, 1.0, math.nan])), "target_time: expected times, got NaN at a step"),
        (lambda: IntervalEdges.join([]), "parts: expected at least one, got none"),
        (lambda: IntervalEdges.below_each_other([]), "parts: expected at least one, got none"),
        (
            lambda: IntervalEdges.join([IntervalEdges.complete(A, A), IntervalEdges.complete(B, B)]),
            "parts[1]: expected edges to Pointers(2 samples, 3 rows) as the first, got Pointers(1 samples, 4 rows)",
        ),
        (
            lambda: IntervalEdges.join([IntervalEdges.below_each_other([IntervalEdges.complete(A, A)])]),
            "parts[0]: expected edges made of sources, got those of several graphs below each other",
        ),
    ],
)
def test_bad_input_is_named(make: Callable[[], IntervalEdges], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda p: p.max_length, "max_length"),
        (lambda p: p.strided(2), "num_rows"),
        (lambda p: Pointers.from_ptr(p.ptr), "num_rows"),
        (lambda p: Pointers(p.start, p.length, 5, steps=3).compact(), "num_rows"),
        (lambda p: Pointers(p.start, p.length, 5).fills_rows(), "length"),
        (lambda p: IntervalEdges.window(p, p, steps=1).num_edges, "num_edges"),
        (lambda p: IntervalEdges.window(p, p, steps=1).edge_index(), "num_edges"),
        (lambda p: IntervalEdges.of_runs(p.start.unsqueeze(1), p.length.unsqueeze(1), 5, p).source_mask, "max_length"),
    ],
)
def test_a_number_that_only_the_data_know_is_named_on_meta(read: Callable[[Pointers], Any], name: str) -> None:
    pointers = Pointers.from_ptr(torch.tensor([0, 3, 5], device="meta"), 5)
    with pytest.raises(ValueError, match=f"{name}: expected tensors that hold numbers, got some on meta; Pointers of a padded batch know"):
        read(pointers)


@pytest.mark.parametrize("kind", ["complete", "window"])
def test_the_sizes_of_a_padded_batch_are_known_below_each_other(kind: str) -> None:
    """They are not read from the data, which would wait for a GPU."""
    padded = Pointers.full(2, 3, torch.device("meta"))
    part = IntervalEdges.complete(padded, padded) if kind == "complete" else IntervalEdges.window(padded, padded, steps=1)
    edges = IntervalEdges.below_each_other([part, part])
    assert edges.source_mask.shape == (4, 3)
    assert IntervalEdges.below_each_other([edges, edges]).source_mask.shape == (8, 3)


def test_times_need_not_rise_from_one_sample_to_the_next() -> None:
    assert pairs(in_seconds(seconds=0.25)) == [(0, 0), (1, 1), (2, 2)]
