"""The Bi-LSTM of [MEA] Eq. 1 and a Bi-GRU, over rows and pointers."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from mea_graph.ops.backends import Backend, Op, accept
from mea_graph.ops.native import library
from mea_graph.ops.places import check_device
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.recurrent import layers, native, reference, steps, triton

__all__ = ["bigru", "bilstm"]


def bilstm(x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers], backend: str = "auto") -> list[Tensor]:
    r"""The states of a bidirectional LSTM over each sample's steps, for several sets of sequences with weights of their own.

    .. math::
        (a_i, a_f, a_g, a_o)_t &= W x_t + b + U h_{t-1} + b' \\
        c_t &= \sigma(a_f) \, c_{t-1} + \sigma(a_i) \tanh(a_g), \qquad h_t = \sigma(a_o) \tanh(c_t)

    with :math:`h_0 = c_0 = 0`. The second direction reads each sample from its last step to its first; the result holds the first one's
    states, then the second's. Sets are the modalities of a model: the kernels compute them all at once.

    Args:
        x: The rows of each set. What stands in gaps must be finite; the result there means nothing.
        weights: Of each set, as `torch.nn.LSTM(bidirectional=True)` lists its parameters: W, U, b, b' of the direction that reads ahead,
            then of the other one.
        pointers: Where the samples are in each set.
        backend: "triton" (one kernel for all sets, directions and samples, on an NVIDIA GPU), "native" (the same loops in C++, which a
            compiler on this machine builds at first use, on a CPU), "torch" (torch's own layers, on any device; cuDNN's on a GPU), or
            "reference", step by step.

    Shape:
        - x[m]: :math:`(N_m, C_m)`; W: :math:`(4 H_m, C_m)`; U: :math:`(4 H_m, H_m)`; b, b': :math:`(4 H_m,)`
        - result[m]: :math:`(N_m, 2 H_m)`

    Raises:
        ValueError: If a set of rows lacks weights or pointers, a shape is not as above, or the backend cannot run.

    >>> import torch
    >>> from mea_graph.ops import Pointers
    >>> lstm = torch.nn.LSTM(3, 4, bidirectional=True)
    >>> bilstm([torch.randn(5, 3)], [list(lstm.parameters())], [Pointers.from_ptr(torch.tensor([0, 2, 5]))])[0].shape
    torch.Size([5, 8])
    """
    return _run(_BILSTM, 4, x, weights, pointers, backend)


def bigru(x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers], backend: str = "auto") -> list[Tensor]:
    r"""The states of a bidirectional GRU over each sample's steps, for several sets of sequences with weights of their own.

    .. math::
        r_t &= \sigma(W_r x_t + b_r + U_r h_{t-1} + b'_r), \qquad z_t = \sigma(W_z x_t + b_z + U_z h_{t-1} + b'_z) \\
        n_t &= \tanh(W_n x_t + b_n + r_t (U_n h_{t-1} + b'_n)), \qquad h_t = (1 - z_t) n_t + z_t h_{t-1}

    with :math:`h_0 = 0`. The second direction reads each sample from its last step to its first; the result holds the first one's states,
    then the second's.

    Args:
        x, pointers: As for `bilstm`.
        weights: Of each set, as `torch.nn.GRU(bidirectional=True)` lists its parameters: W, U, b, b' of the direction that reads ahead,
            then of the other one.
        backend: "native" (C++, which a compiler on this machine builds at first use, on a CPU), "torch" (torch's own layers, on any device;
            cuDNN's on a GPU), or "reference", step by step.

    Shape:
        - x[m]: :math:`(N_m, C_m)`; W: :math:`(3 H_m, C_m)`; U: :math:`(3 H_m, H_m)`; b, b': :math:`(3 H_m,)`
        - result[m]: :math:`(N_m, 2 H_m)`

    Raises:
        ValueError: If a set of rows lacks weights or pointers, a shape is not as above, or the backend cannot run.

    >>> import torch
    >>> from mea_graph.ops import Pointers
    >>> gru = torch.nn.GRU(3, 4, bidirectional=True)
    >>> bigru([torch.randn(5, 3)], [list(gru.parameters())], [Pointers.from_ptr(torch.tensor([0, 2, 5]))])[0].shape
    torch.Size([5, 8])
    """
    return _run(_BIGRU, 3, x, weights, pointers, backend)


def _run(
    op: Op, gates: int, x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers], backend: str
) -> list[Tensor]:
    _check(gates, x, weights, pointers)
    arguments = {"x": list(x), "weights": [list(own) for own in weights], "pointers": list(pointers)}
    return op.run(backend, x[0].device, arguments)


def _check(gates: int, x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]) -> None:
    counts = (len(x), len(weights), len(pointers))
    if not x or len(set(counts)) != 1:
        raise ValueError(f"x, weights, pointers: expected one of each for every set of rows, got {counts}")
    for m, (rows, own, where) in enumerate(zip(x, weights, pointers, strict=True)):
        if rows.dim() != 2 or rows.size(0) != where.num_rows:
            raise ValueError(f"x[{m}]: expected ({where.num_rows}, C), got {tuple(rows.shape)}")
        check_device(f"pointers[{m}]", where.start, rows.device, f"x[{m}]")
        if len(own) != 8:
            raise ValueError(f"weights[{m}]: expected eight tensors, four of each direction, got {len(own)}")
        hidden = own[1].size(-1)
        wide = gates * hidden
        expected = [(wide, rows.size(1)), (wide, hidden), (wide,), (wide,)] * 2
        found = [tuple(weight.shape) for weight in own]
        if found != expected:
            raise ValueError(f"weights[{m}]: expected tensors of the shapes {expected}, got {found}")


_BILSTM = Op(
    bilstm,
    {
        "triton": Backend(triton.RECURRENCE.run, triton.refuse, prefers="cuda"),
        "native": Backend(native.BILSTM.run, native.refuse, hold=library.hold),
        "torch": Backend(partial(reference.by_direction, layers.lstm), accept),
        "reference": Backend(partial(reference.by_direction, steps.lstm), accept),
    },
)
_BIGRU = Op(
    bigru,
    {
        "native": Backend(native.BIGRU.run, native.refuse, hold=library.hold),
        "torch": Backend(partial(reference.by_direction, layers.gru), accept),
        "reference": Backend(partial(reference.by_direction, steps.gru), accept),
    },
)
