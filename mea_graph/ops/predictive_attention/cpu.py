"""Predictive attention folded, in blocks of rows, recomputed in the backward pass: plain torch, made for the CPU, correct on any device.

The convolution over the previous layer's logits is folded into one more dot product (see `prediction`), so that a block of rows needs
nothing of the other rows. With p the inner and P the outer softmax:

    c = q k^T / sqrt(D)     p = softmax(c)     f = qhat khat     z = mu gelu(f + b) + (1 - mu) p     P = softmax(z)     out = P v

    dP = dout v^T     dz = P (dP - rowsum(P dP)) = P (dP - <dout, out>)     df = mu gelu'(f + b) dz     dc = softmax'(p, (1 - mu) dz)

A block's maps are written into the same few buffers, which stay in the cache. Hidden keys cost no operation of their own: a further column
of the products carries the row statistics, and what must become zero at a hidden key. Exponentials are powers of two (`exp2` is inlined
and vectorised, `exp` is a library call at half the speed), so logits and statistics are in base 2.
"""

import math
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.eager import only_evaluated
from mea_graph.ops.library import register
from mea_graph.ops.predictive_attention import reference
from mea_graph.ops.predictive_attention.layout import BLOCK, LOG2E, Inputs, Scratch, compute_dtype, groups
from mea_graph.ops.predictive_attention.prediction import SHORT, predict

_STEEP = 60.0  # base-2 logits up to this size need no shift before they become powers of two


def _steep(query: Tensor, key: Tensor) -> bool:
    """Whether a power of two of their products could overflow, by the longest query and key."""
    longest = [(x * x).sum(1).max() for x in (query, key)]
    return not float(longest[0] * longest[1]) <= _STEEP**2


def _lower(logits: Tensor) -> Tensor:
    """Subtracts each row's maximum, in place, and returns the maxima."""
    top = logits.amax(-1, keepdim=True)
    logits.sub_(top)
    return top


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    mu: float,
) -> tuple[Tensor, Tensor]:
    tensors = (query, key, value, prior_query, prior_key)
    batch, heads, length, _ = query.shape
    dtype = compute_dtype((*tensors, weight, bias))
    parameters = (weight.to(dtype), weight.new_zeros(heads, dtype=dtype) if bias is None else bias.to(dtype))
    result = value.new_zeros(value.shape)
    statistics = query.new_zeros(2, batch, heads, length, dtype=dtype)  # log2 of the sums of both softmaxes
    found = groups(mask, batch, length, heads)
    scratch = Scratch(found, heads, prior_query.size(3), 2, statistics)
    for group in found:
        scratch.clear()
        inputs = Inputs(group, tensors, mask, dtype)
        out = torch.empty_like(inputs.v_and_one)
        sums = statistics.new_empty(2, len(out), group.length)
        inner, outer = sums.unbind()
        blocks = group.blocks(heads)
        prediction = predict(inputs.q_prior, inputs.k_prior, *parameters, scratch, len(blocks) == 1)
        steep = _steep(inputs.q_and_one[:, :-1], inputs.k_and_hidden[:, :-2])
        for rows in blocks:
            p = scratch("p", len(out), rows.stop - rows.start, group.length)
            torch.bmm(inputs.q_and_one[..., rows].mT, inputs.k_and_hidden[:, :-1], out=p)
            top = _lower(p) if steep else 0
            total = p.exp2_().sum(-1, keepdim=True)
            inner[:, rows] = (top + total.log2()).squeeze(-1)
            z = prediction.logits(rows)
            torch.ops.aten.gelu.out(z, out=z)
            # z in base 2. It is at least -0.25, also at hidden keys: their share of the maximum can neither overflow nor drown the others.
            torch.add(p.mul_((1 - mu) * LOG2E / total), z, alpha=mu * LOG2E, out=z)
            outer[:, rows] = _lower(z).squeeze(-1) if float(z.max()) > _STEEP else 0
            out[..., rows] = torch.bmm(inputs.v_and_one, z.exp2_().mT)
        total = out[:, -1]
        inputs.put(out[:, :-1] / total[:, None], result)
        outer += total.log2()
        statistics[:, inputs.samples, :, : group.length] = sums.unflatten(1, (-1, heads))
    return result, statistics


