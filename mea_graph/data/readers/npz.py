"""Reads `.npz` files: padded arrays `X` with their true lengths `X_len`."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.readers.checks import check_claimed_size, check_lengths

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(
    source: Path, label: str | None = None, id: str | None = None, split: str | None = None, label_names: Sequence[str] | None = None
) -> MultimodalDataset:
    """Reads an `.npz` file, never unpickling anything in it.

    Every array `X` `(N, T, d)` is a modality; `X_len` `(N,)` its true lengths (T where absent) and `X_time` `(N, T)` its times in
    seconds. Other arrays `(N,)` become fields.

    Args:
        source: the file.
        label: array with the labels: integers or strings for classes, floats for regression, `(N, K)` zeros and ones for binary
            labels; "label" or "y" where None.
        id: array with the samples' names; "id" or "name" where None, else their numbers.
        split: array with the name of each sample's split.
        label_names: names of the classes or binary labels.

    Raises:
        DataError: where the file is no such file, holds Python objects, or its arrays do not fit each other.
    """
    arrays = _load(source)
    names = [name for name, array in arrays.items() if array.ndim == 3]
    if not names:
        raise DataError(
            f"{source}: expected an array of shape (N, T, d) for every modality, got { ({k: a.shape for k, a in arrays.items()}) }"
        )
    taken = set(names)

    def take(what: str, name: str | None, candidates: tuple[str, ...]) -> np.ndarray | None:
        found = [c for c in ((name,) if name else candidates) if c in arrays]
        if name and not found:
            raise DataError(f"{source}: {what}: expected one of the arrays {sorted(arrays)}, got {name!r}")
        if len(found) > 1:
            raise DataError(f"{source}: {what}: expected one array, got {found}; say which with {what}=")
        if found and not arrays[found[0]].ndim:
            raise DataError(f"{source}: {what}: expected an array with one value a sample in {found[0]!r}, got a single value")
        taken.update(found)
        return arrays[found[0]] if found else None

    y, label_names = _classes(take("label", label, ("label", "y")), label_names)
    ids, splits = take("id", id, ("id", "name")), take("split", split, ())
    x, time = {}, {}
    for name in names:
        lengths = _lengths(source, name, arrays)
        x[name] = [row[:n] for row, n in zip(arrays[name], lengths, strict=True)]
        if (times := arrays.get(f"{name}_time")) is not None:
            if times.shape != arrays[name].shape[:2]:
                raise DataError(f"{source}: {name}_time: expected shape {arrays[name].shape[:2]}, got {times.shape}")
            time[name] = [row[:n] for row, n in zip(times, lengths, strict=True)]
        taken.update((f"{name}_len", f"{name}_time"))
    rest = {name: array for name, array in arrays.items() if name not in taken}
    fields = {name: array for name, array in rest.items() if array.ndim == 1}
    notes = [
        f"array {name!r} of shape {array.shape} left out: neither (N, T, d) nor (N,)" for name, array in rest.items() if array.ndim != 1
    ]
    try:
        return MultimodalDataset.from_arrays(
            x, y, ids=None if ids is None else list(ids), time=time, split=splits, fields=fields, label_names=label_names, notes=notes
        )
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _load(source: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(source) as archive:
            check_claimed_size(source, sum(member.file_size for member in archive.infolist()), source.stat().st_size)
            for member in archive.infolist():
                arrays[member.filename.removesuffix(".npy")] = _read_member(archive, member)
    except Exception as error:  # a corrupt archive can raise nearly anything
        if isinstance(error, DataError):
            raise DataError(f"{source}: {str(error).removeprefix(f'{source}: ')}") from error
        where = f" (array {len(arrays) + 1}, after {list(arrays)[-1:]})" if arrays else ""
        raise DataError(f"{source}: cannot be read as .npz without unpickling{where}: {error}") from error
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array. numpy takes the memory that a header asks for before it looks at the data; here the two must fit first."""
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


def _lengths(source: Path, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    samples, steps = arrays[name].shape[:2]
    lengths = arrays.get(f"{name}_len")
    if lengths is None:
        return np.full(samples, steps)
    check_lengths(f"{source}: {name}_len", lengths, samples, steps)
    return lengths


def _classes(y: np.ndarray | None, label_names: Sequence[str] | None) -> tuple[np.ndarray | None, Sequence[str] | None]:
    """Numbers for labels that are strings: their place in `label_names`, or in alphabetical order."""
    if y is None or y.dtype.kind != "U":
        return y, label_names
    names = sorted(set(y.tolist())) if label_names is None else list(label_names)
    if unknown := set(y.tolist()) - set(names):
        raise DataError(f"label: expected one of {names}, got {sorted(unknown)}")
    return np.array([names.index(v) for v in y], dtype=np.int64), names
