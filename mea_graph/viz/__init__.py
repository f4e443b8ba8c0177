"""Figures (extra ``viz``): functions that take plain arrays and return a matplotlib figure."""

# ruff: noqa: F401 (ruff does not see through the sum below)

try:
    import matplotlib
except ImportError as error:
    raise ImportError(f"mea_graph.viz needs {error.name}, which is not installed: pip install 'mea-graph[viz]'") from error

from mea_graph.viz.learning_curves import learning_curves

classes: list[str] = []
functions = ["learning_curves"]
__all__ = classes + functions
