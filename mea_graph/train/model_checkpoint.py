"""Checkpoints of the best epoch, which is one with a number, and of the last one; and which weights they hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import lightning as L
from lightning.pytorch import callbacks
from torch import Tensor


class ModelCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's checkpoints, of which an epoch whose watched metric is NaN is never among the best.

    The arguments are those of Lightning's `ModelCheckpoint`.

    >>> ModelCheckpoint(monitor="valid/corr", mode="max").best_model_path
    ''
    """

    @property
    def state_key(self) -> str:
        """The name under which a checkpoint keeps the state of this callback: another one than that of Lightning's own class."""
        return f"mea_graph.{super().state_key}"

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether an epoch with this value is to be kept."""
        return current is not None and not bool(current.isnan()) and super().check_monitor_top_k(trainer, current)


def best_and_last(folder: str | Path, monitor: str, mode: str) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """Returns what writes `best.ckpt` and `last.ckpt`. Two: Lightning's `save_last` writes only when the best one changes.

    The last comes second: it holds the state of the best one.

    Args:
        folder: Where they are written.
        monitor: Name of what says which epoch is best.
        mode: `min` or `max`: which value is best.

    >>> [callback.filename for callback in best_and_last("run", "valid/corr", "max")]
    ['best', 'last']
    """
    best = ModelCheckpoint(folder, "best", monitor=monitor, mode=mode, enable_version_counter=False)
    return best, ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)


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
