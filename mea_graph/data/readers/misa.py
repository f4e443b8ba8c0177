"""Reads the pickles of MISA (Hazarika et al., 2020): lists of word-aligned samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.readers.padded_splits import as_text, make_unique
from mea_graph.data.unpickle import load_pickle

_SPLIT_NAMES = {"dev": "valid"}  # MISA's name for what the rest of the field calls valid


def read_misa(
    source: Path | Mapping[str, Path], embedding: np.ndarray | None = None, split: str | None = None, label_column: int | None = None
) -> MultimodalDataset:
    """Reads MISA pickles: a list of ((words, visual, acoustic, ...), label, id), or a dict of such lists by split.

    The words are numbers into an embedding that the pickle lacks: with `embedding` they become the modality "text", without it
    text is left out, and the notes say so. Words themselves, where stored, become the field "raw_text".

    Args:
        source: the file, or one file a split, by split name ("dev" is read as "valid").
        embedding: `(V, d)`, the vector of every word number.
        split: the split that a single bare list is.
        label_column: which of several labels a sample becomes `y`, >= 0.

    Raises:
        DataError: where a file is refused, is not as described, or a word number is outside of the embedding.
    """
    if isinstance(source, Mapping):
        payload: Any = {name: load_pickle(path) for name, path in source.items()}
        return misa_dataset(next(iter(source.values())).parent, payload, embedding, split, label_column)
    return misa_dataset(source, load_pickle(source), embedding, split, label_column)


def misa_dataset(
    source: Path, payload: Any, embedding: np.ndarray | None = None, split: str | None = None, label_column: int | None = None
) -> MultimodalDataset:
    """The data set in the contents of a MISA pickle."""
    parts = payload if isinstance(payload, Mapping) else {split: payload}
    if isinstance(payload, Mapping) and split is not None:
        raise DataError(f"split: expected None for a file that has splits of its own, got {split!r}")
    text, audio, vision, y, ids, splits, raw, notes = [], [], [], [], [], [], [], []
    for name, samples in parts.items():
        if not isinstance(samples, list):
            raise DataError(f"{source}: expected a list of samples, got {type(samples).__name__}")
        for i, sample in enumerate(samples):
            words, visual, acoustic, spoken, label, sample_id = _unpack(sample, f"{source}: sample {i}" + (f" of {name!r}" if name else ""))
            text.append(words)
            vision.append(visual)
            audio.append(acoustic)
            raw.append(spoken)
            y.append(_label(label, label_column, f"{source}: sample {sample_id!r}"))
            ids.append(sample_id)
            splits.append(_SPLIT_NAMES.get(str(name), str(name)))
    x: dict[str, list[np.ndarray]] = {"audio": audio, "vision": vision}
    if text and all(words.ndim == 2 for words in text):
        x = {"text": text, **x}
    elif embedding is not None:
        x = {"text": [_look_up(words, embedding, f"{source}: sample {name!r}") for words, name in zip(text, ids, strict=True)], **x}
    else:
        notes.append("text left out: the file holds word numbers only; embedding= gives them vectors")
    make_unique(ids, notes)
    fields: dict[str, Any] = {"video": [name.split("[")[0] for name in ids]}
    if all(spoken is not None for spoken in raw):
        fields["raw_text"] = raw
    try:
        return MultimodalDataset.from_arrays(
            x, np.array(y, np.float64), ids=ids, split=splits if None not in parts else None, fields=fields, notes=notes
        )
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _unpack(sample: Any, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, str | None, np.ndarray, str]:
    try:
        features, label, name = sample
        words, visual, acoustic = (np.asarray(part) for part in features[:3])
        spoken = " ".join(as_text(word) for word in features[3]) if len(features) > 3 else None
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{where}: expected ((words, visual, acoustic, ...), label, id), got {type(sample).__name__} ({error})") from error
    if words.ndim not in (1, 2) or words.dtype.kind not in ("iu" if words.ndim == 1 else "iuf"):
        raise DataError(f"{where}: words: expected numbers (T,) or vectors (T, d), got {words.dtype} of shape {words.shape}")
    return words, visual, acoustic, spoken, np.asarray(label), as_text(name)


def _label(label: np.ndarray, label_column: int | None, where: str) -> float:
    flat = label.reshape(-1)
    if label.dtype.kind not in "biuf" or not flat.size:
        raise DataError(f"{where}: label: expected numbers, got {label.dtype} of shape {label.shape}")
    if label_column is None and flat.size > 1:
        raise DataError(f"{where}: {flat.size} labels; say with label_column= which one to use")
    if not 0 <= (label_column or 0) < flat.size:
        raise DataError(f"{where}: label_column: expected an integer in [0, {flat.size}), got {label_column}")
    return float(flat[label_column or 0])


def _look_up(words: np.ndarray, embedding: np.ndarray, where: str) -> np.ndarray:
    if embedding.ndim != 2 or embedding.dtype.kind not in "iuf":
        raise DataError(f"embedding: expected numbers of shape (V, d), got {embedding.dtype} of shape {embedding.shape}")
    if words.size and not 0 <= words.min() <= words.max() < len(embedding):
        raise DataError(f"{where}: word numbers {words.min()} to {words.max()} do not fit an embedding of {len(embedding)} words")
    return embedding[words]
