"""Labels and names of splits as people write them, and what was made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mea_graph.data.arrays import as_names, as_numbers
from mea_graph.data.doubts import OF_DIGITS, OF_SPLIT
from mea_graph.data.errors import DataError
from mea_graph.suggestions import did_you_mean

_SPLITS = {"train": ("train", "training"), "valid": ("valid", "val", "dev", "validation"), "test": ("test", "testing")}
_MEANT = {name: meant for meant, names in _SPLITS.items() for name in names}
_NAMED = 5  # labels that an error names
_FEW_STEPS = 1000  # of float32 between the least and the largest label: they keep three digits
WHOLE = "y: whole numbers, but floats: taken as regression; for classes give integers, y.astype(int)"
WHOLE_OF_FILE = (
    "labels: whole numbers, taken as regression; labels='classes' (on the command line data.reader.labels) takes them as classes"
)
_NUMBERS = "y: strings that are all numbers are taken as names of classes; for regression give numbers, y.astype(float)"


def read_names(
    y: Any, label_names: Sequence[str] | None, split: Any, notes: Sequence[str], whole: str | None = WHOLE
) -> tuple[Any, Sequence[str] | None, Any, tuple[str, ...]]:
    """`read_labels` and `read_split` of what there is; notes are said once. `whole` is the note on whole numbers that are floats."""
    said = list(notes)
    if y is not None:
        y, label_names, guessed = read_labels(y, label_names, whole)
        said += guessed
    if split is not None:
        split, renamed = read_split(split)
        said += renamed
    return y, label_names, split, tuple(dict.fromkeys(said))


def read_labels(y: Any, label_names: Sequence[str] | None, note: str | None) -> tuple[np.ndarray, Sequence[str] | None, list[str]]:
    """Numbers for labels that are strings (their place in `label_names`, or in alphabetical order), and notes on what was guessed."""
    words = _words("y", y)
    if words is None:
        array = as_numbers("y", y)
        whole = array.dtype.kind == "f" and array.ndim == 1 and array.size and np.isfinite(array).all() and (array == np.round(array)).all()
        return array, label_names, [note] if note is not None and whole else []
    names = sorted(set(words)) if label_names is None else as_names("label_names", label_names)
    place = {name: number for number, name in enumerate(names)}
    if unknown := sorted(set(words) - place.keys()):
        raise DataError(f"y: expected labels among {names}, got {unknown[:_NAMED]}")
    guessed = label_names is None and bool(names) and all(map(_is_number, names))
    return np.array([place[word] for word in words], np.int64), names, [_NUMBERS] if guessed else []


def digit_notes(y: Any) -> list[str]:
    """A note on real labels that lie so close together, for their size, that float32 leaves little of what tells them apart."""
    array = as_numbers("y", y)
    if array.dtype.kind != "f" or array.ndim != 1 or not array.size:
        return []
    low, high = float(array.min()), float(array.max())
    spread, size = high - low, max(abs(low), abs(high))
    if not 1e-12 * size < spread < _FEW_STEPS * float(np.finfo(np.float32).eps) * size:  # less is rounding
        return []
    return [f"y: the {OF_DIGITS} in float32, since they lie between {low:.12g} and {high:.12g}; take their mean away"]


def _words(what: str, values: Any) -> list[str] | None:
    """Texts as a list, since an array makes each as long as the longest; None where the values are no texts."""
    if not isinstance(values, np.ndarray | list | tuple):
        values = as_numbers(what, values)
    if isinstance(values, np.ndarray):
        if values.ndim != 1 or values.dtype.kind not in "USO":
            return None
        values = values.tolist()
    words = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
    if other := [word for word in words if not isinstance(word, str)]:
        if len(other) < len(words):  # NumPy would make text of the numbers
            raise DataError(f"{what}: expected numbers for all samples, or strings for all, got {type(other[0]).__name__} among strings")
        return None
    return words or None


def text(array: np.ndarray) -> np.ndarray:
    """An array with bytes as text."""
    return np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array


def split_meant(name: str) -> str:
    """ "train", "valid" or "test" for the names that people use for them, such as "dev"; any other name as it is."""
    return _MEANT.get(name.strip().lower(), name)


def read_split(split: Any) -> tuple[Any, list[str]]:
    """Names of splits by their meaning, and a note of those renamed; two names of one meaning stay apart."""
    words = _words("split", split)
    if words is None:
        return split, []
    names = sorted(set(words))
    new = {name: split_meant(name) for name in names}
    if len(set(new.values())) < len(names):
        return words, [f"split: {names} are kept apart, though some mean the same; training looks for 'train', 'valid' and 'test'"]
    renamed = [f"{old!r} is {meant!r}" for old, meant in new.items() if old != meant]
    return [new[word] for word in words], [f"split: {', '.join(renamed)}"] if renamed else []


def split_notes(split: np.ndarray, ids: Sequence[str]) -> list[str]:
    """Notes on names of splits that are nearly one of the usual ones: whoever looks for that one does not find their samples."""
    notes = []
    for name in sorted(set(split.tolist())):
        if hint := misspelt_split(name):
            first, count = ids[int(np.argmax(split == name))], int((split == name).sum())
            more = f", as of {count} samples," if count > 1 else ""
            notes.append(f"split: {name!r} of sample {first!r}{more} {OF_SPLIT}{hint}")
    return notes


def misspelt_split(name: str) -> str:
    """The usual name of a split that one is nearly, as the end of a message; nothing for one of those, or for what only begins so."""
    low = name.strip().lower()
    if split_begun(name) is not None:  # "test2" is no mistake
        return ""
    return did_you_mean(low, [known for known in _MEANT if known[:1] == low[:1]])


def split_begun(name: str) -> str | None:
    """ "train", "valid" or "test" where a name begins with one that people use for it, as "test2" and "dev-clean" do."""
    low = name.strip().lower()
    return next((meant for known, meant in _MEANT.items() if low.startswith(known)), None)


def is_split(array: np.ndarray, samples: int) -> bool:
    """Whether an array names a split for every sample, each of them train, valid or test, or nearly so."""
    if array.shape != (samples,) or array.dtype.kind != "U":
        return False
    return all(split_meant(name) in _SPLITS or misspelt_split(name) for name in set(array.tolist()))


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False
