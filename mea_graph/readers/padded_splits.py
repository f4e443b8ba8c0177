"""What MulT's and MMSA's pickles share: splits of zero-padded arrays, whose true lengths the reader must restore."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.errors import DataError, brief
from mea_graph.data.progress import advance, start
from mea_graph.data.texts import as_array, as_text, check_padded
from mea_graph.readers.checks import check_lengths, check_samples, with_mended

MODALITIES = ("text", "audio", "vision")
SYNONYMS = {"language": "text", "acoustic": "audio", "visual": "vision"}


@dataclass
class PaddedSplits:
    """The samples of all splits, one after the other, at their true lengths."""

    x: dict[str, Sequence[np.ndarray]]
    ids: list[str]
    split: list[str]
    fields: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def checked_splits(source: Path, payload: Any) -> tuple[dict[Any, dict[Any, Any]], list[str]]:
    """A dict of splits, each a dict of arrays, with the usual names of the modalities; and a note for each that had another."""
    if not isinstance(payload, Mapping) or not payload or not all(isinstance(part, Mapping) for part in payload.values()):
        raise DataError(f"{source}: expected a dict of splits, each a dict of arrays, got {type(payload).__name__}")
    splits = {split: dict(part) for split, part in payload.items()}
    notes = []
    for synonym, name in SYNONYMS.items():
        if any(name in part for part in splits.values()) or not any(synonym in part for part in splits.values()):
            continue
        notes.append(f"{name}: read from the key {synonym!r}")
        for part in splits.values():
            for old, new in ((synonym, name), (f"{synonym}_lengths", f"{name}_lengths")):
                if old in part:
                    part[new] = part.pop(old)
    return splits, notes


def read_splits(
    source: Path,
    payload: Mapping[Any, Mapping[Any, Any]],
    labels: str | None,
    lengths_known: Callable[[str], bool] = lambda modality: False,
    keep_infinite: bool = False,
) -> PaddedSplits:
    """Cuts off the padding of the arrays `(N, T, d)` per modality in `checked_splits`; `labels` `(N, ...)` says how many samples.

    Values of -inf in the audio become 0, as in MulT's code, but where `keep_infinite`.
    """
    names = [m for m in MODALITIES if any(m in part for part in payload.values())]
    if not names:
        raise DataError(
            f"{source}: expected arrays named {list(MODALITIES)} in every split, got {sorted(map(str, next(iter(payload.values()))))}"
        )
    out = PaddedSplits({}, [], [], {})
    cut: dict[str, list[np.ndarray]] = {name: [] for name in names}
    unnamed = 0
    infinite: dict[int, int] = {}  # samples that have -inf in their audio, and how often
    for split, part in payload.items():
        samples = len(_array(source, split, part, names[0] if labels is None else labels))
        check_samples(source, len(out.ids) + samples, source.stat().st_size)
        for name in names:
            array = _array(source, split, part, name)
            if array.ndim != 3 or len(array) != samples or array.dtype.kind not in "biuf":
                raise DataError(
                    f"{source}: {split}/{name}: expected numbers of shape ({samples}, T, d), got {array.dtype} of shape {array.shape}"
                )
            stored = _stored_lengths(source, split, part, name, array) if lengths_known(name) else None
            mends = name == "audio" and not keep_infinite and array.dtype.kind == "f"
            start(f"reading {split}/{name}", array.nbytes)
            with np.errstate(all="ignore"):  # NaN and overflows of float32 are reported later, with their sample
                for i, x in enumerate(array):
                    first, last = _span(x)
                    if mends and (count := _minus_infinities(x[first:last])):
                        infinite[len(cut[name])] = count
                        first, last = _without_infinite_ends(x, first, last)
                    if stored is not None:
                        first, last = _cut(first, last, int(stored[i]), len(x), f"{source}: {split}/{name}: sample {i}")
                    cut[name].append(x[first:last])
                    advance(x.nbytes)
        name_of_split = split.decode("utf-8", "replace") if isinstance(split, bytes) else str(split)
        out.ids += _ids(source, name_of_split, part.get("id"), samples)
        unnamed += samples if part.get("id") is None else 0
        out.split += [name_of_split] * samples
    out.x.update(cut)
    if infinite:
        out.x["audio"] = with_mended(cut["audio"], dict.fromkeys(infinite, _without_minus_infinity))
        out.notes.append(f"audio: {sum(infinite.values())} values of -inf set to 0, as MulT does")
    for name in names:
        if empty := sum(not len(x) for x in cut[name]):
            out.notes.append(f"{name}: {empty} samples hold zeros only and count as missing")
    if unnamed:
        out.notes.append(f"id: {unnamed} samples have none and are named by their split and number")
    make_unique(out.ids, out.notes, out.split)
    if all(video := [re.match(r"(.+?)(?:\$_\$|\[)", name) for name in out.ids]):
        out.fields["video"] = [m.group(1) for m in video if m]
    return out


def left_out(payload: Mapping[str, Mapping[str, Any]], used: set[str]) -> list[str]:
    """A note that names the keys nothing was made of."""
    rest = sorted({str(key) for part in payload.values() for key in part} - used)
    return [f"left out: {', '.join(rest)}"] if rest else []


def column(source: Path, payload: Mapping[str, Mapping[str, Any]], key: str) -> np.ndarray:
    """The values of `key` of all splits, one after the other."""
    parts = [_array(source, split, part, key) for split, part in payload.items()]
    if len({part.shape[1:] for part in parts}) != 1:
        raise DataError(f"{source}: {key}: expected the same shape in every split, got {[p.shape for p in parts]}")
    if len({part.dtype.kind in "biuf" for part in parts}) != 1:
        raise DataError(f"{source}: {key}: expected the same kind of values in every split, got {[str(p.dtype) for p in parts]}")
    if parts[0].dtype.kind not in "biufO":
        widest, rows = max(part.dtype.itemsize for part in parts), sum(part.size for part in parts)
        check_padded(f"{source}: {key}", widest * rows, sum(part.nbytes for part in parts))
    try:
        return np.concatenate(parts)
    except UnicodeError as error:  # text in one split, bytes that are none in another
        raise DataError(f"{source}: {key}: expected the same kind of values in every split ({error})") from error


def one_a_sample(source: Path, payload: Mapping[str, Mapping[str, Any]], key: str, samples: int) -> np.ndarray:
    """The values of `key` of all splits, `(N,)`."""
    values = column(source, payload, key)
    if values.size != samples:
        raise DataError(f"{source}: {key}: expected one value for each of {samples} samples, got shape {values.shape}")
    return values.reshape(samples)


def make_unique(ids: list[str], notes: list[str], split: Sequence[Any] | None = None) -> None:
    """Adds `#2`, `#3`, ... to names that stand more than once, in place, and says so; `split` is the part of each."""
    if split is not None:
        parts: dict[str, set[Any]] = {}
        for name, part in zip(ids, split, strict=True):
            parts.setdefault(name, set()).add(part)
        if shared := [name for name, among in parts.items() if len(among) > 1]:
            notes.append(f"id: {len(shared)} names, such as {brief(shared[0])}, stand in more than one split, which may share samples")
    seen: dict[str, int] = {}
    taken = set(ids)
    renamed = 0
    for i, name in enumerate(ids):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            while f"{name}#{seen[name]}" in taken:
                seen[name] += 1
            ids[i] = f"{name}#{seen[name]}"
            taken.add(ids[i])
            renamed += 1
    if renamed:
        notes.append(f"id: {renamed} samples bore the name of another; '#' and a number were added")


def _array(source: Path, split: Any, part: Mapping[str, Any], key: str) -> np.ndarray:
    if key not in part:
        raise DataError(f"{source}: split {split!r}: expected an array {key!r}, got only {sorted(map(str, part))}")
    array = as_array(f"{source}: {split}/{key}", part[key])
    if not array.ndim:
        raise DataError(f"{source}: {split}/{key}: expected an array, got {type(part[key]).__name__}")
    return array


def _stored_lengths(source: Path, split: Any, part: Mapping[str, Any], name: str, array: np.ndarray) -> np.ndarray:
    lengths = _array(source, split, part, f"{name}_lengths")
    check_lengths(f"{source}: {split}/{name}_lengths", lengths, *array.shape[:2])
    return lengths


def _minus_infinities(x: np.ndarray) -> int:
    """How many values are -inf; where the sum of squares is finite there is none."""
    flat = x.reshape(-1)
    return 0 if math.isfinite(np.dot(flat, flat)) else int(np.count_nonzero(x == -np.inf))


def _without_minus_infinity(x: np.ndarray) -> np.ndarray:
    mended = x.copy()
    mended[mended == -np.inf] = 0
    return mended


def _span(x: np.ndarray) -> tuple[int, int]:
    """The first and one past the last row that is not zero throughout; (0, 0) where all are. NaN counts as a value."""
    if not x.size or (first := _first(x)) == len(x):
        return 0, 0
    if (x[-1] != 0).any():  # as in most files, which are padded in front
        return first, len(x)
    real = (x[::-1] != 0).any(axis=1)
    return first, len(x) - int(real.argmax())


def _without_infinite_ends(x: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """The same span without rows of nothing but zeros and -inf at its ends: once -inf is 0 they are padding."""

    def real(row: np.ndarray) -> bool:
        return bool(((row != 0) & ~np.isneginf(row)).any())

    while first < last and not real(x[first]):
        first += 1
    while first < last and not real(x[last - 1]):
        last -= 1
    return (first, last) if first < last else (0, 0)


def _first(x: np.ndarray) -> int:
    """The first row that is not zero throughout, or the number of rows. Reads no more bytes than it must."""
    if x.flags.c_contiguous:
        found = x.reshape(-1).view(np.bool_)  # `argmax` stops at the first byte that is not zero
        place = int(found.argmax())
        row = place // (x.shape[1] * x.itemsize)
        if (x[row] != 0).any():
            return row
        if not found[place]:
            return len(x)
    real = (x != 0).any(axis=1)  # -0.0 has a byte that is not zero
    return int(real.argmax()) if real.any() else len(x)


def _cut(first: int, last: int, length: int, steps: int, where: str) -> tuple[int, int]:
    """The `length` rows that hold everything: at the front, or at the back where the file is padded in front."""
    if last <= length:
        return 0, length
    if first >= steps - length:
        return steps - length, steps
    raise DataError(
        f"{where}: its stored length is {length}, but rows {first} to {last - 1} are not zero; lengths='zeros' ignores stored lengths"
    )


def _ids(source: Path, split: str, ids: Any, samples: int) -> list[str]:
    """Names as text: `video[start,end]` where three parts are stored, split and number where nothing is."""
    if ids is None:
        return [f"{split}_{i}" for i in range(samples)]
    several = isinstance(ids, list | tuple) or (isinstance(ids, np.ndarray) and ids.ndim)
    if not several or len(ids) != samples:
        raise DataError(f"{source}: {split}/id: expected {samples} names, got {len(ids) if several else type(ids).__name__}")
    try:
        return [_id(value) for value in ids]
    except DataError as error:
        raise DataError(f"{source}: {split}/id: {error}") from error


def _id(value: Any) -> str:
    if not isinstance(value, np.ndarray | list | tuple):
        return as_text(value)
    parts = [as_text(part) for part in np.asarray(value, dtype=object).flat]
    return f"{parts[0]}[{','.join(parts[1:])}]" if len(parts) > 1 else "".join(parts)
