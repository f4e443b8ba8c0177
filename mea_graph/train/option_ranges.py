"""What the options of a command may be, where Lightning takes anything: told before any data are opened."""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch import callbacks

from mea_graph.command.options import LINKED
from mea_graph.command.words import MOST_THREADS
from mea_graph.data import DataError
from mea_graph.option_types import check_types, parameters_of
from mea_graph.suggestions import did_you_mean
from mea_graph.train.accelerators import check_strategy
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.early_stopping import EarlyStopping
from mea_graph.train.sampling import Sampling
from mea_graph.train.splits import SplitPolicy
from mea_graph.train.training_length import TrainingLength

MOST_PROCESSES = 1024  # nobody has more, and a list of so many is made
Check = tuple[Callable[[Any], bool], str]


def _integer(least: int, most: float = math.inf) -> Check:
    said = f"an integer >= {least}" if most == math.inf else f"an integer in [{least}, {most}]"
    return lambda value: isinstance(value, int) and least <= value <= most, said


def _number(least: float) -> Check:
    return lambda value: isinstance(value, int | float) and least <= value < math.inf, f"a finite number >= {least:g}"


def _is_interval(value: Any) -> bool:
    if isinstance(value, float):
        return 0 < value <= 1
    return value >= 1 if isinstance(value, int) else _is_duration(value)


def _is_duration(value: Any) -> bool:
    if isinstance(value, str):
        days, *rest = value.strip().split(":")
        return len(rest) == 3 and days.isdigit() and all(len(part) == 2 and part.isdigit() for part in rest)
    if isinstance(value, Mapping):
        units = ("weeks", "days", "hours", "minutes", "seconds")
        return value.keys() <= set(units) and all(v >= 0 for v in value.values()) and any(value.values())
    return value.total_seconds() > 0


_DURATION = "DD:HH:MM:SS, or a dict of weeks, days, hours, minutes, seconds"
_FINITE: Check = (math.isfinite, "a finite number")
RANGES: dict[str, Check] = {
    "seed_everything": (lambda value: not isinstance(value, bool) and 0 <= value < 2**32, "an integer in [0, 4294967295]"),
    "threads": _integer(1, MOST_THREADS),
    "trainer.devices": (lambda value: not isinstance(value, int) or value <= MOST_PROCESSES, f"at most {MOST_PROCESSES}"),
    "trainer.num_nodes": _integer(1, MOST_PROCESSES),
    "trainer.barebones": (lambda value: not value, "false, since a run keeps its log and its checkpoints"),
    "trainer.max_epochs": (lambda value: value == -1 or value >= 1, "an integer >= 1, or -1 for no limit"),
    "trainer.min_epochs": _integer(0),
    "trainer.max_steps": (lambda value: value == -1 or value >= 1, "an integer >= 1, or -1 for no limit"),
    "trainer.min_steps": _integer(0),
    "trainer.max_time": (_is_duration, _DURATION),
    "trainer.val_check_interval": (_is_interval, f"a share of an epoch in (0, 1], batches >= 1, or a time ({_DURATION})"),
    "trainer.check_val_every_n_epoch": _integer(1),
    "trainer.num_sanity_val_steps": _integer(-1),
    "trainer.limit_train_batches": (lambda value: value > 0, "above 0, since nothing is trained without a batch"),
    "trainer.log_every_n_steps": _integer(0),
    "trainer.accumulate_grad_batches": _integer(1),
    "trainer.gradient_clip_val": _number(0),
    "trainer.reload_dataloaders_every_n_epochs": _integer(0),
    "data.num_workers": _integer(0, MOST_PROCESSES),
    "early_stopping.min_delta": _number(0),
    "early_stopping.patience": _integer(0),
    "early_stopping.stopping_threshold": _FINITE,
    "early_stopping.divergence_threshold": _FINITE,
}


OWNERS: dict[str, tuple[Callable[..., Any], ...]] = {
    "trainer": (L.Trainer,),
    "data": (SequenceDataModule,),
    "data.split": (SplitPolicy,),
    "data.sampling": (Sampling,),
    "early_stopping": (EarlyStopping, callbacks.EarlyStopping),
    "training": (TrainingLength,),
}


def check_options(config: Mapping[str, Any]) -> None:
    """Refuses options that do not exist, have another type, no value where they need one, or are outside their range.

    Args:
        config: The options of a command, by section.

    Raises:
        DataError: If an option is wrong; the error names the first one.

    >>> check_options({"trainer": {"gradient_clip_val": -1.0}})
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: trainer.gradient_clip_val: expected a finite number >= 0, got -1.0
    """
    for section, owners in OWNERS.items():
        given = _section(config, section)
        known = parameters_of(*owners)
        for name, value in given.items():
            if name not in known:
                raise DataError(f"{section}: there is no option {name!r}{did_you_mean(name, known)}")
            if section == "training" and value is None:  # as if it was not given
                continue
            if value is None or isinstance(value, bool | int | float | str):  # anything else is of a class, whose parser has looked at it
                check_types({name: value}, *owners, prefix=f"{section}.", error=DataError)
    _check_nulls(_section(config, "model"))
    for option, (good, expected) in RANGES.items():
        section, _, name = option.rpartition(".")
        value = _section(config, section).get(name)
        if value is not None and not good(value):
            raise DataError(f"{option}: expected {expected}, got {value!r}")
    trainer = _section(config, "trainer")
    check_strategy(trainer.get("strategy"))
    ends = (trainer.get("max_time"), _section(config, "training").get("updates"))
    if trainer.get("max_epochs") == trainer.get("max_steps", -1) == -1 and ends == (None, None):
        others = "trainer.max_steps, trainer.max_time or training.updates"
        raise DataError(f"trainer.max_epochs: expected an integer >= 1, or -1 beside {others}, got -1")


def _check_nulls(model: Mapping[str, Any]) -> None:
    """Refuses `null` where the model's class needs a value; all else of it is looked at by the class itself."""
    try:
        kind = pkgutil.resolve_name(model.get("class_path") or "mea_graph.train.MEAModule")
        known = parameters_of(kind)
    except (ImportError, AttributeError, NameError, TypeError, ValueError):  # a class of the user's own, whose signature cannot be read
        return
    for name, value in (model.get("init_args") or {}).items():
        if value is None and name in known and name not in LINKED and known[name].annotation is not inspect.Parameter.empty:
            check_types({name: None}, kind, prefix="model.", error=DataError)


def _section(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    for name in filter(None, section.split(".")):
        config = config.get(name) or {}
        if not isinstance(config, Mapping):
            raise DataError(f"{section}: expected options by name, got {config!r}")
    return config
