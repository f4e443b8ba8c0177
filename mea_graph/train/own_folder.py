"""A run that never writes into the folder of another one."""

from __future__ import annotations

from typing import Any

import lightning as L

from mea_graph.data import DataError
from mea_graph.train.epoch_log import EpochLog
from mea_graph.train.run_folder import RunFolder


class OwnFolder(L.Callback):
    """Ends a run whose folder was moved, removed or replaced, before it writes its log or a checkpoint.

    Names of files would lead into whatever stands there instead: without this, a run that was begun anew under the same name got the
    checkpoints of the one that was moved away.

    Args:
        folder: The folder of the run, claimed.

    Raises:
        DataError: If it is not where it was.

    >>> OwnFolder(RunFolder("runs/mine/0")).folder.path.name
    '0'
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        try:
            self.folder.check_claim()
        except DataError:
            for logger in trainer.loggers:
                if isinstance(logger, EpochLog):
                    logger.experiment.metrics.clear()  # which Lightning would write on its way out
            raise
