"""`mea-graph fit | validate | test`: LightningCLI with the package's modules, data and configurations."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from mea_graph.baselines.scores import baseline_scores
from mea_graph.command.mistake import mistake
from mea_graph.command.options import LINKED, with_suggestion
from mea_graph.configurations import packaged_configs
from mea_graph.data import DataError
from mea_graph.train import predict_command
from mea_graph.train.accelerators import check_accelerator
from mea_graph.train.class_balance import imbalance_note
from mea_graph.train.config_files import KeptConfiguration, check_followers, with_config_paths, without_objects
from mea_graph.train.confusion import ConfusionCounter, confusion_text
from mea_graph.train.convergence import WatchedValues
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.early_stopping import EarlyStopping
from mea_graph.train.epoch_lines import EpochLines
from mea_graph.train.epoch_log import LogBeforeCheckpoint
from mea_graph.train.error_message import is_lost_process, lack_of_memory, one_line
from mea_graph.train.finite_loss import NonFiniteLossError
from mea_graph.train.keyword_arguments import argument_docs
from mea_graph.train.loggers import LoggerName, loggers
from mea_graph.train.mea_module import MEAModule
from mea_graph.train.model_checkpoint import ModelCheckpoint, averaging_note, best_and_last
from mea_graph.train.monitors import check_monitors, mode_of, watching_mode
from mea_graph.train.option_ranges import check_options
from mea_graph.train.own_folder import OwnFolder
from mea_graph.train.quieten import quieten
from mea_graph.train.reports import behind_a_baseline, plain, scores_table, write_json
from mea_graph.train.restoring import Restoring
from mea_graph.train.run_folder import RunFolder
from mea_graph.train.same_options import check_same_options
from mea_graph.train.task_module import TaskModule, check_precision
from mea_graph.train.threads import computing_on
from mea_graph.train.trainer_options import check_whole
from mea_graph.train.training_length import LENGTH, TrainingLength, batches_per_epoch, length_of
from mea_graph.train.versions import versions
from mea_graph.train.whole_checkpoints import WholeCheckpoints, read_checkpoint

CLIP = 1.0  # norm of the gradients; the published configurations have none
USER_ERRORS = (DataError, NonFiniteLossError, MisconfigurationException, argparse.ArgumentError, OSError, ImportError)


def _is_first_process() -> bool:
    """Whether this is the only process of a run or its first, as launchers say it. Lightning's own answer is that of its first import."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))


