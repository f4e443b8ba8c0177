"""Computes on true lengths: takes the real steps out of the padded batch, attends, puts them back.

Steps are taken by their index, so that a hole in a mask is as good as padding.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.cross_modal_attention.packed import attend, attend_backward, compute_dtype
from mea_graph.ops.library import register


class _Steps(NamedTuple):
    """Where the real steps of a padded batch are."""

    rows: Tensor | None  # (N,), of the rows of (B T, *); None: all of them
    lengths: list[int]  # by sample


def _steps(x: Tensor, mask: Tensor | None) -> _Steps:
    batch, length = x.size(0), x.size(2)
    if mask is None:
        return _Steps(None, [length] * batch)
    lengths = mask.sum(1).tolist()
    if sum(lengths) == batch * length:
        return _Steps(None, lengths)
    return _Steps(mask.flatten().nonzero().squeeze(1), lengths)


def _take(x: Tensor, steps: _Steps) -> Tensor:
    """(B, K, T, D) -> (K, D, N)."""
    rows = x.transpose(1, 2).flatten(0, 1)
    return (rows if steps.rows is None else rows.index_select(0, steps.rows)).permute(1, 2, 0)


def _put(packed: Tensor, steps: _Steps, like: Tensor) -> Tensor:
    """(K, D, N) -> (B, K, T, D), zeros in the padding; strides as of `_empty`."""
    batch, heads, length, _ = like.shape
    rows = packed.permute(2, 0, 1)
    if steps.rows is not None:
        rows = rows.new_zeros(batch * length, *rows.shape[1:]).index_copy_(0, steps.rows, rows)
    return rows.contiguous().view(batch, length, heads, rows.size(-1)).transpose(1, 2)


def _empty(like: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    batch, heads, length, _ = like.shape
    return like.new_empty(batch, length, heads, width, dtype=dtype).transpose(1, 2)


def _join(parts: Sequence[Tensor], lengths: Sequence[list[int]]) -> Tensor:
    """The sources' steps, sample after sample: all sources of the first, then all of the second."""
    if len(parts) == 1:
        return parts[0]
    pieces = [part.split_with_sizes(n, 2) for part, n in zip(parts, lengths, strict=True)]
    joined = [piece for sample in zip(*pieces, strict=True) for piece in sample]
    return torch.cat(joined, 2) if joined else parts[0]  # an empty batch has nothing to join


def _separate(packed: Tensor, lengths: Sequence[list[int]]) -> list[Tensor]:
    """The inverse of `_join`."""
    if len(lengths) == 1:
        return [packed]
    pieces = packed.split_with_sizes([n for sample in zip(*lengths, strict=True) for n in sample], 2)
    return [torch.cat(pieces[s :: len(lengths)], 2) if pieces else packed.new_zeros(packed.shape) for s in range(len(lengths))]


class _Packed(NamedTuple):
    target: _Steps
    sources: list[_Steps]
    query: Tensor
    key: Tensor
    value: Tensor
    lengths: tuple[list[int], list[int]]  # of the target and of its joined sources, by sample


def _pack(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_masks: Sequence[Tensor], query_mask: Tensor | None
) -> _Packed:
    target = _steps(query, query_mask)
    sources = [_steps(key, key_masks[s] if key_masks else None) for s, key in enumerate(keys)]
    by_source = [s.lengths for s in sources]
    key, value = (_join([_take(part, s) for part, s in zip(parts, sources, strict=True)], by_source) for parts in (keys, values))
    return _Packed(target, sources, _take(query, target), key, value, (target.lengths, [sum(n) for n in zip(*by_source, strict=True)]))


def _run(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_masks: Sequence[Tensor], query_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    packed = _pack(query, keys, values, key_masks, query_mask)
    out, logsumexp = attend(packed.query, packed.key, packed.value, *packed.lengths)
    idle = math.prod(query.shape[:3]) - logsumexp.numel()  # so that the size does not depend on the masks
    return _put(out, packed.target, query), F.pad(logsumexp, (0, idle))


def _run_backward(
    grad: Tensor,
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    key_masks: Sequence[Tensor],
    query_mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
) -> list[Tensor]:
    packed = _pack(query, keys, values, key_masks, query_mask)
    grad, out = (_take(t, packed.target) for t in (grad, out))
    d_query, *d_pair = attend_backward(grad, packed.query, packed.key, packed.value, out, logsumexp, *packed.lengths)
    gradients = [_put(d_query, packed.target, query)]
    for joined, parts in zip(d_pair, (keys, values), strict=True):
        by_source = _separate(joined, [s.lengths for s in packed.sources])
        gradients += [_put(d, s, part) for d, s, part in zip(by_source, packed.sources, parts, strict=True)]
    return gradients


def _fake(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    sums = query.new_empty(math.prod(query.shape[:3]), dtype=compute_dtype(query, *keys, *values))
    return _empty(query, values[0].size(-1), values[0].dtype), sums


def _fake_backward(grad: Tensor, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [_empty(t, t.size(-1), t.dtype) for t in (query, *keys, *values)]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    query, keys, values, key_masks, query_mask = inputs
    ctx.sources, ctx.masks = len(keys), len(key_masks)
    ctx.save_for_backward(query, *keys, *values, *key_masks, query_mask, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    s, m = ctx.sources, ctx.masks
    if grad is None:
        return None, [None] * s, [None] * s, [None] * m, None
    query, *others, query_mask, out, logsumexp = ctx.saved_tensors
    keys, values, key_masks = others[:s], others[s : 2 * s], others[2 * s :]
    d_query, *d = _operator_backward(grad, query, keys, values, key_masks, query_mask, out, logsumexp)
    return d_query, d[:s], d[s:], [None] * m, None


_operator_backward = register(
    "cross_modal_attention_cpu_backward",
    "(Tensor grad, Tensor query, Tensor[] keys, Tensor[] values, Tensor[] key_masks, Tensor? query_mask, Tensor out, Tensor logsumexp)"
    " -> Tensor[]",
    _run_backward,
    _fake_backward,
)
_operator = register(
    "cross_modal_attention_cpu",
    "(Tensor query, Tensor[] keys, Tensor[] values, Tensor[] key_masks, Tensor? query_mask) -> (Tensor, Tensor)",
    _run,
    _fake,
    _setup_context,
    _backward,
)


def run(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_masks: Sequence[Tensor] | None, query_mask: Tensor | None
) -> Tensor:
    return _operator(query, list(keys), list(values), list(key_masks or []), query_mask)[0]


def refuse(query: Tensor, **_: Any) -> str | None:
    if query.device.type != "cpu":
        return f"it takes lengths from the masks, for which a device would be waited for; the tensors are on {query.device.type}"
    return None
