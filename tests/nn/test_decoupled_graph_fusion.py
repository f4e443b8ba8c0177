"""Eq. 19: h_fin of both graphs, sample by sample, from the definition of its message passing."""

import itertools
import math
import re
from functools import partial
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.data import Batch
from torch_geometric.nn.aggr import AttentionalAggregation, LSTMAggregation, MultiAggregation

from mea_graph.nn import DecoupledGraphFusion, GraphFusionConv, fusion_graph

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


def run(layer: DecoupledGraphFusion, graph: Any, **options: Any) -> Any:
    marks = graph.collect("present", allow_empty=True)
    return layer(graph.x_dict, graph.edge_index_dict, graph.sample_dict, graph.num_samples, marks, **options)


HEADS = partial(GraphFusionConv, heads=2, concat=False)


@pytest.mark.parametrize("conv", [GraphFusionConv, HEADS], ids=["one head", "two heads"])
@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("keep_absent", [False, True])
def test_equals_the_loops_of_each_sample(randomised, conv: Any, self_loops: bool, keep_absent: bool) -> None:
    layer = randomised(DecoupledGraphFusion(D_H, D_OUT, conv))
    h = {space: representations(NAMES, len(PRESENT)) for space in ("exclusive", "agnostic")}
    graph = fusion_graph(h["exclusive"], h["agnostic"], there(NAMES, PRESENT), self_loops, keep_absent)
    for space, out in run(layer, graph).x.items():
        for b, row in enumerate(PRESENT.tolist()):
            nodes = [h[space][m][b] for m, here in zip(NAMES, row, strict=True) if here]
            torch.testing.assert_close(out[b], literal(layer.convs[space], nodes, self_loops), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_any_number_of_modalities(randomised, count: int) -> None:
    names = [f"m{i}" for i in range(count)]
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(names, 3)
    fused = run(layer, fusion_graph(h, h)).x
    for b in range(3):
        nodes = [h[m][b] for m in names]
        torch.testing.assert_close(fused["exclusive"][b], literal(layer.convs["exclusive"], nodes, False), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(fused["agnostic"][b], literal(layer.convs["agnostic"], nodes, False), rtol=1e-9, atol=1e-12)


def test_a_missing_modality_is_a_node_that_is_not_there(randomised) -> None:
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, 2)
    without = {m: v for m, v in h.items() if m != "audio"}
    absent = there(NAMES, torch.tensor([[True, False, True]] * 2))
    torch.testing.assert_close(run(layer, fusion_graph(h, h, absent)), run(layer, fusion_graph(without, without)))


def test_a_sample_without_nodes_gives_zeros(randomised) -> None:
    h = representations(NAMES, len(PRESENT))
    fused = run(randomised(DecoupledGraphFusion(D_H)), fusion_graph(h, h, there(NAMES, PRESENT))).x
    assert not fused["exclusive"][3].any()
    assert not fused["agnostic"][3].any()


@pytest.mark.parametrize("keep_absent", [False, True])
@pytest.mark.parametrize("options", [{}, {"heads": 2, "concat": False, "activation": "relu"}, {"dropout": 0.5}, {"bias": True}])
def test_both_graphs_in_one_pass_are_each_by_itself(randomised, options: dict[str, Any], keep_absent: bool) -> None:
    layer = randomised(DecoupledGraphFusion(D_H, conv=partial(GraphFusionConv, **options)))
    h, g = ({m: x.requires_grad_() for m, x in representations(NAMES, len(PRESENT)).items()} for _ in range(2))
    leaves = [*layer.parameters(), *h.values(), *g.values()]
    results = []
    for watched in (False, True):
        passes: list[int] = []
        torch.manual_seed(0)
        if watched:  # then one after the other
            for conv in layer.convs.values():
                conv.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        fused = run(layer, fusion_graph(h, g, there(NAMES, PRESENT), keep_absent=keep_absent)).x
        assert len(passes) == 2 * watched
        results.append([*fused.values(), *torch.autograd.grad(sum(v.sin().sum() for v in fused.values()), leaves)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keep_absent", [False, True])
def test_each_space_is_read_out_by_its_own_samples(randomised, keep_absent: bool) -> None:
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, 2)
    graph = fusion_graph(h, h, there(NAMES, PRESENT[:2]), keep_absent=keep_absent)
    before = run(layer, graph).x
    for m in NAMES:
        graph[f"{m}_agnostic"].sample = 1 - graph[f"{m}_agnostic"].sample
    after = run(layer, graph).x
    assert torch.equal(after["exclusive"], before["exclusive"])
    assert torch.equal(after["agnostic"], before["agnostic"].flip(0))


def test_the_two_graphs_share_nothing(randomised) -> None:
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, 2)
    fused = run(layer, fusion_graph(h, h)).x
    assert not torch.allclose(fused["exclusive"], fused["agnostic"])
    conv = layer.convs["agnostic"]
    gradients = torch.autograd.grad(fused["exclusive"].sum(), list(conv.parameters()), allow_unused=True)
    assert not any(gradient is not None and gradient.any() for gradient in gradients)  # zeros, where both took one pass


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("keep_absent", [False, True])
def test_transfer_coefficients_by_edge_type(randomised, self_loops: bool, keep_absent: bool) -> None:
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, len(PRESENT))
    graph = fusion_graph(h, h, there(NAMES, PRESENT), self_loops, keep_absent)
    assert run(layer, graph).transfer == {}
    transfer = run(layer, graph, return_attention_weights=True).transfer
    assert set(transfer) == set(graph.edge_types)
    for target, node in graph.node_items():
        total = torch.zeros(node.num_nodes, dtype=torch.float64)
        for edge_type, xi in transfer.items():
            edges = graph[edge_type].edge_index
            assert xi.shape == (edges.size(1), 1)
            if edge_type[2] == target:
                total = total.index_add(0, edges[1], xi[:, 0])
        torch.testing.assert_close(total, node.get("present", torch.ones_like(total)).double(), rtol=1e-12, atol=1e-14)


