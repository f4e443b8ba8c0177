"""Predictive attention folded, in blocks of rows, recomputed in the backward pass: plain torch, made for the CPU, correct on any device.

The convolution over the previous layer's logits is folded into one more dot product (see `prediction`), so that a block of rows needs
nothing of the other rows. With p the inner and P the outer softmax:

    c = q k^T / sqrt(D)     p = softmax(c)     f = qhat khat     z = mu gelu(f + b) + (1 - mu) p     P = softmax(z)     out = P v

    dP = dout v^T     dz = P (dP - rowsum(P dP)) = P (dP - <dout, out>)     df = mu gelu'(f + b) dz     dc = softmax'(p, (1 - mu) dz)

A tile's maps are written into the same few buffers, which stay in the cache. Keys beyond a sample's end cost no operation of their own:
a further column of the products carries the row statistics, and what must become zero at such a key. Exponentials are powers of two
(`exp2` is inlined and vectorised, `exp` is a library call at half the speed), so logits and statistics are in base 2.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.eager import only_evaluated
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.predictive import padded, reference
from mea_graph.ops.predictive.layout import (
    BLOCK,
    LOG2E,
    Group,
    Inputs,
    Rows,
    Scratch,
    Tile,
    groups,
    one_by_one,
    tiles,
)
from mea_graph.ops.predictive.prediction import SHORT, predict

_LOWEST = -1e30  # the logit of what is not heard: its power of two is zero
_STEEP = 60.0  # base-2 logits up to this size need no shift before they become powers of two


def _steep(query: Tensor, key: Tensor) -> bool:
    """Whether a power of two of their products could overflow, by the longest query and key."""
    longest = [(x * x).sum(1).max() for x in (query, key)]
    return not float(longest[0] * longest[1]) <= _STEEP**2


def _lower(logits: Tensor) -> Tensor:
    """Subtracts each row's maximum, in place, and returns the maxima. A row that hears nothing stays at the lowest."""
    top = logits.amax(-1, keepdim=True).clamp_(min=_LOWEST / 2)
    logits.sub_(top)
    return top


def _plan(start: Tensor, length: Tensor, begin: Tensor | None, end: Tensor | None, heads: int) -> list[tuple[Group, list[Tile]]]:
    starts, lengths = start.tolist(), length.tolist()
    found = groups(starts, lengths, heads) if begin is None else one_by_one(starts, lengths)
    return [(group, tiles(group, heads, begin, end)) for group in found]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: Tensor,
    length: Tensor,
    begin: Tensor | None,
    end: Tensor | None,
    mu: float,
) -> tuple[Tensor, Tensor]:
    tensors = (query, key, value, prior_query, prior_key)
    steps, heads, _ = query.shape
    dtype = wide_dtype(*tensors, weight, bias)
    parameters = (weight.to(dtype), weight.new_zeros(heads, dtype=dtype) if bias is None else bias.to(dtype))
    result = value.new_zeros(value.shape)
    statistics = query.new_zeros(steps, heads, 2, dtype=dtype)  # log2 of the sums of both softmaxes
    plan = _plan(start, length, begin, end, heads)
    scratch = Scratch(plan, heads, prior_query.size(2), 2, statistics)
    for group, cut in plan:
        scratch.clear(group, cut)
        rows_of = Rows(group, query.device)
        inputs = Inputs(rows_of, tensors, dtype)
        out = torch.zeros_like(inputs.v_and_one)
        sums = statistics.new_zeros(len(out), 2, group.length)
        inner, outer = sums.unbind(1)
        prediction = predict(inputs.q_prior, inputs.k_prior, *parameters, scratch, begin is None and len(cut) == 1)
        steep = _steep(inputs.q_and_one[:, :-1], inputs.k_and_hidden[:, :-2])
        for tile in cut:
            rows, columns, hidden = tile.rows, tile.columns, tile.hidden()
            p = scratch("p", len(out), rows.stop - rows.start, columns.stop - columns.start)
            torch.bmm(inputs.q_and_one[..., rows].mT, inputs.k_and_hidden[:, :-1, columns], out=p)
            if hidden is not None:
                p.masked_fill_(hidden, _LOWEST)
            top = _lower(p) if steep else 0
            total = p.exp2_().sum(-1, keepdim=True)
            if hidden is not None:
                total.masked_fill_(total == 0, 1)
            inner[:, rows] = (top + total.log2()).squeeze(-1)
            z = prediction.logits(rows, columns)
            torch.ops.aten.gelu.out(z, out=z)
            torch.add(p.mul_((1 - mu) * LOG2E / total), z, alpha=mu * LOG2E, out=z)  # z in base 2, at least -0.25
            if hidden is not None:
                z.masked_fill_(hidden, _LOWEST)
            if float(z.max()) > _STEEP:
                if inputs.hidden is not None:  # the prediction next to a sample's last key may be the largest of all
                    z.masked_fill_(inputs.hidden, _LOWEST)
                outer[:, rows] = _lower(z).squeeze(-1)
            out[..., rows] = torch.bmm(inputs.v_and_one[..., columns], z.exp2_().mT)
        total = out[:, -1]
        if begin is not None:
            total.masked_fill_(total == 0, 1)
        rows_of.put(out[:, :-1] / total[:, None], result)
        outer += total.log2()
        rows_of.put(sums, statistics)
    return result, statistics


