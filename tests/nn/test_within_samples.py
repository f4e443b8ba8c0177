"""Graph fusion without lists of edges, as on a device: the same values and gradients as by messages, and messages where somebody looks."""

import itertools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn.aggr import MeanAggregation

from mea_graph.nn import DecoupledGraphFusion, GraphFusionConv, _side_by_side
from mea_graph.nn.graph import graph_fusion_conv
from mea_graph.nn.graph.fusion_graph import SPACES, Made, make_graph
from mea_graph.nn.graph.within_samples import fused_within_samples

MODALITIES, WIDTH = ("text", "audio", "vision"), 6
PRESENT = torch.tensor(list(itertools.product([True, False], repeat=3)))  # every pattern, nobody's too


def fusion_of(**options: Any) -> DecoupledGraphFusion:
    return DecoupledGraphFusion(WIDTH, WIDTH, conv=lambda i, o: GraphFusionConv(i, o, **options)).double()


def made_of(present: Tensor = PRESENT, self_loops: bool = False) -> tuple[Made, list[Tensor]]:
    leaves = [torch.randn(len(present), WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2 * len(MODALITIES))]
    spaces = [dict(zip(MODALITIES, leaves[i:], strict=False)) for i in (0, len(MODALITIES))]
    there = dict(zip(MODALITIES, present.T, strict=True))
    return make_graph(*spaces, there, self_loops, keep_absent=True), leaves


def at_once(fusion: nn.Module, made: Made, spaces: tuple[str, ...] = SPACES) -> list[Tensor] | None:
    with patch.object(_side_by_side, "_launches", lambda device: True):
        return fused_within_samples(fusion, made, spaces)


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"heads": 3, "concat": False, "activation": "none"}, {"heads": 2, "activation": "relu"}, {"dropout": 0.5}],
    ids=["as published", "averaged heads", "heads", "dropout"],
)
def test_equals_messages(options: dict[str, Any], self_loops: bool) -> None:
    fusion = fusion_of(**options).eval()
    made, leaves = made_of(self_loops=self_loops)
    graph, leaves = made.graph, [*leaves, *fusion.parameters()]
    expected = list(fusion(graph.x_dict, graph.edge_index_dict, graph.sample_dict, len(PRESENT), graph.collect("present")).x.values())
    found = at_once(fusion, made)
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    weights = [torch.randn_like(out) for out in expected]
    gradients = [torch.autograd.grad(outs, leaves, weights, retain_graph=True) for outs in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-11, atol=1e-13)


def test_what_stands_in_absent_nodes_is_never_read() -> None:
    fusion, (made, leaves) = fusion_of(), made_of()
    clean = at_once(fusion, made)
    there = [PRESENT[:, i % len(MODALITIES), None] for i in range(len(leaves))]
    junk = [torch.where(t, x.detach(), torch.nan).requires_grad_() for t, x in zip(there, leaves, strict=True)]
    spaces = [dict(zip(MODALITIES, junk[i:], strict=False)) for i in (0, len(MODALITIES))]
    found = at_once(fusion, make_graph(*spaces, dict(zip(MODALITIES, PRESENT.T, strict=True)), False, keep_absent=True))
    assert clean is not None
    assert found is not None
    torch.testing.assert_close(found, clean)
    for t, grad in zip(there, torch.autograd.grad(torch.stack(found).sum(), junk), strict=True):
        assert grad.isfinite().all()
        assert not grad[~t.squeeze(1)].any()


def _hooked(part: Callable[[DecoupledGraphFusion], nn.Module]) -> Callable[[DecoupledGraphFusion], Any]:
    return lambda fusion: part(fusion).register_forward_hook(lambda *_: None)


class Mine(DecoupledGraphFusion):
    """A class of the caller's own, which may do more."""


WATCHED = {
    "a subclass": lambda fusion: setattr(fusion, "__class__", Mine),
    "an alignment": lambda fusion: setattr(fusion, "align", nn.Identity()),
    "another activation": lambda fusion: setattr(fusion.convs["agnostic"], "activation", "relu"),
    "the fusion": _hooked(lambda fusion: fusion),
    "a convolution": _hooked(lambda fusion: fusion.convs["agnostic"]),
    "the nodes by type": _hooked(lambda fusion: fusion.by_type),
    "the readout": _hooked(lambda fusion: fusion.aggr),
    "messages": lambda fusion: fusion.convs["agnostic"].register_message_forward_hook(lambda *_: None),
    "attention": lambda fusion: fusion.by_type.register_message_forward_hook(lambda *_: None),
    "masks": lambda fusion: fusion.by_type.masks["text_exclusive", "to", "audio_exclusive"],
    "another readout": lambda fusion: setattr(fusion, "aggr", MeanAggregation()),
    "another convolution": lambda fusion: fusion.convs.update({"agnostic": GraphFusionConv(WIDTH, WIDTH, heads=2, concat=False).double()}),
    "another direction": lambda fusion: [setattr(conv, "flow", "target_to_source") for conv in fusion.convs.values()],
    "dropped messages": lambda fusion: [setattr(conv, "dropout", 0.5) for conv in fusion.convs.values()],
}


@pytest.mark.parametrize("watch", WATCHED.values(), ids=WATCHED)
def test_messages_are_passed_where_somebody_looks(watch: Callable[[DecoupledGraphFusion], Any]) -> None:
    fusion, (made, _) = fusion_of(), made_of()
    assert at_once(fusion, made) is not None
    watch(fusion)
    assert at_once(fusion, made) is None


def test_the_hook_of_a_linear_layer_is_called() -> None:
    fusion, (made, _), seen = fusion_of(), made_of(), []
    expected = at_once(fusion, made)
    fusion.convs["exclusive"].lin.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(at_once(fusion, made), expected)
    assert seen


def test_other_graphs_are_passed_as_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    fusion, (made, _) = fusion_of(), made_of()
    assert fused_within_samples(fusion, made, SPACES) is None  # on a CPU
    assert at_once(fusion, made._replace(joined=None, absent=None)) is None
    assert at_once(fusion, made, SPACES[::-1]) is None
    assert at_once(fusion, made_of(PRESENT[:0])[0]) is None
    monkeypatch.setattr(graph_fusion_conv, "_LARGE", 10)
    assert at_once(fusion, made) is None


def test_rows_of_another_width_are_named() -> None:
    fusion = DecoupledGraphFusion(WIDTH + 1, WIDTH).double()
    with pytest.raises(ValueError, match=r"x_dict\['text_exclusive'\]: expected \(N, 7\), got \(8, 6\)"):
        at_once(fusion, made_of()[0])
