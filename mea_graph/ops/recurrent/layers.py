"""One direction of an LSTM or a GRU on a padded batch: torch's own, seen by `torch.compile`, `torch.export` and ONNX as one operator.

Dynamo refuses `torch.nn.LSTM` and `torch.nn.GRU`. Traced, torch's functions become one graph node for every step, hence another graph for
every length.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.library import operator_of, register

_WEIGHTS = "Tensor weight_ih, Tensor weight_hh, Tensor bias_ih, Tensor bias_hh"


def lstm(x: Tensor, *weights: Tensor) -> Tensor:
    """(B, T, C) to the states (B, T, H)."""
    # Eagerly torch's own backward pass saves computing the states again.
    return (LSTM_OPERATOR if torch.compiler.is_compiling() else _lstm)(x, *weights)


def gru(x: Tensor, *weights: Tensor) -> Tensor:
    """(B, T, C) to the states (B, T, H)."""
    return (GRU_OPERATOR if torch.compiler.is_compiling() else _gru)(x, *weights)


def both_ways(ahead: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], x: Tensor, length: Tensor) -> Tensor:
    """(B, T, C), lengths (B,), to (B, T, 2 H): the states of two layers; the second reads each sequence reversed in its own length.

    That needs no packing, hence no host synchronisation, and is several times faster on a CPU than packed sequences. Step t of a sequence
    of length n is read from n - 1 - t; padding repeats a step after everything real, and its states mean nothing.
    """
    turned = (length.unsqueeze(1) - torch.arange(1, x.size(1) + 1, device=x.device)).clamp(min=0).unsqueeze(-1)  # (B, T, 1)
    returned = back(x.gather(1, turned.expand_as(x)))
    return torch.cat([ahead(x), returned.gather(1, turned.expand_as(returned))], -1)


def _lstm(x: Tensor, *weights: Tensor) -> Tensor:
    state = x.new_zeros(1, x.size(0), weights[1].size(1))
    return torch.lstm(x, (state, state), weights, True, 1, 0.0, _keeps(x), False, True)[0]


def _gru(x: Tensor, *weights: Tensor) -> Tensor:
    return torch.gru(x, x.new_zeros(1, x.size(0), weights[1].size(1)), weights, True, 1, 0.0, _keeps(x), False, True)[0]


def _keeps(x: Tensor) -> bool:
    """The flag `train`: without it cuDNN keeps nothing for its backward pass, which then raises. There is no dropout to turn on."""
    return x.device.type != "cpu" and torch.is_grad_enabled()


def _lstm_backward(grad: Tensor, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> tuple[Tensor, ...]:
    """Computes the states again, then goes back through time."""
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
    return _gradients(x, hidden, d_driven, d_driven, weight_ih)


def _gru_backward(grad: Tensor, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> tuple[Tensor, ...]:
    """Computes the states again, then goes back through time. Two gradients, since the last state also passes the reset gate."""
    driven = x @ weight_ih.mT + bias_ih  # (B, T, 3 H)
    hidden, gates = [x.new_zeros(x.size(0), weight_hh.size(1))], []
    for step in driven.unbind(1):
        (r, z, n), (past_r, past_z, past_n) = step.chunk(3, 1), (hidden[-1] @ weight_hh.mT + bias_hh).chunk(3, 1)
        r, z = (r + past_r).sigmoid(), (z + past_z).sigmoid()
        n = (n + r * past_n).tanh()
        gates.append((r, z, n, past_n))
        hidden.append((1 - z) * n + z * hidden[-1])
    d_driven, d_past = torch.empty_like(driven), torch.empty_like(driven)
    d_hidden = torch.zeros_like(hidden[0])
    for t in range(x.size(1) - 1, -1, -1):
        r, z, n, past_n = gates[t]
        d_hidden = d_hidden + grad[:, t]
        d_n = d_hidden * (1 - z) * (1 - n * n)
        d_r, d_z = d_n * past_n * r * (1 - r), d_hidden * (hidden[t] - n) * z * (1 - z)
        d_driven[:, t], d_past[:, t] = torch.cat([d_r, d_z, d_n], 1), torch.cat([d_r, d_z, d_n * r], 1)
        d_hidden = d_hidden * z + d_past[:, t] @ weight_hh
    return _gradients(x, hidden, d_driven, d_past, weight_ih)


def _gradients(x: Tensor, hidden: list[Tensor], d_driven: Tensor, d_past: Tensor, weight_ih: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the input and the four parameters, from those of what the input and the last state add to the gates."""
    rows, past = d_driven.flatten(0, 1), d_past.flatten(0, 1)
    d_weight_hh = past.mT @ torch.stack(hidden[:-1], 1).flatten(0, 1)
    return d_driven @ weight_ih, rows.mT @ x.flatten(0, 1), d_weight_hh, rows.sum(0), past.sum(0)


def _define(name: str, eager: Callable[..., Tensor], eager_backward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """Computes in the dtype of the weights and returns that of x, which is narrower under autocast."""

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return eager(x.to(weights[0].dtype), *weights).to(x.dtype).contiguous()

    def fake(x: Tensor, *weights: Tensor) -> Tensor:
        return x.new_empty(x.size(0), x.size(1), weights[1].size(1))

    def run_backward(grad: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        d_x, *d_weights = eager_backward(grad.to(weights[0].dtype), x.to(weights[0].dtype), *weights)
        return d_x.to(x.dtype), *d_weights

    def fake_backward(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.new_empty(t.shape) for t in tensors)

    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    results = ", ".join(["Tensor"] * 5)
    backward = register(f"{name}_backward", f"(Tensor grad, Tensor x, {_WEIGHTS}) -> ({results})", run_backward, fake_backward)
    register(name, f"(Tensor x, {_WEIGHTS}) -> Tensor", run, fake, setup_context, lambda ctx, grad: backward(grad, *ctx.saved_tensors))
    return operator_of(name)


LSTM_OPERATOR = _define("lstm", _lstm, _lstm_backward)
GRU_OPERATOR = _define("gru", _gru, _gru_backward)
