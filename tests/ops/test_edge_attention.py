"""The edge attention of Eq. 18-19 against a loop over the edges of each node, and its implementations against the reference."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from mea_graph.ops import edge_attention, explain, sort_edges
from mea_graph.ops.native import library

H, C, N_SRC, N_DST = 2, 3, 4, 5
EDGES = torch.tensor([[0, 3, 1, 1, 2, 0, 3], [1, 1, 0, 4, 1, 4, 3]])  # bipartite, unsorted; destination 2 hears nobody


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {
        "x": torch.randn(N_SRC, H, C, dtype=torch.float64),
        "score_dst": torch.randn(N_DST, H, dtype=torch.float64),
        "score_src": torch.randn(N_SRC, H, dtype=torch.float64),
    }


def loop(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.zeros(score_dst.size(0), *x.shape[1:], dtype=torch.float64)
    weights = torch.zeros(edge_index.size(1), x.size(1), dtype=torch.float64)
    edges = list(enumerate(edge_index.T.tolist()))
    for i in range(score_dst.size(0)):
        for h in range(x.size(1)):
            scores = {}
            for e, (s, t) in edges:
                if t == i:
                    delta = score_dst[i, h].item() + score_src[s, h].item()
                    scores[e] = math.exp(delta * 0.5 * (1 + math.erf(delta / math.sqrt(2))))
            for e, (s, _) in edges:
                if e in scores:
                    weights[e, h] = scores[e] / sum(scores.values())
                    out[i, h] += weights[e, h] * x[s, h]
    return out, weights


@pytest.mark.parametrize(
    "edge_index",
    [EDGES, EDGES[:, :1], EDGES[:, :0], torch.cat([EDGES, EDGES[:, :2], EDGES[:, :1]], 1)],
    ids=["bipartite", "one edge", "no edge", "parallel edges"],
)
def test_equals_the_loop(inputs: dict[str, Tensor], edge_index: Tensor) -> None:
    for actual, expected in zip(edge_attention(**inputs, edge_index=edge_index), loop(**inputs, edge_index=edge_index), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_the_weights_of_a_node_sum_to_one(inputs: dict[str, Tensor]) -> None:
    _, weights = edge_attention(**inputs, edge_index=EDGES)
    for i in EDGES[1].unique().tolist():
        torch.testing.assert_close(weights[EDGES[1] == i].sum(0), torch.ones(H, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_node_that_hears_nobody_gets_zeros(inputs: dict[str, Tensor]) -> None:
    out, _ = edge_attention(**inputs, edge_index=EDGES)
    assert not out[2].any()
    assert all(out[i].any() for i in (0, 1, 3, 4))


def test_the_order_of_the_edges_does_not_matter(inputs: dict[str, Tensor]) -> None:
    order = torch.randperm(EDGES.size(1))
    out, weights = edge_attention(**inputs, edge_index=EDGES)
    turned_out, turned_weights = edge_attention(**inputs, edge_index=EDGES[:, order])
    torch.testing.assert_close(turned_out, out, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(turned_weights, weights[order], rtol=1e-12, atol=1e-14)


def test_gradcheck(inputs: dict[str, Tensor]) -> None:
    leaves = tuple(v.requires_grad_() for v in inputs.values())
    assert torch.autograd.gradcheck(lambda *tensors: edge_attention(*tensors, EDGES), leaves)


def test_large_scores_do_not_overflow(inputs: dict[str, Tensor]) -> None:
    out, weights = edge_attention(**(inputs | {"score_dst": inputs["score_dst"] * 0 + 1e6}), edge_index=EDGES)
    assert out.isfinite().all()
    torch.testing.assert_close(weights[EDGES[1] == 1].sum(0), torch.ones(H, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(N_SRC, C)}, r"x: expected \(N, H, C\), got \(4, 3\)"),
        ({"score_src": torch.zeros(N_DST, H)}, r"score_src: expected \(4, 2\), got \(5, 2\)"),
        ({"score_dst": torch.zeros(N_DST, H + 1)}, r"score_dst: expected \(N, 2\), got \(5, 3\)"),
        ({"edge_index": EDGES.T}, r"edge_index: expected integers \(2, E\), got torch.int64 \(7, 2\)"),
        ({"edge_index": EDGES.double()}, r"edge_index: expected integers \(2, E\), got torch.float64 \(2, 7\)"),
    ],
)
def test_bad_input_is_named(inputs: dict[str, Tensor], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edge_attention(**({**inputs, "edge_index": EDGES} | change))


# The backends that run on CPU tensors, beside the reference.

_COMPILED = pytest.param("native", marks=pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}"))
every_backend = pytest.mark.parametrize("backend", ["cpu", _COMPILED])


def random_case(heads: int, channels: int, dtype: torch.dtype, sources: int = 40, targets: int = 30, edges: int = 400) -> dict[str, Tensor]:
    target = torch.randint(1, targets, (edges,)) * torch.randint(2, (edges,))  # node 0 hears about half of all
    target[target == targets - 1] = 0  # the last one hears nobody
    return {
        "x": torch.randn(sources, heads, channels).to(dtype),
        "score_dst": torch.randn(targets, heads).to(dtype) * 2,
        "score_src": torch.randn(sources, heads).to(dtype) * 2,
        "edge_index": torch.stack([torch.randint(1, sources, (edges,)), target]),  # node 0 sends to nobody
    }


def results(case: dict[str, Any], backend: str = "cpu", outputs: slice = slice(2), call: Any = edge_attention) -> list[Tensor]:
    """The outputs, and the gradients of x and the scores for random gradients of the outputs, the same for every dtype."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in case.items() if n != "edge_index"}
    found = call(**leaves, edge_index=case["edge_index"], backend=backend)[outputs]
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(f.shape, generator=generator).bfloat16().to(f.dtype) for f in found]
    grads = torch.autograd.grad(found, list(leaves.values()), given, allow_unused=True)
    return [
        *(f.detach() for f in found),
        *(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves.values(), strict=True)),
    ]


