"""The readable table that `MultimodalDataset.describe` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mea_graph.data.times import median_step

if TYPE_CHECKING:
    from mea_graph.data.dataset import MultimodalDataset


def describe(dataset: MultimodalDataset) -> str:
    """Samples per split, widths, true lengths and the median step in time per modality, labels, and the notes of the reader."""
    lines = [f"samples {len(dataset)}"]
    if dataset.split is not None:
        names, counts = np.unique(dataset.split, return_counts=True)
        lines[0] += " (" + ", ".join(f"{n} {c}" for n, c in zip(names, counts, strict=True)) + ")"
    rows: list[tuple[str, ...]] = [("modality", "width", "min", "median", "mean", "max", "missing", "time")]
    rows += [_modality_row(dataset, name) for name in dataset.modalities]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows
    ]
    lines.append("label " + _labels(dataset))
    if dataset.fields:
        lines.append("fields " + ", ".join(dataset.fields))
    lines += [f"note: {note}" for note in dataset.notes]
    return "\n".join(lines)


def _modality_row(dataset: MultimodalDataset, name: str) -> tuple[str, ...]:
    lengths = dataset.lengths[name]
    present = lengths[lengths > 0]  # how long it is where it is; how often it is not has a column of its own
    share = 1 - len(present) / max(len(lengths), 1)
    stats = ("-",) * 4 if not len(present) else (f"{present.min()}", f"{np.median(present):g}", f"{present.mean():.1f}", f"{present.max()}")
    return (name, str(dataset.channels[name]), *stats, f"{share:.1%}", _time(dataset, name))


def _time(dataset: MultimodalDataset, name: str) -> str:
    """The median step in seconds and its rate, by which a wrong unit is seen."""
    stored = dataset._store.sequences[name]
    if stored.time is None:
        return "no"
    step = median_step(stored.time, stored.ptr, dataset._rows)
    return f"{step:.3g} s, {1 / step:.3g} Hz" if step else "yes"


def _labels(dataset: MultimodalDataset) -> str:
    y, names = dataset.y, dataset.label_names
    if y is None:
        return "none"
    if not len(y):
        return "no samples"
    if y.ndim == 2:
        shares = ", ".join(f"{names[k] if names else k} {share:.1%}" for k, share in enumerate(y.mean(axis=0)))
        return f"{y.shape[1]} binary labels, share of ones: {shares}"
    if y.dtype.kind == "f":
        return f"real numbers, min {y.min():.3g}, mean {y.mean():.3g}, std {y.std():.3g}, max {y.max():.3g}"
    counts = np.bincount(y)
    named = ", ".join(f"{names[k] if names else k} {count}" for k, count in enumerate(counts[:10]))
    return f"{len(counts)} classes, samples of each: {named}" + (
        f", ... (largest {counts.max()}, smallest {counts.min()})" if len(counts) > 10 else ""
    )
