"""One direction of a Bi-LSTM that can be traced: torch's own LSTM, seen by `torch.compile`, `torch.export` and ONNX as one operator.

Dynamo refuses `torch.nn.LSTM`, and what torch makes of its function while tracing is one graph node for every step, hence another graph for
every length.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mea_graph.ops.library import register


class LSTM(nn.RNNBase):
    """(B, T, C) to (B, T, H): `nn.LSTM(channels, hidden_channels, batch_first=True)` from a state of zeros, with its parameters by name."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__("LSTM", channels, hidden_channels, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        run = OPERATOR if torch.compiler.is_compiling() else _lstm  # eagerly torch's own backward pass saves computing the states again
        return run(x, self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)


def _lstm(x: Tensor, *weights: Tensor) -> Tensor:
    state = x.new_zeros(1, x.size(0), weights[1].size(1))
    return torch.lstm(x, (state, state), weights, True, 1, 0.0, False, False, True)[0]


def _run(x: Tensor, *weights: Tensor) -> Tensor:
    """Under autocast x is narrower than the weights."""
    return _lstm(x.to(weights[0].dtype), *weights).to(x.dtype).contiguous()


def _fake(x: Tensor, *weights: Tensor) -> Tensor:
    return x.new_empty(x.size(0), x.size(1), weights[1].size(1))


def _run_backward(grad: Tensor, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> tuple[Tensor, ...]:
    """The states once more, then back through time."""
    kind, grad, x = x.dtype, grad.to(weight_ih.dtype), x.to(weight_ih.dtype)
    driven = x @ weight_ih.mT + (bias_ih + bias_hh)  # (B, T, 4 H)
    hidden = [x.new_zeros(x.size(0), weight_hh.size(1))]
    cells, gates = [hidden[0]], []
    for step in driven.unbind(1):
        i, f, g, o = (step + hidden[-1] @ weight_hh.mT).chunk(4, 1)
        gates.append((i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()))
        i, f, g, o = gates[-1]
        cells.append(f * cells[-1] + i * g)
        hidden.append(o * cells[-1].tanh())
    d_driven = torch.empty_like(driven)
    d_hidden, d_cell = torch.zeros_like(hidden[0]), torch.zeros_like(hidden[0])
    for t in range(x.size(1) - 1, -1, -1):
        (i, f, g, o), out = gates[t], cells[t + 1].tanh()
        d_hidden = d_hidden + grad[:, t]
        d_cell = d_cell + d_hidden * o * (1 - out * out)
        parts = [d_cell * g * i * (1 - i), d_cell * cells[t] * f * (1 - f), d_cell * i * (1 - g * g), d_hidden * out * o * (1 - o)]
        d_driven[:, t] = torch.cat(parts, 1)
        d_hidden, d_cell = d_driven[:, t] @ weight_hh, d_cell * f
    rows = d_driven.flatten(0, 1)
    d_weight_hh = rows.mT @ torch.stack(hidden[:-1], 1).flatten(0, 1)
    d_bias = rows.sum(0)
    return (d_driven @ weight_ih).to(kind), rows.mT @ x.flatten(0, 1), d_weight_hh, d_bias, d_bias.clone()


def _fake_backward(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in tensors)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return _BACKWARD(grad, *ctx.saved_tensors)


_WEIGHTS = "Tensor weight_ih, Tensor weight_hh, Tensor bias_ih, Tensor bias_hh"
_BACKWARD = register(
    "lstm_backward", f"(Tensor grad, Tensor x, {_WEIGHTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _run_backward, _fake_backward
)
OPERATOR = register("lstm", f"(Tensor x, {_WEIGHTS}) -> Tensor", _run, _fake, _setup_context, _backward)
