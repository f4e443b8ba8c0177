"""The field's metrics, right over several batches and several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import mean_absolute_error, mean_squared_error, pearson_corrcoef
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_f1_score,
)

from mea_graph.option_types import plain_value

Task = Literal["regression", "classification", "multilabel"]
TASKS: tuple[str, ...] = ("regression", "classification", "multilabel")
MAIN_METRIC: dict[str, str] = {"regression": "mae", "classification": "accuracy", "multilabel": "f1"}


class TaskMetrics(Metric):
    r"""Collects predictions and targets and computes every metric the field reports for a task.

    Predictions are kept (not running sums), so the result does not depend on how samples were cut into batches or spread
    over processes. A metric that is not defined (the correlation of a constant, the AUC of one class) is NaN, never 0.

    - `regression`: `mae`, `rmse`, `corr` (Pearson), `r2`.
    - `regression` with `sentiment=True`: `mae`, `corr`, `acc7` and `acc5` (clipped to [-3, 3] and [-2, 2], rounded)
      and both conventions of the binary task: `acc2_nonneg`, `f1_nonneg` (negative / non-negative, all samples) and
      `acc2_pos`, `f1_pos` (negative / positive, samples with target 0 left out). F1 is weighted by class support.
    - `classification`: `accuracy`, `f1_macro`, `f1_weighted`, and `auc` for two classes.
    - `multilabel`: `accuracy_<label>` and `f1_<label>` (weighted) for each label, and their means `accuracy` and `f1`.

    Args:
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction: 1, the number of classes, or the number of labels.
        sentiment: Whether a regression target is a sentiment score in [-3, 3].
        label_names: Names of the labels, one per output; their numbers if `None`. Used by `multilabel` only.

    Shape:
        - update: prediction `(B, out_channels)` (scores or logits), target :math:`(B,)` or, for `multilabel`, `(B, out_channels)`.
        - compute: dict of scalars.

    Raises:
        ValueError: If a prediction does not have the shape above, a regression has several targets, or nothing was collected.

    >>> metrics = TaskMetrics("regression", 1, sentiment=True)
    >>> metrics.update(
    ...     torch.tensor([[2.6], [-0.2], [0.1]]), torch.tensor([3.0, -1.0, 0.0])
    ... )
    >>> {
    ...     name: round(value.item(), 3)
    ...     for name, value in metrics.compute().items()
    ...     if name in ("acc7", "acc2_pos")
    ... }
    {'acc7': 0.667, 'acc2_pos': 1.0}
    """

    full_state_update = False
    predictions: list[Tensor]
    targets: list[Tensor]

    def __init__(self, task: Task, out_channels: int, sentiment: bool = False, label_names: Sequence[str] | None = None) -> None:
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
        if task == "regression" and out_channels != 1:
            raise ValueError(f"out_channels: expected 1 for the metrics of a regression, which have one target, got {out_channels}")
        label_names = plain_value(label_names)
        if label_names is not None and (isinstance(label_names, str) or len(label_names) != out_channels):
            got = repr(label_names) if isinstance(label_names, str) else f"{len(label_names)}: {list(label_names)}"
            raise ValueError(f"label_names: expected {out_channels} names (one per output), got {got}"[:300])
        if label_names is not None and len(set(label_names)) < len(label_names):  # scores go by the name
            raise ValueError(f"label_names: expected different names, got {list(label_names)}"[:300])
        self.task = task
        self.out_channels = out_channels
        self.sentiment = sentiment
        self.label_names = list(label_names) if label_names else [str(i) for i in range(out_channels)]
        self.add_state("predictions", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds one batch."""
        if prediction.dim() != 2 or prediction.size(1) != self.out_channels or prediction.size(0) != target.size(0):
            raise ValueError(
                f"prediction: expected ({target.size(0)}, {self.out_channels}) for target {tuple(target.shape)}, "
                f"got {tuple(prediction.shape)}"
            )
        self.predictions.append(prediction.detach().double())
        self.targets.append(target.detach())

    def compute(self) -> dict[str, Tensor]:
        """Returns every metric of the task over all that was added."""
        if len(self.predictions) == 0:
            raise ValueError("metrics: no sample was added")
        return self.scores(_joined(self.predictions), _joined(self.targets))

    def scores(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Returns every metric of these predictions alone: it adds nothing and needs no other process."""
        if self.task == "classification":
            return classification_metrics(prediction, target.long())
        if self.task == "multilabel":
            return multilabel_metrics(prediction, target.long(), self.label_names)
        prediction, target = prediction.flatten(), target.flatten().double()
        return sentiment_metrics(prediction, target) if self.sentiment else regression_metrics(prediction, target)


def regression_metrics(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    r"""Returns MAE, RMSE, Pearson correlation and R2 of a real-valued target.

    .. math::
        \mathrm{MAE} = \frac{1}{N} \sum_i |\hat y_i - y_i|, \qquad
        R^2 = 1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y)^2}

    R2 is 0 for the mean of the targets, 1 for a perfect prediction, and may be negative. R2 and the correlation are NaN where they are not
    defined: with one sample, or with targets that are all the same. The correlation also is with predictions that are all the same.

    Args:
        prediction: Predicted values.
        target: True values, in the same unit; MAE and RMSE are in it too.

    Shape:
        - both :math:`(N,)`, float64 for exact sums.

    Raises:
        RuntimeError: If the shapes differ.

    >>> scores = regression_metrics(
    ...     torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    ... )
    >>> round(scores["mae"].item(), 4)
    0.3333
    """
    return {
        "mae": mean_absolute_error(prediction, target),
        "rmse": mean_squared_error(prediction, target, squared=False),
        "corr": _correlation(prediction, target),
        "r2": _explained(prediction, target),
    }


def sentiment_metrics(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Returns the metrics of CMU-MOSI and CMU-MOSEI for scores in [-3, 3]; both binary conventions are named.

    `acc7` and `acc5` compare whole numbers, rounded from scores cut to [-3, 3] and [-2, 2]. `acc2_nonneg` and `f1_nonneg` tell negative
    scores from all others. `acc2_pos` and `f1_pos` tell positive from negative ones, without the samples whose true score is 0. F1 is
    weighted by class. `mae` and `corr` are those of `regression_metrics`.

    Args:
        prediction: Predicted scores.
        target: True scores; 0 is neutral.

    Shape:
        - both :math:`(N,)`.

    Raises:
        RuntimeError: If the shapes differ.

    >>> scores = sentiment_metrics(torch.tensor([0.4, -0.4]), torch.tensor([0.0, -1.0]))
    >>> scores["acc2_nonneg"].item(), scores["acc2_pos"].item(), scores["acc7"].item()
    (1.0, 1.0, 0.5)
    """
    polar = target != 0
    return {
        "mae": mean_absolute_error(prediction, target),
        "corr": _correlation(prediction, target),
        "acc7": _rounded_accuracy(prediction, target, 3),
        "acc5": _rounded_accuracy(prediction, target, 2),
        **_binary_scores(prediction >= 0, target >= 0, ("acc2_nonneg", "f1_nonneg")),
        **_binary_scores(prediction[polar] > 0, target[polar] > 0, ("acc2_pos", "f1_pos")),
    }


