"""Decoupled graph fusion of a graph that `fusion_graph` just made, without its lists of edges: in few kernels on a device."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn.aggr import SumAggregation

from mea_graph.nn._side_by_side import is_watched, saves_launches
from mea_graph.nn.graph._at_once import pass_within_samples
from mea_graph.nn.graph.decoupled_graph_fusion import DecoupledGraphFusion
from mea_graph.nn.graph.fusion_graph import Made


def fused_within_samples(fusion: nn.Module, made: Made, spaces: Sequence[str]) -> list[Tensor] | None:
    """What `DecoupledGraphFusion` gives for each space, (B, d_out).

    None where somebody may look at messages or types, where the spaces differ in more than their weights, on a CPU, whose edges cost
    little, and for a graph without absent nodes, whose edges are few.
    """
    graph, absent, joined = made
    if absent is None or joined is None or not saves_launches(absent):
        return None
    if type(fusion) is not DecoupledGraphFusion or fusion.align is not None or fusion.spaces != tuple(spaces) or len(spaces) < 2:
        return None
    readout: Any = fusion.aggr
    if type(readout) is not SumAggregation or is_watched(readout) or is_watched(fusion) or is_watched(fusion.by_type):
        return None
    if fusion.by_type.asks_attention() or len(fusion.by_type.masks):
        return None
    nodes = {name: store["x"] for name, store in graph.node_items()}  # space by space
    fusion._check_features(nodes, fusion._spaces_of(nodes, {}))
    out = pass_within_samples(list(fusion.convs.values()), list(nodes.values()), joined)
    return None if out is None else list(out.masked_fill(absent, 0).sum(1).unbind())
