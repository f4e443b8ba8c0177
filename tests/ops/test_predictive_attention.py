"""Eq. 2 against loops over samples, heads, steps and 3 x 3 neighbourhoods, and against the folding identity, on every CPU backend."""

import functools
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers, predictive_attention, predictive_attention_map

from .layouts import FORMS, Layout, heard, random_runs, windowed

K, D, D_VALUE, D_PRIOR = 2, 3, 4, 6
LENGTHS = [5, 3, 0]
N = sum(LENGTHS)
SEQUENCES = ("query", "key", "value", "prior_query", "prior_key")

Attend = functools.partial[Tensor]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {
        "query": random(N, K, D),
        "key": random(N, K, D),
        "value": random(N, K, D_VALUE),
        "prior_query": random(N, K, D_PRIOR),
        "prior_key": random(N, K, D_PRIOR),
        "weight": random(K, K, 3, 3),
        "bias": random(K),
    }


@pytest.fixture(params=FORMS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return Layout(LENGTHS, request.param)


@pytest.fixture(params=["cpu", "reference"])
def attend(request: pytest.FixtureRequest) -> Attend:
    return functools.partial(predictive_attention, backend=request.param)


def placed(inputs: dict[str, Tensor], layout: Layout) -> dict[str, Any]:
    return {n: layout.place(t) if n in SEQUENCES else t for n, t in inputs.items()} | {"pointers": layout.pointers}


def without_value(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in inputs.items() if name != "value"}


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def softmax(scores: dict[int, float]) -> dict[int, float]:
    total = sum(math.exp(s) for s in scores.values())
    return {j: math.exp(s) / total for j, s in scores.items()}


def dot(x: Tensor, y: Tensor) -> float:
    return sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))


def loop_maps(inputs: dict[str, Tensor], mu: float, layout: Layout, runs: Any = None) -> list[Tensor]:
    """The map A of each sample, (K, n, n), one entry after the other."""
    maps = []
    for b, part in enumerate(layout.slices):
        query, key, prior_query, prior_key = (inputs[n][part] for n in ("query", "key", "prior_query", "prior_key"))
        n, listens = len(query), heard([layout], layout, runs, b)
        attention = random(K, n, n).zero_()

        def previous(h: int, i: int, j: int, q: Tensor = prior_query, k: Tensor = prior_key) -> float:
            return dot(q[i, h], k[j, h]) / math.sqrt(D_PRIOR) if 0 <= i < len(q) and 0 <= j < len(q) else 0.0

        for o in range(K):
            for i in range(n):
                keys = [j for j in range(n) if listens[i, j]]
                current = softmax({j: dot(query[i, o], key[j, o]) / math.sqrt(D) for j in keys})
                mixed = {}
                for j in keys:
                    seen = float(inputs["bias"][o])
                    for h in range(K):
                        for x in (-1, 0, 1):
                            for y in (-1, 0, 1):
                                seen += float(inputs["weight"][o, h, x + 1, y + 1]) * previous(h, i + x, j + y)
                    mixed[j] = mu * gelu(seen) + (1 - mu) * current[j]
                for j, a in softmax(mixed).items():
                    attention[o, i, j] = a
        maps.append(attention)
    return maps


def applied(maps: list[Tensor], inputs: dict[str, Tensor], layout: Layout) -> Tensor:
    """The maps times the values."""
    return torch.cat([torch.einsum("hij,jhc->ihc", a, inputs["value"][part]) for a, part in zip(maps, layout.slices, strict=True)])


def cut(attention: Tensor) -> list[Tensor]:
    """Each sample's map out of the padded one, whose columns of padding are zero."""
    for a, n in zip(attention, LENGTHS, strict=True):
        assert not a[:, :, n:].any()
    return [a[:, :n, :n] for a, n in zip(attention, LENGTHS, strict=True)]


