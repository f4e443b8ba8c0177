"""The log of a run, which knows every epoch that a checkpoint knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger


class EpochLog(CSVLogger):
    """Lightning's log as CSV, for which an epoch may be logged before its checkpoint and again after it: one row is written.

    The arguments are those of Lightning's `CSVLogger`.

    >>> EpochLog("runs/mine/0", name="logs").name
    'logs'
    """

    _written: tuple[int, frozenset[str]] | None = None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds a row, unless it is that of an epoch whose row is there already."""
        key = (int(metrics.get("epoch", -1)), frozenset(metrics))
        if key[0] >= 0 and key == self._written and any(name.startswith("train/") for name in metrics):
            return
        self._written = key
        super().log_metrics(dict(metrics), step)


class LogBeforeCheckpoint(L.Callback):
    """Logs what an epoch of training came to before its checkpoint is written.

    Lightning does so after it: a process killed between the two would go on with the next epoch, and the row would be missing for ever.
    """

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        progress: Any = trainer.fit_loop.epoch_progress.current
        if progress.processed != progress.completed + 1:  # in the middle of an epoch the numbers are those of the epoch before
            return
        for logger in trainer.loggers:
            if isinstance(logger, EpochLog):
                numbers = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
                logger.log_metrics({**numbers, "epoch": trainer.current_epoch}, trainer.global_step - 1)
                logger.save()
