"""The fusion graph of section 7: which nodes and edges each sample has (R7)."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric import transforms
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from mea_graph.nn import FusionGraph, fusion_graph

D_H = 3
SPACES = ("exclusive", "agnostic")
PRESENT = {
    "all": [[True, True, True], [True, True, True]],
    "some": [[True, False, True], [False, False, True], [True, True, True], [False, False, False], [False, True, False]],
    "none": [[False, False, False]],
}


def representations(samples: int, names: list[str]) -> dict[str, Tensor]:
    return {m: torch.randn(samples, D_H) for m in names}


def expected_edges(there: list[bool], self_loops: bool) -> set[tuple[int, int]]:
    """Of one sample, as (source modality, target modality)."""
    nodes = [i for i, here in enumerate(there) if here]
    edges = set(itertools.permutations(nodes, 2))
    return edges | {(i, i) for i in nodes} if self_loops or len(nodes) == 1 else edges


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("kind", PRESENT)
def test_nodes_and_edges_of_every_sample(kind: str, self_loops: bool) -> None:
    names, there = ["text", "audio", "vision"], PRESENT[kind]
    present = {m: torch.tensor([row[i] for row in there]) for i, m in enumerate(names)}
    h = {space: representations(len(there), names) for space in SPACES}
    graph = fusion_graph(h["exclusive"], h["agnostic"], present, self_loops)
    assert set(graph.node_types) == {f"{m}_{space}" for m in names for space in SPACES}
    for space in SPACES:
        for m in names:
            node = graph[f"{m}_{space}"]
            assert node.sample.tolist() == present[m].nonzero().flatten().tolist()
            assert torch.equal(node.x, h[space][m][present[m]])
        edges: list[set[tuple[int, int]]] = [set() for _ in there]
        count = 0
        for (i, s), (j, t) in itertools.product(enumerate(names), repeat=2):
            edge_type = (f"{s}_{space}", "to", f"{t}_{space}")
            if edge_type in graph.edge_types:
                source, target = graph[edge_type].edge_index
                samples = graph[edge_type[0]].sample[source]
                assert torch.equal(samples, graph[edge_type[2]].sample[target])
                for b in samples.tolist():
                    edges[b].add((i, j))
                    count += 1
        assert edges == [expected_edges(row, self_loops) for row in there]
        assert count == sum(map(len, edges)), "an edge stands twice"
    assert all(s.rsplit("_")[-1] == t.rsplit("_")[-1] for s, _, t in graph.edge_types)
    assert graph.validate()


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_any_number_of_modalities_all_present(count: int, self_loops: bool) -> None:
    names = [f"m{i}" for i in range(count)]
    h = representations(3, names)
    graph = fusion_graph(h, None, None, self_loops)
    given = fusion_graph(h, None, {m: torch.ones(3, dtype=torch.bool) for m in names}, self_loops)
    assert sum(graph[m].num_nodes for m in graph.node_types) == 3 * count
    for edge_type in given.edge_types:
        edges = graph[edge_type].edge_index if edge_type in graph.edge_types else torch.empty(2, 0, dtype=torch.int64)
        assert torch.equal(edges, given[edge_type].edge_index), edge_type
    per_sample = count * (count - 1) + count * (self_loops or count == 1)
    assert sum(graph[e].edge_index.size(1) for e in graph.edge_types) == 3 * per_sample


@pytest.mark.parametrize("space", SPACES)
def test_one_space_alone(space: str) -> None:
    h = representations(2, ["a", "b"])
    graph = fusion_graph(**{"exclusive": None, "agnostic": None, space: h})
    assert graph.node_types == [f"a_{space}", f"b_{space}"]


def test_the_order_of_the_modalities_does_not_matter() -> None:
    h, there = representations(2, ["a", "b"]), {"a": torch.tensor([True, False]), "b": torch.tensor([True, True])}
    expected = fusion_graph(h, h, there)
    graph = fusion_graph(h, dict(reversed(h.items())), dict(reversed(there.items())))
    assert graph.edge_types == expected.edge_types
    for node_type in expected.node_types:
        assert torch.equal(graph[node_type].x, expected[node_type].x)
    for edge_type in expected.edge_types:
        assert torch.equal(graph[edge_type].edge_index, expected[edge_type].edge_index)


def test_a_batch_without_samples() -> None:
    h = representations(0, ["a", "b"])
    graph = fusion_graph(h, h, {m: torch.ones(0, dtype=torch.bool) for m in h})
    assert graph.num_nodes == 0


def test_the_graph_carries_gradients() -> None:
    h = {m: v.requires_grad_() for m, v in representations(2, ["a", "b"]).items()}
    graph = fusion_graph(h, h, {"a": torch.tensor([True, False]), "b": torch.tensor([True, True])})
    gradients = torch.autograd.grad(sum(x.sum() for x in graph.x_dict.values()), list(h.values()))
    assert [g[:, 0].tolist() for g in gradients] == [[2, 0], [2, 2]]


def test_bad_input_is_named() -> None:
    h, there = representations(2, ["a", "b"]), {m: torch.ones(2, dtype=torch.bool) for m in "ab"}
    with pytest.raises(ValueError, match="exclusive, agnostic: expected at least one of them, got None twice"):
        fusion_graph(None, None)
    with pytest.raises(ValueError, match=r"agnostic: expected the modalities \['a', 'b'\], got \['a', 'c'\]"):
        fusion_graph(h, representations(2, ["a", "c"]))
    with pytest.raises(ValueError, match=r"present: expected the modalities \['a', 'b'\], got \['a'\]"):
        fusion_graph(h, h, {"a": there["a"]})
    with pytest.raises(ValueError, match=r"agnostic: expected 2 samples of each modality, got \[2, 3\]"):
        fusion_graph(h, {"a": h["a"], "b": torch.randn(3, D_H)})
    with pytest.raises(ValueError, match=r"present: expected 2 samples of each modality, got \[1, 2\]"):
        fusion_graph(h, h, there | {"a": there["a"][:1]})
    with pytest.raises(ValueError, match=r"present: expected bool \(B,\), got .*torch.int64"):
        fusion_graph(h, h, there | {"a": there["a"].long()})
    with pytest.raises(ValueError, match=r"present: expected bool \(B,\), got .*\(2, 1\)"):
        fusion_graph(h, h, there | {"a": there["a"][:, None]})
    with pytest.raises(TypeError, match=r"present: expected tensors, got \['list', 'Tensor'\]"):
        fusion_graph(h, h, there | {"a": [True, False]})
    with pytest.raises(TypeError, match=r"exclusive: expected tensors, got \['ndarray', 'ndarray'\]"):
        fusion_graph({m: x.numpy() for m, x in h.items()}, None)
    with pytest.raises(ValueError, match=r"agnostic: expected \(B, d_m\), got \[\(2, 3\), \(2, 4, 1\)\]"):
        fusion_graph(h, {"a": h["a"], "b": torch.randn(2, 4, 1)})


# What absent nodes are marked for.


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("kind", PRESENT)
def test_absent_nodes_kept_are_the_same_graph_with_marks(kind: str, self_loops: bool) -> None:
    names, rows = ["text", "audio", "vision"], PRESENT[kind]
    present = {m: torch.tensor([row[i] for row in rows]) for i, m in enumerate(names)}
    h = representations(len(rows), names)
    compact = fusion_graph(h, h, present, self_loops)
    with Calls() as calls:
        kept = fusion_graph(h, h, present, self_loops, keep_absent=True)
    assert not {"aten.nonzero.default", "aten.index.Tensor", "aten._local_scalar_dense.default", "aten.masked_select.default"} & {
        *calls.names
    }
    assert kept.metadata() == compact.metadata()
    assert kept.validate()
    for name, node in compact.node_items():
        assert kept[name].sample.tolist() == list(range(len(rows)))
        assert torch.equal(kept[name].x[kept[name].present], node.x)
        assert not kept[name].x[~kept[name].present].any()
    for edge_type in compact.edge_types:
        edges, marks = kept[edge_type].edge_index, kept[edge_type].present
        found = [compact[t].sample[ends] for t, ends in zip(edge_type[::2], compact[edge_type].edge_index, strict=True)]
        assert torch.equal(edges[:, marks], torch.stack(found))


def test_junk_of_an_absent_modality_is_cut_off() -> None:
    h = {m: torch.full((2, D_H), torch.nan).index_fill(0, torch.tensor([0]), 1.0).requires_grad_() for m in "ab"}
    there = {m: torch.tensor([True, False]) for m in "ab"}
    for keep_absent in (False, True):
        graph = fusion_graph(h, None, there, keep_absent=keep_absent)
        total = sum(x.square().sum() for x in graph.x_dict.values())
        gradients = torch.autograd.grad(total, list(h.values()))
        assert all(g.tolist() == [[2.0] * D_H, [0.0] * D_H] for g in gradients)


def test_without_marks_there_is_nothing_to_keep() -> None:
    h = representations(2, ["a", "b"])
    assert not fusion_graph(h, h, keep_absent=True).collect("present", allow_empty=True)


# Samples, whatever becomes of the graph.


def several() -> tuple[list[FusionGraph], dict[str, list[int]]]:
    """Three graphs of 2, 3 and 1 samples, the last samples of the first one without "a"; and each type's samples among the 6."""
    there = [torch.tensor(v) for v in ([[True, False], [False, False]], [[True] * 3, [False, True, False]], [[False], [True]])]
    graphs = []
    for a, b in there:
        h = representations(len(a), ["a", "b"])
        graphs.append(fusion_graph(h, h, {"a": a, "b": b}))
    return graphs, {"a": [0, 2, 3, 4], "b": [3, 5]}


