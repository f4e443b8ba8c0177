"""Reads the pickles of MulT (Tsai et al., 2019): `mosi_data_noalign.pkl` and its like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.readers.checks import check_non_finite, dataset_of, refused, repair
from mea_graph.readers.label_options import Columns, Labels, Names, as_labels, check_labels
from mea_graph.readers.padded_splits import MODALITIES, checked_splits, column, left_out, read_splits
from mea_graph.readers.unpickle import mapped_pickle


def read_mult(
    source: Path, labels: Labels = None, columns: Columns = None, label_names: Names = None, non_finite: str = "error"
) -> MultimodalDataset:
    """Reads a MulT pickle: split -> text, audio, vision `(N, T, d)`, labels, id.

    The reader cuts off zero rows at both ends to find true lengths (files differ in the side they pad). The published files have values of
    -inf in the audio; they become 0 as in MulT's own code, and the notes count them. "language", "acoustic" and "visual" mean text,
    audio and vision. A file without labels has no `y`.

    Args:
        source: The file.
        labels, columns, label_names: As for `open_dataset`; real numbers if the file has one for each sample.
        non_finite: "error", "zero" to set NaN and infinity in the features to 0, or "drop" to leave out the steps that have them
            (-inf in the audio among them).

    Raises:
        DataError: If the file is refused, or its arrays are not as described.
    """
    return mult_dataset(source, mapped_pickle(source), labels, columns, label_names, non_finite)


def mult_dataset(
    source: Path, payload: Any, labels: Labels = None, columns: Columns = None, label_names: Names = None, non_finite: str = "error"
) -> MultimodalDataset:
    """The data set in the contents of a MulT pickle."""
    check_non_finite(non_finite)
    check_labels(labels)
    payload, notes = checked_splits(source, payload)
    labelled = any("labels" in part for part in payload.values())
    splits = read_splits(source, payload, "labels" if labelled else None, keep_infinite=non_finite == "drop")
    notes += [*splits.notes, *left_out(payload, {*MODALITIES, "labels", "id"})]
    try:
        y = None
        if labelled:
            y, label_names = as_labels(column(source, payload, "labels"), splits.ids, labels, columns, label_names, notes, regression=True)
        else:
            notes.append("no labels: there is no 'labels' in any split")
        repair(splits.x, None, non_finite, notes)
        return dataset_of(
            splits.x, y, labels, ids=splits.ids, split=splits.split, fields=splits.fields, label_names=label_names, notes=notes
        )
    except DataError as error:
        raise refused(source, error) from error
