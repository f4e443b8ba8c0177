"""Checkpoints of the best epoch, which is one with a number; and which weights they hold."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L
from lightning.pytorch import callbacks
from torch import Tensor


class ModelCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's checkpoints, of which an epoch whose watched metric is NaN is never among the best.

    The arguments are those of Lightning's `ModelCheckpoint`.

    >>> ModelCheckpoint(monitor="valid/corr", mode="max").best_model_path
    ''
    """

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether an epoch with this value is to be kept."""
        return current is not None and not bool(current.isnan()) and super().check_monitor_top_k(trainer, current)


def averaging_note(watching: Iterable[L.Callback]) -> str | None:
    """Returns what to say where weights are averaged too late for a checkpoint, else None.

    Lightning's `StochasticWeightAveraging` puts the average into the module when training ends; the last checkpoint was written before.

    Args:
        watching: The callbacks of the trainer.

    >>> averaging_note([callbacks.EMAWeightAveraging()]) is None
    True
    """
    if not any(isinstance(callback, callbacks.StochasticWeightAveraging) for callback in watching):
        return None
    return (
        "StochasticWeightAveraging averages after the last checkpoint is written, so best.ckpt and last.ckpt do not hold the average; "
        "those of EMAWeightAveraging do"
    )
