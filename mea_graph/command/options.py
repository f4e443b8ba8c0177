"""The options of `mea-graph fit | validate | test`, known without the parser, and what a mistyped one was meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mea_graph.command.signatures import PACKAGE, Option, class_options, lightning_file, model_classes, part_options
from mea_graph.command.trainer_classes import of_a_trainer_class
from mea_graph.configurations import packaged_configs
from mea_graph.suggestions import did_you_mean

MODEL = "MEAModule"
TRAINING = ("fit", "validate", "test")
LINKED = ("in_channels", "out_channels", "task", "label_names")  # what the data tells the model
FOLLOWS = ("seed", "sampling.batches")  # what the command tells the data
FORMER = {  # options that went elsewhere: an error says where
    "data.format": "data.reader.format",
    "data.cache_dir": "data.reader.cache_dir",
    "data.num_classes": "data.classes",
    "data.label_names": "data.classes",
    "data.balanced": "data.sampling.balanced",
}
FORMER_OF_MODEL = {  # those of `MEAModule`, which went into its parts
    "num_predictive_layers": "exclusive.num_layers",
    "num_cross_modal_layers": "agnostic.num_layers",
    "kernel_size": "extractor.kernel_size",
    "stride": "extractor.stride",
    "skip": "extractor.skip",
    "mu": "exclusive.mu",
    "pooling": "exclusive.pooling and agnostic.pooling",
    "residual": "exclusive.residual and agnostic.residual",
    "head_norm": "head.norm",
    "center_agnostic": "agnostic.center",
    "importance": "discriminator.importance",
    "adversary": "discriminator.adversary",
    "self_loops": "fusion.self_loops",
    "modality_dropout": "augmentation.modality_dropout",
    "time_stretch": "augmentation.time_stretch",
    "time_mask": "augmentation.time_mask",
    "feature_noise": "augmentation.feature_noise",
}
SINGLE = {
    "config": "NAME|FILE: a configuration of the package or a file; given twice, the later one overrides the earlier",
    "run_dir": "FOLDER of the run; runs/<config>/<number> by default",
    "ckpt_path": "best | last | FILE: the checkpoint to go on with, or to evaluate",
    "seed_everything": "INT: decides weights, order of the samples and dropout (default: 0)",
    "threads": "INT: threads of the processor that compute (default: OMP_NUM_THREADS where it is set, else 1)",
    "logger": "tensorboard | wandb: writes there too; logs/ of the run has the numbers as CSV in any case",
    "print_config": "shows the configuration that comes out of it all, and ends",
    "help": "shows this",
}
_NO_MODEL = re.compile(  # what jsonargparse says of a class
    r"model: (?:Expected a dot import path string: (\S+)"
    r"|Problem with given class_path '([\w.]+)': (No module named .*|module .* has no attribute .*)"
    r"|(Import path (?:\S+ )?does not correspond to a subclass of TaskModule))$"
)
_MORE = {"help", "class_path", "init_args", "dict_kwargs"}  # what the parser itself puts below an option


@dataclass(frozen=True)
class Options:
    """What can be said in a command.

    Args:
        sections: The options of each section by name; `model` is empty where its class is not one of ours.
        model: Name of the model's class, None where it is not one of ours.
    """

    sections: dict[str, dict[str, Option]]
    model: str | None

    def names(self) -> list[str]:
        """Every option as it is written in a command, without the dashes."""
        whole = [section for section in self.sections if section != "training"]  # no class stands behind it
        return [*SINGLE, *whole, *(f"{section}.{name}" for section, options in self.sections.items() for name in options)]

    def unknown(self, word: str) -> str | None:
        """Returns the option of a word that does not exist, or None where it does or the parser alone can tell.

        Args:
            word: The word of the command, such as `--data.batch_size=8`.
        """
        option = word.removeprefix("--").partition("=")[0].rstrip("+")
        if not word.startswith("--") or not option:
            return None
        section, *inner = option.split(".")
        if section not in self.sections or not inner:
            return None if option in self.names() or section in SINGLE else option
        if section == "model":
            inner = inner[1:] if inner[0] == "init_args" else inner
            if self.model is None or not inner:
                return None
        known = self.sections[section]
        if inner[0] in known or inner[0] in _MORE:
            inside = len(inner) > 1 and any(name.startswith(f"{inner[0]}.") for name in known) and inner[1] not in _MORE
            return f"{section}.{inner[0]}.{inner[1]}" if inside and f"{inner[0]}.{inner[1]}" not in known else None
        return option

    def suggestion(self, option: str) -> str:
        """Returns what an unknown option may have been, as the end of a message; nothing where none is near.

        Args:
            option: As `unknown` returns it.
        """
        if option in FORMER:
            return f" ('--{FORMER[option]}' now)"
        section, _, last = option.rpartition(".")
        if self.model == MODEL and section in ("model", "model.init_args") and last in FORMER_OF_MODEL:
            now = [f"'--model.{name}'" for name in FORMER_OF_MODEL[last].split(" and ")]
            return f" ({' and '.join(now)} now)"
        names = self.names()
        same = [name for name in names if name.rpartition(".")[2] == option.replace("-", "_")]
        if len(same) == 1:  # its section was left out
            return f" (did you mean '--{same[0]}'?)"
        own = [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == section.removesuffix(".init_args")]
        if own and section:
            return did_you_mean(last, own).replace("mean '", f"mean '--{section}.")
        return did_you_mean(option, names).replace("mean '", "mean '--")


def known_options(words: Sequence[str]) -> Options:
    """Returns the options of a command, whose words say which model is trained.

    Args:
        words: The words of the command line.

    Raises:
        LookupError: If sources are not there to be read.

    >>> options = known_options(["fit", "--config", "events"])
    >>> (
    ...     options.unknown("--model.exclusive.pooling"),
    ...     options.unknown("--model.exclusive.poolng"),
    ... )
    (None, 'model.exclusive.poolng')
    >>> options.suggestion("model.exclusive.poolng")
    " (did you mean '--model.exclusive.pooling'?)"
    """
    model = _model_class(words)
    data = class_options("SequenceDataModule")
    for part, kind in (("split", "SplitPolicy"), ("sampling", "Sampling")):
        data |= {f"{part}.{name}": replace(option, name=f"{part}.{name}") for name, option in class_options(kind).items()}
    data = {name: option for name, option in data.items() if name not in FOLLOWS}
    options_of_model = class_options(model) if model else {}
    if model == MODEL:
        options_of_model = options_of_model | part_options()
    sections = {
        "data": data,
        "model": {name: option for name, option in options_of_model.items() if name not in LINKED},
        "early_stopping": class_options("EarlyStopping"),
        "training": class_options("TrainingLength"),
        "trainer": class_options("Trainer", lightning_file("pytorch/trainer/trainer.py")),
    }
    return Options(sections, model)


def mistyped(words: Sequence[str]) -> str | None:
    """Returns the message about the first option of a command that does not exist; None where there is none.

    Args:
        words: The words of the command line, the subcommand first.

    >>> mistyped(["fit", "--data.sorce", "mine.npz"])
    "fit: there is no option --data.sorce (did you mean '--data.source'?)"
    """
    options = known_options(words)
    for word in words[1:]:
        if word == "--":
            return None
        if (option := options.unknown(word)) is not None:
            return f"{words[0]}: there is no option --{option}{options.suggestion(option)}"
    return None


def with_suggestion(message: str, words: Sequence[str]) -> str:
    """Returns a message of the parser, with what an option of a configuration file may have been.

    Args:
        message: One line.
        words: The words of the command line.

    >>> with_suggestion(
    ...     "Subcommand 'fit' does not accept option 'trainer.max_epoch'", ["fit"]
    ... )
    "Subcommand 'fit' does not accept option 'trainer.max_epoch' (did you mean 'trainer.max_epochs'?)"
    """
    if (plain := of_a_trainer_class(message, lambda option: values_of(words, option))) is not None:
        return plain
    found = re.search(r"does not accept option '([\w.]+)'|[Oo]ption '(\w+)' is not accepted", message)
    no_model = _NO_MODEL.match(message)
    try:
        if no_model is not None:
            return _of_no_model(no_model, words)
        if found is not None:
            option = found[1] or f"model.{found[2]}"
            return message + known_options(words).suggestion(option).replace("'--", "'")
    except (LookupError, OSError):  # without sources
        pass
    return message


def _of_no_model(found: re.Match[str], words: Sequence[str]) -> str:
    """What the parser says of a class that is not there, or that is no model, with those that are."""
    name, why = found[1] or found[2] or _model_name(words), found[3] or found[4]
    known = model_classes()
    expected = f"expected one of {', '.join(known)}, or a class of your own as my_file.MyModule"
    reason = "" if why is None else " (it is no TaskModule)" if found[4] else f" ({why})"
    return f"model: {expected}, got {name!r}{reason}{did_you_mean(name.rpartition('.')[2], known)}"


def _model_name(words: Sequence[str]) -> str:
    """The model's class as the words and the configurations say it."""
    name = MODEL
    for path in values_of(words, "config", "-c"):
        name = _configured(packaged_configs().get(path, Path(path))) or name
    for value in values_of(words, "model") + values_of(words, "model.class_path"):
        name = value
    return name


def _model_class(words: Sequence[str]) -> str | None:
    """The name of the model's class without its module; None where it is none of ours."""
    module, _, last = _model_name(words).rpartition(".")
    if module and not module.startswith(PACKAGE.name):
        return None
    try:
        class_options(last)
    except LookupError:
        return None
    return last


def values_of(words: Iterable[str], option: str, short: str | None = None) -> list[str]:
    """Returns every value that a command gives an option, in order.

    Args:
        words: The words of the command line.
        option: Without the dashes.
        short: Another way to write it.

    >>> values_of(["fit", "--config", "a", "--config=b", "-c", "c"], "config", "-c")
    ['a', 'b', 'c']
    """
    values, follows = [], False
    for word in words:
        if follows:
            values.append(word)
            follows = False
        elif word.startswith(f"--{option}="):
            values.append(word.partition("=")[2])
        else:
            follows = word in (f"--{option}", short)
    return values


def _configured(path: Path) -> str | None:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # told by whoever reads it for good
    model = found.get("model") if isinstance(found, dict) else None
    name = model.get("class_path") if isinstance(model, dict) else model
    return name if isinstance(name, str) else None
