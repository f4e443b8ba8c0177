"""The numbers of a training, epoch by epoch."""

from __future__ import annotations

import lightning as L


class History(L.Callback):
    """Keeps every number that was logged, per epoch."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(float(value))
