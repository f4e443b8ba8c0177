"""One run of a study: what it is, and carrying it out."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
import torch

from mea_graph import baselines
from mea_graph.baselines.scores import constant_scores, pooled_linear, pooled_linear_scores
from mea_graph.data import DataError
from mea_graph.studies.disentanglement import disentanglement
from mea_graph.studies.evaluate import evaluate
from mea_graph.studies.recipe import Recipe, open_data
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.early_stopping import EarlyStopping
from mea_graph.train.error_message import lack_of_memory, one_line
from mea_graph.train.mea_module import MEAModule, complete_options
from mea_graph.train.model_checkpoint import best_and_last
from mea_graph.train.monitors import logged_names, unknown_monitor
from mea_graph.train.quieten import quieten
from mea_graph.train.reports import plain
from mea_graph.train.task_module import TaskModule
from mea_graph.train.training_progress import Step, TellProgress
from mea_graph.train.versions import versions

MODULES: dict[str, Callable[..., TaskModule]] = {
    module.__name__: module
    for module in (
        MEAModule,
        baselines.LateFusionGRUModule,
        baselines.EarlyFusionGRUModule,
        baselines.ConcatenationTransformerModule,
        baselines.PairwiseTransformerModule,
        baselines.SharedPrivateEncodersModule,
    )
}
PLACES = ("source", "num_workers")  # options of the data that change no outcome; of the reader `cache_dir`
CONSTANT = "constant"
UNTRAINED = (CONSTANT, "pooled linear")  # kinds of runs without epochs


@dataclass(frozen=True)
class Run:
    """All that decides the outcome of a run, as plain containers; two runs with the same `id` are the same.

    Args:
        name: The row of the table; not part of the `id`.
        kind: Name of the module's class, `constant` or `pooled linear`.
        options: The options of the module.
        seed: The seed of the weights, the order of samples and dropout.
        data: Options of `SequenceDataModule`.
        data_hash: SHA-256 of the data.
        trainer: Arguments of Lightning's `Trainer`.
        selection: How validation chooses the epoch: `monitor`, `mode`, `patience` and `epoch`, `best` or `last`.
        missing: Probabilities with which modalities are taken away from the test samples.
        embeddings: Whether to measure how far the two kinds of representation are apart.
    """

    name: str
    kind: str
    options: dict[str, Any]
    seed: int
    data: dict[str, Any]
    data_hash: str
    trainer: dict[str, Any]
    selection: dict[str, Any]
    missing: list[float] = field(default_factory=list)
    embeddings: bool = False

    @property
    def title(self) -> str:
        """The row and the seed, for people."""
        return f"{self.name}, seed {self.seed}"

    @property
    def config(self) -> dict[str, Any]:
        """Everything but the name."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    @property
    def id(self) -> str:
        """Short name of the configuration; where the data lies does not matter, its hash says what it is.

        An option of the module that has its default is left out, so that a run stays the same when a later version has one option more.
        """
        data = {name: value for name, value in self.data.items() if name not in PLACES}
        if data.pop("reader", None) and (reader := {n: v for n, v in self.data["reader"].items() if n != "cache_dir"}):
            data["reader"] = reader
        default = whole_options(self.kind, {})
        whole = self.config | {"data": data, "options": _beyond(self.options, default)}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    def is_recorded_by(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of this run: it has the `id`, and no default has changed since.

        Args:
            record: A finished run.
        """
        known, own = record.get("config", {}).get("options", {}), json.loads(json.dumps(self.options))
        return record["id"] == self.id and _agree(own, known)


def _beyond(options: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the default, inside parts too."""
    different = {}
    for name, value in options.items():
        if name not in default or value != default[name]:
            inner = default.get(name)
            different[name] = _beyond(value, inner) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return different


def _agree(options: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether no option differs that a record knows, inside parts too."""
    for name, value in options.items():
        inner = known.get(name, value)
        if not (_agree(value, inner) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value == inner):
            return False
    return True


def make_run(
    name: str, kind: str, options: Mapping[str, Any], seed: int, recipe: Recipe, data_hash: str, epoch: str, **measured: Any
) -> Run:
    """Returns the run of a recipe with these options and this seed.

    Args:
        name: The row of the table.
        kind: Name of the module's class, or `constant`.
        options: The options of the module.
        seed: The seed of the run.
        recipe: What all runs share.
        data_hash: Hash of the data.
        epoch: `best` or `last`.
        measured: `missing` and `embeddings`.
    """
    selection = {"monitor": recipe.monitor, "mode": recipe.mode, "patience": recipe.patience, "epoch": epoch}
    try:
        whole = whole_options(kind, options)  # with every default written out, so that a record says all
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: {one_line(error)}") from error
    return Run(name, kind, whole, seed, recipe.data_for(seed), data_hash, dict(recipe.trainer), selection, **measured)


def whole_options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a module, with those that are not given.

    Args:
        kind: Name of the module's class, `constant` or `pooled linear`, which have none.
        given: Some of its options.

    >>> whole_options("MEAModule", {"alpha": 0.5})["exclusive"]["pooling"]
    'gru'
    """
    if kind in UNTRAINED:
        return dict(given)
    if kind == MEAModule.__name__:
        options = dict(given)
        whole = complete_options(options.pop("form", "recommended"), options)
        del whole["label_names"]  # the data's
        return whole
    parameters = {**inspect.signature(TaskModule).parameters, **inspect.signature(MODULES[kind]).parameters}
    decided = ("network", "in_channels", "task", "out_channels", "label_names", "kwargs")
    return {name: parameter.default for name, parameter in parameters.items() if name not in decided} | dict(given)


def build(run: Run, data: SequenceDataModule) -> TaskModule:
    """Returns the module of a run, its weights drawn from the seed.

    Args:
        run: Any but that of a constant.
        data: Tells the sizes.

    Raises:
        DataError: If an option does not exist or is out of its range.
    """
    L.seed_everything(run.seed, verbose=False)
    sizes = {"in_channels": data.in_channels, "task": data.task, "out_channels": data.out_channels, "label_names": data.label_names}
    try:
        return MODULES[run.kind](**sizes, **run.options)
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        lack = lack_of_memory(error, run.options)
        if lack is None and isinstance(error, RuntimeError):
            raise
        raise DataError(f"{run.name}: {lack or one_line(error)}") from error


def carry_out(run: Run, accelerator: str, drawings: Path, tell: Callable[[Step], None]) -> dict[str, Any]:
    """Trains, chooses the epoch by validation, reads the test samples once, and returns the record of the run.

    Args:
        run: What to do.
        accelerator: The accelerator of Lightning's `Trainer`.
        drawings: Folder for what figures need and a record does not hold.
        tell: Called with the progress of the training.
    """
    quieten()
    begin = time.perf_counter()
    data = open_data(run.data)
    record: dict[str, Any] = {"id": run.id, "name": run.name, "seed": run.seed, "config": run.config, "data_hash": data.dataset.hash}
    if record["data_hash"] != run.data_hash:
        raise DataError(f"data: {run.data.get('source')} has changed since the study began")
    if run.kind in UNTRAINED:
        record |= _fit_at_once(run, data)
    else:
        record |= _train(run, data, accelerator, drawings, tell)
    record |= {"seconds": round(time.perf_counter() - begin, 2), "finished": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    return record | {"versions": versions()}


def _fit_at_once(run: Run, data: SequenceDataModule) -> dict[str, Any]:
    sentiment = bool(run.options.get("sentiment", False))
    if run.kind == CONSTANT:
        return {part: constant_scores(data, part, sentiment) for part in ("valid", "test")}
    begin = time.perf_counter()
    model = pooled_linear(data)
    seconds = time.perf_counter() - begin
    scores = {part: pooled_linear_scores(data, part, sentiment, model) for part in ("valid", "test")}
    return scores | {"parameters": model.num_parameters, "fit_seconds": round(seconds, 2)}


def _train(run: Run, data: SequenceDataModule, accelerator: str, drawings: Path, tell: Callable[[Step], None]) -> dict[str, Any]:
    monitor, mode = run.selection["monitor"], run.selection["mode"]
    with tempfile.TemporaryDirectory() as folder:
        best, last = best_and_last(folder, monitor, mode)
        trainer = L.Trainer(
            **{"gradient_clip_val": None, **run.trainer},
            accelerator=accelerator,
            devices=1,
            logger=False,
            use_distributed_sampler=False,
            callbacks=[
                EarlyStopping(monitor, mode=mode, patience=run.selection["patience"]),
                TellProgress(run.title, monitor, tell),
                best,
                last,
            ],
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        module = build(run, data)
        begin = time.perf_counter()
        trainer.fit(module, data, weights_only=True)
        seconds = time.perf_counter() - begin
        path = best.best_model_path if run.selection["epoch"] == "best" else str(Path(folder) / "last.ckpt")
        if not path:
            raise DataError(
                f"{run.name}: {monitor} was not a number in any of the {trainer.current_epoch} epochs, so none of them is the best"
            )
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    # measured again: not every epoch validates, and one may do so several times
    trainer.validate(module, data, weights_only=True, verbose=False)
    valid = {name.removeprefix("valid/"): value for name, value in plain(trainer.callback_metrics).items() if name.startswith("valid/")}
    module.to(trainer.strategy.root_device).eval()
    data.trainer = None  # from here on the data is read by us, not by Lightning
    scores = evaluate(module, data, run.missing, run.seed)
    record = {
        "valid": valid,
        "test": scores.whole,
        "epochs": trainer.current_epoch,
        "chosen_epoch": checkpoint["epoch"] + 1,
        "parameters": sum(p.numel() for p in module.parameters()),
        "fit_seconds": round(seconds, 2),
    }
    if run.missing:
        record["missing"] = scores.missing
    if run.embeddings:
        record["disentanglement"] = disentanglement(module, data, scores.seen, drawings / f"{run.id}.npz")
    return record


def check_runs(runs: list[Run]) -> None:
    """Builds every model once, so that a mistake is told before hours of training.

    Args:
        runs: The runs of a study.

    Raises:
        DataError: If a model cannot be built; the error names the run and the option.
    """
    data, seen = None, set()
    for run in runs:
        key = replace(run, seed=0, data={}, name="").id
        if run.kind in UNTRAINED or key in seen:
            continue
        seen.add(key)
        data = data or open_data(run.data)
        names = logged_names(build(run, data), data)
        if names is not None and run.selection["monitor"] not in names:
            raise unknown_monitor("early_stopping.monitor", run.selection["monitor"], names)
