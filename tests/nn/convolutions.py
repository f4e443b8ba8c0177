"""PyG's convolutions and ours, for tests of what users of PyG do with one."""

from functools import partial
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor

from mea_graph.nn import GraphFusionConv

Make = Any  # a partial of a layer's class
LAYERS: dict[str, Make] = {
    "ours": partial(GraphFusionConv, activation="none"),
    "GAT": partial(pyg.GATConv, add_self_loops=False),
    "GATv2": partial(pyg.GATv2Conv, add_self_loops=False),
    "Transformer": partial(pyg.TransformerConv, root_weight=False),
    "SAGE": partial(pyg.SAGEConv, root_weight=False),
}
ATTENTION = ["GAT", "GATv2", "Transformer"]
ALL = [*ATTENTION, "SAGE"]
N, C = 6, 4
EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 5, 2], [1, 0, 2, 1, 3, 2, 4, 3, 0, 4, 1, 5]])


def use(*rivals: str) -> pytest.MarkDecorator:
    """A use, and PyG's layers that allow it: each of them must, and so must ours."""
    return pytest.mark.parametrize("make", [pytest.param(LAYERS[name], id=name) for name in ("ours", *rivals)])


def near(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def features(nodes: int = N, channels: int = C) -> Tensor:
    return torch.randn(nodes, channels)