def check(graph: FusionGraph, samples: dict[str, list[int]]) -> None:
    assert isinstance(graph, FusionGraph)
    assert graph.num_samples == 6
    assert {name: node.sample.tolist() for name, node in graph.node_items()} == {f"{m}_{s}": v for s in SPACES for m, v in samples.items()}


def test_samples_survive_collating() -> None:
    graphs, samples = several()
    batch = Batch.from_data_list(graphs)
    check(batch, samples)
    assert batch["a_exclusive"].batch.tolist() == [0, 1, 1, 1]  # PyG's: the graph, not the sample
    check(next(iter(DataLoader(graphs, batch_size=3))), samples)
    for graph, again in zip(graphs, batch.to_data_list(), strict=True):
        assert again.num_samples == graph.num_samples
        for name, sample in graph.sample_dict.items():
            assert torch.equal(again[name].sample, sample)


def test_samples_survive_what_pyg_does_to_a_graph() -> None:
    graphs, samples = several()
    batch = Batch.from_data_list(graphs)
    for changed in (batch.to("cpu"), batch.clone(), batch.pin_memory() if torch.cuda.is_available() else batch.contiguous()):
        check(changed, samples)
    for transform in (transforms.ToUndirected, transforms.NormalizeFeatures, transforms.AddSelfLoops, transforms.RemoveDuplicatedEdges):
        check(transform()(copy.copy(batch)), samples)
    assert batch.clone().to("meta")["a_exclusive"].sample.device.type == "meta"
    whole = batch.to_homogeneous()
    assert whole.sample.tolist() == [*samples["a"], *samples["b"]] * 2
    assert int(whole.samples.sum()) == 6
    assert torch.equal(whole.sample[whole.edge_index[0]], whole.sample[whole.edge_index[1]])
    check(pickle.loads(pickle.dumps(batch)), samples)
    assert batch.edge_type_subgraph(batch.edge_types[:1]).num_samples == 6


