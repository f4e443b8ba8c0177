"""Reads `.npz` files: padded arrays `X` with their true lengths `X_len`."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.labels import is_split, text
from mea_graph.data.saved import FORMAT, saved_arrays
from mea_graph.readers.checks import check_claimed_size, check_lengths, check_non_finite, check_samples, dataset_of, refused, repair
from mea_graph.readers.label_options import Columns, Labels, Names, as_labels, check_labels
from mea_graph.readers.near_names import near_names

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


_LABELS = (("label", "y"), ("labels", "target", "targets"))  # names of the labels; the second group counts where none of the first is there
_IDS = ("id", "name")


def read_npz(
    source: Path,
    label: str | None = None,
    id: str | None = None,
    split: str | None = None,
    labels: Labels = None,
    columns: Columns = None,
    label_names: Names = None,
    static: Sequence[str] = (),
    non_finite: str = "error",
) -> MultimodalDataset:
    """Reads an `.npz` file with padded arrays, or one that `MultimodalDataset.save` wrote. It unpickles nothing.

    Every array `X` `(N, T, d)` that has no name of labels is a modality; `X_len` (or `X_lengths`) `(N,)` holds its true lengths (T if
    absent) and `X_time` `(N, T)` its seconds. An array `(N, T)` with lengths is a modality of one channel. Other arrays `(N,)` become
    fields. The notes of the data set list what was left out and what was guessed.

    Args:
        source: The file.
        label: Array with the labels; "label", "y", "labels", "target" or "targets" if None.
        id: Array with the names of the samples. If None, "id" or "name"; without either, the names are numbers.
        split: Array with the split of each sample. If None, "split", provided it holds only train, valid (val, dev) and test.
        labels, columns, label_names: As for `open_dataset`.
        static: Names of arrays `(N, d)`, one vector for each sample, which become modalities of one step.
        non_finite: "error", "zero" to set NaN and infinity in the sequences to 0, or "drop" to leave out the steps that have them.

    Raises:
        DataError: If the file is not an `.npz` file, holds Python objects, or its arrays do not fit each other.
    """
    check_non_finite(non_finite)
    check_labels(labels)
    arrays = _load(source)
    try:
        if FORMAT in arrays:
            if label or id or split or labels is not None or columns is not None or label_names or static or non_finite != "error":
                raise DataError("options: expected none for a saved data set, which knows its labels, names and splits")
            return dataset_of(**saved_arrays(arrays), labels=FORMAT, units_known=True)  # nothing in it is to be guessed
        parts = _padded(arrays, label, id, split, label_names, static)
        repair(parts["x"], parts["time"], non_finite, parts["notes"])
        if parts["y"] is not None:
            ids = range(len(next(iter(parts["x"].values())))) if parts["ids"] is None else parts["ids"]
            parts["y"], parts["label_names"] = as_labels(parts["y"], list(map(str, ids)), labels, columns, label_names, parts["notes"])
        return dataset_of(labels=labels, **parts)
    except DataError as error:
        raise refused(source, error) from error


def _padded(
    arrays: dict[str, np.ndarray], label: str | None, id: str | None, split: str | None, label_names: Any, static: Sequence[str]
) -> dict[str, Any]:
    """The arguments of `MultimodalDataset.from_arrays` in padded arrays."""
    arrays, notes = _with_channels(arrays, [static] if isinstance(static, str) else static)
    labelled = {label, *sum(_LABELS, ())}  # labels must never become inputs of the model
    names = [name for name, array in arrays.items() if array.ndim == 3 and name not in labelled]
    if not names:
        raise DataError(
            "expected an array of shape (N, T, d) for every modality (of one channel: array[:, :, None]; "
            f"of one vector a sample: static=), got { ({k: a.shape for k, a in arrays.items()}) }"
        )
    samples = len(arrays[names[0]])
    check_samples("arrays", samples, sum(array.nbytes for array in arrays.values()))
    taken = {*names, *(f"{name}_{part}" for name in names for part in ("len", "time"))}

    def take(what: str, name: str | None, candidates: tuple[str, ...]) -> np.ndarray | None:
        found = [c for c in ((name,) if name else candidates) if c in arrays]
        if name and not found:
            raise DataError(f"{what}: expected one of the arrays {sorted(arrays)}, got {name!r}")
        if len(found) > 1:
            raise DataError(f"{what}: expected one array, got {found}; say which with {what}=")
        if found and not arrays[found[0]].ndim:
            raise DataError(f"{what}: expected an array with one value a sample in {found[0]!r}, got a single value")
        taken.update(found)
        return arrays[found[0]] if found else None

    y = take("label", label, _LABELS[0])
    if y is not None and label is None and (others := [name for name in _LABELS[1] if name in arrays]):
        notes.append(f"labels are those of {next(name for name in _LABELS[0] if name in arrays)!r}; label= takes {' or '.join(others)}")
    if y is None and (y := take("label", None, _LABELS[1])) is None:
        notes.append(f"no labels: none of the arrays is called {', '.join(sum(_LABELS, ()))}; label= names another")
    if y is not None and y.ndim == 3 and min(y.shape[1:]) > 1 and y.shape[2] != 2:
        name = next(name for name in (label, *sum(_LABELS, ())) if arrays.get(name or "") is y)
        raise DataError(
            f"label: array {name!r} holds labels by its name: expected shape (N,), (N, K) or pairs (no, yes) (N, K, 2), got {y.shape}; "
            "give a modality another name"
        )
    if split is None and "split" in arrays:
        if is_split(arrays["split"], samples):
            split = "split"
        else:
            notes.append(
                "array 'split' is a field, not the split: it holds more than train, valid and test; split='split' takes it all the same"
            )
    ids, splits = take("id", id, _IDS), take("split", split, ())
    x, time = {}, {}
    for name in names:
        lengths = _lengths(name, arrays)
        x[name] = [row[:n] for row, n in zip(arrays[name], lengths, strict=True)]
        if f"{name}_len" not in arrays:
            notes += _padding_notes(name, arrays)
        if (times := arrays.get(f"{name}_time")) is not None:
            if times.shape != arrays[name].shape[:2]:
                raise DataError(f"{name}_time: expected shape {arrays[name].shape[:2]}, got {times.shape}")
            time[name] = [row[:n] for row, n in zip(times, lengths, strict=True)]
    notes += near_names(arrays, names, taken)
    rest = {name: array for name, array in arrays.items() if name not in taken}
    fields = {name: array for name, array in rest.items() if array.shape == (samples,) and array.dtype.kind in "biufU"}
    notes += [_left_out(name, array, samples) for name, array in rest.items() if name not in fields]
    return {
        "x": x,
        "y": y,
        "ids": None if ids is None else list(ids),
        "time": time,
        "split": splits,
        "fields": fields,
        "label_names": label_names,
        "notes": notes,
    }


def _with_channels(arrays: dict[str, np.ndarray], static: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays, those of one vector a sample and of one channel as sequences, and notes on what was guessed."""
    notes = []
    arrays = dict(arrays)
    for name in [name for name in arrays if f"{name}_lengths" in arrays and f"{name}_len" not in arrays]:  # as MMSA calls them
        arrays[f"{name}_len"] = arrays.pop(f"{name}_lengths")
        notes.append(f"{name}: true lengths are those of '{name}_lengths'")
    changed = dict(arrays)
    for name in static:
        if name not in arrays or arrays[name].ndim != 2:
            got = "no such array" if name not in arrays else f"shape {arrays[name].shape}"
            raise DataError(f"static: expected {name!r} to be an array of shape (N, d), got {got}")
        changed[name] = arrays[name][:, None]
    for name, array in arrays.items():
        if array.ndim == 2 and name not in static and _are_lengths(arrays.get(f"{name}_len"), *array.shape):
            changed[name] = array[:, :, None]
            notes.append(f"array {name!r} of shape {array.shape} is taken as sequences of one channel, since {name}_len is there")
    return changed, notes


