"""What the parser says of a class for an option of the trainer, in one line that names the option, what was expected and what came."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Sequence

from mea_graph.suggestions import did_you_mean

_OWN = "or a class of your own as my_file."
_EXPECTED = {
    "callbacks": f"the class of a callback, such as LearningRateMonitor, {_OWN}MyCallback",
    "logger": "a class with its options",
    "plugins": f"the class of a plugin, such as AsyncCheckpointIO, {_OWN}MyPlugin",
    "strategy": f"the name of a strategy, such as ddp, or a class, such as DDPStrategy, {_OWN}MyStrategy",
}
_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a string", "list": "a list"}
_HEAD = re.compile(rf"trainer\.({'|'.join(_EXPECTED)}): ")
_BASE = "lightning.Callback"  # what the parser takes options for that stand alone
_PROBLEM = re.compile(r"Problem with given class_path '([\w.]+)': ([^;]+)")
_OPTION = re.compile(r"Option '(\S+)' is not accepted")
_VALUE = re.compile(r"([\w.]+): Expected a <class '(\w+)'>\. Got value: (.+)")
_MISSING = re.compile(r"the following arguments are required: (.+)")
_SEVERAL = re.compile(r"Multiple subclasses with name (\w+)\. Give the full class path to avoid ambiguity: ([\w., ]+\w)")
_NO_PATH = re.compile(r"Expected a dot import path string: (\S+?)(?:;|$)")
_NO_SUBCLASS = re.compile(r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+)")
_NO_CLASS = re.compile(r"Not a valid subclass of \w+\. Got value: (.+?)(?:;|$)")


def of_a_trainer_class(message: str, given: Callable[[str], Sequence[str]]) -> str | None:
    """Returns the parser's message about a callback, logger, plugin or strategy in plain words; None of any other message.

    Args:
        message: One line.
        given: Returns the values that the command gives an option.

    >>> of_a_trainer_class(
    ...     "trainer.callbacks: Expected a <class 'list'>; Expected a dot import path string: EMAWeightAverging",
    ...     lambda option: [],
    ... )  # doctest: +ELLIPSIS
    "trainer.callbacks: expected the class ... got 'EMAWeightAverging' (did you mean 'EMAWeightAveraging'?)"
    """
    if (head := _HEAD.match(message)) is None:
        return None
    kind, text = head[1], message[head.end() :]
    expected = f"trainer.{kind}: expected {_EXPECTED[kind]}"
    problems = list(_PROBLEM.finditer(text))
    for problem in sorted(problems, key=lambda found: found[1] == _BASE):  # the class that was meant comes first
        return _of_its_options(kind, expected, problem[1], problem[2].strip())
    if found := _SEVERAL.search(text):
        return f"trainer.{kind}: expected the whole name of a class, one of {found[2]}, got {found[1]!r}"
    if found := _NO_PATH.search(text):
        if kind == "logger":
            return f"{expected}, got {found[1]!r}; --logger takes a word: csv, tensorboard or wandb"
        return f"{expected}, got {found[1]!r}{did_you_mean(found[1], _names(kind))}"
    if found := _NO_SUBCLASS.search(text):
        name = found[1] or next(reversed([*given(f"trainer.{kind}"), *given(f"trainer.{kind}+")]), None)
        what = "some other class" if kind == "plugins" else f"no {found[2]}"
        return f"{expected}, got " + (f"{what}" if name is None else f"{name!r}, which is {what}")
    if found := _NO_CLASS.search(text):
        return f"{expected}, got {found[1]}"
    return None


def _of_its_options(kind: str, expected: str, path: str, why: str) -> str:
    name = path.rpartition(".")[2]
    if found := _OPTION.match(why):
        if path == _BASE:
            return f"{expected}, and then its options; got the option {found[1]!r} alone"
        return f"trainer.{kind}: {name} has no option {found[1]!r}{did_you_mean(found[1], _options(path))}"
    if found := _VALUE.match(why):
        return f"trainer.{kind}: {name}.{found[1]}: expected {_KINDS.get(found[2], found[2])}, got {found[3]!r}"
    if found := _MISSING.match(why):
        return f"trainer.{kind}: {name} needs a value for {found[1]}"
    if why.startswith("No module named") or " has no attribute " in why:
        return f"{expected}, got {path!r} ({why})"
    return f"trainer.{kind}: {name}: {why}"


def _names(kind: str) -> Sequence[str]:
    """The classes of Lightning for an option."""
    module = {"plugins": "lightning.pytorch.plugins", "strategy": "lightning.pytorch.strategies"}.get(kind, "lightning.pytorch.callbacks")
    try:
        return list(importlib.import_module(module).__all__)
    except ImportError:
        return []


def _options(path: str) -> Sequence[str]:
    """The options of a class; none where it cannot be found or read."""
    try:
        return [name for name in inspect.signature(pkgutil.resolve_name(path)).parameters if name != "self"]
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
