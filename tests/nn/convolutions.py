"""PyG's convolutions and ours, for tests of what users of PyG do with one."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest
import torch
import torch_geometric
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


def use(*rivals: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A use, and PyG's layers that allow it: each of them must, and so must ours."""

    def register(f: Callable[..., None]) -> Callable[..., None]:
        @wraps(f)
        def run(make: Make, **others: Any) -> None:
            try:
                f(make, **others)
            except Exception as error:
                old = torch_geometric.__version__.startswith("2.6.")  # its `to_hetero` reads names of torch.fx that torch no longer has
                if old and all(_raises(partial(f, LAYERS[rival], **others), error) for rival in rivals):
                    pytest.skip(f"nor can any layer of PyG 2.6 with this torch: {error!r}")
                raise

        return pytest.mark.parametrize("make", [pytest.param(LAYERS[name], id=name) for name in ("ours", *rivals)])(run)

    return register


def _raises(f: Callable[[], None], expected: Exception) -> bool:
    """Whether a use fails with the same words. A wrong result never does: it is the fault of the layer that gave it."""
    try:
        f()
    except Exception as error:
        return not isinstance(error, AssertionError) and repr(error) == repr(expected)
    return False


def near(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def features(nodes: int = N, channels: int = C) -> Tensor:
    return torch.randn(nodes, channels)
