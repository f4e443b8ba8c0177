"""Figure of a metric over two options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

Pair = tuple[float, float]
LEAST_REACH = 0.005  # of the shades, so that differences below the printed digits do not become black and white


def score_map(
    scores: Mapping[Pair, Sequence[float]], labels: tuple[str, str], metric: str, lower_is_better: bool = False, title: str | None = None
) -> Figure:
    """Draws the mean of a metric for every pair of two options' values, darker where it is better.

    Args:
        scores: (value of the first option, value of the second) -> one value for each seed.
        labels: Names of the two options; the first one runs downwards.
        metric: Label of the scale.
        lower_is_better: Whether small values are the dark ones.
        title: Text above the figure.

    Returns a figure that is not shown; save it with `figure.savefig("map.png")`.

    Pairs that are not given stay white.

    Raises:
        ValueError: If there is no pair, or a value is not finite.

    >>> figure = score_map(
    ...     {(0.01, 0.1): [0.5], (0.02, 0.1): [0.6]}, ("alpha", "beta"), "R2"
    ... )
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['0.500', '0.600']
    """
    if not scores:
        raise ValueError("scores: expected at least one pair, got none")
    rows, columns = (sorted({pair[side] for pair in scores}) for side in (0, 1))
    image = np.full((len(rows), len(columns)), np.nan)
    for (row, column), values in scores.items():
        if not len(values) or not np.isfinite(np.asarray(values, dtype=float)).all():
            raise ValueError(f"{(row, column)}: expected finite values, one a seed, got {list(values)}")
        image[rows.index(row), columns.index(column)] = np.mean(values)
    figure = Figure(figsize=(2.4 + 0.8 * len(columns), 1.5 + 0.6 * len(rows)), dpi=150, layout="constrained")
    axis = figure.subplots()
    middle = (np.nanmin(image) + np.nanmax(image)) / 2
    reach = max((np.nanmax(image) - np.nanmin(image)) / 2, LEAST_REACH)
    shades = {"cmap": "Greys_r" if lower_is_better else "Greys", "vmin": middle - reach, "vmax": middle + reach}
    drawn = axis.imshow(image, aspect="auto", **shades)
    figure.colorbar(drawn, ax=axis, label=metric, fraction=0.08)
    for (row, column), value in np.ndenumerate(image):
        if np.isfinite(value):
            red, green, blue, _ = drawn.cmap(drawn.norm(value))
            colour = "white" if red + green + blue < 1.5 else "black"
            axis.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_yticks(range(len(rows)), [f"{row:g}" for row in rows])
    axis.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    axis.set_ylabel(labels[0])
    axis.set_xlabel(labels[1])
    if title is not None:
        figure.suptitle(title)
    return figure
