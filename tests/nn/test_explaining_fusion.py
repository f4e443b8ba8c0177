"""Explainers of PyG on `DecoupledGraphFusion`: a mask for each edge type reaches the messages of its edges."""

from functools import partial
from typing import Any

import pytest
import torch
import torch_geometric
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.explain import (
    AttentionExplainer,
    CaptumExplainer,
    Explainer,
    Explanation,
    GNNExplainer,
    PGExplainer,
    fidelity,
    unfaithfulness,
)
from torch_geometric.explain.algorithm.utils import clear_masks, set_hetero_masks, set_masks

from mea_graph.nn import DecoupledGraphFusion, GraphFusionConv, fusion_graph

NAMES, SAMPLES = ["a", "b", "c"], 6
SEARCH = {"epochs": 30, "lr": 0.2, "edge_ent": 0.1}
CONFIG = {"mode": "multiclass_classification", "task_level": "graph", "return_type": "log_probs"}
CONVS = {
    "GraphFusionConv": GraphFusionConv,
    "GATConv": pyg.GATConv,  # adds loops of its own, which no mask is for
    "SAGEConv": pyg.SAGEConv,
}


class Planted(nn.Module):
    """What `a` tells both others says of which class a sample is; without either it is of class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = DecoupledGraphFusion(4, conv=lambda i, o: GraphFusionConv(i, o, activation="none"), spaces=["exclusive"])
        conv = self.fusion.convs["exclusive"]
        with torch.no_grad():
            conv.lin.weight.copy_(torch.eye(4))
            for score in (conv.score_dst, conv.score_src, conv.score_bias):
                score.zero_()
        self.sample = dict.fromkeys((f"{m}_exclusive" for m in NAMES), torch.arange(SAMPLES))

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Tensor:
        fused = self.fusion(x_dict, edge_index_dict, self.sample, SAMPLES).x["exclusive"]
        return torch.cat([torch.ones(SAMPLES, 1), 1.6 * fused[:, :2]], 1).log_softmax(1)


by_type = pytest.mark.skipif(torch_geometric.__version__.startswith("2.6."), reason="explainers of PyG 2.6 refuse heterogeneous graphs")


@pytest.fixture
def planted() -> tuple[Planted, Any, Any, Tensor]:
    target = torch.tensor([1, 2] * (SAMPLES // 2))
    h = {m: torch.cat([torch.zeros(SAMPLES, 2), torch.randn(SAMPLES, 2)], 1) for m in NAMES}
    h["a"][:, :2] = nn.functional.one_hot(target - 1)
    graph = fusion_graph(h, None)
    model = Planted()
    assert model(graph.x_dict, graph.edge_index_dict).argmax(1).equal(target)
    return model, graph.x_dict, graph.edge_index_dict, target


def tells(masks: Any) -> tuple[float, float]:
    """The least mask of an edge from `a`, and the largest of another."""
    own = torch.cat([mask for t, mask in masks.items() if t[0] == "a_exclusive"])
    return float(own.min()), float(torch.cat([mask for t, mask in masks.items() if t[0] != "a_exclusive"]).max())


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize(("keep_absent", "sigmoid"), [(False, True), (True, True), (False, False)])
def test_masks_by_type_are_the_mask_of_the_joined_graph(randomised, name: str, keep_absent: bool, sigmoid: bool) -> None:
    """Values, and gradients for the masks; a type without a mask is left as it is, and so is a lone sample's loop."""
    layer = randomised(DecoupledGraphFusion(4, conv=CONVS[name], aggr=None, spaces=["exclusive"]))
    present = {m: torch.tensor(row).bool() for m, row in zip(NAMES, ([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]), strict=True)}
    h = {m: torch.randn(4, 4, dtype=torch.float64) for m in NAMES}
    graph = fusion_graph(h, None, present, keep_absent=keep_absent)
    masks = {t: torch.randn(e.size(1)).double().requires_grad_() for t, e in graph.edge_index_dict.items() if t[0] != "c_exclusive"}
    marks = graph.collect("present", allow_empty=True)
    set_hetero_masks(layer, masks, graph.edge_index_dict, apply_sigmoid=sigmoid)
    out = layer(graph.x_dict, graph.edge_index_dict, present_dict=marks).x
    clear_masks(layer)

    flat, start, rows = [], {}, 0
    for m in NAMES:  # the nodes that are there, one below the other
        start[f"{m}_exclusive"], rows = rows, rows + int(present[m].sum())
        flat.append(h[m][present[m]])
    edges, joined = [], []
    for (s, _, t), edge_index in graph.edge_index_dict.items():
        there = marks.get((s, "to", t), torch.ones(edge_index.size(1))).bool()
        if keep_absent:
            edge_index = torch.stack([present[n[0]].cumsum(0)[e] - 1 for n, e in ((s, edge_index[0]), (t, edge_index[1]))])
        edges.append((edge_index + torch.tensor([[start[s]], [start[t]]]))[:, there])
        own = masks.get((s, "to", t), torch.ones(edge_index.size(1)).double())
        joined.append((own.sigmoid() if sigmoid and own.requires_grad else own)[there])
    conv, edge_index = layer.convs["exclusive"], torch.cat(edges, 1)
    set_masks(conv, torch.cat(joined), edge_index, apply_sigmoid=False)
    expected = conv(torch.cat(flat), edge_index)
    clear_masks(conv)
    found = torch.cat([out[f"{m}_exclusive"][present[m]] if keep_absent else out[f"{m}_exclusive"] for m in NAMES])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    cotangent, leaves = torch.randn_like(found), list(masks.values())
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    assert any(grad.any() for grad in wanted)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, cotangent), wanted, rtol=1e-9, atol=1e-11)


