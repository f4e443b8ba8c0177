"""Eq. 17-19 node by node and edge by edge, on any graph."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing

from mea_graph.nn import GraphFusionConv

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
    with pytest.raises(ValueError, match="Expected 'edge_index' to have size '2' in the first dimension"):  # PyG's
        conv(x, EDGES.T)
    with pytest.raises(ValueError, match=r"edge_attr: expected None, since edge_dim is None, got \(7, 2\)"):
        conv(x, EDGES, torch.randn(7, 2))
    with pytest.raises(ValueError, match=r"edge_weight: expected \(7,\), got \(6,\)"):
        conv(x, EDGES, edge_weight=torch.ones(6))
    with pytest.raises(ValueError, match=r"edge_weight: expected at least 0, got -1.0"):
        conv(x, EDGES, edge_weight=-torch.ones(7))
    for dropout in (2, 1, float("nan"), True):  # 1 leaves nothing to learn from
        with pytest.raises(ValueError, match=rf"dropout: expected a probability in \[0, 1\), got {dropout}"):
            GraphFusionConv(C_IN, C_OUT, dropout=dropout)
    with pytest.raises(ValueError, match=r"in_channels\[1\]: expected an integer of at least 1, got 0"):
        GraphFusionConv((C_IN, 0), C_OUT)


@pytest.mark.parametrize("heads", [1, 3])
def test_weights_count_edges(randomised, heads: int) -> None:
    """An edge of weight 2 is two parallel ones, one of weight 0 is not there; 0.5 multiplies its exponential."""
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads))
    x = torch.randn(N, C_IN, dtype=torch.float64)
    weight = torch.tensor([2.0, 1.0, 0.0, 0.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    expected, (_, xi) = conv(x, EDGES.repeat_interleave(weight.long(), 1), return_attention_weights=True)
    out, (_, weighted) = conv(x, EDGES, edge_weight=weight, return_attention_weights=True)
    same(out, expected)
    of_edge = torch.arange(7).repeat_interleave(weight.long())
    same(weighted, torch.zeros_like(weighted).index_add(0, of_edge, xi))
    same(conv(x, EDGES, edge_weight=torch.ones(7, dtype=torch.float64)), conv(x, EDGES))
    _, (_, half) = conv(x, EDGES[:, :2], edge_weight=weight[:2] / 4, return_attention_weights=True)
    _, (_, plain) = conv(x, EDGES[:, :2], return_attention_weights=True)
    same(half[0] / half[1], 2 * plain[0] / plain[1])
    assert torch.autograd.gradcheck(lambda w: conv(x, EDGES, edge_weight=w), weight.clamp(min=0.3).requires_grad_())


def test_an_edge_of_weight_zero_leaves_no_trace(randomised) -> None:
    """However large its score is: the others must not vanish beside it."""
    conv = randomised(GraphFusionConv(C_IN, C_OUT))
    x = torch.randn(3, C_IN, dtype=torch.float64)
    x[2] *= 1e6
    conv.score_src.data = conv.lin.weight @ x[2]  # a huge score
    x.requires_grad_()
    edges, weight = torch.tensor([[0, 2], [1, 1]]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    out = conv(x, edges, edge_weight=weight)
    same(out[1], conv(x, edges[:, :1])[1])
    (grad,) = torch.autograd.grad(out[1].sum(), x)
    assert grad[0].any()
    assert not grad[2].any()


@pytest.mark.parametrize("heads", [1, 2])
def test_features_of_edges_add_to_the_score(randomised, heads: int) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads, edge_dim=2))
    x, features = torch.randn(N, C_IN, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    _, (_, xi) = conv(x, EDGES, features, return_attention_weights=True)
    values = conv.lin(x).view(N, heads, C_OUT)
    of_edge = conv.lin_edge(features).view(7, heads, C_OUT)
    for k in range(heads):
        for i in range(N):
            into = (EDGES[1] == i).nonzero().flatten().tolist()
            score = [
                conv.score_dst[k] @ values[i, k]
                + conv.score_src[k] @ values[EDGES[0, e], k]
                + conv.score_edge[k] @ of_edge[e, k]
                + conv.score_bias[k]
                for e in into
            ]
            if into:
                same(xi[into, k], torch.stack([s * 0.5 * (1 + torch.erf(s / math.sqrt(2))) for s in score]).softmax(0))


def test_the_bias_stands_inside_the_activation(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads=2, bias=True))
    bias, conv.bias = conv.bias, None
    x = torch.randn(N, C_IN, dtype=torch.float64)
    conv.activation = "none"
    inner = conv(x, EDGES)
    conv.bias, conv.activation = bias, "sigmoid"
    same(conv(x, EDGES), (inner + bias).sigmoid())


def test_dropout_falls_on_the_coefficients(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads=2, dropout=0.5))
    x = torch.randn(N, C_IN, dtype=torch.float64)
    plain = conv.eval()(x, EDGES, return_attention_weights=True)[1][1]
    dropped = conv.train()(x, EDGES, return_attention_weights=True)[1][1]
    assert (dropped == 0).any()
    assert ((dropped == 0) | torch.isclose(dropped, 2 * plain)).all()


def test_the_coefficients_alone_have_gradients(randomised) -> None:
    conv = randomised(GraphFusionConv(C_IN, C_OUT, heads=2))

    def coefficients(x: Tensor) -> Tensor:
        return conv(x, EDGES, return_attention_weights=True)[1][1]

    assert torch.autograd.gradcheck(coefficients, torch.randn(N, C_IN, dtype=torch.float64, requires_grad=True))


def test_autocast_keeps_its_type() -> None:
    conv = GraphFusionConv(C_IN, C_OUT)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(N, C_IN), EDGES).dtype == torch.bfloat16


def test_what_a_stack_leaves_of_the_nodes_differences() -> None:
    """The figures of the docstring: the share of the standard deviation between nodes that the second layer leaves."""
    edges = torch.randint(100, (2, 800))

    def share(activation: Any, norm: bool) -> float:
        x, spread = torch.randn(100, 64), []
        for _ in range(2):
            x = GraphFusionConv(64, 64, activation=activation)(x, edges)
            x = torch.nn.functional.layer_norm(x, (64,)) if norm else x
            spread.append(x.std(0).mean().item())
        return spread[1] / spread[0]

    assert share("sigmoid", False) == pytest.approx(1 / 20, rel=0.25)
    assert share("relu", False) == pytest.approx(1 / 8, rel=0.25)
    assert share("none", False) == pytest.approx(1 / 5, rel=0.25)
    assert all(share(activation, True) > 0.4 for activation in ("sigmoid", "relu", "none"))
