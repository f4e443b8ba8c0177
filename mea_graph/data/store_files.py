"""A store as a folder of plain `.npy` files and a `meta.json`: written whole or not at all, opened memory mapped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.errors import DataError
from mea_graph.data.ragged import Ragged
from mea_graph.data.store import Store

FORMAT_VERSION = 1  # raise it whenever what is written, or what readers make of a file, changes
_TEMPORARY = ".writing-"
_ABANDONED = 24 * 3600.0  # seconds after which a temporary folder counts as left by a process that was killed


def write_store(store: Store, folder: Path) -> None:
    """Writes into a temporary folder beside `folder`, which takes its name only when everything is on the disk."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        temporary = folder.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        temporary.mkdir()
    except OSError as error:
        raise DataError(f"{folder.parent}: cannot be written ({error.strerror}); pass cache_dir= a folder that can") from error
    try:
        _write_files(store, temporary)
        sync_folder(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # otherwise another process was faster with the same contents
                raise
        sync_folder(folder.parent)
    except OSError as error:
        raise DataError(f"{folder}: the cache could not be written ({error}); pass cache_dir= a folder with room") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_store(folder: Path) -> Store:
    """Opens what `write_store` wrote; contents were checked then, so only the outline is checked here."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        store = Store(
            sequences={name: _open_sequences(folder, i, entry) for i, (name, entry) in enumerate(meta["modalities"].items())},
            ids=_load(folder / "ids.npy").tolist(),
            y=_load(folder / "y.npy") if meta["has_y"] else None,
            split=_load(folder / "split.npy") if meta["has_split"] else None,
            fields={name: _load(folder / f"field{i}.npy") for i, name in enumerate(meta["fields"])},
            label_names=None if meta["label_names"] is None else tuple(meta["label_names"]),
            notes=tuple(meta["notes"]),
            source_hash=meta["source_hash"],
        )
        for name, ragged in store.sequences.items():
            if (
                len(ragged.ptr) != len(store.ids) + 1
                or ragged.ptr[-1] != len(ragged.values)
                or ragged.width != meta["modalities"][name]["width"]
            ):
                raise ValueError(f"the arrays of {name!r} do not fit each other")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{folder}: the cache is damaged ({error}); delete this folder to have it written again") from error
    return store


def _write_files(store: Store, folder: Path) -> None:
    for i, ragged in enumerate(store.sequences.values()):
        _save(folder / f"x{i}.npy", ragged.values)
        _save(folder / f"ptr{i}.npy", ragged.ptr)
        if ragged.time is not None:
            _save(folder / f"time{i}.npy", ragged.time)
    _save(folder / "ids.npy", np.asarray(store.ids, dtype=np.str_))
    for name, array in (("y", store.y), ("split", store.split), *((f"field{i}", f) for i, f in enumerate(store.fields.values()))):
        if array is not None:
            _save(folder / f"{name}.npy", array)
    meta: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "source_hash": store.hash,
        "modalities": {name: {"width": r.width, "time": r.time is not None} for name, r in store.sequences.items()},
        "has_y": store.y is not None,
        "has_split": store.split is not None,
        "fields": list(store.fields),
        "label_names": None if store.label_names is None else list(store.label_names),
        "notes": list(store.notes),
    }
    with open(folder / "meta.json", "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1)
        _sync(file)


def _open_sequences(folder: Path, i: int, entry: dict[str, Any]) -> Ragged:
    ptr = _load(folder / f"ptr{i}.npy")
    mapped = bool(ptr[-1])  # a file without data cannot be mapped
    return Ragged(_load(folder / f"x{i}.npy", mapped), ptr, _load(folder / f"time{i}.npy", mapped) if entry["time"] else None)


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)
        _sync(file)


def _load(path: Path, mapped: bool = False) -> np.ndarray:
    return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk, after the files themselves."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(_TEMPORARY + "*"):
        with contextlib.suppress(OSError):  # its writer may finish, and take it away, at any moment
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
