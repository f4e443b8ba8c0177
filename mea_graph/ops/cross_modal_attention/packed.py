"""Attention over packed steps: the real steps of all samples one after the other, no padding anywhere.

Steps lie along the last dimension, (K, D, N): a sample is then a view, and products with heads of a few numbers still fill a CPU's vector
lanes. Each sample is computed on its own, all heads at once, by plain matrix products over blocks of its map that stay in the cache; the
backward pass computes the maps again. Powers of two replace exponentials: `exp2` is inlined and vectorised, `exp` is a library call at many
times its cost. Sums over a row, and what is subtracted from one, are a further row of the factors:

    [q, -lse]^T [k, 1] = logits - lse        [v, 1] P^T = [out, sum]        [d_out, -delta]^T [v, 1] = dP - delta
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.eager import only_evaluated
from mea_graph.ops.library import register

_BLOCK = 2**18  # entries of a map that are computed at once: a map that leaves the cache costs half as much again
_LOG2E = math.log2(math.e)
_STEEP = 60.0  # base-2 logits up to this size need no shift before they become powers of two


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Of everything but the result."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _with_row(x: Tensor, row: Tensor | None = None) -> Tensor:
    """(K, D, N) with one row more, (K, N) or of ones."""
    return F.pad(x, (0, 0, 0, 1), value=1.0) if row is None else torch.cat([x, row.unsqueeze(1)], 1)


def _steep(query: Tensor, key: Tensor) -> bool:
    """Whether a power of two of their products could overflow, by the longest query and key."""
    if query.numel() == 0 or key.numel() == 0:
        return False
    longest = [torch.linalg.vecdot(x, x, dim=1).max() for x in (query, key)]
    return not float(longest[0] * longest[1]) <= _STEEP**2


def _blocks(
    of_queries: Sequence[Tensor], query_lengths: Sequence[int], of_keys: Sequence[Tensor], key_lengths: Sequence[int]
) -> Iterator[tuple[Tensor, ...]]:
    """What is computed at once: a block of a sample's queries, and all its keys, as views of every tensor.

    The parts of a sample are equal, with maps of at most `_BLOCK` entries. Samples without queries or without keys are passed over.
    """
    sides = ((of_queries, query_lengths), (of_keys, key_lengths))
    queries, keys = ([x.split_with_sizes(list(lengths), 2) for x in tensors] for tensors, lengths in sides)
    for n, m, sample, own_keys in zip(query_lengths, key_lengths, zip(*queries, strict=True), zip(*keys, strict=True), strict=True):
        parts = math.ceil(n / max(_BLOCK // (len(sample[0]) * m), 1)) if m else 0
        if parts == 1:  # most are; to split them once more would take as long as one of their products
            yield *sample, *own_keys
        elif parts:
            for block in zip(*(x.split(math.ceil(n / parts), 2) for x in sample), strict=True):
                yield *block, *own_keys


class _Maps:
    """Memory for the maps of a block, used again by every block: fresh memory costs more time than what is written to it."""

    def __init__(self, count: int, like: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> None:
        self.heads = like.size(0)
        row_and_map = ((self.heads * m, self.heads * m * n) for n, m in zip(query_lengths, key_lengths, strict=True))
        self.memory = like.new_empty(count, max((max(row, min(_BLOCK, whole)) for row, whole in row_and_map), default=0))

    def __call__(self, i: int, rows: int, columns: int) -> Tensor:
        return self.memory[i, : self.heads * rows * columns].view(self.heads, rows, columns)


def attend(query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The result (K, D_v, N) in the dtype of the values, and what the backward pass recomputes the maps from, (K N,)."""
    (heads, width, steps), dtype = query.shape, compute_dtype(query, key, value)
    q_all, k_all = (query.to(dtype) * (_LOG2E * width**-0.5)).contiguous(), key.to(dtype).contiguous()
    v_all = _with_row(value.to(dtype))
    out, maps = q_all.new_zeros(heads, value.size(1) + 1, steps), _Maps(1, q_all, query_lengths, key_lengths)
    shifts = [q_all.new_zeros(heads, 1, steps)] if _steep(q_all, k_all) else []
    for q, o, *shift, k, v in _blocks((q_all, out, *shifts), query_lengths, (k_all, v_all), key_lengths):
        p = torch.bmm(k.mT, q, out=maps(0, k.size(2), q.size(2)))  # keys first: the values meet its rows as they lie
        if shift:
            p.sub_(shift[0].copy_(p.amax(1, keepdim=True)))
        o.copy_(torch.bmm(v, p.exp2_()))
    total = out[:, -1:]
    if 0 in key_lengths:
        total = total.masked_fill(total == 0, 1)
    return (out[:, :-1] / total).to(value.dtype), sum(shifts, total.log2()).flatten()


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `query`, `key` and `value`."""
    heads, steps, scale = query.size(0), query.size(2), query.size(1) ** -0.5
    q_all, k_all, v_all, g_all = (t.to(compute_dtype(query, key, value)) for t in (query, key, value, grad))
    g_all = _with_row(g_all, -torch.linalg.vecdot(g_all, out.to(g_all.dtype), dim=1))
    q_all = _with_row(q_all * (_LOG2E * scale), -logsumexp[: heads * steps].view(heads, steps))
    k_all, v_all = _with_row(k_all), _with_row(v_all)
    d_query, d_key, d_value = (x.new_zeros(x.size(0), x.size(1) - 1, x.size(2)) for x in (q_all, k_all, v_all))
    maps = _Maps(2, q_all, query_lengths, key_lengths)
    for g, q, d_q, k, v, d_k, d_v in _blocks((g_all, q_all, d_query), query_lengths, (k_all, v_all, d_key, d_value), key_lengths):
        p, d_logits = (maps(i, q.size(2), k.size(2)) for i in range(2))
        torch.bmm(q.mT, k, out=p).exp2_()
        torch.bmm(g.mT, v, out=d_logits).mul_(p)
        d_v.add_(torch.bmm(g[:, :-1], p))
        d_k.add_(torch.bmm(q[:, :-1], d_logits))
        d_q.copy_(torch.bmm(k[:, :-1], d_logits.mT))
    return d_query.mul_(scale).to(query.dtype), d_key.mul_(1 / _LOG2E).to(key.dtype), d_value.to(value.dtype)


def _fake(query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    heads, _, steps = query.shape
    sums = value.new_empty(heads * steps, dtype=compute_dtype(query, key, value))
    return value.new_empty(heads, value.size(1), steps), sums


def _fake_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, *ctx.lengths = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    return *_operator_backward(grad, *ctx.saved_tensors, *ctx.lengths), None, None


_operator_backward = register(
    "cross_modal_attention_packed_backward",
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp, int[] query_lengths, int[] key_lengths)"
    " -> (Tensor, Tensor, Tensor)",
    attend_backward,
    _fake_backward,
)
_operator = register(
    "cross_modal_attention_packed",
    "(Tensor query, Tensor key, Tensor value, int[] query_lengths, int[] key_lengths) -> (Tensor, Tensor)",
    attend,
    _fake,
    _setup_context,
    _backward,
)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, query_lengths: list[int], key_lengths: list[int]) -> Tensor:
    """`cross_modal_attention` on packed steps, on a CPU: sample b has `query_lengths[b]` steps of `query`, `key_lengths[b]` of `key`.

    Args:
        query: (K, D, N).
        key, value: (K, D, N_s) and (K, D_v, N_s).
        query_lengths, key_lengths: Each sums to the number of steps.

    Returns the result (K, D_v, N).
    """
    if len(query_lengths) == 1 and only_evaluated(query, key, value) and query.size(0) * query_lengths[0] * key_lengths[0] <= _BLOCK:
        weights = torch.bmm(key.mT, query).mul_(query.size(1) ** -0.5).softmax(1)  # one sample, one block: a fifth of the operator's calls
        return torch.bmm(value, weights)
    return _operator(query, key, value, query_lengths, key_lengths)[0]
