"""The texts of `mea-graph --help` and `mea-graph fit --help`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from mea_graph.command.options import SINGLE, known_options
from mea_graph.command.signatures import Option
from mea_graph.configurations import packaged_configs

COMMANDS = {
    "fit": "trains a model; the run gets a folder",
    "validate": "measures a trained model on the validation samples",
    "test": "measures a trained model on the test samples",
    "predict": "predicts new samples with a checkpoint: --ckpt FILE --data FILE --output CSV",
    "study": "the paper's tables and figures on any data: compare, ablate, sensitivity, missing, disentangle",
    "demo": "MEA against its baselines on the embedded data, in a few minutes",
    "check": "whether the kernels are right on this machine, in a minute or two; builds the C++ kernels",
}
_SECTIONS = {
    "data": "what is read, and how it is divided",
    "model": "the model and its training, here {model}; `--model CLASS --help` shows another one's",
    "early_stopping": "which number says what epoch is best, and how long to wait for a better one",
    "training": "how long to train, in updates of the weights; `--trainer.max_epochs` says it in epochs instead",
    "trainer": "Lightning's trainer",
}
_SET = {
    ("early_stopping", "monitor"): "valid/task",
    ("early_stopping", "patience"): "20",
    ("training", "updates"): "2000",
    ("trainer", "max_epochs"): "None",
    ("trainer", "gradient_clip_val"): "1.0",
    ("trainer", "use_distributed_sampler"): "False",
    ("trainer", "log_every_n_steps"): "1",
    ("trainer", "enable_model_summary"): "False",
}  # defaults that the command has for its owner's


def program_help() -> str:
    """Returns what `mea-graph --help` shows.

    >>> print(program_help().splitlines()[0])
    usage: mea-graph COMMAND [OPTION VALUE ...]
    """
    lines = [
        "usage: mea-graph COMMAND [OPTION VALUE ...]",
        "",
        "Asynchronous multimodal sequences: trains and evaluates MEA.",
        "",
        "commands:",
    ]
    lines += [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    names = f"configurations (--config NAME): {', '.join(packaged_configs())}"
    lines += ["", *textwrap.wrap(names, _width(), subsequent_indent="  "), ""]
    lines += ["`mea-graph COMMAND --help` shows the options of one; `mea-graph --version` the version."]
    return "\n".join(lines)


def command_help(words: Sequence[str]) -> str:
    """Returns what `mea-graph fit --help` shows, and `validate` and `test` likewise.

    Args:
        words: The words of the command line, the subcommand first.

    Raises:
        LookupError: If sources are not there to be read.

    >>> "--model.exclusive.pooling" in command_help(["fit", "--help"])
    True
    """
    command, options = words[0], known_options(words)
    lines = [f"usage: mea-graph {command} [--config NAME|FILE] [--SECTION.OPTION VALUE ...]", ""]
    lines += [f"{COMMANDS[command].capitalize()}. In a configuration file the dots are indentation:", ""]
    lines += ["  data:", "    batch_size: 16", "", "is --data.batch_size 16.", "", "options:"]
    for name, text in SINGLE.items():
        lines += _entry(f"  --{name}", text)
    for section, inner in options.sections.items():
        lines += ["", f"{section}: {_SECTIONS[section].format(model=options.model or 'a class of your own')}"]
        for option in inner.values():
            lines += _option(section, option)
    return "\n".join(lines)


def _option(section: str, option: Option) -> Iterator[str]:
    default = _SET.get((section, option.name), option.default)
    given = f" = {default}" if default is not None else ""
    yield from _entry(f"  --{section}.{option.name}{f': {option.type}' if option.type else ''}{given}", option.meaning)


def _entry(head: str, text: str) -> list[str]:
    return [head, *textwrap.wrap(text, _width(), initial_indent=" " * 8, subsequent_indent=" " * 8)]


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, 60), 110)
