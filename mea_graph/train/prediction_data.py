"""Data of every form as the samples that a trained model reads: the same modalities, widths and scaling as in training."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mea_graph.data import DataError, MultimodalDataset, check_batch, open_dataset
from mea_graph.data.arrays import as_numbers
from mea_graph.data.kinds import kind_of, pickle_form
from mea_graph.data.open import SUFFIXES
from mea_graph.data.saved import FORMAT
from mea_graph.train.data_module import PARTS, data_hash

LABELS = ("label", "labels", "columns", "label_names")  # options of readers that say what the targets are
PICKLES = ("mult", "mmsa", "misa")
FORMS = "arrays by modality, a data file, HeteroData or a list of them, or a MultimodalDataset"


@dataclass(frozen=True)
class TrainingData:
    """What a model must know of the data that it was trained on.

    Args:
        channels: Width of each modality, in the model's order.
        standardize: As `SequenceDataModule` has it.
        statistics: Mean and standard deviation of each modality, where `standardize` is `train`.
        unused: Modalities of the source that training left out.
        static: Arrays of an `.npz` that are modalities of one step.
        reader: Options of the source's reader that were given.
        transform: What changed the samples on access, as text.
        data_hash: Hash of the samples.
        samples: How many there were.
        parts: Which of them trained, validated and tested.
    """

    channels: dict[str, int]
    standardize: str | None = None
    statistics: Mapping[str, tuple[Any, Any]] | None = None
    unused: Sequence[str] = ()
    static: Sequence[str] = ()
    reader: Mapping[str, Any] = field(default_factory=dict)
    transform: str | None = None
    data_hash: str | None = None
    samples: int = 0
    parts: Mapping[str, Tensor] | None = None

    @classmethod
    def of(cls, state: Mapping[str, Any], channels: dict[str, int]) -> TrainingData:
        """Returns it from the state of a `SequenceDataModule`.

        Args:
            state: Its `state_dict()`.
            channels: Widths that the model was made with.

        Raises:
            DataError: If the state lacks the statistics.
        """
        if not isinstance(state["standardize"], str | None):
            raise DataError(f"standardize: expected train, the name of a field or None, got {state['standardize']!r:.40}")
        if state["standardize"] == "train" and state.get("statistics") is None:
            raise DataError("standardize: this checkpoint lacks the statistics of its training samples")
        return cls(
            channels,
            state["standardize"],
            state.get("statistics"),
            state.get("unused", ()),
            state.get("static", ()),
            dict(state.get("reader", {})),
            state.get("transform"),
            state["data_hash"],
            state.get("samples", 0),
            {name: state[name] for name in PARTS if name in state},
        )

    def part_of(self, dataset: MultimodalDataset) -> list[str] | None:
        """Returns the part of each sample where these are the samples of training, else None.

        Args:
            dataset: As given, before it was scaled.
        """
        if self.parts is None or len(dataset) != self.samples or data_hash(dataset) != self.data_hash:
            return None
        names = [""] * len(dataset)
        for name, numbers in self.parts.items():
            for number in numbers[(numbers >= 0) & (numbers < len(names))].tolist():
                names[number] = name
        return names


def as_dataset(data: Any, known: TrainingData, cache_dir: str | os.PathLike[str] | None = None) -> MultimodalDataset:
    """Returns the samples as a raw data set of the model's modalities only; those that it lacks are added when a sample is read.

    Args:
        data: In any form that `Predictor.predict` takes.
        known: What the model was trained on.
        cache_dir: Folder for the cache of a file, as for `open_dataset`.

    Raises:
        DataError: If a modality is unknown or of another width, values are no numbers, or there is no sample.
    """
    if isinstance(data, MultimodalDataset):
        dataset = data
    elif isinstance(data, str | os.PathLike):
        dataset = _opened(Path(data), known, cache_dir)
    elif isinstance(data, HeteroData):
        check_batch(data)
        batched = hasattr(data, "num_graphs")
        dataset = _of_samples(data.to_data_list() if batched else [data], known)
    elif isinstance(data, Mapping):
        dataset = _of_arrays(data, known)
    elif isinstance(data, Sequence) and data and all(isinstance(sample, HeteroData) for sample in data):
        dataset = _of_samples(data, known)
    else:
        got = "none" if isinstance(data, Sequence) and not len(data) else type(data).__name__
        raise DataError(f"data: expected {FORMS}, got {got}")
    if not len(dataset):
        raise DataError("data: expected at least one sample, got none")
    if dataset._scaling is not None:
        raise DataError("data: expected a raw data set, got a standardized one; the predictor scales samples as training did")
    if known.transform is not None and dataset.transform is None:
        raise DataError(
            f"data: the model was trained on samples that a transform changed, {known.transform}; give a MultimodalDataset with "
            "dataset.transform set to the same"
        )
    _check_names(set(dataset.modalities) - set(known.unused), known)
    _check_not_left_out(dataset, known)
    wanted = [m for m in known.channels if m in dataset.modalities]
    if dataset.transform is None:
        for m in wanted:
            if dataset.channels[m] != known.channels[m]:
                raise DataError(f"{m}: expected width {known.channels[m]}, as in training, got {dataset.channels[m]}")
    return dataset.with_modalities(wanted)


def scaled(dataset: MultimodalDataset, known: TrainingData) -> MultimodalDataset:
    """Returns the samples as training scaled its own.

    Args:
        dataset: The dataset of `as_dataset`.
        known: What the model was trained on.

    Raises:
        DataError: If training had statistics for each value of a field, which the data lacks.
    """
    if known.standardize is None:
        return dataset
    if known.standardize == "train":
        return dataset.standardize(statistics=known.statistics)
    field = known.standardize
    if field not in dataset.fields:
        raise DataError(
            f"standardize: the model was trained on z-scores by {field!r}, each value with statistics of its own; expected data with "
            f"that field, such as MultimodalDataset.from_arrays(..., fields={{{field!r}: [...]}}), got {sorted(dataset.fields) or 'none'}"
        )
    return dataset.standardize(by=field)


def whole_sample(sample: HeteroData, name: Any, channels: Mapping[str, int], timed: Collection[str] = ()) -> HeteroData:
    """`x` and `time` of a sample with every modality of a model, in its order, and nothing else; `name` is for errors.

    The modalities `timed` must have times, of which a missing one has none.
    """
    own = HeteroData()
    for m, width in channels.items():
        node = sample[m] if m in sample.node_types else {}
        x = torch.zeros(0, width) if node.get("x") is None else node["x"]
        if not isinstance(x, Tensor) or x.dim() != 2 or x.size(1) != width:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise DataError(f"sample {name!r}: {m}: expected x of shape (T, {width}), got {got}")
        own[m].x = x
        if "time" in node:
            own[m].time = node["time"]
        elif m in timed:
            if len(x):
                how = "MultimodalDataset.from_arrays(..., time=) takes them"
                raise DataError(f"sample {name!r}: {m}: expected the seconds of its steps, which the model reads, got none; {how}")
            own[m].time = torch.zeros(0)
    return own


def _check_names(names: set[str], known: TrainingData) -> None:
    if unknown := sorted(names - set(known.channels)):
        raise DataError(f"data: expected modalities among {list(known.channels)}, which the model was trained on, got {unknown}")
    if not names:
        raise DataError(f"data: expected some of the modalities {list(known.channels)}, got none")


def _check_not_left_out(dataset: MultimodalDataset, known: TrainingData) -> None:
    """A modality that the file has in another shape than a modality's, or as words without vectors, is no missing one."""
    for m, width in known.channels.items():
        if m in dataset.modalities:
            continue
        expected = f"{m}: expected sequences of width {width}, as in training"
        if m in dataset.fields:
            raise DataError(f"{expected}, got one value a sample")
        for note in dataset.notes:
            if note.startswith((f"array {m!r} ", f"{m} left out: the file holds ")):
                raise DataError(f"{expected}, got none: {note}")


