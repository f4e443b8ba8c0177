"""Shared by the readers: checks of lengths and claimed sizes, repairs of values that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.labels import WHOLE_OF_FILE, read_names
from mea_graph.data.ragged import Mended, all_finite
from mea_graph.data.store import build_store

_MOST_EXPANSION = 1032  # deflate, the only compression the field's files use, cannot shrink data more than this


def check_lengths(where: str, lengths: np.ndarray, samples: int, steps: int) -> None:
    """Refuses anything but one integer in `[0, steps]` a sample."""
    expected = f"{where}: expected integers in [0, {steps}] of shape ({samples},)"
    if lengths.shape != (samples,) or lengths.dtype.kind not in "iu":
        raise DataError(f"{expected}, got {lengths.dtype} of shape {lengths.shape}")
    if samples and not (lengths.min() >= 0 and lengths.max() <= steps):
        raise DataError(f"{expected}, got some from {lengths.min()} to {lengths.max()}")


def check_claimed_size(where: Any, claimed: int, file_bytes: int) -> None:
    """Refuses a file that claims to hold more than its size allows, before memory is taken for it."""
    if claimed > _MOST_EXPANSION * file_bytes:
        most = f"{_MOST_EXPANSION} bytes of arrays for a byte of the file"
        raise DataError(f"{where}: expected at most {most}, got {claimed} for {file_bytes}")


def check_samples(where: Any, samples: int, file_bytes: int) -> None:
    """Refuses more samples than a file of its size can hold: empty ones cost time and memory too."""
    most = (1 << 16) + file_bytes // 8
    if samples > most:
        raise DataError(f"{where}: expected at most {most} samples in a file of its size, got {samples} or more")


def check_non_finite(non_finite: str) -> None:
    """Refuses an option that `repair` does not know."""
    if non_finite not in ("error", "zero", "drop"):
        raise DataError(f"non_finite: expected 'error', 'zero' or 'drop', got {non_finite!r}")


def repair(x: dict[str, Any], time: Mapping[str, list[Any]] | None, non_finite: str, notes: list[str]) -> None:
    """Mends NaN and infinity in sequences of numbers, when they are packed, and says in the notes how many there are.

    Args:
        x: For each modality one `(T, d)` array a sample, or None; sequences that need it are replaced by `Mended` ones.
        time: For some modalities one `(T,)` array a sample; steps are left out in place.
        non_finite: "error" leaves everything as it is, to be refused; "zero" sets such values to 0; "drop" leaves out every step
            that has one.
        notes: Takes the counts.
    """
    if non_finite == "error":
        return
    for name, arrays in x.items():
        count, mend, lengths = 0, {}, {}
        with np.errstate(all="ignore"):
            broken = [
                i for i, array in enumerate(arrays) if array is not None and array.dtype.kind == "f" and not all_finite(single(array))
            ]
        for i in broken:
            array = arrays[i]
            with np.errstate(all="ignore"):
                finite = np.isfinite(single(array))
            if non_finite == "zero":
                mend[i], count = _finite_or_zero, count + int((~finite).sum())
                continue
            whole = finite.reshape(len(array), -1).all(axis=1)
            mend[i], lengths[i], count = _only_finite, int(whole.sum()), count + int((~whole).sum())
            if time is not None and name in time and time[name][i] is not None:
                time[name][i] = time[name][i][whole]
        if not mend:
            continue
        x[name] = with_mended(arrays, mend, lengths)
        what = "values that were NaN or infinite set to 0" if non_finite == "zero" else "steps with NaN or infinite values left out"
        notes.append(f"{name}: {count} {what}, in {len(mend)} samples")


def single(array: np.ndarray) -> np.ndarray:
    """Casts numbers to the type that the data set stores; too large ones become infinite. Call it inside `np.errstate`."""
    return array.astype(np.float32, copy=False)


def _finite_or_zero(array: np.ndarray) -> np.ndarray:
    array = single(array)
    return np.where(np.isfinite(array), array, np.float32(0))


def _only_finite(array: np.ndarray) -> np.ndarray:
    return array[np.isfinite(single(array)).reshape(len(array), -1).all(axis=1)]


def with_mended(
    arrays: Sequence[Any], mend: Mapping[int, Callable[[np.ndarray], np.ndarray]], lengths: dict[int, int] | None = None
) -> Mended:
    """Sequences of which some are mended on access, after any earlier mending."""
    if not isinstance(arrays, Mended):
        return Mended(arrays, mend, lengths)
    both = {i: _after(arrays.mend[i], function) if i in arrays.mend else function for i, function in mend.items()}
    return Mended(arrays.arrays, {**arrays.mend, **both}, {**arrays.lengths, **(lengths or {})})


def _after(first: Callable[[np.ndarray], np.ndarray], then: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: then(first(array))


def dataset_of(
    x: Mapping[str, Any], y: Any, labels: Any, *, label_names: Any, split: Any, notes: Sequence[str], **arrays: Any
) -> MultimodalDataset:
    """Makes the data set of what a file holds. Where the option `labels` is None, a note says what the labels were taken for."""
    whole = WHOLE_OF_FILE if labels is None else None  # no note where the caller said what they are
    y, label_names, split, notes = read_names(y, label_names, split, notes, whole)
    return MultimodalDataset(build_store(x, y, label_names=label_names, split=split, notes=notes, **arrays))


def refused(source: Any, error: DataError) -> DataError:
    """The same error with the name of the file and, if there is one, the option that helps."""
    text = str(error).removeprefix(f"{source}: ")  # some name it themselves
    helps = "expected finite numbers" in text and not text.startswith("y:") and "in time of" not in text
    return DataError(f"{source}: {text}" + ("; non_finite='zero' sets such values to 0, 'drop' leaves out their steps" if helps else ""))