def wide(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.double() if t.is_floating_point() else t for n, t in case.items()}


def test_the_cpu_backend_runs_by_default() -> None:
    assert explain(edge_attention, **random_case(1, 3, torch.float32)).chosen == "cpu"


@every_backend
@pytest.mark.parametrize(("heads", "channels"), [(1, 64), (1, 1), (3, 5), (2, 0)])
@pytest.mark.parametrize("outputs", [slice(2), slice(1), slice(1, 2)], ids=["both", "y", "weights"])
def test_equals_the_reference(backend: str, heads: int, channels: int, outputs: slice) -> None:
    case = random_case(heads, channels, torch.float64)
    for found, expected in zip(results(case, backend, outputs), results(case, "reference", outputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("sources", "targets"),
    [(0, 0), (0, 3), (3, 0), (3, 2)],
)
@pytest.mark.parametrize("outputs", [slice(2), slice(1), slice(1, 2)], ids=["both", "y", "weights"])
@every_backend
def test_without_edges(backend: str, outputs: slice, sources: int, targets: int) -> None:
    case = {"x": torch.randn(sources, 2, 5), "score_dst": torch.randn(targets, 2), "score_src": torch.randn(sources, 2)}
    found = results({**case, "edge_index": torch.zeros(2, 0, dtype=torch.long)}, backend, outputs)
    of_outputs = [(targets, 2, 5), (0, 2)][outputs]
    assert [tuple(f.shape) for f in found] == [*of_outputs, (sources, 2, 5), (targets, 2), (sources, 2)]
    assert not any(f.any() for f in found)


@every_backend
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "budget"),
    [(torch.float32, 1e-5), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)],  # sums of 200 terms; rounding of results
)
def test_precision(backend: str, heads: int, dtype: torch.dtype, budget: float) -> None:
    case = random_case(heads, 20, dtype)
    for found, expected in zip(results(case, backend), results(wide(case), "reference"), strict=True):
        assert found.dtype == dtype
        assert (found.double() - expected).abs().max() <= budget * expected.abs().max()


@every_backend
def test_mixed_types_keep_theirs(backend: str) -> None:
    case = random_case(2, 20, torch.float32)
    case["x"] = case["x"].bfloat16()
    for one in (backend, "reference"):
        found = results(case, one)
        assert [f.dtype for f in found] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.float32]
    for f, e in zip(results(case, backend), results(wide(case), "reference"), strict=True):
        assert (f.double() - e).abs().max() <= 2**-7 * e.abs().max()


