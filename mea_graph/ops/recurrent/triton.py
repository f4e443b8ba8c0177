"""The Bi-LSTM on NVIDIA GPUs: one kernel for all sets, directions and samples. Triton is imported at the first call."""

from collections.abc import Sequence

from torch import Tensor

from mea_graph.ops.interval import triton as gpu
from mea_graph.ops.launch import launch
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.recurrent.recurrence import LSTM, Recurrence, refuse_sets

WIDEST = 64  # channels of a hidden state whose four squares of weights fit into registers
WARPS = {16: 1, 32: 1, 64: 8}  # by the width that the hidden state is padded to; a lane then holds at most 128 weights


def refuse(x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]) -> str | None:
    """Why the kernels cannot run on these tensors, or None."""
    tensors = {f"x[{m}]": rows for m, rows in enumerate(x)} | {f"weights[{m}]": own[1] for m, own in enumerate(weights)}
    reason = gpu.refuse_tensors(tensors) or refuse_sets(weights, pointers)
    if reason is not None:
        return reason
    hidden = weights[0][1].size(1)
    return f"the hidden state is {hidden} wide, and the kernel holds at most {WIDEST}" if hidden > WIDEST else None


def _launch(name: str, tensors: Sequence[Tensor], weight: Tensor, samples: int) -> None:
    from mea_graph.ops.recurrent import triton_kernels

    sets, hidden = weight.size(0), weight.size(-1)
    width = gpu.power_of_2(hidden)
    with gpu.on_device_of(weight):
        kernel = getattr(triton_kernels, name)
        launch(kernel, (samples, 2), *tensors, hidden, samples // sets, WIDTH=width, num_warps=WARPS[width])


def _ahead(driven: Tensor, weight: Tensor, start: Tensor, length: Tensor, out: Tensor, states: Tensor) -> None:
    _launch("bilstm_fwd_kernel", (driven, weight.mT.contiguous(), start, length, out, states), weight, start.size(0))


def _back(grad: Tensor, states: Tensor, weight: Tensor, start: Tensor, length: Tensor, slopes: Tensor) -> None:
    _launch("bilstm_bwd_kernel", (grad, states, weight, start, length, slopes), weight, start.size(0))


RECURRENCE = Recurrence("bilstm_triton", LSTM, _ahead, _back)