class CommandLine(LightningCLI):
    """LightningCLI whose model is any `TaskModule` and whose data is a `SequenceDataModule` that tells the model its sizes.

    A run has a folder (`RunFolder`). Checkpoints are only ever loaded as plain tensors and containers. The configuration must agree
    with the checkpoint that is evaluated: a difference is an error, never silently resolved.
    """

    folder: RunFolder
    length: TrainingLength | None  # None where epochs say how long to train
    checkpoint: dict[str, Any] | None  # what is resumed or evaluated, until the model is known to fit it

    def __init__(self, arguments: Sequence[str], closing: ExitStack) -> None:
        self.closing = closing
        plain_errors = {"exit_on_error": False, "allow_abbrev": False}
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
                "gradient_clip_val": CLIP,
                "use_distributed_sampler": False,
                "log_every_n_steps": 1,
                "enable_model_summary": False,
            },
            parser_kwargs={
                "prog": "mea-graph",
                "description": f"Trains and evaluates MEA. Configurations: {', '.join(packaged_configs())}. "
                "See also: mea-graph predict, mea-graph demo, mea-graph study.",
                **plain_errors,
                **{name: dict(plain_errors) for name in self.subcommands()},
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Hides what this class decides: checkpoints are always loaded safely, results always printed as one table.

        `predict` is a command of its own (`predict_command`), which needs no configuration.
        """
        decided = {"datamodule", "model", "weights_only", "verbose"}
        return {name: skipped | decided for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of the run; runs/<config>/<number> by default.")
        parser.add_argument("--threads", type=int | None, default=None, help="Threads of the processor that compute.")
        parser.add_argument("--logger", type=LoggerName | None, default=None, help="Where the numbers go beside logs/ of the run.")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults({"early_stopping.monitor": "valid/task", "early_stopping.patience": 20})
        parser.set_defaults({"model": {"class_path": f"{MEAModule.__module__}.{MEAModule.__name__}"}})
        meanings = argument_docs(TrainingLength)
        for name in LENGTH:
            parser.add_argument(f"--training.{name}", type=int | None, default=None, help=meanings[name])
        sources = (*(f"training.{name}" for name in LENGTH), "trainer.max_epochs", "trainer.max_steps", "trainer.accumulate_grad_batches")
        parser.link_arguments(sources, "data.sampling.batches", batches_per_epoch)
        parser.link_arguments("seed_everything", "data.seed", lambda seed: int(seed or 0))  # what is none, `check_options` says plainly
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's options override the configuration; here a difference is an error instead."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        check_followers(str(path) for path in config.get("config") or [])
        check_options(config.as_dict())

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        resuming = self.subcommand == "fit" and config.ckpt_path is not None
        configs = [Path(str(path)) for path in config.get("config") or []]
        fits = self.subcommand == "fit"
        self.folder = RunFolder.choose(config.run_dir, configs, fits and not resuming, trains=fits and _is_first_process())
        self.closing.callback(self.folder.release)
        if self.subcommand == "test" and _is_first_process():
            self.folder.check_results()
        self.threads_note = self.closing.enter_context(computing_on(config.threads))
        config.threads = torch.get_num_threads()  # so that config.yaml says it: the bits of a run depend on it
        watched = config.early_stopping
        if watched.mode is not None or mode_of(watched.monitor) is not None:
            watched.mode = watching_mode(watched.monitor, watched.mode)  # so that config.yaml says it
        self.length = length_of(config.training, config.trainer.max_epochs, config.trainer.max_steps)
        if self.length is not None:
            config.training.updates = self.length.updates  # so that config.yaml says it
        self.checkpoint = None
        if not fits or resuming:
            config.ckpt_path = str(self.folder.find_checkpoint(config.ckpt_path))
            self.checkpoint = read_checkpoint(config.ckpt_path)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            lack = lack_of_memory(error, self.config[self.subcommand].model.init_args.as_dict())
            if lack is None and isinstance(error, RuntimeError):
                raise
            raise DataError(lack or one_line(error)) from error
        if self.checkpoint is not None:
            path = self.config[self.subcommand].ckpt_path
            with self.restoring.errors(path):
                check_same_options(path, self.checkpoint, self.model)
            self.checkpoint = None  # Lightning reads it again

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand].trainer
        check_accelerator(config.accelerator)
        named = self.config[self.subcommand].logger
        if config.logger is None:
            kwargs["logger"] = loggers(named, self.folder.path) if self.subcommand == "fit" else False
        elif named is not None:
            raise DataError(f"logger: expected --logger or --trainer.logger, got both ({named} and {config.logger})")
        if self.length is not None:
            kwargs["max_epochs"] = self.length.epochs
            self.config_init[self.subcommand].early_stopping.patience = self.length.patience_epochs
        if config.default_root_dir is None:
            kwargs["default_root_dir"] = str(self.folder.path)
        if self.subcommand != "fit" and config.enable_checkpointing is None:
            kwargs["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in as_list(config.callbacks))
        if not any(isinstance(plugin, CheckpointIO) for plugin in as_list(config.plugins)):
            kwargs["plugins"] = [*as_list(config.plugins), WholeCheckpoints()]
        self.restoring = Restoring(self.length)
        kwargs["callbacks"] = [*as_list(config.callbacks), self.restoring, *self._callbacks(config.fast_dev_run)]
        if config.enable_progress_bar is None and not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False
        return super().instantiate_trainer(**kwargs)

    def fit(self, **kwargs: Any) -> None:
        with self._stopping(kwargs.get("ckpt_path")):
            self.trainer.fit(weights_only=True, **kwargs)

    def validate(self, **kwargs: Any) -> None:
        with self._stopping(kwargs.get("ckpt_path")):
            self.trainer.validate(weights_only=True, verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        with self._stopping(kwargs.get("ckpt_path")):
            self.trainer.test(weights_only=True, verbose=False, **kwargs)

    def before_fit(self) -> None:
        validates = bool(self.trainer.limit_val_batches)
        self.datamodule.check_parts("train", *(["valid"] if validates else []))
        self.datamodule.check_training()
        check_precision(self.trainer.precision)
        watching = self.trainer.callbacks  # type: ignore[attr-defined]
        if not self.config["fit"].trainer.fast_dev_run:
            check_monitors(watching, self.model, self.datamodule, validates)
        self._announce("samples: " + ", ".join(f"{name} {len(part)}" for name, part in self.datamodule.parts.items()))
        data = self.datamodule
        unequal = imbalance_note(data.targets("train"), data.task, data.out_channels, data.label_names)
        for note in (*data.dataset.notes, unequal, averaging_note(watching), self.threads_note):
            if note:
                self._announce(f"note: {note}")

    def before_validate(self) -> None:
        self._before_measuring("valid")

    def before_test(self) -> None:
        self._before_measuring("test")

    def _before_measuring(self, part: str) -> None:
        check_whole(self.trainer, part)
        self.datamodule.check_labelled()
        if self.threads_note:
            self._announce(f"note: {self.threads_note}")

    def after_fit(self) -> None:
        stopped = False
        if not self.restoring.done:
            self._announce(self.restoring.nothing_left(self.trainer))
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
                stopped = True
                self._announce(f"stopped early: {one_line(ValueError(callback.stopping_reason_message))}")
            if isinstance(callback, ModelCheckpoint) and callback.filename == "best":
                found = self.folder.checkpoint("best")
                score = callback.best_model_score
                self._look_back(math.nan if score is None else float(score), stopped)
                if callback.best_model_path:
                    self._announce(f"best checkpoint: {found}")
                    self._announce(f"next: mea-graph test --config {self.folder.path / 'config.yaml'}")
                else:
                    why = "was not a number in any epoch" if self.watched.values else "was never measured: no validation came"
                    hint = "watch another one with --early_stopping.monitor, or use the last epoch with --ckpt_path last"
                    self._announce(f"no best checkpoint: {callback.monitor} {why}; {hint}")

    def _look_back(self, best: float, stopped: bool) -> None:
        """Shows which classes the best epoch confuses, and says where training ended too early."""
        values = self.watched.values
        last = max(values, default=-1)
        epoch, which = self.watched.best_epoch, "the best"
        resumed = epoch is None or values[epoch] != best  # then the best one was before
        if resumed:
            epoch, which = last, "the last"
        matrix = None if epoch is None else self.confusion.valid.get(epoch)
        if matrix is not None:
            self._announce(confusion_text(matrix, self.datamodule.label_names, f"valid, epoch {epoch} ({which})"))
        flawless = matrix is not None and matrix.trace() == matrix.sum()  # the loss falls on for ever, with nothing to gain
        if not stopped and not resumed and not flawless and (why := self.watched.unfinished()) is not None:
            command = f"mea-graph fit --config {self.folder.path / 'config.yaml'}"
            if self.model.cosine_decay:  # going on would be with a rate of 0
                how = f"train anew and longer: {command} --run_dir {self.folder.path}-longer"
            else:
                how = f"train longer: {command} --ckpt_path last"
            twice = f"--trainer.max_epochs {2 * (last + 1)}" if self.length is None else f"--training.updates {2 * self.length.updates}"
            steps = self.trainer.max_steps
            self._announce(f"not converged: {why}; {how} {twice}" + ("" if steps == -1 else f" --trainer.max_steps {2 * steps}"))

    def after_validate(self) -> None:
        self._report("valid")

    def after_test(self) -> None:
        scores = self._report("test")
        if scores is None:
            return
        write_json(
            self.metrics,
            {
                "metrics": scores,
                "checkpoint": self.config[self.subcommand].ckpt_path,
                "seed": self.config[self.subcommand].seed_everything,
                "data_hash": self.datamodule.dataset.hash,
                "samples": {name: len(part) for name, part in self.datamodule.parts.items()},
                "versions": versions(),
                "config": self.configuration(),
                **({} if self.confusion.test is None else {"confusion": self.confusion.test.tolist()}),
            },
        )
        self._announce(f"written: {self.metrics}")

    def configuration(self) -> dict[str, Any]:
        """Returns every option of this run as plain containers, without its folder, checkpoint and composed files."""
        options = without_objects(yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))[self.subcommand])
        left_out = ["config", "ckpt_path", "run_dir", *(["logger"] if options["logger"] is None else [])]
        return {name: value for name, value in options.items() if name not in left_out}

    def _callbacks(self, fast_dev_run: bool | int) -> list[Callback]:
        self.confusion = ConfusionCounter()
        callbacks: list[Callback] = [RichProgressBar() if sys.stdout.isatty() else EpochLines(), self.confusion, OwnFolder(self.folder)]
        if self.subcommand == "test":
            data, trained = self.datamodule, (self.checkpoint or {}).get(SequenceDataModule.__qualname__)
            own = isinstance(trained, dict) and trained.get("data_hash") == data.dataset.hash
            self.metrics = self.folder.result("metrics.json", "test", data.source, None if own else data.dataset.hash)
            predict_command.check_output("run_dir", self.metrics, ".json")
        if self.subcommand == "fit" and not fast_dev_run:
            watched = self.config_init["fit"].early_stopping
            mode = watched.mode or "min"  # where it is not known, `check_monitors` refuses
            folder = self.folder.checkpoint("best").parent
            self.watched = WatchedValues(watched.monitor, mode)
            callbacks += [KeptConfiguration(self.folder.path / "config.yaml", self.configuration), LogBeforeCheckpoint(), self.watched]
            callbacks += best_and_last(folder, watched.monitor, mode)
        return callbacks

    @contextmanager
    def _stopping(self, checkpoint: str | None) -> Iterator[None]:
        """Says in one line what ended a command from outside: Lightning leaves with 0 after SIGTERM, with 1 after Ctrl+C, wordless."""
        try:
            with self.restoring.errors(checkpoint):
                yield
        except SystemExit as stop:
            if isinstance(stop, SIGTERMException):
                name, code = "SIGTERM", 143
            elif isinstance(stop.__context__, KeyboardInterrupt):
                name, code = "Ctrl+C", 130
            else:
                raise
            if self.trainer.is_global_zero:
                how = f" in epoch {self.trainer.current_epoch}; go on with: {self._go_on()}" if self.subcommand == "fit" else ""
                print(f"mea-graph: stopped by {name}{how}", file=sys.stderr)
            raise SystemExit(code) from stop
        except RuntimeError as error:
            if not is_lost_process(error):
                raise
            how = f"; go on with: {self._go_on()}" if self.subcommand == "fit" else ""
            raise DataError(f"another process of this run has ended, and said why if it could ({one_line(error)[:120]}){how}") from error

    def _go_on(self) -> str:
        """The command that takes this run up again."""
        how = "--ckpt_path last" if self.folder.checkpoint("last").is_file() else f"--run_dir {self.folder.path}"
        return f"mea-graph fit --config {self.folder.path / 'config.yaml'} {how}"

    def _report(self, part: str) -> dict[str, dict[str, float]] | None:
        """Prints the metrics beside those of the baselines; returns them on the first process only."""
        found = plain(self.trainer.callback_metrics)
        if not self.trainer.is_global_zero:
            return None
        others = baseline_scores(self.datamodule, part, self.model.sentiment)
        scores = {"model": {name: found[f"{part}/{name}"] for name in others["constant"]}, **others}
        Console().print(scores_table(f"{part} ({len(self.datamodule.parts[part])} samples)", scores))
        if behind := behind_a_baseline(self.datamodule.task, scores):
            self._announce(f"note: {behind}")
        matrix = self.confusion.test if part == "test" else next(iter(self.confusion.valid.values()), None)
        if matrix is not None:
            self._announce(confusion_text(matrix, self.datamodule.label_names, part))
        return scores

    def _announce(self, message: object) -> None:
        if self.trainer.is_global_zero:
            print(message, flush=True)


def as_list(given: Any) -> list[Any]:
    """Returns the trainer's callbacks or plugins, of which there may be none, one or several, as a list."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code: 0, or 2 after a user's mistake, reported in one line.

    Args:
        arguments: The words of the command line, without the program's name.
    """
    quieten()
    if os.getcwd() not in sys.path:  # so that `--model my_file.MyModule` is found; last, so that no file there stands for another module
        sys.path.append(os.getcwd())
    try:
        if arguments and arguments[0] == "predict":
            return predict_command.main(arguments[1:])
        with ExitStack() as closing:
            CommandLine(arguments, closing)
    except BrokenPipeError:  # not the user's mistake: `mea-graph fit ... | head` has seen enough
        raise
    except USER_ERRORS as error:
        return mistake(with_suggestion(one_line(error), arguments))
    return 0
