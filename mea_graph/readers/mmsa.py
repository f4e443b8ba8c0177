"""Reads the pickles of MMSA (Yu et al., 2021; also CH-SIMS): `Processed/unaligned_50.pkl` and its like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.texts import as_text
from mea_graph.readers.checks import check_non_finite, dataset_of, refused, repair
from mea_graph.readers.label_options import Columns, Labels, Names, as_labels, check_labels
from mea_graph.readers.padded_splits import MODALITIES, checked_splits, column, left_out, one_a_sample, read_splits
from mea_graph.readers.unpickle import mapped_pickle

_LABELS = ("regression_labels", "classification_labels")
_EXTRA = ("regression_labels_T", "regression_labels_A", "regression_labels_V")  # one label per modality, in CH-SIMS


def read_mmsa(
    source: Path,
    labels: Labels = None,
    columns: Columns = None,
    label_names: Names = None,
    lengths: str = "stored",
    non_finite: str = "error",
) -> MultimodalDataset:
    """Reads an MMSA pickle: split -> text, audio, vision `(N, T, d)`, their lengths, labels, raw_text, id.

    The reader uses stored lengths (audio and vision of unaligned files have them) and checks that all rows outside are zero. Without
    stored lengths it cuts off zero rows at both ends. It leaves out `text_bert`, which holds token numbers, not features.
    A file without labels, such as features for a prediction, has no `y`.

    Args:
        source: The file.
        labels, columns, label_names: As for `open_dataset`. "classes" reads `classification_labels` if the file has them, anything else
            `regression_labels`; the others become fields.
        lengths: "stored", or "zeros" to ignore stored lengths and cut off zero rows; use it if the stored ones are wrong.
        non_finite: "error", "zero" to set NaN and infinity in the features to 0, or "drop" to leave out the steps that have them.

    Raises:
        DataError: If the file is refused, its arrays are not as described, or stored lengths contradict the values.
    """
    return mmsa_dataset(source, mapped_pickle(source), labels, columns, label_names, lengths, non_finite)


def mmsa_dataset(
    source: Path,
    payload: Any,
    labels: Labels = None,
    columns: Columns = None,
    label_names: Names = None,
    lengths: str = "stored",
    non_finite: str = "error",
) -> MultimodalDataset:
    """The data set in the contents of an MMSA pickle."""
    check_labels(labels)
    if lengths not in ("stored", "zeros"):
        raise DataError(f"lengths: expected 'stored' or 'zeros', got {lengths!r}")
    check_non_finite(non_finite)
    payload, notes = checked_splits(source, payload)

    def has(key: str) -> bool:
        return all(key in part for part in payload.values())

    def known(modality: str) -> bool:
        return lengths == "stored" and has(f"{modality}_lengths")

    labelled = any(key in part for part in payload.values() for key in _LABELS)
    by_class = has(_LABELS[1]) and (labels == "classes" or not any(_LABELS[0] in part for part in payload.values()))
    wanted = _LABELS[1] if by_class else _LABELS[0]
    splits = read_splits(source, payload, wanted if labelled else None, known, keep_infinite=non_finite == "drop")
    fields, samples = splits.fields, len(splits.ids)
    for key in (*_LABELS, *_EXTRA):
        if key != wanted and has(key):
            fields[key] = one_a_sample(source, payload, key, samples)
    for key, name in (("raw_text", "raw_text"), ("annotations", "annotation")):
        if has(key):
            fields[name] = _texts(source, key, one_a_sample(source, payload, key, samples))
    used = {*MODALITIES, *_LABELS, *_EXTRA, "raw_text", "annotations", "id", *(f"{m}_lengths" for m in MODALITIES)}
    partly = sorted(key for key in used - {*MODALITIES, "id"} if any(key in part for part in payload.values()) and not has(key))
    if partly:
        notes.append(f"left out, since not every split has them: {', '.join(partly)}")
    notes += [*splits.notes, *left_out(payload, used)]
    try:
        y = None
        if labelled:
            kind = "classes" if by_class and labels is None else labels
            y, label_names = as_labels(column(source, payload, wanted), splits.ids, kind, columns, label_names, notes, regression=True)
        else:
            notes.append(f"no labels: there is none of {', '.join(_LABELS)} in any split")
        repair(splits.x, None, non_finite, notes)
        return dataset_of(splits.x, y, labels, ids=splits.ids, split=splits.split, fields=fields, label_names=label_names, notes=notes)
    except DataError as error:
        raise refused(source, error) from error


def _texts(source: Path, key: str, values: np.ndarray) -> list[str]:
    try:
        return [as_text(value) for value in values]
    except DataError as error:
        raise DataError(f"{source}: {key}: {error}") from error
