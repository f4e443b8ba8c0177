"""A model's own outputs, to draw."""

import pytest
import torch

from mea_graph.nn import MEA

WIDTHS = {"text": 5, "audio": 3, "vision": 4}
LENGTHS = {"text": [8, 3, 5, 0], "audio": [20, 9, 30, 12], "vision": [11, 0, 25, 0]}


@pytest.fixture(scope="session")
def make_output():
    """Makes the output of a small model: four ragged samples; the second has no vision, the last one audio alone."""

    def make(**options):
        torch.manual_seed(0)
        model = MEA.published(WIDTHS, out_channels=1, channels=8, heads=2, hidden_channels=16, **options)
        x = {m: torch.randn(4, max(lengths), WIDTHS[m]) for m, lengths in LENGTHS.items()}
        mask = {m: torch.arange(max(lengths)) < torch.tensor(lengths)[:, None] for m, lengths in LENGTHS.items()}
        return model(x, mask, return_attention_weights=True)

    return make


@pytest.fixture(scope="session")
def output(make_output):
    return make_output()
