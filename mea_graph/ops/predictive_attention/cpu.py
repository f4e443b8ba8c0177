"""Predictive attention folded, in blocks of rows, recomputed in the backward pass: plain torch, made for the CPU, correct on any device.

The convolution over the previous layer's logits is folded into one more dot product (see `folding`), so that a block of rows needs nothing
of the other rows. With p the inner and P the outer softmax:

    c = q k^T / sqrt(D)     p = softmax(c)     f = qhat khat     z = mu gelu(f + b) + (1 - mu) p     P = softmax(z)     out = P v

    dP = dout v^T     dz = P (dP - rowsum(P dP)) = P (dP - <dout, out>)     df = mu gelu'(f + b) dz     dc = softmax'(p, (1 - mu) dz)

A block's maps are written into the same few buffers, which stay in the cache. Hidden keys cost no operation of their own: a further column
of the products carries the row statistics, and what must become zero at a hidden key. Exponentials are powers of two (`exp2` is inlined
and vectorised, `exp` is a library call at half the speed), so logits and statistics are in base 2.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.library import register
from mea_graph.ops.predictive_attention.folding import fold_weight, shift_steps, unfold_weight, unshift_steps

_LOG2E = math.log2(math.e)
_HIDDEN = -1e30  # the logit of a hidden key, whose power of two is zero
_STEEP = 60.0  # base-2 logits up to this size need no shift before they become powers of two
_BLOCK = 2**18  # entries of a block's map: all heads, some rows, all columns
_LOOSE = 0.8  # a sample joins a group whose length it has at least this share of


class Group(NamedTuple):
    """Samples of similar length that are computed together."""

    samples: list[int]
    length: int


def groups(mask: Tensor | None, batch: int, length: int, heads: int) -> list[Group]:
    """Splits a batch by true length, the last real step's place. Samples without any are in no group."""
    lengths = [length] * batch
    if mask is not None:
        places = torch.arange(1, length + 1, device=mask.device)
        lengths = (mask * places).amax(1).tolist() if length else [0] * batch
    found: list[Group] = []
    for b in sorted(range(batch), key=lambda b: -lengths[b]):  # a stable sort: a batch of equal lengths keeps its order
        if lengths[b] == 0:
            break
        last = found[-1] if found else None
        fits = last is not None and lengths[b] >= _LOOSE * last.length and (len(last.samples) + 1) * heads * last.length**2 <= _BLOCK
        if last is not None and fits:
            last.samples.append(b)
        else:
            found.append(Group([b], lengths[b]))
    return found


def _index(samples: list[int], device: torch.device) -> slice | Tensor:
    """Takes the samples out of a batch, by a view where they lie side by side."""
    if samples == list(range(samples[0], samples[0] + len(samples))):
        return slice(samples[0], samples[0] + len(samples))
    return torch.tensor(samples, device=device)


