"""What a data set holds, checked once: the sequences of every modality and what is known of every sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mea_graph.data.arrays import as_names, as_numbers
from mea_graph.data.errors import DataError, printable
from mea_graph.data.labels import digit_notes, split_notes, text
from mea_graph.data.ragged import Ragged, pack
from mea_graph.data.texts import text_array
from mea_graph.data.times import in_seconds, time_notes

_RESERVED = {"y", "id"}  # names a sample uses beside its modalities
_MOST_CLASSES = 1 << 16  # counting classes takes memory for every one up to the largest


@dataclass(frozen=True)
class Store:
    """The arrays behind a data set and its views; `build_store` checks them."""

    sequences: dict[str, Ragged]
    ids: list[str]
    y: np.ndarray | None = None
    split: np.ndarray | None = None
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    source_hash: str | None = None
    standardized: bool = False  # a standardised data set was saved: these are z-scores

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the source file, or of the arrays where there is none."""
        if self.source_hash is not None:
            return self.source_hash
        digest = hashlib.sha256("\0".join(self.ids).encode())
        for name, ragged in self.sequences.items():
            _update(digest, name, ragged.values, ragged.ptr, ragged.time)
        _update(digest, "y", self.y)
        _update(digest, "split", self.split)
        for name, values in self.fields.items():
            _update(digest, name, values)
        return digest.hexdigest()


def _update(digest: Any, name: str, *arrays: np.ndarray | None) -> None:
    for array in arrays:
        digest.update(f"\0{name}\0".encode())
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data if array.size else b"")


def build_store(
    x: Mapping[str, Sequence[Any]],
    y: Any = None,
    ids: Sequence[Any] | None = None,
    time: Mapping[str, Sequence[Any]] | None = None,
    split: Sequence[str] | np.ndarray | None = None,
    fields: Mapping[str, Any] | None = None,
    label_names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    units_known: bool = False,
    standardized: bool = False,
) -> Store:
    """Checks everything a user or a reader gave and packs it; with `units_known` times are seconds, however slow."""
    if not x:
        raise DataError("x: expected at least one modality, got none")
    for name in x:
        check_modality_name(name)
    samples = len(next(iter(x.values())))
    names = _checked_ids(ids, samples)
    if unknown := set(time or {}) - set(x):
        raise DataError(f"time: expected modalities among {list(x)}, got {sorted(unknown)}")
    seconds, known = in_seconds({name: time[name] for name in x if time.get(name) is not None} if time else {}, names)
    sequences = {name: pack(name, arrays, names, seconds.get(name)) for name, arrays in x.items()}
    timed = time_notes(seconds, sequences, set(seconds) if units_known else known)
    labels = None if y is None else _checked_y(y, names)
    digits = [] if y is None else digit_notes(y)
    parts = None if split is None else _checked_column("split", split, samples, kinds="U")
    doubted = [] if parts is None else split_notes(parts, names)
    return Store(
        sequences=sequences,
        ids=names,
        y=labels,
        split=parts,
        fields={name: _checked_column(f"field {name!r}", values, samples) for name, values in (fields or {}).items()},
        label_names=_checked_label_names(label_names, labels),
        notes=tuple(dict.fromkeys(map(printable, [*notes, *timed, *digits, *doubted]))),
        standardized=standardized,
    )


def check_modality_name(name: Any) -> None:
    """Modality names become node types and module names: neither may be empty or hold a dot."""
    if not isinstance(name, str) or not name or "." in name or name in _RESERVED:
        raise DataError(f"modality name: expected a non-empty string without '.', and not one of {sorted(_RESERVED)}, got {name!r}")


def _checked_ids(ids: Sequence[Any] | None, samples: int) -> list[str]:
    names = as_names("ids", range(samples) if ids is None else ids)
    if len(names) != samples:
        raise DataError(f"ids: expected {samples}, one a sample, got {len(names)}")
    text_array("ids", names)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"ids: expected unique names, got {name!r} more than once")
        seen.add(name)
    return names


def _checked_y(y: Any, ids: list[str]) -> np.ndarray:
    array = as_numbers("y", y)
    if array.dtype.kind not in "biuf":
        raise DataError(f"y: expected numbers, got {array.dtype}")
    if array.ndim not in (1, 2) or len(array) != len(ids) or (array.ndim == 2 and array.shape[1] < 2):
        raise DataError(f"y: expected shape ({len(ids)},), or ({len(ids)}, K) for K >= 2 binary labels, got {array.shape}")
    if array.dtype.kind == "f":
        with np.errstate(all="ignore"):  # what overflows becomes infinite, which is refused with its sample
            array = array.astype(np.float32)
    if not (finite := np.isfinite(array.reshape(len(array), -1)).all(axis=1)).all():
        raise DataError(f"y: sample {ids[int(np.argmin(finite))]!r}: expected finite numbers, got {array[int(np.argmin(finite))]}")
    if array.ndim == 2:
        if not (binary := np.isin(array, (0, 1)).all(axis=1)).all():
            worst = int(np.argmin(binary))
            raise DataError(f"y: sample {ids[worst]!r}: expected binary labels (0 or 1) in a matrix of labels, got {array[worst].tolist()}")
        return array.astype(np.float32)
    if array.dtype.kind == "f":
        return array
    labels = array.astype(np.int64)
    if len(labels) and labels.min() < 0:
        worst = int(np.argmin(labels))
        raise DataError(f"y: sample {ids[worst]!r}: expected a class number >= 0 (for regression give floats), got {labels[worst]}")
    if len(labels) and labels.max() >= _MOST_CLASSES:
        worst = int(np.argmax(labels))
        raise DataError(
            f"y: sample {ids[worst]!r}: expected a class number below {_MOST_CLASSES} (for regression give floats), got {labels[worst]}"
        )
    return labels


def _checked_column(what: str, values: Any, samples: int, kinds: str = "biufU") -> np.ndarray:
    if not isinstance(values, list | tuple):
        values = text(as_numbers(what, values))
    if isinstance(values, np.ndarray) and (values.dtype.kind != "O" or not values.ndim):
        texts = values.dtype.kind == "U" and values.ndim == 1
    else:  # such as a list
        texts = any(isinstance(value, str) for value in values) and np.ndim(values[0]) == 0
        if texts and any(value is None for value in values):
            raise DataError(f"{what}: expected one text a sample, got None among them")
    array = text_array(what, values) if texts else text(as_numbers(what, values))
    if array.shape != (samples,):
        raise DataError(f"{what}: expected one value a sample, shape ({samples},), got {array.shape}")
    if array.dtype.kind not in kinds and array.size:
        raise DataError(f"{what}: expected {'strings' if kinds == 'U' else 'numbers or strings'}, got {array.dtype}")
    return array.copy() if array is values else array  # what the caller does to theirs later is no matter of the data set


def _checked_label_names(names: Sequence[str] | None, y: np.ndarray | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if y is None or (y.dtype.kind == "f" and y.ndim == 1):
        raise DataError(
            f"label_names: expected labels that are classes or a binary matrix, got {'no y' if y is None else 'regression targets'}"
        )
    needed = y.shape[1] if y.ndim == 2 else int(y.max(initial=-1)) + 1
    texts = as_names("label_names", names)
    if len(texts) < needed or (y.ndim == 2 and len(texts) != needed):
        raise DataError(f"label_names: expected {needed} names, got {len(texts)}: {texts}"[:300])
    if len(set(texts)) < len(texts):
        raise DataError(f"label_names: expected different names, got {texts}"[:300])
    return tuple(text_array("label_names", texts).tolist())
