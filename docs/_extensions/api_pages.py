"""Writes the pages of the reference, one for each public name, into `docs/api` before Sphinx reads them."""

import importlib
import inspect
import re
from pathlib import Path

from api_groups import COSTS, GROUPS, PLACES
from docstrings import PARTS, with_links
from example_figures import draw
from sphinx.application import Sphinx

_CITATION = re.compile(r" \((?:\[MEA\]|R\d)[^)]*\)")
READERS = ("npz", "mult", "mmsa", "misa", "csd")


def _heading(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _label(part: str) -> str:
    return "In the model" if part == "nn" else "Place"


def _object(part: str, name: str) -> str:
    package = importlib.import_module(f"mea_graph.{part}")
    value, full = getattr(package, name), f"mea_graph.{part}.{name}"
    page = f"{_heading(name)}\n.. code-block:: python\n\n   from mea_graph.{part} import {name}\n\n.. currentmodule:: mea_graph.{part}\n\n"
    if f"{part}.{name}" in PLACES:
        page += f"*{_label(part)}:* {with_links(PLACES[f'{part}.{name}'], full)}"
        page += " :doc:`Concepts </concepts>` draws how the parts join.\n\n" if part == "nn" else "\n\n"
    if f"{part}.{name}" in COSTS:
        page += f"*Cost:* {with_links(COSTS[f'{part}.{name}'], full)}\n\n"
    if inspect.isclass(value):
        fields = ", ".join(getattr(value, "_fields", ()))  # of a NamedTuple: the docstring has them
        bases = "" if value.__bases__ == (object,) else "   :show-inheritance:\n"
        return f"{page}.. autoclass:: {name}\n   :members:\n{bases}   :exclude-members: {fields}\n"
    if inspect.isroutine(value):
        figure = f"\nWhat the example draws:\n\n.. image:: {name}.svg\n   :alt: {name} of the example\n" if part == "viz" else ""
        return f"{page}.. autofunction:: {name}\n{figure}"
    return f"{page}.. autodata:: {full}\n   :no-value:\n"


def _summary(value: object) -> str:
    """First paragraph of a docstring, without equation numbers."""
    first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return with_links(_CITATION.sub("", first))


def groups(part: str) -> dict[str, list[str]]:
    """The public names of a package as a reader looks for them; one that no group has is an error."""
    public = importlib.import_module(f"mea_graph.{part}").__all__
    named = [name for names in GROUPS[part].values() for name in names]
    if sorted(named) != sorted(public):
        wrong = sorted(set(named) ^ set(public)) or sorted(name for name in set(named) if named.count(name) > 1)
        raise ValueError(
            f"GROUPS of docs/_extensions/api_groups.py: expected each public name of mea_graph.{part} once, got it wrong for {wrong}"
        )
    return GROUPS[part]


def _package(part: str) -> str:
    package = importlib.import_module(f"mea_graph.{part}")
    page = [_heading(f"mea_graph.{part}"), f".. py:module:: mea_graph.{part}", "", _summary(package), ""]
    for title, names in groups(part).items():
        page += [title, "-" * len(title), "", ".. list-table::", "   :widths: 30 70", "   :class: summary", ""]
        for name in names:
            value = getattr(package, name)
            said = _summary(value if callable(value) else type(value))
            place = PLACES.get(f"{part}.{name}")
            page += [
                f"   * - :py:obj:`~mea_graph.{part}.{name}`",
                f"     - {said}" + (f" *{_label(part)}:* {with_links(place)}" if place else ""),
            ]
        page.append("")
    order = [name for names in groups(part).values() for name in names]
    page += [".. toctree::", "   :hidden:", "", *(f"   mea_graph.{part}.{name}" for name in order)]
    if part == "data":
        page.append("   mea_graph.readers")
    return "\n".join(page) + "\n"


def _readers() -> str:
    page = [_heading("mea_graph.readers"), ".. py:module:: mea_graph.readers", ""]
    opened = ":py:obj:`mea_graph.data.open_dataset`"
    page += [f"*Place:* behind {opened}, which finds out the format of a file and calls one of these with its own options.", ""]
    return "\n".join(page + [f".. autofunction:: mea_graph.readers.{name}.read_{name}\n" for name in READERS])


def pages() -> dict[str, str]:
    """Contents of every page by file name."""
    out = {"mea_graph.readers.rst": _readers()}
    for part in PARTS:
        out[f"mea_graph.{part}.rst"] = _package(part)
        for name in importlib.import_module(f"mea_graph.{part}").__all__:
            out[f"mea_graph.{part}.{name}.rst"] = _object(part, name)
    return out


def _write(app: Sphinx) -> None:
    folder, wanted = Path(app.srcdir) / "api", pages()
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.rst"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # an unchanged page is not read again
            path.write_text(text, encoding="utf-8")
    viz = importlib.import_module("mea_graph.viz")
    for name in viz.__all__:
        draw(getattr(viz, name), folder)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
