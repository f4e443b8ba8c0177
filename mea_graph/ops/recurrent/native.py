"""The Bi-LSTM and the Bi-GRU by compiled C++: one call goes through the steps of all sets, directions and samples, without padding."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mea_graph.ops.native import library
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.recurrent.recurrence import GRU, LSTM, Recurrence, refuse_sets


def refuse(x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]) -> str | None:
    """Why the loops cannot run on these tensors, or None."""
    if x[0].device.type != "cpu":
        return f"the tensors are on {x[0].device.type}"
    return refuse_sets(weights, pointers) or library.refuse()


def _ahead(name: str, driven: Tensor, weight: Tensor, start: Tensor, length: Tensor, out: Tensor, states: Tensor) -> None:
    dtype = states.dtype
    exact = out.to(dtype)
    _call(f"{name}_forward", (driven.to(dtype), weight.to(dtype).contiguous(), start, length, exact, states, None, None), weight.size(0))
    if exact is not out:
        out.copy_(exact)


def _back(name: str, grad: Tensor, states: Tensor, weight: Tensor, start: Tensor, length: Tensor, slopes: Tensor) -> None:
    dtype = states.dtype
    exact = slopes.to(dtype)
    tensors = (None, weight.to(dtype).contiguous(), start, length, None, states, grad.to(dtype), exact)
    _call(f"{name}_backward", tensors, weight.size(0))
    if exact is not slopes:
        slopes.copy_(exact)


def _call(name: str, tensors: Sequence[Tensor | None], sets: int) -> None:
    _, _, start, _, _, states, *_ = tensors
    assert start is not None
    assert states is not None
    sizes = (start.size(0), start.size(0) // sets, states.size(-1), torch.get_num_threads())
    library.call(name, states.dtype, [*tensors, *sizes])


BILSTM = Recurrence("bilstm_native", LSTM, partial(_ahead, "lstm"), partial(_back, "lstm"))
BIGRU = Recurrence("bigru_native", GRU, partial(_ahead, "gru"), partial(_back, "gru"))
