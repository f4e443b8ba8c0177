"""Figure of the exclusive and the agnostic representations, [MEA] Fig. 5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mea_graph.nn import MEAOutput
from mea_graph.viz._style import COLOURS, MARKERS, WIDTH, by_label, check_count, check_output

LETTERS = 9  # points, of the legend
Outputs = MEAOutput | Sequence[MEAOutput]


def embedding_scatter(
    outputs: Outputs | Mapping[str, Outputs],
    method: Literal["pca", "tsne"] = "pca",
    samples: int = 200,
    seed: int = 0,
) -> Figure:
    """Draws exclusive representations (filled) and agnostic ones (hollow) of every modality in the plane ([MEA] Fig. 5).

    Each panel is a plane of its own: the two first principal components of all its representations, or t-SNE.

    Args:
        outputs: The output for one batch, or a list of outputs; or a dict of these by title, for a panel each, such as a model with and
            without the losses on its two spaces.
        method: `pca`, which keeps large distances; or `tsne`, which keeps only neighbourhoods and may show clusters that `pca` hides.
        samples: How many samples to draw at most, evenly spaced, >= 1.
        seed: The seed of t-SNE.

    Returns a figure that is not shown; save it with `figure.savefig("scatter.png")`.

    A modality that a sample lacks is not drawn. More than two panels stand in several rows.

    Raises:
        ValueError: If there is no output, an option is not as above, or an output has fewer than three representations.

    >>> import torch
    >>> from mea_graph.nn import MEA
    >>> model = MEA({"text": 5, "audio": 3}, out_channels=1, channels=8, heads=2)
    >>> output = model({"text": torch.randn(6, 4, 5), "audio": torch.randn(6, 9, 3)})
    >>> (
    ...     len(embedding_scatter(output).axes),
    ...     len(embedding_scatter({"before": output, "after": output}).axes),
    ... )
    (1, 2)
    """
    panels = outputs if isinstance(outputs, Mapping) else {"": outputs}
    if not panels:
        raise ValueError("outputs: expected at least one, got none")
    if method not in ("pca", "tsne") or samples < 1:
        raise ValueError(f"method, samples: expected 'pca' or 'tsne' and at least 1, got {method!r} and {samples}")
    columns = min(2, len(panels))  # a phone shows the figure about as wide as one panel of a page
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, (WIDTH / columns + 0.1) * rows + 0.6), dpi=200, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in grid[len(panels) :]:
        axis.remove()
    for axis, (title, shown) in zip(grid, panels.items(), strict=False):
        each: Any = list(shown) if isinstance(shown, Iterable) and not isinstance(shown, MEAOutput) else [shown]  # which is a tuple
        _draw(axis, _groups(each, samples), method, seed)
        axis.set_title(title)
    by_modality = dict(sorted(by_label(figure.axes).items(), key=lambda item: item[0].rpartition(", ")[0]))
    modalities = len({label.rpartition(", ")[0] for label in by_modality})
    column = LETTERS * (0.035 + 0.0075 * max(map(len, by_modality)))  # about the inches of a column of the legend
    columns = min(modalities, max(1, int(WIDTH / column)))
    if modalities % columns:  # a column for each space, so that the two entries of a modality stand side by side
        columns = 2
        by_modality = dict(sorted(by_modality.items(), key=lambda item: item[0].endswith(", agnostic")))
    legend = {"ncols": columns, "fontsize": min(LETTERS, LETTERS * WIDTH / column)}
    figure.legend(by_modality.values(), by_modality.keys(), loc="outside lower center", frameon=False, columnspacing=1.4, **legend)
    return figure


def _groups(outputs: Sequence[MEAOutput], samples: int) -> dict[tuple[str, str], np.ndarray]:
    """Representations by space and modality, of the samples that have the modality."""
    if not outputs:
        raise ValueError("outputs: expected at least one output in each, got none")
    for output in outputs:
        check_output(output)
    present = {m: np.concatenate([output.present[m].cpu().numpy() for output in outputs]) for m in outputs[0].present}
    check_count(present, "modalities")
    count = len(next(iter(present.values())))
    chosen = np.unique(np.linspace(0, count - 1, min(samples, count)).astype(int)) if count else np.arange(0)
    groups = {}
    for space in ("exclusive", "agnostic"):
        if getattr(outputs[0], space) is None:
            continue
        for modality, there in present.items():
            h = np.concatenate([getattr(output, space)[modality].detach().double().cpu().numpy() for output in outputs])
            groups[space, modality] = h[chosen][there[chosen]]
    if sum(map(len, groups.values())) < 3:
        raise ValueError(f"outputs: expected at least three representations in each, got {sum(map(len, groups.values()))}")
    return groups


def _draw(axis: Axes, groups: Mapping[tuple[str, str], np.ndarray], method: str, seed: int) -> None:
    points = _plane(np.concatenate(list(groups.values())), method, seed)
    modalities = list(dict.fromkeys(modality for _, modality in groups))
    pieces = np.split(points, np.cumsum([len(h) for h in groups.values()])[:-1])
    for (space, modality), piece in zip(groups, pieces, strict=True):
        number = modalities.index(modality)
        axis.scatter(
            piece[:, 0],
            piece[:, 1],
            s=18,
            marker=MARKERS[number],
            facecolors=COLOURS[number] if space == "exclusive" else "none",
            edgecolors=COLOURS[number],
            linewidths=0.9,
            alpha=0.75,
            label=f"{modality}, {space}",
        )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel("1st component" if method == "pca" else "t-SNE 1")
    axis.set_ylabel("2nd component" if method == "pca" else "t-SNE 2")


def _plane(h: np.ndarray, method: str, seed: int) -> np.ndarray:
    """(n, d_h) to (n, 2)."""
    centred = h - h.mean(0)
    if method == "pca":
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        plane = (u * s)[:, :2]
        return plane if plane.shape[1] == 2 else np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    from sklearn.manifold import TSNE

    return TSNE(init="pca", perplexity=min(30.0, (len(h) - 1) / 3), random_state=seed).fit_transform(centred)
