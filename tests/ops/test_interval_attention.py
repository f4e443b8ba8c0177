"""The attention of Eq. 7 against loops over samples, heads, steps and sources."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers, interval_attention, interval_attention_map

from .layouts import FORMS, Layout, Run, heard, random_runs, windowed

K, D, D_VALUE = 2, 3, 5
TARGET = [4, 2, 3]
SOURCES = [[2, 0, 0], [3, 6, 0], [1, 3, 0]]  # the second sample lacks the first source, the last one has no source at all
N = sum(TARGET)

Case = tuple[Layout, list[Layout], list[list[Run]] | None]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def steps() -> dict[str, Any]:
    """Queries, and keys and values by source, without gaps."""
    sizes = [sum(lengths) for lengths in SOURCES]
    return {
        "query": random(N, K, D),
        "keys": [random(n, K, D) for n in sizes],
        "values": [random(n, K, D_VALUE) for n in sizes],
    }


@pytest.fixture(params=[(form, windows) for form in FORMS for windows in (False, True)], ids=lambda p: p[0] + (", windows" if p[1] else ""))
def case(request: pytest.FixtureRequest) -> Case:
    form, windows = request.param
    target, sources = Layout(TARGET, form), [Layout(lengths, form) for lengths in SOURCES]
    return target, sources, random_runs(sources, target) if windows else None


def edges_of(case: Case) -> IntervalEdges:
    target, sources, runs = case
    if runs is None:
        return IntervalEdges.complete([s.pointers for s in sources], target.pointers)
    return windowed(sources, target, runs)


def placed(steps: dict[str, Any], case: Case) -> dict[str, Any]:
    target, sources, _ = case
    key, value = (torch.cat([s.place(x) for s, x in zip(sources, steps[n], strict=True)]) for n in ("keys", "values"))
    return {"query": target.place(steps["query"]), "key": key, "value": value, "edges": edges_of(case)}


def loop(steps: dict[str, Any], case: Case) -> tuple[Tensor, list[Tensor]]:
    """The result, and each sample's map, in whose columns the sources stand one after the other."""
    target, sources, runs = case
    out, maps = random(N, K, D_VALUE).zero_(), []
    for b, part in enumerate(target.slices):
        key, value = (torch.cat([x[s.slices[b]] for s, x in zip(sources, steps[n], strict=True)]) for n in ("keys", "values"))
        listens = heard(sources, target, runs, b)
        attention = random(K, TARGET[b], len(key)).zero_()
        for h in range(K):
            for i in range(TARGET[b]):
                scores = {}
                for j in range(len(key)):
                    if listens[i, j]:
                        score = sum(steps["query"][part][i, h, c].item() * key[j, h, c].item() for c in range(D))
                        scores[j] = math.exp(score / math.sqrt(D))
                for j, score in scores.items():
                    attention[h, i, j] = score / sum(scores.values())
                    out[part][i, h] += attention[h, i, j] * value[j, h]
        maps.append(attention)
    return out, maps


@pytest.mark.parametrize("backend", ["cpu", "sdpa", "listed", "reference"])
def test_equals_the_loops(steps: dict[str, Any], case: Case, backend: str) -> None:
    expected, _ = loop(steps, case)
    given = placed(steps, case)
    if backend == "listed":
        given["edges"] = given["edges"].edge_index()
    torch.testing.assert_close(case[0].collect(interval_attention(**given, backend=backend)), expected, rtol=1e-9, atol=1e-12)


