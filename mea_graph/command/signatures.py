"""The options of a class as its source says them, read without importing it: importing Lightning alone takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """An argument of a class: its name, type and default as they are written, and what its docstring says of it.

    Args:
        name: The name of the argument.
        type: The annotation; empty where there is none.
        default: None where the argument must be given.
        meaning: One line.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def class_options(name: str, file: Path | None = None) -> dict[str, Option]:
    """Returns the options of a class by name, those that it hands on to its parts or its base included.

    Args:
        name: The name of a class of the package, or of one in `file`.
        file: A Python file outside the package.

    Raises:
        LookupError: If there is no such class.

    >>> options = class_options("MEAModule")
    >>> options["alpha"].default, options["learning_rate"].type
    ('0.02', 'float')
    """
    found = _class(name, file)
    init = next((part for part in found.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    docs = _meanings(found) | (_meanings(init) if init else {})
    if init is None:
        fields = [part for part in found.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
        if fields:  # a dataclass
            names = [(part.target.id, part.annotation, part.value) for part in fields if isinstance(part.target, ast.Name)]
            return {n: Option(n, _written(kind) or "", _written(value), docs.get(n, "")) for n, kind, value in names}
        return _of_bases(found)
    given = init.args
    defaults: list[ast.expr | None] = [*[None] * (len(given.args) - len(given.defaults)), *given.defaults]
    own = zip(given.args[1:], defaults[1:], strict=True)  # without self
    pairs = [*own, *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    options = {a.arg: Option(a.arg, _written(a.annotation) or "", _written(value), docs.get(a.arg, "")) for a, value in pairs}
    if given.kwarg is None:
        return options
    handed = next((d for d in init.decorator_list if isinstance(d, ast.Call) and ast.unparse(d.func) == "takes_arguments_of"), None)
    if handed is None:
        return options | {name: option for name, option in _of_bases(found).items() if name not in options}
    skip = next((ast.literal_eval(word.value) for word in handed.keywords if word.arg == "skip"), ())
    unset = ast.literal_eval(_assigned("train/mea_module.py", "BY_FORM")) if any(word.arg == "unset" for word in handed.keywords) else ()
    for component in handed.args:
        for name, option in class_options(ast.unparse(component)).items():
            if name not in skip:
                if name in unset:
                    option = replace(option, default="None")
                options.setdefault(name, option)
    return options


def lightning_file(path: str) -> Path:
    """Returns a file of the Lightning that is installed.

    Args:
        path: Below its folder.

    Raises:
        LookupError: If Lightning is not installed.
    """
    try:
        spec = importlib.util.find_spec("lightning")
    except ValueError:
        spec = None
    if spec is None or spec.origin is None:
        raise LookupError("lightning is not installed")
    return Path(spec.origin).parent / path


def _of_bases(found: ast.ClassDef) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for base in found.bases:
        name = ast.unparse(base)
        if name == "callbacks.EarlyStopping":  # the one base outside the package that has options
            options |= class_options("EarlyStopping", lightning_file("pytorch/callbacks/early_stopping.py"))
        elif name in _classes():
            options |= {n: option for n, option in class_options(name).items() if n != "network"}
    return options


def part_options() -> dict[str, Option]:
    """Returns the options of the parts of MEA, such as `exclusive.pooling`, with their recommended values.

    >>> part_options()["exclusive.pooling"].default
    "'gru'"
    """
    options = {}
    parts = _assigned("nn/_parts.py", "PARTS")
    assert isinstance(parts, ast.Dict)
    for key, value in zip(parts.keys, parts.values, strict=True):
        part = ast.literal_eval(key) if key is not None else ""
        for name, option in class_options(ast.unparse(value)).items():
            if option.default is not None and name != "heads":  # others are MEA's own, or follow from it
                recommended = _recommended()[part]
                default = repr(recommended[name]) if name in recommended else option.default
                options[f"{part}.{name}"] = replace(option, name=f"{part}.{name}", default=default)
    return options


def model_classes() -> list[str]:
    """Returns the names of the package's classes that `--model` takes.

    Raises:
        LookupError: If sources are not there to be read.

    >>> "LateFusionGRUModule" in model_classes(), "TaskModule" in model_classes()
    (True, False)
    """
    bases = {name: [ast.unparse(base) for base in _class(name, None).bases] for name in _classes() if name.endswith("Module")}
    trained = {"TaskModule"}
    while more := {name for name in bases.keys() - trained if trained.intersection(bases[name])}:
        trained |= more
    return sorted(trained - {base for of_class in bases.values() for base in of_class})


def _written(part: ast.expr | None) -> str | None:
    """As it stands in the source; the recommended value in place of its name."""
    if isinstance(part, ast.Subscript) and ast.unparse(part.value) == "RECOMMENDED":
        return repr(_recommended()[ast.literal_eval(part.slice)])
    return None if part is None else ast.unparse(part)


@cache
def _recommended() -> dict[str, Any]:
    return ast.literal_eval(_assigned("nn/model_options.py", "RECOMMENDED"))


def _assigned(file: str, name: str) -> ast.expr:
    """What a file of the package assigns to a name that has a type."""
    found = [n for n in _tree(PACKAGE / file).body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == name]
    assert found, f"{file}: expected {name}"  # a mistake of ours, unlike sources that are not there
    assert found[0].value is not None
    return found[0].value


@cache
def _classes() -> dict[str, Path]:
    """Where each class of the package is written."""
    return {name: path for path in sorted(PACKAGE.rglob("*.py")) for name in _CLASS.findall(path.read_text(encoding="utf-8"))}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _class(name: str, file: Path | None) -> ast.ClassDef:
    path = file or _classes().get(name)
    if path is None or not path.is_file():
        raise LookupError(f"there is no class {name}")
    for part in _tree(path).body:
        if isinstance(part, ast.ClassDef) and part.name == name:
            return part
    raise LookupError(f"there is no class {name} in {path}")


def _meanings(part: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """What the docstring's section `Args` says of each argument, in one line each."""
    text = ast.get_docstring(part) or ""
    _, _, section = text.partition("Args:\n")
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        entry = re.match(r"    (\*{0,2}\w+(?:, \w+)*): *(.*)", line)
        if entry:
            names = entry[1].split(", ")
            meanings |= dict.fromkeys(names, entry[2])
        elif not line.strip():
            names = names if part.name == "__init__" else []
        elif line.startswith("     "):
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return meanings
