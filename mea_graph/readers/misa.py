"""Reads the pickles of MISA (Hazarika et al., 2020): lists of word-aligned samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.data.texts import as_array, as_text
from mea_graph.readers.checks import check_non_finite, dataset_of, refused, repair
from mea_graph.readers.label_options import Columns, Labels, Names, as_labels, check_labels
from mea_graph.readers.padded_splits import make_unique
from mea_graph.readers.unpickle import mapped_pickle

_SPLIT_NAMES = {"dev": "valid"}  # MISA's name for what the rest of the field calls valid


def read_misa(
    source: Path | Mapping[str, Path],
    embedding: np.ndarray | None = None,
    split: str | None = None,
    labels: Labels = None,
    columns: Columns = None,
    label_names: Names = None,
    non_finite: str = "error",
) -> MultimodalDataset:
    """Reads MISA pickles: a list of ((words, visual, acoustic, ...), label, id), or a dict of such lists by split.

    The words are row numbers of an embedding that the pickle lacks. With `embedding` they become the modality "text"; without it the reader
    leaves text out and adds a note. Stored words become the field "raw_text". The name of a sample without an id is its number; an empty
    array means that the sample lacks the modality.

    Args:
        source: The file, or a file for each split, by split name ("dev" means "valid").
        embedding: `(V, d)`, the vector of every word number.
        split: The name of the split of a file that holds a single list.
        labels, columns, label_names: As for `open_dataset`; real numbers if a sample has one.
        non_finite: "error", "zero" to set NaN and infinity in the features to 0, or "drop" to leave out the steps that have them.

    Raises:
        DataError: If a file is refused, is not as described, or a word number is outside of the embedding.
    """
    if isinstance(source, Mapping):
        payload: Any = {name: mapped_pickle(path) for name, path in source.items()}
        return misa_dataset(next(iter(source.values())).parent, payload, embedding, split, labels, columns, label_names, non_finite)
    return misa_dataset(source, mapped_pickle(source), embedding, split, labels, columns, label_names, non_finite)


def misa_dataset(
    source: Path,
    payload: Any,
    embedding: np.ndarray | None = None,
    split: str | None = None,
    labels: Labels = None,
    columns: Columns = None,
    label_names: Names = None,
    non_finite: str = "error",
) -> MultimodalDataset:
    """The data set in the contents of a MISA pickle."""
    check_non_finite(non_finite)
    check_labels(labels)
    parts = payload if isinstance(payload, Mapping) else {split: payload}
    if isinstance(payload, Mapping) and split is not None:
        raise DataError(f"split: expected None for a file that has splits of its own, got {split!r}")
    text, audio, vision, y, ids, splits, raw = [], [], [], [], [], [], []
    notes: list[str] = []
    unnamed = 0
    for name, samples in parts.items():
        if not isinstance(samples, list):
            raise DataError(f"{source}: expected a list of samples, got {type(samples).__name__}")
        for i, sample in enumerate(samples):
            words, visual, acoustic, spoken, label, sample_id = _unpack(sample, f"{source}: sample {i}" + (f" of {name!r}" if name else ""))
            if sample_id is None:
                sample_id, unnamed = f"{name}_{i}" if name else str(i), unnamed + 1
            text.append(words)
            vision.append(visual)
            audio.append(acoustic)
            raw.append(spoken)
            y.append(_numbers(label, f"{source}: sample {sample_id!r}"))
            ids.append(sample_id)
            splits.append(_SPLIT_NAMES.get(str(name), str(name)))
    if unnamed:
        notes.append(f"id: {unnamed} samples have none and are named by their number")
    x: dict[str, list[Any]] = {"audio": audio, "vision": vision}
    vectors = _text(source, text, ids, embedding, notes)
    if vectors is not None:
        x = {"text": vectors, **x}
    for name in [name for name, arrays in x.items() if ids and all(array is None for array in arrays)]:
        notes.append(f"{name} left out: no sample has any")
        del x[name]
    repair(x, None, non_finite, notes)
    make_unique(ids, notes, splits)
    fields: dict[str, Any] = {} if unnamed else {"video": [name.split("[")[0] for name in ids]}
    if all(spoken is not None for spoken in raw):
        fields["raw_text"] = raw
    try:
        if len({len(values) for values in y}) > 1:
            raise DataError(f"labels: expected as many for every sample, got from {min(map(len, y))} to {max(map(len, y))}")
        target, label_names = as_labels(np.array(y), ids, labels, columns, label_names, notes, regression=True)
        return dataset_of(
            x, target, labels, ids=ids, split=splits if None not in parts else None, fields=fields, label_names=label_names, notes=notes
        )
    except DataError as error:
        raise refused(source, error) from error


def _text(
    source: Path, text: list[np.ndarray | None], ids: list[str], embedding: np.ndarray | None, notes: list[str]
) -> list[np.ndarray | None] | None:
    """The vectors of the words of every sample, or None where there are none."""
    kinds = {("vectors" if words.ndim == 2 else "numbers") if words.dtype.kind in "iuf" else "text" for words in text if words is not None}
    if kinds == {"vectors"}:
        return text
    if len(kinds) > 1:
        raise DataError(f"{source}: words: expected the same kind in every sample, got {' and '.join(sorted(kinds))}")
    if kinds == {"text"}:
        if embedding is not None:
            raise DataError(f"{source}: embedding: expected word numbers to look up, got words as text")
        notes.append("text left out: the file holds words as text, without vectors")
    elif embedding is None:
        notes.append("text left out: the file holds word numbers only; embedding= gives them vectors")
    else:
        return [
            None if words is None else _look_up(words, embedding, f"{source}: sample {name!r}")
            for words, name in zip(text, ids, strict=True)
        ]
    return None


def _unpack(sample: Any, where: str) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None, str | None, np.ndarray, str | None]:
    """Words, visual, acoustic (None: empty), what was said, label, id (None: there is none)."""
    try:
        features, label, *rest = sample
        (name,) = rest or [None]
        words, visual, acoustic = (as_array(where, part) for part in features[:3])
        if words.dtype.kind in "USO" and words.size:
            words = np.array([as_text(word) for word in words.ravel()])
        said = features[3] if len(features) > 3 else None
        spoken = said if said is None or isinstance(said, str) else " ".join(as_text(word) for word in said)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{where}: expected ((words, visual, acoustic, ...), label, id), got {type(sample).__name__} ({error})") from error
    if words.size and (words.ndim not in (1, 2) or words.dtype.kind not in ("iuU" if words.ndim == 1 else "iuf")):
        raise DataError(f"{where}: words: expected numbers (T,), text or vectors (T, d), got {words.dtype} of shape {words.shape}")
    if spoken is None and words.dtype.kind == "U":
        spoken = " ".join(words.tolist())
    absent = [None if not part.size and part.ndim < 2 else part for part in (words, visual, acoustic)]
    return absent[0], absent[1], absent[2], spoken, as_array(where, label), None if name is None else as_text(name)


def _numbers(label: np.ndarray, where: str) -> np.ndarray:
    if label.dtype.kind not in "biuf" or not label.size:
        raise DataError(f"{where}: label: expected numbers, got {label.dtype} of shape {label.shape}")
    return label.reshape(-1)


def _look_up(words: np.ndarray, embedding: np.ndarray, where: str) -> np.ndarray:
    if embedding.ndim != 2 or embedding.dtype.kind not in "iuf":
        found = "no numbers" if embedding.dtype.kind == "O" else embedding.dtype
        raise DataError(f"embedding: expected numbers of shape (V, d), got {found}, of shape {embedding.shape}")
    if words.size and not 0 <= words.min() <= words.max() < len(embedding):
        raise DataError(f"{where}: word numbers {words.min()} to {words.max()} do not fit an embedding of {len(embedding)} words")
    return embedding[words]
