"""Converts a source once and finds it again: the cache beside the source, keyed by what it holds and how it was read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError, no_memory
from mea_graph.data.lock import only_one
from mea_graph.data.store import Store
from mea_graph.data.store_files import FORMAT_VERSION, open_store, write_store

_SUFFIX = ".mea-cache"
_RECORD = "source.json"


def cached(
    source: Path,
    files: Sequence[Path],
    cache_dir: str | os.PathLike[str] | None,
    reader: str,
    options: Mapping[str, Any],
    read: Callable[[], MultimodalDataset],
) -> MultimodalDataset:
    """The data set that `read` makes of `files`, converted at the first call and memory mapped from then on.

    The folder is `<source>.mea-cache/<key>`, or the same inside `cache_dir`. Its key is a hash of the files' contents, the reader,
    its options and the cache format. Contents are not hashed again while a file's size and modification time stay as recorded.
    """
    root = (source.resolve().parent if cache_dir is None else Path(cache_dir)) / (source.resolve().name + _SUFFIX)
    if root.is_symlink():  # what is written there would go to a place that whoever made the data set chose
        raise DataError(f"{root}: expected a folder for the cache, got a symbolic link; remove it, or pass cache_dir=")
    contents, record = _hash_of_files(files, root)
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, contents, reader, _fingerprint(options)]).encode()).hexdigest()[:32]
    folder = root / key
    if not (folder / "meta.json").is_file():
        _convert(root, folder, files, lambda: replace(read()._store, source_hash=contents))
    store = open_store(folder)
    if record is not None:
        _write_record(root / _RECORD, record)
    return MultimodalDataset(store)


def _convert(root: Path, folder: Path, files: Sequence[Path], read: Callable[[], Store]) -> None:
    """Writes the entry `folder`; of several processes that want the same one, the first does and the others wait for it."""
    missing = [parent for parent in (root, *root.parents) if not parent.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error.strerror}); pass cache_dir= a folder that can") from error
    try:
        with only_one(root / f"{folder.name}.lock"):
            if not (folder / "meta.json").is_file():
                write_store(read(), folder)
    except MemoryError as error:
        raise no_memory(files[0], sum(file.stat().st_size for file in files)) from error
    finally:
        for parent in dict.fromkeys((root, *missing)):
            with contextlib.suppress(OSError):  # all is well: something is in it
                parent.rmdir()


def _hash_of_files(files: Sequence[Path], root: Path) -> tuple[str, dict[str, Any] | None]:
    """The hash of the contents, and the record to keep of them where it has changed."""
    record_path = root / _RECORD
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}  # no cache yet, or a damaged record: hashing again costs time only
    known = dict(record) if isinstance(record, dict) else {}
    digests, changed = [], False
    for file in files:
        stat, name = file.stat(), str(file.resolve())
        entry = known.get(name)
        if not (isinstance(entry, list) and len(entry) == 3 and entry[:2] == [stat.st_size, stat.st_mtime_ns] and _is_digest(entry[2])):
            with open(file, "rb") as opened:
                entry = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(opened, "sha256").hexdigest()]
            known[name], changed = entry, True
        digests.append(entry[2])
    contents = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return contents, known if changed else None


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _write_record(path: Path, record: dict[str, Any]) -> None:
    """Best effort: without the record the next call hashes again, and a cache in a read-only folder still serves."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _fingerprint(value: Any) -> Any:
    """A JSON value that stands for an option; arrays by the hash of their contents."""
    if isinstance(value, np.ndarray):
        return [value.dtype.str, list(value.shape), hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()]
    if isinstance(value, Mapping):
        return {str(k): _fingerprint(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [_fingerprint(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise DataError(f"option: expected plain values or arrays, got {type(value).__name__}")
