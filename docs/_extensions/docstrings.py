"""Makes reStructuredText of the docstrings: links `Name`s in single backticks, adds the fields of NamedTuples and borrowed arguments."""

import functools
import importlib
import inspect
import re
from typing import Any

from sphinx.application import Sphinx

PARTS = ("nn", "ops", "data", "train", "baselines", "viz")
_TICKED = re.compile(r"(?P<other>``.+?``|:[\w:]+:`[^`]*`)|`(?P<name>[^`]+)`")  # what is reStructuredText already comes first
_FIELD = re.compile(r"    (?P<name>\w+): (?P<type>.+?)(?:  # (?P<meaning>.+))?$")


@functools.cache
def public_names() -> dict[str, str]:
    """Full name of every public name, and of the packages."""
    packages = [*(f"mea_graph.{part}" for part in PARTS), "mea_graph.readers"]
    names = dict(zip(packages, packages, strict=True))
    for part in PARTS:
        for name in importlib.import_module(f"mea_graph.{part}").__all__:
            names[f"mea_graph.{part}.{name}"] = f"mea_graph.{part}.{name}"
            names.setdefault(name, f"mea_graph.{part}.{name}")  # one of `viz` may have the name of what it draws
    return names


def with_links(text: str, own: str = "") -> str:
    """`Name` becomes a link where it is public (and not `own`, the page itself), and code where it is not."""
    names = public_names()

    def replace(found: re.Match[str]) -> str:
        if found["other"]:
            return found["other"]
        target = names.get(found["name"])
        code = f"``{found['name']}``" if target is None or target == own else f":py:obj:`{found['name']} <{target}>`"
        return code + "\\ " * text[found.end() :][:1].isalpha()  # reStructuredText wants an end before the s of `Name`s

    return _TICKED.sub(replace, text)


def _fields(value: type) -> list[str]:
    """The fields of a NamedTuple with the comments that explain them."""
    lines = inspect.getsource(value).splitlines()
    found = [match for line in lines if (match := _FIELD.match(line)) and match["name"] in value._fields]  # type: ignore[attr-defined]
    return ["", "Fields:", *(f"    - **{f['name']}** (``{f['type']}``)" + (f": {f['meaning']}" if f["meaning"] else "") for f in found)]


def _process(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Runs before napoleon, which turns the sections into reStructuredText."""
    if inspect.isclass(value) and issubclass(value, tuple) and hasattr(value, "_fields"):
        example = next((i for i, line in enumerate(lines) if line.startswith((">>>", "Example"))), len(lines))
        lines[example:example] = [*_fields(value), ""]
    kwargs = next((i for i, line in enumerate(lines) if line.strip().startswith("kwargs:")), None)
    borrowed = inspect.getdoc(value.__init__) if inspect.isclass(value) else None  # type: ignore[misc]
    if kwargs is not None and borrowed and "\nArgs:\n" in borrowed:
        lines[kwargs : kwargs + 1] = [line for line in borrowed.splitlines() if line.startswith("    ")]
    own, example = ".".join(name.split(".")[:3]), False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith((">>>", "...")) or (example and bool(line.strip()))
        if not example:
            lines[i] = with_links(line, own)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
