"""mea-graph: asynchronous multimodal sequence fusion on graphs, on PyTorch Geometric.

The parts: `mea_graph.nn` (layers, losses, the model), `mea_graph.data` (samples, readers, the embedded data),
`mea_graph.ops` (the arithmetic that dominates cost), `mea_graph.train`, `mea_graph.baselines` and `mea_graph.viz` (extras).
Readers of foreign files are in `mea_graph.readers`, what `mea-graph study` runs in `mea_graph.studies`. `mea_graph.Predictor` takes a
trained model to new samples (extra `train`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mea_graph.train.predictor import Predictor as Predictor

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Predictor` on demand: it needs the extra `train`, and importing that takes seconds."""
    if name == "Predictor":
        from mea_graph.train import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
