"""Predictive attention as the paper writes it: maps are stored, the convolution is a `conv2d`. Frozen: the truth other backends meet."""

import math

import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.masking import masked_softmax


def attention_map(
    query: Tensor,
    key: Tensor,
    prior_query: Tensor | None,
    prior_key: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mu: float,
    mask: Tensor | None,
    heard: Tensor | None = None,
) -> Tensor:
    """The map A of [MEA] Eq. 2, (B, K, T, T); `heard`, (B, T, T), narrows both softmaxes. See `mea_graph.ops.predictive_attention`."""
    real = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, T)
    keys = real if heard is None else heard.unsqueeze(1) if real is None else real & heard.unsqueeze(1)
    current = masked_softmax(query @ key.mT / math.sqrt(query.size(-1)), keys)  # (B, K, T, T)
    if prior_query is None or prior_key is None or weight is None:
        return current
    previous = prior_query @ prior_key.mT / math.sqrt(prior_query.size(-1))
    if mask is not None and real is not None:  # zero outside the valid T x T block, so that the convolution's border sees no padding (R1)
        previous = previous.masked_fill(~(mask[:, None, :, None] & real), 0)
    predicted = F.gelu(F.conv2d(previous, weight, bias, padding=1))
    return masked_softmax(mu * predicted + (1 - mu) * current, keys)


def predictive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor | None,
    prior_key: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mu: float,
    mask: Tensor | None,
    heard: Tensor | None = None,
) -> Tensor:
    """[MEA] Eq. 2 times V, (B, K, T, D)."""
    return attention_map(query, key, prior_query, prior_key, weight, bias, mu, mask, heard) @ value
