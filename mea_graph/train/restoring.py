"""Telling errors of a checkpoint from those of training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn

from mea_graph.data import DataError
from mea_graph.train.error_message import one_line
from mea_graph.train.finite_loss import NonFiniteLossError
from mea_graph.train.training_length import TrainingLength

COUNTERS = ("ready", "started", "processed", "completed")  # of Lightning's progress, each at most the one before it
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # of Adam and AdamW
PLAIN_ERRORS = (DataError, OSError, MisconfigurationException, NonFiniteLossError)  # which say what they mean


class Restoring(L.Callback):
    """Knows whether a first step was made with what a checkpoint held, and says of an error before that that the checkpoint is to blame.

    Args:
        length: How long to train; None where the trainer counts epochs.
    """

    def __init__(self, length: TrainingLength | None = None) -> None:
        self.length, self.done = length, False

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

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        check_counters(checkpoint.get("loops"), "loops")
        before, most = epochs_of(checkpoint), trainer.max_epochs
        if trainer.state.fn != TrainerFn.FITTING or most is None or not -1 != most < before:
            return
        option, unit, each = "trainer.max_epochs", "epochs", 1
        if self.length is not None:
            option, unit, each = "training.updates", "updates", self.length.updates_per_epoch
        raise DataError(f"{option}: expected at least the {before * each} {unit} that the checkpoint has, got {most * each}")

    def nothing_left(self, trainer: L.Trainer) -> str:
        """Returns why a resumed run has made no step.

        Args:
            trainer: Of the run.
        """
        timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        hint = "; trainer.max_time counts the time before it too" if timed else ""
        return f"nothing was left to train: the checkpoint has {trainer.global_step} updates already{hint}"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counted = trainer.global_step if pl_module.automatic_optimization else None  # a module may step its optimisers past Lightning
        for optimizer in trainer.optimizers if trainer.ckpt_path is not None else ():
            check_optimizer(optimizer, counted)

    def on_train_batch_end(self, *_: Any) -> None:
        self.done = True  # only now is the state of the optimiser known to be one

    def on_test_batch_end(self, *_: Any) -> None:
        self.done = True

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.done = self.done or trainer.state.fn == TrainerFn.VALIDATING


def epochs_of(checkpoint: Mapping[str, Any]) -> int:
    """Returns the number of epochs that a checkpoint has behind it.

    Args:
        checkpoint: What it holds.

    >>> progress = {"epoch_progress": {"current": {"processed": 4}}}
    >>> epochs_of({"loops": {"fit_loop": progress}}), epochs_of({})
    (4, 0)
    """
    value: Any = checkpoint
    for name in ("loops", "fit_loop", "epoch_progress", "current", "processed"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if type(value) is int else 0


def reopen_epoch(checkpoint: Mapping[str, Any]) -> None:
    """Lets a run whose checkpoint was written within an epoch go on there, with the first batch that is in no update yet.

    Of an epoch that `max_steps` or `max_time` has cut short Lightning would leave out the rest, and of accumulated gradients those that
    have made no update.

    Args:
        checkpoint: What it holds; changed in place.

    >>> epochs = {"ready": 2, "started": 2, "processed": 2, "completed": 1}
    >>> batches = {"ready": 5, "started": 5, "processed": 5, "completed": 5}
    >>> loop = {
    ...     "epoch_progress": {"current": epochs, "total": dict(epochs)},
    ...     "epoch_loop.batch_progress": {
    ...         "current": batches,
    ...         "total": dict(batches),
    ...         "is_last_batch": False,
    ...     },
    ... }
    >>> reopen_epoch({"loops": {"fit_loop": loop}, "accumulate_grad_batches": 4})
    >>> epochs["processed"], batches["processed"]
    (1, 4)
    """
    loop = (checkpoint.get("loops") or {}).get("fit_loop") or {}
    epochs, batches = (loop.get(name) or {} for name in ("epoch_progress", "epoch_loop.batch_progress"))
    count, done = (progress.get("current") or {} for progress in (epochs, batches))
    if batches.get("is_last_batch", True) or not done.get("processed") or done["processed"] != done.get("ready"):
        return
    pending = done["processed"] % checkpoint.get("accumulate_grad_batches", 1)
    for counts in (batches["current"], batches["total"]):
        counts.update({name: number - pending for name, number in counts.items()})
    if count.get("started") == count.get("processed") == count.get("completed", 0) + 1:  # cut short
        for counts in (epochs["current"], epochs["total"]):
            counts["processed"] -= 1


def count_moments(checkpoint: Mapping[str, Any]) -> int:
    """Returns the number of parameters that the optimisers of a checkpoint have moments of: of one without a gradient there are none.

    Args:
        checkpoint: What it holds.

    >>> count_moments({"optimizer_states": [{"state": {0: {}, 3: {}}}]})
    2
    """
    return sum(len(state["state"]) for state in checkpoint.get("optimizer_states", ()))


def check_count(checkpoint: Mapping[str, Any], parameters: int) -> None:
    """Refuses a checkpoint that lacks moments that it had; warns of lacking ones where it does not say how many it had.

    Args:
        checkpoint: What it holds.
        parameters: How many the model trains.

    Raises:
        DataError: If it holds those of another number of parameters than were written.

    >>> check_count({"moments": 2, "optimizer_states": [{"state": {0: {}}}]}, 2)
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: ckpt_path: optimizer_states: expected moments of 2 parameters, as were written, got 1
    """
    count, expected = count_moments(checkpoint), checkpoint.get("moments")
    if expected is not None and count != expected:
        raise DataError(f"ckpt_path: optimizer_states: expected moments of {expected} parameters, as were written, got {count}")
    groups = [group for state in checkpoint.get("optimizer_states", ()) for group in state["param_groups"]]
    keeps = not groups or any("betas" in group for group in groups)  # as Adam does; plain SGD has no moments
    if expected is None and keeps and count < parameters and checkpoint.get("global_step"):
        told = f"the checkpoint has moments of {count} of {parameters} parameters, and does not say whether these were all"
        warnings.warn(f"ckpt_path: optimizer_states: {told}; those of the others start from zero", stacklevel=2)


def check_order(checkpoint: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuses weights of a model whose modalities stand in another order: where it joins them, weights go by their place.

    Args:
        checkpoint: What it holds.
        options: Those of the model that takes the weights.

    Raises:
        DataError: If the modalities are the same in another order.

    >>> saved = {"hyper_parameters": {"in_channels": {"audio": 5, "text": 3}}}
    >>> check_order(saved, {"in_channels": {"text": 3, "audio": 5}})
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: in_channels: expected the modalities in the order of the checkpoint, audio, text, got text, audio
    """
    of_weights, own = ((of or {}).get("in_channels") for of in (checkpoint.get("hyper_parameters"), options))
    if isinstance(of_weights, Mapping) and isinstance(own, Mapping) and of_weights == own and list(of_weights) != list(own):
        expected = ", ".join(map(str, of_weights))
        raise DataError(f"in_channels: expected the modalities in the order of the checkpoint, {expected}, got {', '.join(own)}")


