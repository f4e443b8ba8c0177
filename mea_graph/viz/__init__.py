"""Figures (extra `viz`): functions that take plain arrays or the model's own output and return a matplotlib figure."""

# ruff: noqa: F401 (the extra is imported to see whether it is there)

try:
    import matplotlib
except ImportError as error:
    raise ImportError(f"mea_graph.viz needs {error.name}, which is not installed: pip install 'mea-graph[viz]'") from error

from mea_graph.viz.attention_map import attention_map
from mea_graph.viz.embedding_scatter import embedding_scatter
from mea_graph.viz.fusion_graph import fusion_graph
from mea_graph.viz.learning_curves import learning_curves
from mea_graph.viz.modality_weights import modality_weights
from mea_graph.viz.score_bars import score_bars
from mea_graph.viz.score_curves import score_curves
from mea_graph.viz.score_map import score_map

__all__ = [
    "attention_map",
    "embedding_scatter",
    "fusion_graph",
    "learning_curves",
    "modality_weights",
    "score_bars",
    "score_curves",
    "score_map",
]
