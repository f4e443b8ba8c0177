"""`open_dataset`: any supported file as a `MultimodalDataset`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.arrays import as_numbers
from mea_graph.data.cache import cached
from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.doubts import warn_of_doubts
from mea_graph.data.errors import DataError, brief, no_memory
from mea_graph.data.kinds import check_kind, kind_of
from mea_graph.option_types import mismatch, plain_value
from mea_graph.readers.any_pickle import read_any_pickle
from mea_graph.readers.csd import read_csd
from mea_graph.readers.misa import read_misa
from mea_graph.readers.mmsa import read_mmsa
from mea_graph.readers.mult import read_mult
from mea_graph.readers.npz import read_npz
from mea_graph.suggestions import did_you_mean

PathLike = str | os.PathLike[str]

_READERS: dict[str, Callable[..., MultimodalDataset]] = {
    "mult": read_mult,
    "mmsa": read_mmsa,
    "misa": read_misa,
    "csd": read_csd,
    "npz": read_npz,
    "pickle": read_any_pickle,
}
_SEVERAL_FILES = ("csd", "misa")  # formats that may have one file a modality, or one a split
_TYPES: dict[str, Any] = {  # of options of readers; a reader looks at the others itself
    **dict.fromkeys(("label", "id"), str | None),
    "static": list[str],
    "embedding": np.ndarray | None,
}
SUFFIXES = {"csd": ".csd", "misa": ".pkl"}  # of the files in a folder


def open_dataset(
    source: PathLike | Mapping[str, PathLike],
    format: str = "auto",
    cache_dir: PathLike | None = None,
    modalities: Sequence[str] | None = None,
    **options: Any,
) -> MultimodalDataset:
    """Opens a data file of the field, converting it once into a memory-mapped cache beside it.

    The cache `<source>.mea-cache` is keyed by a hash of the source, the reader and its options, is written whole or not at all, and
    may be deleted at any time. Pickles are opened by a restricted unpickler that runs nothing.

    Args:
        source: A file; a folder of `.csd` files (one a modality) or of MISA `.pkl` files (one a split); or a dict of files by name.
        format: "mult", "mmsa", "misa" (pickles), "csd" (HDF5), "npz"; "auto" looks at the contents.
        cache_dir: Folder for the cache, for example if the source's own folder is read-only; beside the source if None.
        modalities: The modalities to keep, in this order; all if None.
        options: Those of the format's reader in `mea_graph.readers`, such as `label`, `split` or `embedding`
            (an array `(V, d)`, or the path of an `.npy` file). Every reader has these:
            `labels`, the kind of labels: "regression", "classes", "labels" (several per sample), or a number, above which a label is 1;
            `columns`, the labels to use of several, one or a list, by number, or by name if `label_names` names all of them;
            `label_names`, names of the classes or labels;
            `non_finite`, for NaN and infinity in the sequences: "error", "zero" to set them to 0, "drop" to leave out their steps.

    Raises:
        DataError: If the source is missing, refused, of another format, or not as its format demands.
        ImportError: If the source is a `.csd` file and h5py is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(
    ...         f"{folder}/clips.npz",
    ...         audio=np.ones((2, 5, 3)),
    ...         audio_len=np.array([5, 2]),
    ...         label=np.array([0, 1]),
    ...     )
    ...     open_dataset(f"{folder}/clips.npz")
    MultimodalDataset(2, audio=3)
    """
    if format != "auto" and format not in _READERS:
        raise DataError(f"format: expected 'auto' or one of {list(_READERS)}, got {format!r}")
    named = source.values() if isinstance(source, Mapping) else [source]
    for what, path in (*(("source", path) for path in named), ("cache_dir", "" if cache_dir is None else cache_dir)):
        if not isinstance(path, str | os.PathLike):
            raise DataError(f"{what}: expected a path{', or a dict of paths by name' if what == 'source' else ''}, got {brief(path)}")
    origin, files = _locate(source, format)
    if format == "auto":
        format = _sniff(origin, files)
    if files is not None and format not in _SEVERAL_FILES:
        raise DataError(f"{origin}: format {format!r} is one file, got {list(files)}")
    if files is None and format == "csd":
        raise DataError(f"{origin}: format 'csd' has one file a modality and one with labels; pass their folder or a dict of them")
    reader = _READERS[format]
    _check_options(format, reader, options)
    options = {name: value if name == "embedding" else plain_value(value) for name, value in options.items()}
    if isinstance(options.get("embedding"), str | os.PathLike):
        options["embedding"] = _load_array(Path(options["embedding"]))
    elif options.get("embedding") is not None:
        options["embedding"] = as_numbers("embedding", options["embedding"])
    types = _TYPES | {"split": Mapping | None if format == "csd" else str | None}
    for name in sorted(types.keys() & options.keys()):
        if (expected := mismatch(options[name], types[name])) is not None:
            raise DataError(f"{name}: expected {expected}, got {options[name]!r}"[:300])
    for path in [origin] if files is None else files.values():
        check_kind(path, format)
    names = None if files is None else list(files)
    dataset = cached(
        origin,
        [origin] if files is None else list(files.values()),
        cache_dir,
        format,
        {"files": names, **options},
        lambda: reader(origin if files is None else files, **options),
    )
    warn_of_doubts(dataset.notes, stacklevel=2)
    return dataset if modalities is None else dataset.with_modalities(modalities)


def _locate(source: PathLike | Mapping[str, PathLike], format: str) -> tuple[Path, dict[str, Path] | None]:
    """The path that names the source, and its files by name where they are several."""
    files: dict[str, Path] | None
    if isinstance(source, Mapping):
        if not source:
            raise DataError("source: expected at least one file, got an empty dict")
        files = {str(name): Path(path) for name, path in source.items()}
        origin = next(iter(files.values()))
    else:
        origin = Path(source)
        files = _files_of(origin, format) if origin.is_dir() else None
    for path in [origin] if files is None else files.values():
        if not path.is_file():
            where = "" if path.is_absolute() else f"; a relative path counts from the current folder, {Path.cwd()}"
            raise DataError(f"{path}: no such file{where}")
    return origin, files


def _files_of(folder: Path, format: str) -> dict[str, Path]:
    """A folder's files of the one form that it holds, or that `format` asks for."""
    if format not in ("auto", *SUFFIXES):
        raise DataError(f"{folder}: format {format!r} is one file, got a folder")
    found = {form: {p.stem: p for p in sorted(folder.glob(f"*{suffix}"))} for form, suffix in SUFFIXES.items()}
    forms = [form for form, files in found.items() if files and format in ("auto", form)]
    if not forms:
        wanted = list(SUFFIXES.values()) if format == "auto" else [SUFFIXES[format]]
        raise DataError(f"{folder}: expected a folder with {' or '.join(wanted)} files, got none")
    if len(forms) > 1:
        seen = ", ".join(f"format {form!r}: {' '.join(p.name for p in list(found[form].values())[:5])}" for form in forms)
        raise DataError(f"{folder}: holds files of several formats ({seen}); say which with format=")
    return found[forms[0]]


