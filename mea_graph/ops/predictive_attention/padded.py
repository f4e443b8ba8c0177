"""The backends that compute on the whole padded batch: the reference, and plain attention where there is no prior."""

from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.cross_modal_attention import cross_modal_attention
from mea_graph.ops.predictive_attention import reference


def run_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor | None,
    prior_key: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mu: float,
    mask: Tensor | None,
) -> Tensor:
    """The formula in float32 or better, on zeros in the padding: a weight of zero does not stop a NaN."""
    if query.size(2) == 0:  # no step: nothing to attend to, and conv2d refuses empty maps
        return value
    tensors = (query, key, value, prior_query, prior_key, weight, bias)
    dtype = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
    padding = None if mask is None else ~mask[:, None, :, None]

    def clean(x: Tensor) -> Tensor:
        return x.to(dtype) if padding is None else x.to(dtype).masked_fill(padding, 0)

    sequences: Any = [None if t is None else clean(t) for t in tensors[:5]]
    parameters: Any = [None if t is None else t.to(dtype) for t in tensors[5:]]
    out = reference.predictive_attention(*[*sequences, *parameters, mu, mask])
    return (out if padding is None else out.masked_fill(padding, 0)).to(value.dtype)


def run_plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any) -> Tensor:
    """Without a prior: attention of the sequence over itself."""
    masks = None if mask is None else [mask]
    return cross_modal_attention(query, [key], [value], masks, query_mask=mask)


def refuse_plain(prior_query: Tensor | None, **_: Any) -> str | None:
    return None if prior_query is None else "a prior is given, and this computes attention without one"
