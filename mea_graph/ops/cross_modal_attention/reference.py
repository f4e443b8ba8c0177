"""Cross-modal attention as the paper writes it, over the concatenated sources. Frozen: the truth other backends meet."""

import math

from torch import Tensor

from mea_graph.ops.masking import masked_softmax


def attention_map(query: Tensor, key: Tensor, key_mask: Tensor | None) -> Tensor:
    """The map of [MEA] Eq. 7, (B, K, T, T_s), with key (B, K, T_s, D) and key_mask (B, T_s)."""
    logits = query @ key.mT / math.sqrt(query.size(-1))
    return masked_softmax(logits, None if key_mask is None else key_mask[:, None, None, :])


def cross_modal_attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """[MEA] Eq. 7 before the residual, (B, K, T, D)."""
    return attention_map(query, key, key_mask) @ value
