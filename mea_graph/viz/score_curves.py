"""Figure of a metric along an option or a condition."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mea_graph.viz._style import COLOURS, MARKERS, WIDTH, by_label, check_count

Curve = Mapping[float, Sequence[float]]
MOST_IN_A_ROW = 2  # panels; more would be too small on a phone
LABEL = 22  # characters in a line below one of two panels, and of a name in a legend with two columns
LEAST_REACH = 0.01  # of the vertical axis, so that the noise of one seed does not look like a slope


def score_curves(panels: Mapping[str, Mapping[str, Curve]], metric: str, title: str | None = None) -> Figure:
    """Draws a panel for each option or condition, with a curve for each model.

    A curve joins means over seeds; its bars are one standard deviation. More than two panels stand in several rows.

    Args:
        panels: Label of the horizontal axis -> model -> place on that axis -> one value for each seed, at least one.
        metric: Label of the vertical axis, common to all panels.
        title: Text above the figure.

    Returns a figure that is not shown; save it with `figure.savefig("curves.png")`.

    Raises:
        ValueError: If there is no panel, a place without values or one that is not finite, or more models than can be distinguished.

    >>> figure = score_curves(
    ...     {"share without audio": {"MEA": {0.0: [0.9, 0.92], 1.0: [0.5, 0.52]}}},
    ...     "accuracy",
    ... )
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [0.0, 1.0]
    """
    if not panels:
        raise ValueError("panels: expected at least one, got none")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    check_count(names, "panels")
    rows = -(-len(panels) // MOST_IN_A_ROW)
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(WIDTH, 0.8 + 2.4 * rows if columns > 1 else 3.7), dpi=200, layout=ConstrainedLayoutEngine(wspace=0.05))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    axes, spare = grid.ravel()[: len(panels)], grid.ravel()[len(panels) :]
    for axis in spare:
        axis.remove()
    for axis, (label, curves) in zip(axes, panels.items(), strict=True):
        places = sorted({place for curve in curves.values() for place in curve})
        step = min(np.diff(places), default=1.0)
        for name, curve in curves.items():
            number = names.index(name)
            x = np.array(sorted(curve), dtype=float)
            values = [np.asarray(curve[place], dtype=float) for place in sorted(curve)]
            if any(not len(found) or not np.isfinite(found).all() for found in values):
                raise ValueError(f"{name}: expected finite values at every place, got {[found.tolist() for found in values]}")
            spread = [found.std(ddof=1) if len(found) > 1 else 0.0 for found in values]
            axis.errorbar(
                x + (number - (len(names) - 1) / 2) * 0.02 * step * (len(names) > 1),  # so that bars do not hide each other
                [found.mean() for found in values],
                yerr=spread,
                label=name,
                color=COLOURS[number],
                marker=MARKERS[number],
                markerfacecolor="white" if number % 2 else COLOURS[number],
                linestyle="--" if number % 2 else "-",
                linewidth=2.0 if number == 0 else 1.3,
                markersize=5,
                capsize=2,
            )
        axis.set_xticks(places, [f"{place:g}" for place in places])
        axis.set_xlabel(textwrap.fill(label, LABEL) if columns > 1 else label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.5, color="0.88")
    low, high = axes[0].get_ylim()
    if high - low < 2 * LEAST_REACH:
        axes[0].set_ylim((low + high) / 2 - LEAST_REACH, (low + high) / 2 + LEAST_REACH)
    for axis in grid[:, 0]:
        axis.set_ylabel(metric)
    handles = by_label(axes)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=1 if max(map(len, handles)) > LABEL else 2, frameon=False
    )
    if title is not None:
        figure.suptitle(title)
    return figure
