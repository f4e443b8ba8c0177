"""The arithmetic that dominates cost, as plain functions: each op is a folder with a frozen reference."""

import mea_graph.ops.flops  # noqa: F401 (what `FlopCounterMode` counts)
from mea_graph.ops.backends import Explanation, explain, record_calls, use_backend
from mea_graph.ops.edge import InEdges, edge_attention, sort_edges
from mea_graph.ops.interval import interval_attention, interval_attention_map
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.masking import masked_softmax
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.predictive import predictive_attention, predictive_attention_map
from mea_graph.ops.segment import has_torch_scatter, segment_max, segment_mean, segment_softmax, segment_sum

__all__ = [
    "Explanation",
    "InEdges",
    "IntervalEdges",
    "Pointers",
    "edge_attention",
    "explain",
    "has_torch_scatter",
    "interval_attention",
    "interval_attention_map",
    "masked_softmax",
    "predictive_attention",
    "predictive_attention_map",
    "record_calls",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "sort_edges",
    "use_backend",
]
