"""Linear maps and normalisations of many groups of rows, each with weights of its own, in one call.

Modalities and arrows have weights of their own, and each alone is little work: on few rows the calls take most of the time.
"""

from mea_graph.ops.grouped.blocks import Blocks, blocks_at_once, norm_and_linear
from mea_graph.ops.grouped.layer_norm import grouped_layer_norm
from mea_graph.ops.grouped.linear import grouped_linear

__all__ = ["Blocks", "blocks_at_once", "grouped_layer_norm", "grouped_linear", "norm_and_linear"]