def test_a_coefficient_stands_at_its_own_edge(randomised) -> None:
    """One node type hears two others: the coefficients are those of `GraphFusionConv` on the same three nodes."""
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, 1)
    transfer = run(layer, fusion_graph(h, h), return_attention_weights=True).transfer
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
    fused = layer(x, edges, {m: torch.tensor([0, 1]) for m in x}).x
    flat = torch.cat(list(x.values()))
    nodes = layer.convs["agnostic"](flat, torch.tensor([[0, 1, 1, 3], [2, 2, 3, 4]]))
    torch.testing.assert_close(fused["agnostic"], torch.stack([nodes[0::2].sum(0), nodes[1::2].sum(0)]), rtol=1e-12, atol=1e-14)
    assert set(fused) == {"agnostic"}


def test_gradcheck(randomised) -> None:
    layer, present = randomised(DecoupledGraphFusion(D_H)), there(["a", "b"], torch.tensor([[True, True], [True, False]]))
    inputs = tuple(torch.randn(2, D_H, dtype=torch.float64, requires_grad=True) for _ in range(4))

    def call(*h: Tensor) -> tuple[Tensor, ...]:
        graph = fusion_graph({"a": h[0], "b": h[1]}, {"a": h[2], "b": h[3]}, present)
        return tuple(run(layer, graph).x.values())

    assert torch.autograd.gradcheck(call, inputs)


CONVS = {
    "GraphFusionConv": GraphFusionConv,
    "GATConv": pyg.GATConv,
    "TransformerConv": pyg.TransformerConv,
    "SAGEConv": pyg.SAGEConv,
    "GCNConv": pyg.GCNConv,
    "GINConv": lambda channels, out_channels: pyg.GINConv(nn.Linear(channels, out_channels)),
}


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_any_convolution_on_both_forms_of_the_graph(randomised, name: str, self_loops: bool) -> None:
    """What it makes of the graphs of a space is what it makes of each sample alone; absent nodes change nothing, gradients included."""
    layer, present = randomised(DecoupledGraphFusion(D_H, D_OUT, CONVS[name])), there(NAMES, PRESENT)
    h = {m: v.requires_grad_() for m, v in representations(NAMES, len(PRESENT)).items()}
    compact = run(layer, fusion_graph(h, h, present, self_loops)).x
    kept = run(layer, fusion_graph(h, h, present, self_loops, keep_absent=True)).x
    for space, out in compact.items():
        torch.testing.assert_close(kept[space], out, rtol=1e-10, atol=1e-12)
        for b, row in enumerate(PRESENT.tolist()):
            nodes = [h[m][b] for m, here in zip(NAMES, row, strict=True) if here]
            pairs = [(i, j) for i in range(len(nodes)) for j in range(len(nodes)) if i != j or self_loops or len(nodes) == 1]
            if nodes:
                expected = layer.convs[space](torch.stack(nodes), torch.tensor(pairs).T).sum(0)
                torch.testing.assert_close(out[b], expected, rtol=1e-10, atol=1e-12)
    leaves = [*h.values(), *layer.parameters()]
    cotangents = [torch.randn_like(out) for out in compact.values()]
    gradients = [torch.autograd.grad(list(f.values()), leaves, cotangents, allow_unused=True) for f in (compact, kept)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "std", "median", "softmax", "lstm", MultiAggregation(["sum", "min"]), "attention"])