def _are_lengths(lengths: np.ndarray | None, samples: int, steps: int) -> bool:
    return lengths is not None and lengths.shape == (samples,) and lengths.dtype.kind in "iu" and lengths.max(initial=0) <= steps


def _left_out(name: str, array: np.ndarray, samples: int) -> str:
    note = f"array {name!r} of shape {array.shape} left out: "
    if array.ndim == 3:
        return note + "its name is one of labels, and labels are no modality; label= takes them, and a modality needs another name"
    if array.shape == (samples,):
        return note + f"its values are neither numbers nor text, but {array.dtype}"
    note += f"neither sequences (N, T, d) nor one value a sample (N,), N = {samples}"
    if array.ndim == 2 and len(array) == samples and array.dtype.kind in "biuf":
        note += f"; static=[{name!r}] makes it a modality of one step"
    return note


def _load(source: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(source) as archive:
            check_claimed_size(source, sum(member.file_size for member in archive.infolist()), source.stat().st_size)
            for member in archive.infolist():
                arrays[member.filename.removesuffix(".npy")] = text(_read_member(archive, member))
    except MemoryError:  # the cache says how much memory is needed
        raise
    except Exception as error:  # a corrupt archive can raise nearly anything
        if isinstance(error, DataError):
            raise DataError(f"{source}: {str(error).removeprefix(f'{source}: ')}") from error
        where = f" (array {len(arrays) + 1}, after {list(arrays)[-1:]})" if arrays else ""
        raise DataError(f"{source}: cannot be read as .npz without unpickling{where}: {error}") from error
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Reads one array. Checks that its header fits its data first: numpy takes the memory that the header claims before it reads."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{member.filename}: expected a member stored or deflated, as numpy writes, got type {member.compress_type}")
    with archive.open(member) as file:
        if (version := np.lib.format.read_magic(file)) not in _HEADERS:
            raise DataError(f"{member.filename}: expected .npy version 1 or 2, got {version}")
        shape, _, dtype = _HEADERS[version](file)
        count, there = math.prod(map(int, shape)), member.file_size - file.tell()
        if dtype.hasobject:
            raise DataError(f"{member.filename}: cannot be read without unpickling: it holds Python objects")
        if count * dtype.itemsize != there or (not dtype.itemsize and count):
            raise DataError(f"{member.filename}: expected {count * dtype.itemsize} bytes for {dtype} of shape {shape}, got {there}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _padding_notes(name: str, arrays: dict[str, np.ndarray]) -> list[str]:
    """What hints at padding in a modality without true lengths: it would be read as steps like any other."""
    sequences = arrays[name]
    steps = sequences.shape[1]
    notes = []
    padded = int((sequences[:, -1] == 0).all(axis=1).sum()) if steps and sequences.dtype.kind in "biuf" else 0
    if padded:
        remedy = f"if it is padding, give the true lengths as '{name}_len'"
        notes.append(f"{name}: {padded} samples end in a step of zeros only, which is read as a step like any other; {remedy}")
    return notes


def _lengths(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    samples, steps = arrays[name].shape[:2]
    lengths = arrays.get(f"{name}_len")
    if lengths is None:
        return np.full(samples, steps)
    check_lengths(f"{name}_len", lengths, samples, steps)
    return lengths
