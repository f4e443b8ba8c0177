"""What all runs of a study share: the data, MEA's options, the training; read from the files that `mea-graph fit` reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import callbacks

from mea_graph.data import DataError
from mea_graph.nn.model_options import merged
from mea_graph.option_types import parameters_of
from mea_graph.train.config_files import find_config, read_sections
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.early_stopping import EarlyStopping
from mea_graph.train.monitors import watching_mode
from mea_graph.train.option_ranges import check_options
from mea_graph.train.sampling import Sampling
from mea_graph.train.splits import SplitPolicy
from mea_graph.train.training_length import length_of

SECTIONS = ("data", "model", "trainer", "early_stopping", "training", "seed_everything", "threads", "logger")
EMBEDDED = "events"
DECIDED = {  # of the trainer
    "accelerator": " (--accelerator says it)",
    "devices": ", whose processes train one run each (--workers)",
    **dict.fromkeys(("logger", "callbacks", "num_sanity_val_steps", "default_root_dir", "use_distributed_sampler"), ""),
    **dict.fromkeys(("enable_progress_bar", "enable_model_summary"), ""),
}
DATA_PARTS: dict[str, Any] = {"split": SplitPolicy, "sampling": Sampling}


@dataclass(frozen=True)
class Recipe:
    """One configuration, as plain containers.

    Args:
        name: The name of the configuration; names the study's folder.
        data: Arguments of `SequenceDataModule`, split and sampling as dicts.
        model: Options of `MEAModule`.
        trainer: Arguments of Lightning's `Trainer`.
        monitor: The validation metric that chooses the epoch, such as `valid/accuracy`.
        mode: `min` or `max`: which of its values is best.
        patience: Epochs without a better value after which a run ends.
        threads: Those of each process, if the configuration says so.
    """

    name: str
    data: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    monitor: str
    mode: str
    patience: int
    threads: int | None = None

    def data_for(self, seed: int) -> dict[str, Any]:
        """Returns the data's options for one seed.

        The seed decides the order of the samples and which of them validate; where the data has folds, run n tests fold n modulo folds.
        """
        data = copy.deepcopy(self.data) | {"seed": seed}
        split = data.get("split")
        if split and split.get("valid_fraction") is not None:
            split["seed"] = seed
        if split and split.get("folds") is not None:
            split["fold"] = seed % split["folds"]
        return data


def read_recipe(source: str, configs: Sequence[str], epochs: int | None) -> Recipe:
    """Returns the recipe of a study.

    Args:
        source: A data file or folder, or `events` for the embedded data.
        configs: Configurations, by packaged name or path; a later one overrides an earlier one. Needed unless `source` is `events`.
        epochs: Replaces the configuration's number of epochs.

    Raises:
        DataError: If a file is not a configuration of MEA, or none is given.

    >>> read_recipe("events", [], epochs=2).trainer["max_epochs"]
    2
    """
    names = list(configs)
    if not names:
        if source != EMBEDDED:
            raise DataError(f"config: expected --config with the options for {source}, such as --config avletters; got none")
        names = [EMBEDDED]
    whole: dict[str, Any] = {}
    for name in names:
        whole = merged(whole, _read(find_config(name)))
    check_options(whole)
    data, trainer, stopping = (dict(whole.get(section) or {}) for section in ("data", "trainer", "early_stopping"))
    _drop_decided(trainer, stopping)
    if source != EMBEDDED:
        data.pop("events", None)
        data["source"] = source
    training, told = whole.get("training") or {}, trainer.get("max_epochs")
    told = epochs if told is None and not any(training.values()) else told
    length = length_of(training, told, trainer.get("max_steps", -1))
    if length is not None:
        batches = length.batches_per_epoch(trainer.get("accumulate_grad_batches") or 1)
        data["sampling"] = {**(data.get("sampling") or {}), "batches": batches}
        trainer["max_epochs"], stopping["patience"] = length.epochs, length.patience_epochs
    if epochs is not None:
        trainer["max_epochs"] = epochs
    trainer.setdefault("gradient_clip_val", 1.0)  # as the command has it
    monitor = stopping.get("monitor", "valid/task")
    return Recipe(
        Path(names[0]).stem,
        data,
        _model_options(whole.get("model") or {}),
        trainer,
        monitor,
        watching_mode(monitor, stopping.get("mode")),
        stopping.get("patience", 20),
        whole.get("threads"),
    )


def _drop_decided(trainer: dict[str, Any], stopping: Mapping[str, Any]) -> None:
    """Drops what a study decides, as a run's `config.yaml` has it; refuses it where it asks for something else."""
    for name, how in DECIDED.items():
        if (value := trainer.pop(name, None)) not in (None, "auto", False):
            raise DataError(f"trainer.{name}: expected none for a study{how}, got {value!r}")
    known = parameters_of(EarlyStopping, callbacks.EarlyStopping)
    for name, value in stopping.items():
        if name not in ("monitor", "mode", "patience") and value != known[name].default:
            raise DataError(f"early_stopping.{name}: expected none for a study, which reads monitor, mode and patience; got {value!r}")


def open_data(options: Mapping[str, Any]) -> SequenceDataModule:
    """Returns the data of a run.

    Args:
        options: The options of `SequenceDataModule`, split and sampling as dicts.

    Raises:
        DataError: If an option does not exist, or the data is not as they say.

    >>> open_data({"events": {"num_samples": 40}, "batch_size": 8}).task
    'regression'
    """
    try:
        made = {name: kind(**(options[name] or {})) for name, kind in DATA_PARTS.items() if name in options}
        return SequenceDataModule(**{**options, **made})
    except TypeError as error:
        raise DataError(f"data: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    found = read_sections(path)
    if unknown := sorted(set(found) - set(SECTIONS)):
        raise DataError(f"config: expected sections {', '.join(SECTIONS)} in {path}, got {', '.join(unknown)}")
    return found


def _model_options(model: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(model.get("class_path", "MEAModule")).rpartition(".")[2]
    if kind != "MEAModule" or set(model) - {"class_path", "init_args"}:
        raise DataError("config: expected model.class_path MEAModule with model.init_args; the baselines take their options from MEA's")
    return dict(model.get("init_args") or {})