@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("windows", [False, True], ids=["complete", "windows"])
def test_equals_the_loops(attend: Attend, inputs: dict[str, Tensor], layout: Layout, mu: float, windows: bool) -> None:
    runs = random_runs([layout], layout) if windows else None
    edges = windowed([layout], layout, runs) if runs else None
    expected = loop_maps(inputs, mu, layout, runs)
    given = placed(inputs, layout)
    found = predictive_attention_map(**without_value(given), mu=mu, edges=edges)
    torch.testing.assert_close(cut(found), expected, rtol=1e-9, atol=1e-12)
    result = layout.collect(attend(**given, mu=mu, edges=edges))
    torch.testing.assert_close(result, applied(expected, inputs, layout), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
def test_a_list_of_edges_equals_the_loops(inputs: dict[str, Tensor], layout: Layout, mu: float) -> None:
    runs = random_runs([layout], layout)
    edge_index = windowed([layout], layout, runs).edge_index()
    found = predictive_attention(**placed(inputs, layout), mu=mu, edges=edge_index, backend="listed")
    expected = applied(loop_maps(inputs, mu, layout, runs), inputs, layout)
    torch.testing.assert_close(layout.collect(found), expected, rtol=1e-9, atol=1e-12)


def test_complete_edges_are_what_no_edges_mean(attend: Attend, inputs: dict[str, Tensor], layout: Layout) -> None:
    given = placed(inputs, layout)
    assert torch.equal(attend(**given, edges=IntervalEdges.complete(layout.pointers, layout.pointers)), attend(**given))


def test_the_convolution_commutes_with_the_outer_product(inputs: dict[str, Tensor], layout: Layout) -> None:
    """conv(A_pre)[o, i, j] = b_o + s sum_y <qhat_oy(i), k(j + y)>: the identity that a fused kernel may rest on."""
    mu, expected = 0.4, []
    for part in layout.slices:
        query, key = (F.pad(inputs[n][part], (0, 0, 0, 0, 1, 1)) for n in ("prior_query", "prior_key"))  # zeros before and after
        n = len(query) - 2
        predicted = inputs["bias"][:, None, None].expand(K, n, n).clone()
        for o in range(K):
            for y in (-1, 0, 1):
                folded = torch.stack(
                    [sum(inputs["weight"][o, h, x + 1, y + 1] * query[1 + x : 1 + x + n, h] for x in (-1, 0, 1)) for h in range(K)], 1
                )  # (n, K, D), qhat_oy(i)
                predicted[o] += folded.flatten(1) @ key[1 + y : 1 + y + n].flatten(1).T / math.sqrt(D_PRIOR)
        current = torch.einsum("ihc,jhc->hij", inputs["query"][part], inputs["key"][part]).div(math.sqrt(D)).softmax(-1)
        expected.append((mu * F.gelu(predicted) + (1 - mu) * current).softmax(-1))
    found = predictive_attention_map(**without_value(placed(inputs, layout)), mu=mu)
    torch.testing.assert_close(cut(found), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["plain", "reference"])
@pytest.mark.parametrize("windows", [False, True], ids=["complete", "windows"])
def test_without_a_prior_it_is_plain_attention(inputs: dict[str, Tensor], layout: Layout, backend: str, windows: bool) -> None:
    runs = random_runs([layout], layout) if windows else None
    edges = windowed([layout], layout, runs) if runs else None
    expected = []
    for b, part in enumerate(layout.slices):
        query, key, value = (inputs[n][part].transpose(0, 1) for n in ("query", "key", "value"))
        logits = (query @ key.mT / D**0.5).masked_fill(~heard([layout], layout, runs, b), -torch.inf)
        expected.append((logits.softmax(-1).nan_to_num(0) @ value).transpose(0, 1))
    query, key, value = (layout.place(inputs[n]) for n in ("query", "key", "value"))
    attended = predictive_attention(query, key, value, layout.pointers, mu=0.7, edges=edges, backend=backend)
    torch.testing.assert_close(layout.collect(attended), torch.cat(expected), rtol=1e-12, atol=1e-14)
    assert torch.equal(attended, predictive_attention(query, key, value, layout.pointers, mu=0.1, edges=edges, backend=backend))


def test_without_a_prior_a_list_of_edges_is_legal(inputs: dict[str, Tensor], layout: Layout) -> None:
    runs = random_runs([layout], layout)
    edges = windowed([layout], layout, runs)
    tensors = [layout.place(inputs[n]) for n in ("query", "key", "value")]
    found = predictive_attention(*tensors, layout.pointers, edges=edges.edge_index())
    torch.testing.assert_close(found, predictive_attention(*tensors, layout.pointers, edges=edges), rtol=1e-12, atol=1e-14)


def test_mu_0_is_the_softmax_of_the_softmax_as_printed(inputs: dict[str, Tensor], layout: Layout) -> None:
    products = [torch.einsum("ihc,jhc->hij", inputs["query"][part], inputs["key"][part]) for part in layout.slices]
    expected = [(p / D**0.5).softmax(-1).softmax(-1) for p in products]
    found = predictive_attention_map(**without_value(placed(inputs, layout)), mu=0.0)
    torch.testing.assert_close(cut(found), expected, rtol=1e-12, atol=1e-14)


def test_mu_1_is_the_prediction_alone(inputs: dict[str, Tensor], layout: Layout) -> None:
    given = without_value(placed(inputs, layout))
    other = given | {"query": random(*given["query"].shape), "key": random(*given["key"].shape)}
    attention = predictive_attention_map(**given, mu=1.0)
    assert torch.equal(attention, predictive_attention_map(**other, mu=1.0))
    for a, part in zip(cut(attention)[:2], layout.slices, strict=False):
        previous = torch.einsum("ihc,jhc->hij", inputs["prior_query"][part], inputs["prior_key"][part]) / D_PRIOR**0.5
        predicted = F.gelu(F.conv2d(previous[None], inputs["weight"], inputs["bias"], padding="same"))[0]
        torch.testing.assert_close(a, predicted.softmax(-1), rtol=1e-12, atol=1e-14)


def test_no_bias_is_a_bias_of_zero(attend: Attend, inputs: dict[str, Tensor], layout: Layout) -> None:
    given = placed(inputs, layout)
    zero = attend(**(given | {"bias": torch.zeros(K, dtype=torch.float64)}))
    del given["bias"]
    assert torch.equal(attend(**given), zero)


def test_the_map_times_the_values_is_the_result(attend: Attend, inputs: dict[str, Tensor], layout: Layout) -> None:
    given = placed(inputs, layout)
    maps = cut(predictive_attention_map(**without_value(given)))
    torch.testing.assert_close(layout.collect(attend(**given)), applied(maps, inputs, layout), rtol=1e-12, atol=1e-14)
    for a, n in zip(maps, LENGTHS, strict=True):
        torch.testing.assert_close(a.sum(-1), torch.ones(K, n, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("junk", [torch.inf, 1e30])
def test_junk_in_the_gaps_changes_nothing(attend: Attend, inputs: dict[str, Tensor], form: str, junk: float) -> None:
    layout = Layout(LENGTHS, form)
    given = placed(inputs, layout)
    dirty = given | {n: layout.place(inputs[n], junk) for n in SEQUENCES}
    assert torch.equal(attend(**dirty), attend(**given))


def test_a_sample_without_steps_gives_nothing(attend: Attend, inputs: dict[str, Tensor], layout: Layout) -> None:
    """Neither a result nor a gradient, and it changes those of no other."""
    given = placed(inputs, layout)
    leaves = {n: v.requires_grad_() for n, v in given.items() if n != "pointers"}
    out = attend(**given)
    out.square().sum().backward()
    alone = Layout(LENGTHS[:2], "packed")
    lone = {n: v.detach().clone().requires_grad_() for n, v in inputs.items()}
    attend(**lone, pointers=alone.pointers).square().sum().backward()
    for name, leaf in leaves.items():
        grad = layout.collect(leaf.grad) if name in SEQUENCES else leaf.grad
        torch.testing.assert_close(grad, lone[name].grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[], [0, 0, 0], [0], [1, 1, 1], [1]])
def test_empty_sizes_are_legal(attend: Attend, lengths: list[int], form: str) -> None:
    layout = Layout(lengths, form, spare=0)
    rows, longest = layout.pointers.num_rows, layout.pointers.max_length
    widths = {"query": D, "key": D, "value": D_VALUE, "prior_query": D_PRIOR, "prior_key": D_PRIOR}
    inputs = {n: random(rows, K, d).requires_grad_() for n, d in widths.items()}
    inputs |= {"weight": random(K, K, 3, 3).requires_grad_(), "bias": random(K).requires_grad_()}
    out = attend(**inputs, pointers=layout.pointers)
    assert out.shape == (rows, K, D_VALUE)
    out.sum().backward()
    attention = predictive_attention_map(**without_value(inputs), pointers=layout.pointers)
    assert attention.shape == (len(lengths), K, longest, longest)
    edges = IntervalEdges.window(layout.pointers, layout.pointers, steps=1)
    assert attend(**inputs, pointers=layout.pointers, edges=edges).shape == out.shape
    listed = predictive_attention(**inputs, pointers=layout.pointers, edges=edges.edge_index())
    torch.testing.assert_close(listed, attend(**inputs, pointers=layout.pointers, edges=edges), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prior", [True, False])
def test_the_result_has_the_dtype_of_the_values(attend: Attend, inputs: dict[str, Tensor], dtype: torch.dtype, prior: bool) -> None:
    """That of the reference was float32, so that the layer after it failed in half precision."""
    given: dict[str, Any] = {name: t.to(dtype) for name, t in inputs.items() if prior or name in ("query", "key", "value")}
    out = attend(**given, pointers=Layout(LENGTHS, "packed").pointers)
    assert out.dtype == dtype
    exact = predictive_attention(**{n: t.double() for n, t in given.items()}, pointers=Layout(LENGTHS, "packed").pointers)
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("windows", [False, True], ids=["complete", "windows"])
@pytest.mark.parametrize("mu", [0.25, 1.0])
def test_gradcheck(attend: Attend, inputs: dict[str, Tensor], mu: float, windows: bool) -> None:
    layout = Layout([3, 2, 0], "packed")
    edges = windowed([layout], layout, random_runs([layout], layout)) if windows else None
    leaves = {n: (t[: layout.steps] if n in SEQUENCES else t).requires_grad_() for n, t in inputs.items()}
    run = lambda *tensors: attend(**dict(zip(leaves, tensors, strict=True)), mu=mu, pointers=layout.pointers, edges=edges)  # noqa: E731
    assert torch.autograd.gradcheck(run, tuple(leaves.values()), fast_mode=attend.keywords["backend"] != "reference")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": random(N, D)}, r"query: expected \(N, K, D\), got \(8, 3\)"),
        ({"key": random(N + 1, K, D)}, r"key: expected \(8, 2, 3\) as query, got \(9, 2, 3\)"),
        ({"pointers": Pointers.from_ptr(torch.tensor([0, 5]))}, "pointers: expected Pointers of 8 rows, got those of 5"),
        ({"pointers": torch.tensor([0, 5, 8, 8])}, "pointers: expected Pointers of 8 rows, got Tensor"),
        ({"prior_key": None}, "prior_query, prior_key and weight: expected all of them or none"),
        ({"weight": None}, "prior_query, prior_key and weight: expected all of them or none"),
        ({"prior_query": random(N - 1, K, D_PRIOR)}, r"prior_query, prior_key: expected \(8, 2, any\), got \(7, 2, 6\)"),
        ({"prior_query": random(N, K, D)}, r"prior_query, prior_key: expected .*\(8, 2, 3\), \(8, 2, 6\)"),
        ({"weight": random(K, K, 5, 5)}, r"weight: expected \(2, 2, 3, 3\), got \(2, 2, 5, 5\)"),
        ({"bias": random(K + 1)}, r"bias: expected \(2,\), got \(3,\)"),
        ({"mu": 1.5}, r"mu: expected a number in \[0, 1\], got 1.5"),
        ({"mu": -0.1}, r"mu: expected a number in \[0, 1\], got -0.1"),
        ({"edges": torch.zeros(2, 3)}, r"edges: expected IntervalEdges, an int64 edge_index \(2, E\) or None, got torch.float32 \(2, 3\)"),
        ({"edges": "all"}, "edges: expected IntervalEdges, .* got str"),
        (
            {"edges": IntervalEdges.complete(*[Pointers.from_ptr(torch.tensor([0, 5]))] * 2)},
            "edges: expected those of 8 rows with themselves, got .*5 -> 5 rows",
        ),
        (
            {"edges": IntervalEdges.complete([Pointers.from_ptr(torch.tensor([0, 4]))] * 2, Pointers.from_ptr(torch.tensor([0, 8])))},
            "edges: expected those of 8 rows with themselves, got .*2 sources",
        ),
    ],
)
def test_bad_input_is_named(inputs: dict[str, Tensor], change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = inputs | {"pointers": Layout(LENGTHS, "packed").pointers} | change
    with pytest.raises(ValueError, match=message):
        predictive_attention(**arguments)
    del arguments["value"]
    with pytest.raises(ValueError, match=message):
        predictive_attention_map(**arguments)


@pytest.mark.parametrize("shape", [(N + 1, K, D_VALUE), (N, 1, D_VALUE), (N, D_VALUE)])
def test_a_bad_value_is_named(inputs: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"value: expected \(8, 2, any\), got " + re.escape(str(shape))):
        predictive_attention(**(inputs | {"value": random(*shape)}), pointers=Layout(LENGTHS, "packed").pointers)


def test_a_map_of_listed_edges_is_refused(inputs: dict[str, Tensor]) -> None:
    edge_index = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="edges: expected IntervalEdges or None for a map, got an edge_index"):
        predictive_attention_map(**without_value(inputs), pointers=Layout(LENGTHS, "packed").pointers, edges=edge_index)
