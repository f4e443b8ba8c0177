"""Notes of a data set that are warnings too: what was given can hardly be meant so, and nothing later says so."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

OF_UNIT = "the times are taken as seconds"
OF_SPLIT = "is taken as a name of its own"
OF_LENGTHS = "true lengths are called"
OF_TIME = "times are called"
_DOUBTS = (OF_UNIT, OF_SPLIT, OF_LENGTHS, OF_TIME)  # what such a note says


def warn_of_doubts(notes: Sequence[str], stacklevel: int) -> None:
    """Warns of the notes that say that something was hardly meant as it is: a model learns from it all the same."""
    for note in notes:
        if any(doubt in note for doubt in _DOUBTS):
            warnings.warn(note, stacklevel=stacklevel + 1)
