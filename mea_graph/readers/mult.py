"""Reads the pickles of MulT (Tsai et al., 2019): `mosi_data_noalign.pkl` and its like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.readers.checks import check_non_finite, refused, repair
from mea_graph.readers.padded_splits import MODALITIES, checked_splits, column, left_out, read_splits
from mea_graph.readers.unpickle import mapped_pickle


def read_mult(source: Path, label_names: Sequence[str] | None = None, non_finite: str = "error") -> MultimodalDataset:
    """Reads a MulT pickle: split -> text, audio, vision `(N, T, d)`, labels, id.

    True lengths are found by cutting off zero rows at both ends (files differ in the side they pad). Values of -inf in the audio,
    which the published files hold, become 0 as in MulT's own code, and are counted in the notes. "language", "acoustic" and
    "visual" are taken for text, audio and vision. A file without labels has no `y`.

    Args:
        source: the file.
        label_names: names of the binary labels, where the file holds several.
        non_finite: "error", "zero" to set NaN and infinity in the features to 0, or "drop" to leave out the steps that have them
            (-inf in the audio among them).

    Raises:
        DataError: where the file is refused, or its arrays are not as described.
    """
    return mult_dataset(source, mapped_pickle(source), label_names, non_finite)


def mult_dataset(source: Path, payload: Any, label_names: Sequence[str] | None = None, non_finite: str = "error") -> MultimodalDataset:
    """The data set in the contents of a MulT pickle."""
    check_non_finite(non_finite)
    payload, notes = checked_splits(source, payload)
    labelled = any("labels" in part for part in payload.values())
    splits = read_splits(source, payload, "labels" if labelled else None, keep_infinite=non_finite == "drop")
    y = _labels(source, column(source, payload, "labels")) if labelled else None
    notes += [*splits.notes, *left_out(payload, {*MODALITIES, "labels", "id"})]
    if y is None:
        notes.append("no labels: there is no 'labels' in any split")
    repair(splits.x, None, non_finite, notes)
    try:
        return MultimodalDataset.from_arrays(
            splits.x, y, ids=splits.ids, split=splits.split, fields=splits.fields, label_names=label_names, notes=notes
        )
    except DataError as error:
        raise refused(source, error) from error


def _labels(source: Path, labels: np.ndarray) -> np.ndarray:
    """`(N, 1, 1)` scores become `(N,)`; `(N, K, 2)` one-hot pairs (no, yes), as for IEMOCAP, become `(N, K)`."""
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{source}: labels: expected numbers, got {labels.dtype}")
    if math.prod(labels.shape[1:]) == 1:
        return labels.reshape(len(labels)).astype(np.float64)
    if labels.ndim != 3 or labels.shape[2] != 2:
        raise DataError(f"{source}: labels: expected shape (N, 1, 1) or (N, K, 2), got {labels.shape}")
    if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=2) == 1).all()):
        raise DataError(f"{source}: labels: expected one-hot pairs (no, yes), got pairs that are not")
    return labels[:, :, 1].astype(np.float32)
