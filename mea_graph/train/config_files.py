"""Finding the configurations that come with the package, and keeping that of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from mea_graph.command.options import LINKED
from mea_graph.configurations import packaged_configs
from mea_graph.data import DataError
from mea_graph.suggestions import did_you_mean
from mea_graph.train.whole_files import write_whole

FOLLOWERS = {"data.seed": "seed_everything", "data.sampling.batches": "training"}
FOLLOWERS |= {f"model.init_args.{name}": "the data" for name in LINKED}

NO_VALUE = "Unable to serialize instance "  # what jsonargparse dumps for an object


def find_config(name: str) -> Path:
    """Returns the file of a configuration given by bare name or by path.

    Args:
        name: A name from `packaged_configs`, or a path.

    Raises:
        DataError: If there is neither, or the file is no configuration.

    >>> find_config("mosi").name
    'mosi.yaml'
    """
    packaged = packaged_configs()
    if name in packaged:
        return packaged[name]
    if Path(name).is_file():
        read_sections(Path(name))
        return Path(name)
    raise DataError(f"config: expected a file or one of {', '.join(packaged)}, got {name!r}{did_you_mean(name, packaged)}")


def read_sections(path: Path) -> dict[str, Any]:
    """Returns what a configuration holds by section; a mistake inside a section is told where its options are read.

    Args:
        path: The file.

    Raises:
        DataError: If it is no YAML, holds an option twice, or is of another kind, such as a file of data; the error names the file and the
            line.

    >>> read_sections(packaged_configs()["events"])["data"]["batch_size"]
    32
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
        _check_given_once(yaml.compose(text, Loader=yaml.SafeLoader), path)
    except UnicodeDecodeError:
        found = b""
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise DataError(f"config: {path} is not YAML: {where}{what}") from error
    if found is not None and not isinstance(found, dict):
        got = "no text" if isinstance(found, bytes) else type(found).__name__
        raise DataError(f"config: expected sections data, model, trainer or others in {path}, got {got}")
    return found or {}


def _check_given_once(root: yaml.Node | None, path: Path) -> None:
    """Refuses an option that stands twice in a section: YAML would take the last one, and say nothing."""
    waiting: list[yaml.Node] = [] if root is None else [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an anchor, which may stand in many places
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                        where = f"in line {lines[key.value]} and in line {line}"
                        raise DataError(f"config: expected {key.value!r} once in its section of {path}, got it twice, {where}")
                    lines[key.value] = line
                waiting.append(value)


def with_config_paths(arguments: Sequence[str]) -> list[str]:
    """Returns command line arguments with every `--config NAME` replaced by the path of its file.

    Args:
        arguments: The words of the command line.

    >>> with_config_paths(["fit", "--config", "mosi"])[2].endswith("mosi.yaml")
    True
    """
    found = []
    expect_name = False
    for word in arguments:
        if expect_name:
            word = str(find_config(word))
        elif word.startswith("--config="):
            word = f"--config={find_config(word.removeprefix('--config='))}"
        expect_name = word in ("--config", "-c") and not expect_name
        found.append(word)
    return found


def check_followers(paths: Iterable[str]) -> None:
    """Refuses configurations that set what follows from something else, which the parser would put in its place without a word.

    Args:
        paths: The files of a command.

    Raises:
        DataError: If a file sets such an option; the error names it, and what it follows from.
    """
    for path in paths:
        found = read_sections(Path(path))
        for option, source in FOLLOWERS.items():
            value: Any = found
            for name in option.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                raise DataError(f"{option}: expected none in {path}, since it follows from {source}, got {value!r}")


def without_objects(options: Any) -> Any:
    """Returns options without those that the parser could only dump as a remark: defaults of a class, such as a `torch.device`.

    Args:
        options: As dumped.

    >>> without_objects({"device": "Unable to serialize instance cpu", "decay": 0.9})
    {'decay': 0.9}
    """
    if isinstance(options, dict):
        kept = {name: value for name, value in options.items() if not (isinstance(value, str) and value.startswith(NO_VALUE))}
        return {name: without_objects(value) for name, value in kept.items()}
    return [without_objects(value) for value in options] if isinstance(options, list) else options


class KeptConfiguration(L.Callback):
    """Writes the configuration of a run when training starts: a run that is refused before, such as one to be resumed, keeps its own.

    Args:
        path: The file.
        options: Gives every option as plain containers.

    >>> KeptConfiguration(Path("runs/mine/0/config.yaml"), dict).path.name
    'config.yaml'
    """

    def __init__(self, path: Path, options: Callable[[], dict[str, Any]]) -> None:
        self.path, self.options = path, options

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            write_whole(self.path, yaml.safe_dump(self.options(), sort_keys=False))