@pytest.mark.parametrize("keep_absent", [False, True])
def test_any_readout(randomised, aggr: Any, keep_absent: bool) -> None:
    if aggr == "lstm":
        aggr = LSTMAggregation(D_H, D_H)
    if aggr == "attention":
        aggr = AttentionalAggregation(nn.Linear(D_H, 1))
    rows = PRESENT[:1].expand(5, 3) if isinstance(aggr, LSTMAggregation) else PRESENT  # that one runs on over padding
    layer, h = randomised(DecoupledGraphFusion(D_H, aggr=aggr)), representations(NAMES, len(rows))
    graph = fusion_graph(h, h, there(NAMES, rows), keep_absent=keep_absent)
    nodes = DecoupledGraphFusion(D_H, aggr=None).double()
    nodes.load_state_dict({n: p for n, p in layer.state_dict().items() if n.startswith("convs")})
    nodes = run(nodes, graph).x
    for space, out in run(layer, graph).x.items():
        for b, row in enumerate(rows.tolist()):
            if any(row):
                own = [nodes[f"{m}_{space}"][graph[f"{m}_{space}"].sample == b] for m, here in zip(NAMES, row, strict=True) if here]
                own = torch.cat(own)
                expected = layer.aggr(own, torch.zeros(len(own), dtype=torch.long), dim_size=1)[0]
                torch.testing.assert_close(out[b], expected, rtol=1e-9, atol=1e-11)


def test_a_convolution_may_be_replaced() -> None:
    layer, h = DecoupledGraphFusion(D_H), {m: v.float() for m, v in representations(NAMES, 2).items()}
    layer.convs["exclusive"] = pyg.GATConv(D_H, D_OUT, add_self_loops=False)
    fused = run(layer, fusion_graph(h, h), return_attention_weights=True)
    assert fused.x["exclusive"].shape == (2, D_OUT)
    assert {xi.shape for xi in fused.transfer.values()} == {(2, 1)}
    layer.convs["exclusive"] = pyg.GATConv(D_H, D_OUT)
    with pytest.raises(ValueError, match="return_attention_weights: expected weights of 12 edges, got 18 of GATConv"):
        run(layer, fusion_graph(h, h), return_attention_weights=True)
    layer.convs["exclusive"] = pyg.SAGEConv(D_H, D_OUT)
    with pytest.raises(ValueError, match="return_attention_weights: expected False, since SAGEConv has no attention weights"):
        run(layer, fusion_graph(h, h), return_attention_weights=True)


@pytest.mark.parametrize("keep_absent", [False, True])
def test_layers_stack(randomised, keep_absent: bool) -> None:
    first, last = randomised(DecoupledGraphFusion(D_H, D_OUT, aggr=None)), randomised(DecoupledGraphFusion(D_OUT, 2))
    h = representations(NAMES, len(PRESENT))
    graph = fusion_graph(h, h, there(NAMES, PRESENT), keep_absent=keep_absent)
    inner = run(first, graph).x
    assert {name: x.shape for name, x in inner.items()} == {name: (x.size(0), D_OUT) for name, x in graph.x_dict.items()}
    marks = graph.collect("present", allow_empty=True)
    fused = last(inner, graph.edge_index_dict, graph.sample_dict, graph.num_samples, marks).x
    for b, row in enumerate(PRESENT.tolist()):
        x = torch.stack([h[m][b] for m, here in zip(NAMES, row, strict=True) if here]) if any(row) else torch.zeros(0, D_H).double()
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j or len(x) == 1]
        edges = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
        expected = last.convs["agnostic"](first.convs["agnostic"](x, edges), edges).sum(0)
        torch.testing.assert_close(fused["agnostic"][b], expected, rtol=1e-10, atol=1e-12)


