"""Classes of very different sizes: weights that make them count alike, and the note that says so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mea_graph.train.metrics import Task

UNEQUAL = 5  # times as many samples of one class as of another that are worth a note


def balanced_weights(y: Tensor, task: Task, out_channels: int) -> Tensor:
    r"""Returns weights of the task loss with which all classes count alike, or both values of each label.

    .. math:: w_c = \frac{N}{C \, N_c} \quad \text{(classes)}, \qquad w_k = \frac{N - N_k}{N_k} \quad \text{(samples that have label } k)

    What no training sample has gets 1.

    Args:
        y: Training targets.
        task: `classification` or `multilabel`.
        out_channels: Number of classes or labels.

    Shape:
        - `y` is :math:`(N,)` or :math:`(N, K)`; returns `(out_channels,)`.

    >>> balanced_weights(torch.tensor([0, 0, 0, 1]), "classification", 2)
    tensor([0.6667, 2.0000])
    >>> balanced_weights(torch.tensor([[1.0], [0.0], [0.0], [0.0]]), "multilabel", 1)
    tensor([3.])
    """
    count = class_counts(y, task, out_channels)
    kinds = int((count > 0).sum())
    weights = len(y) / (kinds * count) if task == "classification" else (len(y) - count) / count
    return weights.where((count > 0) & (weights > 0), 1.0)


def class_counts(y: Tensor, task: Task, out_channels: int) -> Tensor:
    """Returns how many samples have each class or label.

    Args:
        y: Targets.
        task: `classification` or `multilabel`.
        out_channels: Number of classes or labels.

    Shape:
        - `y` is :math:`(N,)` or :math:`(N, K)`; returns `(out_channels,)`.

    >>> class_counts(torch.tensor([0, 2, 2]), "classification", 3)
    tensor([1, 0, 2])
    """
    return torch.bincount(y.long(), minlength=out_channels) if task == "classification" else y.sum(0).long()


def imbalance_note(y: Tensor, task: Task, out_channels: int, names: Sequence[str] | None = None) -> str | None:
    """Returns a remark where one class has many times the samples of another, or a label is rare or nearly everywhere; else None.

    Args:
        y: Training targets.
        task: What they are; a regression has no remark.
        out_channels: Number of classes or labels.
        names: The names of the classes or labels; their numbers if None.

    Shape:
        - `y` is :math:`(N,)` or :math:`(N, K)`.

    >>> imbalance_note(
    ...     torch.tensor([0] * 50 + [1] * 4), "classification", 2, ["rest", "fall"]
    ... )
    'classes are unequal: 50 training samples of rest, 4 of fall; class_weights: balanced, or data.sampling.balanced: true, evens them out'
    """
    if task == "regression":
        return None
    count = class_counts(y, task, out_channels)
    names = [str(number) for number in range(out_channels)] if names is None else names
    if task == "classification":
        most, least = int(count.argmax()), int(count.argmin())
        if count[most] < UNEQUAL * count[least]:
            return None
        return (
            f"classes are unequal: {count[most]} training samples of {names[most]}, {count[least]} of {names[least]}; "
            "class_weights: balanced, or data.sampling.balanced: true, evens them out"
        )
    rarer = torch.minimum(count, len(y) - count)
    label = int(rarer.argmin())
    if len(y) - rarer[label] < UNEQUAL * rarer[label]:
        return None
    return f"labels are unequal: {count[label]} of {len(y)} training samples have {names[label]}; class_weights: balanced evens them out"
