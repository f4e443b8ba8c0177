"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor

from mea_graph.train.metrics import TaskMetrics
from mea_graph.train.task_module import TaskModule

MOST_CLASSES = 12  # shown as a matrix
MOST_PAIRS = 8


class ConfusionCounter(L.Callback):
    """Counts, for every evaluation of a classifier, how many samples of each class were taken for each.

    `valid` is by epoch, `test` is one matrix; both over all processes. Modules of other tasks are passed over.
    """

    def __init__(self) -> None:
        self.valid: dict[int, Tensor] = {}
        self.test: Tensor | None = None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and (found := self._count(trainer, pl_module, "valid_metrics")) is not None:
            self.valid[trainer.current_epoch] = found

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.test = self._count(trainer, pl_module, "test_metrics")

    @staticmethod
    def _count(trainer: L.Trainer, module: L.LightningModule, name: str) -> Tensor | None:
        if not isinstance(module, TaskModule) or module.task != "classification":
            return None
        metrics: TaskMetrics = getattr(module, name)  # still filled: a callback's hook comes before the module's
        found = torch.zeros(metrics.out_channels, metrics.out_channels, dtype=torch.long, device=module.device)
        for prediction, target in zip(metrics.predictions, metrics.targets, strict=True):  # none where a process had no sample
            found += confusion_matrix(prediction.argmax(1), target, metrics.out_channels)
        return trainer.strategy.reduce(found, reduce_op="sum").cpu()


def confusion_matrix(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Returns how many samples of each class (rows) were taken for each class (columns).

    Args:
        predicted: Class numbers.
        target: Class numbers.
        classes: How many there are.

    Shape:
        - :math:`(N,)` and :math:`(N,)`; the result is `(classes, classes)`.

    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return torch.bincount(target.long() * classes + predicted.long(), minlength=classes * classes).view(classes, classes)


def confusion_text(matrix: Tensor, names: Sequence[str] | None, title: str) -> str:
    """Returns the matrix for people, with the scores of each class; of many classes the worst scores and confusions alone.

    Args:
        matrix: The matrix of `confusion_matrix`.
        names: The names of the classes; their numbers if None.
        title: The first line.

    Shape:
        - `(classes, classes)`.

    >>> print(
    ...     confusion_text(torch.tensor([[8, 2], [1, 9]]), ["rest", "stress"], "test")
    ... )
    test: rows are the true classes, columns what they were taken for
                0    1  recall  precision    F1     n
    0 rest      8    2    0.80       0.89  0.84    10
    1 stress    1    9    0.90       0.82  0.86    10
    """
    classes = len(matrix)
    own = list(names) if names else [""] * classes
    labels = [f"{number} {name[:16]}".rstrip() for number, name in enumerate(own)]
    width = max(map(len, labels))
    small = classes <= MOST_CLASSES
    wide = max(4, len(str(int(matrix.max()))))
    columns = "".join(f" {number:>{wide}}" for number in range(classes)) if small else ""
    lines = [f"{title}: rows are the true classes, columns what they were taken for" if small else f"{title}: scores of each class"]
    lines += [f"{'':<{width}}{columns}  recall  precision    F1     n"]
    scores = class_scores(matrix)
    order = range(classes) if small else sorted(range(classes), key=lambda c: (scores[c][2], c))[:MOST_CLASSES]
    for c in order:
        counts = "".join(f" {int(value):>{wide}}" for value in matrix[c]) if small else ""
        recall, precision, f1 = (f"{value:.2f}" if value == value else "-" for value in scores[c])
        lines.append(f"{labels[c]:<{width}}{counts}  {recall:>6}  {precision:>9}  {f1:>4}  {int(matrix[c].sum()):>4}")
    if not small:
        lines[0] += f", the {MOST_CLASSES} of {classes} with the least F1"
        called = [name or str(number) for number, name in enumerate(own)]
        pairs = sorted(((int(matrix[t, p]), t, p) for t in range(classes) for p in range(classes) if t != p and matrix[t, p]), reverse=True)
        worst = [f"{called[t]} as {called[p]} ({n} of {int(matrix[t].sum())})" for n, t, p in pairs[:MOST_PAIRS]]
        lines.append(f"most often confused: {', '.join(worst)}" if worst else "none is taken for another")
    return "\n".join(line.rstrip() for line in lines)


def class_scores(matrix: Tensor) -> list[tuple[float, float, float]]:
    """Returns recall, precision and F1 of each class; NaN where a class does not occur or is never predicted.

    Args:
        matrix: The matrix of `confusion_matrix`.

    Shape:
        - `(classes, classes)`.

    >>> class_scores(torch.tensor([[1, 1], [0, 2]]))[1]
    (1.0, 0.6666666666666666, 0.8)
    """
    counts = matrix.double()
    right, true, taken = counts.diagonal(), counts.sum(1), counts.sum(0)
    return list(zip((right / true).tolist(), (right / taken).tolist(), (2 * right / (true + taken)).tolist(), strict=True))
