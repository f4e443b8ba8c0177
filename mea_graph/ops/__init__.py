"""The arithmetic that dominates cost, as plain functions: each op is a folder with a frozen reference."""

# ruff: noqa: F401 (ruff does not see through `functions` below)

from mea_graph.ops.backends import Explanation, explain
from mea_graph.ops.cross_modal_attention import cross_modal_attention, cross_modal_attention_map
from mea_graph.ops.edge_attention import InEdges, edge_attention, sort_edges
from mea_graph.ops.masking import masked_softmax
from mea_graph.ops.predictive_attention import predictive_attention, predictive_attention_map
from mea_graph.ops.segment import has_torch_scatter, segment_max, segment_mean, segment_softmax, segment_sum

functions = [
    "cross_modal_attention",
    "cross_modal_attention_map",
    "edge_attention",
    "explain",
    "has_torch_scatter",
    "masked_softmax",
    "predictive_attention",
    "predictive_attention_map",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "sort_edges",
]
classes = ["Explanation", "InEdges"]
__all__ = [*classes, *functions]
