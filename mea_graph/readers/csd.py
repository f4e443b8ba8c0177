"""Reads `.csd` files of the CMU-MultimodalSDK: HDF5 files with features and the intervals they stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.readers.checks import check_claimed_size, check_non_finite, check_samples, dataset_of, refused, repair
from mea_graph.readers.label_options import Columns, Labels, Names, as_labels, check_labels

_MOST_OVERLAP = 64  # segments that a step may be in, on average: each has a copy of it
_SEGMENT = re.compile(r"(.+)\[\d+\]$")


def read_csd(
    source: Mapping[str, Path],
    label: str | None = None,
    labels: Labels = None,
    columns: Columns = None,
    label_names: Names = None,
    split: Mapping[str, Sequence[str]] | None = None,
    non_finite: str = "error",
) -> MultimodalDataset:
    """Reads a `.csd` file for each modality, and one with labels whose intervals cut the videos into segments.

    Every interval i of a video in the label file becomes a sample `video[i]`. It contains the steps whose interval has its middle inside,
    in the order of time; their time is that middle, in seconds from the start of the segment. Files that are already aligned to segments
    (keys `video[i]`) stay unchanged. A file of words becomes the field "raw_text".

    Args:
        source: Path of every modality's file and of the label file, by name.
        label: The name of the label file; if None, the only name that contains "label".
        labels, columns, label_names: As for `open_dataset`; real numbers if a segment has one. With several, give `columns`:
            CMU-MOSEI's are sentiment, happy, sad, anger, surprise, disgust and fear.
        split: The names of the videos of every split; segments of other videos are left out.
        non_finite: "error", "zero" to set NaN and infinity in the features to 0, or "drop" to leave out the steps that have them.

    Raises:
        ImportError: If h5py is not installed (extra `hdf5`).
        DataError: If a file is not a `.csd` file, its arrays do not fit, or a video is in two splits.
    """
    check_non_finite(non_finite)
    check_labels(labels)
    label = _label_name(source, label)
    segments = _segments(_read(source[label]), source[label])
    notes: list[str] = []
    split_of = {} if split is None else _split_of(split)
    if split is not None:
        known = {video for _, video, *_ in segments}
        if unknown := [video for video in split_of if video not in known]:
            notes.append(f"split: {len(unknown)} videos of the lists have no labels, such as {unknown[0]!r}")
        kept = [segment for segment in segments if segment[1] in split_of]
        if len(kept) < len(segments):
            notes.append(f"{len(segments) - len(kept)} segments left out: their videos are in no split")
        segments = kept
    if not segments:
        raise DataError(f"{source[label]}: expected segments with labels, got none" + (" in the splits given" if split else ""))
    x: dict[str, list[Any]] = {}
    time: dict[str, list[Any]] = {}
    fields: dict[str, Any] = {"video": [video for _, video, *_ in segments]}
    for name, path in source.items():
        if name == label:
            continue
        values, times = _modality(_read(path, words=True), path, segments, name, notes)
        if any(value is not None and value.dtype.kind == "S" for value in values):
            field = name if "raw_text" in fields else "raw_text"
            fields[field] = [b" ".join([] if value is None else value.ravel().tolist()).decode("utf-8", "replace") for value in values]
            notes.append(f"{name}: holds words, which became the field {field!r}")
        else:
            x[name], time[name] = values, times
    if not x:
        raise DataError(f"{source[label].parent}: expected a file with numbers, got only words")
    repair(x, time, non_finite, notes)
    try:
        ids, rows = [name for name, *_ in segments], [row for *_, row in segments]
        if len(widths := {len(row) for row in rows}) != 1:
            raise DataError(f"labels: expected as many for every segment, got {sorted(widths)}")
        y, label_names = as_labels(np.array(rows), ids, labels, columns, label_names, notes, regression=True)
        return dataset_of(
            x,
            y,
            labels,
            ids=ids,
            time=time,
            split=None if split is None else [split_of[video] for _, video, *_ in segments],
            fields=fields,
            label_names=label_names,
            notes=notes,
        )
    except DataError as error:
        raise refused(source[label].parent, error) from error


def _split_of(split: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The split of every video that the lists name."""
    out: dict[str, str] = {}
    for name, videos in split.items():
        if isinstance(videos, str):
            raise DataError(f"split: {name}: expected a list of videos, got the text {videos!r}")
        for video in videos:
            if out.setdefault(video, name) != name:
                raise DataError(f"split: expected every video in one split, got {video!r} in {out[video]!r} and in {name!r}")
    return out


def _label_name(source: Mapping[str, Path], label: str | None) -> str:
    found = [name for name in source if "label" in name.lower()] if label is None else [label]
    if len(found) != 1 or found[0] not in source:
        raise DataError(f"label: expected one name among {list(source)} to be the label file, got {found}; say which with label=")
    if len(source) < 2:
        raise DataError(f"csd: expected a label file and at least one modality, got {list(source)}")
    return found[0]


