"""mea-graph: asynchronous multimodal sequence fusion on graphs, on PyTorch Geometric.

The parts: `mea_graph.nn` (layers, losses, the model), `mea_graph.data` (samples, readers, the embedded data),
`mea_graph.ops` (the arithmetic that dominates cost), `mea_graph.train` and `mea_graph.viz` (extras).
"""

__version__ = "0.1.0"
