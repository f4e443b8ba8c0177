"""Reads `.csd` files of the CMU-MultimodalSDK: HDF5 files with features and the intervals they stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.readers.checks import check_claimed_size

_SEGMENT = re.compile(r"(.+)\[\d+\]$")


def read_csd(
    source: Mapping[str, Path],
    label: str | None = None,
    label_column: int | None = None,
    split: Mapping[str, Sequence[str]] | None = None,
    non_finite: str = "error",
) -> MultimodalDataset:
    """Reads one `.csd` file a modality, and one with labels whose intervals cut the videos into segments.

    Every interval i of a video in the label file is a sample `video[i]`. It has the steps whose interval's middle lies in it, and
    their time is that middle, in seconds from the start of the segment. Files already aligned to segments (keys `video[i]`) are
    taken as they are.

    Args:
        source: path of every modality's file and of the label file, by name.
        label: which name is the label file; the only one that contains "label" where None.
        label_column: which column of the labels becomes `y`; needed where there are several.
        split: for every split the names of its videos; segments of other videos are left out.
        non_finite: "error", or "zero" to set NaN and infinity in the features to 0.

    Raises:
        ImportError: without h5py (extra `hdf5`).
        DataError: where a file is no such file, or its arrays do not fit.
    """
    if non_finite not in ("error", "zero"):
        raise DataError(f"non_finite: expected 'error' or 'zero', got {non_finite!r}")
    label = _label_name(source, label)
    segments = _segments(_read(source[label]), source[label])
    notes: list[str] = []
    if split is not None:
        split_of = {video: name for name, videos in split.items() for video in videos}
        kept = [segment for segment in segments if segment[1] in split_of]
        if len(kept) < len(segments):
            notes.append(f"{len(segments) - len(kept)} segments left out: their videos are in no split")
        segments = kept
    if not segments:
        raise DataError(f"{source[label]}: expected segments with labels, got none" + (" in the splits given" if split else ""))
    x: dict[str, list[Any]] = {}
    time: dict[str, list[Any]] = {}
    for name, path in source.items():
        if name != label:
            x[name], time[name] = _modality(_read(path), path, segments, non_finite == "zero", name, notes)
    try:
        return MultimodalDataset.from_arrays(
            x,
            _targets([row for *_, row in segments], label_column, source[label]),
            ids=[name for name, *_ in segments],
            time=time,
            split=None if split is None else [split_of[video] for _, video, *_ in segments],
            fields={"video": [video for _, video, *_ in segments]},
            notes=notes,
        )
    except DataError as error:
        raise DataError(f"{source[label].parent}: {error}") from error


def _label_name(source: Mapping[str, Path], label: str | None) -> str:
    found = [name for name in source if "label" in name.lower()] if label is None else [label]
    if len(found) != 1 or found[0] not in source:
        raise DataError(f"label: expected one name among {list(source)} to be the label file, got {found}; say which with label=")
    if len(source) < 2:
        raise DataError(f"csd: expected a label file and at least one modality, got {list(source)}")
    return found[0]


def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features `(T, d)` and intervals `(T, 2)` of every video (or segment) in a file."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading .csd files needs h5py: pip install 'mea-graph[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            roots = [key for key in file if isinstance(file[key], h5py.Group) and "data" in file[key]]
            if len(roots) != 1:
                raise DataError(f"{path}: expected one group with 'data', as the CMU-MultimodalSDK writes, got {list(file)}")
            data = file[roots[0]]["data"]
            out = {str(key): (_array(path, data, key, "features"), _array(path, data, key, "intervals").astype(np.float64)) for key in data}
    except (DataError, ImportError):
        raise
    except Exception as error:  # HDF5 reports a corrupt file as nearly anything
        raise DataError(f"{path}: cannot be read as a .csd file ({error})") from error
    for key, (features, intervals) in out.items():
        if features.ndim != 2 or intervals.shape != (len(features), 2):
            raise DataError(f"{path}: {key!r}: expected features (T, d) and intervals (T, 2), got {features.shape} and {intervals.shape}")
    return out


def _array(path: Path, data: Any, key: str, name: str) -> np.ndarray:
    """An array of one video, once it is sure that it stands in this file and is no larger than it can be."""
    from h5py import Dataset, HardLink

    where = f"{path}: {key!r}"
    if name not in data[key]:
        raise DataError(f"{where}: expected features and intervals, got {list(data[key])}")
    if not all(isinstance(group.get(n, getlink=True), HardLink) for group, n in ((data, key), (data[key], name))):
        raise DataError(f"{where}: expected {name} in this very file, got a link")
    array = data[key][name]
    if not isinstance(array, Dataset) or array.external or array.is_virtual:
        raise DataError(f"{where}: expected {name} as an array in this very file, got {array!r}")
    if array.dtype.kind not in "biuf":
        hint = " (words need the file with their vectors)" if name == "features" else ""
        raise DataError(f"{where}: expected numbers as {name}, got {array.dtype}{hint}")
    check_claimed_size(f"{where}: {name}", array.size * array.dtype.itemsize, path.stat().st_size)
    return np.asarray(array)


def _segments(labels: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> list[tuple[str, str, float, float, np.ndarray]]:
    """(segment, video, start, end, label row) of every interval in the label file."""
    out = []
    for key, (features, intervals) in labels.items():
        aligned = _SEGMENT.match(key)
        if aligned and len(features) != 1:
            raise DataError(f"{path}: {key!r}: expected one label for a segment, got {len(features)}")
        for i, (row, (start, end)) in enumerate(zip(features, intervals, strict=True)):
            if not start <= end:
                raise DataError(f"{path}: {key!r}: interval {i}: expected start <= end, got {start} and {end}")
            out.append((key if aligned else f"{key}[{i}]", aligned.group(1) if aligned else key, float(start), float(end), row))
    return out


def _modality(
    data: dict[str, tuple[np.ndarray, np.ndarray]],
    path: Path,
    segments: Sequence[tuple[str, str, float, float, np.ndarray]],
    repair: bool,
    name: str,
    notes: list[str],
) -> tuple[list[Any], list[Any]]:
    x: list[Any] = []
    time: list[Any] = []
    repaired = 0
    for segment, video, start, end, _ in segments:
        features, intervals = data.get(segment, data.get(video, (None, None)))
        if features is None or intervals is None:
            x.append(None)
            time.append(None)
            continue
        middle = intervals.mean(axis=1)
        inside = slice(None) if segment in data else (middle >= start) & (middle < end)
        piece = features[inside]
        if repair and not (finite := np.isfinite(piece)).all():
            piece, repaired = np.where(finite, piece, 0), repaired + int((~finite).sum())
        x.append(piece)
        time.append(middle[inside] - start)
    if all(piece is None for piece in x):
        raise DataError(f"{path}: expected the videos of the label file, such as {segments[0][1]!r}, got {list(data)[:3]}")
    if absent := sum(piece is None or not len(piece) for piece in x):
        notes.append(f"{name}: {absent} segments have no step and count as missing")
    if repaired:
        notes.append(f"{name}: {repaired} values that were NaN or infinite set to 0")
    return x, time


def _targets(rows: Sequence[np.ndarray], label_column: int | None, path: Path) -> np.ndarray:
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise DataError(f"{path}: expected as many labels for every segment, got {sorted(widths)}")
    labels = np.array(rows)
    if label_column is None and labels.shape[1] > 1:
        raise DataError(f"{path}: {labels.shape[1]} labels a segment; say with label_column= which one to use")
    if not 0 <= (label_column or 0) < labels.shape[1]:
        raise DataError(f"{path}: label_column: expected an integer in [0, {labels.shape[1]}), got {label_column}")
    return labels[:, label_column or 0].astype(np.float64)
