"""Notes of a data set that are warnings too: what was given can hardly be meant so, and nothing later says so."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence

import numpy as np

OF_UNIT = "the times are taken as seconds"
OF_SPLIT = "is taken as a name of its own"
OF_LENGTHS = "true lengths are called"
OF_TIME = "times are called"
OF_DIGITS = "labels keep few digits"
_DOUBTS = (OF_UNIT, OF_SPLIT, OF_LENGTHS, OF_TIME, OF_DIGITS)  # what such a note says


def warn_of_doubts(notes: Sequence[str], stacklevel: int) -> None:
    """Warns of the notes that say that something was hardly meant as it is: a model learns from it all the same."""
    for note in notes:
        if any(doubt in note for doubt in _DOUBTS):
            warnings.warn(note, stacklevel=stacklevel + 1)


def warn_of_alike(option: str, field: str, values: np.ndarray) -> None:
    """Warns of values of a field that groups samples which nobody can tell apart, or hardly: they are hardly two speakers.

    Args:
        option: What asks for the field.
        field: Its name.
        values: Those of all samples.
    """
    found: dict[str, str] = {}
    pairs = []
    for value in np.unique(values).tolist() if values.dtype.kind == "U" else ():
        other = found.setdefault(unicodedata.normalize("NFKC", value).casefold().strip(), value)
        if other != value:
            pairs.append(f"{other!a} and {value!a}")
    if pairs:
        more = f", and {len(pairs) - 1} more pairs," if len(pairs) > 1 else ""
        differ = "differ in nothing but spaces, capitals or the form of letters"
        warnings.warn(f"{option}: {pairs[0]} of {field!r}{more} {differ}, and count as different", stacklevel=2)
