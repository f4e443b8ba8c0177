"""The form of `GraphFusionConv` for large graphs, one call of `edge_attention`, against single messages."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from mea_graph.nn import GraphFusionConv
from mea_graph.nn.graph import graph_fusion_conv

from .test_graph_fusion_conv import C_IN, C_OUT, EDGES, N, same


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The fused form for graphs of any size; the list holds what it was called for."""
    calls, op = [], graph_fusion_conv.edge_attention
    monkeypatch.setattr(graph_fusion_conv, "_LARGE", 0)
    monkeypatch.setattr(graph_fusion_conv, "_LARGE_IN_CPP", 0)
    monkeypatch.setattr(graph_fusion_conv, "edge_attention", lambda *a: calls.append(a[0].shape) or op(*a))
    return calls


def passes(conv: GraphFusionConv, x: Any, edge_index: Tensor = EDGES, **options: Any) -> list[Tensor]:
    """Result, coefficients, and their gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in (x if isinstance(x, tuple) else (x,)) if t is not None]
    given = leaves[0] if len(leaves) == 1 and not isinstance(x, tuple) else (*leaves, *[None] * (len(x) - len(leaves)))
    out, (_, xi) = conv(given, edge_index, return_attention_weights=True, **options)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, dtype=o.dtype, generator=generator) for o in (out, xi)]
    grads = torch.autograd.grad([out, xi], [*leaves, *conv.parameters()], cotangents, allow_unused=True, materialize_grads=True)
    return [out, xi, *grads]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("kind", ["one", "pair", "sources alone", "other flow"])
def test_the_fused_form_gives_the_same(randomised, fused, heads: int, concat: bool, kind: str) -> None:
    flow = "target_to_source" if kind == "other flow" else "source_to_target"
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads, concat, bias=True, flow=flow))
    x = torch.randn(N, C_IN, dtype=torch.float64)
    given = {"pair": (x, torch.randn(4, C_IN, dtype=torch.float64)), "sources alone": (x, None)}.get(kind, x)
    options = {"size": (N, 6)} if kind == "sources alone" else {}
    found = passes(conv, given, **options)
    assert len(fused) == 1
    conv.fuse = False
    for f, expected in zip(found, passes(conv, given, **options), strict=True):
        same(f, expected)
    assert len(fused) == 1


@pytest.mark.parametrize("change", ["nothing", "bias", "hook", "class", "autocast"])
@pytest.mark.parametrize("pair", [False, True])
def test_the_fused_form_reads_scores_off_the_weights_where_they_say_all(
    randomised, fused, monkeypatch: pytest.MonkeyPatch, pair: bool, change: str
) -> None:
    """Scores are q^T W times h; a linear layer that does something else is called, and its result multiplied by q."""
    conv = randomised(GraphFusionConv((C_IN, C_IN) if pair else C_IN, C_OUT, heads=2))
    for name in ("lin_src", "lin_dst") if pair else ("lin",):
        if change == "bias":
            setattr(conv, name, randomised(torch.nn.Linear(C_IN, 2 * C_OUT)))
        elif change == "hook":
            getattr(conv, name).register_forward_hook(lambda module, given, out: 2 * out)
        elif change == "class":
            setattr(conv, name, torch.nn.Sequential(getattr(conv, name), torch.nn.Tanh()))
    x = torch.randn(N, C_IN, dtype=torch.float64)
    given, score, scored = (x, x.flip(0)) if pair else x, GraphFusionConv._score, []
    if change == "autocast":
        conv, given = conv.float(), (x.float(), x.float()) if pair else x.float()
    monkeypatch.setattr(GraphFusionConv, "_score", lambda *a: scored.append(1) or score(*a))
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        found = passes(conv, given)
        assert (len(fused), len(scored)) == (1, 0 if change == "nothing" else 2)
        conv.fuse = False
        expected = passes(conv, given)
    if change == "autocast":
        assert found[1].dtype == expected[1].dtype == torch.float32
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)
        return
    for f, e in zip(found, expected, strict=True):
        same(f, e)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("form", ["fused", "single messages", "edge features", "edge weights"])
def test_a_bipartite_graph_with_a_map_for_each_side(randomised, fused, heads: int, form: str) -> None:
    """By hand, edge by edge: the destinations' map enters the scores, and the sum is over what the sources' map gives.

    Features or weights of the edges are for single messages alone.
    """
    options = {"edge_dim": 2} if form == "edge features" else {}
    conv = randomised(GraphFusionConv((3, 5), C_OUT, heads, activation="none", **options))
    conv.fuse = form != "single messages"
    given = {"edge features": ("edge_attr", (7, 2)), "edge weights": ("edge_weight", (7,))}.get(form)
    edges = torch.tensor([[0, 3, 1, 1, 2, 0, 3], [1, 1, 0, 4, 1, 4, 3]])  # destination 2 hears nobody
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (5, 5))]
    if given is not None:
        leaves.append(torch.rand(given[1], dtype=torch.float64, requires_grad=True))
    of_edges = {} if given is None else {given[0]: leaves[2]}
    out, (listed, xi) = conv((leaves[0], leaves[1]), edges, return_attention_weights=True, **of_edges)
    same(conv((leaves[0], leaves[1]), edges, **of_edges), out)
    assert torch.equal(listed, edges)
    assert len(fused) == (2 if form == "fused" else 0)

    src, dst = (linear(x).view(-1, heads, C_OUT) for linear, x in ((conv.lin_src, leaves[0]), (conv.lin_dst, leaves[1])))
    logits = [(conv.score_dst * dst[i] + conv.score_src * src[j]).sum(-1) + conv.score_bias for j, i in edges.T.tolist()]
    if form == "edge features":
        features = conv.lin_edge(leaves[2]).view(-1, heads, C_OUT)
        logits = [logit + (conv.score_edge * f).sum(-1) for logit, f in zip(logits, features, strict=True)]
    terms = [torch.nn.functional.gelu(logit).exp() for logit in logits]
    if form == "edge weights":
        terms = [w * term for w, term in zip(leaves[2], terms, strict=True)]
    totals = [sum(t for t, i in zip(terms, edges[1].tolist(), strict=True) if i == node) for node in range(5)]
    by_hand = torch.stack([term / totals[i] for term, i in zip(terms, edges[1].tolist(), strict=True)])
    sums = torch.zeros(5, heads, C_OUT, dtype=torch.float64).index_add(0, edges[1], by_hand.unsqueeze(-1) * src[edges[0]])
    same(xi, by_hand)
    same(out, sums.flatten(1))
    wanted = [*leaves, *conv.parameters()]
    cotangents = [torch.randn_like(out), torch.randn_like(xi)]
    found = torch.autograd.grad([out, xi], wanted, cotangents)
    expected = torch.autograd.grad([sums.flatten(1), by_hand], wanted, cotangents)
    for f, e in zip(found, expected, strict=True):
        same(f, e)
        assert f.abs().max() > 1e-8


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("pair", [False, True], ids=["one-tensor", "pair"])
def test_the_fused_form_maps_no_destination(randomised, fused, monkeypatch: pytest.MonkeyPatch, heads: int, pair: bool) -> None:
    """The products with rows: W h of the sources, and (q^T W) h of both sides for the scores."""
    conv = randomised(GraphFusionConv((3, 5) if pair else (3, 3), C_OUT, heads))
    x_src = torch.randn(4, 3, dtype=torch.float64)
    given = (x_src, torch.randn(5, 5, dtype=torch.float64)) if pair else x_src
    edges = torch.tensor([[0, 3, 1, 1, 2], [1, 1, 0, 3, 1]])
    products, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w, b=None: products.append((*x.shape, len(w))) or linear(x, w, b))
    conv(given, edges)
    assert len(fused) == 1
    assert products == [(4, 3, heads * C_OUT), (4, 3, heads), (5, 5, heads) if pair else (4, 3, heads)]

    calls = []
    conv.lin_dst.register_forward_hook(lambda *_: calls.append("lin_dst"))  # whoever looks at the map is shown it
    conv(given, edges)
    assert calls == ["lin_dst"]


@pytest.mark.parametrize("order", [None, "col", "row"])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_the_fused_form_takes_edges_of_pyg(randomised, fused, monkeypatch: pytest.MonkeyPatch, order: str | None, flow: str) -> None:
    conv, x = randomised(GraphFusionConv(C_IN, C_OUT, flow=flow)), torch.randn(N, C_IN, dtype=torch.float64)
    edges, sorts, sort = EdgeIndex(EDGES, sparse_size=(N, N)), [], torch.sort
    edges = edges if order is None else edges.sort_by(order).values
    with monkeypatch.context() as patch:
        patch.setattr(torch, "sort", lambda *a, **k: sorts.append(1) or sort(*a, **k))
        conv(x, edges)
    assert bool(sorts) == (order != ("col" if flow == "source_to_target" else "row"))
    found = passes(conv, x, edges)
    assert len(fused) == 2
    conv.fuse = False
    for f, expected in zip(found, passes(conv, x, edges.as_tensor()), strict=True):
        same(f, expected)


def test_the_fused_form_is_for_large_graphs_that_nobody_looks_into(fused, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(N, C_IN)

    class Own(GraphFusionConv):
        def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
            return 2 * super().message(x_j, alpha)

    def taken(conv: GraphFusionConv, **options: Any) -> bool:
        before = len(fused)
        conv(x, EDGES, **options)
        return len(fused) > before

    assert taken(GraphFusionConv(C_IN, C_OUT))
    assert taken(GraphFusionConv(C_IN, C_OUT, dropout=0.5).eval())
    assert not taken(GraphFusionConv(C_IN, C_OUT, dropout=0.5))
    assert not taken(GraphFusionConv(C_IN, C_OUT, aggr="max"))
    assert not taken(GraphFusionConv(C_IN, C_OUT, edge_dim=1), edge_attr=torch.randn(7))
    assert not taken(GraphFusionConv(C_IN, C_OUT), edge_weight=torch.ones(7))
    assert not taken(Own(C_IN, C_OUT))
    for hook in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update"):
        for kind in ("", "_pre"):
            conv = GraphFusionConv(C_IN, C_OUT)
            getattr(conv, f"register_{hook}_forward{kind}_hook")(lambda *_: None)
            assert not taken(conv), (hook, kind)
    conv = GraphFusionConv(C_IN, C_OUT)
    assert not torch.func.vmap(lambda x: torch.tensor(len(fused)) + 0 * conv(x, EDGES).sum())(torch.stack([x, x])).ne(len(fused)).any()
    monkeypatch.setattr(graph_fusion_conv, "_LARGE", 15)
    assert not taken(GraphFusionConv(C_IN, C_OUT, heads=2))
    assert taken(GraphFusionConv(C_IN, C_OUT, heads=3))


def test_the_fused_form_has_second_derivatives_and_a_result_of_its_own(randomised, fused) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, activation="none"))
    x = torch.randn(N, C_IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: conv(x, EDGES).square(), x)
    assert torch.autograd.functional.hessian(lambda x: conv(x, EDGES).square().sum(), x).any()
    out = conv(x, EDGES)
    out += 1
    out.sum().backward()
    assert len(fused) > 2


def test_the_fused_form_refuses_sizes_that_do_not_fit(fused) -> None:
    conv, x = GraphFusionConv(C_IN, C_OUT), torch.randn(N, C_IN)
    with pytest.raises(ValueError, match=r"size\[0\]: expected 5, the number of nodes, got 6"):
        conv((x, None), EDGES, size=(6, N))
