"""The position-wise feed-forward block that closes every attention layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mea_graph.nn._dropout import make_dropout
from mea_graph.nn._sequences import check_sizes
from mea_graph.nn._side_by_side import Groups, drops_nothing, is_watched, linear, linear_onto, of_all, saves_launches, weights_of
from mea_graph.ops.grouped import Blocks, blocks_at_once


class FeedForward(nn.Module):
    r"""Position-wise two-layer perceptron with its norm and residual ([MEA] Eq. 4).

    .. math:: y = \mathrm{FFN}(\mathrm{LN}(x)) + x, \qquad \mathrm{FFN}(u) = W_2 \, \mathrm{ReLU}(W_1 u + b_1) + b_2

    Args:
        channels: Width d of input and output.
        hidden_channels: Width between the two layers; None means 4 d.
        dropout: Probability, after the activation and after the second layer.

    Raises:
        ValueError: If a width is below 1.

    Shape:
        - x: :math:`(*, d)`; result: the same

    >>> import torch
    >>> FeedForward(8)(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, channels: int, hidden_channels: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        hidden_channels = 4 * channels if hidden_channels is None else hidden_channels
        check_sizes(channels=channels, hidden_channels=hidden_channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, hidden_channels)
        self.contract = nn.Linear(hidden_channels, channels)
        self.activation = nn.ReLU()
        self.dropout = make_dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.norm.reset_parameters()
        self.expand.reset_parameters()
        self.contract.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` transformed step by step, plus `x`."""
        hidden = self.dropout(self.activation(self.expand(self.norm(x))))
        return x + self.dropout(self.contract(hidden))


def feed_forward_parts(blocks: Sequence[Any]) -> list[list[Any]]:
    """The layers with weights, each kind of all blocks; none of a single one, which is called, whatever it is."""
    return [of_all(blocks, name) for name in ("norm", "expand", "contract")] if len(blocks) > 1 else []


def feed_forward(blocks: Sequence[Any], x: Tensor, groups: Groups) -> Tensor:
    """Applies each block to its rows of (N, d); the blocks differ in their weights alone."""
    if len(blocks) == 1:
        return blocks[0](x)
    norms, expands, contracts = feed_forward_parts(blocks)
    activation, dropout = blocks[0].activation, blocks[0].dropout
    hidden = activation(linear(expands, x, groups, norms))
    return linear_onto(x, dropout, contracts, hidden if drops_nothing(dropout) else dropout(hidden), groups)


def end_of_attention(
    carried: Tensor, dropout: nn.Module, outs: Sequence[Any], blocks: Sequence[Any], attended: Tensor, groups: Groups
) -> Tensor:
    """The end of attention layers side by side: what they attended to (N, d'), mapped and added to `carried`, then their blocks."""
    alone = len(blocks) == 1 or torch.is_grad_enabled() or saves_launches(carried)
    found = None if alone else _at_once(carried, dropout, outs, blocks, attended, groups.sizes)
    if found is not None:
        return found
    return feed_forward(blocks, linear_onto(carried, dropout, outs, attended, groups), groups)


def _at_once(
    carried: Tensor, dropout: nn.Module, outs: Sequence[Any], blocks: Sequence[Any], attended: Tensor, sizes: Sequence[int]
) -> Tensor | None:
    activation, inner = blocks[0].activation, blocks[0].dropout
    if type(activation) is not nn.ReLU or is_watched(activation):
        return None
    if not (drops_nothing(dropout) and drops_nothing(inner)):
        return None
    norms, expands, contracts = feed_forward_parts(blocks)
    kinds = ((outs, nn.Linear), (norms, nn.LayerNorm), (expands, nn.Linear), (contracts, nn.Linear))
    weights = [weights_of(*kind) for kind in kinds]
    if any(own is None for own in weights):
        return None
    return blocks_at_once(carried, attended, Blocks(*weights), sizes, norms[0].eps)  # type: ignore[arg-type]