def _sniff(origin: Path, files: dict[str, Path] | None) -> str:
    path = origin if files is None else next(iter(files.values()))
    kind = kind_of(path)
    if kind == "pickle" and files is not None:
        return "misa"
    if kind:
        return kind
    with open(path, "rb") as file:
        head = file.read(8)
    raise DataError(f"{path}: its format is not plain from its first bytes {head!r}; pass format= one of {list(_READERS)}")


def _check_options(format: str, reader: Callable[..., MultimodalDataset], options: dict[str, Any]) -> None:
    if format == "pickle":  # its options depend on what is inside
        return
    allowed = list(inspect.signature(reader).parameters)[1:]
    if unknown := [name for name in options if name not in allowed]:
        meant = did_you_mean(unknown[0], [*allowed, "format", "cache_dir", "modalities"])
        raise DataError(f"options of format {format!r}: expected some of {allowed}, got {unknown}{meant}")


def _load_array(path: Path) -> np.ndarray:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # takes no memory for what a header claims and the file lacks
        if not isinstance(mapped, np.ndarray):
            raise ValueError("it holds several arrays")
        return np.array(mapped)
    except MemoryError as error:
        raise no_memory(f"embedding: {path}", path.stat().st_size) from error
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError) as error:
        raise DataError(f"embedding: {path}: cannot be read as .npy ({error})") from error