def check_counters(progress: Any, name: str) -> None:
    """Refuses counts of batches and epochs that no training can have: Lightning would stop at once, or fail batches later.

    Args:
        progress: What a checkpoint holds as `loops`, or a part of it.
        name: Of that part, for the error.

    Raises:
        DataError: If a count is impossible; the error names it.

    >>> check_counters(
    ...     {"total": {"ready": 3, "started": 3, "processed": 2, "completed": 2}},
    ...     "loops",
    ... )
    >>> check_counters({"ready": -1}, "loops")
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: ckpt_path: loops.ready: expected a count of 0 or more, got -1
    """
    if not isinstance(progress, dict):
        return
    at_most: float = math.inf
    for counter in COUNTERS:
        if counter in progress:
            count = progress[counter]
            if type(count) is not int or not 0 <= count <= at_most:
                limit = "a count of 0 or more" if at_most == math.inf else f"a count from 0 to {at_most}"
                raise DataError(f"ckpt_path: {name}.{counter}: expected {limit}, got {count!r:.40}")
            at_most = count
    steps = progress.get("_batches_that_stepped", 0)
    if type(steps) is not int or steps < 0:
        raise DataError(f"ckpt_path: {name}._batches_that_stepped: expected a count of 0 or more, got {steps!r:.40}")
    for key, part in progress.items():
        check_counters(part, f"{name}.{key}")


def check_optimizer(optimizer: torch.optim.Optimizer, steps: int | None = None) -> None:
    """Refuses a state that is not the optimiser's own; what is inside the state of other classes than Adam is their own affair.

    One call for many tensors would write beyond the ends of moments that do not fit their parameters. Moments under another number than
    their parameter's would be left out, and an impossible count of steps would change the rate, both without a word.

    Args:
        optimizer: As restored.
        steps: Number of steps that the training made before; None where nobody counted them.

    Raises:
        DataError: If a moment does not fit; the error names it.

    >>> parameter = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.Adam([parameter])
    >>> check_optimizer(optimizer, steps=3)
    >>> optimizer.state[parameter] = {"step": torch.tensor(1.0)}
    >>> check_optimizer(optimizer, steps=3)
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: ckpt_path: optimizer_states: expected exp_avg for every parameter that has moments, got one without
    """
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if strange := [key for key in optimizer.state if not isinstance(key, torch.Tensor)]:
        raise DataError(f"ckpt_path: optimizer_states: expected moments of parameters 0 to {count - 1}, got {strange[0]!r:.40}")
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        return
    for group in optimizer.param_groups:
        expected = {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if group.get("amsgrad") else set())
        for parameter in group["params"]:
            if parameter in optimizer.state:
                _check_moments(parameter, optimizer.state[parameter], expected, math.inf if steps is None else steps)


def _check_moments(parameter: torch.Tensor, state: Mapping[str, Any], expected: set[str], steps: float) -> None:
    if missing := expected - state.keys():
        raise DataError(f"ckpt_path: optimizer_states: expected {min(missing)} for every parameter that has moments, got one without")
    for name in (name for name in MOMENTS if name in state):
        value, shape = state[name], () if name == "step" else tuple(parameter.shape)
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise DataError(f"ckpt_path: optimizer_states: expected {name} of shape {shape}, got {got}")
    if not 1 <= float(state["step"]) <= steps:
        raise DataError(f"ckpt_path: optimizer_states: expected step from 1 to {steps}, got {float(state['step']):g}")
