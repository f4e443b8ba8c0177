"""The backends that compute on padded sequences: the reference, and PyTorch's own kernels."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mea_graph.ops.dtypes import common_dtype, wide_dtype
from mea_graph.ops.eager import is_traced, is_transformed
from mea_graph.ops.interval import reference
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.library import through_reference, without_autocast


class Padded(NamedTuple):
    """Every sample's rows, and which step hears which."""

    query: Tensor  # (B, K, T, D)
    key: Tensor  # (B, K, sum of T_s, D)
    value: Tensor  # (B, K, sum of T_s, D_v)
    mask: Tensor  # (B, T or 1, sum of T_s)


def pad(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges, dtype: torch.dtype) -> Padded:
    """Pads with zeros, since a weight of zero does not stop a NaN."""
    target, heard = edges.target, edges.source_mask
    q, k, v = target.pad(query.to(dtype)), edges.pad_sources(key.to(dtype)), edges.pad_sources(value.to(dtype))
    q = q.masked_fill(~target.mask[:, :, None, None], 0)
    k, v = (t.masked_fill(~heard[:, :, None, None], 0) for t in (k, v))
    q, k, v = (rearrange(t, "sample step head width -> sample head step width") for t in (q, k, v))
    mask = heard.unsqueeze(1)
    if not edges.is_complete:
        begin, end = target.pad(edges.begin), target.pad(edges.end)  # (B, T, S)
        rows, count, width = edges.source_rows, begin.size(2), edges.source_rows.size(1)
        if edges.sources:
            of_row = torch.cat([torch.full((s.max_length,), i, device=rows.device) for i, s in enumerate(edges.sources)])
        else:
            of_row = torch.arange(count, device=rows.device).repeat_interleave(width // count)
        inside = (rows.unsqueeze(1) >= begin[..., of_row]) & (rows.unsqueeze(1) < end[..., of_row])
        mask = mask & inside
    return Padded(q, k, v, mask)


def unpad(out: Tensor, edges: IntervalEdges, dtype: torch.dtype) -> Tensor:
    """(B, K, T, D_v) to rows (N, K, D_v), zeros in gaps."""
    out = rearrange(out, "sample head step width -> sample step head width").contiguous()
    if edges.target.steps is not None:
        out = out.masked_fill(~edges.target.mask[:, :, None, None], 0)
    return edges.target.unpad(out).to(dtype)


def run_reference(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges, dropout: float = 0.0) -> Tensor:
    dtype = wide_dtype(query, key, value)
    padded = pad(query, key, value, edges, dtype)
    mask = padded.mask.expand(-1, padded.query.size(2), -1)
    if dropout:
        weights = F.dropout(reference.attention_map(padded.query, padded.key, mask), dropout)
        return unpad(weights @ padded.value, edges, value.dtype)
    return unpad(reference.interval_attention(padded.query, padded.key, padded.value, mask), edges, value.dtype)


def run_sdpa(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
    """Runs PyTorch's own kernels. Their second derivatives come from the reference."""
    wanted = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return _Sdpa.apply(query, key, value, edges) if wanted and not is_traced() and not is_transformed() else _sdpa(query, key, value, edges)


class _Sdpa(torch.autograd.Function):
    """Keeps the graph of the first pass for the first gradient, and makes it again for a further one."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.edges, ctx.graph = edges, _graph(query, key, value, edges)
        return ctx.graph[0].detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *through_reference(lambda q, k, v: run_reference(q, k, v, ctx.edges), (query, key, value), grads[0]), None
        (out, inputs), ctx.graph = ctx.graph or _graph(query, key, value, ctx.edges), None  # not kept: it is large
        found = iter(torch.autograd.grad(out, [t for t in inputs if t.requires_grad], grads[0]))
        return *(next(found) if t.requires_grad else None for t in inputs), None


def _graph(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> tuple[Tensor, list[Tensor]]:
    """The result and the leaves that it was computed from, in the dtypes that came, as an operator computes."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(t.requires_grad) for t in (query, key, value)]
        return without_autocast(_sdpa)(*leaves, edges), leaves


def _sdpa(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
    q, k, v, mask = pad(query, key, value, edges, common_dtype(query, key, value))
    if k.size(2) == 0:
        out = (q.sum(-1, keepdim=True) + k.sum() + v.sum()) * v.new_zeros(v.size(-1))  # zeros that a gradient flows through
        return unpad(out, edges, value.dtype)
    # A step that hears nothing reads every key, and its result becomes zero: some kernels fail on a row without keys.
    nothing = ~mask.any(-1, keepdim=True)
    mask = (mask | nothing).unsqueeze(1)
    scale, width_value = q.size(-1) ** -0.5, v.size(-1)
    q, k, v = (F.pad(t, (0, -t.size(-1) % 8)) for t in (q, k, v))  # the fast kernels of CUDA take widths that are multiples of 8 only
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., :width_value]
    return unpad(out.masked_fill(nothing.unsqueeze(1), 0), edges, value.dtype)
