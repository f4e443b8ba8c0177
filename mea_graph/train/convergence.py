"""Whether training ended too early."""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightning as L


class WatchedValues(L.Callback):
    """Keeps the number that chooses the best epoch, by epoch.

    Args:
        watched: Its name.
        mode: `min` or `max`.
    """

    def __init__(self, watched: str, mode: str) -> None:
        self.watched, self.mode = watched, mode
        self.values: dict[int, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.watched.startswith("valid/") and not trainer.sanity_checking:
            self._keep(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.watched.startswith("valid/"):
            self._keep(trainer)

    def _keep(self, trainer: L.Trainer) -> None:
        if self.watched in trainer.callback_metrics:
            self.values[trainer.current_epoch] = float(trainer.callback_metrics[self.watched])

    @property
    def best_epoch(self) -> int | None:
        """The first epoch with the best value; None where no value is a number."""
        sign = 1 if self.mode == "min" else -1
        found = [(sign * value, epoch) for epoch, value in self.values.items() if math.isfinite(value)]
        return min(found)[1] if found else None

    def unfinished(self) -> str | None:
        """Returns why more epochs may help, or None where nothing says so."""
        if self.best_epoch is None:
            return None
        last = max(self.values)
        if self.best_epoch == last:
            return f"{self.watched} was best in the last epoch ({last})"
        kept = [value for _, value in sorted(self.values.items()) if math.isfinite(value)]
        return f"{self.watched} was still getting better at the end" if still_improves(kept, self.mode) else None


def still_improves(values: Sequence[float], mode: str) -> bool:
    """Whether the second half of a series gets better by more than its noise: the slope of a line through it is three of its errors from 0.

    Args:
        values: One an epoch; fewer than eight say nothing.
        mode: `min` or `max`.

    >>> (
    ...     still_improves([1 / (1 + epoch) for epoch in range(20)], "min"),
    ...     still_improves([0.5, 0.4] * 10, "min"),
    ... )
    (True, False)
    """
    half = list(values[len(values) // 2 :])
    if len(half) < 4:
        return False
    middle, mean = (len(half) - 1) / 2, math.fsum(half) / len(half)
    spread = math.fsum((i - middle) ** 2 for i in range(len(half)))
    slope = math.fsum((i - middle) * (value - mean) for i, value in enumerate(half)) / spread
    rest = math.fsum((value - mean - slope * (i - middle)) ** 2 for i, value in enumerate(half))
    error = math.sqrt(rest / (len(half) - 2) / spread)
    gain = -slope if mode == "min" else slope
    return gain > 3 * error and gain > 1e-9 * max(abs(mean), 1e-9)
