"""What users of PyG do with a convolution: each use is run with PyG's layers that allow it, and with `GraphFusionConv`."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch_geometric
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.explain import AttentionExplainer, CaptumExplainer, Explainer, GNNExplainer, PGExplainer, unfaithfulness
from torch_geometric.explain.algorithm import GraphMaskExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn.models.basic_gnn import BasicGNN
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from mea_graph.nn import GraphFusionConv

Make = Any  # a partial of a layer's class
LAYERS: dict[str, Make] = {
    "ours": partial(GraphFusionConv, activation="none"),
    "GAT": partial(pyg.GATConv, add_self_loops=False),
    "GATv2": partial(pyg.GATv2Conv, add_self_loops=False),
    "Transformer": partial(pyg.TransformerConv, root_weight=False),
    "SAGE": partial(pyg.SAGEConv, root_weight=False),
}
ATTENTION = ["GAT", "GATv2", "Transformer"]
N, C = 6, 4
EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 5, 2], [1, 0, 2, 1, 3, 2, 4, 3, 0, 4, 1, 5]])
USES: dict[str, tuple[Callable[[Make], None], list[str]]] = {}


def use(*rivals: str) -> Callable[[Callable[[Make], None]], Callable[[Make], None]]:
    """A use, and PyG's layers that allow it: each of them must, and so must ours."""

    def register(f: Callable[[Make], None]) -> Callable[[Make], None]:
        USES[f.__name__] = (f, list(rivals))
        return f

    return register


def raises(f: Callable[[Make], None], make: Make, expected: Exception) -> bool:
    """Whether a use fails with the same words. A wrong result never does: it is the fault of the layer that gave it."""
    try:
        f(make)
    except Exception as error:
        return not isinstance(error, AssertionError) and repr(error) == repr(expected)
    return False


