"""Names of what can be watched, known before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import Literal

import lightning as L
import torch

from mea_graph.data import DataError
from mea_graph.nn import LossTerms
from mea_graph.suggestions import did_you_mean
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.evaluation_mode import evaluating
from mea_graph.train.task_module import TaskModule

Mode = Literal["min", "max"]
LOWER_IS_BETTER = {"loss", "mae", "rmse", *LossTerms._fields, "difference", "similarity", "reconstruction"}  # the last three are MISA's
HIGHER_IS_BETTER = {"r2", "corr", "auc", "accuracy", "f1", "acc2", "acc5", "acc7"}  # alone, or before the name of a label or convention

_LOGGING = ("training_step", "validation_step", "on_train_batch_end", "on_train_epoch_end", "on_validation_epoch_end")
_ALWAYS = ("epoch", "step")  # what Lightning offers a checkpoint by itself


def check_monitors(callbacks: Collection[L.Callback], module: TaskModule, data: SequenceDataModule, validates: bool = True) -> None:
    """Refuses a callback that watches what is never logged; a module or a callback of the user's own may log anything.

    Args:
        callbacks: The callbacks of the trainer; those with a `monitor` are looked at.
        module: What is to be trained.
        data: Has the samples.
        validates: Whether there are validation epochs.

    Raises:
        DataError: If a name is unknown; the error lists those there are. If a callback takes the worst value of a metric for the best.
    """
    watching = [callback for callback in callbacks if isinstance(getattr(callback, "monitor", None), str)]
    for callback in watching:  # Lightning's own take the least for the best where nothing else is said
        monitor = callback.monitor  # type: ignore[attr-defined]
        if mode_of(monitor) is not None:
            watching_mode(monitor, getattr(callback, "mode", None), f"{type(callback).__name__}.mode")
    foreign = any(type(callback).__module__.partition(".")[0] not in ("lightning", "mea_graph") for callback in callbacks)
    names = logged_names(module, data, validates) if watching and not foreign else None
    for callback in watching:
        monitor = callback.monitor  # type: ignore[attr-defined]
        if names is not None and monitor not in (*names, *_ALWAYS):
            option = "early_stopping.monitor" if isinstance(callback, L.pytorch.callbacks.EarlyStopping) else "monitor"
            raise unknown_monitor(option, monitor, names, "" if validates else ", since trainer.limit_val_batches=0 leaves no validation")
        if getattr(callback, "mode_is_unknown", False):
            watching_mode(monitor, None)


def logged_names(module: TaskModule, data: SequenceDataModule, validates: bool = True) -> list[str] | None:
    """Returns the names under which a module logs numbers in training, from one look at two samples.

    None where they cannot be known: the module logs by itself, or its network does not run where it is now.

    Args:
        module: What is to be trained.
        data: Has the samples.
        validates: Whether there are validation epochs.

    >>> from mea_graph.baselines import LateFusionGRUModule
    >>> data = SequenceDataModule(events={"num_samples": 40})
    >>> logged_names(
    ...     LateFusionGRUModule(data.in_channels, data.task, data.out_channels), data
    ... )
    ['train/loss', 'train/task', 'valid/loss', 'valid/task', 'valid/mae', 'valid/rmse', 'valid/corr', 'valid/r2']
    """
    # Lightning's own hooks of these names do nothing
    kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("mea_graph.", "lightning.", "torch.", "builtins"))]
    if any(name in vars(kind) for kind in kinds for name in _LOGGING):
        return None
    try:
        with evaluating(module), torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            terms, metrics = module.number_names(data.some_samples("train"))
    except Exception:  # whatever a network of the user's says here, it says again in training, where it belongs
        return None
    names = [f"train/{name}" for name in terms]
    return names + [f"valid/{name}" for name in (*terms, *metrics)] if validates else names


def unknown_monitor(option: str, monitor: str, names: Iterable[str], why: str = "") -> DataError:
    """Returns the error that says what can be watched.

    Args:
        option: Where the name was given.
        monitor: The name that does not exist.
        names: Those that do.
        why: What has taken the others away.

    >>> unknown_monitor(
    ...     "early_stopping.monitor", "valid/acc", ["valid/loss", "valid/accuracy"]
    ... )
    DataError("early_stopping.monitor: expected one of valid/accuracy, valid/loss, got 'valid/acc' (did you mean 'valid/accuracy'?)")
    """
    known = sorted(names)
    return DataError(f"{option}: expected one of {', '.join(known)}, got {monitor!r}{why or did_you_mean(monitor, known)}")


def mode_of(monitor: str) -> Mode | None:
    """Returns whether the least or the greatest value of a number is its best; None for one that the package does not log.

    Args:
        monitor: As it is logged.

    >>> mode_of("valid/task"), mode_of("valid/f1_happy"), mode_of("mine")
    ('min', 'max', None)
    """
    stage, _, name = monitor.partition("/")
    if stage not in ("train", "valid", "test"):
        return None
    if name in LOWER_IS_BETTER:
        return "min"
    return "max" if name.partition("_")[0] in HIGHER_IS_BETTER else None


def watching_mode(monitor: str, given: str | None, option: str = "early_stopping.mode") -> Mode:
    """Returns the way round in which a number is watched: what its name says.

    Args:
        monitor: What is watched.
        given: `min`, `max`, or None.
        option: Where it was given.

    Raises:
        DataError: If that is the wrong way round, or nothing is known of the name and nothing given.

    >>> watching_mode("valid/accuracy", None)
    'max'
    """
    known = mode_of(monitor)
    if given not in (None, "min", "max") or (given is not None and known is not None and given != known):
        expected = f"{known}, since {monitor} is best where it is {'least' if known == 'min' else 'greatest'}" if known else "min or max"
        raise DataError(f"{option}: expected {expected}; got {given!r}")
    if given is None and known is None:
        raise DataError(f"{option}: expected min or max, since nothing is known of {monitor!r}; got none")
    return known or given  # type: ignore[return-value]
