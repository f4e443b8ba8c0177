"""Labels and names of splits as people write them, and what was made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mea_graph.data.errors import DataError

_SPLITS = {"train": ("train", "training"), "valid": ("valid", "val", "dev", "validation"), "test": ("test", "testing")}
_MEANT = {name: meant for meant, names in _SPLITS.items() for name in names}
_NAMED = 5  # labels that an error names


def read_names(
    y: Any, label_names: Sequence[str] | None, split: Any, notes: Sequence[str]
) -> tuple[Any, Sequence[str] | None, np.ndarray | None, tuple[str, ...]]:
    """`read_labels` and `read_split` of what there is; notes are said once."""
    said = list(notes)
    if y is not None:
        y, label_names, guessed = read_labels(y, label_names)
        said += guessed
    if split is not None:
        split, renamed = read_split(split)
        said += renamed
    return y, label_names, split, tuple(dict.fromkeys(said))


def read_labels(y: Any, label_names: Sequence[str] | None) -> tuple[Any, Sequence[str] | None, list[str]]:
    """Numbers for labels that are strings (their place in `label_names`, or in alphabetical order), and notes on what was guessed."""
    array = text(y)
    if array.dtype.kind == "U" and isinstance(y, list | tuple) and (other := [v for v in y if not isinstance(v, str | bytes)]):
        raise DataError(f"y: expected numbers for all samples, or strings for all, got {other[0]!r} among strings")  # NumPy makes it one
    if array.dtype.kind == "U" and array.ndim == 1:
        found, numbers = np.unique(array, return_inverse=True)
        names = found.tolist() if label_names is None else list(label_names)
        place = {name: number for number, name in enumerate(names)}
        if unknown := [name for name in found.tolist() if name not in place]:
            raise DataError(f"y: expected labels among {names}, got {unknown[:_NAMED]}")
        if len(found) and label_names is None and all(map(_is_number, names)):
            notes = ["y: strings that are all numbers are taken as names of classes; for regression give numbers"]
        else:
            notes = []
        return np.array([place[name] for name in found.tolist()], np.int64)[numbers], names, notes
    whole = array.dtype.kind == "f" and array.ndim == 1 and array.size and (array == np.round(array)).all() and np.isfinite(array).all()
    return array, label_names, ["y: whole numbers, but floats: taken as regression; for classes give integers"] if whole else []


def text(values: Any) -> np.ndarray:
    """An array; strings as text, whether they come as text, bytes or objects."""
    array = np.asarray(values)
    if array.dtype.kind == "O" and array.size and all(isinstance(value, str) for value in array.flat):
        return array.astype(np.str_)
    return np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array


def split_meant(name: str) -> str:
    """ "train", "valid" or "test" for the names that people use for them, such as "dev"; any other name as it is."""
    return _MEANT.get(name.lower(), name)


def read_split(split: Any) -> tuple[np.ndarray, list[str]]:
    """Names of splits by their meaning, and a note of those renamed; two names of one meaning stay apart."""
    array = text(split)
    if array.dtype.kind != "U" or array.ndim != 1:
        return array, []
    names = np.unique(array).tolist()
    meant = [split_meant(name) for name in names]
    if names == meant:
        return array, []
    if len(set(meant)) < len(meant):
        return array, [f"split: {names} are kept apart, though some mean the same; training looks for 'train', 'valid' and 'test'"]
    new = dict(zip(names, meant, strict=True))
    renamed = ", ".join(f"{old!r} is {new[old]!r}" for old in names if old != new[old])
    return np.array([new[name] for name in array.tolist()], dtype=np.str_), [f"split: {renamed}"]


def is_split(array: np.ndarray, samples: int) -> bool:
    """Whether an array names a split for every sample, each of them train, valid or test."""
    names = text(array)
    return names.shape == (samples,) and names.dtype.kind == "U" and {split_meant(name) for name in np.unique(names).tolist()} <= {*_SPLITS}


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False
