"""mea-graph: asynchronous multimodal sequence fusion on graphs, on PyTorch Geometric.

The parts: `mea_graph.nn` (layers, losses, the model), `mea_graph.data` (samples, readers, the embedded data),
`mea_graph.ops` (the arithmetic that dominates cost), `mea_graph.train`, `mea_graph.baselines` and `mea_graph.viz` (extras).
Readers of foreign files are in `mea_graph.readers`, what `mea-graph study` runs in `mea_graph.studies`.
"""

__version__ = "0.1.0"
