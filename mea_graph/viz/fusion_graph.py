"""Figure of the two fusion graphs of one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from mea_graph.nn import MEAOutput
from mea_graph.viz._style import check_output, check_sample

SHAPES = {"exclusive": "s", "agnostic": "o"}
CURVE = 0.18  # how far an arrow bends, so that the one back does not lie on it


def fusion_graph(output: MEAOutput, sample: int = 0, title: str | None = None) -> Figure:
    """Draws the fusion graphs of one sample with the transfer coefficients on their edges ([MEA] Eq. 17-19).

    One graph for each space: a node for each modality that the sample has, an arrow from each node to those that hear it. The
    coefficient stands beside the arrow, which is thicker where it is larger; those of the arrows into one node sum to 1.

    Args:
        output: The output of a model called with `return_attention_weights=True`; without, the arrows have no numbers.
        sample: Number of the sample in the batch.
        title: Text above the figure.

    Returns a figure that is not shown; save it with `figure.savefig("graph.png")`.

    One panel for each of the spaces, exclusive and agnostic, that the model has.

    Raises:
        ValueError: If there is no such sample, or it has no modality at all.

    >>> import torch
    >>> from mea_graph.nn import MEA
    >>> model = MEA(
    ...     {"text": 5, "audio": 3, "vision": 4}, out_channels=1, channels=8, heads=2
    ... )
    >>> x = {
    ...     "text": torch.randn(1, 4, 5),
    ...     "audio": torch.randn(1, 9, 3),
    ...     "vision": torch.randn(1, 7, 4),
    ... }
    >>> figure = fusion_graph(model(x, return_attention_weights=True))
    >>> [axis.get_title() for axis in figure.axes], len(figure.axes[0].patches)
    (['exclusive', 'agnostic'], 6)
    """
    check_output(output)
    check_sample(output.present, sample)
    names = [modality for modality, there in output.present.items() if there[sample]]
    if not names:
        raise ValueError(f"sample: expected one with a modality, got {sample}, which has none")
    spaces = [space for space in ("exclusive", "agnostic") if getattr(output, space) is not None]
    angle = math.pi / 2 - 2 * math.pi * np.arange(len(names)) / len(names)
    place = dict(zip(names, np.stack([np.cos(angle), np.sin(angle)], 1), strict=True))
    figure = Figure(figsize=(4.2 * len(spaces), 4.2), dpi=150, layout="constrained")
    for axis, space in zip(figure.subplots(1, len(spaces), squeeze=False)[0], spaces, strict=True):
        for (source, target), weight in _edges(output, space, sample).items():
            _arrow(axis, place, source, target, weight, gap=33 if space == "exclusive" else 26)
        for name, (x, y) in place.items():
            axis.plot(x, y, SHAPES[space], markersize=46, markerfacecolor="white", markeredgecolor="black", markeredgewidth=1.6, zorder=3)
            axis.text(x, y, name, ha="center", va="center", fontsize=9, zorder=4)
        axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", title=space)
        axis.axis("off")
    if title is not None:
        figure.suptitle(title)
    return figure


def _edges(output: MEAOutput, space: str, sample: int) -> dict[tuple[str, str], float | None]:
    """Source and target modality of the sample's edges, with the transfer coefficient (the mean over heads) where it is known."""
    found = {}
    for edge_type in output.graph.edge_types:
        source, _, target = edge_type
        if not source.endswith(f"_{space}"):
            continue
        mine = output.graph[target].sample[output.graph[edge_type].edge_index[1]] == sample
        mine &= output.graph[edge_type].get("present", True)
        if bool(mine.any()):
            weight = output.transfer[edge_type][mine].mean().item() if edge_type in output.transfer else None
            found[source.removesuffix(f"_{space}"), target.removesuffix(f"_{space}")] = weight
    return found


def _arrow(axis: Axes, place: Mapping[str, np.ndarray], source: str, target: str, weight: float | None, gap: float) -> None:
    """An arrow that bends to its right, so that there and back are two, and keeps a gap to both nodes' centres, in points.

    A self loop stands outside the ring.
    """
    thickness = 1.5 if weight is None else 0.6 + 3.4 * weight
    begin, end = place[source], place[target]
    if source == target:
        side = np.array([-begin[1], begin[0]])
        begin, end, bend, gap = begin * 1.15 + 0.22 * side, end * 1.15 - 0.22 * side, -1.5, 0
        middle = place[source] * 1.47
    else:
        bend = CURVE
        across = end - begin
        middle = begin + 0.36 * across + bend * 0.46 * np.array([across[1], -across[0]])
    arrow = FancyArrowPatch(
        tuple(begin),
        tuple(end),
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>,head_length=0.45,head_width=0.22",
        mutation_scale=14,
        shrinkA=gap,
        shrinkB=gap,
        linewidth=thickness,
        color="0.25",
    )
    axis.add_patch(arrow)
    if weight is not None:
        boxed = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
        axis.text(middle[0], middle[1], f"{weight:.2f}", fontsize=8, ha="center", va="center", bbox=boxed, zorder=5)