@by_type
def test_gnn_explainer_finds_who_tells_the_class(planted) -> None:
    model, x, edges, target = planted
    before, parts = model(x, edges), list(model.state_dict())
    explainer = Explainer(model, GNNExplainer(**SEARCH), "model", CONFIG, edge_mask_type="object")
    found = explainer(x, edges)
    assert torch.equal(found.target, target)
    own, other = tells(found.edge_mask_dict)
    assert own > other
    assert torch.equal(model(x, edges), before)
    assert list(model.state_dict()) == parts
    assert not len(model.fusion.by_type.masks)


class _Masks(dict):
    """Masks by type in a metric, which takes them off 1."""

    def __rsub__(self, one: float) -> "_Masks":
        return _Masks({t: one - mask for t, mask in self.items()})


@by_type
def test_the_metrics_of_pyg_tell_a_mask_from_random_ones(planted) -> None:
    """PyG 2.8 reads no `HeteroExplanation` in them: they get an `Explanation` of the same content."""
    model, x, edges, target = planted
    explainer = Explainer(model, GNNExplainer(**SEARCH), "model", CONFIG, edge_mask_type="object")
    found = explainer(x, edges).edge_mask_dict

    def scores(masks: Any) -> tuple[float, float, float]:
        explanation = Explanation(edge_mask=_Masks(masks), target=target, prediction=model(x, edges).detach())
        explanation.x, explanation.edge_index, explanation._model_args = x, edges, []
        return *fidelity(explainer, explanation), unfaithfulness(explainer, explanation)

    sharp = {t: (mask > 0.5).float() for t, mask in found.items()}
    assert scores(sharp)[:2] == (1.0, 0.0)  # without these edges every prediction falls; with them alone, none
    every = torch.cat(list(sharp.values()))
    unlike = []
    for _ in range(5):
        drawn = every[torch.randperm(len(every))].split([len(mask) for mask in sharp.values()])
        unlike.append(scores(dict(zip(sharp, drawn, strict=True))))
    assert all(positive < 1 and negative > 0 for positive, negative, _ in unlike)
    assert max(scores(sharp)[2], scores(found)[2]) < min(u for *_, u in unlike)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
@by_type
def test_pg_explainer_finds_who_tells_the_class(planted) -> None:
    model, x, edges, target = planted
    algorithm = PGExplainer(epochs=25, lr=0.02)
    algorithm.coeffs = algorithm.coeffs | {"edge_size": 0.03, "edge_ent": 0.0}  # arguments would change those of the class
    explainer = Explainer(model, algorithm, "phenomenon", CONFIG, edge_mask_type="object")
    for epoch in range(25):
        algorithm.train(epoch, model, x, edges, target=target)
    masks = explainer(x, edges, target=target).edge_mask_dict
    assert set(masks) == set(edges)
    own, others = (torch.cat([m for t, m in masks.items() if (t[0] == "a_exclusive") == is_own]) for is_own in (True, False))
    assert own.mean() > others.mean() + 0.5


@pytest.mark.parametrize("method", ["Saliency", "IntegratedGradients", "InputXGradient"])
def test_captum_finds_who_tells_the_class(planted, method: str) -> None:
    model, x, edges, _ = planted
    found = Explainer(model, CaptumExplainer(method), "model", CONFIG, edge_mask_type="object")(x, edges).edge_mask_dict
    assert set(found) == set(edges)
    own, others = (torch.cat([mask for t, mask in found.items() if (t[0] == "a_exclusive") == is_own]) for is_own in (True, False))
    assert own.abs().min() > 0.01 > 1e-6 > others.abs().max()


