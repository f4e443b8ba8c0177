"""Attention over packed steps: the real steps of all samples one after the other, no padding anywhere.

Every sample is one call of PyTorch's flash attention on its own steps, all heads at once: measured on a CPU, that beats buckets of similar
lengths, small matrix products with a softmax, and a mask over the padded batch, for short sequences as for long ones.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.library import register

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Matrix products with fewer columns than this leave most of a CPU's vector lanes empty: zeros up to it halve the time at a head width of 5.
_NARROW = 16


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _widen(x: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    return F.pad(x.to(dtype), (0, width - x.size(-1))).contiguous()


def _narrow(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_widen`."""
    return x[..., : like.size(-1)].to(like.dtype).contiguous()


def _width(query: Tensor, value: Tensor, dtype: torch.dtype) -> int:
    """One width for all, as flash attention wants it."""
    return max(query.size(-1), value.size(-1), _NARROW if dtype == torch.float32 else 1)


def _samples(x: Tensor, lengths: Sequence[int], together: bool) -> Iterable[Tensor]:
    """Views (1, K, T, width) of each sample, or one of the whole batch (B, K, T, width)."""
    if together:
        return [x.view(len(lengths), lengths[0], *x.shape[1:]).transpose(1, 2)]
    return x.unsqueeze(0).transpose(1, 2).split_with_sizes(list(lengths), 2)


def _rows(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)  # (B, K, T, width) -> (B T, K, width)


def _alike(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> bool:
    return len(set(query_lengths)) == 1 and len(set(key_lengths)) == 1


def attend(query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Result (N, K, D_v) in the dtype of the values, and each row's logsumexp (N, K), which the backward pass recomputes the map from."""
    dtype = _compute_dtype(query, key, value)
    if query.size(0) == 0 or key.size(0) == 0:
        return value.new_zeros(*query.shape[:2], value.size(-1)), value.new_zeros(query.shape[:2], dtype=dtype)
    width, scale, together = _width(query, value, dtype), query.size(-1) ** -0.5, _alike(query_lengths, key_lengths)
    q, k, v = (_widen(t, width, dtype) for t in (query, key, value))
    outs, sums = [], []
    for q_b, k_b, v_b in zip(
        _samples(q, query_lengths, together), _samples(k, key_lengths, together), _samples(v, key_lengths, together), strict=True
    ):
        if q_b.size(2) and k_b.size(2):
            out_b, sum_b = _flash(q_b, k_b, v_b, scale=scale)
        else:
            out_b, sum_b = torch.zeros_like(q_b), q_b.new_zeros(q_b.shape[:3])
        outs.append(_rows(out_b))
        sums.append(_rows(sum_b))
    return _narrow(torch.cat(outs), value), torch.cat(sums)


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
    dtype = _compute_dtype(query, key, value)
    width, scale, together = _width(query, value, dtype), query.size(-1) ** -0.5, _alike(query_lengths, key_lengths)
    wide = [_widen(t, width, dtype) for t in (grad, query, key, value, out)] + [logsumexp]
    lengths = [query_lengths, query_lengths, key_lengths, key_lengths, query_lengths, query_lengths]
    parts = []
    for grad_b, q_b, k_b, v_b, out_b, sum_b in zip(*(_samples(t, n, together) for t, n in zip(wide, lengths, strict=True)), strict=True):
        if q_b.size(2) and k_b.size(2):
            found = _flash_backward(grad_b, q_b, k_b, v_b, out_b, sum_b.contiguous(), 0.0, False, scale=scale)
        else:
            found = tuple(torch.zeros_like(t) for t in (q_b, k_b, v_b))
        parts.append([_rows(t) for t in found])
    d_query, d_key, d_value = (torch.cat(part) for part in zip(*parts, strict=True))
    return _narrow(d_query, query), _narrow(d_key, key), _narrow(d_value, value)


def _fake(query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(query, key, value)
    return value.new_empty(*query.shape[:2], value.size(-1)), value.new_empty(query.shape[:2], dtype=dtype)


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
