"""The Bi-LSTM of [MEA] Eq. 1, over rows and pointers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from mea_graph.ops.backends import Backend, Op
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.recurrent import layers, reference, triton

__all__ = ["bilstm"]


def bilstm(x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers], backend: str = "auto") -> list[Tensor]:
    r"""The states of a bidirectional LSTM over each sample's steps, for several sets of sequences with weights of their own.

    .. math::
        (a_i, a_f, a_g, a_o)_t &= W x_t + b + U h_{t-1} + b' \\
        c_t &= \sigma(a_f) \, c_{t-1} + \sigma(a_i) \tanh(a_g), \qquad h_t = \sigma(a_o) \tanh(c_t)

    with :math:`h_0 = c_0 = 0`. The second direction reads each sample from its last step to its first; the result holds the first one's
    states, then the second's. Sets are the modalities of a model: a GPU computes them all at once.

    Args:
        x: The rows of each set. What stands in gaps must be finite; the result there means nothing.
        weights: Of each set, as `torch.nn.LSTM(bidirectional=True)` lists its parameters: W, U, b, b' of the direction that reads ahead,
            then of the other one.
        pointers: Where the samples are in each set.
        backend: "triton" (one kernel for all sets, directions and samples, on an NVIDIA GPU), "torch" (torch's own layers, on any device;
            cuDNN's on a GPU), or "reference", step by step.

    Shape:
        - x[m]: :math:`(N_m, C_m)`; W: :math:`(4 H_m, C_m)`; U: :math:`(4 H_m, H_m)`; b, b': :math:`(4 H_m,)`
        - result[m]: :math:`(N_m, 2 H_m)`

    Raises:
        ValueError: Not as many weights and pointers as sets of rows, shapes other than above, or the backend cannot run.

    >>> import torch
    >>> from mea_graph.ops import Pointers
    >>> lstm = torch.nn.LSTM(3, 4, bidirectional=True)
    >>> bilstm([torch.randn(5, 3)], [list(lstm.parameters())], [Pointers.from_ptr(torch.tensor([0, 2, 5]))])[0].shape
    torch.Size([5, 8])
    """
    _check(x, weights, pointers)
    arguments = {"x": list(x), "weights": [list(own) for own in weights], "pointers": list(pointers)}
    return _OP.run(backend, x[0].device, arguments)


def _check(x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]) -> None:
    counts = (len(x), len(weights), len(pointers))
    if not x or len(set(counts)) != 1:
        raise ValueError(f"x, weights, pointers: expected one of each for every set of rows, got {counts}")
    for m, (rows, own, where) in enumerate(zip(x, weights, pointers, strict=True)):
        if rows.dim() != 2 or rows.size(0) != where.num_rows:
            raise ValueError(f"x[{m}]: expected ({where.num_rows}, C), got {tuple(rows.shape)}")
        if len(own) != 8:
            raise ValueError(f"weights[{m}]: expected eight tensors, four of each direction, got {len(own)}")
        hidden = own[1].size(-1)
        expected = [(4 * hidden, rows.size(1)), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)] * 2
        found = [tuple(weight.shape) for weight in own]
        if found != expected:
            raise ValueError(f"weights[{m}]: expected tensors of the shapes {expected}, got {found}")


def _accept(**_: Any) -> None:
    """For the backends that run on anything."""


_OP = Op(
    bilstm,
    {
        "triton": Backend(triton.run, triton.refuse, prefers="cuda"),
        "torch": Backend(partial(reference.by_direction, layers.lstm), _accept),
        "reference": Backend(reference.run, _accept),
    },
)
