"""What the kernels of a GPU and the C++ of a CPU share: one product with the input for all steps, and an operator that goes through them.

The loops take all sets, directions and samples side by side, read no length on the host and copy no sequence: the second direction walks
its rows backwards.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.eager import only_evaluated
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.recurrent import reference, steps

_INPUTS = "Tensor weight, Tensor start, Tensor length, SymInt[] sizes, bool packed"


class Cell(NamedTuple):
    """What an LSTM and a GRU differ in."""

    gates: int  # G: that the input drives
    saved: int  # vectors that a step leaves for the backward pass; the last is the state of the step before
    heard: tuple[int, ...]  # which of the four slopes of a step are those of what the state adds, gate by gate
    has_bias: bool  # whether the state's bias stays apart from the input's: then it is the last column of U
    states: Callable[[Tensor, Tensor], Tensor]  # the reference: driven (B, T, G H) and U (G H, H or H + 1) to (B, T, H)


def _biased_gru(driven: Tensor, weight: Tensor) -> Tensor:
    return steps.gru_driven(driven, weight[:, :-1], weight[:, -1])


LSTM = Cell(4, 6, (0, 1, 2, 3), False, steps.lstm_driven)
GRU = Cell(3, 5, (0, 1, 3), True, _biased_gru)


class Recurrence:
    """The operators `name` and `<name>_backward`, made of two loops, and the backend that runs them.

    Args:
        name: Of the operator.
        cell: Of which kind.
        ahead: Takes driven (N, 2, G, H), weight (S, 2, G, H, H or H + 1), start and length (samples,), and writes out (N, 2, H) and
            states (N, 2, saved, H): of an LSTM i, f, g, o, c and h of the step before, of a GRU r, z, n, U_n h + b_n and h.
        back: Takes the gradient of out, states, weight, start and length, and writes the slopes (N, 2, 4, H): the gradients of what goes
            into i, f, g, o; of r, z, n and of U_n h + b_n.
    """

    def __init__(self, name: str, cell: Cell, ahead: Callable[..., None], back: Callable[..., None]) -> None:
        self._cell, self._ahead, self._back = cell, ahead, back
        self._backward = register(
            f"{name}_backward", f"(Tensor grad, Tensor states, {_INPUTS}) -> (Tensor, Tensor)", self.backward, self._fake_backward
        )
        schema = f"(Tensor driven, {_INPUTS}) -> (Tensor, Tensor)"
        self._forward = register(name, schema, self.forward, self._fake_forward, _setup_context, self._autograd)

    def forward(
        self, driven: Tensor, weight: Tensor, start: Tensor, length: Tensor, sizes: Sequence[int], packed: bool
    ) -> tuple[Tensor, Tensor]:
        """The states, (N, 2, H), and what the backward pass reads."""
        out, states = (_rows_like(made, packed) for made in self._fake_forward(driven, weight, start, length, sizes, packed))
        if out.numel():
            self._ahead(driven.contiguous(), weight, start.contiguous(), length.contiguous(), out, states)
        return out, states

    def backward(
        self, grad: Tensor, states: Tensor, weight: Tensor, start: Tensor, length: Tensor, sizes: Sequence[int], packed: bool
    ) -> tuple[Tensor, Tensor]:
        cell, (d_driven, d_weight) = self._cell, self._fake_backward(grad, states, weight, start, length, sizes, packed)
        if not d_driven.numel():
            return d_driven, d_weight.zero_()
        slopes = _rows_like(grad.new_empty(grad.size(0), 2, 4, grad.size(2)), packed)
        self._back(grad.contiguous(), states.contiguous(), weight.contiguous(), start.contiguous(), length.contiguous(), slopes)
        heard = slopes if cell.gates == 4 else slopes[:, :, list(cell.heard)]
        before = states[:, :, -1]
        if cell.has_bias:
            before = F.pad(before, (0, 1), value=1.0)
        by_gate = heard.to(states.dtype).flatten(2)  # (N, 2, G H)
        if len(set(sizes)) == 1:  # one product for all sets and directions
            by_gate, before = (t.unflatten(0, (len(sizes), -1)).transpose(1, 2).flatten(0, 1) for t in (by_gate, before))
            d_weight = torch.bmm(by_gate.mT, before).view(weight.shape).to(weight.dtype)
        else:
            for of_set, own, held in zip(d_weight, by_gate.split(sizes), before.split(sizes), strict=True):
                of_set.copy_(torch.bmm(own.permute(1, 2, 0), held.transpose(0, 1)).view(of_set.shape))
        return slopes[:, :, : cell.gates].contiguous(), d_weight

    def _autograd(self, ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        states, driven, *rest = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = through_reference(partial(_again, self._cell), (driven, *rest, ctx.sizes, ctx.packed), grad)
            return found[0], found[1], *(None,) * 4  # no gradient of numbers
        return *self._backward(grad, states, *rest, ctx.sizes, ctx.packed), *(None,) * 4

    def run(self, x: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]) -> list[Tensor]:
        """See `bilstm` and `bigru`."""
        cell, hidden, sizes = self._cell, weights[0][1].size(1), [rows.size(0) for rows in x]
        driving, held, biases, of_state = ([own[at + kind] for own in weights for at in (0, 4)] for kind in range(4))  # by way
        if cell.has_bias:
            held = [torch.cat([u, b.unsqueeze(1)], 1) for u, b in zip(held, of_state, strict=True)]
            bias = torch.cat(biases)
        else:
            # Not a sum of two `cat`, which gives both biases gradients in the same memory, where clipping scales twice.
            bias = torch.cat([*biases, *of_state]).view(2, -1).sum(0)
        weight = torch.stack(held).view(len(x), 2, cell.gates, hidden, -1)
        if len(x) == 1:
            joined = F.linear(x[0], torch.cat(driving), bias)
        elif len({rows.shape for rows in x}) == 1:  # one product for all sets
            driven = torch.bmm(torch.stack(list(x)), torch.cat(driving).view(len(x), -1, x[0].size(1)).mT)
            joined = driven + bias.view(len(x), 1, -1).to(driven.dtype)
        else:
            of_sets = zip(x, driving[::2], driving[1::2], bias.chunk(len(x)), strict=True)
            joined = torch.cat([F.linear(rows, torch.cat([ahead, back]), own) for rows, ahead, back, own in of_sets])
        where = Pointers.join(pointers)
        joined = joined.view(-1, 2, cell.gates, hidden)
        operator = self.forward if only_evaluated(joined, weight) else self._forward
        out = operator(joined, weight, where.start, where.length, sizes, where.packed)[0].flatten(1)
        return list(out.split(sizes)) if len(x) > 1 else [out]

    def _fake_forward(self, driven: Tensor, weight: Tensor, start: Any, length: Any, sizes: Any, packed: Any) -> tuple[Tensor, Tensor]:
        rows, hidden = driven.size(0), driven.size(-1)
        exact = torch.promote_types(driven.dtype, torch.float32)
        return driven.new_empty(rows, 2, hidden), driven.new_empty(rows, 2, self._cell.saved, hidden, dtype=exact)

    def _fake_backward(
        self, grad: Tensor, states: Tensor, weight: Tensor, start: Any, length: Any, sizes: Any, packed: Any
    ) -> tuple[Tensor, Tensor]:
        return grad.new_empty(grad.size(0), 2, self._cell.gates, grad.size(2)), weight.new_empty(weight.shape)


def refuse_sets(weights: Sequence[Sequence[Tensor]], pointers: Sequence[Pointers]) -> str | None:
    """Why sets cannot be computed side by side, or None."""
    widths = {own[1].size(1) for own in weights}
    if len(widths) > 1:
        return f"the hidden states of the sets are of different widths: {sorted(widths)}"
    if any(where.num_samples != pointers[0].num_samples for where in pointers):
        return "the sets have different numbers of samples"
    return None


def _rows_like(x: Tensor, packed: bool) -> Tensor:
    """For results of x's shape. The loops write every row that is a step; gaps are to hold zeros."""
    return x.new_empty(x.shape) if packed else x.new_zeros(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.sizes, ctx.packed = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _again(cell: Cell, driven: Tensor, weight: Tensor, start: Tensor, length: Tensor, sizes: Sequence[int], packed: bool) -> Tensor:
    """The same step by step, for a second derivative."""
    states, first, samples = [], 0, start.size(0) // weight.size(0)
    for k, size in enumerate(sizes):
        own = slice(k * samples, (k + 1) * samples)
        where = Pointers._unchecked(start[own] - first, length[own], size, packed=packed)
        rows = driven[first : first + size].flatten(1)
        if not packed:
            rows = rows.masked_fill(~where.real[:, None], 0)
        ahead, back = (partial(_one_way, cell, weight[k, d].flatten(0, 1), d) for d in (0, 1))
        states.append(reference.of_rows(ahead, back, rows, where).unflatten(1, (2, -1)))
        first += size
    return torch.cat(states)


def _one_way(cell: Cell, weight: Tensor, direction: int, driven: Tensor) -> Tensor:
    return cell.states(driven.unflatten(2, (2, -1))[:, :, direction], weight)
