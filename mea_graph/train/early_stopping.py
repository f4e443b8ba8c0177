"""Early stopping that waits for the first number."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch import callbacks
from torch import Tensor

from mea_graph.train.monitors import Mode, mode_of, unknown_monitor, watching_mode


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's early stopping, which also waits for the first number of a metric that is not defined at first.

    The correlation of a constant prediction and the AUC of one class are NaN, and in the first epochs a model may well be constant.
    Later an epoch without a number counts as one without improvement.

    Args:
        monitor: Name of what is watched, such as `valid/task`.
        mode: `min` or `max`: which value is best; follows from the name of every number that the package logs.
        check_finite: Whether training ends at once where it is not finite.
        kwargs: Further options of Lightning's `EarlyStopping`.

    Raises:
        DataError: If the mode is the wrong way round, or not known.

    >>> EarlyStopping("valid/corr").mode
    'max'
    """

    def __init__(self, monitor: str, mode: Mode | None = None, check_finite: bool = False, **kwargs: Any) -> None:
        self.mode_is_unknown = mode is None and mode_of(monitor) is None  # told once it is known that there is such a number
        super().__init__(monitor, mode="min" if self.mode_is_unknown else watching_mode(monitor, mode), check_finite=check_finite, **kwargs)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses to watch a number if it is unknown whether less or more is better."""
        if self.mode_is_unknown:
            watching_mode(self.monitor, None)
        super().on_train_start(trainer, pl_module)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        if bool(current.isnan()) and not self.check_finite and math.isinf(self.best_score):
            return False, None
        return super()._evaluate_stopping_criteria(current)

    def _validate_condition_metric(self, logs: dict[str, Tensor]) -> bool:
        if self.strict and self.monitor not in logs:
            raise unknown_monitor("early_stopping.monitor", self.monitor, list(logs))
        return super()._validate_condition_metric(logs)
