"""Who looks into a convolution: hooks, steps of one's own and explainers, with PyG's layers that allow it and `GraphFusionConv`."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.explain import AttentionExplainer, CaptumExplainer, Explainer, GNNExplainer, PGExplainer, unfaithfulness
from torch_geometric.explain.algorithm import GraphMaskExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

from .convolutions import ALL, ATTENTION, EDGES, C, Make, features, near, use

# Hooks, and steps overridden.


@use("GAT", "GATv2", "Transformer")
def test_every_hook(make: Make) -> None:
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
def test_overridden_message(make: Make) -> None:
    class Own(make.func):  # type: ignore[misc]
        def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
            return 2 * super().message(x_j, alpha)

    Own.__name__ = f"Own{make.func.__name__}"  # PyG keeps what it compiles of a class by its name
    conv, x = Own(C, 3, **make.keywords), features()
    plain = make(C, 3)
    plain.load_state_dict(conv.state_dict())
    near(conv(x, EDGES), 2 * plain(x, EDGES))


@use("GAT", "SAGE")
def test_message_set_on_the_object(make: Make) -> None:
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


@use(*ALL)
def test_gnn_explainer(make: Make) -> None:
    explain(Network(make), GNNExplainer(epochs=5), "attributes")


@use(*ATTENTION)
def test_attention_explainer(make: Make) -> None:
    model, x = Network(make), features()
    _, explanation = explain(model, AttentionExplainer(), x=x)
    weights = model.first(x, EDGES, return_attention_weights=True)[1][1]
    inner = model.first(x, EDGES).tanh()
    near(explanation.edge_mask, torch.maximum(weights, model.second(inner, EDGES, return_attention_weights=True)[1][1]).squeeze(1))


@use(*ALL)
def test_captum_explainer(make: Make) -> None:
    for method in ("Saliency", "IntegratedGradients"):
        explain(Network(make), CaptumExplainer(method), "attributes")


@use("GAT", "GATv2")
def test_graph_mask_explainer(make: Make) -> None:
    explain(Network(make), GraphMaskExplainer(2, epochs=3, log=False), "attributes")


@use("GAT")
def test_graph_mask_explainer_of_heads(make: Make) -> None:
    explain(Network(partial(make, heads=2, concat=False)), GraphMaskExplainer(2, epochs=3, log=False), "attributes")


@use(*ALL)
def test_pg_explainer(make: Make) -> None:
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


@use(*ALL)
def test_unfaithful_masks_are_told(make: Make) -> None:
    model, x = Network(make), 5 * features()
    explainer, explanation = explain(model, GNNExplainer(epochs=1), "attributes", x=x)
    explanation.node_mask = None
    explanation.edge_mask = torch.rand(EDGES.size(1))
    assert unfaithfulness(explainer, explanation) > 1e-4
