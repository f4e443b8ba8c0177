"""Edges in the classes that PyG and torch have for them: read as lists, and left as they were."""

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from mea_graph.nn import DecoupledGraphFusion, GraphFusionConv, fusion_graph

# In columns, from source to target; the edge 2 -> 1 stands twice.
EDGES = torch.tensor([[0, 2, 1, 3, 2, 4, 0], [1, 1, 0, 3, 1, 3, 2]])


def matrix(values: Tensor) -> Tensor:
    """The transposed adjacency matrix, in which the parallel edges are not summed yet."""
    return torch.sparse_coo_tensor(EDGES.flip(0), values, (5, 5, *values.shape[1:]))


def test_parallel_edges_of_a_matrix_stay_in_it() -> None:
    conv, x = GraphFusionConv(4, 3, heads=2), torch.randn(5, 4)
    adjacency = matrix(torch.rand(7) + 0.5)
    dense = adjacency.clone().to_dense()
    out, (found, alpha) = conv(x, adjacency, return_attention_weights=True)
    assert not adjacency.is_coalesced()  # PyG's own conversion says that it were, and one of the parallel edges is lost
    torch.testing.assert_close(adjacency.to_dense(), dense)
    torch.testing.assert_close(out, conv(x, EDGES, edge_weight=adjacency._values()))
    assert alpha.shape == (6, 2)
    torch.testing.assert_close(found.to_dense().sum(1)[:4], torch.ones(4, 2))


def test_the_values_of_a_matrix_get_their_gradient() -> None:
    conv, x = GraphFusionConv(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    weight = (torch.rand(7, dtype=torch.float64) + 0.5).requires_grad_()
    (expected,) = torch.autograd.grad(conv(x, EDGES, edge_weight=weight).sin().sum(), weight)
    for adjacency in (matrix(weight), matrix(weight).coalesce()):
        (found,) = torch.autograd.grad(conv(x, adjacency).sin().sum(), weight)
        torch.testing.assert_close(found, expected)


def test_features_of_parallel_edges_stay_apart() -> None:
    conv, x, features = GraphFusionConv(4, 3, edge_dim=2), torch.randn(5, 4), torch.randn(7, 2)
    torch.testing.assert_close(conv(x, matrix(features)), conv(x, EDGES, edge_attr=features))


def test_the_fusion_takes_edge_index_of_pyg() -> None:
    h = {m: torch.randn(3, 4) for m in ("text", "audio")}
    layer, graph = DecoupledGraphFusion(4), fusion_graph(h, h)
    own = {t: EdgeIndex(edges, sparse_size=(3, 3), sort_order="row") for t, edges in graph.edge_index_dict.items()}
    expected = layer(graph.x_dict, graph.edge_index_dict, graph.sample_dict).x
    for space, x in layer(graph.x_dict, own, graph.sample_dict).x.items():
        torch.testing.assert_close(x, expected[space])
