"""A data set as one `.npz` file: the sequences end to end, so that nothing is padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mea_graph.data.errors import DataError
from mea_graph.data.store import Store
from mea_graph.whole_files import replacing

if TYPE_CHECKING:
    from mea_graph.data.dataset import MultimodalDataset

FORMAT = "mea_graph_dataset"  # the array by which such a file is known
STANDARDIZED = "standardized"  # the array of a file that holds z-scores
_VERSION = 1


def taken(dataset: MultimodalDataset, change: Callable[[str, int, np.ndarray], np.ndarray] | None = None) -> Store:
    """The arrays of a data set's samples alone, in memory; `change(modality, row, x)` is what their sequences become."""
    rows, stored = dataset._rows, dataset._store.sequences
    return Store(
        sequences={m: stored[m].take(rows, None if change is None else partial(change, m)) for m in dataset.modalities},
        ids=list(dataset.ids),
        y=None if dataset.y is None else dataset.y.copy(),
        split=None if dataset.split is None else dataset.split.copy(),
        fields={name: values.copy() for name, values in dataset.fields.items()},
        label_names=dataset.label_names,
        notes=dataset.notes,
        standardized=dataset._store.standardized,
    )


def save(dataset: MultimodalDataset, path: Path) -> None:
    """Writes a data set, whole or not at all."""
    if not len(dataset):
        raise DataError(f"{path}: expected at least one sample to save, got none")
    scaling = dataset._scaling
    store = taken(dataset, None if scaling is None else scaling.apply)
    arrays: dict[str, Any] = {FORMAT: np.array(_VERSION), "ids": np.array(store.ids, dtype=np.str_)}
    for name, ragged in store.sequences.items():
        arrays |= {f"x/{name}": ragged.values, f"ptr/{name}": ragged.ptr}
        if ragged.time is not None:
            arrays[f"time/{name}"] = ragged.time
    arrays |= {f"fields/{name}": values for name, values in store.fields.items()}
    texts = {"label_names": store.label_names, "notes": store.notes or None}
    arrays |= {name: np.array(text, dtype=np.str_) for name, text in texts.items() if text is not None}
    arrays |= {name: array for name, array in (("y", store.y), ("split", store.split)) if array is not None}
    if scaling is not None or store.standardized:
        arrays[STANDARDIZED] = np.array(True)
    try:
        with replacing(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error


def saved_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The arguments of `MultimodalDataset.from_arrays` in the arrays of a saved file."""
    if arrays[FORMAT].shape or arrays[FORMAT] != _VERSION:
        raise DataError(f"expected a data set saved in form {_VERSION}, got {arrays[FORMAT]}; a later mea-graph wrote it")
    parts: dict[str, dict[str, np.ndarray]] = {"x": {}, "ptr": {}, "time": {}, "fields": {}}
    for key, array in arrays.items():
        kind, _, name = key.partition("/")
        if name and kind in parts:
            parts[kind][name] = array
    ids = arrays.get("ids", np.zeros(0, np.str_)).reshape(-1)
    for name, values in parts["x"].items():
        ptr = parts["ptr"].get(name, np.zeros(0))
        if values.ndim != 2:
            raise DataError(f"x/{name}: expected shape (sum of T, d), got {values.shape}")
        fits = ptr.shape == (len(ids) + 1,) and ptr.dtype.kind in "iu"
        if not fits or ptr[0] != 0 or ptr[-1] != len(values) or (np.diff(ptr.astype(np.int64)) < 0).any():
            raise DataError(
                f"ptr/{name}: expected {len(ids) + 1} integers that rise from 0 to {len(values)}, got {ptr.dtype} of shape {ptr.shape}"
            )
    cuts = {name: parts["ptr"][name][1:-1] for name in parts["x"]}
    return {
        "x": {name: np.split(values, cuts[name]) for name, values in parts["x"].items()},
        "y": arrays.get("y"),
        "ids": ids.tolist(),
        "time": {name: np.split(times.reshape(-1), cuts[name]) for name, times in parts["time"].items() if name in cuts},
        "split": arrays.get("split"),
        "fields": parts["fields"],
        "label_names": arrays["label_names"].reshape(-1).tolist() if "label_names" in arrays else None,
        "notes": arrays["notes"].reshape(-1).tolist() if "notes" in arrays else (),
        "standardized": bool(arrays.get(STANDARDIZED, np.array(False)).any()),
    }