@pytest.mark.parametrize("backend", ["cpu", _COMPILED, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorted_edges_give_the_same(backend: str, dtype: torch.dtype) -> None:
    case = random_case(2, 7, dtype)
    edges = sort_edges(case["edge_index"], len(case["x"]), len(case["score_dst"]))
    assert torch.equal(edges.edge_index(), case["edge_index"])
    assert all(map(torch.equal, results(case, backend), results({**case, "edge_index": edges}, backend)))


def test_sorted_edges() -> None:
    edges = sort_edges(torch.tensor([[2, 0, 2, 1, 0], [1, 3, 1, 0, 1]]), num_sources=4, num_targets=5)
    assert [t.tolist() for t in edges] == [
        [1, 2, 2, 0, 0],  # source
        [0, 1, 1, 1, 3],  # target
        [3, 0, 2, 4, 1],  # order: stable
        [0, 1, 4, 4, 5, 5],  # start
        [3, 4, 0, 1, 2],  # by_source
        [0, 2, 3, 5, 5],  # source_start
    ]


def test_edges_sorted_for_another_graph_are_refused(inputs: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"edge_index: expected edges sorted for \(4, 5\) nodes, got \(5, 5\)"):
        edge_attention(**inputs, edge_index=sort_edges(EDGES, 5, 5))
    with pytest.raises(ValueError, match="num_targets: expected at least 0, got -1"):
        sort_edges(EDGES, 5, -1)
    with pytest.raises(ValueError, match=r"edge_index: expected integers \(2, E\)"):
        sort_edges(EDGES.T, 5, 5)


@every_backend
def test_the_bits_repeat_and_strides_do_not_matter(backend: str) -> None:
    case = random_case(3, 9, torch.float32)
    first = results(case, backend)
    assert all(map(torch.equal, first, results(case, backend)))
    strided = {n: t.repeat_interleave(2, 0)[::2] for n, t in case.items() if n != "edge_index"}
    strided["x"] = case["x"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided["edge_index"] = case["edge_index"].T.contiguous().T
    assert not any(t.is_contiguous() for t in strided.values())
    assert all(map(torch.equal, first, results(strided, backend)))


@every_backend
@pytest.mark.parametrize("presorted", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_opcheck(backend: str, heads: int, presorted: bool) -> None:
    case = random_case(heads, 4, torch.float64, 6, 5, 12)
    edges = sort_edges(case["edge_index"], 6, 5)
    leaves = [case[n].requires_grad_() for n in ("x", "score_dst", "score_src")]
    fields = edges if presorted else (*edges[:4], None, None)
    torch.library.opcheck(getattr(torch.ops.mea_graph, f"edge_attention_{backend}").default, (*leaves, *fields))
    y, weights = edge_attention(**{**case, "edge_index": edges})
    saved = [t.detach() for t in (torch.randn_like(y), torch.randn_like(weights), *leaves, weights)]
    torch.library.opcheck(getattr(torch.ops.mea_graph, f"edge_attention_{backend}_backward").default, (*saved, *fields))


def test_the_fake_cuda_operator_has_the_shapes_of_the_cpu_operator() -> None:
    case = random_case(2, 4, torch.bfloat16)
    case["score_src"] = case["score_src"].float()
    y, weights = edge_attention(**case)
    edges = sort_edges(case.pop("edge_index"), 40, 30)
    with FakeTensorMode() as mode:
        fake = map(mode.from_tensor, [*case.values(), *edges])
        for found, expected in zip(torch.ops.mea_graph.edge_attention_cuda(*fake), (y, weights), strict=True):
            assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())


def test_gradcheck_with_sorted_edges(inputs: dict[str, Tensor]) -> None:
    edges = sort_edges(EDGES, N_SRC, N_DST)
    leaves = tuple(v.requires_grad_() for v in inputs.values())
    assert torch.autograd.gradcheck(lambda *tensors: edge_attention(*tensors, edges), leaves)


@every_backend
@pytest.mark.parametrize("outputs", [slice(2), slice(1), slice(1, 2)], ids=["both", "y", "weights"])
def test_gradients_of_gradients(backend: str, inputs: dict[str, Tensor], outputs: slice) -> None:
    leaves = tuple(v.requires_grad_() for v in inputs.values())
    assert torch.autograd.gradgradcheck(lambda *tensors: edge_attention(*tensors, EDGES, backend=backend)[outputs], leaves)
    only = inputs["score_src"]
    fixed = {n: t.detach() for n, t in inputs.items() if n != "score_src"}
    assert torch.autograd.gradgradcheck(lambda t: edge_attention(**fixed, score_src=t, edge_index=EDGES, backend=backend)[outputs], only)


@every_backend
@pytest.mark.parametrize("kept", [(0, 1), (0,), (1,)], ids=["both", "y", "weights"])
@pytest.mark.parametrize("form", ["plain", "of 32 bits", "sorted"])
@pytest.mark.parametrize("wanted", [("x", "score_dst", "score_src"), ("score_src",), ("x", "score_src"), ("score_dst",)], ids="+".join)
def test_gradients_that_can_be_differentiated_are_the_same(
    backend: str, inputs: dict[str, Tensor], kept: tuple[int, ...], form: str, wanted: tuple[str, ...]
) -> None:
    """They are computed in another way, and a check of second derivatives asks only whether these are derivatives of what is computed."""
    leaves = [inputs[name].requires_grad_() for name in wanted]
    edges = {"plain": EDGES, "of 32 bits": EDGES.int(), "sorted": sort_edges(EDGES, N_SRC, N_DST)}[form]
    outputs, expected = (edge_attention(**inputs, edge_index=e, backend=b) for e, b in ((edges, backend), (EDGES, "reference")))
    grads = [torch.randn_like(outputs[i]) for i in kept]
    found = torch.autograd.grad([outputs[i] for i in kept], leaves, grads, create_graph=True, materialize_grads=True)
    true = torch.autograd.grad([expected[i] for i in kept], leaves, grads, materialize_grads=True)
    torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-12)


def test_transforms_take_the_reference(inputs: dict[str, Tensor]) -> None:
    rest = {n: t for n, t in inputs.items() if n != "x"}
    chosen = []

    def call(x: Tensor) -> Tensor:
        chosen.append(explain(edge_attention, x, **rest, edge_index=EDGES).chosen)
        return edge_attention(x, **rest, edge_index=EDGES)[0].square().sum()

    x, tangent = inputs["x"], torch.randn_like(inputs["x"])
    expected = torch.autograd.functional.jacobian(call, x)
    torch.testing.assert_close(torch.func.grad(call)(x), expected)
    torch.testing.assert_close(torch.func.jvp(call, (x,), (tangent,))[1], (expected * tangent).sum())
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.func.vmap(call)(batch), torch.stack([call(x), call(2 * x)]))
    assert chosen == ["cpu", "reference", "reference", "reference", "cpu", "cpu"]


@every_backend
def test_the_result_may_be_changed_in_place(backend: str, inputs: dict[str, Tensor]) -> None:
    x = inputs["x"][:, :1].requires_grad_()
    y, _ = edge_attention(x, inputs["score_dst"][:, :1], inputs["score_src"][:, :1], EDGES, backend=backend)
    y += 1
    y.sum().backward()
    assert x.grad.any()


@every_backend
@pytest.mark.parametrize("presorted", [False, True])
def test_compiles_into_one_graph(backend: str, presorted: bool) -> None:
    case: dict[str, Any] = random_case(2, 5, torch.float64)
    if presorted:
        case["edge_index"] = sort_edges(case["edge_index"], 40, 30)
    compiled = torch.compile(edge_attention, fullgraph=True, backend="aot_eager")
    for found, expected in zip(results(case, backend, call=compiled), results(case, backend), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_exports() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
            return edge_attention(x, score_dst, score_src, edge_index)

    case = random_case(2, 5, torch.float32)
    edges = torch.export.Dim("edges")
    program = torch.export.export(Layer(), tuple(case.values()), dynamic_shapes=(None, None, None, {1: edges}))
    assert "mea_graph.edge_attention_cpu" in str(program.graph)
    case["edge_index"] = case["edge_index"][:, :77]
    assert all(map(torch.equal, program.module()(*case.values()), edge_attention(**case)))


@every_backend
def test_autocast_does_not_reach_inside(backend: str) -> None:
    case = random_case(2, 20, torch.float32)
    outside = results(case, backend)
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(case, backend)
    assert all(map(torch.equal, inside, outside))


def largest_allocation(case: dict[str, Any], backend: str) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        results(case, backend)
    return max(event.self_cpu_memory_usage for event in profile.events())


@every_backend
@pytest.mark.parametrize("heads", [1, 4])
def test_nothing_of_size_edges_by_channels_is_stored(backend: str, heads: int) -> None:
    case = random_case(heads, 64, torch.float32, 100, 100, 20_000)
    edges_by_channels = 20_000 * heads * 64 * 4
    assert largest_allocation(case, backend) < edges_by_channels / 8
    assert largest_allocation(case, "reference") >= edges_by_channels  # it would be seen
