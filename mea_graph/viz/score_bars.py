"""Figure of one metric of several models over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mea_graph.viz._style import COLOURS, WIDTH

LABEL = 20  # characters in a line of a label


def score_bars(scores: Mapping[str, Sequence[float]], metric: str, reference: str | None = None, title: str | None = None) -> Figure:
    """Draws the mean of a metric for each model, its standard deviation, and every seed as a dot.

    Args:
        scores: Model -> one value for each seed, at least one.
        metric: The label of the axis.
        reference: The model to set off; a line marks its mean.
        title: Text above the figure.

    Returns a figure that is not shown; save it with `figure.savefig("scores.png")`.

    Raises:
        ValueError: If there is no model, a model has no value, or one is not finite.

    >>> figure = score_bars(
    ...     {"MEA": [0.58, 0.6], "GRU": [0.26, 0.27]}, "R2", reference="MEA"
    ... )
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['MEA', 'GRU']
    """
    if not scores:
        raise ValueError("scores: expected at least one model, got none")
    values = {name: np.asarray(found, dtype=float) for name, found in scores.items()}
    for name, found in values.items():
        if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
            raise ValueError(f"{name}: expected finite values, one a seed, got {found.tolist()}")
    labels = ["\n".join(textwrap.wrap(name, LABEL, break_long_words=False)) or name for name in values]
    lines = max(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(WIDTH, 0.9 + max(0.36, 0.18 * lines) * len(values)), dpi=200, layout="constrained")
    axis = figure.subplots()
    for place, (name, found) in enumerate(values.items()):
        ours = name == reference
        spread = found.std(ddof=1) if len(found) > 1 else 0.0
        axis.barh(place, found.mean(), height=0.68, color=COLOURS[0] if ours else "0.78", hatch="///" if ours else "", edgecolor="white")
        axis.errorbar(found.mean(), place, xerr=spread, color="black", capsize=3, linewidth=1.2)
        axis.plot(found, np.full(len(found), place), "o", markersize=4, markerfacecolor="white", markeredgecolor="black", zorder=3)
    if reference in values:
        axis.axvline(values[reference].mean(), color="black", linewidth=0.9, linestyle=":")
    axis.set_yticks(range(len(values)), labels)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.set_xlabel(metric)
    low, high = (bound(np.concatenate(list(values.values()))) for bound in (np.min, np.max))
    if low > 0.5 * high > 0:  # bars from zero would show no difference
        left, right = low - 0.35 * (high - low) - min(0.01, 0.02 * low), axis.dataLim.x1
        axis.set_xlim(left, right + 0.05 * (right - left))
        axis.set_xlabel(f"{metric}\n(the axis does not begin at 0)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", linewidth=0.5, color="0.88")
    axis.set_axisbelow(True)
    if title is not None:
        figure.suptitle(title)
    return figure
