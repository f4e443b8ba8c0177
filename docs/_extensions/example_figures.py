"""Draws the figure of each function of `mea_graph.viz`, as the example in its docstring makes it."""

import doctest
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure


def example_figure(function: Callable[..., Figure]) -> Figure:
    """The first figure that the example of a function has it draw."""
    drawn: list[Figure] = []

    def recording(*args: Any, **kwargs: Any) -> Figure:
        drawn.append(function(*args, **kwargs))
        return drawn[-1]

    names: dict[str, Any] = {function.__name__: recording}
    torch.manual_seed(0)
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(function) or ""):
        exec(example.source, names)
    return drawn[0]


def draw(function: Callable[..., Figure], folder: Path) -> None:
    """Saves the example's figure under the function's name, unless it is there and newer than the function."""
    path = folder / f"{function.__name__}.svg"
    if not path.is_file() or path.stat().st_mtime < Path(inspect.getfile(function)).stat().st_mtime:
        example_figure(function).savefig(path)
