"""Checkpoints of the best epoch, which is one with a number."""

from __future__ import annotations

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
