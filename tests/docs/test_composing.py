"""What docs/composing.md says of the layers inside other models."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.data import Batch, HeteroData
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.nn import GATConv, HANConv, HeteroConv, HGTConv, SAGEConv

from mea_graph.nn import (
    MEA,
    ExclusiveEncoder,
    GraphFusionConv,
    HierarchicalCrossModalAttention,
    ModalityReinforcementUnit,
    PredictiveSelfAttention,
    UnimodalExtractor,
)
from mea_graph.ops import IntervalEdges, Pointers

PAGE = Path(__file__).parents[2] / "docs" / "composing.md"
RATES = {"acc": 0.1, "eda": 0.25, "hr": 1.0, "bvp": 0.07}  # seconds from step to step
STEPS = {"acc": 40, "eda": 16, "hr": 4, "bvp": 60}


def sample(lengths: dict[str, int]) -> HeteroData:
    data = HeteroData()
    for m, n in lengths.items():
        data[m].x, data[m].time = torch.randn(n, 2), torch.arange(n) * RATES[m]
    return data


@pytest.fixture
def model() -> MEA:
    torch.manual_seed(0)
    return MEA(dict.fromkeys(RATES, 2), 1, channels=8, hidden_channels=8, heads=2, exclusive={"num_layers": 2}).eval()


@pytest.fixture
def batch() -> Batch:
    return Batch.from_data_list([sample(STEPS), sample(STEPS | {"eda": 0}), sample(STEPS | {"hr": 9})])


def test_graphs_of_embed_survive_collating(model: MEA, batch: Batch) -> None:
    graphs = [model.embed(batch), model.embed(Batch.from_data_list([sample(STEPS)]))]
    expected = [model.fuse(graph).prediction for graph in graphs]
    both = Batch.from_data_list(graphs)
    torch.testing.assert_close(model.fuse(both).prediction, torch.cat(expected))
    edge_type = ("eda", "fine", "hr")
    edges = [graph.interval_edges(edge_type).num_edges for graph in graphs]
    assert both.interval_edges(edge_type).num_edges == sum(edges) > 0
    for graph, prediction in zip(both.to_data_list(), expected, strict=True):
        torch.testing.assert_close(model.fuse(graph).prediction, prediction)


def test_layers_of_pyg_run_over_the_graph_of_embed(model: MEA, batch: Batch) -> None:
    graph = model.embed(batch).expand()
    passing = HeteroConv(
        {t: GATConv(8, 5, add_self_loops=False) if t[1] == "to" else SAGEConv(8, 5) for t in graph.edge_types}, aggr="mean"
    )
    for conv in (passing, HGTConv(8, 5, graph.metadata()), HANConv(8, 5, graph.metadata())):
        out = conv(graph.x_dict, graph.edge_index_dict)
        assert {t: x.shape for t, x in out.items()} == {t: (graph[t].num_nodes, 5) for t in graph.node_types}
        sum(x.sum() for x in out.values()).backward(retain_graph=True)
        assert model.extractors["acc"].conv.weight.grad.any()
        model.zero_grad()


def test_time_windows_of_four_sensors(model: MEA, batch: Batch) -> None:
    """A window as wide as the recording changes nothing; a narrow one hears what is near, at rates that differ."""
    pointers = {m: Pointers.from_ptr(batch[m].ptr) for m in RATES}

    def edges(seconds: float) -> dict[tuple[str, str], IntervalEdges]:
        times = {(s, t): (batch[s].time, batch[t].time) for s in RATES for t in RATES}
        return {
            (s, t): IntervalEdges.window(pointers[s], pointers[t], seconds=seconds, source_time=a, target_time=b)
            for (s, t), (a, b) in times.items()
        }

    whole = model(batch).prediction
    torch.testing.assert_close(model(batch, edges=edges(100.0)).prediction, whole)
    near = edges(0.5)
    assert not torch.allclose(model(batch, edges=near).prediction, whole)
    graph = model.embed(batch, edges=near)
    source, target = graph.interval_edges(("acc", "fine", "hr")).edge_index()
    assert ((graph["acc"].time[source] - graph["hr"].time[target]).abs() <= 0.5).all()
    assert (graph["acc"].sample[source] == graph["hr"].sample[target]).all()


class LowRank(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.a, self.b = base, nn.Linear(base.in_features, 1, bias=False), nn.Linear(1, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


def test_low_rank_wrappers_reach_the_whole_model(model: MEA, batch: Batch) -> None:
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not isinstance(parent, LowRank):
                setattr(parent, name, LowRank(child))
    model(batch).prediction.sum().backward()
    wrappers = {name: part for name, part in model.named_modules() if isinstance(part, LowRank) and not name.startswith("discriminator")}
    assert len(wrappers) > 50
    assert not [name for name, part in wrappers.items() if part.a.weight.grad is None or not part.b.weight.grad.any()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamic_quantisation_stays_near(model: MEA, batch: Batch) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    exact, near = model(batch).prediction, quantised(batch).prediction
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0, atol=0.05)


def test_gradients_of_a_sample_of_the_whole_model(model: MEA) -> None:
    one = Batch.from_data_list([sample(STEPS)])
    parameters = dict(model.named_parameters())
    found = torch.func.grad(lambda p: torch.func.functional_call(model, p, (one,)).prediction.sum())(parameters)
    model(one).prediction.sum().backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(wanted) > 100
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-6)


RECURRENT = {
    "UnimodalExtractor": lambda: UnimodalExtractor(2, 4),
    "ExclusiveEncoder": lambda: ExclusiveEncoder(2, 3, pooling="gru"),
    "MEA": lambda: MEA({"a": 2, "b": 2}, 1, channels=4, hidden_channels=4, heads=2),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_vmap_reaches_through_recurrent_layers(name: str) -> None:
    """Over samples, their gradients, and an ensemble."""
    torch.manual_seed(0)
    layers = [RECURRENT[name]().double().eval() for _ in range(2)]
    x = torch.randn(3, 5, 2, dtype=torch.float64)

    def call(state: Any, x: Tensor) -> Tensor:
        given = {"a": x, "b": x[:, :3]} if name == "MEA" else x
        out = torch.func.functional_call(layers[0], state, (given,))
        return out.prediction if name == "MEA" else out

    states = [dict(layer.state_dict()) for layer in layers]
    expected = torch.stack([call(state, x) for state in states])
    samples = torch.func.vmap(lambda x: call(states[0], x.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(samples, expected[0], rtol=1e-10, atol=1e-12)
    ensemble = torch.func.vmap(call, in_dims=(0, None))(torch.func.stack_module_state(layers), x)
    torch.testing.assert_close(ensemble, expected, rtol=1e-10, atol=1e-12)
    own = {n: p.detach() for n, p in layers[0].named_parameters()}
    each = torch.func.vmap(torch.func.grad(lambda p, x: call(p, x.unsqueeze(0)).sin().sum()), in_dims=(None, 0))(own, x)
    used = {n: p for n, p in layers[0].named_parameters() if not n.startswith("discriminator")}
    wanted = torch.autograd.grad(call(dict(layers[0].named_parameters()), x).sin().sum(), list(used.values()))
    torch.testing.assert_close({n: each[n].sum(0) for n in used}, dict(zip(used, wanted, strict=True)), rtol=1e-9, atol=1e-11)


def test_sources_are_named() -> None:
    x = torch.randn(2, 5, 8)
    with pytest.raises(TypeError, match="source"):
        ModalityReinforcementUnit(8, 2)(x, x)


EDGES = torch.tensor([[0, 1, 2, 3, 2, 3], [1, 2, 3, 0, 0, 1]])
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "GraphFusionConv": (lambda: GraphFusionConv(8, 4, heads=2), lambda module, x: module(x[0], EDGES)),
    "PredictiveSelfAttention": (lambda: PredictiveSelfAttention(8, 2), lambda module, x: module(x)[0]),
    "PredictiveSelfAttention without prediction": (lambda: PredictiveSelfAttention(8, 2, prediction=False), lambda module, x: module(x)[0]),
    "ModalityReinforcementUnit": (lambda: ModalityReinforcementUnit(8, 2), lambda module, x: module(x, source=x[:, :3])),
    "HierarchicalCrossModalAttention": (
        lambda: HierarchicalCrossModalAttention(8, ["a", "b"], 2),
        lambda module, x: torch.cat(list(module({"a": x, "b": x[:, :3]}).x.values()), 1),
    ),
}


class Called(nn.Module):
    """A layer with the call that its tensor goes through."""

    def __init__(self, name: str) -> None:
        super().__init__()
        build, self.call = LAYERS[name]
        self.layer = build().double()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


@pytest.mark.parametrize("name", LAYERS)
def test_ensembles_and_gradients_of_each_sample_of_a_layer(name: str) -> None:
    layers = [Called(name) for _ in range(2)]
    x = torch.randn(3, 2, 5, 8, dtype=torch.float64)  # three samples, of a batch or a graph each

    def call(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layers[0], p, (x,))

    stacked, _ = torch.func.stack_module_state(layers)
    torch.testing.assert_close(torch.func.vmap(call, in_dims=(0, None))(stacked, x[0]), torch.stack([layer(x[0]) for layer in layers]))
    own = {part: p.detach() for part, p in layers[0].named_parameters()}
    torch.testing.assert_close(torch.func.vmap(call, in_dims=(None, 0))(own, x), torch.stack([layers[0](one) for one in x]))
    each = torch.func.vmap(torch.func.grad(lambda p, x: call(p, x).sin().sum()), in_dims=(None, 0))(own, x)
    for i, one in enumerate(x):
        wanted = torch.autograd.grad(layers[0](one).sin().sum(), list(layers[0].parameters()))
        torch.testing.assert_close(
            {part: grad[i] for part, grad in each.items()}, dict(zip(own, wanted, strict=True)), rtol=1e-9, atol=1e-11
        )


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_forward_and_of_second_order(name: str) -> None:
    layer, (x, direction) = Called(name), torch.randn(2, 2, 5, 8, dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return layer(x).sin().sum()

    gradient = torch.autograd.functional.jacobian(energy, x)
    assert gradient.any()
    torch.testing.assert_close(torch.func.jvp(energy, (x,), (direction,))[1], (gradient * direction).sum())
    step = 1e-5
    ahead, back = (torch.autograd.functional.jacobian(energy, x + sign * step * direction) for sign in (1, -1))
    wanted = (ahead - back) / (2 * step)
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(energy), (x,), (direction,))[1], wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.autograd.functional.vhp(energy, x, direction)[1], wanted, rtol=1e-5, atol=1e-7)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_alone_trains_under_ddp(one_process: None, name: str) -> None:
    """Without `find_unused_parameters`: one process is enough for the second step to find a parameter without gradient."""
    build, call = LAYERS[name]
    layer = build()
    model = DistributedDataParallel(layer)
    for _ in range(3):
        call(model, torch.randn(2, 5, 8)).sin().sum().backward()
    for part, p in layer.named_parameters():
        assert p.grad is not None, part
        assert p.grad.any() != part.startswith("predictor"), part


@pytest.mark.parametrize("whole", [False, True], ids=["each linear layer", "whole"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_linear_layer_and_a_whole_layer_may_be_sharded(one_process: None, name: str, whole: bool) -> None:
    build, call = LAYERS[name]
    layer, mesh = build(), init_device_mesh("cpu", (1,))
    sharded, x = copy.deepcopy(layer), torch.randn(2, 5, 8)
    parts = [sharded] if whole else [m for m in sharded.modules() if type(m) is nn.Linear]
    for part in parts:
        fully_shard(part, mesh=mesh)
    out, expected = call(sharded, x), call(layer, x)
    torch.testing.assert_close(out, expected)
    out.sin().sum().backward()
    expected.sin().sum().backward()
    assert parts
    assert all(isinstance(p.grad, DTensor) for part in parts for p in part.parameters())
    for p, wanted in zip(sharded.parameters(), layer.parameters(), strict=True):
        assert wanted.grad is not None
        torch.testing.assert_close(p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad, wanted.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_every_quantised_linear_layer_is_used(name: str) -> None:
    build, call = LAYERS[name]
    layer, x, called = build().eval(), torch.randn(2, 5, 8), set()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(layer), {nn.Linear}, dtype=torch.qint8)
    linears = [m for m in quantised.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    for linear in linears:
        linear.register_forward_hook(lambda module, *_: called.add(module))
    near, exact = call(quantised, x), call(layer, x)
    assert called == set(linears) != set()
    assert not any(type(m) is nn.Linear for m in quantised.modules())
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0, atol=0.05)


INT8 = ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]


def quantised_by_torchao(module: nn.Module, kind: str, **options: Any) -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization")
    module = copy.deepcopy(module)
    torchao.quantize_(module, getattr(torchao, kind)(set_inductor_config=False), **options)  # else it changes torch for all that follows
    return module


def linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("name", [*LAYERS, "MEA"])
def test_weights_in_int8_of_torchao_are_those_computed_with(name: str, model: MEA, batch: Batch) -> None:
    layer = model if name == "MEA" else LAYERS[name][0]().eval()
    x = torch.randn(2, 5, 8)

    def call(module: Any) -> Tensor:
        with torch.no_grad():
            return module(batch).prediction if name == "MEA" else LAYERS[name][1](module, x)

    exact, (in_int8, with_inputs) = call(layer), (quantised_by_torchao(layer, kind) for kind in INT8)
    assert all(m.weight.qdata.dtype == torch.int8 for both in (in_int8, with_inputs) for m in linears(both))
    rounded = copy.deepcopy(layer)
    for plain, quantised in zip(linears(rounded), linears(in_int8), strict=True):
        plain.weight = nn.Parameter(quantised.weight.dequantize())
    torch.testing.assert_close(call(in_int8), call(rounded), rtol=1e-4, atol=1e-5)
    found = call(with_inputs)
    assert not torch.equal(found, call(in_int8))
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)
    names = [n for n, m in layer.named_modules() if isinstance(m, nn.Linear)] if name != "MEA" else []  # its discriminator only trains
    for chosen in names:
        alone = quantised_by_torchao(layer, INT8[0], filter_fn=lambda module, path, chosen=chosen: path == chosen)
        assert not torch.equal(call(alone), exact), chosen


def test_flops_of_attention_are_counted_by_layer() -> None:
    first, second, x = PredictiveSelfAttention(8, 2, prediction=False), PredictiveSelfAttention(8, 2), torch.randn(2, 40, 8)
    with FlopCounterMode(display=False) as counter:
        y, prior = first(x)
        second(y, None, prior)
    by_operator = counter.get_flop_counts()["PredictiveSelfAttention"]
    found = {str(op).removesuffix("_cpu").removesuffix("_native"): flops for op, flops in by_operator.items()}
    edges, heads, width = 2 * 40 * 40, 2, 4
    assert found["mea_graph.interval_attention"] == 2 * edges * heads * (width + width)
    assert found["mea_graph.predictive_attention"] == 2 * edges * heads * (3 * width + 9 * heads)


class FusionAndHead(nn.Module):
    """What explainers take: a module over nodes and edges by type."""

    def __init__(self, model: MEA, graph: Any) -> None:
        super().__init__()
        self.fusion, self.head, self.graph = model.fusion, model.head, graph

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Tensor:
        fused = self.fusion(x_dict, edge_index_dict, self.graph.sample_dict, self.graph.num_samples).x
        return self.head(torch.cat(list(fused.values()), 1))


@pytest.fixture
def explained(model: MEA, batch: Batch) -> tuple[FusionAndHead, Any, Any]:
    """The second half of a model, and the nodes and edges by type that it fuses."""
    with torch.no_grad():
        graph = model.embed(batch)
    nodes = {t: x for t, x in graph.x_dict.items() if t not in RATES}
    edges = {t: e for t, e in graph.edge_index_dict.items() if e.size(1)}
    return FusionAndHead(model, graph), nodes, edges


REGRESSION = {"mode": "regression", "task_level": "graph", "return_type": "raw"}


def test_explainers_mask_the_edges_of_the_graph_of_embed(explained: tuple[FusionAndHead, Any, Any]) -> None:
    net, nodes, edges = explained
    masks = {"node_mask_type": "attributes", "edge_mask_type": "object"}
    found = Explainer(net, GNNExplainer(epochs=2), explanation_type="model", model_config=REGRESSION, **masks)(nodes, edges)
    assert {t: mask.shape for t, mask in found.node_mask_dict.items()} == {t: x.shape for t, x in nodes.items()}
    assert {t: mask.shape for t, mask in found.edge_mask_dict.items()} == {t: (e.size(1),) for t, e in edges.items()}
    assert all((mask > 0).all() for mask in found.edge_mask_dict.values())  # PyG sets those to 0 that had no gradient


def test_attention_of_the_graph_of_embed_is_explained(explained: tuple[FusionAndHead, Any, Any]) -> None:
    net, nodes, edges = explained
    explainer = Explainer(net, AttentionExplainer(), explanation_type="model", model_config=REGRESSION, edge_mask_type="object")
    found = explainer(nodes, edges).edge_mask_dict
    wanted = net.fusion(nodes, edges, net.graph.sample_dict, net.graph.num_samples, return_attention_weights=True).transfer
    torch.testing.assert_close(found, {t: xi.amax(1) for t, xi in wanted.items()})


def test_every_row_of_the_page_names_a_test_or_says_that_it_does_not_work() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| You")]
    assert len(rows) > 30
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py(::\w+)?`", row), row
