"""Changes to training samples that leave their meaning as it is: another pace, hidden spans, noise."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mea_graph.option_types import mismatch
from mea_graph.suggestions import did_you_mean

Sequences = dict[str, Tensor]
AUGMENTATIONS: dict[str, str] = {
    "modality_dropout": "in [0, 1)",
    "time_stretch": "in [0, 3]",
    "time_mask": "in [0, 1]",
    "feature_noise": ">= 0",
}
MOST = {"modality_dropout": 1, "time_stretch": 3, "time_mask": 1, "feature_noise": math.inf}


def checked_augmentation(given: Mapping[str, float] | None) -> dict[str, float]:
    """Returns how far training samples are changed in each way, 0 where it is not said.

    Args:
        given: `modality_dropout` (the probability with which each modality of a sample is left out; each sample keeps one),
            `time_stretch`, `time_mask` and `feature_noise` (of `augment`), or some of them.

    Raises:
        ValueError: If a name does not exist, or a number is out of its range.

    >>> checked_augmentation({"time_mask": 0.2})
    {'modality_dropout': 0.0, 'time_stretch': 0.0, 'time_mask': 0.2, 'feature_noise': 0.0}
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"augmentation: expected numbers by name ({', '.join(AUGMENTATIONS)}), got {given!r}")
    for name, value in (given or {}).items():
        if name not in AUGMENTATIONS:
            raise ValueError(f"augmentation: expected some of {', '.join(AUGMENTATIONS)}, got {name!r}{did_you_mean(name, AUGMENTATIONS)}")
        legal = mismatch(value, float) is None and 0 <= value <= MOST[name]
        if not legal or (name == "modality_dropout" and value == 1):
            raise ValueError(f"augmentation.{name}: expected a number {AUGMENTATIONS[name]}, got {value!r}")
    return {name: float((given or {}).get(name, 0.0)) for name in AUGMENTATIONS}


def augment(
    x_dict: Mapping[str, Tensor],
    batch_dict: Mapping[str, Tensor],
    batch_size: int,
    time_stretch: float = 0.0,
    time_mask: float = 0.0,
    feature_noise: float = 0.0,
) -> tuple[Sequences, Sequences]:
    r"""Returns a randomly changed copy of each sample of a batch, against overfitting.

    1. Each sample is played faster or slower, :math:`T_m \to \mathrm{round}(T_m \, e^{u})` with
       :math:`u \sim U(-\mathrm{stretch}, \mathrm{stretch})`, by linear interpolation between steps. All modalities of a sample
       share the pace, so simultaneous events stay simultaneous.
    2. One span of each sequence is set to zero, the mean of standardised features. Its share of the steps is drawn from
       :math:`U(0, \mathrm{mask})` for each modality (the time mask of SpecAugment, Park et al. 2019), and where it begins from all
       places where it fits. So it hides the first and the last steps less often than those between.
    3. Each value gets Gaussian noise.

    Args:
        x_dict: The steps of all samples, one sample after the other, by modality.
        batch_dict: The sample number of each step, sorted.
        batch_size: Number of samples B.
        time_stretch: Largest logarithm of the pace, in [0, 3].
        time_mask: Largest share of a sequence that is hidden, in [0, 1].
        feature_noise: Standard deviation of the noise, >= 0.

    Shape:
        - `x_dict[m]` `(sum T_m, d_m)`, `batch_dict[m]` `(sum T_m,)`; the result as the arguments, at other lengths.

    >>> x, batch = augment(
    ...     {"audio": torch.ones(100, 2)},
    ...     {"audio": torch.zeros(100, dtype=torch.long)},
    ...     1,
    ...     time_stretch=0.2,
    ... )
    >>> 81 <= len(batch["audio"]) <= 123, bool((x["audio"] == 1).all())
    (True, True)
    """
    x, batch = dict(x_dict), dict(batch_dict)
    # drawn on the CPU, so that every device trains on the same
    pace = ((2 * torch.rand(batch_size) - 1) * time_stretch).exp() if time_stretch > 0 else None
    for m in x:
        if pace is not None:
            x[m], batch[m] = at_pace(x[m], batch[m], pace.to(x[m].device))
        if time_mask > 0:
            width, start = torch.rand(2, batch_size).to(x[m].device)
            x[m] = hide_span(x[m], batch[m], width * time_mask, start)
        if feature_noise > 0:
            x[m] = x[m] + feature_noise * torch.randn(x[m].shape).to(x[m])
    return x, batch


def at_pace(x: Tensor, batch: Tensor, pace: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sequences of other lengths, by linear interpolation; one that has a step keeps at least one.

    Args:
        x: The steps of all samples, one sample after the other.
        batch: The sample number of each step, sorted.
        pace: By which each length is multiplied, > 0.

    Shape:
        - `x` `(sum T, d)`, `batch` `(sum T,)`, `pace` :math:`(B,)`; returns `(sum T', d)` and `(sum T',)`.

    >>> x, batch = at_pace(
    ...     torch.tensor([[0.0], [2.0], [7.0]]),
    ...     torch.tensor([0, 0, 1]),
    ...     torch.tensor([2.0, 1.0]),
    ... )
    >>> x.flatten().tolist(), batch.tolist()
    ([0.0, 0.5, 1.5, 2.0, 7.0], [0, 0, 0, 0, 1])
    """
    first, length = _extent(batch, len(pace))
    new = torch.where(length > 0, (length * pace).round().long().clamp(min=1), 0)
    sample = torch.repeat_interleave(torch.arange(len(pace), device=x.device), new)
    step = torch.arange(len(sample), device=x.device) - (new.cumsum(0) - new)[sample]
    position = (step + 0.5) * (length / new.clamp(min=1))[sample] - 0.5
    position = torch.minimum(position.clamp(min=0), (length[sample] - 1).to(position.dtype))
    below = position.floor().long()
    above = torch.minimum(below + 1, length[sample] - 1)
    share = (position - below).unsqueeze(1).to(x.dtype)
    return torch.lerp(x[first[sample] + below], x[first[sample] + above], share), sample


def hide_span(x: Tensor, batch: Tensor, width: Tensor, start: Tensor) -> Tensor:
    """Returns sequences of which one span is zero.

    Args:
        x: The steps of all samples, one sample after the other.
        batch: The sample number of each step, sorted.
        width: Share of each sample's steps to hide, in [0, 1], rounded down to whole steps.
        start: Where the span lies: 0 at the sample's beginning, 1 at its end. Uniform numbers make each place as likely.

    Shape:
        - `x` `(sum T, d)`, `batch` `(sum T,)`, `width` and `start` :math:`(B,)`; returns `(sum T, d)`.

    >>> hide_span(
    ...     torch.ones(4, 1),
    ...     torch.zeros(4, dtype=torch.long),
    ...     torch.tensor([0.5]),
    ...     torch.tensor([1.0]),
    ... ).flatten().tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    first, length = _extent(batch, len(width))
    hidden = (width * length).floor().long()
    begin = torch.minimum((start * (length - hidden + 1)).floor().long(), length - hidden)  # each place where it fits is as likely
    step = torch.arange(len(x), device=x.device) - first[batch]
    gone = (step >= begin[batch]) & (step < (begin + hidden)[batch])
    return x.masked_fill(gone.unsqueeze(1), 0)


def _extent(batch: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """First row and number of rows of each sample."""
    length = torch.bincount(batch, minlength=batch_size)
    return length.cumsum(0) - length, length
