"""Sequences of different lengths, end to end in one array, possibly memory mapped."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mea_graph.data.arrays import as_numbers
from mea_graph.data.errors import DataError
from mea_graph.data.progress import advance, start
from mea_graph.data.rows import make_rows

_KEPT_MAPPED = 8 << 20  # bytes read of a mapped file after which its pages are handed back; the system may map several times as many
_PIECE = 1 << 20  # bytes packed in one go: they stay in the processor's cache while they are checked and written


class Ragged:
    """The steps of one modality of all samples: `values` `(sum T, d)`, cut by `ptr` `(N + 1,)`, with optional `time` `(sum T,)`.

    A memory-mapped array is pickled as its file name, so that a worker process opens the file instead of receiving its contents.
    """

    def __init__(self, values: np.ndarray, ptr: np.ndarray, time: np.ndarray | None = None) -> None:
        self._backing = (values, time)
        self._touched = 0
        self.values = np.asarray(values)  # a plain view: slicing np.memmap itself costs several times as much
        self.ptr = ptr
        self.time = None if time is None else np.asarray(time)

    @property
    def width(self) -> int:
        return self.values.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ptr)

    def steps(self, first: int, last: int) -> np.ndarray:
        """The steps `[first, last)` of all samples' steps, as a view to be copied at once.

        Pages of a mapped file that were read count as this process's memory until the system needs them elsewhere. They are handed
        back every so often, so that a process's size does not grow with the data it has seen; they stay in the system's own cache.
        """
        mapped = getattr(self._backing[0], "_mmap", None)
        if mapped is not None:
            if self._touched > _KEPT_MAPPED and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)
                self._touched = 0
            self._touched += (last - first) * self.width * self.values.itemsize
        return self.values[first:last]

    def take(self, rows: np.ndarray, change: Callable[[int, np.ndarray], np.ndarray] | None = None) -> Ragged:
        """The sequences of the stored samples `rows`, copied into memory, each as `change(row, x)` makes it."""
        ptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[rows], dtype=np.int64)])
        values = np.empty((int(ptr[-1]), self.width), np.float32)
        time = None if self.time is None else np.empty(len(values), np.float32)
        for row, first, last in zip(rows, ptr[:-1], ptr[1:], strict=True):
            start, stop = int(self.ptr[row]), int(self.ptr[row + 1])
            x = self.steps(start, stop)
            values[first:last] = x if change is None else change(int(row), x)
            if time is not None and self.time is not None:
                time[first:last] = self.time[start:stop]
        return Ragged(values, ptr, time)

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(map(_to_reference, (self._backing[0], self.ptr, self._backing[1])))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        values, ptr, time = map(_from_reference, state)
        self.__init__(values, ptr, time)  # type: ignore[misc]


class _MappedFile(tuple):
    """Where a memory-mapped array lives: (file name, dtype, shape, offset)."""


def _to_reference(array: np.ndarray | None) -> Any:
    if isinstance(array, np.memmap):
        return _MappedFile((str(array.filename), array.dtype.str, array.shape, array.offset))
    return array


def _from_reference(reference: Any) -> Any:
    if isinstance(reference, _MappedFile):
        name, dtype, shape, offset = reference
        try:
            return np.memmap(name, dtype=dtype, shape=shape, offset=offset, mode="r")
        except (OSError, ValueError) as error:  # a worker or another process opens it by its name
            raise DataError(f"{name}: expected the cache of an open data set, got none; open the data set again ({error})"[:600]) from error
    return reference


class Mended(Sequence[Any]):
    """Sequences of which some are mended whenever they are requested, so that no mended copy of all of them is held.

    Args:
        arrays: One `(T, d)` array a sample, or None.
        mend: For the numbers of some samples a function that gives the mended array.
        lengths: How many rows that has, where it has fewer.
    """

    def __init__(
        self, arrays: Sequence[Any], mend: Mapping[int, Callable[[np.ndarray], np.ndarray]], lengths: dict[int, int] | None = None
    ) -> None:
        self.arrays, self.mend, self.lengths = arrays, mend, lengths or {}

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, i: Any) -> Any:
        return self.mend[i](self.arrays[i]) if i in self.mend else self.arrays[i]


def pack(name: str, arrays: Sequence[Any], ids: Sequence[str], time: Sequence[Any] | None = None) -> Ragged:
    """Joins one `(T, d)` array a sample (None: missing) into one `Ragged`; errors name the sample and the modality `name`.

    Raises:
        DataError: If shapes do not fit, or a value or time is not finite in float32.
    """
    if len(arrays) != len(ids):
        raise DataError(f"{name}: expected {len(ids)} sequences, one a sample, got {len(arrays)}")
    if time is not None and len(time) != len(ids):
        raise DataError(f"{name}: expected times for {len(ids)} samples, got {len(time)}")
    parts = (
        arrays
        if isinstance(arrays, Mended)
        else [None if a is None else as_numbers(f"{name}: sample {ids[i]!r}", a) for i, a in enumerate(arrays)]
    )
    shapes = parts.arrays if isinstance(parts, Mended) else parts
    width = _common_width(name, shapes, ids)
    ptr = np.zeros(len(parts) + 1, np.int64)
    fewer = parts.lengths if isinstance(parts, Mended) else {}
    np.cumsum([fewer.get(i, 0 if p is None else len(p)) for i, p in enumerate(shapes)], out=ptr[1:])
    rows = make_rows.get()(int(ptr[-1]), width)
    start(f"packing {name}", int(ptr[-1]))
    try:
        for first, last in _pieces(ptr, width):
            piece = rows.piece(int(ptr[last] - ptr[first]))
            # what overflows float32 becomes infinite, which `_refuse` tells with its sample; numpy has nothing to add
            with np.errstate(all="ignore"):
                for i in range(first, last):
                    if (part := parts[i]) is not None:
                        piece[ptr[i] - ptr[first] : ptr[i + 1] - ptr[first]] = part
                finite = all_finite(piece)
            if not finite:
                _refuse(name, piece, int(ptr[first]), ptr, ids, parts)
            rows.put(piece)
            advance(len(piece))
        values = rows.whole()
    finally:
        rows.close()
    return Ragged(values, ptr, None if time is None else _pack_time(name, time, ptr, ids))


def _pieces(ptr: np.ndarray, width: int) -> Iterator[tuple[int, int]]:
    """Runs of samples that have `_PIECE` bytes or little more, or one that has more alone."""
    first, most = 0, max(_PIECE // (4 * width), 1)
    while first < len(ptr) - 1:
        last = max(first + 1, int(np.searchsorted(ptr, ptr[first] + most, side="right")) - 1)
        yield first, last
        first = last


def all_finite(array: np.ndarray) -> bool:
    """Whether float32 numbers are all finite: the sum of their squares tells it in most cases, and takes no memory.

    It may overflow, of which numpy would warn: call it inside of `np.errstate`.
    """
    flat = array.reshape(-1)
    return math.isfinite(np.dot(flat, flat)) or bool(np.isfinite(flat).all())


def _common_width(name: str, parts: Sequence[np.ndarray | None], ids: Sequence[str]) -> int:
    width = None
    for part, sample in zip(parts, ids, strict=True):
        if part is None:
            continue
        if part.ndim != 2 or part.dtype.kind not in "biuf":
            hint = "; an array (N, d) of one step each is x[:, None], one (N, T) of one channel x[:, :, None]" if part.ndim == 1 else ""
            raise DataError(f"{name}: sample {sample!r}: expected numbers of shape (T, d), got {part.dtype} of shape {part.shape}{hint}")
        if width is None:
            width = part.shape[1]
        if part.shape[1] != width:
            raise DataError(f"{name}: sample {sample!r}: expected width {width} as in the samples before it, got {part.shape[1]}")
    if not width:
        raise DataError(f"{name}: expected a width of at least 1, got {'no sample that has this modality' if width is None else 'width 0'}")
    return width


def _pack_time(name: str, time: Sequence[Any], ptr: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    out = np.empty(int(ptr[-1]), np.float32)
    parts = [as_numbers(f"{name}: time of sample {sample!r}", () if t is None else t) for sample, t in zip(ids, time, strict=True)]
    for i, (sample, part) in enumerate(zip(ids, parts, strict=True)):
        if part.shape != (ptr[i + 1] - ptr[i],) or (part.size and part.dtype.kind not in "biuf"):
            hint = "; np.asarray(t, 'datetime64[us]') has dates, and 'timedelta64[us]' durations" if part.dtype.kind == "O" else ""
            raise DataError(
                f"{name}: sample {sample!r}: expected {ptr[i + 1] - ptr[i]} times in seconds, one a step, "
                f"got {part.dtype} of shape {part.shape}{hint}"
            )
        with np.errstate(all="ignore"):  # what overflows becomes infinite, and is refused
            out[ptr[i] : ptr[i + 1]] = part
    if not np.isfinite(out).all():
        _refuse(name, out, 0, ptr, ids, parts)
    return out


def _refuse(name: str, values: np.ndarray, first: int, ptr: np.ndarray, ids: Sequence[str], parts: Sequence[Any]) -> None:
    """Names the sample and step of the first value that is not finite in rows (or times) that begin with row `first` of all."""
    place = np.argwhere(~np.isfinite(values))[0]
    row = first + int(place[0])
    sample = int(np.searchsorted(ptr, row, side="right")) - 1
    step = row - int(ptr[sample])
    given = np.asarray(parts[sample])[(step, *place[1:])]
    got = f"{given}" + (" (infinite in float32)" if np.isfinite(given) else "")
    where = f"step {step}, channel {int(place[1])}" if values.ndim == 2 else f"time of step {step}"
    raise DataError(f"{name}: sample {ids[sample]!r}: expected finite numbers, got {got} in {where}")
