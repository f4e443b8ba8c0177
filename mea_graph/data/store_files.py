"""A store as a folder of plain `.npy` files and a `meta.json`: written whole or not at all, opened memory mapped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.errors import DataError
from mea_graph.data.ragged import Ragged
from mea_graph.data.rows import make_rows
from mea_graph.data.store import Store
from mea_graph.whole_files import sync_folder

FORMAT_VERSION = 8  # raise it whenever what is written, or what readers make of a file, changes
_SMALL = 1 << 20  # bytes of a file that are compared with their check sum whenever it is opened
_TEMPORARY = ".writing-"
_ABANDONED = 24 * 3600.0  # seconds after which any temporary folder counts as left by a process that was killed


def write_made(make: Callable[[], Store], parent: Path, place: Callable[[Store], Path], alone: bool = False) -> None:
    """Writes the store that `make` gives into a temporary folder in `parent`, which is renamed when everything is on the disk.

    The rows are written as they are packed, and never held in memory together.

    Args:
        make: Makes the store.
        parent: The folder that all entries are in.
        place: The entry of the store, a folder in `parent`.
        alone: Whether no other process of this machine writes there: what one that was killed has left is then removed at once.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        own = f"{_TEMPORARY}{zlib.crc32(platform.node().encode()):08x}-"  # other machines may share the disk, but not the lock
        _remove_abandoned(parent, own if alone else None)
        temporary = parent / f"{own}{uuid.uuid4().hex}"
        temporary.mkdir()
    except OSError as error:
        raise DataError(f"{parent}: cannot be written ({error.strerror}); pass cache_dir= a folder that can") from error
    try:
        folder = place(_write_files(make, temporary))
        sync_folder(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # otherwise another process was faster with the same contents
                raise
        sync_folder(parent)
    except OSError as error:
        raise DataError(f"{parent}: the cache could not be written ({error}); pass cache_dir= a folder with room") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _FileRows:
    """Rows that become an `.npy` file, piece by piece, and its check sum."""

    def __init__(self, path: Path, count: int, width: int) -> None:
        self.path, self.count, self.width, self.sum = path, count, width, 0
        self.buffer = np.empty((0, width), np.float32)
        self.file = open(path, "wb", buffering=0)  # noqa: SIM115 (`close` closes it)
        header = io.BytesIO()
        description = {"descr": self.buffer.dtype.str, "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(header, description)
        self._write(header.getbuffer())

    def piece(self, count: int) -> np.ndarray:
        if len(self.buffer) < count:
            self.buffer = np.empty((count, self.width), np.float32)
        return self.buffer[:count]

    def put(self, piece: np.ndarray) -> None:
        if len(piece):
            self._write(piece.reshape(-1).view(np.uint8).data)

    def _write(self, data: memoryview) -> None:
        self.sum = zlib.crc32(data, self.sum)
        while data:  # the system takes a part at a time where the disk is nearly full, and says why with the next
            data = data[self.file.write(data) :]

    def whole(self) -> np.ndarray:
        _sync(self.file)
        self.size = self.file.tell()
        return _load(self.path, mapped=bool(self.count))

    def close(self) -> None:
        self.file.close()


def _made(make: Callable[[], Store], folder: Path) -> tuple[Store, list[_FileRows]]:
    """The store that a function makes, and the files that its rows were written into meanwhile."""
    written: list[_FileRows] = []

    def rows(count: int, width: int) -> _FileRows:
        written.append(_FileRows(folder / f"x{len(written)}.npy", count, width))
        return written[-1]

    token = make_rows.set(rows)
    try:
        store = make()
    finally:
        make_rows.reset(token)
    if written and [len(ragged.values) for ragged in store.sequences.values()] != [file.count for file in written]:
        raise AssertionError("a reader packs every modality once, and in the order of the data set")
    return store, written


def open_store(folder: Path) -> Store:
    """Opens what `write_made` wrote, once it is sure that it is still the same.

    Small files are compared with their check sums each time; large ones where they are newer than `meta.json`, which is written
    last: after a copy, that is, or a change. They need not be read for it again once they were found to be the same.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta.pop("sum") != sum_of(meta):
            raise ValueError("meta.json has changed since it was written")
        _check_files(folder, meta["files"])
        store = Store(
            sequences={name: _open_sequences(folder, i, entry) for i, (name, entry) in enumerate(meta["modalities"].items())},
            ids=_load(folder / "ids.npy").tolist(),
            y=_load(folder / "y.npy") if meta["has_y"] else None,
            split=_load(folder / "split.npy") if meta["has_split"] else None,
            fields={name: _load(folder / f"field{i}.npy") for i, name in enumerate(meta["fields"])},
            label_names=None if meta["label_names"] is None else tuple(meta["label_names"]),
            notes=tuple(meta["notes"]),
            source_hash=meta["source_hash"],
            standardized=meta["standardized"],
        )
        _check_outline(store)
    except MemoryError as error:
        raise DataError(
            f"{folder}: not enough memory to open the cache, or it is damaged; close other programs, or delete this folder"
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise DataError(f"{folder}: the cache is damaged ({error}); delete this folder to have it written again") from error
    return store


def _check_files(folder: Path, files: dict[str, list[int]]) -> None:
    written = (folder / "meta.json").stat().st_mtime_ns
    read_again = False
    for name, (size, expected) in files.items():
        stat = (folder / name).stat()
        if stat.st_size != size:
            raise ValueError(f"{name} has {stat.st_size} bytes, not {size}")
        newer = stat.st_mtime_ns >= written
        if (newer or size <= _SMALL) and _sum_of_file(folder / name) != expected:
            raise ValueError(f"{name} has changed since it was written")
        read_again |= newer and size > _SMALL
    if read_again:
        with contextlib.suppress(OSError):  # a cache that may only be read is compared each time
            os.utime(folder / "meta.json")


def _check_outline(store: Store) -> None:
    """Refuses arrays that do not fit each other."""
    samples = len(store.ids)
    for name, ragged in store.sequences.items():
        steps = len(ragged.values)
        fits = ragged.values.ndim == 2 and ragged.ptr.shape == (samples + 1,) and ragged.ptr[0] == 0 and ragged.ptr[-1] == steps
        if not fits or (ragged.lengths < 0).any() or (ragged.time is not None and ragged.time.shape != (steps,)):
            raise ValueError(f"the arrays of {name!r} do not fit each other")
    for name, column in {"y": store.y, "split": store.split, **store.fields}.items():
        if column is not None and len(column) != samples:
            raise ValueError(f"{name!r} has {len(column)} values for {samples} samples")


def _write_files(make: Callable[[], Store], folder: Path) -> Store:
    """Writes everything; the store without its rows, which Windows could not rename while they are mapped."""
    store, written = _made(make, folder)
    arrays: dict[str, np.ndarray | None] = {"ids": np.asarray(store.ids, dtype=np.str_), "y": store.y, "split": store.split}
    arrays |= {f"field{i}": values for i, values in enumerate(store.fields.values())}
    for i, ragged in enumerate(store.sequences.values()):
        arrays |= {f"x{i}": None if written else ragged.values, f"ptr{i}": ragged.ptr, f"time{i}": ragged.time}
    files = {f"{name}.npy": _save(folder / f"{name}.npy", array) for name, array in arrays.items() if array is not None}
    files |= {file.path.name: [file.size, file.sum] for file in written}
    meta: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "source_hash": store.hash,
        "modalities": {name: {"time": r.time is not None} for name, r in store.sequences.items()},
        "has_y": store.y is not None,
        "has_split": store.split is not None,
        "fields": list(store.fields),
        "label_names": None if store.label_names is None else list(store.label_names),
        "notes": list(store.notes),
        "standardized": store.standardized,
        "files": files,
    }
    with open(folder / "meta.json", "w", encoding="utf-8") as file:
        json.dump({**meta, "sum": sum_of(meta)}, file, indent=1)
        _sync(file)
    return replace(store, sequences={}, source_hash=meta["source_hash"])


def _open_sequences(folder: Path, i: int, entry: dict[str, Any]) -> Ragged:
    ptr = _load(folder / f"ptr{i}.npy")
    mapped = bool(ptr[-1])  # a file without data cannot be mapped
    return Ragged(_load(folder / f"x{i}.npy", mapped), ptr, _load(folder / f"time{i}.npy", mapped) if entry["time"] else None)


def _save(path: Path, array: np.ndarray) -> list[int]:
    """Writes an array; its size on the disk and its check sum."""
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:  # for reading too, numpy would write it in pieces
        np.save(file, array, allow_pickle=False)
        _sync(file)
        size = file.tell()
    with open(path, "rb") as file:
        total = zlib.crc32(file.read(size - array.nbytes))
    return [size, zlib.crc32(array.reshape(-1).view(np.uint8).data, total) if array.nbytes else total]


def _load(path: Path, mapped: bool = False) -> np.ndarray:
    return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def sum_of(value: Any) -> int:
    """The check sum of a JSON value."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _sum_of_file(path: Path) -> int:
    total = 0
    with open(path, "rb") as file:
        while piece := file.read(_SMALL):
            total = zlib.crc32(piece, total)
    return total


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove_abandoned(parent: Path, own: str | None) -> None:
    for folder in parent.glob(_TEMPORARY + "*"):
        with contextlib.suppress(OSError):  # its writer may finish, and take it away, at any moment
            if (own is not None and folder.name.startswith(own)) or time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
