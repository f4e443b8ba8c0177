"""Eq. 19: h_fin of both graphs, sample by sample, from the definition of its message passing."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.nn import DecoupledGraphFusion, fusion_graph

D_H, D_OUT = 4, 3
NAMES = ["text", "audio", "vision"]
# In turn: everything, two, one alone, nothing, another one alone.
PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()


def there(names: list[str], present: Tensor) -> dict[str, Tensor]:
    return {m: present[:, i] for i, m in enumerate(names)}


def representations(names: list[str], samples: int) -> dict[str, Tensor]:
    return {m: torch.randn(samples, D_H, dtype=torch.float64) for m in names}


def literal(conv: Any, nodes: list[Tensor], self_loops: bool) -> Tensor:
    """h_fin of one sample and space; its nodes hear each other, a lone one itself."""
    total = torch.zeros(conv.out_channels, dtype=torch.float64)
    weight = conv.lin.weight.view(conv.heads, conv.out_channels, -1)
    for i, h_i in enumerate(nodes):
        neighbours = [h for j, h in enumerate(nodes) if j != i or self_loops or len(nodes) == 1]
        heads = torch.zeros(conv.out_channels, dtype=torch.float64)
        for k in range(conv.heads):
            delta = [conv.score_dst[k] @ weight[k] @ h_i + conv.score_src[k] @ weight[k] @ h + conv.score_bias[k] for h in neighbours]
            xi = torch.stack([d * 0.5 * (1 + torch.erf(d / math.sqrt(2))) for d in delta]).softmax(0)
            heads = heads + sum(x * (weight[k] @ h) for x, h in zip(xi, neighbours, strict=True)) / conv.heads
        total = total + 1 / (1 + torch.exp(-heads))
    return total


def run(layer: DecoupledGraphFusion, graph: Any, samples: int, **options: bool) -> Any:
    return layer(graph.x_dict, graph.edge_index_dict, graph.batch_dict, samples, **options)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("self_loops", [False, True])
def test_equals_the_loops_of_each_sample(randomised, heads: int, self_loops: bool) -> None:
    layer = randomised(DecoupledGraphFusion(D_H, D_OUT, heads))
    h = {space: representations(NAMES, len(PRESENT)) for space in ("exclusive", "agnostic")}
    graph = fusion_graph(h["exclusive"], h["agnostic"], there(NAMES, PRESENT), self_loops)
    fused = run(layer, graph, len(PRESENT))
    for space, out in (("exclusive", fused.exclusive), ("agnostic", fused.agnostic)):
        for b, row in enumerate(PRESENT.tolist()):
            nodes = [h[space][m][b] for m, here in zip(NAMES, row, strict=True) if here]
            torch.testing.assert_close(out[b], literal(layer.convs[space], nodes, self_loops), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_any_number_of_modalities(randomised, count: int) -> None:
    names = [f"m{i}" for i in range(count)]
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(names, 3)
    fused = run(layer, fusion_graph(h, h), 3)
    for b in range(3):
        nodes = [h[m][b] for m in names]
        torch.testing.assert_close(fused.exclusive[b], literal(layer.convs["exclusive"], nodes, False), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(fused.agnostic[b], literal(layer.convs["agnostic"], nodes, False), rtol=1e-9, atol=1e-12)


def test_a_missing_modality_is_a_node_that_is_not_there(randomised) -> None:
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, 2)
    without = {m: v for m, v in h.items() if m != "audio"}
    absent = there(NAMES, torch.tensor([[True, False, True]] * 2))
    torch.testing.assert_close(run(layer, fusion_graph(h, h, absent), 2), run(layer, fusion_graph(without, without), 2))


def test_a_sample_without_nodes_gives_zeros(randomised) -> None:
    h = representations(NAMES, len(PRESENT))
    fused = run(randomised(DecoupledGraphFusion(D_H)), fusion_graph(h, h, there(NAMES, PRESENT)), len(PRESENT))
    assert not fused.exclusive[3].any()
    assert not fused.agnostic[3].any()


def test_the_two_graphs_share_nothing(randomised) -> None:
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, 2)
    fused = run(layer, fusion_graph(h, h), 2)
    assert not torch.allclose(fused.exclusive, fused.agnostic)
    conv = layer.convs["agnostic"]
    gradients = torch.autograd.grad(fused.exclusive.sum(), list(conv.parameters()), allow_unused=True)
    assert gradients == (None,) * len(gradients)


@pytest.mark.parametrize("self_loops", [False, True])
def test_transfer_coefficients_by_edge_type(randomised, self_loops: bool) -> None:
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, len(PRESENT))
    graph = fusion_graph(h, h, there(NAMES, PRESENT), self_loops)
    assert run(layer, graph, len(PRESENT)).transfer == {}
    transfer = run(layer, graph, len(PRESENT), return_attention_weights=True).transfer
    assert set(transfer) == set(graph.edge_types)
    for target, node in graph.node_items():
        total = torch.zeros(node.num_nodes, dtype=torch.float64)
        for edge_type, xi in transfer.items():
            edges = graph[edge_type].edge_index
            assert xi.shape == (edges.size(1), 1)
            if edge_type[2] == target:
                total = total.index_add(0, edges[1], xi[:, 0])
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=1e-14)


def test_a_coefficient_stands_at_its_own_edge(randomised) -> None:
    """One node type hears two others: the coefficients are those of `GraphFusionConv` on the same three nodes."""
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, 1)
    transfer = run(layer, fusion_graph(h, h), 1, return_attention_weights=True).transfer
    pairs = list(itertools.permutations(range(3), 2))
    _, (_, xi) = layer.convs["exclusive"](torch.cat([h[m] for m in NAMES]), torch.tensor(pairs).T, return_attention_weights=True)
    for (s, t), expected in zip(pairs, xi, strict=True):
        torch.testing.assert_close(transfer[f"{NAMES[s]}_exclusive", "to", f"{NAMES[t]}_exclusive"][0], expected)


def test_a_graph_of_ones_own(randomised) -> None:
    """A chain a -> b -> c in one sample, several nodes a type, relation names of one's own."""
    layer = randomised(DecoupledGraphFusion(D_H, spaces=["agnostic"]))
    x = {f"{m}_agnostic": torch.randn(2, D_H, dtype=torch.float64) for m in "abc"}
    edges = {
        ("a_agnostic", "tells", "b_agnostic"): torch.tensor([[0, 1, 1], [0, 0, 1]]),
        ("b_agnostic", "tells", "c_agnostic"): torch.tensor([[1], [0]]),
    }
    fused = layer(x, edges, {m: torch.tensor([0, 1]) for m in x})
    flat = torch.cat(list(x.values()))
    nodes = layer.convs["agnostic"](flat, torch.tensor([[0, 1, 1, 3], [2, 2, 3, 4]]))
    torch.testing.assert_close(fused.agnostic, torch.stack([nodes[0::2].sum(0), nodes[1::2].sum(0)]), rtol=1e-12, atol=1e-14)
    assert fused.exclusive is None


