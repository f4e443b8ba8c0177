"""Attention over packed steps: the real steps of all samples one after the other, no padding anywhere.

Every sample is one call of PyTorch's flash attention on its own steps, all heads at once. Measured on one CPU thread, that beats buckets of
similar lengths and small matrix products with a softmax at every length, and the padded batch with a mask unless sequences are very short.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.library import register

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

# Matrix products with fewer columns than this leave most of a CPU's vector lanes empty. Zeros up to it halve the time at a head width of 5,
# except where there are so few pairs for each step that adding the zeros costs as much.
_NARROW = 16
_PAIRS_PER_STEP = 16


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Of everything but the result."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


class _Calls:
    """Which calls of flash attention are made: one a sample, or one for the whole batch where all samples are of one length."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> None:
        self.dtype, self.scale = compute_dtype(query, key, value), query.size(-1) ** -0.5
        self.heads, self.batch, self.lengths = query.size(1), 1, (list(query_lengths), list(key_lengths))
        if len(set(query_lengths)) == 1 and len(set(key_lengths)) == 1:
            self.batch, self.lengths = len(query_lengths), ([query_lengths[0]], [key_lengths[0]])
        self.pairs = [n * m for n, m in zip(*self.lengths, strict=True)]
        self.width = max(query.size(-1), value.size(-1))  # of all tensors of a call
        if self.dtype == torch.float32 and self.batch * sum(self.pairs) > _PAIRS_PER_STEP * (query.size(0) + key.size(0)):
            self.width = max(self.width, _NARROW)

    def views(self, x: Tensor, of_key: bool = False) -> Sequence[Tensor]:
        """What each call reads of a packed tensor, (B, K, T, width)."""
        lengths, x = self.lengths[of_key], x.to(self.dtype)
        if x.size(-1) < self.width:
            x = F.pad(x, (0, self.width - x.size(-1)))
        if x.stride(-1) != 1 or min(x.stride()[:2]) < x.size(-1):  # flash attention trusts that rows are dense and do not overlap
            x = x.contiguous()
        x = x.view(self.batch, -1, *x.shape[1:]).transpose(1, 2)
        return x.split_with_sizes(lengths, 2) if len(lengths) > 1 else [x]

    def pack(self, results: Sequence[Tensor], like: Tensor) -> Tensor:
        """The inverse of `views`: rows of the width and dtype of `like`."""
        rows = torch.cat([r.transpose(1, 2) for r in results], 1).flatten(0, 1)
        return rows[..., : like.size(-1)].to(like.dtype).contiguous()


def attend(query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The result (N, K, D_v) in the dtype of the values, and what the backward pass recomputes the maps from, (N K,)."""
    if query.size(0) == 0 or key.size(0) == 0:
        sums = value.new_zeros(query.size(0) * query.size(1), dtype=compute_dtype(query, key, value))
        return value.new_zeros(*query.shape[:2], value.size(-1)), sums
    calls = _Calls(query, key, value, query_lengths, key_lengths)
    outs, sums_of = [], []
    for q, k, v, pairs in zip(calls.views(query), calls.views(key, True), calls.views(value, True), calls.pairs, strict=True):
        if pairs:
            out_b, sum_b = _flash(q, k, v, scale=calls.scale)
        else:
            out_b, sum_b = torch.zeros_like(q), q.new_zeros(q.shape[:3])
        outs.append(out_b)
        sums_of.append(sum_b.flatten())
    return calls.pack(outs, value), torch.cat(sums_of)


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
    if query.size(0) == 0 or key.size(0) == 0:
        return query.new_zeros(query.shape), key.new_zeros(key.shape), value.new_zeros(value.shape)
    calls = _Calls(query, key, value, query_lengths, key_lengths)
    views = [calls.views(grad), calls.views(query), calls.views(key, True), calls.views(value, True), calls.views(out)]
    sums = logsumexp[: query.shape[:2].numel()].split_with_sizes([calls.batch * calls.heads * n for n in calls.lengths[0]])
    found = [
        _flash_backward(*tensors, sum_b.view(tensors[1].shape[:3]), 0.0, False, scale=calls.scale)
        if pairs
        else [torch.zeros_like(t) for t in tensors[1:4]]
        for *tensors, sum_b, pairs in zip(*views, sums, calls.pairs, strict=True)
    ]
    d_query, d_key, d_value = zip(*found, strict=True)
    return calls.pack(d_query, query), calls.pack(d_key, key), calls.pack(d_value, value)


def _fake(query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    heads = query.size(1)
    sums = value.new_empty(query.size(0) * heads, dtype=compute_dtype(query, key, value))
    return value.new_empty(query.size(0), heads, value.size(-1)), sums


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
    """`cross_modal_attention` on packed steps, on a CPU: sample b has `query_lengths[b]` rows of `query`, `key_lengths[b]` of `key`.

    Args:
        query: (N, K, D).
        key, value: (N_s, K, D) and (N_s, K, D_v).
        query_lengths, key_lengths: Each sums to the number of rows.

    Returns the result (N, K, D_v).
    """
    return _operator(query, key, value, query_lengths, key_lengths)[0]