def test_the_map_equals_the_loops(steps: dict[str, Any], case: Case) -> None:
    target, sources, _ = case
    given = placed(steps, case)
    found = interval_attention_map(given["query"], given["key"], given["edges"])
    widths = [s.pointers.max_length for s in sources]
    assert found.shape == (len(TARGET), K, target.pointers.max_length, sum(widths))
    for b, expected in enumerate(loop(steps, case)[1]):
        columns = [c for s, w in enumerate(widths) for c in range(sum(widths[:s]), sum(widths[:s]) + SOURCES[s][b])]
        torch.testing.assert_close(found[b, :, : TARGET[b], columns], expected, rtol=1e-9, atol=1e-12)
        assert not found[b, :, TARGET[b] :].any()
        others = [c for c in range(sum(widths)) if c not in columns]
        assert not found[b, :, :, others].any()


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_sources_does_not_matter(steps: dict[str, Any], form: str) -> None:
    target, sources = Layout(TARGET, form), [Layout(lengths, form) for lengths in SOURCES]
    turned = steps | {"keys": steps["keys"][::-1], "values": steps["values"][::-1]}
    found = interval_attention(**placed(turned, (target, sources[::-1], None)))
    expected = interval_attention(**placed(steps, (target, sources, None)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference"])
def test_an_empty_source_is_as_good_as_none(steps: dict[str, Any], form: str, backend: str) -> None:
    target, sources = Layout(TARGET, form), [Layout(lengths, form) for lengths in SOURCES]
    more = steps | {"keys": [*steps["keys"], random(0, K, D)], "values": [*steps["values"], random(0, K, D_VALUE)]}
    found = interval_attention(**placed(more, (target, [*sources, Layout([0, 0, 0], form)], None)), backend=backend)
    expected = interval_attention(**placed(steps, (target, sources, None)), backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_sample_without_sources_gives_zeros_and_no_gradient(steps: dict[str, Any], case: Case) -> None:
    target = case[0]
    given = placed(steps, case)
    leaves = [given[n].requires_grad_() for n in ("query", "key", "value")]
    out = interval_attention(**given)
    assert not target.collect(out)[target.slices[2]].any()
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    assert all(g.isfinite().all() for g in gradients)
    assert not target.collect(gradients[0])[target.slices[2]].any()


@pytest.mark.parametrize("windows", [False, True], ids=["complete", "windows"])
def test_gradcheck(steps: dict[str, Any], windows: bool) -> None:
    target, sources = Layout(TARGET, "packed"), [Layout(lengths, "packed") for lengths in SOURCES]
    edges = edges_of((target, sources, random_runs(sources, target) if windows else None))
    leaves = [steps["query"], torch.cat(steps["keys"]), torch.cat(steps["values"])]
    for backend, of in (("cpu", edges), ("sdpa", edges), ("reference", edges), ("listed", edges.edge_index())):
        call = lambda q, k, v, e=of, b=backend: interval_attention(q, k, v, e, backend=b)  # noqa: E731
        assert torch.autograd.gradcheck(call, [t.detach().requires_grad_() for t in leaves], fast_mode=True), backend


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("target", "source"), [([], []), ([0, 0], [4, 4]), ([3, 3], [0, 0]), ([0], [0])])
@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference", "listed"])
def test_empty_sizes_are_legal(target: list[int], source: list[int], form: str, backend: str) -> None:
    to, of = Layout(target, form, spare=0), Layout(source, form, spare=0)
    query = random(to.pointers.num_rows, K, D).requires_grad_()
    key = random(of.pointers.num_rows, K, D).requires_grad_()
    complete = IntervalEdges.complete(of.pointers, to.pointers)
    windows = IntervalEdges.window(of.pointers, to.pointers, steps=1)
    for edges in (complete, windows):
        out = interval_attention(query, key, key, edges.edge_index() if backend == "listed" else edges, backend=backend)
        assert out.shape == query.shape
        assert not out.any()
        assert not any(g.any() for g in torch.autograd.grad(out.sum(), [query, key]))


POINTERS = {"of 9": Layout(TARGET, "packed").pointers, "of 5": Pointers.from_ptr(torch.tensor([0, 5, 5, 5]))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": random(N, D)}, r"query: expected \(N, K, D\), got \(9, 3\)"),
        ({"key": random(5, K + 1, D)}, r"key: expected \(N_s, 2, 3\), got \(5, 3, 3\)"),
        ({"key": random(5, D)}, r"key: expected \(N_s, 2, 3\), got \(5, 3\)"),
        ({"key": random(6, K, D), "value": random(6, K, D)}, "edges: expected 9 target and 6 source rows, got 9 and 5"),
        ({"edges": IntervalEdges.complete(POINTERS["of 5"], POINTERS["of 5"])}, "edges: expected 9 target and 5 source rows, got 5 and 5"),
        ({"edges": torch.zeros(2, 3)}, r"edges: expected IntervalEdges or an int64 edge_index \(2, E\), got torch.float32 \(2, 3\)"),
        ({"edges": torch.zeros(3, 2, dtype=torch.int64)}, r"edges: expected .* got torch.int64 \(3, 2\)"),
        ({"edges": None}, "edges: expected .* got NoneType"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    edges = IntervalEdges.complete(POINTERS["of 5"], POINTERS["of 9"])
    arguments = {"query": random(N, K, D), "key": random(5, K, D), "value": random(5, K, D_VALUE), "edges": edges} | change
    with pytest.raises(ValueError, match=message):
        interval_attention(**arguments)
    del arguments["value"]
    with pytest.raises(ValueError, match=message):
        interval_attention_map(**arguments)


@pytest.mark.parametrize(("shape", "got"), [((6, K, 1), "6, 2, 1"), ((5, 1, 1), "5, 1, 1"), ((5, 2), "5, 2")])
def test_a_bad_value_is_named(shape: tuple[int, ...], got: str) -> None:
    edges = IntervalEdges.complete(POINTERS["of 5"], POINTERS["of 9"])
    with pytest.raises(ValueError, match=rf"value: expected \(5, 2, any\), got \({got}\)"):
        interval_attention(random(N, K, D), random(5, K, D), random(*shape), edges)


def test_a_map_of_listed_edges_is_refused() -> None:
    with pytest.raises(ValueError, match="edges: expected IntervalEdges for a map, got an edge_index"):
        interval_attention_map(random(N, K, D), random(5, K, D), torch.zeros(2, 3, dtype=torch.int64))


def test_an_input_may_be_computed_from_another() -> None:
    """What flows through the other one counts once, in second derivatives too."""
    x = torch.randn(6, 2, 3, dtype=torch.float64).requires_grad_()
    pointers = Pointers.from_ptr(torch.tensor([0, 4, 6]))
    found = []
    for backend in ("cpu", "reference"):
        key = x.sin()
        out = interval_attention(x, key, key.square(), IntervalEdges.complete(pointers, pointers), backend=backend)
        (first,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        found.append([out, first, *torch.autograd.grad(first.square().sum(), x)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