def test_spaces_of_ones_own_among_other_nodes_and_edges() -> None:
    layer = DecoupledGraphFusion(D_H, spaces=["shared", "half_shared"])
    h = {m: torch.randn(2, D_H) for m in ("a_shared", "b_shared", "a_half_shared", "b_half_shared")}
    pair, samples = torch.tensor([[0, 1], [0, 1]]), torch.arange(2)
    edges = {("a_shared", "to", "b_shared"): pair, ("a_half_shared", "to", "b_half_shared"): pair}
    expected = layer(h, edges, dict.fromkeys(h, samples)).x
    assert not torch.equal(expected["shared"], expected["half_shared"])
    steps = {"a": torch.randn(7, 3), "b": torch.randn(5, 9)}
    others = {("a", "self", "a"): pair, ("a", "in", "a_shared"): pair, ("b_half_shared", "of", "b"): pair}
    found = layer({**steps, **h}, {**others, **edges}, dict.fromkeys(h, samples), 2).x
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("spaces", [["x"], ["x", "y"], ["x", "y", "z"]], ids=len)
def test_edges_inside_a_type_and_lists_that_types_share(randomised, spaces: list[str]) -> None:
    """One list of edges serves a to a, a to b and b to a, in every space; three spaces in one pass are each by itself."""
    layer, ring = randomised(DecoupledGraphFusion(D_H, spaces=spaces)), torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
    h = {f"{m}_{space}": torch.randn(3, D_H, dtype=torch.float64) for space in spaces for m in "ab"}
    edges = {(f"{s}_{space}", "to", f"{t}_{space}"): ring for space in spaces for s, t in ("aa", "ab", "ba")}
    joined = torch.cat([ring + torch.tensor(ends).view(2, 1) for ends in ((0, 0), (0, 3), (3, 0))], 1)
    fused = layer(h, edges, dict.fromkeys(h, torch.arange(3))).x
    for space in spaces:
        nodes = layer.convs[space](torch.cat([h[f"a_{space}"], h[f"b_{space}"]]), joined)
        torch.testing.assert_close(fused[space], nodes[:3] + nodes[3:], rtol=1e-12, atol=1e-14)


def test_a_space_with_the_same_edges_and_more_nodes(randomised) -> None:
    """Its absent edges lead behind its own nodes."""
    layer, pair = randomised(DecoupledGraphFusion(D_H, spaces=["x", "y"])), torch.tensor([[0, 1], [0, 1]])
    h = {name: torch.randn(2, D_H, dtype=torch.float64) for name in ("a_x", "b_x", "a_y", "b_y", "c_y")}
    edges, marks = {(f"a_{space}", "to", f"b_{space}"): pair for space in "xy"}, torch.tensor([True, False])
    fused = layer(h, edges, dict.fromkeys(h, torch.arange(2)), 2, dict.fromkeys(edges, marks)).x
    for space, names in (("x", ["a_x", "b_x"]), ("y", ["a_y", "b_y", "c_y"])):
        nodes = layer.convs[space](torch.cat([h[name] for name in names]), torch.tensor([[0], [2]]))
        torch.testing.assert_close(fused[space], nodes.view(-1, 2, D_H).sum(0), rtol=1e-12, atol=1e-14)


def test_widths_of_ones_own() -> None:
    widths = {"a_exclusive": 3, "b_exclusive": 5, "a_agnostic": 3, "b_agnostic": -1}
    layer = DecoupledGraphFusion(widths, D_OUT)
    h = {"a": torch.randn(2, 3), "b": torch.randn(2, 5)}
    graph = fusion_graph(h, h)
    fused = run(layer, graph).x
    x = torch.cat([graph[m].x @ layer.align.lins[m].weight.T for m in ("a_exclusive", "b_exclusive")])
    edges = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]])
    torch.testing.assert_close(fused["exclusive"], layer.convs["exclusive"](x, edges).view(2, 2, D_OUT).sum(0))
    equal = {"a": h["a"], "b": h["a"]}
    assert run(DecoupledGraphFusion(-1, D_OUT), fusion_graph(equal, equal)).x["agnostic"].shape == (2, D_OUT)
    with pytest.raises(ValueError, match=r"x_dict\['b_exclusive'\]: expected \(N, 3\), got \(2, 5\)"):
        run(DecoupledGraphFusion(-1, D_OUT), graph)
    with pytest.raises(ValueError, match=r"x_dict\['a_agnostic'\]: expected \(N, 3\), got \(2, 5\)"):
        run(layer, fusion_graph(h, {"a": h["b"], "b": h["b"]}))
    with pytest.raises(ValueError, match=r"x_dict: expected the node types .* that channels names, got 'c_exclusive'"):
        run(layer, fusion_graph({**h, "c": h["a"]}, {**h, "c": h["a"]}))


