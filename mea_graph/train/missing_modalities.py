"""Taking modalities away from the samples of a batch: to train for it, and to measure what it costs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Sequences = dict[str, Tensor]


def draw_missing(batch_dict: Mapping[str, Tensor], batch_size: int, probability: float) -> dict[str, Tensor]:
    """Draws which modalities a batch goes without; every sample that has any keeps one of them.

    Args:
        batch_dict: The sample number of each step.
        batch_size: Number of samples B.
        probability: With which each modality of each sample goes, in [0, 1].

    Shape:
        - by modality :math:`(B,)` bool.

    >>> missing = draw_missing(
    ...     {"audio": torch.tensor([0, 0, 1]), "text": torch.tensor([0])},
    ...     batch_size=2,
    ...     probability=1.0,
    ... )
    >>> (
    ...     int(missing["audio"][0]) + int(missing["text"][0]),
    ...     missing["audio"][1].item(),
    ... )  # one of two stays, and the only one
    (1, False)
    """
    draw = torch.rand(batch_size, len(batch_dict))  # on the CPU, so that every device drops the same
    draw = draw.to(next(iter(batch_dict.values())).device)
    has = torch.stack([_has(batch, batch_size) for batch in batch_dict.values()], 1)
    luckiest = draw.masked_fill(~has, -1).argmax(1, keepdim=True)
    missing = (draw < probability).scatter(1, luckiest, False)
    return dict(zip(batch_dict, missing.unbind(1), strict=True))


def without_modalities(
    x_dict: Mapping[str, Tensor], batch_dict: Mapping[str, Tensor], missing: Mapping[str, Tensor]
) -> tuple[Sequences, Sequences]:
    """Returns the batch without the steps of missing modalities: nodes that are not there, as where data lacks them.

    Args:
        x_dict: The steps of all samples, one sample after the other.
        batch_dict: The sample number of each step.
        missing: For some of the modalities, which samples go without.

    Shape:
        - `x_dict[m]` `(sum T_m, d_m)`, `batch_dict[m]` `(sum T_m,)`, `missing[m]` :math:`(B,)` bool; the result has fewer steps.

    >>> x, batch = without_modalities(
    ...     {"a": torch.ones(3, 2)},
    ...     {"a": torch.tensor([0, 0, 1])},
    ...     {"a": torch.tensor([True, False])},
    ... )
    >>> x["a"].shape, batch["a"].tolist()
    (torch.Size([1, 2]), [1])
    """
    x, batch = dict(x_dict), dict(batch_dict)
    for modality, gone in missing.items():
        kept = ~gone[batch[modality]]
        x[modality], batch[modality] = x[modality][kept], batch[modality][kept]
    return x, batch


def _has(batch: Tensor, batch_size: int) -> Tensor:
    """Which samples have a step, (B,) bool."""
    return torch.zeros(batch_size, dtype=torch.bool, device=batch.device).index_fill(0, batch, True)


def warn_of_absent(lengths: Mapping[str, np.ndarray], train: np.ndarray) -> None:
    """Warns of modalities that some samples have but none that trains: they reach untrained weights, and are not scaled.

    Args:
        lengths: The number of steps of each sample, by modality.
        train: Numbers of the training samples.

    >>> warn_of_absent({"audio": np.array([3, 0, 2])}, np.array([0, 1]))
    """
    for name, steps in lengths.items():
        if not steps[train].any() and (others := int((steps > 0).sum())):
            told = f"no training sample has {name!r}, but {others} others have it: what is made of it there is not learnt"
            warnings.warn(f"data: {told}", stacklevel=3)
