"""The prediction that looks at nothing: what every model has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from mea_graph.train.metrics import Task


def constant_prediction(y: Tensor, task: Task, out_channels: int) -> Tensor:
    r"""Returns the one prediction that fits the training targets best without looking at the input.

    For regression it is the mean, for classification the logarithm of each class's share (so the majority class wins), and for several
    labels the log odds of each:

    .. math:: \bar y, \qquad \log \frac{n_c}{N}, \qquad \log \frac{\bar y_k}{1 - \bar y_k}

    Args:
        y: Training targets.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction.

    Shape:
        - `y` is :math:`(N,)` or :math:`(N, K)`; returns `(out_channels,)` float64.

    >>> constant_prediction(
    ...     torch.tensor([0, 1, 1]), "classification", 2
    ... ).argmax().item()
    1
    """
    if task == "regression":
        return y.double().mean().reshape(1)
    if task == "classification":
        return torch.bincount(y.long(), minlength=out_channels).double().div(len(y)).log()
    return torch.logit(y.double().mean(0))