def _opened(path: Path, known: TrainingData, cache_dir: str | os.PathLike[str] | None) -> MultimodalDataset:
    """A file as training read its own, its labels too; other labels than these are left out, since they are not what is predicted."""
    names = _arrays_in(path) if path.is_file() and kind_of(path) == "npz" else set()
    options = _reader_options(path, known, names)
    of_labels = {} if FORMAT in names else {name: known.reader[name] for name in LABELS if name in known.reader}
    wanted = of_labels.get("label")
    if names and wanted is not None and wanted not in names:
        return _without_targets(open_dataset(path, cache_dir=cache_dir, **options), f"there is no array {wanted!r}, whose labels trained")
    if not of_labels:
        return open_dataset(path, cache_dir=cache_dir, **options)
    try:
        return open_dataset(path, cache_dir=cache_dir, **options, **of_labels)
    except DataError as error:
        try:
            dataset = open_dataset(path, cache_dir=cache_dir, **options)
        except DataError:
            raise error from None
        return _without_targets(dataset, f"they do not fit the options of training ({error})")


def _without_targets(dataset: MultimodalDataset, why: str) -> MultimodalDataset:
    store = dataset._store
    if store.y is None:
        return dataset
    notes = (*store.notes, f"targets left out: {why}")
    return dataset._view(_store=replace(store, y=None, label_names=None, notes=notes, source_hash=store.hash))


