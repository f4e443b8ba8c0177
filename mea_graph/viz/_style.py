"""What all figures share: colours, markers and hatches that can be distinguished by everybody and in print."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from torch import Tensor

from mea_graph.nn import MEAOutput

# Okabe and Ito's colours, told apart by colour-blind readers; markers, hatches and grey levels tell them apart in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo")
WIDTH = 4.6  # inches: on a phone, which shows a figure 360 pixels wide, letters of 10 points are 11 pixels high


def check_output(output: Any) -> None:
    """Refuses what is no output of a model."""
    if not isinstance(output, MEAOutput):
        remedy = "a model returns it, and `attention` of Predictor.predict(..., attention=True) is a list of one for each sample"
        raise TypeError(f"output: expected a MEAOutput, got {type(output).__name__}; {remedy}")


def check_sample(present: Mapping[str, Tensor], sample: int) -> None:
    """Refuses a sample that the batch does not have."""
    size = len(next(iter(present.values())))
    if not 0 <= sample < size:
        raise ValueError(f"sample: expected a number in [0, {size}), got {sample}")


def check_count(names: Collection[str], what: str) -> None:
    """Refuses more things than can be distinguished."""
    if len(names) > len(COLOURS):
        raise ValueError(f"{what}: expected at most {len(COLOURS)} that can be distinguished, got {len(names)}: {', '.join(names)}")


def by_label(axes: Iterable[Axes]) -> dict[str, Artist]:
    """What a legend common to several panels shows: each label once."""
    return {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
