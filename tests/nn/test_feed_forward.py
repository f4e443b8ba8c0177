"""The feed-forward block of Eq. 4 against its formula."""

import numpy as np
import pytest
import torch

from mea_graph.nn import FeedForward
from mea_graph.nn._side_by_side import Groups
from mea_graph.nn.attention.feed_forward import feed_forward


@pytest.mark.parametrize("hidden_channels", [None, 1, 7])
def test_equals_the_formula(formulas, randomised, hidden_channels: int | None) -> None:
    block = randomised(FeedForward(6, hidden_channels))
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = formulas.feed_forward(x.numpy(), block.norm, block.expand, block.contract)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_hidden_layer_has_four_times_the_width() -> None:
    assert FeedForward(6).expand.weight.shape == (24, 6)
    assert FeedForward(6, 5).expand.weight.shape == (5, 6)


def test_blocks_side_by_side_drop_where_each_alone_does(randomised, monkeypatch) -> None:
    dropped: list[tuple[int, ...]] = []

    def halve(x, *_):
        dropped.append(tuple(x.shape))
        return x / 2

    blocks = [randomised(FeedForward(6, 9, dropout=0.5)).train() for _ in range(2)]
    x = torch.randn(5, 6, dtype=torch.float64)
    monkeypatch.setattr(torch.nn.functional, "dropout", halve)
    alone = torch.cat([blocks[0](x[:2]), blocks[1](x[2:])])
    assert dropped == [(2, 9), (2, 6), (3, 9), (3, 6)]
    dropped.clear()
    torch.testing.assert_close(feed_forward(blocks, x, Groups([0, 2], [2, 3])), alone, rtol=1e-12, atol=1e-14)
    assert dropped == [(5, 9), (5, 6)]


def test_gradcheck(randomised) -> None:
    block = randomised(FeedForward(4, 3))
    assert torch.autograd.gradcheck(block, torch.randn(2, 4, dtype=torch.float64, requires_grad=True))
