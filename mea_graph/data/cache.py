"""Converts a source once and finds it again: the cache beside the source, keyed by what it holds and how it was read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError, no_memory
from mea_graph.data.progress import showing
from mea_graph.data.store_files import FORMAT_VERSION, open_store, sum_of, write_made
from mea_graph.whole_files import only_one, replacing

_SUFFIX = ".mea-cache"
_RECORD = "source.json"
_LOCK = "converting.lock"


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
    known = _Known(files, root)
    with showing(source.name):
        if known.contents is None and _has_entries(root):  # one of them may be it: then hashing is all that is to be done
            known.hash()
        if known.contents is None or not (_folder(root, known.contents, reader, options) / "meta.json").is_file():
            _convert(root, known, reader, options, read)
        assert known.contents is not None
        store = open_store(_folder(root, known.contents, reader, options))
    if known.changed:
        _write_record(root / _RECORD, known.record)
    return MultimodalDataset(store)


def _folder(root: Path, contents: str, reader: str, options: Mapping[str, Any]) -> Path:
    return root / hashlib.sha256(json.dumps([FORMAT_VERSION, contents, reader, _fingerprint(options)]).encode()).hexdigest()[:32]


def _source_hash(contents: str, options: Mapping[str, Any]) -> str:
    """What identifies the samples: the source's contents, and arrays given with it, of which sequences are made, such as an embedding."""
    arrays = [_fingerprint(value) for _, value in sorted(options.items()) if isinstance(value, np.ndarray)]
    return hashlib.sha256(json.dumps([contents, arrays]).encode()).hexdigest() if arrays else contents


def _has_entries(root: Path) -> bool:
    return next(root.glob("*/meta.json"), None) is not None


def _convert(root: Path, known: _Known, reader: str, options: Mapping[str, Any], read: Callable[[], MultimodalDataset]) -> None:
    """Writes the entry; of several processes that want one of the same source, the first does and the others wait for it."""
    _fingerprint(options)  # an option that is none is told before anything is written
    missing = [parent for parent in (root, *root.parents) if not parent.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error.strerror}); pass cache_dir= a folder that can") from error
    try:
        with only_one(root / _LOCK) as alone:
            if known.contents is None and _has_entries(root):  # another process has made one meanwhile
                known.hash()
            if known.contents is not None and (_folder(root, known.contents, reader, options) / "meta.json").is_file():
                return
            with known.being_hashed() as contents:  # beside the reading: it takes as long
                write_made(
                    lambda: replace(read()._store, source_hash=_source_hash(contents(), options)),
                    root,
                    lambda _: _folder(root, contents(), reader, options),
                    alone,
                )
    except MemoryError as error:
        raise no_memory(known.files[0], sum(file.stat().st_size for file in known.files)) from error
    finally:
        for parent in dict.fromkeys((root, *missing)):
            with contextlib.suppress(OSError):  # all is well: something is in it
                parent.rmdir()


class _Known:
    """What is known of a source's files: their contents by their hash, from the record beside the cache while sizes and times stay."""

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        try:
            record = json.loads((root / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = {}  # no cache yet, or a damaged record: hashing again costs time only
        self.files, self.changed = files, False
        self.record: dict[str, Any] = dict(record) if isinstance(record, dict) else {}
        self.stopped = threading.Event()
        self.contents = None if any(self._digest(file) is None for file in files) else self._joined()

    def _digest(self, file: Path) -> str | None:
        entry = self.record.get(str(file.resolve()))
        if not isinstance(entry, list) or len(entry) != 4 or entry[3] != sum_of(entry[:3]):  # none, damaged, or of an earlier form
            return None
        return entry[2] if entry[:2] == _outline(file) and _is_digest(entry[2]) else None

    def _joined(self) -> str:
        digests = [self.record[str(file.resolve())][2] for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def hash(self) -> str:
        """Hashes the files that are not known."""
        for file in self.files:
            if self._digest(file) is not None:
                continue
            outline = _outline(file)
            digest = hashlib.sha256()
            with open(file, "rb") as opened:
                while not self.stopped.is_set() and (block := opened.read(1 << 18)):  # stopped: nobody wants to know any more
                    digest.update(block)
            entry = [*outline, digest.hexdigest()]
            self.record[str(file.resolve())], self.changed = [*entry, sum_of(entry)], True
        self.contents = self._joined()
        return self.contents

    @contextlib.contextmanager
    def being_hashed(self) -> Iterator[Callable[[], str]]:
        """A function that gives the hash of the contents; they are hashed in a thread beside what is done inside."""
        if self.contents is not None:
            known = self.contents
            yield lambda: known
            return
        before = [_outline(file) for file in self.files]
        with ThreadPoolExecutor(1) as thread:
            made = thread.submit(self.hash)

            def contents() -> str:
                out = made.result()
                if before != [_outline(file) for file in self.files]:
                    raise DataError(f"{self.files[0]}: has changed while it was read; open it again once it is whole")
                return out

            try:
                yield contents
            finally:
                self.stopped.set()


def _outline(file: Path) -> list[int]:
    """Size and time of a file, by which a change is seen."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _write_record(path: Path, record: dict[str, Any]) -> None:
    """Best effort: without the record the next call hashes again, and a cache in a read-only folder still serves."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(record, indent=1).encode())


def _fingerprint(value: Any, name: str = "option") -> Any:
    """A JSON value that stands for options or one of them; arrays by the hash of their contents."""
    if isinstance(value, np.ndarray):
        return [value.dtype.str, list(value.shape), hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()]
    if isinstance(value, Mapping):
        return {str(k): _fingerprint(v, str(k)) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [_fingerprint(v, name) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise DataError(f"{name}: expected plain values or arrays, got {type(value).__name__}")