def _read(path: Path, words: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features `(T, d)` and intervals `(T, 2)` of every video (or segment) in a file; with `words`, features may be byte strings."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading .csd files needs h5py: pip install 'mea-graph[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            groups = {name: group for name, group in _members(path, file, "the file").items() if isinstance(group, h5py.Group)}
            found = [data for name, group in groups.items() if (data := _members(path, group, repr(name)).get("data")) is not None]
            if len(found) != 1 or not isinstance(found[0], h5py.Group):
                raise DataError(f"{path}: expected one group with 'data', as the CMU-MultimodalSDK writes, got {list(file)[:9]}")
            videos = _members(path, found[0], "'data'")
            arrays = {key: _arrays(path, key, video, words) for key, video in videos.items()}
            stored, size = sum(array.id.get_storage_size() for pair in arrays.values() for array in pair), path.stat().st_size
            if stored > size:
                raise DataError(f"{path}: expected every array once, got arrays of {stored} bytes in a file of {size}")
            out = {key: (np.asarray(features), np.asarray(intervals, np.float64)) for key, (features, intervals) in arrays.items()}
    except (DataError, ImportError, MemoryError):
        raise
    except Exception as error:  # HDF5 reports a corrupt file as nearly anything
        raise DataError(f"{path}: cannot be read as a .csd file ({error})") from error
    for key, (features, intervals) in out.items():
        if features.ndim != 2 or intervals.shape != (len(features), 2):
            raise DataError(f"{path}: {key!r}: expected features (T, d) and intervals (T, 2), got {features.shape} and {intervals.shape}")
    if len({features.dtype.kind == "S" for features, _ in out.values()}) > 1:
        raise DataError(f"{path}: expected words or numbers as features, got words in some videos and numbers in others")
    return out


def _members(path: Path, group: Any, where: str) -> dict[str, Any]:
    """The members of a group by name, all of which must be in this very file; refuses links without following them."""
    import h5py

    names = list(group)
    for name in names:
        if "/" in name or name in (".", ".."):  # h5py would take it for a path, and follow the links on it
            raise DataError(f"{path}: {where}: expected names without '/', got {name!r}")
        if group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD:
            raise DataError(f"{path}: {where}: expected {name} in this very file, got a link")
    return {name: group[name] for name in names}


def _arrays(path: Path, key: str, video: Any, words: bool) -> tuple[Any, Any]:
    """Features and intervals of one video, not yet read."""
    from h5py import Dataset, Group, h5z

    where = f"{path}: {key!r}"
    members = _members(path, video, repr(key)) if isinstance(video, Group) else {}
    if not {"features", "intervals"} <= set(members):
        raise DataError(f"{where}: expected features and intervals, got {list(members)[:9]}")
    for name in ("features", "intervals"):
        array = members[name]
        if not isinstance(array, Dataset) or array.external or array.is_virtual:
            raise DataError(f"{where}: expected {name} as an array in this very file, got {array!r}")
        if array.dtype.kind not in ("biufS" if words and name == "features" else "biuf"):
            raise DataError(f"{where}: expected numbers as {name}, got {array.dtype}")
        check_claimed_size(f"{where}: {name}", array.size * array.dtype.itemsize, array.id.get_storage_size())
        plist = array.id.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        known = (h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_LZF)
        if any(filter not in known for filter in filters) or len(set(filters)) != len(filters):
            raise DataError(f"{where}: {name}: expected data that are plain, or compressed by gzip or lzf, got the filters {filters}")
    return members["features"], members["intervals"]


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
    check_samples(path, len(out), path.stat().st_size)
    return out


def _modality(
    data: dict[str, tuple[np.ndarray, np.ndarray]],
    path: Path,
    segments: Sequence[tuple[str, str, float, float, np.ndarray]],
    name: str,
    notes: list[str],
) -> tuple[list[Any], list[Any]]:
    x: list[Any] = []
    time: list[Any] = []
    data, middles = _in_order(data, name, notes)
    taken, most = 0, (1 << 16) + _MOST_OVERLAP * sum(map(len, middles.values()))
    for segment, video, start, end, _ in segments:
        key = segment if segment in data else video
        if key not in data:
            x.append(None)
            time.append(None)
            continue
        middle = middles[key]
        inside = slice(None) if segment in data else slice(*np.searchsorted(middle, (start, end)))
        taken += len(middle[inside])
        if taken > most:
            raise DataError(f"{path}: expected segments that overlap {_MOST_OVERLAP} times at most, got more than {most} steps in them")
        x.append(data[key][0][inside])
        time.append(middle[inside] - start)
    if all(piece is None for piece in x):
        raise DataError(f"{path}: expected the videos of the label file, such as {segments[0][1]!r}, got {list(data)[:3]}")
    if any(map(len, middles.values())) and not any(piece is not None and len(piece) for piece in x):
        seconds = "are both in seconds?"
        raise DataError(f"{path}: expected steps in the intervals of the label file, got none in any of {len(segments)}; {seconds}")
    if absent := sum(piece is None or not len(piece) for piece in x):
        notes.append(f"{name}: {absent} segments have no step and count as missing")
    return x, time


def _in_order(
    data: dict[str, tuple[np.ndarray, np.ndarray]], name: str, notes: list[str]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """Sorts the steps of every video by time and leaves out those whose interval is not finite; returns the middles too."""
    out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    middles: dict[str, np.ndarray] = {}
    sorted_, lost = 0, 0
    for key, (features, intervals) in data.items():
        if not (finite := np.isfinite(intervals).all(axis=1)).all():
            lost += int((~finite).sum())
            features, intervals = features[finite], intervals[finite]
        middle = intervals.mean(axis=1)
        if (np.diff(middle) < 0).any():
            order = np.argsort(middle, kind="stable")
            features, intervals, middle = features[order], intervals[order], middle[order]
            sorted_ += 1
        out[key], middles[key] = (features, intervals), middle
    if sorted_:
        notes.append(f"{name}: the steps of {sorted_} videos were not in the order of time, and were sorted")
    if lost:
        notes.append(f"{name}: {lost} steps left out, whose intervals are not finite")
    return out, middles
