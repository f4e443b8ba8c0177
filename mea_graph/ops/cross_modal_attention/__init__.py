"""Cross-modal attention: one sequence attends to the steps of one or several others ([MEA] Eq. 7)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.backends import Backend, Op
from mea_graph.ops.cross_modal_attention import cpu, padded, reference

__all__ = ["cross_modal_attention", "cross_modal_attention_map"]


def _check(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor] | None,
    key_masks: Sequence[Tensor] | None,
    query_mask: Tensor | None,
) -> None:
    if query.dim() != 4:
        raise ValueError(f"query: expected (B, K, T, D), got {tuple(query.shape)}")
    batch, heads, length, width = query.shape
    if not keys:
        raise ValueError("keys: expected at least one source, got none")
    for i, key in enumerate(keys):
        if key.dim() != 4 or key.shape[:2] != query.shape[:2] or key.size(3) != width:
            raise ValueError(f"keys[{i}]: expected ({batch}, {heads}, T, {width}), got {tuple(key.shape)}")
    if values is not None:
        for i, value in enumerate(values):
            if value.dim() != 4 or value.shape[:2] != query.shape[:2] or value.size(3) != values[0].size(3):
                any_or_first = values[0].size(3) if i else "any"
                raise ValueError(f"values[{i}]: expected ({batch}, {heads}, T, {any_or_first}), got {tuple(value.shape)}")
        lengths, found = [k.size(2) for k in keys], [v.size(2) for v in values]
        if found != lengths:
            raise ValueError(f"values: expected sources of lengths {lengths} as in keys, got {found}")
    if key_masks is not None:
        if len(key_masks) != len(keys):
            raise ValueError(f"key_masks: expected {len(keys)}, one a source, got {len(key_masks)}")
        for i, (key, mask) in enumerate(zip(keys, key_masks, strict=True)):
            if mask.shape != (batch, key.size(2)) or mask.dtype != torch.bool:
                raise ValueError(f"key_masks[{i}]: expected bool ({batch}, {key.size(2)}), got {mask.dtype} {tuple(mask.shape)}")
    if query_mask is not None and (query_mask.shape != (batch, length) or query_mask.dtype != torch.bool):
        raise ValueError(f"query_mask: expected bool ({batch}, {length}), got {query_mask.dtype} {tuple(query_mask.shape)}")


def cross_modal_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    key_masks: Sequence[Tensor] | None = None,
    query_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Attention of one sequence over the concatenated steps of several sources ([MEA] Eq. 7).

    .. math:: \mathrm{softmax}\big(Q \, [K_1, \dots, K_S]^T / \sqrt{D}\big) \, [V_1, \dots, V_S]

    What stands in the padding of the query or of a source reaches no result and no gradient.

    Args:
        query: Of the target, split into heads.
        keys, values: One of each a source.
        key_masks: One a source, True at real steps. None: all are real. A sample whose sources are all empty gives zeros.
        query_mask: True at the target's real steps; the others give zeros. None: all are real.
        backend: "cpu" attends on each sample's true steps, block by block, for tensors on a CPU; "sdpa" hands the padded batch and
            its mask to PyTorch, on any device and without waiting for it; "reference". "auto" takes the first of these that can run.

    Shape:
        - query: :math:`(B, K, T, D)`; keys[s]: :math:`(B, K, T_s, D)`; values[s]: :math:`(B, K, T_s, D_v)`
        - key_masks[s]: :math:`(B, T_s)`, bool; query_mask: :math:`(B, T)`, bool
        - result: :math:`(B, K, T, D_v)`, of the values' dtype

    Raises:
        ValueError: A shape or the type of a mask is not as above, no source is given, or the backend cannot run.

    >>> import torch
    >>> audio, vision = torch.randn(2, 4, 9, 5), torch.randn(2, 4, 7, 5)
    >>> cross_modal_attention(torch.randn(2, 4, 3, 5), [audio, vision], [audio, vision]).shape
    torch.Size([2, 4, 3, 5])
    """
    _check(query, keys, values, key_masks, query_mask)
    arguments = {"query": query, "keys": keys, "values": values, "key_masks": key_masks, "query_mask": query_mask}
    return _OP.select(backend, query.device, arguments)(**arguments)


def cross_modal_attention_map(query: Tensor, keys: Sequence[Tensor], key_masks: Sequence[Tensor] | None = None) -> Tensor:
    r"""The attention map of `cross_modal_attention`, for figures.

    Args:
        query, keys, key_masks: As for `cross_modal_attention`.

    Shape:
        - result: :math:`(B, K, T, \sum_s T_s)`, the sources' steps in the order given.

    Raises:
        ValueError: As for `cross_modal_attention`.

    >>> import torch
    >>> cross_modal_attention_map(torch.randn(1, 2, 3, 4), [torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 4)]).shape
    torch.Size([1, 2, 3, 11])
    """
    _check(query, keys, None, key_masks, None)
    return reference.attention_map(query, torch.cat(list(keys), 2), None if key_masks is None else torch.cat(list(key_masks), 1))


def _accept(**arguments: Any) -> None:
    """For the backends that run on anything."""


_OP = Op(
    cross_modal_attention,
    {
        "cpu": Backend(cpu.run, cpu.refuse, prefers="cpu"),
        "sdpa": Backend(padded.run_sdpa, _accept),
        "reference": Backend(padded.run_reference, _accept),
    },
)
