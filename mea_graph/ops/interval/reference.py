"""Interval attention as the paper writes it, on padded sequences. Frozen: the truth other backends meet."""

import math

from torch import Tensor

from mea_graph.ops.masking import masked_softmax


def attention_map(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """The map of [MEA] Eq. 7, (B, K, T, T_s), with key (B, K, T_s, D); mask (B, T, T_s) says which steps hear which."""
    logits = query @ key.mT / math.sqrt(query.size(-1))
    return masked_softmax(logits, mask.unsqueeze(1))


def interval_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """[MEA] Eq. 7 before the residual, (B, K, T, D)."""
    return attention_map(query, key, mask) @ value
