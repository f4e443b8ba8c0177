"""Figure of how training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from mea_graph.viz._style import COLOURS, MARKERS, by_label, check_count


def learning_curves(panels: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]], title: str | None = None) -> Figure:
    """Draws one panel per quantity and in it one curve per model over epochs, readable in black and white.

    Args:
        panels: Quantity (the axis label) -> model -> one value per epoch, counted from 1; NaN leaves a gap.
        title: Text above the figure.

    Returns a figure that is not shown; save it with `figure.savefig("curves.png")`.

    Raises:
        TypeError: If the panels or their curves are no dicts.
        ValueError: If there is no panel, a curve is not one value per epoch, or a panel has more curves than can be distinguished.

    >>> figure = learning_curves(
    ...     {"accuracy": {"MEA": [0.5, 0.8, 0.9], "GRU": [0.5, 0.6, 0.7]}}
    ... )
    >>> len(figure.axes)
    1
    """
    for given in (panels, *(panels.values() if isinstance(panels, Mapping) else ())):
        if not isinstance(given, Mapping):
            raise TypeError(f"panels: expected a dict of quantities, each a dict of curves by model, got {type(given).__name__}")
    if not panels:
        raise ValueError("panels: expected at least one quantity, got none")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    check_count(names, "panels")
    figure = Figure(figsize=(4.6 * len(panels), 3.6), dpi=150, layout=ConstrainedLayoutEngine(wspace=0.06))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (quantity, curves) in zip(axes, panels.items(), strict=True):
        for name, values in curves.items():
            _draw(axis, name, names.index(name), np.asarray(values, dtype=float))
        axis.set_xlabel("epoch")
        axis.set_xlim(left=0.5)
        axis.set_ylabel(quantity)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.5, color="0.88")
    handles = by_label(axes)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3 * len(panels)), frameon=False)
    if title is not None:
        figure.suptitle(title)
    return figure


def _draw(axis, name: str, number: int, values: np.ndarray) -> None:
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name}: expected one value per epoch, got shape {values.shape}")
    every = max(1, len(values) // 8)
    axis.plot(
        np.arange(1, len(values) + 1),
        values,
        label=name,
        color=COLOURS[number],
        marker=MARKERS[number],
        markersize=5,
        markevery=(number * every // len(COLOURS), every),
        markerfacecolor="white" if number % 2 else COLOURS[number],
        linewidth=2.2 if number == 0 else 1.4,
        zorder=3 if number == 0 else 2,
    )