def _backward(grad: Tensor, result: Tensor, statistics: Tensor, *given: Any) -> tuple[Tensor, ...]:
    *tensors, weight, bias, start, length, begin, end, mu = given
    query, _, _, prior_query, _ = tensors
    heads = query.size(1)
    dtype = wide_dtype(*tensors, weight, bias)
    parameters = (weight.to(dtype), weight.new_zeros(heads, dtype=dtype) if bias is None else bias.to(dtype))
    d_query, d_key, d_value, d_prior_query, d_prior_key = (t.new_zeros(t.shape) for t in tensors)
    d_weight, d_bias = weight.new_zeros(weight.shape, dtype=dtype), weight.new_zeros(heads, dtype=dtype)
    plan = _plan(start, length, begin, end, heads)
    scratch = Scratch(plan, heads, prior_query.size(2), 4, statistics)
    for group, cut in plan:
        scratch.clear(group, cut)
        rows_of = Rows(group, query.device)
        inputs = Inputs(rows_of, tensors, dtype)
        d_out, out = rows_of.take(grad, dtype), rows_of.take(result, dtype)
        d_out_and_delta = torch.cat([d_out, -(d_out * out).sum(1, keepdim=True)], 1)
        inner, outer = rows_of.take(statistics, dtype).neg().unbind(1)
        if inputs.hidden is not None:  # beyond a sample's end: nothing flows back, but zero times an overflow would be NaN
            outer = outer.masked_fill(inputs.hidden[:, 0], _LOWEST)
        q_and_shift = torch.cat([inputs.q_and_one, inner[:, None]], 1)
        q, k = inputs.q_and_one[:, :-1], inputs.k_and_hidden[:, :-2]
        d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(d_out)
        prediction = predict(inputs.q_prior, inputs.k_prior, *parameters, scratch, begin is None and len(cut) == 1)
        for tile in cut:
            rows, columns, hidden = tile.rows, tile.columns, tile.hidden()
            shape = (len(q), rows.stop - rows.start, columns.stop - columns.start)
            p, z, d_z = (scratch(name, *shape) for name in ("p", "z", "d_z"))
            torch.bmm(q_and_shift[..., rows].mT, inputs.k_and_hidden[..., columns], out=p)
            if hidden is not None:
                p.masked_fill_(hidden, _LOWEST)
            f = prediction.logits(rows, columns)
            torch.ops.aten.gelu.out(f, out=z)
            torch.lerp(z, p.exp2_(), 1 - mu, out=z)
            torch.add(outer[:, rows, None], z, alpha=LOG2E, out=z)
            for unheard in (hidden, inputs.hidden):  # there z means nothing, and its power of two may overflow
                if unheard is not None:
                    z.masked_fill_(unheard, _LOWEST)
            d_v[..., columns].baddbmm_(d_out[..., rows], z.exp2_())
            torch.bmm(d_out_and_delta[..., rows].mT, inputs.v_and_one[..., columns], out=d_z).mul_(z)
            # The factors mu and 1 - mu are applied at the end, to results of size T d.
            d_c = torch._softmax_backward_data(d_z, p, -1, dtype, grad_input=z)
            d_q[..., rows] = torch.bmm(k[..., columns], d_c.mT)
            d_k[..., columns].baddbmm_(q[..., rows], d_c)
            prediction.accumulate(rows, columns, torch.ops.aten.gelu_backward.grad_input(d_z, f, grad_input=f))
        d_q_prior, d_k_prior, d_w, d_b = prediction.finish()
        rows_of.put(d_q.mul_((1 - mu) / math.sqrt(query.size(2))), d_query)
        rows_of.put(d_k.mul_((1 - mu) / LOG2E), d_key)
        rows_of.put(d_v, d_value)
        rows_of.put(d_q_prior.mul_(mu / math.sqrt(prior_query.size(2))), d_prior_query)
        rows_of.put(d_k_prior.mul_(mu), d_prior_key)
        d_weight += mu * d_w
        d_bias += mu * d_b
    d_bias = d_bias.to((weight if bias is None else bias).dtype)
    return d_query, d_key, d_value, d_prior_query, d_prior_key, d_weight.to(weight.dtype), d_bias


def fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = wide_dtype(query, key, value, *rest[:4])
    return value.new_empty(value.shape), query.new_empty(query.size(0), query.size(1), 2, dtype=dtype)


def fake_backward(grad: Tensor, result: Tensor, statistics: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight, bias = rest[5:7]
    grads = [t.new_empty(t.shape) for t in rest[:6]]
    return *grads, weight.new_empty(weight.size(0), dtype=weight.dtype if bias is None else bias.dtype)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.mu = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *tensors)


def backward_by(differentiate: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward pass of an operator whose gradients `differentiate` computes."""

    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        result, statistics, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(through_reference(_again, (*tensors, ctx.mu), grad))
        *grads, d_bias = differentiate(grad, result, statistics, *tensors, ctx.mu)
        return *grads, None if tensors[6] is None else d_bias, *(None,) * 5

    return backward


def _again(*inputs: Any) -> Tensor:
    """Recomputes the result by the reference, for a second derivative."""
    query, key, value, prior_query, prior_key, weight, bias, start, length, begin, end, mu = inputs
    pointers = Pointers._unchecked(start, length, query.size(0))
    edges = None if begin is None else IntervalEdges([pointers], pointers, begin.unsqueeze(1), end.unsqueeze(1))
    return padded.run_reference(query, key, value, prior_query, prior_key, weight, bias, mu, pointers, edges)


INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor prior_query, Tensor prior_key, Tensor weight, Tensor? bias,"
    " Tensor start, Tensor length, Tensor? begin, Tensor? end, float mu"
)
_BACKWARD = register(
    "predictive_attention_cpu_backward",
    f"(Tensor grad, Tensor result, Tensor statistics, {INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    fake_backward,
)
_FORWARD = register(
    "predictive_attention_cpu", f"({INPUTS}) -> (Tensor, Tensor)", _forward, fake_forward, setup_context, backward_by(_BACKWARD)
)


def _is_short(query: Tensor) -> bool:
    steps, heads, _ = query.shape
    return 0 < steps <= SHORT and heads * steps * steps <= BLOCK


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mu: float,
    pointers: Pointers,
    edges: IntervalEdges | None,
) -> Tensor:
    tensors = (query, key, value, prior_query, prior_key, weight, bias)
    if edges is None and only_evaluated(*tensors) and pointers.num_samples == 1 and _is_short(query) and pointers.fills_rows():
        # No gradient and one short sequence: the formula as it stands has a fifth of the calls, and one block holds its maps.
        q, k, v, q_prior, k_prior = (t.transpose(0, 1).unsqueeze(0) for t in tensors[:5])  # (1, K, T, D)
        out = reference.predictive_attention(q, k, v, q_prior, k_prior, weight, bias, mu, None)
        return out.squeeze(0).transpose(0, 1)
    begin, end = (None, None) if edges is None or edges.is_complete else (edges.begin[:, 0], edges.end[:, 0])
    return _FORWARD(*tensors, pointers.start, pointers.length, begin, end, mu)[0]
