"""`SequenceDataModule`: a source, a split and batches of similar length."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch_geometric.loader import DataLoader

from mea_graph.data import (
    IEMOCAP,
    MOSEI,
    MOSI,
    AsynchronousEvents,
    DataError,
    LengthBucketBatchSampler,
    MultimodalDataset,
    open_dataset,
)
from mea_graph.option_types import plain_value
from mea_graph.train.metrics import Task
from mea_graph.train.missing_modalities import warn_of_absent
from mea_graph.train.sampling import Sampling, take_up
from mea_graph.train.splits import PARTS, SplitPolicy
from mea_graph.train.targets import check_targets

OWN_SPLITS, ONE_PASS = SplitPolicy(), Sampling()
PRESETS = {"MOSI": MOSI, "MOSEI": MOSEI, "IEMOCAP": IEMOCAP}


class SequenceDataModule(L.LightningDataModule):
    """Opens a source, splits it and yields batches for training, validation and test, on any number of processes.

    `SequenceDataModule(dataset)` takes a `MultimodalDataset` in memory in place of a file. `in_channels`, `out_channels`, `task` and
    `label_names` are known before `setup`; give them to the module. Evaluation reads every sample exactly once, even if several
    processes share the work.

    Args:
        source: File or folder that `mea_graph.data.open_dataset` reads; in Python also a data set, not standardised. Or give `events`.
        preset: The protocol that the source should follow, such as MOSI's; a warning lists the differences.
        events: Arguments of `mea_graph.data.AsynchronousEvents`, the embedded data.
        reader: Options of `mea_graph.data.open_dataset`: `format`, where the contents of the file do not say it; `cache_dir`, a folder
            for converted data; and those of the format's reader, such as `label: emotion`.
        modalities: The modalities to use, in this order; all if `None`.
        task: What the target is; follows from the targets if `None`.
        classes: The names of the classes or labels in order, if the data has none; or their number, if some do not occur in the data.
        split: Which samples train, validate and test.
        standardize: Z-scores per channel: `train` (statistics of the training samples; the checkpoint keeps them for other data),
            or the name of a field, such as `subject` (statistics of each of its values); raw features if `None`.
        batch_size: Samples per batch and process, >= 1.
        sampling: How training draws its samples.
        seed: Seed of the order of the training samples; the order also depends on the epoch.
        num_workers: Processes that read samples, >= 0.

    Raises:
        DataError: If the source, the split or the targets are not as described; the field is named.

    >>> data = SequenceDataModule(
    ...     events={"num_samples": 40, "task": "classification"}, batch_size=8
    ... )
    >>> data.task, len(data.in_channels)
    ('classification', 3)
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | MultimodalDataset | None = None,
        preset: Literal["MOSI", "MOSEI", "IEMOCAP"] | None = None,
        events: dict[str, Any] | None = None,
        reader: dict[str, Any] | None = None,
        modalities: list[str] | None = None,
        task: Task | None = None,
        classes: int | list[str] | None = None,
        split: SplitPolicy = OWN_SPLITS,
        standardize: str | None = None,
        batch_size: int = 32,
        sampling: Sampling = ONE_PASS,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if (source is None) == (events is None):
            got = "both" if source is not None else "none" if preset is None else f"none\n{PRESETS[preset].instructions()}"
            raise DataError(f"data: expected data.source (a file) or data.events (embedded data), got {got}")
        if not isinstance(source, str | os.PathLike | Mapping | MultimodalDataset | None):
            made = "; MultimodalDataset.from_samples makes one of PyG samples, from_arrays of arrays"
            raise DataError(f"data.source: expected a path or a MultimodalDataset, got {type(source).__name__}{made}")
        for name, number, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if not isinstance(number, Integral) or isinstance(number, bool) or number < least:
                raise DataError(f"data.{name}: expected an integer >= {least}, got {number!r}")
        for name, given, kind in (("split", split, SplitPolicy), ("sampling", sampling, Sampling)):
            if not isinstance(given, kind):
                raise DataError(f"data.{name}: expected {kind.__name__}(...), got {given!r}")
        if reader and (source is None or isinstance(source, MultimodalDataset)):
            raise DataError(f"data.reader: expected options with a file only, got {reader} without one")
        for name in ("source", "modalities"):
            if name in (reader or {}):
                raise DataError(f"data.reader: expected options of open_dataset, got {name!r}, which is data.{name}")
        if isinstance(source, MultimodalDataset) and source._scaling is not None:
            raise DataError("data.source: expected a raw data set, got a standardized one; give standardize= in its place")
        self.source = source
        self.preset = preset
        self.events = events
        self.reader = reader or {}
        self.modalities = modalities
        self.wanted_task = task
        self.classes = _checked_classes(classes)
        self.split = split
        self.standardize = standardize
        self.batch_size = batch_size
        self.sampling = sampling
        self.seed = seed
        self.num_workers = num_workers
        self.predict_split: Literal["test", "train", "valid", "all"] = "test"  # what Lightning's `trainer.predict(module, data)` reads
        self._statistics: dict[str, Any] | None = None  # of the training samples, from a checkpoint

    @cached_property
    def dataset(self) -> MultimodalDataset:
        """All samples, raw."""
        if self.source is not None:
            if isinstance(self.source, MultimodalDataset):
                dataset = self.source if self.modalities is None else self.source.with_modalities(self.modalities)
            else:
                dataset = open_dataset(self.source, modalities=self.modalities, **self.reader)
            if self.preset is not None and (found := PRESETS[self.preset].mismatches(dataset)):
                name = "the data set" if isinstance(self.source, MultimodalDataset) else self.source
                warnings.warn(f"{name} does not follow the protocol of {self.preset}: {'; '.join(found)}", stacklevel=2)
            return dataset
        try:
            dataset = AsynchronousEvents(**(self.events or {}))
        except TypeError as error:
            raise DataError(f"data.events: {error}") from error
        return dataset if self.modalities is None else dataset.with_modalities(self.modalities)

    @property
    def in_channels(self) -> dict[str, int]:
        """Width of each modality, as the network sees it."""
        return dict(self.dataset.num_node_features)

    @property
    def task(self) -> Task:
        """What the target is."""
        return self._target[0]

    @property
    def out_channels(self) -> int:
        """Width of the prediction."""
        return self._target[1]

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes or labels."""
        own = self.dataset.label_names
        if own is None:
            return self.classes if isinstance(self.classes, list) else None
        if self.classes not in (None, len(own), list(own)):
            told = f"expected none, or the {len(own)} that the data names: {', '.join(own)}"[:300]
            raise DataError(f"data.classes: {told}; got {self.classes}")
        return list(own)

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Sample numbers of each part, `train`, `valid` and `test` where they exist."""
        data = self.dataset
        return self.split.apply(len(data), data.split, data.fields, data.y, data.ids)

    def check_parts(self, *names: str) -> None:
        """Raises an error if a part has no sample, before anything is written.

        Args:
            names: Parts that are needed.
        """
        for name in names:
            self._part(name)

    def check_training(self) -> None:
        """Raises an error if these data cannot be trained on with these options, before anything is written."""
        self.check_labelled()
        warn_of_absent(self.dataset.lengths, self._part("train"))
        self._check_standardize()
        if self.sampling.balanced and self.task != "classification":
            raise DataError(f"data.sampling.balanced: expected classification, whose classes it draws equally often, got {self.task}")

    def targets(self, part: str) -> torch.Tensor:
        """Returns the targets of one part.

        Args:
            part: `train`, `valid` or `test`.

        Shape:
            - :math:`(N,)` or :math:`(N, K)`.
        """
        return torch.as_tensor(self.check_labelled()[self._part(part)])

    def check_labelled(self) -> np.ndarray:
        """Returns all targets; raises an error if the data has none."""
        if self.dataset.y is None:
            named = [name for name in ("label", "labels", "target", "targets") if name in self.dataset.fields]
            hint = f"; its field {named[0]!r} is none: targets are y, in from_arrays and in a PyG sample" if named else ""
            raise DataError(f"y: the data has no targets, so nothing can be trained or measured on it; `predict` needs none{hint}")
        return self.dataset.y

    def samples(self, part: str) -> MultimodalDataset:
        """Returns the samples of one part as the network reads them, standardised with `standardize`.

        Args:
            part: `train`, `valid`, `test` or `all`.
        """
        return self._prepared.subset(self._part(part))

    def some_samples(self, part: str) -> Any:
        """Returns the first samples of one part, two at most, as a batch, as they are in the source.

        Args:
            part: `train`, `valid` or `test`.
        """
        return next(iter(DataLoader(self.dataset.subset(self._part(part)[:2]), batch_size=2)))

    def train_dataloader(self) -> DataLoader:
        self.check_training()
        rank, processes = self._processes
        drawn = {"batches": self.sampling.batches, "classes": self.targets("train").numpy() if self.sampling.balanced else None}
        loader = self._loader(self._part("train"), shuffle=True, num_replicas=processes, rank=rank, **drawn)
        if self.trainer is not None:
            take_up(loader.batch_sampler, self.trainer)
        return loader

    def val_dataloader(self) -> DataLoader:
        self.check_labelled()
        return self.part_dataloader("valid")

    def test_dataloader(self) -> DataLoader:
        self.check_labelled()
        return self.part_dataloader("test")

    def predict_dataloader(self) -> DataLoader:
        return self.part_dataloader(self.predict_split)

    def part_dataloader(self, part: str) -> DataLoader:
        """Returns batches of one part, each sample once; of several processes, each reads its share of them.

        Args:
            part: `train`, `valid`, `test` or `all`.
        """
        rank, processes = self._processes
        indices = self._part(part)
        if len(indices) < processes:
            raise DataError(f"split: part {part!r} has {len(indices)} samples, fewer than the {processes} processes that share it")
        # every n-th sample: none is repeated to fill up, as that would falsify the metrics
        return self._loader(indices[rank::processes], shuffle=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns what resuming exactly, refusing to test on what was trained, and `Predictor` need of the data."""
        scaled = self._prepared.statistics if self.standardize == "train" else None
        tensors = None if scaled is None else {name: [torch.as_tensor(part) for part in parts] for name, parts in scaled.items()}
        return {
            "data_hash": data_hash(self.dataset),
            **{name: torch.as_tensor(self.parts.get(name, np.arange(0))) for name in PARTS},
            "samples": len(self.dataset),
            "channels": self.in_channels,
            "unused": sorted(set(self.dataset._store.sequences) - set(self.dataset.modalities)),
            "static": list(self.reader.get("static", ())),
            "reader": self._reading,
            "label_names": self.label_names,
            "transform": None if self.dataset.transform is None else repr(self.dataset.transform),
            "standardize": self.standardize,
            "statistics": tensors,
            **self._drawing,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.trainer is not None:
            check_same_data(state_dict, self, self.trainer.state.fn)
        self._statistics = state_dict.get("statistics")
        self.__dict__.pop("_prepared", None)  # what was scaled before the checkpoint was known

    @cached_property
    def _target(self) -> tuple[Task, int]:
        names = self.label_names
        number = self.classes if isinstance(self.classes, int) else None
        return check_targets(self.dataset.y, self.wanted_task, number if names is None else len(names), self.dataset.notes)

    @cached_property
    def _prepared(self) -> MultimodalDataset:
        """The samples as the network sees them."""
        self._check_standardize()
        if self.standardize is None:
            return self.dataset
        if self.standardize == "train":
            if self._statistics is not None:
                return self.dataset.standardize(statistics=self._statistics)
            return self.dataset.standardize(fit_on=self._part("train"))
        return self.dataset.standardize(by=self.standardize)

    def _check_standardize(self) -> None:
        if self.standardize not in (None, "train", *self.dataset.fields):
            fields = ", ".join(self.dataset.fields) or "it has none"
            raise DataError(f"data.standardize: expected train, a field of the data ({fields}) or None, got {self.standardize!r}")
        if self.standardize is not None and self.dataset._store.standardized:
            why = "since the data holds z-scores: it was standardized when it was saved"
            raise DataError(f"data.standardize: expected None, {why}; got {self.standardize!r}")

    @property
    def _reading(self) -> dict[str, Any]:
        """What decides how a file is read, by name; where its cache and its embedding lie is left out."""
        return {name: plain_value(self.reader[name]) for name in sorted(self.reader) if name not in ("cache_dir", "embedding")}

    @property
    def _drawing(self) -> dict[str, Any]:
        """What decides the batches of training, by name."""
        drawing = {"seed": int(self.seed), "batch_size": self.batch_size * self._processes[1]}
        return drawing | {f"sampling.{name}": value for name, value in vars(self.sampling).items()}

    @property
    def _processes(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _part(self, name: str) -> np.ndarray:
        if name == "all":
            return np.arange(len(self.dataset))
        if name not in self.parts:
            hint = "; give data.split.valid_fraction to carve it out of the training samples" if name == "valid" else ""
            raise DataError(f"split: no sample is in part {name!r}; there are {', '.join(self.parts) or 'none'}{hint}")
        return self.parts[name]

    def _loader(self, indices: np.ndarray, shuffle: bool, **sampling: Any) -> DataLoader:
        part = self._prepared.subset(indices)
        sampler = LengthBucketBatchSampler(part.lengths, self.batch_size, shuffle=shuffle, seed=self.seed, **sampling)
        return DataLoader(part, batch_sampler=sampler, num_workers=self.num_workers, persistent_workers=self.num_workers > 0)


def _checked_classes(classes: Any) -> int | list[str] | None:
    classes = plain_value(classes)
    if classes is None or (isinstance(classes, int) and not isinstance(classes, bool)):
        return classes
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise DataError(f"data.classes: expected how many there are, or a list of their names, each once; got {classes!r}"[:300])
    return list(classes)


SequenceDataModule.__init__.__annotations__["source"] = "str | None"  # all that the command line can give: it goes by these


def data_hash(dataset: MultimodalDataset) -> str:
    """Returns the SHA-256 that identifies the samples of a data set, in their order: that of its source, or one of its own for a part.

    Args:
        dataset: The samples.

    >>> dataset = MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * 3})
    >>> data_hash(dataset) == dataset.hash, data_hash(dataset[1:]) == dataset.hash
    (True, False)
    """
    rows = np.asarray(dataset.indices(), dtype=np.int64)
    if np.array_equal(rows, np.arange(dataset.len())):
        return dataset.hash
    return hashlib.sha256(dataset.hash.encode() + rows.tobytes()).hexdigest()


def check_same_data(state: dict[str, Any], data: SequenceDataModule, stage: str | None) -> None:
    """Refuses to resume on other data, and to test on samples that the checkpoint was trained on."""
    same_source = state["data_hash"] == data_hash(data.dataset)
    trained = state["train"].numpy()
    same_parts = all(np.array_equal(state[name].numpy(), data.parts.get(name, np.arange(0))) for name in ("train", "valid"))
    if stage == TrainerFn.FITTING and not (same_source and same_parts):
        raise DataError("ckpt_path: expected the data and split that the checkpoint was trained on; resume with the run's config.yaml")
    if stage == TrainerFn.FITTING:
        if (used := state.get("reader", data._reading)) != data._reading:
            told = f"the checkpoint was trained with {used}, this run has {data._reading}"
            raise DataError(f"data.reader: {told}; resume with the run's config.yaml")
        for name, asked in data._drawing.items():
            if (used := state.get(name, asked)) != asked:
                unit = " of all processes together" if name == "batch_size" else ""
                raise DataError(
                    f"data.{name}: the checkpoint was trained with {used}{unit}, this run has {asked}; resume with the run's config.yaml"
                )
    used, own = state.get("label_names"), data.label_names
    if stage != TrainerFn.PREDICTING and used is not None and own is not None and used != own:
        told = f"the checkpoint was trained with {', '.join(used)}, this data has {', '.join(own)}"
        raise DataError(f"label_names: {told}; label_names= of the data's reader, or of from_arrays, gives classes their numbers")
    if (used := state.get("standardize", data.standardize)) != data.standardize:
        raise DataError(f"data.standardize: the checkpoint was trained with {used!r}, the configuration has {data.standardize!r}")
    if not same_source and data.standardize == "train" and state.get("statistics") is None:
        raise DataError("standardize: this checkpoint lacks the statistics of its training samples, which this source does not hold")
    if same_source and stage == TrainerFn.TESTING:
        overlap = np.intersect1d(trained, data.parts["test"])
        if len(overlap):
            raise DataError(
                f"split: {len(overlap)} of {len(data.parts['test'])} test samples trained this checkpoint; test with the run's config.yaml"
            )
