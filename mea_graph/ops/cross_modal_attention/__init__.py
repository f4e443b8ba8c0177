"""Cross-modal attention: one sequence attends to the steps of one or several others ([MEA] Eq. 7)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.cross_modal_attention import reference

__all__ = ["cross_modal_attention", "cross_modal_attention_map"]


def _concatenate(query: Tensor, parts: Sequence[Tensor], masks: Sequence[Tensor] | None, name: str) -> tuple[Tensor, Tensor | None]:
    if not parts:
        raise ValueError(f"{name}: expected at least one source, got none")
    for i, part in enumerate(parts):
        if part.dim() != 4 or part.shape[:2] != query.shape[:2]:
            raise ValueError(f"{name}[{i}]: expected ({query.size(0)}, {query.size(1)}, T, D), got {tuple(part.shape)}")
    if masks is None:
        return torch.cat(list(parts), 2), None
    if len(masks) != len(parts):
        raise ValueError(f"key_masks: expected {len(parts)}, one a source, got {len(masks)}")
    for i, (part, mask) in enumerate(zip(parts, masks, strict=True)):
        if mask.shape != (part.size(0), part.size(2)) or mask.dtype != torch.bool:
            raise ValueError(f"key_masks[{i}]: expected bool ({part.size(0)}, {part.size(2)}), got {mask.dtype} {tuple(mask.shape)}")
    return torch.cat(list(parts), 2), torch.cat(list(masks), 1)


def cross_modal_attention(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], key_masks: Sequence[Tensor] | None = None
) -> Tensor:
    r"""Attention of one sequence over the concatenated steps of several sources ([MEA] Eq. 7).

    .. math:: \mathrm{softmax}\big(Q \, [K_1, \dots, K_S]^T / \sqrt{D}\big) \, [V_1, \dots, V_S]

    Args:
        query: Of the target, split into heads.
        keys, values: One of each a source.
        key_masks: One a source, True at real steps. None: all are real. A sample whose sources are all empty gives zeros.

    Shape:
        - query: :math:`(B, K, T, D)`; keys[s], values[s]: :math:`(B, K, T_s, D)`; key_masks[s]: :math:`(B, T_s)`, bool
        - result: :math:`(B, K, T, D)`

    Raises:
        ValueError: A shape or the type of a mask is not as above, or no source is given.

    >>> import torch
    >>> audio, vision = torch.randn(2, 4, 9, 5), torch.randn(2, 4, 7, 5)
    >>> cross_modal_attention(torch.randn(2, 4, 3, 5), [audio, vision], [audio, vision]).shape
    torch.Size([2, 4, 3, 5])
    """
    key, mask = _concatenate(query, keys, key_masks, "keys")
    value, _ = _concatenate(query, values, None, "values")
    lengths, found = [k.size(2) for k in keys], [v.size(2) for v in values]
    if found != lengths:
        raise ValueError(f"values: expected sources of lengths {lengths} as in keys, got {found}")
    # Rows whose keys are all masked give zeros with finite gradients here.
    return F.scaled_dot_product_attention(query, key, value, attn_mask=None if mask is None else mask[:, None, None, :])


def cross_modal_attention_map(query: Tensor, keys: Sequence[Tensor], key_masks: Sequence[Tensor] | None = None) -> Tensor:
    r"""The attention map of `cross_modal_attention`, for figures.

    Args:
        query, keys, key_masks: As for `cross_modal_attention`.

    Shape:
        - result: :math:`(B, K, T, \sum_s T_s)`, the sources' steps in the order given.

    >>> import torch
    >>> cross_modal_attention_map(torch.randn(1, 2, 3, 4), [torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 4)]).shape
    torch.Size([1, 2, 3, 11])
    """
    key, mask = _concatenate(query, keys, key_masks, "keys")
    return reference.attention_map(query, key, mask)
