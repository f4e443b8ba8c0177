"""One direction of a Bi-LSTM or Bi-GRU as a module that can be traced: torch's own, one operator in a graph."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mea_graph.nn._side_by_side import is_watched
from mea_graph.ops.eager import is_transformed
from mea_graph.ops.recurrent import bigru, bilstm, layers, steps


class _Recurrent(nn.RNNBase):
    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    @property
    def weights(self) -> list[Tensor]:
        return [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]

    def _states(self, run: Callable[..., Tensor], step_by_step: Callable[..., Tensor], x: Tensor) -> Tensor:
        # torch's own layers have no batching rule and no forward mode
        return (step_by_step if is_transformed() else run)(x, *self.weights)


class LSTM(_Recurrent):
    """(B, T, C) to (B, T, H): `nn.LSTM(channels, hidden_channels, batch_first=True)` from a state of zeros, with its parameters by name."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__("LSTM", int(channels), int(hidden_channels), batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self._states(layers.lstm, steps.lstm, x)


class GRU(_Recurrent):
    """(B, T, C) to (B, T, H): `nn.GRU(channels, hidden_channels, batch_first=True)` from a state of zeros, with its parameters by name."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__("GRU", int(channels), int(hidden_channels), batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self._states(layers.gru, steps.gru, x)


def op_of_both(ahead: nn.Module, back: nn.Module) -> Callable[..., list[Tensor]] | None:
    """The op that computes both directions from their weights; None where the layers themselves are to be called.

    That is where somebody watches one of them or has put another in its place, and in an export, which cannot prove that the rows made of
    a batch of any length have the same strides as the batch made of them.
    """
    kind = type(ahead)
    if kind not in (LSTM, GRU) or type(back) is not kind or is_watched(ahead) or is_watched(back) or torch.compiler.is_exporting():
        return None
    return bilstm if kind is LSTM else bigru
