"""What the labels of a file are: the options `labels`, `columns` and `label_names`, which mean the same to every reader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mea_graph.data.arrays import as_names
from mea_graph.data.errors import DataError, brief

KINDS = ("regression", "classes", "labels")
Labels = str | float | None
Columns = int | str | Sequence[int | str] | None
Names = Sequence[str] | None


def check_labels(labels: Labels) -> None:
    """Raises an error unless `labels` is a kind of labels or a threshold."""
    number = isinstance(labels, int | float) and not isinstance(labels, bool) and math.isfinite(labels)
    if labels is not None and labels not in KINDS and not number:
        raise DataError(f"labels: expected one of {list(KINDS)} or a number, above which a label is 1, got {brief(labels)}")


def as_labels(
    y: Any, ids: Sequence[str], labels: Labels, columns: Columns, label_names: Names, notes: list[str], regression: bool = False
) -> tuple[Any, Names]:
    """Labels as `MultimodalDataset.from_arrays` takes them, and the names of the classes or labels.

    Args:
        y: What the file holds: one value a sample, several `(N, K)` (with axes of length 1 anywhere), or pairs (no, yes) `(N, K, 2)`.
        ids: The samples' names, for errors.
        labels: "regression": real numbers. "classes": whole numbers, of which those below 0 are numbered anew, or rows with a single
            one. "labels": zeros and ones, several a sample. A number: above it a label is 1, and at or below it 0. None: classes where
            the file holds integers or strings, several labels where it holds nothing but zeros and ones, else real numbers.
        columns: Which of several labels a sample, by number, or by name where `label_names` names all of them; one, or a list.
        label_names: Names of the classes or of the labels.
        notes: Takes what was guessed or numbered anew.
        regression: Whether integers, one a sample, are real numbers where `labels` is None, for files that store real labels as integers.
    """
    check_labels(labels)
    label_names = None if label_names is None else as_names("label_names", label_names)
    y = y if isinstance(y, np.ndarray) else np.asarray(y)
    if y.dtype.kind not in "biuf":
        if labels not in (None, "classes") or columns is not None:
            raise DataError(f"labels: expected numbers for labels={labels!r}, columns={columns!r}, got {y.dtype}")
        return y, label_names
    if not y.ndim or len(y) != len(ids):
        return y, label_names  # to be refused with everything else that does not fit
    matrix = _matrix(y)
    if not (finite := np.isfinite(matrix).all(axis=1)).all():
        worst = int(np.argmin(finite))
        got = matrix[worst].tolist() if matrix.shape[1] > 1 else matrix[worst, 0]
        raise DataError(f"y: sample {ids[worst]!r}: expected finite numbers, got {got}"[:300])
    matrix, label_names = _chosen(matrix, columns, label_names)
    if matrix.shape[1] > 1:
        return _several(matrix, ids, labels, label_names, notes)
    values = matrix[:, 0]
    if labels == "regression" or (labels is None and (regression or values.dtype.kind == "f")):
        return values.astype(np.float64), label_names
    if labels == "labels":
        raise DataError("labels: expected several labels a sample for labels='labels', got one; labels='classes' takes it as a class")
    if isinstance(labels, int | float):
        return (values > labels).astype(np.int64), label_names or (f"at most {labels:g}", f"above {labels:g}")
    if labels is None:
        return values, label_names
    return _classes(values, ids, label_names, notes)


def _matrix(y: np.ndarray) -> np.ndarray:
    """`(N, K)` of any of the shapes that files have."""
    if y.ndim == 3 and y.shape[2] == 2 and y.shape[1] > 1:  # one-hot pairs (no, yes), as MulT writes IEMOCAP
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=2) == 1).all()):
            raise DataError(f"labels: expected one-hot pairs (no, yes) in shape {y.shape}, got pairs that are not")
        return y[:, :, 1]
    wide = [size for size in y.shape[1:] if size != 1]
    if len(wide) > 1 or 0 in wide:
        raise DataError(f"labels: expected one value a sample, several (N, K), or pairs (N, K, 2), got shape {y.shape}")
    return y.reshape(len(y), wide[0] if wide else 1)


def _chosen(matrix: np.ndarray, columns: Columns, label_names: Names) -> tuple[np.ndarray, Names]:
    """The columns requested, and the names that stay of those of all columns."""
    count = matrix.shape[1]
    if columns is None:
        return matrix, label_names
    if not isinstance(columns, int | str | list | tuple):
        raise DataError(f"columns: expected a number, a name or a list of them, got {brief(columns)}")
    asked = [columns] if isinstance(columns, int | str) else list(columns)
    names = list(label_names) if label_names is not None and len(label_names) == count > 1 else None
    places = []
    for column in asked:
        place = names.index(column) if names and column in names else column
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < count:
            known = f" or a name among {names}" if names else "; label_names= gives them names"
            raise DataError(f"columns: expected an integer in [0, {count}){known}, got {brief(column)}")
        places.append(place)
    if not places or len(set(places)) < len(places):
        raise DataError(f"columns: expected different columns, at least one, got {asked}")
    if names is None:
        return matrix[:, places], label_names
    return matrix[:, places], [names[place] for place in places] if len(places) > 1 else None


def _several(matrix: np.ndarray, ids: Sequence[str], labels: Labels, label_names: Names, notes: list[str]) -> tuple[np.ndarray, Names]:
    count = matrix.shape[1]
    binary = np.isin(matrix, (0, 1)).all(axis=1)
    if labels == "classes":
        if not (single := binary & (matrix.sum(axis=1) == 1)).all():
            worst = int(np.argmin(single))
            raise DataError(
                f"labels: sample {ids[worst]!r}: expected a single one among {count} for labels='classes', got {matrix[worst].tolist()}"[
                    :300
                ]
            )
        return matrix.argmax(axis=1), label_names
    if labels in (None, "labels") and binary.all():
        return matrix.astype(np.float32), label_names
    if labels is None or labels == "regression":
        raise DataError(f"labels: expected one label a sample, got {count}; say which with columns=, or what they are with labels=")
    if isinstance(labels, int | float):
        return (matrix > labels).astype(np.float32), label_names
    if not (np.isin(matrix, (-1, 1)).all()):
        worst = int(np.argmin(binary))
        hint = "labels=NUMBER takes labels above the number as 1"
        raise DataError(f"labels: sample {ids[worst]!r}: expected zeros and ones, got {matrix[worst].tolist()}"[:300] + f"; {hint}")
    notes.append("labels of -1 are taken as 0")
    return (matrix > 0).astype(np.float32), label_names


def _classes(values: np.ndarray, ids: Sequence[str], label_names: Names, notes: list[str]) -> tuple[np.ndarray, Names]:
    if not (whole := values == np.round(values)).all():
        worst = int(np.argmin(whole))
        hint = "labels=NUMBER takes labels above the number as class 1"
        raise DataError(f"labels: sample {ids[worst]!r}: expected a whole number as a class, got {values[worst]:g}; {hint}")
    if np.abs(values).max(initial=0) >= 2**31:
        raise DataError(f"labels: expected numbers of classes, got {np.abs(values).max():g}")
    numbers = values.astype(np.int64)
    if numbers.min(initial=0) >= 0:
        return numbers, label_names
    known, places = np.unique(numbers, return_inverse=True)
    notes.append(f"classes are numbered anew: {', '.join(f'{value} is {i}' for i, value in enumerate(known[:9].tolist()))}")
    return places.reshape(-1), label_names or [str(value) for value in known.tolist()]
