import pytest
import torch

from mea_graph.nn import FeedForward, PredictionHead

LAYERS = {
    "PredictionHead": lambda: PredictionHead(8, 4, 2),
    "PredictionHead, norm": lambda: PredictionHead(8, 4, 2, norm=True),
    "FeedForward": lambda: FeedForward(8, 16),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("record", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_perceptrons_can_be_scripted_and_traced(layer, record):
    """The recorded layer takes any number of rows."""
    module = layer()
    recorded = record(module)
    for size in (3, 1, 0):
        x = torch.randn(size, 8)
        assert torch.equal(recorded(x), module(x))
