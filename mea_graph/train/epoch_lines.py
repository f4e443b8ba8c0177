"""Progress as one line per epoch, for logs and pipes, where a moving bar is unreadable."""

from __future__ import annotations

import lightning as L

from mea_graph.train.reports import number_format


class EpochLines(L.Callback):
    """Prints the training loss and every validation number of its own once per epoch, on the first process.

    >>> EpochLines.line(3, {"train/loss": 0.51, "valid/accuracy": 0.8})
    'epoch 3: train/loss 0.510, valid/accuracy 0.800'
    """

    _validated = -1  # the last epoch that was

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            own = ("train/loss", "valid/") if self._validated == trainer.current_epoch else ("train/loss",)  # others are of an epoch before
            shown = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(own)}
            print(self.line(trainer.current_epoch, shown), flush=True)

    @staticmethod
    def line(epoch: int, numbers: dict[str, float]) -> str:
        """Returns the line of one epoch.

        Args:
            epoch: Number of the epoch, from 0.
            numbers: What was logged.
        """
        return f"epoch {epoch}: " + ", ".join(f"{name} {value:{number_format(value)}}" for name, value in numbers.items())