def classification_metrics(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Returns accuracy, macro and weighted F1, and for two classes the area under the ROC curve.

    Macro F1 is the mean over the classes; weighted F1 weighs them by their samples. The area is NaN if only one class occurs.

    Args:
        logits: One score per class; the highest wins.
        target: Class numbers, from 0 to C - 1.

    Shape:
        - :math:`(N, C)` and :math:`(N,)`.

    Raises:
        ValueError: If the numbers of samples differ.
        RuntimeError: If a class number is C or more.

    >>> scores = classification_metrics(
    ...     torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    ... )
    >>> scores["accuracy"].item(), scores["auc"].item()
    (1.0, 1.0)
    """
    classes = logits.size(1)
    predicted = logits.argmax(1)
    scores = {
        "accuracy": multiclass_accuracy(predicted, target, classes, average="micro"),
        "f1_macro": multiclass_f1_score(predicted, target, classes, average="macro"),
        "f1_weighted": multiclass_f1_score(predicted, target, classes, average="weighted"),
    }
    if classes == 2:
        scores["auc"] = _area_under_curve(logits[:, 1] - logits[:, 0], target)
    return scores


def multilabel_metrics(logits: Tensor, target: Tensor, label_names: Sequence[str]) -> dict[str, Tensor]:
    """Returns accuracy and weighted F1 of every binary label (the emotions of IEMOCAP) and their means.

    The names are `accuracy_<label>` and `f1_<label>`, and `accuracy` and `f1` for the means over the labels.

    Args:
        logits: One score per label; positive means present.
        target: 0 or 1 per label.
        label_names: One name per label.

    Shape:
        - both :math:`(N, K)`.

    >>> scores = multilabel_metrics(
    ...     torch.tensor([[1.0, -1.0]]), torch.tensor([[1, 1]]), ["happy", "sad"]
    ... )
    >>> (
    ...     scores["accuracy_happy"].item(),
    ...     scores["accuracy_sad"].item(),
    ...     scores["accuracy"].item(),
    ... )
    (1.0, 0.0, 0.5)
    """
    scores: dict[str, Tensor] = {}
    for column, name in enumerate(label_names):
        scores |= _binary_scores(logits[:, column] > 0, target[:, column] > 0, (f"accuracy_{name}", f"f1_{name}"))
    for kind in ("accuracy", "f1"):
        scores[kind] = torch.stack([scores[f"{kind}_{name}"] for name in label_names]).mean()
    return scores


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    """The collected batches as one tensor; after a gather torchmetrics hands over a tensor already."""
    return parts if isinstance(parts, Tensor) else torch.cat(parts)


def _undefined(like: Tensor) -> Tensor:
    return like.new_tensor(float("nan"))


def _correlation(prediction: Tensor, target: Tensor) -> Tensor:
    constant = prediction.numel() < 2 or bool((prediction == prediction[0]).all() or (target == target[0]).all())
    return _undefined(prediction) if constant else pearson_corrcoef(prediction, target)


def _explained(prediction: Tensor, target: Tensor) -> Tensor:
    """R2 of targets of any size: torchmetrics takes sums of squares below 1e-4 for 0, and gives a perfect 1 where both are."""
    spread = (target - target.mean()).square().sum()
    varied = target.numel() > 1 and bool(target.max() > target.min()) and bool(spread > 0)
    return 1 - (prediction - target).square().sum() / spread if varied else _undefined(target)


def _area_under_curve(margin: Tensor, target: Tensor) -> Tensor:
    if bool((target == target[0]).all()):
        return _undefined(margin)
    # ranks in [0, 1] instead of probabilities: those of confident samples would tie at 0 and 1
    _, rank = margin.unique(return_inverse=True)
    return binary_auroc(rank / rank.max().clamp(min=1), target)


def _rounded_accuracy(prediction: Tensor, target: Tensor, bound: int) -> Tensor:
    predicted, true = (values.clamp(-bound, bound).round().long() + bound for values in (prediction, target))
    return multiclass_accuracy(predicted, true, 2 * bound + 1, average="micro")


def _binary_scores(predicted: Tensor, true: Tensor, names: tuple[str, str]) -> dict[str, Tensor]:
    if true.numel() == 0:
        return dict.fromkeys(names, torch.tensor(float("nan"), device=true.device))
    predicted, true = predicted.long(), true.long()
    return {
        names[0]: multiclass_accuracy(predicted, true, 2, average="micro"),
        names[1]: multiclass_f1_score(predicted, true, 2, average="weighted"),
    }
