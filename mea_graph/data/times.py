"""Time stamps as people hold them: what they are in seconds, and notes on those that can hardly be seconds, or are no use as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mea_graph.data.arrays import as_numbers
from mea_graph.data.doubts import OF_UNIT
from mea_graph.data.errors import DataError
from mea_graph.data.ragged import Ragged

_WHOLE = {"W": 604800, "D": 86400, "h": 3600, "m": 60, "s": 1}  # seconds in a unit of numpy; years and months have no fixed number
_PARTS = {"ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12, "fs": 10**15, "as": 10**18}  # units in a second
_UNITS = {"milliseconds": "1e3", "microseconds": "1e6", "nanoseconds": "1e9"}
_SLOW = 10.0  # seconds: speech, faces and text have a step every few milliseconds to every few seconds
_LONGER = 300.0  # times as long: what a wrong unit makes of a modality is 1000 times as long as the others, or nearly so
_INSTANT = 1e-6  # seconds between two times that count as different


def in_seconds(time: Mapping[str, Sequence[Any]], ids: Sequence[str]) -> tuple[dict[str, list[np.ndarray]], set[str]]:
    """Numbers as they are and arrays with a unit in seconds, and the modalities that have a unit.

    Dates become the seconds since the first one of their sample in any modality, counted in whole units of theirs.

    Raises:
        DataError: If some modalities have dates and others none, a date or duration is missing, or its unit is no number of seconds.
    """
    parts = {
        name: [as_numbers(f"{name}: time of {_called(ids, i)}", () if part is None else part) for i, part in enumerate(of_samples)]
        for name, of_samples in time.items()
    }
    kinds: dict[str, set[str]] = {name: {part.dtype.kind for part in of if part.size} for name, of in parts.items()}
    if any("M" in kind for kind in kinds.values()):
        _check_dates(kinds)
        first = _first_dates(parts, ids)
        parts = {name: [_since(part, first.get(i), name, _called(ids, i)) for i, part in enumerate(of)] for name, of in parts.items()}
    found = {name: [_duration(part, name, _called(ids, i)) for i, part in enumerate(of)] for name, of in parts.items()}
    return found, {name for name, kind in kinds.items() if kind and kind <= {"m", "M"}}


def _called(ids: Sequence[str], i: int) -> str:
    return f"sample {ids[i]!r}" if i < len(ids) else f"sample {i}"


def _check_dates(kinds: Mapping[str, set[str]]) -> None:
    if other := [name for name, kind in kinds.items() if kind - {"M"}]:
        dated = next(name for name, kind in kinds.items() if "M" in kind)
        remedy = "(t - start) / np.timedelta64(1, 's') has seconds from a moment of the sample"
        raise DataError(
            f"{other[0]}: expected dates in all times of all modalities, or in none, got others beside those of {dated!r}; {remedy}"
        )


def _first_dates(parts: Mapping[str, Sequence[np.ndarray]], ids: Sequence[str]) -> dict[int, np.datetime64]:
    first: dict[int, np.datetime64] = {}
    for name, of_samples in parts.items():
        for i, part in enumerate(of_samples):
            if part.size:
                _check_there(part, name, _called(ids, i))
                first[i] = min(first.get(i, part.min()), part.min())
    return first


def _check_there(part: np.ndarray, name: str, sample: str) -> None:
    if (absent := np.isnat(part)).any():
        raise DataError(f"{name}: {sample}: expected a time for every step, got NaT in step {int(absent.argmax())}")


def _since(part: np.ndarray, first: np.datetime64 | None, name: str, sample: str) -> np.ndarray:
    if first is None or not part.size:
        return np.zeros(part.shape)
    seconds = _duration(part - first, name, sample)
    coarse = (part.astype("datetime64[s]") - first.astype("datetime64[s]")).astype(np.float64)
    if (np.abs(seconds - coarse) > 1).any() or (seconds < 0).any():  # numpy wraps what its finer unit cannot hold
        raise DataError(f"{name}: {sample}: expected dates that one unit can hold, got {part.min()} beside {first}, {part.dtype}")
    return seconds


def _duration(part: np.ndarray, name: str, sample: str) -> np.ndarray:
    if part.dtype.kind != "m":
        return part
    unit, count = np.datetime_data(part.dtype)
    if unit not in _WHOLE and unit not in _PARTS:
        raise DataError(f"{name}: {sample}: expected times in a unit from weeks to attoseconds, got {part.dtype}")
    _check_there(part, name, sample)
    return part.astype(np.int64) * float(count * _WHOLE.get(unit, 1)) / _PARTS.get(unit, 1)


def time_notes(given: Mapping[str, Sequence[np.ndarray]], stored: Mapping[str, Ragged], known: set[str]) -> list[str]:
    """Notes on times that are no use as they are, or are no seconds by all appearance.

    Args:
        given: Times in seconds, before they became float32.
        stored: What was made of them.
        known: The modalities whose unit the caller said, about which there is no doubt.
    """
    notes: list[str] = []
    doubted = set(known)
    ends = {}
    for name, parts in given.items():
        ptr = stored[name].ptr
        time = np.concatenate([np.asarray(part, np.float64) for part in parts]) if parts else np.zeros(0)
        notes += _useless(name, time, stored[name])
        if name not in known and (step := median_step(time, ptr)) >= _SLOW:
            doubted.add(name)
            notes.append(_of_unit(name, step))
        ends[name] = _ends(time, ptr)
    for one, other in combinations(ends, 2):
        notes += _apart(one, other, ends[one], ends[other], doubted)
    return notes


def median_step(time: np.ndarray, ptr: np.ndarray, rows: np.ndarray | None = None) -> float:
    """The median of the differences above 0 between neighbours in time of one sample; 0 where there are none."""
    steps = np.diff(time)
    inside = steps > 0
    inside[ptr[1:-1][(ptr[1:-1] > 0) & (ptr[1:-1] < len(time))] - 1] = False
    if rows is not None:
        wanted = np.zeros(len(ptr) - 1, bool)
        wanted[rows] = True
        inside &= np.repeat(wanted, np.diff(ptr))[1:]
    return float(np.median(steps[inside])) if inside.any() else 0.0


def _useless(name: str, time: np.ndarray, stored: Ragged) -> list[str]:
    assert stored.time is not None
    sample = np.repeat(np.arange(len(stored.ptr) - 1), stored.lengths)
    inside = sample[1:] == sample[:-1]
    given, kept = np.diff(time), np.diff(stored.time)
    falling = len(np.unique(sample[1:][inside & (given < 0)]))
    equal = len(np.unique(sample[1:][inside & (given > _INSTANT) & (kept == 0)]))
    notes = [f"{name}: the times of {falling} samples fall somewhere; a window in seconds needs them in order"] if falling else []
    if equal:
        remedy = "let them begin near 0, at one moment for all modalities of a sample"
        notes.append(f"{name}: different times of {equal} samples are the same in float32; {remedy}")
    return notes


def _of_unit(name: str, step: float) -> str:
    unit, divisor = next(((u, d) for u, d in _UNITS.items() if step / float(d) < _SLOW), ("nanoseconds", "1e9"))
    return (
        f"{name}: {OF_UNIT}, and their steps are {step:g} s apart (median), slow for speech, faces or text; if they are {unit}, give "
        f"t / {divisor}; if they are seconds, say so by a unit: (1000 * t).astype('timedelta64[ms]')"
    )


def _ends(time: np.ndarray, ptr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last time `(N,)` of every sample, NaN where it has fewer than two steps."""
    first, last = np.full((2, len(ptr) - 1), np.nan)
    rows = np.flatnonzero(np.diff(ptr) > 0)
    if len(rows):
        first[rows] = np.minimum.reduceat(time, ptr[rows])
        last[rows] = np.maximum.reduceat(time, ptr[rows])
    few = np.diff(ptr) < 2
    first[few] = last[few] = np.nan
    return first, last


def _apart(
    one: str, other: str, of_one: tuple[np.ndarray, np.ndarray], of_other: tuple[np.ndarray, np.ndarray], doubted: set[str]
) -> list[str]:
    """A note on two modalities whose times lie apart, or last so long and so short that they have different units."""
    both = np.isfinite(of_one[0]) & np.isfinite(of_other[0])
    (first, last), (begin, end) = ([side[both] for side in ends] for ends in (of_one, of_other))
    long, short = last - first, end - begin
    wide = (long > 0) & (short > 0)
    if wide.any() and not {one, other} & doubted:
        ratio = float(np.median(long[wide] / short[wide]))
        if not 1 / _LONGER < ratio < _LONGER:
            longer, shorter, ratio = (one, other, ratio) if ratio > 1 else (other, one, 1 / ratio)
            return [f"{longer}: {OF_UNIT}, and last {ratio:.3g} times as long as those of {shorter!r}; give both in seconds"]
    apart = int(((first > end) | (begin > last)).sum())
    if apart and 2 * apart > both.sum():
        remedy = "count the times of a sample from one moment for all modalities"
        return [f"{one}: its times and those of {other!r} lie apart in {apart} of {both.sum()} samples; {remedy}"]
    return []