def near(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def features(nodes: int = N, channels: int = C) -> Tensor:
    return torch.randn(nodes, channels)


# Widths, bipartite graphs, sizes.


@use("GAT", "GATv2", "SAGE")
def lazy_channels(make: Make) -> None:
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


@use("GAT", "GATv2", "Transformer", "SAGE")
def lazy_pair(make: Make) -> None:
    assert make((-1, -1), 3)((features(N, 5), features(4, 2)), EDGES[:, :2]).shape == (4, 3)


@use("GAT", "GATv2", "Transformer", "SAGE")
def pair_of_widths(make: Make) -> None:
    conv, pair = make((5, 2), 3), (features(N, 5), features(N, 2))
    near(conv(list(pair), EDGES), conv(pair, EDGES))


@use("GAT", "SAGE")
def sources_alone(make: Make) -> None:
    conv, x = make(C, 3), features()
    assert conv((x, None), EDGES[:, :3], size=(N, 4)).shape == (4, 3)
    with pytest.raises(ValueError, match="size"):
        conv((x, None), EDGES[:, :3], size=(N + 1, 4))


@use("GAT", "GATv2", "Transformer", "SAGE")
def flow(make: Make) -> None:
    conv = make(C, 3, flow="target_to_source")
    x = features()
    out = conv(x, EDGES)
    conv.flow = "source_to_target"
    near(out, conv(x, EDGES.flip(0)))


@use("GAT", "GATv2", "Transformer", "SAGE")
def bias(make: Make) -> None:
    assert make(C, 3, bias=True)(features(), EDGES).shape == (N, 3)
    assert not any("bias" in n and "score" not in n for n, _ in make(C, 3, bias=False).named_parameters() if n.startswith("bias"))


@use(*ATTENTION)
def heads_concat_and_weights(make: Make) -> None:
    x = features()
    for heads, concat, width in ((2, True, 6), (2, False, 3)):
        out, (edges, weights) = make(C, 3, heads=heads, concat=concat)(x, EDGES, return_attention_weights=True)
        assert (out.shape, edges.shape, weights.shape) == ((N, width), EDGES.shape, (EDGES.size(1), heads))


@use(*ATTENTION)
def dropout(make: Make) -> None:
    conv, x = make(C, 3, dropout=0.5), features()
    assert not torch.equal(conv(x, EDGES), conv(x, EDGES))
    conv.eval()
    assert torch.equal(conv(x, EDGES), conv(x, EDGES))


@use(*ATTENTION)
def edge_features(make: Make) -> None:
    conv, x, e = make(C, 3, edge_dim=2), features(), torch.randn(EDGES.size(1), 2)
    assert not torch.allclose(conv(x, EDGES, e), conv(x, EDGES, edge_attr=-e))
    order = torch.randperm(EDGES.size(1))
    near(conv(x, EDGES[:, order], e[order]), conv(x, EDGES, e))


# Forms of edges.


@use("GAT", "GATv2", "Transformer", "SAGE")
def sparse_adjacency(make: Make) -> None:
    conv, x = make(C, 3), features()
    for adjacency in (to_torch_coo_tensor(EDGES.flip(0), size=(N, N)), to_torch_csr_tensor(EDGES.flip(0), size=(N, N))):
        near(conv(x, adjacency), conv(x, EDGES))
    pair = (x, features(4))
    near(conv(pair, to_torch_csr_tensor(EDGES[:, :3].flip(0), size=(4, N))), conv(pair, EDGES[:, :3]))


@use("GAT", "GATv2")
def weights_of_a_sparse_adjacency(make: Make) -> None:
    conv, x = make(C, 3), features()
    order = (EDGES[1] * N + EDGES[0]).argsort()
    _, (_, expected) = conv(x, EDGES[:, order], return_attention_weights=True)
    _, (adjacency, weights) = conv(x, to_torch_csr_tensor(EDGES.flip(0), size=(N, N)), return_attention_weights=True)
    near(weights, expected)
    near(adjacency.values().view(-1, 1), expected)


@use("GAT", "GATv2", "Transformer", "SAGE")
def edge_index_class(make: Make) -> None:
    conv, x = make(C, 3), features()
    plain = EdgeIndex(EDGES, sparse_size=(N, N))
    for edges in (plain, plain.sort_by("col").values, plain.sort_by("row").values):
        near(conv(x, edges), conv(x, EDGES))


@use("GAT", "GATv2", "Transformer", "SAGE")
def no_edges(make: Make) -> None:
    assert make(C, 3)(features(), EDGES[:, :0]).shape == (N, 3)


# Hooks, and steps overridden.


@use("GAT", "GATv2", "Transformer")
def every_hook(make: Make) -> None:
    conv, x, fired = make(C, 3), features(), []
    expected = conv(x, EDGES)
    for step in ("propagate", "message", "aggregate", "edge_update"):
        getattr(conv, f"register_{step}_forward_pre_hook")(lambda *_, s=step: fired.append(f"before {s}"))
        getattr(conv, f"register_{step}_forward_hook")(lambda *_, s=step: fired.append(s))
    near(conv(x, EDGES), expected)
    assert len(set(fired)) == 8 or "edge_update" not in fired  # TransformerConv has no such step
    conv.register_message_forward_hook(lambda module, inputs, output: 0 * output)
    near(conv(x, EDGES), conv(x, EDGES[:, :0]))


@use("GAT")
def overridden_message(make: Make) -> None:
    class Own(make.func):  # type: ignore[misc]
        def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
            return 2 * super().message(x_j, alpha)

    Own.__name__ = f"Own{make.func.__name__}"  # PyG keeps what it compiles of a class by its name
    conv, x = Own(C, 3, **make.keywords), features()
    plain = make(C, 3)
    plain.load_state_dict(conv.state_dict())
    near(conv(x, EDGES), 2 * plain(x, EDGES))


@use("GAT", "SAGE")
def message_set_on_the_object(make: Make) -> None:
    conv, x = make(C, 3), features()
    original = conv.message
    conv.message = lambda **kwargs: 0 * original(**kwargs)
    near(conv(x, EDGES), conv(x, EDGES[:, :0]))


# Explainers.


class Network(nn.Module):
    def __init__(self, make: Make) -> None:
        super().__init__()
        self.first, self.second = make(C, 8), make(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).tanh(), edge_index).log_softmax(-1)


