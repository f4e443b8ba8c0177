"""Gives every option of a configuration values of the wrong type, out of range or unknown, and says which are not refused rightly.

    python tools/sweep_options.py                     # all: some minutes
    python tools/sweep_options.py trainer data.split  # options that begin so
    python tools/sweep_options.py --list              # the options, and which of the values each may have

A value is refused rightly with one error of the package that names the option, before training begins. What an option may have of the
values stands in `LEGAL`; an option that is not there is a fault, so that a new one is thought about. Where a model takes a value, a loss
and its gradients are computed. Ends with 1 where there is a fault. `tests/train/test_options.py` does what takes seconds of it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import math
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch import callbacks
from torch_geometric.loader import DataLoader

from mea_graph import baselines
from mea_graph.command.options import FOLLOWS, LINKED
from mea_graph.data import AsynchronousEvents, open_dataset
from mea_graph.data.open import _READERS
from mea_graph.nn._parts import PARTS
from mea_graph.option_types import parameters_of
from mea_graph.train import MEAModule, Sampling, SequenceDataModule, SplitPolicy, TaskModule, TrainingLength
from mea_graph.train.augmentation import AUGMENTATIONS
from mea_graph.train.cli import USER_ERRORS, CommandLine, one_line
from mea_graph.train.early_stopping import EarlyStopping
from mea_graph.train.error_message import lack_of_memory
from mea_graph.train.option_ranges import check_options

VALUES: dict[str, Any] = {
    **{str(value): value for value in (-1, 0, 1, 1.5, -0.5, math.nan, math.inf)},
    "huge": 10**13,
    "tiny": 1e-300,
    "true": True,
    "null": None,
    "word": "word",
    "'1'": "1",
    "[]": [],
    "[1]": [1],
    "mixed": ["word", -1],
    "{}": {},
    "{word: 1}": {"word": 1},
}
FLAG, COUNT, NATURAL, SHARE, BELOW_ONE = "true", "1 huge", "0 1 huge", "0 1 tiny", "0 tiny"
AT_LEAST_0, ABOVE_0, ANY = "0 1 1.5 huge tiny", "1 1.5 huge tiny", "-1 0 1 1.5 -0.5 huge tiny"
PATIENCE = 20  # seconds after which a value counts as one that hangs
BATCHES = "0 1 huge tiny null"  # a number of batches, or a share of them
BASELINES = [getattr(baselines, name) for name in baselines.__all__ if name.endswith("Module")]
SMALL = {"channels": 8, "heads": 2, "hidden_channels": 8}
# The values of the table that an option may have; one that is not here, or has nothing, must refuse them all.
LEGAL = {
    "seed_everything": "0 1",
    "threads": "1 null",
    "run_dir": "word '1' null",
    **dict.fromkeys(("logger", "ckpt_path"), "null"),
    # Lightning's trainer
    **dict.fromkeys(("trainer.accelerator", "trainer.strategy", "trainer.barebones"), ""),
    **{f"trainer.{name}": "null" for name in ("precision", "gradient_clip_algorithm", "profiler", "max_time")},
    **{f"trainer.{name}": "null" for name in ("deterministic", "benchmark", "enable_checkpointing", "enable_progress_bar")},
    **{f"trainer.limit_{name}_batches": BATCHES for name in ("test", "predict")},
    "trainer.limit_train_batches": "1 huge tiny null",  # 0 trains nothing
    "trainer.limit_val_batches": "1 huge tiny null",  # 0 leaves nothing that early stopping watches, unless that is told something else
    **{f"trainer.{name}": FLAG for name in ("inference_mode", "use_distributed_sampler", "detect_anomaly", "sync_batchnorm")},
    **{f"trainer.{name}": f"{FLAG} null" for name in ("deterministic", "benchmark", "enable_model_summary", "enable_progress_bar")},
    **{f"trainer.{name}": f"{FLAG} null" for name in ("enable_checkpointing",)},
    **{f"trainer.{name}": f"{NATURAL} null" for name in ("min_epochs", "min_steps", "log_every_n_steps")},
    **{f"trainer.{name}": f"{COUNT} null" for name in ("max_epochs", "check_val_every_n_epoch")},
    **{f"trainer.{name}": "word '1' null" for name in ("default_root_dir", "model_registry")},
    "trainer.callbacks": "[] {} null",  # an empty dict is a callback that does nothing
    "trainer.plugins": "[] {} null",
    "trainer.logger": "true [] null",
    "trainer.devices": "1",
    "trainer.num_nodes": "1",
    "trainer.fast_dev_run": f"{NATURAL} true",
    "trainer.max_steps": "-1 1 huge",
    "trainer.overfit_batches": "0 1 huge tiny",
    "trainer.val_check_interval": "1 huge tiny null",
    "trainer.num_sanity_val_steps": "-1 0 1 huge null",
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.gradient_clip_val": f"{AT_LEAST_0} null",
    "trainer.reload_dataloaders_every_n_epochs": NATURAL,
    "trainer.enable_autolog_hparams": FLAG,
    # data
    **{f"data.{name}": "null" for name in ("source", "preset", "modalities", "task", "classes", "standardize")},
    "data.events": "{}",
    "data.reader": "{} null",
    "data.batch_size": COUNT,
    "data.num_workers": "0 1",
    "data.split.fold": "0",
    "data.split.seed": NATURAL,
    **{f"data.split.{name}": "null" for name in ("by", "train", "valid", "test", "folds", "valid_fraction", "valid_by")},
    "data.sampling.balanced": "",  # of a regression
    **{f"data.events.{name}": "" for name in ("num_samples", "task", "num_classes", "num_modalities", "num_events", "duration", "match")},
    "data.events.coincidence": SHARE,
    "data.events.noise": "0 1 1.5 tiny",
    "data.events.jitter": AT_LEAST_0,
    "data.events.missing_rate": BELOW_ONE,
    "data.events.seed": NATURAL,
    # training
    "early_stopping.monitor": "",
    "early_stopping.mode": "null",
    "early_stopping.min_delta": AT_LEAST_0,
    "early_stopping.patience": NATURAL,
    **{f"early_stopping.{name}": FLAG for name in ("check_finite", "verbose", "strict", "log_rank_zero_only")},
    **{f"early_stopping.{name}": f"{ANY} null" for name in ("stopping_threshold", "divergence_threshold")},
    "early_stopping.check_on_train_epoch_end": f"{FLAG} null",
    "training.updates": f"{COUNT} null",
    **{f"training.{name}": "null" for name in ("check_every", "patience")},  # alone
    **{f"model.{name}": "" for name in ("form", "disparity")},
    **{f"model.{name}": f"{FLAG} null" for name in ("cosine_decay",)},
    "model.sentiment": FLAG,
    "model.alpha": AT_LEAST_0,
    **{f"model.{name}": f"{AT_LEAST_0} null" for name in ("beta", "weight_decay")},
    "model.learning_rate": ABOVE_0,
    "model.warmup": f"{BELOW_ONE} null",
    "model.label_smoothing": SHARE,
    **{f"model.{name}": "{} null" for name in ("exclusive", "agnostic", "discriminator", "augmentation")},
    **{f"model.{name}": "{}" for name in ("extractor", "fusion", "head")},
    **{f"model.{name}": "null" for name in ("window", "class_weights")},
    # the model and its parts
    "model.channels": "",
    **{f"model.{name}": "1" for name in ("hidden_channels", "heads", "extractor.kernel_size", "extractor.stride")},
    "model.dropout": f"{BELOW_ONE} null",
    **{f"model.{part}.dropout": BELOW_ONE for part in ("extractor", "exclusive", "agnostic", "head")},
    **{f"model.{name}": FLAG for name in ("extractor.skip", "head.norm", "fusion.self_loops", "discriminator.importance")},
    **{f"model.exclusive.{name}": FLAG for name in ("prediction_chain", "weighted_attention")},
    **{f"model.agnostic.{name}": FLAG for name in ("mixed", "coarse", "fine", "center")},
    **{f"model.{branch}.{name}": "" for branch in ("exclusive", "agnostic") for name in ("residual", "pooling")},
    **{f"model.{branch}.segments": COUNT for branch in ("exclusive", "agnostic")},  # read with pooling="segments" alone
    **{f"model.{branch}.heads": "1" for branch in ("exclusive", "agnostic")},
    **{f"model.{branch}.num_layers": "0 1" for branch in ("exclusive", "agnostic")},
    "model.exclusive.mu": SHARE,
    "model.extractor.positions": "",
    "model.extractor.time_scale": ABOVE_0,
    "model.discriminator.reversal": AT_LEAST_0,
    "model.discriminator.adversary": "",
    "model.fusion.out_channels": "1 null",
    **{f"model.fusion.{name}": "" for name in ("conv", "aggr", "spaces")},
    "model.augmentation.modality_dropout": BELOW_ONE,
    "model.augmentation.time_stretch": "0 1 1.5 tiny",
    "model.augmentation.time_mask": SHARE,
    "model.augmentation.feature_noise": AT_LEAST_0,
    "model.window.seconds": f"{AT_LEAST_0} inf",
    "model.window.steps": NATURAL,
    "model.window.causal": FLAG,
}
SIZES = dict.fromkeys(("hidden_channels", "heads", "fusion_heads", "num_layers", "kernel_size"), "1") | {"stride": COUNT}
WEIGHTS = dict.fromkeys(("difference_weight", "similarity_weight", "reconstruction_weight"), AT_LEAST_0)
OF_BASELINES = SIZES | WEIGHTS | {"channels": "", "modalities": "null", "pooling": "", "segments": COUNT, "dropout": BELOW_ONE}
OF_READERS = {
    **dict.fromkeys(("label", "id", "embedding", "label_names", "split"), "null"),
    "columns": "0 null",  # the one that there is
    "labels": f"{ANY} null",  # a threshold
    "static": "[]",
    **dict.fromkeys(("lengths", "non_finite"), ""),
}


def options() -> dict[str, str]:
    """Every option by name, as it stands in a configuration, and the values that it may have; None where nobody has said so."""
    found = ["seed_everything", "threads", "run_dir", "logger", "ckpt_path"]
    owners: tuple[tuple[str, tuple[Callable[..., Any], ...]], ...] = (
        ("trainer", (L.Trainer,)),
        ("data", (SequenceDataModule,)),
        ("data.split", (SplitPolicy,)),
        ("data.sampling", (Sampling,)),
        ("data.events", (AsynchronousEvents,)),
        ("early_stopping", (EarlyStopping, callbacks.EarlyStopping)),
        ("training", (TrainingLength,)),
        ("model", (MEAModule,)),
        *((f"model.{name}", (part,)) for name, part in PARTS.items()),
    )
    decided = {*LINKED, "channels", "hidden_channels", "modalities", "kwargs", "spaces"}
    for section, kinds in owners:
        skip = decided if section.count(".") and section.startswith("model") else {*LINKED, "kwargs"} if section == "model" else {"kwargs"}
        found += [f"{section}.{name}" for name in parameters_of(*kinds) if name not in skip]
    found += [f"model.augmentation.{name}" for name in AUGMENTATIONS] + [f"model.window.{name}" for name in ("seconds", "steps", "causal")]
    found += ["model.fusion.out_channels", "model.fusion.spaces", "model.fusion.self_loops"]
    left_out = {"data.split", "data.sampling", *(f"data.{name}" for name in FOLLOWS)}
    legal = {name: LEGAL.get(name) for name in found if name not in left_out}
    own = {*LINKED, *parameters_of(TaskModule), "kwargs"}
    for kind in BASELINES:
        legal |= {f"{kind.__name__}.{name}": OF_BASELINES.get(name) for name in parameters_of(kind) if name not in own}
    for form in ("npz", "mult", "mmsa", "misa"):
        legal |= {f"{form}.{name}": OF_READERS.get(name) for name in list(parameters_of(_READERS[form]))[1:]}
    # a file of one split takes its name; the heads of the one and the width of the other go together
    return legal | {"misa.split": "word '1' null", "SharedPrivateEncodersModule.hidden_channels": ""}


class Prepared(CommandLine):
    """A command that is made, and not carried out."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Sweep:
    """Tries values; makes the command's parser once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._command = folder, None
        self.data = SequenceDataModule(events={"num_samples": 12})
        self.batch = next(iter(DataLoader(self.data.dataset, batch_size=4)))

    def made(self, option: str, value: Any) -> None:
        """Hands a value to the class that it is for."""
        section, _, name = option.rpartition(".")
        sizes: Any = (self.data.in_channels, "regression", 1)
        if section == "data.events":
            AsynchronousEvents(**{"num_samples": 12, name: value})
        elif section.startswith("model"):
            _, *inner = section.split(".")
            given = {name: value} if not inner else {inner[0]: {name: value}}
            if option == "model.window.causal":
                given["window"]["steps"] = 1
            self.learns(MEAModule, given, sizes)
        elif kind := next((kind for kind in BASELINES if kind.__name__ == section), None):
            self.learns(kind, {name: value}, sizes)
        elif section in _READERS:
            with contextlib.redirect_stderr(io.StringIO()):
                open_dataset(self.file(section), format=section, cache_dir=self.folder / "cache", **{name: value})
        else:
            tree = copy.deepcopy(value)
            for part in reversed(option.split(".")):
                tree = {part: tree}
            check_options(tree)

    def learns(self, kind: Any, given: dict[str, Any], sizes: tuple[Any, ...]) -> None:
        try:
            module = kind(*sizes, **{n: v for n, v in SMALL.items() if n in parameters_of(kind)} | given)
        except RuntimeError as error:
            if (lack := lack_of_memory(error, given)) is None:
                raise
            raise ValueError(lack) from error
        loss = module.loss_terms(module.run(self.batch), self.batch.y)["loss"]
        loss.backward()

    def file(self, form: str) -> Path:
        """A small file of a format."""
        path = self.folder / f"{form}.{'npz' if form == 'npz' else 'pkl'}"
        x, ids = np.ones((4, 3, 2), np.float32), ["a", "b", "c", "d"]
        if path.exists():
            pass
        elif form == "npz":
            np.savez(path, audio=x, label=np.linspace(-1, 1, 4))
        elif form == "misa":
            path.write_bytes(pickle.dumps([((np.zeros(3, int), x[i], x[i]), np.array([[0.5 * i]]), name) for i, name in enumerate(ids)]))
        else:
            labels = {"regression_labels": np.linspace(-1, 1, 4), "id": ids} if form == "mmsa" else {"labels": np.linspace(-1, 1, 4)}
            path.write_bytes(pickle.dumps({"train": {"audio": x, "vision": x, **labels}}))
        return path

    def commanded(self, option: str, value: Any) -> None:
        """Hands a value to `mea-graph fit`, up to the first step."""
        if self._command is None:
            with ExitStack() as closing, contextlib.redirect_stdout(io.StringIO()):
                self._command = Prepared(["fit", "--data.events", "{num_samples: 12}", "--run_dir", str(self.folder / "run")], closing)
        command = self._command
        tree: dict[str, Any] = {
            "run_dir": str(self.folder / "run"),
            "data": {"events": {"num_samples": 12}},
            "model": {"class_path": "mea_graph.train.MEAModule", "init_args": dict(SMALL)},
            "trainer": {"accelerator": "cpu"},
        }
        *way, last = option.replace("model.", "model.init_args.").split(".")
        inner = tree
        for part in way:
            inner = inner.setdefault(part, {})
        inner[last] = value
        with ExitStack() as closing, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            command.closing = closing
            command.parse_arguments(command.parser, {"subcommand": "fit", "fit": tree})
            command.before_instantiate_classes()
            command.instantiate_classes()
            command.before_fit()

    def fault(self, option: str, named: str, legal: str, whole: bool) -> str | None:
        """What is wrong with what becomes of a value; None where nothing is."""
        value, taken = copy.deepcopy(VALUES[named]), named in legal.split()
        last = option.rpartition(".")[2]
        parsed = whole and (option.count(".") < 2 or option.startswith("data.s")) and option.partition(".")[0] in SECTIONS
        taken |= parsed and named == "'1'" and "1" in legal.split()  # a text that the parser reads as a number
        expected = (*USER_ERRORS, ValueError, TypeError) if not parsed else USER_ERRORS
        signal.alarm(PATIENCE)
        try:
            (self.commanded if parsed else self.made)(option, value)
        except TimeoutError as error:
            return f"{option} = {value!r}: {error}"
        except expected as error:
            message = one_line(error)
            wrong = " not supported between instances" in message or " object " in message or (last not in message)
            if taken or wrong:
                return f"{option} = {value!r}: {'refused' if taken else 'not told plainly'}: {message[:160]}"
        except Exception as error:
            return f"{option} = {value!r}: {type(error).__name__}: {str(error)[:160]}"
        else:
            if not taken:
                return f"{option} = {value!r}: taken"
        finally:
            signal.alarm(0)
        return None


def _hangs(*_: object) -> None:
    raise TimeoutError(f"took more than {PATIENCE} s")


SECTIONS = ("seed_everything", "threads", "run_dir", "logger", "ckpt_path", "trainer", "data", "early_stopping", "training", "model")


def faults(beginnings: tuple[str, ...], whole: bool = True) -> Iterator[str]:
    """The faults of all options that begin so; of those that the classes tell themselves, if not `whole`."""
    signal.signal(signal.SIGALRM, _hangs)
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder))
        for option, legal in options().items():
            if not option.startswith(beginnings):
                continue
            if legal is None:
                yield f"{option}: not in the tables of what options may have"
                continue
            for named in VALUES:
                if (fault := sweep.fault(option, named, legal, whole)) is not None:
                    yield fault


def main() -> int:
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("beginnings", nargs="*", default=[""], metavar="OPTION")
    words.add_argument("--list", action="store_true", help="shows the options")
    given = words.parse_args()
    if given.list:
        print("\n".join(f"{option}: {legal or 'none of them'}" for option, legal in options().items()))
        return 0
    os.chdir(tempfile.mkdtemp())
    torch.set_num_threads(1)
    count = 0
    for fault in faults(tuple(given.beginnings)):
        count += 1
        print(fault, flush=True)
    tried = sum(option.startswith(tuple(given.beginnings)) for option in options())
    print(f"{tried} options, {len(VALUES)} values each: {count} faults")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
