"""Attention weights that never look at padding."""

import torch
from torch import Tensor


def masked_softmax(logits: Tensor, key_mask: Tensor | None, dim: int = -1) -> Tensor:
    r"""Computes a softmax over the keys that exist; a row without any key gives zeros instead of NaN.

    .. math:: p_{ij} = \frac{\exp(z_{ij}) \, [j \text{ exists}]}{\sum_k \exp(z_{ik}) \, [k \text{ exists}]}

    Args:
        logits: Scores; entries of missing keys may be anything finite.
        key_mask: True where a key exists; broadcast against `logits`. None: all exist.
        dim: That of the keys.

    Shape:
        - logits: :math:`(*, T_q, T_k)`, as dim = -1 has it; key_mask: broadcastable to it; result: as `logits`.

    >>> import torch
    >>> masked_softmax(
    ...     torch.zeros(2, 3),
    ...     torch.tensor([[True, True, False], [False, False, False]]),
    ... )
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    return logits.softmax(dim) if key_mask is None else softmax_without(logits, ~key_mask, dim)


def softmax_without(logits: Tensor, absent: Tensor, dim: int = -1) -> Tensor:
    """The same, by where no key exists."""
    # The finite fill keeps rows without keys free of NaN, in the backward pass too; the second fill makes them zero.
    return logits.masked_fill(absent, torch.finfo(logits.dtype).min).softmax(dim).masked_fill(absent, 0)