def _reader_options(path: Path, known: TrainingData, names: Collection[str]) -> dict[str, Any]:
    """The options that decide what a sequence holds, as in training, where the reader of this file has them."""
    options: dict[str, Any]
    kind = kind_of(path) if path.is_file() else ""
    if FORMAT in names:
        return {}  # a saved data set holds what its own reader made
    options = {}
    trained = known.reader.get("format")
    if trained in (*PICKLES, "csd") and _is_read_as(path, kind, trained):
        options["format"] = trained
    if found := [name for name in known.static if name in names]:
        options["static"] = found
    if known.reader.get("id") in names:
        options["id"] = known.reader["id"]
    if "non_finite" in known.reader:
        options["non_finite"] = known.reader["non_finite"]
    if "lengths" in known.reader and kind == "pickle" and (options.get("format") or pickle_form(path)) == "mmsa":
        options["lengths"] = known.reader["lengths"]
    return options


def _is_read_as(path: Path, kind: str, trained: str) -> bool:
    """Whether a file, or a folder, may be of the format that training read its own by, where its contents leave a choice or say nothing."""
    if path.is_dir():
        return trained in SUFFIXES and any(path.glob(f"*{SUFFIXES[trained]}"))
    if kind != "pickle" or trained not in PICKLES:
        return not kind
    try:
        return {trained, pickle_form(path)} == {"mult", "mmsa"}  # both are arrays by split, one with lengths and one without
    except DataError:  # of no form that is known
        return True


def _arrays_in(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile:
        return set()  # which the reader is going to say


def _of_arrays(data: Mapping[str, Any], known: TrainingData) -> MultimodalDataset:
    _check_names(set(data), known)
    x = {m: _sequences(m, value) for m, value in data.items()}
    if len({len(sequences) for sequences in x.values()}) > 1:
        raise DataError(f"data: expected as many samples in every modality, got { ({m: len(v) for m, v in x.items()}) }")
    for m, sequences in x.items():  # a modality that no sample has tells its width by nothing else
        empty = np.zeros((0, known.channels[m]), np.float32)
        x[m] = [empty if sequence is None else sequence for sequence in sequences]
    if not next(iter(x.values())):
        raise DataError("data: expected at least one sample, got none")
    return MultimodalDataset.from_arrays(x)


def _sequences(name: str, value: Any) -> list[Any]:
    """One array a sample, of a list or of one array of sequences of equal length."""
    array = _array(value)
    if isinstance(array, np.ndarray) and array.dtype != object:
        if array.ndim != 3:
            raise DataError(
                f"{name}: expected a list of arrays (T, d), one a sample, or one array (N, T, d), got {array.dtype} of shape "
                f"{array.shape}; of one sample (T, d) it is [array]"
            )
        return list(array)
    if not isinstance(array, list | tuple | np.ndarray):
        raise DataError(f"{name}: expected a list of arrays (T, d), one a sample, or one array (N, T, d), got {type(value).__name__}")
    return [_array(sequence) for sequence in array]


def _array(value: Any) -> Any:
    return as_numbers("data", value) if isinstance(value, Tensor) else value


def _of_samples(samples: Sequence[HeteroData], known: TrainingData) -> MultimodalDataset:
    """Samples of a pipeline of the user's: networks read `x` and `time` of the modalities, so edges and the like are left behind."""
    kept = ["id"] if known.standardize in (None, "train") else ["id", known.standardize]
    names = {name for sample in samples for name in sample.node_types if "x" in sample[name]}
    _check_names(names, known)
    found = []
    for number, sample in enumerate(samples):
        own = whole_sample(sample, sample.get("id", number), known.channels)
        for name in kept:
            if name in sample:
                own[name] = sample[name]
        found.append(own)
    return MultimodalDataset.from_samples(found)
