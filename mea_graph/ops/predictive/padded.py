"""The reference on padded sequences: the formula as the paper writes it, maps and all."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.predictive import reference


def padded_arguments(
    tensors: tuple[Tensor | None, ...], pointers: Pointers, edges: IntervalEdges | None, dtype: torch.dtype
) -> tuple[list[Any], Tensor, Tensor | None]:
    """Pads to (B, K, T, D) with zeros, since a weight of zero does not stop a NaN; returns the mask and (B, T, T), who hears whom, too."""
    mask = pointers.mask

    def pad(x: Tensor) -> Tensor:  # torch 2.9 compiles no `Tensor | None` here
        x = pointers.pad(x.to(dtype)).masked_fill(~mask[:, :, None, None], 0)
        return rearrange(x, "sample step head width -> sample head step width")

    heard = None
    if edges is not None and not edges.is_complete:
        begin, end = pointers.pad(edges.begin), pointers.pad(edges.end)  # (B, T, 1)
        row = (pointers.start[:, None] + torch.arange(pointers.max_length, device=mask.device)).unsqueeze(1)
        heard = (row >= begin) & (row < end)
    return [None if x is None else pad(x) for x in tensors], mask, heard


def run_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor | None,
    prior_key: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mu: float,
    pointers: Pointers,
    edges: IntervalEdges | None,
    dropout: float = 0.0,
) -> Tensor:
    """Runs the formula in float32 or better."""
    tensors = (query, key, value, prior_query, prior_key)
    if pointers.max_length == 0 or pointers.num_samples == 0:  # no step: nothing to attend to, and conv2d refuses empty maps
        nothing = sum(t[:0].sum() for t in (*tensors, weight, bias) if t is not None)  # a zero that a gradient flows through
        return (value.new_zeros(value.shape) + nothing).to(value.dtype)
    dtype = wide_dtype(*tensors, weight, bias)
    sequences, mask, heard = padded_arguments(tensors, pointers, edges, dtype)
    w, b = (None if t is None else t.to(dtype) for t in (weight, bias))
    q, k, v, prior_q, prior_k = sequences
    if dropout:
        out = F.dropout(reference.attention_map(q, k, prior_q, prior_k, w, b, mu, mask, heard), dropout) @ v
    else:
        out = reference.predictive_attention(q, k, v, prior_q, prior_k, w, b, mu, mask, heard)
    out = rearrange(out, "sample head step width -> sample step head width").contiguous().masked_fill(~mask[:, :, None, None], 0)
    return pointers.unpad(out).to(value.dtype)
