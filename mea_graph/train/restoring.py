"""Telling errors of a checkpoint from those of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mea_graph.data import DataError
from mea_graph.train.error_message import one_line
from mea_graph.train.finite_loss import NonFiniteLossError

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # of Adam and AdamW
PLAIN_ERRORS = (DataError, OSError, MisconfigurationException, NonFiniteLossError)  # which say what they mean


class Restoring(L.Callback):
    """Knows whether a first step was made with what a checkpoint held, and says of an error before that that the checkpoint is to blame."""

    def __init__(self) -> None:
        self.done = False

    @contextmanager
    def errors(self, path: Any) -> Iterator[None]:
        """Turns whatever a changed field of a checkpoint raises into one error.

        Args:
            path: The path of the checkpoint; None where there is none.

        Raises:
            DataError: If the checkpoint could not be restored.
        """
        try:
            yield
        except Exception as error:
            if path is None or self.done or isinstance(error, PLAIN_ERRORS):
                raise
            raise DataError(f"ckpt_path: {path} cannot be taken up again: {type(error).__name__}: {one_line(error)[:300]}") from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            check_optimizer(optimizer)

    def on_train_batch_end(self, *_: Any) -> None:
        self.done = True  # only now is the state of the optimiser known to be one

    def on_test_batch_end(self, *_: Any) -> None:
        self.done = True

    def on_predict_batch_end(self, *_: Any) -> None:
        self.done = True

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.done = self.done or trainer.state.fn == TrainerFn.VALIDATING


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuses moments that do not fit their parameters: one call for many tensors would write beyond their ends.

    Args:
        optimizer: As restored.

    Raises:
        DataError: Naming the moment.

    >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    >>> check_optimizer(optimizer)
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                shape = () if name == "step" else tuple(parameter.shape)
                if name in MOMENTS and (not isinstance(value, torch.Tensor) or tuple(value.shape) != shape):
                    got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                    raise DataError(f"ckpt_path: optimizer_states: expected {name} of shape {shape}, got {got}")
