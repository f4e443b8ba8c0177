"""Reads the pickles of MMSA (Yu et al., 2021; also CH-SIMS): `Processed/unaligned_50.pkl` and its like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.texts import as_text
from mea_graph.readers.checks import check_non_finite, refused, repair
from mea_graph.readers.padded_splits import MODALITIES, checked_splits, column, left_out, one_a_sample, read_splits
from mea_graph.readers.unpickle import mapped_pickle

_LABELS = {"regression": "regression_labels", "classification": "classification_labels"}
_EXTRA = ("regression_labels_T", "regression_labels_A", "regression_labels_V")  # one label per modality, in CH-SIMS


def read_mmsa(source: Path, label: str = "regression", lengths: str = "stored", non_finite: str = "error") -> MultimodalDataset:
    """Reads an MMSA pickle: split -> text, audio, vision `(N, T, d)`, their lengths, labels, raw_text, id.

    Stored lengths are used where the file has them (audio and vision of unaligned files), and checked: no row outside of them may
    differ from zero. Elsewhere zero rows are cut off at both ends. `text_bert` holds token numbers, not features, and is left out.
    A file without any labels, such as features to predict from, has no `y`.

    Args:
        source: the file.
        label: "regression" or "classification": which labels become `y`; the others become fields.
        lengths: "stored", or "zeros" to ignore stored lengths and go by zero rows.
        non_finite: "error", "zero" to set NaN and infinity in the features to 0, or "drop" to leave out the steps that have them.

    Raises:
        DataError: where the file is refused, its arrays are not as described, or stored lengths contradict the values.
    """
    return mmsa_dataset(source, mapped_pickle(source), label, lengths, non_finite)


def mmsa_dataset(
    source: Path, payload: Any, label: str = "regression", lengths: str = "stored", non_finite: str = "error"
) -> MultimodalDataset:
    """The data set in the contents of an MMSA pickle."""
    if label not in _LABELS:
        raise DataError(f"label: expected one of {list(_LABELS)}, got {label!r}")
    if lengths not in ("stored", "zeros"):
        raise DataError(f"lengths: expected 'stored' or 'zeros', got {lengths!r}")
    check_non_finite(non_finite)
    payload, notes = checked_splits(source, payload)

    def has(key: str) -> bool:
        return all(key in part for part in payload.values())

    def known(modality: str) -> bool:
        return lengths == "stored" and has(f"{modality}_lengths")

    labelled = any(key in part for part in payload.values() for key in _LABELS.values())
    splits = read_splits(source, payload, _LABELS[label] if labelled else None, known, keep_infinite=non_finite == "drop")
    fields, samples = splits.fields, len(splits.ids)
    for key in (*_LABELS.values(), *_EXTRA):
        if key != _LABELS[label] and has(key):
            fields[key] = one_a_sample(source, payload, key, samples)
    for key, name in (("raw_text", "raw_text"), ("annotations", "annotation")):
        if has(key):
            fields[name] = _texts(source, key, one_a_sample(source, payload, key, samples))
    used = {*MODALITIES, *_LABELS.values(), *_EXTRA, "raw_text", "annotations", "id", *(f"{m}_lengths" for m in MODALITIES)}
    notes += [*splits.notes, *left_out(payload, used)]
    if not labelled:
        notes.append(f"no labels: there is none of {', '.join(_LABELS.values())} in any split")
    repair(splits.x, None, non_finite, notes)
    try:
        return MultimodalDataset.from_arrays(
            splits.x,
            _targets(source, payload, label) if labelled else None,
            ids=splits.ids,
            split=splits.split,
            fields=fields,
            notes=notes,
        )
    except DataError as error:
        raise refused(source, error) from error


def _targets(source: Path, payload: Mapping[Any, Mapping[Any, Any]], label: str) -> np.ndarray:
    y = column(source, payload, _LABELS[label])
    y = y.reshape(len(y), -1)
    if y.shape[1] != 1 or y.dtype.kind not in "biuf":
        raise DataError(f"{_LABELS[label]}: expected one number a sample, got {y.dtype} of shape {y.shape}")
    return _whole_numbers(y[:, 0]) if label == "classification" else y[:, 0].astype(np.float64)


def _texts(source: Path, key: str, values: np.ndarray) -> list[str]:
    try:
        return [as_text(value) for value in values]
    except DataError as error:
        raise DataError(f"{source}: {key}: {error}") from error


def _whole_numbers(labels: np.ndarray) -> np.ndarray:
    """Class numbers, which some files store as floats."""
    if not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise DataError(f"classification_labels: expected whole numbers, got {labels[labels != np.round(labels)][:3].tolist()}")
    return labels.astype(np.int64)