class Inputs:
    """A group's tensors in the dtype of the computation, with zeros in the padding, laid out so that every product is a plain GEMM."""

    def __init__(self, group: Group, tensors: tuple[Tensor, ...], mask: Tensor | None, mu: float) -> None:
        query, key, value, prior_query, prior_key, weight, bias = tensors
        self.dtype, self.mu, self.length = compute_dtype(tensors), mu, group.length
        self.count, self.samples = len(group.samples), _index(group.samples, query.device)
        real = None if mask is None else mask[self.samples, : self.length]
        self.hidden = None if real is None or bool(real.all()) else ~real  # (n, L)
        self.heads, self.width, self.width_prior = query.size(1), query.size(3), prior_query.size(3)
        q, k, v, q_prior, k_prior = (self.take(t) for t in (query, key, value, prior_query, prior_key))
        ones = k.new_ones(len(k), 1, self.length)
        visible = ones
        if self.hidden is not None:
            visible = ones.masked_fill(self.hidden.repeat_interleave(self.heads, 0)[:, None], 0)
        self.q_and_one = torch.cat([q * (_LOG2E / math.sqrt(self.width)), ones], 1)  # (n K, D + 1, L)
        self.k_and_hidden = torch.cat([k, (1 - visible) * _HIDDEN, ones], 1)  # (n K, D + 2, L), the last row for a shift
        self.v_and_one = torch.cat([v, visible], 1)  # (n K, D_v + 1, L)
        self.q_steps = shift_steps(q_prior / math.sqrt(self.width_prior))  # (n K D, 3, L)
        self.k_hat = shift_steps(k_prior).view(self.count, -1, self.length)  # (n, 3 K D, L)
        self.fold = fold_weight(weight.to(self.dtype), self.width_prior, self.count)  # (n K D, 3 K, 3)
        self.bias = bias.to(self.dtype).view(-1, 1, 1)

    def take(self, x: Tensor) -> Tensor:
        """The group's samples of a (B, K, T, D) tensor: (n K, D, L), zeros in the padding."""
        x = x.mT[self.samples, ..., : self.length].to(self.dtype).contiguous()
        if self.hidden is not None:
            x = x.masked_fill(self.hidden[:, None, None], 0)
        return x.flatten(0, 1)

    def put(self, x: Tensor, result: Tensor) -> None:
        """Writes (n K, D, L) to the group's samples of a (B, K, T, D) tensor, with zeros in the padding."""
        x = x.unflatten(0, (-1, self.heads))
        if self.hidden is not None:
            x = x.masked_fill(self.hidden[:, None, None], 0)
        result.mT[self.samples, ..., : self.length] = x.to(result.dtype)

    def steep(self) -> bool:
        """Whether a power of two of this layer's logits could overflow, by the longest query and key."""
        longest = [(x * x).sum(1).max() for x in (self.q_and_one[:, :-1], self.k_and_hidden[:, :-2])]
        return not float(longest[0] * longest[1]) <= _STEEP**2

    def blocks(self) -> Iterator[slice]:
        """Rows that are computed together: as many as keep a map within `_BLOCK` entries, in equal parts."""
        rows = max(1, _BLOCK // (self.count * self.heads * self.length))
        rows = math.ceil(self.length / math.ceil(self.length / rows))
        for start in range(0, self.length, rows):
            yield slice(start, min(start + rows, self.length))

    def predicted(self, rows: slice, out: Tensor, scratch: "Scratch") -> Tensor:
        """Writes the convolved logits with the bias, (n K, R, L); returns the folded queries they are the product of, (n, 3 K D, K R)."""
        q_hat = scratch("q_hat", len(self.fold), self.fold.size(1), out.size(1))
        q_hat = torch.bmm(self.fold, self.q_steps[..., rows], out=q_hat).view(self.count, self.k_hat.size(1), -1)
        torch.bmm(q_hat.mT, self.k_hat, out=out.view(self.count, -1, self.length))
        out.view(-1, self.heads, *out.shape[1:]).add_(self.bias)
        return q_hat


def _lower(logits: Tensor) -> Tensor:
    """Subtracts each row's maximum, in place, and returns the maxima."""
    top = logits.amax(-1, keepdim=True)
    logits.sub_(top)
    return top


class Scratch:
    """Memory by name, used again by the next block: fresh memory costs more time than what is written to it."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.memory: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.memory or self.memory[name].numel() < size:
            self.memory[name] = self.like.new_empty(size)
        return self.memory[name][:size].view(shape)


def compute_dtype(tensors: tuple[Tensor | None, ...]) -> torch.dtype:
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


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
    tensors = (query, key, value, prior_query, prior_key, weight, weight.new_zeros(weight.size(0)) if bias is None else bias)
    batch, heads, length, _ = query.shape
    dtype = compute_dtype(tensors)
    result = value.new_zeros(value.shape)
    statistics = query.new_zeros(2, batch, heads, length, dtype=dtype)  # log2 of the sums of both softmaxes
    scratch = Scratch(statistics)
    for group in groups(mask, batch, length, heads):
        inputs = Inputs(group, tensors, mask, mu)
        out = torch.empty_like(inputs.v_and_one)
        sums = statistics.new_empty(2, len(out), group.length)
        inner, outer = sums.unbind()
        steep = inputs.steep()
        for rows in inputs.blocks():
            p, z = (scratch(name, len(out), rows.stop - rows.start, group.length) for name in ("p", "z"))
            torch.bmm(inputs.q_and_one[..., rows].mT, inputs.k_and_hidden[:, :-1], out=p)
            top = _lower(p) if steep else 0
            total = p.exp2_().sum(-1, keepdim=True)
            inner[:, rows] = (top + total.log2()).squeeze(-1)
            inputs.predicted(rows, z, scratch)
            torch.ops.aten.gelu.out(z, out=z)
            # z in base 2. It is at least -0.25, also at hidden keys: their share of the maximum can neither overflow nor drown the others.
            torch.add(p.mul_((1 - mu) * _LOG2E / total), z, alpha=mu * _LOG2E, out=z)
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
    tensors = (query, key, value, prior_query, prior_key, weight, weight.new_zeros(weight.size(0)) if bias is None else bias)
    batch, heads, length, _ = query.shape
    dtype = compute_dtype(tensors)
    d_query, d_key, d_value, d_prior_query, d_prior_key = (t.new_zeros(t.shape) for t in tensors[:5])
    d_weight, d_bias = weight.new_zeros(weight.shape, dtype=dtype), weight.new_zeros(heads, dtype=dtype)
    scratch = Scratch(d_weight)
    for group in groups(mask, batch, length, heads):
        inputs = Inputs(group, tensors, mask, mu)
        d_out, out = inputs.take(grad), inputs.take(result)
        d_out_and_delta = torch.cat([d_out, -(d_out * out).sum(1, keepdim=True)], 1)
        inner, outer = statistics[:, inputs.samples, :, : group.length].flatten(1, 2).neg().unbind()
        q_and_shift = torch.cat([inputs.q_and_one, inner[:, None]], 1)
        q, k = inputs.q_and_one[:, :-1], inputs.k_and_hidden[:, :-2]
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(d_out)
        d_q_steps, d_k_hat, d_fold = (
            torch.empty_like(inputs.q_steps),
            torch.zeros_like(inputs.k_hat),
            torch.zeros_like(inputs.fold.mT, memory_format=torch.contiguous_format),
        )
        for rows in inputs.blocks():
            shape = (len(q), rows.stop - rows.start, group.length)
            p, f, z, d_z = (scratch(name, *shape) for name in ("p", "f", "z", "d_z"))
            torch.bmm(q_and_shift[..., rows].mT, inputs.k_and_hidden, out=p).exp2_()
            q_hat = inputs.predicted(rows, f, scratch)
            torch.ops.aten.gelu.out(f, out=z)
            torch.lerp(z, p, 1 - mu, out=z)
            torch.add(outer[:, rows, None], z, alpha=_LOG2E, out=z).exp2_()
            d_v.baddbmm_(d_out[..., rows], z)
            torch.bmm(d_out_and_delta[..., rows].mT, inputs.v_and_one, out=d_z).mul_(z)
            # The factors mu and 1 - mu are applied at the end, to results of size T d.
            d_c = torch._softmax_backward_data(d_z, p, -1, dtype, grad_input=z)
            d_q[..., rows] = torch.bmm(k, d_c.mT)
            d_k.baddbmm_(q[..., rows], d_c)
            d_f = torch.ops.aten.gelu_backward.grad_input(d_z, f, grad_input=f)
            d_bias += d_f.view(-1, heads, *shape[1:]).sum((0, 2, 3))
            flat = d_f.view(inputs.count, -1, group.length)  # (n, K R, L)
            d_k_hat.baddbmm_(q_hat, flat)
            d_q_hat = torch.bmm(inputs.k_hat, flat.mT, out=scratch("d_q_hat", *q_hat.shape)).view(
                len(inputs.fold), -1, shape[1]
            )  # (n K D, 3 K, R)
            d_q_steps[..., rows] = torch.bmm(inputs.fold.mT, d_q_hat)
            d_fold.baddbmm_(inputs.q_steps[..., rows], d_q_hat.mT)
        inputs.put(d_q.mul_((1 - mu) / math.sqrt(inputs.width)), d_query)
        inputs.put(d_k.mul_((1 - mu) / _LOG2E), d_key)
        inputs.put(d_v, d_value)
        inputs.put(unshift_steps(d_q_steps, inputs.width_prior).mul_(mu / math.sqrt(inputs.width_prior)), d_prior_query)
        inputs.put(unshift_steps(d_k_hat.view_as(d_q_steps), inputs.width_prior).mul_(mu), d_prior_key)
        d_weight += unfold_weight(d_fold.mT, inputs.width_prior, heads).mul_(mu)
    d_bias = (mu * d_bias).to(weight.dtype if bias is None else bias.dtype)
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
    return _FORWARD(query, key, value, prior_query, prior_key, weight, bias, mask, mu)[0]
