"""The fusion graph of section 7: which nodes and edges each sample has (R7)."""

import itertools

import pytest
import torch
from torch import Tensor

from mea_graph.nn import fusion_graph

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
            assert node.batch.tolist() == present[m].nonzero().flatten().tolist()
            assert torch.equal(node.x, h[space][m][present[m]])
        edges: list[set[tuple[int, int]]] = [set() for _ in there]
        count = 0
        for (i, s), (j, t) in itertools.product(enumerate(names), repeat=2):
            edge_type = (f"{s}_{space}", "to", f"{t}_{space}")
            if edge_type in graph.edge_types:
                source, target = graph[edge_type].edge_index
                samples = graph[edge_type[0]].batch[source]
                assert torch.equal(samples, graph[edge_type[2]].batch[target])
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
    with pytest.raises(ValueError, match=r"agnostic: expected \(B, d_h\) with one d_h, got \[\(2, 3\), \(2, 4\)\]"):
        fusion_graph(h, {"a": h["a"], "b": torch.randn(2, 4)})
