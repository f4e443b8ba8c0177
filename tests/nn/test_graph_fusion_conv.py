"""Eq. 17-19 node by node and edge by edge, on any graph."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing

from mea_graph.nn import GraphFusionConv
from mea_graph.ops import sort_edges
from mea_graph.ops.edge_attention import linear

C_IN, C_OUT, N = 4, 3, 5
# Unsorted; nodes 0 and 1 hear each other, node 3 also itself, node 4 hears nobody; the edge 2 -> 1 stands twice.
EDGES = torch.tensor([[0, 2, 1, 3, 2, 4, 0], [1, 1, 0, 3, 1, 3, 2]])


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def literal(conv: GraphFusionConv, source: Tensor, target: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """The result and the coefficients xi (E, H), for messages from row 0 of `edge_index` to row 1."""
    edges = edge_index.T.tolist()
    weight = conv.lin.weight.view(conv.heads, conv.out_channels, -1)
    xi = torch.zeros(len(edges), conv.heads, dtype=torch.float64)
    rows = []
    for i in range(len(target)):
        into = [e for e, (_, t) in enumerate(edges) if t == i]
        heads = []
        for k in range(conv.heads):
            q = torch.cat([conv.score_dst[k], conv.score_src[k]])  # Q of the concatenation [W h_i, W h_j]
            score = {}
            for e in into:
                pair = torch.cat([weight[k] @ target[i], weight[k] @ source[edges[e][0]]])
                score[e] = math.exp(gelu((q @ pair + conv.score_bias[k]).item()))
            total = torch.zeros(conv.out_channels, dtype=torch.float64)
            for e in into:
                xi[e, k] = score[e] / sum(score.values())
                total = total + xi[e, k] * (weight[k] @ source[edges[e][0]])
            heads.append(total)
        rows.append(torch.cat(heads) if conv.concat else torch.stack(heads).mean(0))
    out = torch.stack(rows) if rows else torch.zeros(0, conv.out_channels * (conv.heads if conv.concat else 1), dtype=torch.float64)
    return {"sigmoid": lambda x: 1 / (1 + torch.exp(-x)), "relu": lambda x: x.clamp(min=0), "none": lambda x: x}[conv.activation](out), xi


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "none"])
@pytest.mark.parametrize(("heads", "concat"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("edge_index", [EDGES, EDGES[:, :1], EDGES[:, :0]], ids=["graph", "one edge", "no edge"])
def test_equals_the_loops(randomised, heads: int, concat: bool, activation: Any, edge_index: Tensor) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads, concat, activation))
    x = torch.randn(N, C_IN, dtype=torch.float64)
    out, (edges, xi) = conv(x, edge_index, return_attention_weights=True)
    expected, coefficients = literal(conv, x, x, edge_index)
    same(out, expected)
    same(xi, coefficients)
    assert torch.equal(edges, edge_index)
    same(conv(x, edge_index), out)


@pytest.mark.parametrize("heads", [1, 2])
def test_bipartite(randomised, heads: int) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads))
    source, target = torch.randn(N, C_IN, dtype=torch.float64), torch.randn(3, C_IN, dtype=torch.float64)
    edge_index = torch.tensor([[0, 4, 2, 4], [2, 2, 0, 0]])
    expected, _ = literal(conv, source, target, edge_index)
    same(conv((source, target), edge_index), expected)


def test_a_node_that_hears_nobody_gets_sigmoid_of_zero(randomised) -> None:
    out = randomised(GraphFusionConv(C_IN, C_OUT))(torch.randn(N, C_IN, dtype=torch.float64), EDGES)
    assert out[4].tolist() == [0.5] * C_OUT


def test_the_coefficients_of_a_node_sum_to_one(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads=2))
    _, (_, xi) = conv(torch.randn(N, C_IN, dtype=torch.float64), EDGES, return_attention_weights=True)
    for i in EDGES[1].unique().tolist():
        same(xi[EDGES[1] == i].sum(0), torch.ones(2, dtype=torch.float64))


def test_edges_in_any_order_and_nodes_under_any_number(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads=2))
    x = torch.randn(N, C_IN, dtype=torch.float64)
    out = conv(x, EDGES)
    same(conv(x, EDGES[:, torch.randperm(EDGES.size(1))]), out)
    order = torch.randperm(N)
    number = order.argsort()  # the new number of each node
    same(conv(x[order], number[EDGES]), out[order])


def test_parallel_edges_count_twice(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, activation="none"))
    x = torch.randn(3, C_IN, dtype=torch.float64)
    _, (_, once) = conv(x, torch.tensor([[0, 2], [1, 1]]), return_attention_weights=True)
    _, (_, twice) = conv(x, torch.tensor([[0, 2, 2], [1, 1, 1]]), return_attention_weights=True)
    ratio = once[1] / once[0]
    same(twice.flatten(), torch.cat([torch.ones(1, dtype=torch.float64), ratio.detach(), ratio.detach()]) / (1 + 2 * ratio))


def test_the_other_flow_turns_every_edge_round(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT))
    x = torch.randn(N, C_IN, dtype=torch.float64)
    turned, (_, coefficients) = conv(x, EDGES.flip(0), return_attention_weights=True)
    conv.flow = "target_to_source"
    out, (edges, xi) = conv(x, EDGES, return_attention_weights=True)
    assert torch.equal(out, turned)
    assert torch.equal(xi, coefficients)
    assert torch.equal(edges, EDGES)


def test_the_other_flow_is_refused_on_a_bipartite_graph() -> None:
    """PyG reads the pair by role but sizes the result by row there, so no meaning could be the expected one."""
    conv = GraphFusionConv(C_IN, C_OUT)
    conv.flow = "target_to_source"
    with pytest.raises(ValueError, match='x: expected one tensor with flow="target_to_source", got a pair'):
        conv((torch.randn(N, C_IN), torch.randn(3, C_IN)), torch.tensor([[2, 0], [4, 1]]))


def test_sorted_edges_give_the_same(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads=2))
    x, edges = torch.randn(N, C_IN, dtype=torch.float64), sort_edges(EDGES, N, N)
    out, (given, xi) = conv(x, edges, return_attention_weights=True)
    expected, (_, coefficients) = conv(x, EDGES, return_attention_weights=True)
    assert torch.equal(out, expected)
    assert torch.equal(xi, coefficients)
    assert given is edges
    conv.flow = "target_to_source"
    with pytest.raises(ValueError, match='edge_index: expected \\(2, E\\) with flow="target_to_source", got sorted edges'):
        conv(x, edges)


def test_it_is_a_layer_of_pyg() -> None:
    conv = GraphFusionConv(C_IN, C_OUT, heads=2)
    assert isinstance(conv, MessagePassing)
    assert repr(conv) == "GraphFusionConv(4, 3, heads=2)"


def test_gradcheck(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads=2))
    names, values = zip(*conv.named_parameters(), strict=True)

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(conv, dict(zip(names, parameters, strict=True)), (x, EDGES))

    leaves = tuple(v.detach().clone().requires_grad_() for v in values)
    assert torch.autograd.gradcheck(call, (torch.randn(N, C_IN, dtype=torch.float64, requires_grad=True), *leaves))


def test_an_empty_graph_is_legal() -> None:
    conv, x = GraphFusionConv(C_IN, C_OUT, heads=2), torch.randn(0, C_IN, requires_grad=True)
    out = conv(x, EDGES[:, :0])
    assert out.shape == (0, 2 * C_OUT)
    out.sum().backward()
    assert x.grad.shape == (0, C_IN)
    assert not any(p.grad.any() for p in conv.parameters())


def test_bad_input_is_named() -> None:
    conv, x = GraphFusionConv(C_IN, C_OUT), torch.randn(N, C_IN)
    with pytest.raises(ValueError, match="heads: expected an integer of at least 1, got 0"):
        GraphFusionConv(C_IN, C_OUT, heads=0)
    with pytest.raises(ValueError, match="out_channels: expected an integer of at least 1, got 0"):
        GraphFusionConv(C_IN, 0)
    with pytest.raises(ValueError, match=r"activation: expected one of \['sigmoid', 'relu', 'none'\], got 'tanh'"):
        GraphFusionConv(C_IN, C_OUT, activation="tanh")
    with pytest.raises(ValueError, match=r"x: expected \(N, 4\), got \(5, 3\)"):
        conv(x[:, :3], EDGES)
    with pytest.raises(ValueError, match=r"x\[1\]: expected \(N, 4\), got \(5,\)"):
        conv((x, x[:, 0]), EDGES)
    with pytest.raises(ValueError, match=r"edge_index: expected integers \(2, E\), got torch.int64 \(7, 2\)"):
        conv(x, EDGES.T)


REGULAR = torch.tensor([[0, 1, 2, 3, 4, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 0, 1, 2, 3, 4]])  # two in-edges for every node


def passes(conv: GraphFusionConv, edges: Any, need: bool, monkeypatch: pytest.MonkeyPatch, one_step: bool) -> list[Tensor]:
    """Outputs and gradients; asserts which way was taken."""
    with monkeypatch.context() as patch:
        if not one_step:
            patch.setattr(linear, "_takes_one_step", lambda *_: False)
        x = torch.randn(N, C_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = conv(x, edges, return_attention_weights=need)
        outputs = [out[0], out[1][1]] if need else [out]
    taken = outputs[-1].grad_fn.name() if need else outputs[0].grad_fn.next_functions[0][0].next_functions[0][0].name()
    assert ("OneStep" in taken) == one_step
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(o.shape, dtype=o.dtype, generator=generator) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x, *conv.parameters()], given)]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize("presorted", [False, True])
@pytest.mark.parametrize("edge_index", [EDGES, REGULAR, EDGES[:, :0]], ids=["graph", "one in-degree", "no edge"])
def test_one_step_equals_products_and_op(
    randomised, monkeypatch: pytest.MonkeyPatch, heads: int, need: bool, presorted: bool, edge_index: Tensor
) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads))
    edges = sort_edges(edge_index, N, N) if presorted else edge_index
    found = passes(conv, edges, need, monkeypatch, True)
    for f, expected in zip(found, passes(conv, edges, need, monkeypatch, False), strict=True):
        same(f, expected)
    assert all(map(torch.equal, found, passes(conv, edges, need, monkeypatch, True)))


def test_the_coefficients_alone_have_gradients(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads=2))

    def coefficients(x: Tensor) -> Tensor:
        return conv(x, EDGES, return_attention_weights=True)[1][1]

    assert torch.autograd.gradcheck(coefficients, torch.randn(N, C_IN, dtype=torch.float64, requires_grad=True))


def test_one_step_refuses_second_derivatives_and_edges_of_another_graph(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT))
    x = torch.randn(N, C_IN, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(conv(x, EDGES).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()
    with pytest.raises(ValueError, match=r"edge_index: expected edges sorted for \(5, 5\) nodes, got \(6, 6\)"):
        conv(x, sort_edges(EDGES, 6, 6))


def test_autocast_takes_the_op() -> None:
    conv = GraphFusionConv(C_IN, C_OUT)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(N, C_IN), EDGES).dtype == torch.bfloat16
