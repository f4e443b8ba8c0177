"""Names of what can be watched, known before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import lightning as L
import torch

from mea_graph.data import DataError
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.task_module import TaskModule

_LOGGING = ("training_step", "validation_step", "on_train_batch_end", "on_train_epoch_end", "on_validation_epoch_end")
_ALWAYS = ("epoch", "step")  # what Lightning offers a checkpoint by itself


def check_monitors(callbacks: Iterable[L.Callback], module: TaskModule, data: SequenceDataModule, validates: bool = True) -> None:
    """Refuses a callback that watches what is never logged; a module or a callback of the user's own may log anything.

    Args:
        callbacks: of the trainer; those with a ``monitor`` are looked at.
        module: what is to be trained.
        data: has the samples.
        validates: whether there are validation epochs.

    Raises:
        DataError: with the names there are.
    """
    callbacks = list(callbacks)
    if any(type(callback).__module__.partition(".")[0] not in ("lightning", "mea_graph") for callback in callbacks):
        return
    watching = [callback for callback in callbacks if isinstance(getattr(callback, "monitor", None), str)]
    names = logged_names(module, data, validates) if watching else None
    for callback in watching if names is not None else []:
        monitor = callback.monitor  # type: ignore[attr-defined]
        if monitor not in (*names, *_ALWAYS):  # type: ignore[misc]
            option = "early_stopping.monitor" if isinstance(callback, L.pytorch.callbacks.EarlyStopping) else "monitor"
            raise unknown_monitor(option, monitor, names)  # type: ignore[arg-type]


def logged_names(module: TaskModule, data: SequenceDataModule, validates: bool = True) -> list[str] | None:
    """Returns the names under which a module logs numbers in training, from one look at two samples.

    None where they cannot be known: the module logs by itself, or its network does not run where it is now.

    Args:
        module: what is to be trained.
        data: has the samples.
        validates: whether there are validation epochs.

    Example:
        >>> from mea_graph.baselines import LateFusionGRUModule
        >>> data = SequenceDataModule(events={"num_samples": 40})
        >>> logged_names(LateFusionGRUModule(data.in_channels, data.task, data.out_channels), data)
        ['train/loss', 'train/task', 'valid/loss', 'valid/task', 'valid/mae', 'valid/rmse', 'valid/corr', 'valid/r2']
    """
    # Lightning's own hooks of these names do nothing
    kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("mea_graph.", "lightning.", "torch.", "builtins"))]
    if any(name in vars(kind) for kind in kinds for name in _LOGGING):
        return None
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            terms, metrics = module.number_names(data.some_samples("train"))
    except Exception:  # whatever a network of the user's says here, it says again in training, where it belongs
        return None
    finally:
        for part, training in modes.items():
            part.training = training
    names = [f"train/{name}" for name in terms]
    return names + [f"valid/{name}" for name in (*terms, *metrics)] if validates else names


def unknown_monitor(option: str, monitor: str, names: Iterable[str]) -> DataError:
    """Returns the error that says what can be watched.

    Args:
        option: where the name was given.
        monitor: the name that does not exist.
        names: those that do.

    Example:
        >>> unknown_monitor("early_stopping.monitor", "valid/acc", ["valid/loss", "valid/accuracy"])
        DataError("early_stopping.monitor: expected one of valid/accuracy, valid/loss, got 'valid/acc'")
    """
    return DataError(f"{option}: expected one of {', '.join(sorted(names))}, got {monitor!r}")