def explain(model: nn.Module, algorithm: Any, mask: str | None = None, kind: str = "model", **given: Any) -> tuple[Explainer, Any]:
    config = {"mode": "multiclass_classification", "task_level": "node", "return_type": "log_probs"}
    explainer = Explainer(model, algorithm, explanation_type=kind, node_mask_type=mask, edge_mask_type="object", model_config=config)
    explanation = explainer(given.pop("x", features()), EDGES, **given)
    assert explanation.edge_mask.shape == (EDGES.size(1),)
    assert explanation.edge_mask.isfinite().all()
    assert explanation.edge_mask.unique().numel() > 1
    return explainer, explanation


@use("GAT", "GATv2", "Transformer", "SAGE")
def gnn_explainer(make: Make) -> None:
    explain(Network(make), GNNExplainer(epochs=5), "attributes")


@use(*ATTENTION)
def attention_explainer(make: Make) -> None:
    model, x = Network(make), features()
    _, explanation = explain(model, AttentionExplainer(), x=x)
    weights = model.first(x, EDGES, return_attention_weights=True)[1][1]
    inner = model.first(x, EDGES).tanh()
    near(explanation.edge_mask, torch.maximum(weights, model.second(inner, EDGES, return_attention_weights=True)[1][1]).squeeze(1))


@use("GAT", "GATv2", "Transformer", "SAGE")
def captum_explainer(make: Make) -> None:
    pytest.importorskip("captum", reason="captum is not installed")
    explain(Network(make), CaptumExplainer("Saliency"), "attributes")


@use("GAT", "GATv2")
def graph_mask_explainer(make: Make) -> None:
    explain(Network(make), GraphMaskExplainer(2, epochs=3, log=False), "attributes")


@use("GAT")
def graph_mask_explainer_of_heads(make: Make) -> None:
    explain(Network(partial(make, heads=2, concat=False)), GraphMaskExplainer(2, epochs=3, log=False), "attributes")


@use("GAT", "GATv2", "Transformer", "SAGE")
def pg_explainer(make: Make) -> None:
    model, x = Network(make), features()
    mask = torch.full((EDGES.size(1),), 0.5, requires_grad=True)
    set_masks(model, mask, EDGES, apply_sigmoid=False)
    model(x, EDGES)[:, 0].sum().backward()
    clear_masks(model)
    assert (mask.grad != 0).all()  # it trains on this, not on noise
    algorithm = PGExplainer(epochs=2)
    config = {"mode": "multiclass_classification", "task_level": "node", "return_type": "log_probs"}
    explainer = Explainer(model, algorithm, explanation_type="phenomenon", edge_mask_type="object", model_config=config)
    target = model(x, EDGES).argmax(-1)
    for epoch in range(2):
        algorithm.train(epoch, model, x, EDGES, target=target, index=2)
    assert explainer(x, EDGES, target=target, index=2).edge_mask.shape == (EDGES.size(1),)


@use("GAT", "GATv2", "Transformer", "SAGE")
def unfaithful_masks_are_told(make: Make) -> None:
    model, x = Network(make), 5 * features()
    explainer, explanation = explain(model, GNNExplainer(epochs=1), "attributes", x=x)
    explanation.node_mask = None
    explanation.edge_mask = torch.rand(EDGES.size(1))
    assert unfaithfulness(explainer, explanation) > 1e-4


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


@use("GAT", "GATv2", "Transformer", "SAGE")
def lazy_to_hetero(make: Make) -> None:
    data = hetero()
    out = pyg.to_hetero(Homogeneous(make), data.metadata())(data.x_dict, data.edge_index_dict)
    assert {m: v.shape for m, v in out.items()} == {"a": (4, 3), "b": (3, 3)}


@use("SAGE")
def to_hetero_with_bases(make: Make) -> None:
    data = hetero()
    model = pyg.to_hetero_with_bases(Homogeneous(make, 8), data.metadata(), num_bases=2, in_channels={"x": 8})
    out = model(data.x_dict, data.edge_index_dict)
    assert {m: v.shape for m, v in out.items()} == {"a": (4, 3), "b": (3, 3)}
    out["a"].sum().backward()
    assert all(conv.edge_type_weight.grad is not None for conv in model.first.convs)


