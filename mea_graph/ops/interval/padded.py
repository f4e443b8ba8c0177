"""The backends that compute on padded sequences: the reference, and PyTorch's own kernels."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mea_graph.ops.interval import reference
from mea_graph.ops.interval_edges import IntervalEdges


class Padded(NamedTuple):
    """Every sample's rows, and which step hears which."""

    query: Tensor  # (B, K, T, D)
    key: Tensor  # (B, K, sum of T_s, D)
    value: Tensor  # (B, K, sum of T_s, D_v)
    mask: Tensor  # (B, T or 1, sum of T_s)


def pad(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges, dtype: torch.dtype) -> Padded:
    """Zeros stand in the padding: a weight of zero does not stop a NaN."""
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


def run_reference(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
    dtype = torch.promote_types(common_dtype(query, key, value), torch.float32)
    padded = pad(query, key, value, edges, dtype)
    mask = padded.mask.expand(-1, padded.query.size(2), -1)
    return unpad(reference.interval_attention(padded.query, padded.key, padded.value, mask), edges, value.dtype)


def run_sdpa(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
    q, k, v, mask = pad(query, key, value, edges, common_dtype(query, key, value))
    if k.size(2) == 0:
        out = (q.sum(-1, keepdim=True) + k.sum() + v.sum()) * v.new_zeros(v.size(-1))  # zeros that a gradient flows through
        return unpad(out, edges, value.dtype)
    # A step that hears nothing looks at everything, and its result is cut: not every kernel survives a row without keys.
    nothing = ~mask.any(-1, keepdim=True)
    mask = (mask | nothing).unsqueeze(1)
    scale, width_value = q.size(-1) ** -0.5, v.size(-1)
    q, k, v = (F.pad(t, (0, -t.size(-1) % 8)) for t in (q, k, v))  # the fast kernels of CUDA take widths that are multiples of 8 only
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., :width_value]
    return unpad(out.masked_fill(nothing.unsqueeze(1), 0), edges, value.dtype)


def common_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype
