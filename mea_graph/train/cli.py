"""`mea-graph fit | validate | test | predict`: LightningCLI with the package's modules, data and configurations."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from mea_graph import __version__
from mea_graph.data import DataError
from mea_graph.train.config_files import packaged_configs, with_config_paths
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.epoch_lines import EpochLines
from mea_graph.train.error_message import one_line
from mea_graph.train.mea_module import MEAModule
from mea_graph.train.prediction_writer import PredictionWriter
from mea_graph.train.quieten import quieten
from mea_graph.train.reports import constant_scores, plain, scores_table, write_json
from mea_graph.train.run_folder import RunFolder
from mea_graph.train.task_module import NonFiniteLossError, TaskModule
from mea_graph.train.versions import versions
from mea_graph.train.whole_checkpoints import WholeCheckpoints

LINKED = ("in_channels", "out_channels", "task", "label_names")
USER_ERRORS = (DataError, NonFiniteLossError, MisconfigurationException, argparse.ArgumentError, OSError, ImportError)


class CommandLine(LightningCLI):
    """LightningCLI whose model is any `TaskModule` and whose data is a `SequenceDataModule` that tells the model its sizes.

    A run has a folder (`RunFolder`). Checkpoints are only ever loaded as plain tensors and containers. The configuration must agree
    with the checkpoint that is evaluated: a difference is an error, never silently resolved.
    """

    folder: RunFolder

    def __init__(self, arguments: Sequence[str]) -> None:
        plain_errors = {"exit_on_error": False}
        super().__init__(
            TaskModule,
            SequenceDataModule,
            subclass_mode_model=True,
            args=with_config_paths(arguments),
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "max_epochs": 60,
                "use_distributed_sampler": False,
                "log_every_n_steps": 1,
                "enable_model_summary": False,
            },
            parser_kwargs={
                "prog": "mea-graph",
                "description": f"Trains and evaluates MEA. Configurations: {', '.join(packaged_configs())}. "
                "See also: mea-graph demo, mea-graph study.",
                **plain_errors,
                **{name: dict(plain_errors) for name in self.subcommands()},
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Hides what this class decides: checkpoints are always loaded safely, results always printed as one table."""
        decided = {"datamodule", "model", "weights_only", "verbose", "return_predictions"}
        return {name: skipped | decided for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of the run; runs/<config>/<number> by default.")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults({"early_stopping.monitor": "valid/task", "early_stopping.patience": 20})
        parser.set_defaults({"model": {"class_path": f"{MEAModule.__module__}.{MEAModule.__name__}"}})
        parser.link_arguments("seed_everything", "data.seed")
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's options override the configuration; here a difference is an error instead."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        resuming = self.subcommand == "fit" and config.ckpt_path is not None
        configs = [Path(str(path)) for path in config.get("config") or []]
        self.folder = RunFolder.choose(config.run_dir, configs, fresh=self.subcommand == "fit" and not resuming)
        if self.subcommand != "fit" or resuming:
            config.ckpt_path = str(self.folder.find_checkpoint(config.ckpt_path))

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise DataError(one_line(error)) from error
        path = self.config[self.subcommand].ckpt_path
        if path is not None:
            check_same_options(Path(path), self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand].trainer
        if config.logger is None:
            kwargs["logger"] = CSVLogger(self.folder.path, name="logs") if self.subcommand == "fit" else False
        if config.default_root_dir is None:
            kwargs["default_root_dir"] = str(self.folder.path)
        if self.subcommand != "fit" and config.enable_checkpointing is None:
            kwargs["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in config.callbacks or [])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins(config.plugins)):
            kwargs["plugins"] = [*plugins(config.plugins), WholeCheckpoints()]
        kwargs["callbacks"] = [*(config.callbacks or []), *self._callbacks(config.fast_dev_run)]
        if config.enable_progress_bar is None and not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
        return super().instantiate_trainer(**kwargs)

    def fit(self, **kwargs: Any) -> None:
        self.trainer.fit(weights_only=True, **kwargs)

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(weights_only=True, verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(weights_only=True, verbose=False, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        self.trainer.predict(weights_only=True, return_predictions=False, **kwargs)

    def before_fit(self) -> None:
        self.datamodule.check_parts("train", *(["valid"] if self.trainer.limit_val_batches else []))
        self._announce("samples: " + ", ".join(f"{name} {len(part)}" for name, part in self.datamodule.parts.items()))
        if self.trainer.is_global_zero and not self.config["fit"].trainer.fast_dev_run:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            (self.folder.path / "config.yaml").write_text(yaml.safe_dump(self.configuration(), sort_keys=False), encoding="utf-8")

    def after_fit(self) -> None:
        self._announce(f"best checkpoint: {self.folder.checkpoint('best')}")
        self._announce(f"next: mea-graph test --config {self.folder.path / 'config.yaml'}")

    def after_validate(self) -> None:
        self._report("valid")

    def after_test(self) -> None:
        scores = self._report("test")
        if scores is None:
            return
        write_json(
            self.folder.path / "metrics.json",
            {
                "metrics": scores,
                "checkpoint": self.config[self.subcommand].ckpt_path,
                "seed": self.config[self.subcommand].seed_everything,
                "data_hash": self.datamodule.dataset.hash,
                "samples": {name: len(part) for name, part in self.datamodule.parts.items()},
                "versions": versions(),
                "config": self.configuration(),
            },
        )
        self._announce(f"written: {self.folder.path / 'metrics.json'}")

    def after_predict(self) -> None:
        self._announce(f"written: {self.folder.path / 'predictions.csv'}")

    def configuration(self) -> dict[str, Any]:
        """Returns every option of this run as plain containers, without its folder, checkpoint and composed files."""
        options = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))[self.subcommand]
        return {name: value for name, value in options.items() if name not in ("config", "ckpt_path", "run_dir")}

    def _callbacks(self, fast_dev_run: bool | int) -> list[Callback]:
        callbacks: list[Callback] = [RichProgressBar() if sys.stdout.isatty() else EpochLines()]
        if self.subcommand == "predict":
            path = self.folder.path / "predictions.csv"
            callbacks.append(PredictionWriter(path, self.datamodule.task, self.datamodule.dataset.ids, self.datamodule.label_names))
        if self.subcommand == "fit" and not fast_dev_run:
            watched = self.config_init["fit"].early_stopping
            folder = self.folder.checkpoint("best").parent
            # two of them: Lightning writes `save_last` only when the best one changes; and the last must hold the best one's state
            callbacks.append(ModelCheckpoint(folder, "best", monitor=watched.monitor, mode=watched.mode, enable_version_counter=False))
            callbacks.append(ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True))
        return callbacks

    def _report(self, part: str) -> dict[str, dict[str, float]] | None:
        """Prints the metrics beside the constant predictor's; returns them on the first process only."""
        found = plain(self.trainer.callback_metrics)
        if not self.trainer.is_global_zero:
            return None
        constant = constant_scores(self.datamodule, part, self.model.sentiment)
        scores = {"model": {name: found[f"{part}/{name}"] for name in constant}, "constant": constant}
        Console().print(scores_table(f"{part} ({len(self.datamodule.parts[part])} samples)", scores))
        return scores

    def _announce(self, message: object) -> None:
        if self.trainer.is_global_zero:
            print(message, flush=True)


def plugins(given: Any) -> list[Any]:
    """Returns the trainer's plugins, of which there may be none, one or several, as a list."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def check_same_options(path: Path, model: TaskModule) -> None:
    """Refuses a checkpoint whose model was made with other options than the configuration has, or has other parameters.

    Args:
        path: checkpoint file.
        model: what the configuration gives.

    Raises:
        DataError: naming the first difference, or where the file is no checkpoint.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weights, options = saved["state_dict"], saved.get("hyper_parameters", {})
    except Exception as error:
        raise DataError(f"ckpt_path: expected a checkpoint of plain tensors and containers, got {path}: {one_line(error)[:200]}") from error
    hint = "use the run's own config.yaml"
    if (written_by := str(saved.get("mea_graph_version", __version__))) != __version__:
        hint += f", or mea-graph {written_by}, which wrote the checkpoint (this is {__version__})"
    for name, value in model.hparams.items():
        if name in options and options[name] != value:
            raise DataError(f"model.{name}: the checkpoint {path} has {options[name]!r}, the configuration {value!r}; {hint}")
    if unknown := sorted(options.keys() - model.hparams.keys()):
        raise DataError(f"model: the checkpoint {path} has an option {unknown[0]!r}, {type(model).__name__} has none; {hint}")
    shapes, found = ({name: tuple(value.shape) for name, value in state.items()} for state in (model.state_dict(), weights))
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            raise DataError(
                f"ckpt_path: the checkpoint {path} has {name} {found.get(name)}, {type(model).__name__} {shapes.get(name)}; {hint}"
            )


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code: 0, or 2 after a user's mistake, told in one line.

    Args:
        arguments: the words of the command line, without the program's name.
    """
    quieten()
    sys.path.append(os.getcwd())  # so that `--model my_file.MyModule` is found, as with `python -m`
    try:
        CommandLine(arguments)
    except USER_ERRORS as error:
        print(f"mea-graph: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