def test_graphs_that_were_collated(randomised) -> None:
    layer, sizes = randomised(DecoupledGraphFusion(D_H)), (2, 3)
    for keep_absent in (False, True):
        graphs = []
        for n in sizes:
            h = representations(NAMES, n)
            graphs.append(fusion_graph(h, h, there(NAMES, PRESENT[1 : 1 + n]), keep_absent=keep_absent))
        found = run(layer, Batch.from_data_list(graphs)).x
        expected = [run(layer, graph).x for graph in graphs]
        for space, out in found.items():
            torch.testing.assert_close(out, torch.cat([e[space] for e in expected]), rtol=1e-12, atol=1e-14)


def test_the_number_of_samples_may_be_left_to_the_data(randomised) -> None:
    layer, h = randomised(DecoupledGraphFusion(D_H)), representations(NAMES, 3)
    graph = fusion_graph(h, h)
    torch.testing.assert_close(layer(graph.x_dict, graph.edge_index_dict, graph.sample_dict).x, run(layer, graph).x)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="an older torch makes some calls more of the same")
def test_calls_are_few() -> None:
    """Forward and backward pass at 16 samples of three modalities: 332 calls before, 380 with absent modalities."""
    h = {m: torch.randn(16, D_H, requires_grad=True) for m in NAMES}
    layer = DecoupledGraphFusion(D_H)
    for present, most in ((None, 240), (there(NAMES, torch.rand(16, 3) > 0.2), 290)):
        with Calls() as calls:
            sum(out.sum() for out in run(layer, fusion_graph(h, h, present)).x.values()).backward()
        assert calls.count <= most


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_bad_input_is_named() -> None:
    h = {m: torch.randn(2, D_H) for m in NAMES}
    graph, layer = fusion_graph(h, h), DecoupledGraphFusion(D_H)
    with pytest.raises(ValueError, match="spaces: expected a list of at least one name, got 'exclusive'"):
        DecoupledGraphFusion(D_H, spaces="exclusive")
    with pytest.raises(ValueError, match=r"spaces: expected a list of at least one name, got \[\]"):
        DecoupledGraphFusion(D_H, spaces=[])
    with pytest.raises(ValueError, match="out_channels: expected a width, since channels is -1, got None"):
        DecoupledGraphFusion(-1)
    with pytest.raises(ValueError, match=r"ending in '_agnostic', got .*; spaces=\['exclusive'\] leaves out"):
        run(layer, fusion_graph(h, None))
    with pytest.raises(ValueError, match=r"sample_dict: expected the samples of \['text_exclusive', .*\], got None"):
        layer(graph.x_dict, graph.edge_index_dict)
    crossing = ("text_exclusive", "to", "text_agnostic")
    with pytest.raises(ValueError, match=r"edge_index_dict: expected edges inside one space, got .*'text_agnostic'"):
        layer(graph.x_dict, graph.edge_index_dict | {crossing: torch.zeros(2, 1, dtype=torch.int64)}, graph.sample_dict)
    given = (graph.x_dict, graph.edge_index_dict)
    with pytest.raises(ValueError, match=r"sample_dict\['text_exclusive'\]: expected \(2,\), one for each node, got \(1,\)"):
        layer(*given, graph.sample_dict | {"text_exclusive": torch.zeros(1, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"present_dict\['text_exclusive'\]: expected \(2,\), one for each node, got \(3,\)"):
        layer(*given, graph.sample_dict, 2, {"text_exclusive": torch.ones(3, dtype=torch.bool)})
    edge_type = graph.edge_types[0]
    sparse = torch.sparse_coo_tensor(graph[edge_type].edge_index, torch.ones(2), (2, 2))
    for edges, got in ((sparse, r"torch.sparse_coo \(2, 2\)"), (torch.zeros(3, 2), r"torch.strided \(3, 2\)"), (None, "NoneType")):
        with pytest.raises(ValueError, match=re.escape(f"edge_index_dict[{edge_type}]: expected an edge_index (2, E), got ") + got):
            layer(graph.x_dict, graph.edge_index_dict | {edge_type: edges}, graph.sample_dict)