def test_what_is_absent_is_left_out_on_a_cpu_unless_one_asks() -> None:
    h = representations(2, ["text", "audio"])
    present = {"text": torch.tensor([True, True]), "audio": torch.tensor([True, False])}
    undecided, left_out = (fusion_graph(h, h, present, keep_absent=keep) for keep in (None, False))
    assert undecided["audio_agnostic"].num_nodes == left_out["audio_agnostic"].num_nodes == 1
    on_device = fusion_graph({m: v.to("meta") for m, v in h.items()}, None, {m: v.to("meta") for m, v in present.items()}, keep_absent=None)
    assert on_device["audio_exclusive"].num_nodes == 2
    assert on_device["audio_exclusive"].present.device.type == "meta"


@pytest.mark.parametrize("key", [slice(0, 2), 0, [0, 1], torch.tensor([0, 1]), None], ids=str)
def test_an_index_of_samples_is_refused_and_adds_no_type(key: object) -> None:
    graph = fusion_graph(representations(3, ["a", "b"]), None)
    types = list(graph.node_types), list(graph.edge_types)
    with pytest.raises(TypeError, match=r"graph: expected the name of a node type or an edge type \(source, relation, target\), got "):
        graph[key]
    assert (graph.node_types, graph.edge_types) == types
    assert len(Batch.from_data_list([graph] * 3)[:2]) == 2  # of collated graphs one may take some
    assert "edge_index" in graph["a_exclusive", "b_exclusive"]
