"""Early stopping that waits for the first number."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import callbacks
from torch import Tensor

from mea_graph.train.monitors import unknown_monitor


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but for metrics that are not defined: before its first number a watched metric is waited for, however long.

    The correlation of a constant prediction and the AUC of one class are NaN, and in the first epochs a model may well be constant.
    Later an epoch without a number counts as one without improvement.

    Args:
        monitor: name of what is watched, such as ``valid/task``.
        check_finite: whether training ends at once where it is not finite.
        kwargs: further options of Lightning's ``EarlyStopping``.

    Example:
        >>> EarlyStopping("valid/corr", mode="max").patience
        3
    """

    def __init__(self, monitor: str, check_finite: bool = False, **kwargs: Any) -> None:
        super().__init__(monitor, check_finite=check_finite, **kwargs)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        if bool(current.isnan()) and not self.check_finite and math.isinf(self.best_score):
            return False, None
        return super()._evaluate_stopping_criteria(current)

    def _validate_condition_metric(self, logs: dict[str, Tensor]) -> bool:
        if self.strict and self.monitor not in logs:
            raise unknown_monitor("early_stopping.monitor", self.monitor, list(logs))
        return super()._validate_condition_metric(logs)
