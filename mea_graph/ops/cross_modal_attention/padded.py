"""The backends that compute on the whole padded batch, over the joined sources: the reference, and PyTorch's own kernels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.cross_modal_attention import reference


class Joined(NamedTuple):
    """The sources one after the other, of one dtype, with zeros in the padding."""

    query: Tensor  # (B, K, T, D)
    key: Tensor  # (B, K, sum of T_s, D)
    value: Tensor  # (B, K, sum of T_s, D_v)
    key_mask: Tensor | None  # (B, sum of T_s)


def join(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    key_masks: Sequence[Tensor] | None,
    query_mask: Tensor | None,
    dtype: torch.dtype,
) -> Joined:
    key, value = (torch.cat([part.to(dtype) for part in parts], 2) for parts in (keys, values))
    query, mask = query.to(dtype), None
    if key_masks is not None:
        mask = torch.cat(list(key_masks), 1)
        key, value = (t.masked_fill(~mask[:, None, :, None], 0) for t in (key, value))  # a weight of zero does not stop a NaN
    if query_mask is not None:
        query = query.masked_fill(~query_mask[:, None, :, None], 0)
    return Joined(query, key, value, mask)


def finish(out: Tensor, query_mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Zeros in the target's padding, in the dtype of the values."""
    return (out if query_mask is None else out.masked_fill(~query_mask[:, None, :, None], 0)).to(dtype)


def run_reference(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_masks: Sequence[Tensor] | None, query_mask: Tensor | None
) -> Tensor:
    dtype = torch.promote_types(_common(query, keys, values), torch.float32)
    joined = join(query, keys, values, key_masks, query_mask, dtype)
    return finish(reference.cross_modal_attention(*joined), query_mask, values[0].dtype)


def run_sdpa(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_masks: Sequence[Tensor] | None, query_mask: Tensor | None
) -> Tensor:
    q, k, v, mask = join(query, keys, values, key_masks, query_mask, _common(query, keys, values))
    if k.size(2) == 0:
        out = (q.sum(-1, keepdim=True) + k.sum() + v.sum()) * v.new_zeros(v.size(-1))  # zeros that a gradient flows through
        return finish(out, query_mask, values[0].dtype)
    if mask is not None:
        # A sample without any key looks at its padding, where the values are zeros: not every kernel survives a row without keys.
        mask = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
    scale, width_value = q.size(-1) ** -0.5, v.size(-1)
    q, k, v = (F.pad(t, (0, -t.size(-1) % 8)) for t in (q, k, v))  # the fast kernels of CUDA take widths that are multiples of 8 only
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return finish(out[..., :width_value], query_mask, values[0].dtype)


def _common(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> torch.dtype:
    dtype = query.dtype
    for t in (*keys, *values):
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype
