"""Figure of how much each modality counts, [MEA] Fig. 6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mea_graph.nn import MEAOutput
from mea_graph.viz._style import COLOURS, HATCHES, check_count, check_output, check_sample

MOST_SAMPLES = 24  # more bars cannot be distinguished


def modality_weights(
    output: MEAOutput, layer: int = -1, samples: Sequence[int] | None = None, names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Draws the weight that a weighted attention layer gives to each modality, one bar a sample ([MEA] Fig. 6).

    Args:
        output: The output of a model that has weighted attention.
        layer: Number of the layer; -1 is the last one.
        samples: Numbers of at most 24 samples of the batch; the first ones if `None`.
        names: One for each sample drawn, such as its id; its number if `None`.
        title: Text above the figure.

    Returns a figure that is not shown; save it with `figure.savefig("weights.png")`.

    The weights of a sample sum to 1; a modality that it lacks has 0.

    Raises:
        ValueError: If the output has no weights or no such layer or sample, or `names` do not fit.

    >>> import torch
    >>> from mea_graph.nn import MEA
    >>> model = MEA({"text": 5, "audio": 3}, out_channels=1, channels=8, heads=2)
    >>> output = model({"text": torch.randn(3, 4, 5), "audio": torch.randn(3, 9, 3)})
    >>> len(modality_weights(output).axes[0].patches)  # three samples, two modalities
    6
    """
    check_output(output)
    layers = output.modality_weights
    if not layers:
        raise ValueError("output: expected one of a model with weighted attention, got no weights")
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"layer: expected a number in [{-len(layers)}, {len(layers)}), got {layer}")
    weights = layers[layer].detach().double().cpu().numpy()  # (B, M)
    chosen = list(range(min(len(weights), MOST_SAMPLES))) if samples is None else list(samples)
    if not 0 < len(chosen) <= MOST_SAMPLES:
        raise ValueError(f"samples: expected 1 to {MOST_SAMPLES}, got {len(chosen)}")
    for sample in chosen:
        check_sample(output.present, sample)
    labels = [str(sample) for sample in chosen] if names is None else list(names)
    if len(labels) != len(chosen):
        raise ValueError(f"names: expected {len(chosen)} (one a sample), got {len(labels)}")
    check_count(output.present, "modalities")

    figure = Figure(figsize=(5.6, 1.3 + 0.3 * len(chosen)), dpi=150, layout="constrained")
    axis = figure.subplots()
    left = np.zeros(len(chosen))
    for number, modality in enumerate(output.present):
        share = weights[chosen, number]
        style: dict[str, Any] = {"color": COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white", "linewidth": 0.8}
        bars = axis.barh(range(len(chosen)), share, left=left, height=0.76, label=modality, **style)
        texts = [f"{value:.2f}" if value >= 0.08 else "" for value in share]
        boxed = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        axis.bar_label(bars, texts, label_type="center", fontsize=8, bbox=boxed)
        for text in axis.texts:
            text.set_visible(bool(text.get_text()))
        left += share
    axis.set_yticks(range(len(chosen)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("weight of the modality")
    axis.set_ylabel("sample")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(output.present), frameon=False, handlelength=2.6, handleheight=1.2)
    if title is not None:
        figure.suptitle(title)
    return figure