def test_gradcheck(randomised) -> None:
    layer, present = randomised(DecoupledGraphFusion(D_H)), there(["a", "b"], torch.tensor([[True, True], [True, False]]))
    inputs = tuple(torch.randn(2, D_H, dtype=torch.float64, requires_grad=True) for _ in range(4))

    def call(*h: Tensor) -> tuple[Tensor, Tensor]:
        graph = fusion_graph({"a": h[0], "b": h[1]}, {"a": h[2], "b": h[3]}, present)
        return run(layer, graph, 2)[:2]

    assert torch.autograd.gradcheck(call, inputs)


def test_bad_input_is_named() -> None:
    h = {m: torch.randn(2, D_H) for m in NAMES}
    graph, layer = fusion_graph(h, h), DecoupledGraphFusion(D_H)
    with pytest.raises(ValueError, match=r"spaces: expected some of \('exclusive', 'agnostic'\), got \('both',\)"):
        DecoupledGraphFusion(D_H, spaces=["both"])
    with pytest.raises(ValueError, match=r"spaces: expected some of .*, got \(\)"):
        DecoupledGraphFusion(D_H, spaces=[])
    with pytest.raises(ValueError, match=r"x_dict: expected node types ending in \['_exclusive', '_agnostic'\], got 'text'"):
        layer(graph.x_dict | {"text": h["text"]}, graph.edge_index_dict, graph.batch_dict)
    with pytest.raises(ValueError, match="x_dict: expected node types ending in '_agnostic', got"):
        run(layer, fusion_graph(h, None), 2)
    crossing = ("text_exclusive", "to", "text_agnostic")
    with pytest.raises(ValueError, match=r"edge_index_dict: expected edges inside one space, got .*'text_agnostic'"):
        layer(graph.x_dict, graph.edge_index_dict | {crossing: torch.zeros(2, 1, dtype=torch.int64)}, graph.batch_dict)