def test_captum_attributes_features_too(planted) -> None:
    model, x, edges, target = planted
    explainer = Explainer(model, CaptumExplainer("Saliency"), "model", CONFIG, node_mask_type="attributes", edge_mask_type="object")
    found = explainer(x, edges)
    nodes = {t: v.clone().requires_grad_() for t, v in x.items()}
    set_hetero_masks(model, {t: torch.ones(e.size(1)) for t, e in edges.items()}, edges)  # PyG takes the gradient there
    wanted = torch.autograd.grad(model(nodes, edges)[range(SAMPLES), target].sum(), list(nodes.values()))
    clear_masks(model)
    for own, grad in zip(found.node_mask_dict.values(), wanted, strict=True):
        torch.testing.assert_close(own, grad.abs())
    assert tells(found.edge_mask_dict)[0] > 0.01 > 1e-6 > tells(found.edge_mask_dict)[1]


@pytest.mark.parametrize("keep_absent", [False, True])
@by_type
def test_attention_explainer_reads_the_coefficients_of_each_type(keep_absent: bool) -> None:
    """The largest of the heads and of the layers, also where the name of one type holds that of another."""
    h = {m: torch.randn(SAMPLES, 4) for m in ("a", "aa", "aaa")}
    present = {m: torch.rand(SAMPLES) < 0.7 for m in h}
    graph = fusion_graph(h, h, present, keep_absent=keep_absent)
    marks = graph.collect("present", allow_empty=True)

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = partial(GraphFusionConv, heads=2, concat=False)
            self.first, self.last = DecoupledGraphFusion(4, conv=conv, aggr=None), DecoupledGraphFusion(4, conv=conv)

        def forward(self, x: Any, edges: Any, weights: bool = False) -> Any:
            inner = self.first(x, edges, present_dict=marks, return_attention_weights=weights)
            out = self.last(inner.x, edges, graph.sample_dict, SAMPLES, marks, return_attention_weights=weights)
            return (inner.transfer, out.transfer) if weights else sum(out.x.values())

    model = Stack()
    found = Explainer(model, AttentionExplainer(), "model", CONFIG, edge_mask_type="object")(graph.x_dict, graph.edge_index_dict)
    first, last = model(graph.x_dict, graph.edge_index_dict, True)
    assert set(found.edge_mask_dict) == set(graph.edge_index_dict)
    for t, mask in found.edge_mask_dict.items():
        torch.testing.assert_close(mask, torch.maximum(first[t].amax(1), last[t].amax(1)))
    assert not any(model.first(graph.x_dict, graph.edge_index_dict, present_dict=marks).transfer)


@by_type
def test_attention_explainer_finds_who_is_heard(planted) -> None:
    model, x, edges, _ = planted
    with torch.no_grad():
        model.fusion.convs["exclusive"].score_src[0, :2] = 6  # `a` alone has these features
    found = Explainer(model, AttentionExplainer(), "model", CONFIG, edge_mask_type="object")(x, edges)
    own, other = tells(found.edge_mask_dict)
    assert own > 0.99
    assert other <= 0.5  # what `a` hears of both others


@by_type
def test_a_convolution_without_attention_is_named_by_pyg(planted) -> None:
    model, x, edges, _ = planted
    model.fusion.convs["exclusive"] = pyg.SAGEConv(4, 4)
    explainer = Explainer(model, AttentionExplainer(), "model", CONFIG, edge_mask_type="object")
    with pytest.raises(ValueError, match="Could not collect any attention coefficients"):
        explainer(x, edges)


def test_a_mask_that_cannot_be_used_is_named(planted) -> None:
    model, x, edges, _ = planted
    edge_type = ("a_exclusive", "to", "b_exclusive")
    set_hetero_masks(model, {edge_type: torch.ones(3)}, edges)
    with pytest.raises(ValueError, match=r"edge masks: expected \(6,\) for \('a_exclusive', 'to', 'b_exclusive'\), got \(3,\)"):
        model(x, edges)
    clear_masks(model)

    class Own(nn.Linear):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return super().forward(x)

    model.fusion.convs["exclusive"] = Own(4, 4)
    model(x, edges)
    set_hetero_masks(model, {edge_type: torch.ones(6)}, edges)
    with pytest.raises(ValueError, match="edge masks: expected a convolution of PyG to put them on, got Own"):
        model(x, edges)


@by_type
def test_a_mask_of_one_convolution_alone_does_not_cut_gradients_later(planted) -> None:
    """An explainer that ran on the convolution itself leaves a parameter there, which PyG would turn the joined mask into."""
    model, x, edges, _ = planted
    conv = model.fusion.convs["exclusive"]
    set_masks(conv, nn.Parameter(torch.ones(2)), torch.tensor([[0, 1], [1, 0]]))
    clear_masks(conv)
    explainer = Explainer(model, GNNExplainer(epochs=2), "model", CONFIG, edge_mask_type="object")
    assert set(explainer(x, edges).edge_mask_dict) == set(edges)