@use("GAT", "GATv2", "Transformer", "SAGE")
def lazy_hetero_conv(make: Make) -> None:
    data = hetero()
    conv = pyg.HeteroConv({t: make((-1, -1), 3) for t in data.edge_types})
    out = conv(data.x_dict, data.edge_index_dict)
    assert {m: v.shape for m, v in out.items()} == {"a": (4, 3), "b": (3, 3)}


@use("GAT", "GATv2", "Transformer", "SAGE")
def basic_gnn(make: Make) -> None:
    class Own(BasicGNN):
        supports_edge_weight, supports_edge_attr = False, False

        def init_conv(self, in_channels: Any, out_channels: int, **kwargs: Any) -> nn.Module:
            return make(in_channels, out_channels, **kwargs)

    model = Own(-1, 8, num_layers=2, out_channels=3, jk="cat", norm="layer_norm")
    assert model(features(), EDGES).shape == (N, 3)
    model.reset_parameters()


@use("GAT", "GATv2", "Transformer", "SAGE")
def sequential_and_wrappers(make: Make) -> None:
    x = features()
    model = pyg.Sequential("x, edge_index", [(make(C, 8), "x, edge_index -> x"), nn.ReLU(inplace=True), (make(8, C), "x, edge_index -> x")])
    assert model(x, EDGES).shape == (N, C)
    assert pyg.DeepGCNLayer(make(C, C), nn.LayerNorm(C), nn.ReLU(inplace=True))(x, EDGES).shape == (N, C)
    assert pyg.GPSConv(C, make(C, C), heads=2)(x, EDGES).shape == (N, C)


# What torch does with a layer.


@use("GAT", "GATv2", "Transformer", "SAGE")
def changed_in_place(make: Make) -> None:
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


@use("GAT", "GATv2", "Transformer", "SAGE")
def second_derivatives(make: Make) -> None:
    conv, x = make(C, 3).double(), features().double()

    def energy(x: Tensor) -> Tensor:
        return conv(x, EDGES).pow(3).sum()

    assert torch.autograd.gradgradcheck(energy, x.requires_grad_(), fast_mode=True)
    hessian = torch.autograd.functional.hessian(energy, x.detach())
    assert hessian.any()
    near(torch.func.hessian(energy)(x.detach()), hessian)
    v = torch.randn_like(x)
    near(torch.autograd.functional.vhp(energy, x.detach(), v)[1], torch.einsum("ab,abcd->cd", v, hessian))


@use("GAT", "GATv2", "Transformer", "SAGE")
def transforms_of_torch_func(make: Make) -> None:
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
def wrapped_and_hooked_linears(make: Make) -> None:
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


@use("GAT", "GATv2", "Transformer", "SAGE")
def copies(make: Make) -> None:
    conv, x = make(C, 3), features()
    near(copy.deepcopy(conv)(x, EDGES), conv(x, EDGES))
    near(pickle.loads(pickle.dumps(conv))(x, EDGES), conv(x, EDGES))
    lazy = copy.deepcopy(make(-1, 3))
    assert lazy(x, EDGES).shape == (N, 3)


@use("GAT")
def compiled_and_exported(make: Make) -> None:
    conv, x = make(C, 3), features()
    near(torch.compile(conv, fullgraph=True, backend="aot_eager")(x, EDGES), conv(x, EDGES))
    edges = torch.export.Dim("edges", min=2)
    program = torch.export.export(conv, (x, EDGES), dynamic_shapes=({0: torch.export.Dim("nodes")}, {1: edges}))
    near(program.module()(x[:5], EDGES[:, :7]), conv(x[:5], EDGES[:, :7]))


@pytest.mark.parametrize(("name", "layer"), [(n, layer) for n, (_, rivals) in USES.items() for layer in ["ours", *rivals]])
def test_use(name: str, layer: str) -> None:
    f, rivals = USES[name]
    try:
        f(LAYERS[layer])
    except Exception as error:
        old = torch_geometric.__version__.startswith("2.6.")  # its `to_hetero` reads names of torch.fx that torch no longer has
        if old and all(raises(f, LAYERS[rival], error) for rival in rivals):
            pytest.skip(f"nor can any layer of PyG 2.6 with this torch: {error!r}")
        raise