def _backward(
    grad: Tensor,
    result: Tensor,
    statistics: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    mu: float,
) -> tuple[Tensor, ...]:
    tensors = (query, key, value, prior_query, prior_key)
    batch, heads, length, _ = query.shape
    dtype = compute_dtype((*tensors, weight, bias))
    parameters = (weight.to(dtype), weight.new_zeros(heads, dtype=dtype) if bias is None else bias.to(dtype))
    d_query, d_key, d_value, d_prior_query, d_prior_key = (t.new_zeros(t.shape) for t in tensors)
    d_weight, d_bias = weight.new_zeros(weight.shape, dtype=dtype), weight.new_zeros(heads, dtype=dtype)
    found = groups(mask, batch, length, heads)
    scratch = Scratch(found, heads, prior_query.size(3), 4, statistics)
    for group in found:
        scratch.clear()
        inputs = Inputs(group, tensors, mask, dtype)
        d_out, out = inputs.take(grad), inputs.take(result)
        d_out_and_delta = torch.cat([d_out, -(d_out * out).sum(1, keepdim=True)], 1)
        inner, outer = statistics[:, inputs.samples, :, : group.length].flatten(1, 2).neg().unbind()
        q_and_shift = torch.cat([inputs.q_and_one, inner[:, None]], 1)
        q, k = inputs.q_and_one[:, :-1], inputs.k_and_hidden[:, :-2]
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(d_out)
        blocks = group.blocks(heads)
        prediction = predict(inputs.q_prior, inputs.k_prior, *parameters, scratch, len(blocks) == 1)
        for rows in blocks:
            p, z, d_z = (scratch(name, len(q), rows.stop - rows.start, group.length) for name in ("p", "z", "d_z"))
            torch.bmm(q_and_shift[..., rows].mT, inputs.k_and_hidden, out=p).exp2_()
            f = prediction.logits(rows)
            torch.ops.aten.gelu.out(f, out=z)
            torch.lerp(z, p, 1 - mu, out=z)
            torch.add(outer[:, rows, None], z, alpha=LOG2E, out=z).exp2_()
            d_v.baddbmm_(d_out[..., rows], z)
            torch.bmm(d_out_and_delta[..., rows].mT, inputs.v_and_one, out=d_z).mul_(z)
            # The factors mu and 1 - mu are applied at the end, to results of size T d.
            d_c = torch._softmax_backward_data(d_z, p, -1, dtype, grad_input=z)
            d_q[..., rows] = torch.bmm(k, d_c.mT)
            d_k.baddbmm_(q[..., rows], d_c)
            prediction.accumulate(rows, torch.ops.aten.gelu_backward.grad_input(d_z, f, grad_input=f))
        d_q_prior, d_k_prior, d_w, d_b = prediction.finish()
        inputs.put(d_q.mul_((1 - mu) / math.sqrt(query.size(3))), d_query)
        inputs.put(d_k.mul_((1 - mu) / LOG2E), d_key)
        inputs.put(d_v, d_value)
        inputs.put(d_q_prior.mul_(mu / math.sqrt(prior_query.size(3))), d_prior_query)
        inputs.put(d_k_prior.mul_(mu), d_prior_key)
        d_weight += mu * d_w
        d_bias += mu * d_b
    d_bias = d_bias.to((weight if bias is None else bias).dtype)
    return d_query, d_key, d_value, d_prior_query, d_prior_key, d_weight.to(weight.dtype), d_bias


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype((query, key, value, *rest[:4]))
    batch, heads, length, _ = query.shape
    return value.new_empty(value.shape), query.new_empty(2, batch, heads, length, dtype=dtype)


def _fake_backward(grad: Tensor, result: Tensor, statistics: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight, bias = rest[5:7]
    grads = [t.new_empty(t.shape) for t in rest[:6]]
    return *grads, weight.new_empty(weight.size(0), dtype=weight.dtype if bias is None else bias.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.mu = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *tensors)


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    result, statistics, *tensors = ctx.saved_tensors
    *grads, d_bias = _BACKWARD(grad, result, statistics, *tensors, ctx.mu)
    return *grads, None if tensors[6] is None else d_bias, None, None


_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor prior_query, Tensor prior_key, Tensor weight, Tensor? bias, Tensor? mask, float mu"
)
_BACKWARD = register(
    "predictive_attention_cpu_backward",
    f"(Tensor grad, Tensor result, Tensor statistics, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_FORWARD = register("predictive_attention_cpu", f"({_INPUTS}) -> (Tensor, Tensor)", _forward, _fake_forward, _setup_context, _autograd)


def _is_short(query: Tensor) -> bool:
    batch, heads, length, _ = query.shape
    return 0 < length <= SHORT and batch * heads * length * length <= BLOCK


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mu: float,
    mask: Tensor | None,
) -> Tensor:
    tensors = (query, key, value, prior_query, prior_key, weight, bias)
    if only_evaluated(*tensors) and _is_short(query) and (mask is None or bool(mask.all())):
        # No gradient, short sequences and no padding: the formula as it stands has a fifth of the calls, and one block holds its maps.
        return reference.predictive_attention(*tensors, mu, None)
    return _FORWARD(query, key, value, prior_query, prior_key, weight, bias, mask, mu)[0]
