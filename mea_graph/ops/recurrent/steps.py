"""The reference of the recurrent layers: step by step, in operations that any transform understands."""

import torch
from torch import Tensor


def lstm(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """(B, T, C) to the states (B, T, H)."""
    return lstm_driven(x @ weight_ih.mT + (bias_ih + bias_hh), weight_hh)


def lstm_driven(driven: Tensor, weight_hh: Tensor) -> Tensor:
    """The states, from what the input adds to the gates, (B, T, 4 H), in torch's order i, f, g, o."""
    hidden = cell = driven.new_zeros(driven.size(0), weight_hh.size(1))
    states = []
    for step in driven.unbind(1):
        i, f, g, o = (step + hidden @ weight_hh.mT).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        states.append(hidden)
    return torch.stack(states, 1)


def gru(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """(B, T, C) to the states (B, T, H)."""
    return gru_driven(x @ weight_ih.mT + bias_ih, weight_hh, bias_hh)


def gru_driven(driven: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
    """From what the input adds to the gates, (B, T, 3 H), in torch's order r, z, n."""
    hidden, states = driven.new_zeros(driven.size(0), weight_hh.size(1)), []
    for step in driven.unbind(1):
        (r, z, n), (past_r, past_z, past_n) = step.chunk(3, 1), (hidden @ weight_hh.mT + bias_hh).chunk(3, 1)
        r, z = (r + past_r).sigmoid(), (z + past_z).sigmoid()
        hidden = (1 - z) * (n + r * past_n).tanh() + z * hidden
        states.append(hidden)
    return torch.stack(states, 1)
