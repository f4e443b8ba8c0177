"""Figure of one attention map, [MEA] Fig. 3 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mea_graph.nn import MEAOutput
from mea_graph.viz._style import check_output, check_sample

MOST_WORDS = 40  # more of them cannot be read on an axis


def attention_map(
    output: MEAOutput,
    which: str | tuple[str, str, str],
    layer: int = -1,
    sample: int = 0,
    head: int | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    time: Mapping[str, Sequence[float] | Tensor] | None = None,
    title: str | None = None,
) -> Figure:
    """Draws one attention map of one sample, darker where more attention goes; its padding is cut away ([MEA] Fig. 3, 4).

    White means no attention, or the least attention in a map that is nearly even.

    Args:
        output: The output of a model called with `return_attention_weights=True`.
        which: A modality, for its predictive self-attention; or the arrow of a modality reinforcement unit, such as
            `("fine", "audio", "text")`: stage, source ("all" and "others" in the mixed and coarse stages), target.
        layer: Number of the layer; -1 is the last one.
        sample: Number of the sample in the batch.
        head: The head to draw; the mean of all heads if `None`.
        words: For some modalities the names of the sample's steps, written on the axis where there are at most 40.
        time: For some modalities the seconds of the sample's steps, written on the axis in place of their numbers.
        title: Text above the figure.

    Returns a figure that is not shown; save it with `figure.savefig("map.png")`.

    The map has one row for each step of the target, which attends, and one column for each step of the source, which is attended to.

    Raises:
        ValueError: If the output has no such map, layer, sample or head, or `words` or `time` are not one for each step.

    >>> import torch
    >>> from mea_graph.nn import MEA
    >>> model = MEA({"text": 5, "audio": 3}, out_channels=1, channels=8, heads=2)
    >>> x = {"text": torch.randn(1, 4, 5), "audio": torch.randn(1, 9, 3)}
    >>> output = model(x, return_attention_weights=True)
    >>> figure = attention_map(
    ...     output,
    ...     ("fine", "audio", "text"),
    ...     words={"text": ["what", "a", "fine", "film"]},
    ... )
    >>> figure.axes[0].get_xlabel()
    'audio (step)'
    """
    check_output(output)
    check_sample(output.present, sample)
    attention = _find_map(output, which, layer)[sample]  # (K, T_target, T_source)
    if head is not None and not 0 <= head < attention.size(0):
        raise ValueError(f"head: expected a number in [0, {attention.size(0)}), got {head}")
    image = (attention.mean(0) if head is None else attention[head]).detach().float().cpu()
    target, sources = _axes_of(output, which, layer)
    lengths = {m: int(output.lengths[m][sample]) for m in sources if output.lengths[m][sample] > 0}
    height = int(output.lengths[target][sample])
    parts = dict(zip(sources, image[:height].split(list(sources.values()), 1), strict=True))
    if not lengths or not height:
        raise ValueError(f"sample: expected one in which {target} attends to something, got {sample}, in which it does not")
    drawn = np.concatenate([parts[m][:, :length].numpy() for m, length in lengths.items()], 1)
    unheard = (drawn == 0).any()  # beyond a window, or too little for the type

    size = (min(2.4 + 0.28 * max(drawn.shape[1], 8), 9), min(1.4 + 0.28 * max(height, 6), 8))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axis = figure.subplots()
    # On a scale from zero, a map that is nearly even would be one black area.
    least = drawn.min() if not unheard and drawn.min() > drawn.max() / 2 else 0
    shown = axis.imshow(drawn, cmap="Greys", vmin=least, aspect="auto", interpolation="nearest")
    figure.colorbar(shown, ax=axis, label="attention", fraction=0.06)
    _label(axis, "y", {target: height}, words or {}, time or {})
    _label(axis, "x", lengths, words or {}, time or {})
    for edge in list(accumulate(lengths.values()))[:-1]:
        axis.axvline(edge - 0.5, color="#D55E00", linewidth=1.4, linestyle="--")
    if title is not None:
        figure.suptitle(title)
    return figure


def _find_map(output: MEAOutput, which: str | tuple[str, str, str], layer: int) -> Tensor:
    """The map (B, K, T_target, T_source) of a layer."""
    if isinstance(which, str):
        layers = output.predictive_attention.get(which, [])
        known: list[object] = [name for name, maps in output.predictive_attention.items() if maps]
    else:
        layers = [maps[which] for maps in output.cross_modal_attention if which in maps]
        known = list(output.cross_modal_attention[0]) if output.cross_modal_attention else []
    if not layers:
        hint = f"one of {known}" if known else "an output made with return_attention_weights=True, by a model that has such attention"
        raise ValueError(f"which: expected {hint}, got {which!r}")
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"layer: expected a number in [{-len(layers)}, {len(layers)}), got {layer}")
    return layers[layer]


def _axes_of(output: MEAOutput, which: str | tuple[str, str, str], layer: int) -> tuple[str, dict[str, int]]:
    """The target, and each source with its padded length, in the order in which the map has them."""
    if isinstance(which, str):
        return which, {which: output.predictive_attention[which][layer].size(-1)}
    _, source, target = which
    maps = output.cross_modal_attention[layer]
    padded = {arrow[2]: attention.size(2) for arrow, attention in maps.items()}  # every modality is some arrow's target
    if source == "all":
        return target, padded
    if source == "others":
        return target, {name: length for name, length in padded.items() if name != target}
    return target, {source: padded[source]}


def _label(
    axis: Axes, side: str, lengths: Mapping[str, int], words: Mapping[str, Sequence[str]], time: Mapping[str, Sequence[float] | Tensor]
) -> None:
    """Writes on one axis the words of each part where they are known, else its seconds, else its name."""
    parts = getattr(axis, f"{side}axis")
    for name, length in lengths.items():
        for field, given in (("words", words), ("time", time)):
            if name in given and len(given[name]) != length:
                raise ValueError(f"{field}: expected {length} for {name} (one a step), got {len(given[name])}")
    texts = [word for name in lengths for word in words.get(name, [])]
    if len(texts) == sum(lengths.values()) <= MOST_WORDS:
        parts.set_ticks(range(len(texts)), texts)
        axis.tick_params(axis="x" if side == "x" else "y", labelsize=8, rotation=60 if side == "x" else 0)
        parts.set_label_text(", ".join(lengths))
    elif len(lengths) == 1:
        name = next(iter(lengths))
        parts.get_major_locator().set_params(integer=True)
        parts.set_label_text(f"{name} (second)" if name in time else f"{name} (step)")
        if name in time:
            seconds = [float(t) for t in time[name]]
            parts.set_major_formatter(lambda step, _: f"{seconds[round(step)]:.4g}" if 0 <= round(step) < len(seconds) else "")
    else:
        ends = list(accumulate(lengths.values()))
        parts.set_ticks([end - length / 2 - 0.5 for end, length in zip(ends, lengths.values(), strict=True)], list(lengths))
        axis.tick_params(axis="x" if side == "x" else "y", length=0)
        parts.set_label_text("steps, by modality")
