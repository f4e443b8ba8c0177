"""What users of PyG do with a convolution: each use is run with PyG's layers that allow it, and with `GraphFusionConv`."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
import torch_geometric.transforms as T
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import RandomNodeLoader
from torch_geometric.nn.models.basic_gnn import BasicGNN
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from .convolutions import ALL, ATTENTION, EDGES, C, Make, N, features, near, use

# Widths, bipartite graphs, sizes.


@use("GAT", "GATv2", "SAGE")
def test_lazy_channels(make: Make) -> None:
    conv = make(-1, 3)
    assert conv(features(), EDGES).shape == (N, 3)
    conv.reset_parameters()
    assert sum(p.numel() for p in conv.parameters()) > 0
    file = io.BytesIO()
    torch.save(conv.state_dict(), file)
    file.seek(0)
    fresh = make(-1, 3)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = features()
    near(fresh(x, EDGES), conv(x, EDGES))


@use(*ALL)
def test_lazy_pair(make: Make) -> None:
    assert make((-1, -1), 3)((features(N, 5), features(4, 2)), EDGES[:, :2]).shape == (4, 3)


@use(*ALL)
def test_pair_of_widths(make: Make) -> None:
    conv, pair = make((5, 2), 3), (features(N, 5), features(N, 2))
    near(conv(list(pair), EDGES), conv(pair, EDGES))


@use("GAT", "SAGE")
def test_sources_alone(make: Make) -> None:
    conv, x = make(C, 3), features()
    assert conv((x, None), EDGES[:, :3], size=(N, 4)).shape == (4, 3)
    with pytest.raises(ValueError, match="size"):
        conv((x, None), EDGES[:, :3], size=(N + 1, 4))


@use(*ALL)
def test_flow(make: Make) -> None:
    conv = make(C, 3, flow="target_to_source")
    x = features()
    out = conv(x, EDGES)
    conv.flow = "source_to_target"
    near(out, conv(x, EDGES.flip(0)))


@use(*ALL)
def test_bias(make: Make) -> None:
    assert make(C, 3, bias=True)(features(), EDGES).shape == (N, 3)
    assert not any("bias" in n and "score" not in n for n, _ in make(C, 3, bias=False).named_parameters() if n.startswith("bias"))


@use(*ATTENTION)
def test_heads_concat_and_weights(make: Make) -> None:
    x = features()
    for heads, concat, width in ((2, True, 6), (2, False, 3)):
        out, (edges, weights) = make(C, 3, heads=heads, concat=concat)(x, EDGES, return_attention_weights=True)
        assert (out.shape, edges.shape, weights.shape) == ((N, width), EDGES.shape, (EDGES.size(1), heads))


@use(*ATTENTION)
def test_dropout(make: Make) -> None:
    conv, x = make(C, 3, dropout=0.5), features()
    assert not torch.equal(conv(x, EDGES), conv(x, EDGES))
    conv.eval()
    assert torch.equal(conv(x, EDGES), conv(x, EDGES))


@use(*ATTENTION)
def test_edge_features(make: Make) -> None:
    conv, x, e = make(C, 3, edge_dim=2), features(), torch.randn(EDGES.size(1), 2)
    assert not torch.allclose(conv(x, EDGES, e), conv(x, EDGES, edge_attr=-e))
    order = torch.randperm(EDGES.size(1))
    near(conv(x, EDGES[:, order], e[order]), conv(x, EDGES, e))


# Forms of edges.


@use(*ALL)
def test_sparse_adjacency(make: Make) -> None:
    conv, x = make(C, 3), features()
    for adjacency in (to_torch_coo_tensor(EDGES.flip(0), size=(N, N)), to_torch_csr_tensor(EDGES.flip(0), size=(N, N))):
        near(conv(x, adjacency), conv(x, EDGES))
    pair = (x, features(4))
    near(conv(pair, to_torch_csr_tensor(EDGES[:, :3].flip(0), size=(4, N))), conv(pair, EDGES[:, :3]))


@use(*ALL)
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo], ids=["CSR", "COO"])
def test_adj_t_of_pyg(make: Make, layout: torch.layout) -> None:
    data = T.ToSparseTensor(layout=layout)(Data(features(), EDGES))
    assert "edge_index" not in data
    conv = make(C, 3)
    near(conv(data.x, data.adj_t), conv(data.x, EDGES))


@use()  # GATConv takes the values of such a matrix for features of edges
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo], ids=["CSR", "COO"])
def test_values_of_adj_t_are_weights(make: Make, layout: torch.layout) -> None:
    data = T.ToSparseTensor(attr="edge_weight", layout=layout)(Data(features(), EDGES, edge_weight=torch.rand(EDGES.size(1))))
    conv, weight = make(C, 3), data.adj_t.to_dense()[EDGES[1], EDGES[0]]
    assert weight.unique().numel() == EDGES.size(1)
    near(conv(data.x, data.adj_t), conv(data.x, EDGES, edge_weight=weight))


@use("GAT", "GATv2")
def test_weights_of_a_sparse_adjacency(make: Make) -> None:
    conv, x = make(C, 3), features()
    order = (EDGES[1] * N + EDGES[0]).argsort()
    _, (_, expected) = conv(x, EDGES[:, order], return_attention_weights=True)
    _, (adjacency, weights) = conv(x, to_torch_csr_tensor(EDGES.flip(0), size=(N, N)), return_attention_weights=True)
    near(weights, expected)
    near(adjacency.values().view(-1, 1), expected)


@use(*ALL)
def test_edge_index_class(make: Make) -> None:
    conv, x = make(C, 3), features()
    plain = EdgeIndex(EDGES, sparse_size=(N, N))
    for edges in (plain, plain.sort_by("col").values, plain.sort_by("row").values):
        near(conv(x, edges), conv(x, EDGES))


@use(*ALL)
def test_no_edges(make: Make) -> None:
    assert make(C, 3)(features(), EDGES[:, :0]).shape == (N, 3)


# In larger models.


def hetero() -> HeteroData:
    data = HeteroData()
    data["a"].x, data["b"].x = features(4, 5), features(3, 2)
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1, 3], [0, 2, 1]])
    data["b", "to", "a"].edge_index = torch.tensor([[0, 1, 2], [0, 3, 1]])
    return data


class Homogeneous(nn.Module):
    def __init__(self, make: Make, channels: Any = (-1, -1)) -> None:
        super().__init__()
        self.first, self.second = make(channels, 8), make(channels if isinstance(channels, tuple) else 8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


@use(*ALL)
def test_lazy_to_hetero(make: Make) -> None:
    data = hetero()
    out = pyg.to_hetero(Homogeneous(make), data.metadata())(data.x_dict, data.edge_index_dict)
    assert {m: v.shape for m, v in out.items()} == {"a": (4, 3), "b": (3, 3)}


@use("SAGE")
def test_to_hetero_with_bases(make: Make) -> None:
    data = hetero()
    model = pyg.to_hetero_with_bases(Homogeneous(make, 8), data.metadata(), num_bases=2, in_channels={"x": 8})
    out = model(data.x_dict, data.edge_index_dict)
    assert {m: v.shape for m, v in out.items()} == {"a": (4, 3), "b": (3, 3)}
    out["a"].sum().backward()
    assert all(conv.edge_type_weight.grad is not None for conv in model.first.convs)


@use()  # GATConv's messages are no matrices
@pytest.mark.parametrize("concat", [True, False])
def test_to_hetero_with_bases_of_heads(make: Make, concat: bool) -> None:
    """Messages of all heads are scaled by the weight that a base has for their type of edge."""
    data = hetero()

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = make(8, 3, heads=2, concat=concat)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index)

    model = pyg.to_hetero_with_bases(One(), data.metadata(), num_bases=2, in_channels={"x": 8})

    def out(*weights: tuple[float, float]) -> Any:
        with torch.no_grad():
            for base, weight in zip(model.conv.convs, weights, strict=True):
                base.edge_type_weight.copy_(torch.tensor([weight]))
            return model(data.x_dict, data.edge_index_dict)

    out((1, 1), (1, 1))  # makes the lazy maps
    first, second, both = out((1, 1), (0, 0)), out((0, 0), (1, 1)), out((3, 0), (0.5, 2))  # of edges to b, and to a
    assert {m: v.shape for m, v in both.items()} == {"a": (4, 6 if concat else 3), "b": (3, 6 if concat else 3)}
    near(both["b"], 3 * first["b"] + 0.5 * second["b"])
    near(both["a"], 2 * second["a"])
    assert all(v.any() for v in both.values())


@use(*ALL)
def test_lazy_hetero_conv(make: Make) -> None:
    data = hetero()
    conv = pyg.HeteroConv({t: make((-1, -1), 3) for t in data.edge_types})
    out = conv(data.x_dict, data.edge_index_dict)
    assert {m: v.shape for m, v in out.items()} == {"a": (4, 3), "b": (3, 3)}


@use(*ALL)
def test_basic_gnn(make: Make) -> None:
    class Own(BasicGNN):
        supports_edge_weight, supports_edge_attr = False, False

        def init_conv(self, in_channels: Any, out_channels: int, **kwargs: Any) -> nn.Module:
            return make(in_channels, out_channels, **kwargs)

    model = Own(-1, 8, num_layers=2, out_channels=3, jk="cat", norm="layer_norm")
    assert model(features(), EDGES).shape == (N, 3)
    model.reset_parameters()


@use(*ALL)
def test_sequential_and_wrappers(make: Make) -> None:
    x = features()
    model = pyg.Sequential("x, edge_index", [(make(C, 8), "x, edge_index -> x"), nn.ReLU(inplace=True), (make(8, C), "x, edge_index -> x")])
    assert model(x, EDGES).shape == (N, C)
    assert pyg.DeepGCNLayer(make(C, C), nn.LayerNorm(C), nn.ReLU(inplace=True))(x, EDGES).shape == (N, C)
    assert pyg.GPSConv(C, make(C, C), heads=2)(x, EDGES).shape == (N, C)
    pooled, edges, *_ = pyg.SAGPooling(C, ratio=0.5, GNN=make)(x, EDGES)
    assert pooled.shape == (N // 2, C)
    assert edges.max() < N // 2


@use(*ALL)
def test_parts_of_a_graph(make: Make) -> None:
    """A sampled part computes what a graph of its edges alone does."""
    conv, data = make(C, 3), Data(features(), EDGES, number=torch.arange(N))
    parts = list(RandomNodeLoader(data, num_parts=2))
    assert sum(part.num_nodes for part in parts) == N
    for part in parts:
        near(conv(part.x, part.edge_index), conv(data.x, part.number[part.edge_index])[part.number])


# What torch does with a layer.


@use(*ALL)
def test_changed_in_place(make: Make) -> None:
    x = features().requires_grad_()
    for options in ({"bias": False}, {"bias": True}):
        conv = make(C, C, **options)
        nn.ReLU(inplace=True)(conv(x, EDGES)).sum().backward()
        out = conv(x, EDGES)
        out += x
        out.sum().backward()
    pair = make((C, C), C, bias=False)((x, x[:3]), EDGES[:, :2])
    pair += 1
    pair.sum().backward()


@use(*ALL)
def test_second_derivatives(make: Make) -> None:
    conv, x = make(C, 3).double(), features().double()

    def energy(x: Tensor) -> Tensor:
        return conv(x, EDGES).pow(3).sum()

    assert torch.autograd.gradgradcheck(energy, x.requires_grad_(), fast_mode=True)
    hessian = torch.autograd.functional.hessian(energy, x.detach())
    assert hessian.any()
    near(torch.func.hessian(energy)(x.detach()), hessian)
    v = torch.randn_like(x)
    near(torch.autograd.functional.vhp(energy, x.detach(), v)[1], torch.einsum("ab,abcd->cd", v, hessian))


@use(*ALL)
def test_transforms_of_torch_func(make: Make) -> None:
    conv, x, tangent = make(C, 3).double(), features().double(), features().double()

    def energy(x: Tensor) -> Tensor:
        return conv(x, EDGES).square().sum()

    expected = torch.autograd.functional.jacobian(energy, x)
    near(torch.func.grad(energy)(x), expected)
    near(torch.func.jvp(energy, (x,), (tangent,))[1], (expected * tangent).sum())
    both = torch.stack([x, tangent])
    near(torch.func.vmap(energy)(both), torch.stack([energy(x), energy(tangent)]))
    near(torch.func.vmap(torch.func.grad(energy))(both)[0], expected)
    stacked, _ = torch.func.stack_module_state([conv, make(C, 3).double()])
    ensemble = torch.func.vmap(lambda p: torch.func.functional_call(conv, p, (x, EDGES)))(stacked)
    near(ensemble[0], conv(x, EDGES))


@use("GAT", "SAGE")
def test_wrapped_and_hooked_linears(make: Make) -> None:
    class LoRA(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 1

    conv, x = make(C, 3), features()
    name = "lin" if hasattr(conv, "lin") else "lin_l"
    expected, seen = conv(x, EDGES), []
    getattr(conv, name).register_forward_hook(lambda *_: seen.append(1))
    near(conv(x, EDGES), expected)
    assert seen
    setattr(conv, name, LoRA(getattr(conv, name)))
    assert not torch.allclose(conv(x, EDGES), expected)


@use(*ALL)
def test_checkpointing(make: Make) -> None:
    conv, x = make(C, 3), features()
    found, wanted = (
        torch.autograd.grad(call(x, EDGES).square().sum(), list(conv.parameters()), allow_unused=True)
        for call in (lambda *given: checkpoint(conv, *given, use_reentrant=False), conv)
    )
    near(found, wanted)


@use(*ALL)
def test_deterministic_algorithms(make: Make) -> None:
    conv, x = make(C, 3), features()
    expected = conv(x, EDGES)
    torch.use_deterministic_algorithms(True)
    try:
        out = conv(x, EDGES)
        out.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    near(out, expected)


@use(*ALL)
def test_copies(make: Make) -> None:
    conv, x = make(C, 3), features()
    near(copy.deepcopy(conv)(x, EDGES), conv(x, EDGES))
    near(pickle.loads(pickle.dumps(conv))(x, EDGES), conv(x, EDGES))
    lazy = copy.deepcopy(make(-1, 3))
    assert lazy(x, EDGES).shape == (N, 3)


@use("GAT")
def test_compiled_and_exported(make: Make) -> None:
    conv, x = make(C, 3), features()
    near(torch.compile(conv, fullgraph=True, backend="aot_eager")(x, EDGES), conv(x, EDGES))
    edges = torch.export.Dim("edges", min=2)
    program = torch.export.export(conv, (x, EDGES), dynamic_shapes=({0: torch.export.Dim("nodes")}, {1: edges}))
    near(program.module()(x[:5], EDGES[:, :7]), conv(x[:5], EDGES[:, :7]))


@use("GAT", "SAGE")
def test_compiled_once_for_every_size(make: Make) -> None:
    conv = make(C, 3)
    compiled = torch.compile(conv, dynamic=True, fullgraph=True, backend="aot_eager")
    for nodes, edges in ((N, EDGES), (N + 3, EDGES[:, 1:]), (5, EDGES[:, :4] % 5)):
        x = features(nodes)
        near(compiled(x, edges), conv(x, edges))
