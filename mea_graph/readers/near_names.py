"""Arrays of an `.npz` whose names are nearly those of the lengths or times of a modality, or of a mask."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

import numpy as np

from mea_graph.data.doubts import OF_LENGTHS, OF_TIME
from mea_graph.data.errors import DataError

_KINDS = {
    "len": ("len", "lens", "length", "lengths"),
    "mask": ("mask", "masks", "padding_mask"),
    "time": ("time", "times", "timestamp", "timestamps"),
}
_SEPARATOR = r"[_\-. ]"
_NEAR = 0.75  # "lenghts" and "lenth" are nearer to a word, "level" and "line" are not


def near_names(arrays: Mapping[str, np.ndarray], modalities: Collection[str], taken: Collection[str]) -> list[str]:
    """Notes on arrays that are hardly meant as fields, or to be left out; what is surely a mistake is refused.

    It is sure where the modality holds nothing but zeros or NaN beyond such lengths, or outside a mask that lengths say as well.

    Args:
        arrays: All arrays by name, modalities `(N, T, d)`.
        modalities: Which of them are modalities.
        taken: Names of arrays that have a meaning.
    """
    notes = []
    for name in (name for name in arrays if name not in taken):
        for modality, kind, exact in _meant(name, modalities):
            x, array = arrays[modality], arrays[name]
            if kind == "time":
                if f"{modality}_time" not in arrays and array.shape == x.shape[:2]:
                    notes.append(f"{modality}: array {name!r} is left out; {OF_TIME} '{modality}_time'")
            elif f"{modality}_len" not in arrays and (inside := _inside(array, x, kind)) is not None:
                what = "true lengths (N,)" if kind == "len" else "true lengths (N,) in place of a mask"
                padding = [~inside] if kind == "len" else [~inside, inside] if exact else []
                if any(_at_the_end(where) and _is_padding(x, where) for where in padding):
                    why = f"as {modality!r} holds nothing but zeros or NaN beyond them"
                    raise DataError(f"{name}: expected {what} to be called '{modality}_len', {why}; got {name!r}")
                where = "is a field" if kind == "len" else "is left out"
                notes.append(f"{modality}: every sample has {x.shape[1]} steps, since {name!r} {where}; {OF_LENGTHS} '{modality}_len'")
            break
    return notes


def _meant(name: str, modalities: Collection[str]) -> Iterator[tuple[str, str, bool]]:
    """Modality and kind that a name may be made of, the likeliest first, and whether the word for the kind is spelt right."""
    folded = {modality.lower(): modality for modality in modalities}
    kind_of = {word: kind for kind, words in _KINDS.items() for word in words}
    low = name.lower()
    pairs = [(low[: m.start()], low[m.end() :]) for m in re.finditer(_SEPARATOR, low)]
    pairs += [(end, begin) for begin, end in pairs]
    joined = [(modality, low.removeprefix(modality)) for modality in folded if low.startswith(modality)]
    for stem, word in [*pairs, *joined]:
        if stem in folded and word in kind_of:
            yield folded[stem], kind_of[word], True
    for stem, word in pairs:
        if word in kind_of and len(stem) > 2 and (near := get_close_matches(stem, folded, 1, _NEAR)):
            yield folded[near[0]], kind_of[word], True
        if stem in folded and len(word) > 2 and (near := get_close_matches(word, kind_of, 1, _NEAR)):
            yield folded[stem], kind_of[near[0]], False


def _inside(array: np.ndarray, x: np.ndarray, kind: str) -> np.ndarray | None:
    """The steps `(N, T)` that an array says are there, if it is lengths or a mask that leave out some; None where it can be neither."""
    samples, steps = x.shape[:2]
    if not x.size or array.dtype.kind not in "biuf" or array.shape != ((samples, steps) if kind == "mask" else (samples,)):
        return None
    most = 1 if kind == "mask" else steps
    whole = (array >= 0) & (array <= most) & (array == np.floor(array.astype(np.float64)))
    if not whole.all() or (kind == "len" and array.dtype.kind == "b"):
        return None
    inside = array.astype(bool) if kind == "mask" else np.arange(steps) < array[:, None]
    return None if inside.all() else inside


def _at_the_end(where: np.ndarray) -> bool:
    """Whether these are the last steps of their samples: steps in between, such as those without a face, are no padding."""
    return bool((where[:, 1:] >= where[:, :-1]).all())


def _is_padding(x: np.ndarray, where: np.ndarray) -> bool:
    """Whether there is nothing but zeros or NaN in some steps of a modality."""
    values = x[where]
    return len(values) > 0 and x.dtype.kind in "biuf" and bool(((values == 0) | np.isnan(values)).all())
