"""The Bi-LSTM on NVIDIA GPUs: what the input adds to the gates is one product for all steps, and one kernel goes through them.

It takes all sets, directions and samples side by side, reads no length on the host and copies no sequence: the second direction walks its
rows backwards. Triton itself is imported at the first call.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.interval import triton as gpu
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.recurrent import reference, steps

WIDEST = 64  # channels of a hidden state whose four squares of weights fit into registers
WARPS = {16: 1, 32: 1, 64: 8}  # by the width that the hidden state is padded to; a lane then holds at most 128 weights


def refuse(x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]) -> str | None:
    """Why the kernels cannot run on these tensors, or None."""
    tensors = {f"x[{m}]": rows for m, rows in enumerate(x)} | {f"weights[{m}]": own[1] for m, own in enumerate(weights)}
    reason = gpu.refuse_tensors(tensors)
    if reason is not None:
        return reason
    widths = {own[1].size(1) for own in weights}
    if len(widths) > 1:
        return f"the hidden states of the sets are of different widths: {sorted(widths)}"
    if max(widths) > WIDEST:
        return f"the hidden state is {max(widths)} wide, and the kernel holds at most {WIDEST}"
    if any(where.num_samples != pointers[0].num_samples for where in pointers):
        return "the sets have different numbers of samples"
    return None


def _launch(name: str, tensors: Sequence[Tensor], weight: Tensor, start: Tensor) -> None:
    from mea_graph.ops.recurrent import triton_kernels

    sets, hidden = weight.size(0), weight.size(-1)
    width = gpu.power_of_2(hidden)
    with gpu.on_device_of(weight):
        kernel = getattr(triton_kernels, name)
        kernel[(start.size(0), 2)](*tensors, hidden, start.size(0) // sets, WIDTH=width, num_warps=WARPS[width])


def _forward(driven: Tensor, weight: Tensor, start: Tensor, length: Tensor, sizes: Sequence[int], packed: bool) -> tuple[Tensor, Tensor]:
    """The states, (N, 2, H), and what the backward pass reads."""
    out, states = (gpu.rows_like(made, packed) for made in _fake_forward(driven, weight, start, length, sizes, packed))
    if out.numel():
        turned = weight.mT.contiguous()
        _launch("bilstm_fwd_kernel", (driven.contiguous(), turned, start.contiguous(), length.contiguous(), out, states), weight, start)
    return out, states


def _backward(
    grad: Tensor, states: Tensor, weight: Tensor, start: Tensor, length: Tensor, sizes: Sequence[int], packed: bool
) -> tuple[Tensor, Tensor]:
    d_driven, d_weight = _fake_backward(grad, states, weight, start, length, sizes, packed)
    if not d_driven.numel():
        return d_driven, d_weight.zero_()
    d_driven = gpu.rows_like(d_driven, packed)
    tensors = (grad.contiguous(), states, weight.contiguous(), start.contiguous(), length.contiguous(), d_driven)
    _launch("bilstm_bwd_kernel", tensors, weight, start)
    first, hidden, sets = 0, weight.size(-1), len(sizes)
    if sets > 2 and len(set(sizes)) == 1:  # a product for each direction
        by_gate, before = d_driven.float().view(sets, -1, 2, 4 * hidden), states.view(sets, -1, *states.shape[1:])[:, :, :, 5]
        for way in range(2):
            d_weight[:, way].copy_(torch.bmm(by_gate[:, :, way].mT, before[:, :, way]).unflatten(1, (4, hidden)))
        return d_driven, d_weight
    for of_set, size in zip(d_weight, sizes, strict=True):
        rows = slice(first, first + size)
        by_gate = d_driven[rows].float().flatten(2).permute(1, 2, 0)  # (2, 4 H, n)
        of_set.copy_(torch.bmm(by_gate, states[rows, :, 5].transpose(0, 1)).unflatten(1, (4, hidden)))
        first += size
    return d_driven, d_weight


def _fake_forward(driven: Tensor, weight: Tensor, start: Any, length: Any, sizes: Any, packed: Any) -> tuple[Tensor, Tensor]:
    rows, hidden = driven.size(0), weight.size(-1)
    return driven.new_empty(rows, 2, hidden), driven.new_empty(rows, 2, 6, hidden, dtype=torch.float32)


def _fake_backward(grad: Tensor, states: Tensor, weight: Tensor, start: Any, length: Any, sizes: Any, packed: Any) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.size(0), 2, 4, grad.size(2)), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.sizes, ctx.packed = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    states, driven, *rest = ctx.saved_tensors
    if torch.is_grad_enabled():
        found = through_reference(_again, (driven, *rest, ctx.sizes, ctx.packed), grad)
        return found[0], found[1], *(None,) * 4  # no gradient of numbers
    return *_BACKWARD(grad, states, *rest, ctx.sizes, ctx.packed), *(None,) * 4


def _one_way(weight: Tensor, direction: int, driven: Tensor) -> Tensor:
    return steps.lstm_driven(driven.unflatten(2, (2, -1))[:, :, direction], weight)


def _again(driven: Tensor, weight: Tensor, start: Tensor, length: Tensor, sizes: Sequence[int], packed: bool) -> Tensor:
    """The same step by step, for a second derivative."""
    states, first, samples = [], 0, start.size(0) // weight.size(0)
    for k, size in enumerate(sizes):
        own = slice(k * samples, (k + 1) * samples)
        where = Pointers(start[own] - first, length[own], size, packed=packed)
        rows = driven[first : first + size].flatten(1)
        if not packed:
            rows = rows.masked_fill(~where.real[:, None], 0)
        ahead, back = (partial(_one_way, weight[k, d].flatten(0, 1), d) for d in (0, 1))
        states.append(reference.of_rows(ahead, back, rows, where).unflatten(1, (2, -1)))
        first += size
    return torch.cat(states)


_INPUTS = "Tensor weight, Tensor start, Tensor length, SymInt[] sizes, bool packed"
_BACKWARD = register("bilstm_triton_backward", f"(Tensor grad, Tensor states, {_INPUTS}) -> (Tensor, Tensor)", _backward, _fake_backward)
_FORWARD = register("bilstm_triton", f"(Tensor driven, {_INPUTS}) -> (Tensor, Tensor)", _forward, _fake_forward, _setup_context, _autograd)


def run(x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]) -> list[Tensor]:
    """See `bilstm`."""
    hidden, sizes = weights[0][1].size(1), [rows.size(0) for rows in x]
    weight_ih, weight_hh, *biases = ([own[at] for own in weights for at in (kind, kind + 4)] for kind in range(4))
    weight = torch.stack(weight_hh).view(len(x), 2, 4, hidden, hidden)
    bias = torch.cat([*biases[0], *biases[1]]).view(2, len(x), 1, -1).sum(0)  # of both directions
    if len(x) > 1 and len({rows.shape for rows in x}) == 1:
        joined = torch.bmm(torch.stack(list(x)), torch.cat(weight_ih).view(len(x), -1, x[0].size(1)).mT)
        joined = joined + bias.to(joined.dtype)
    else:
        ways = zip(x, weight_ih[::2], weight_ih[1::2], bias, strict=True)
        driven = [F.linear(rows, torch.cat([ahead, back]), b.view(-1)) for rows, ahead, back, b in ways]
        joined = driven[0] if len(x) == 1 else torch.cat(driven)
    where = Pointers.join(pointers)
    joined = joined.view(-1, 2, 4, hidden)
    out = _FORWARD(joined, weight, where.start, where.length, sizes, where.packed)[0].flatten(1)
    return list(out.split(sizes)) if len(x) > 1 else [out]
