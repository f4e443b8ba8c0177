"""The field's three benchmark data sets: what their files must hold, and the paper's settings for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError

_SENTIMENT_METRICS = ("acc7", "acc2_nonneg", "f1_nonneg", "acc2_pos", "f1_pos", "mae", "corr")


@dataclass(frozen=True)
class Preset:
    """The protocol of a benchmark: files, shapes, splits, task, metrics and the paper's options.

    Request the data from their owners. `instructions` says which file goes where, and `check` raises an error if a data set is not the
    one behind the published figures.

    Args:
        name: The data set's usual name.
        widths: The channels d that the published features have, by modality.
        max_lengths: The largest number of steps of a sample, by modality.
        split_sizes: Samples in train, valid and test.
        task: "regression" or "multilabel".
        metrics: The metrics that the field reports, by the names that `mea-graph test` uses.
        hyperparameters: The paper's options (Table I), by the names of the arguments that take them.
        files: The files that `open_dataset` reads, each with the name of its format.
        owner: Who grants access.
        label_names: Names of the binary labels, in the order of the file.

    >>> MOSI.split_sizes["test"], MOSI.hyperparameters["heads"]
    (686, 8)
    """

    name: str
    widths: Mapping[str, tuple[int, ...]]
    max_lengths: Mapping[str, int]
    split_sizes: Mapping[str, int]
    task: str
    metrics: tuple[str, ...]
    hyperparameters: Mapping[str, Any]
    files: Mapping[str, str]
    owner: str
    label_names: tuple[str, ...] | None = None

    def instructions(self, folder: str = "data") -> str:
        """Says which file to place where, and how to train on it.

        Args:
            folder: The folder of the file.

        >>> print(IEMOCAP.instructions().splitlines()[1])
          data/iemocap_data_noalign.pkl   (MulT's pickle)
        """
        first = next(iter(self.files))
        places = "\n".join(f"  {folder}/{file}   ({form})" for file, form in self.files.items())
        return (
            f"{self.name} is not part of this package. Place one of these files, without changing it:\n{places}\n"
            f"Access is granted by {self.owner}.\n"
            f"Then: mea-graph fit --config {self.config} --data.source {folder}/{first}"
        )

    @property
    def config(self) -> str:
        """Name of the configuration shipped for this data set."""
        return self.name.removeprefix("CMU-").lower()

    def check(self, dataset: MultimodalDataset) -> None:
        """Raises an error if `dataset` is not the one of the protocol.

        Raises:
            DataError: If something differs; the error lists all of it.

        >>> try:
        ...     MOSI.check(
        ...         MultimodalDataset.from_arrays(
        ...             {"text": [np.ones((3, 300))]}, y=[0.5], split=["train"]
        ...         )
        ...     )
        ... except DataError as error:
        ...     print(str(error).splitlines()[1])
          audio: expected width 5, got no such modality
        """
        if found := self.mismatches(dataset):
            raise DataError("\n  ".join([f"{self.name}: {len(found)} differences from the protocol:", *found]))

    def mismatches(self, dataset: MultimodalDataset) -> list[str]:
        """Returns what differs between `dataset` and the protocol, a line each.

        >>> dataset = MultimodalDataset.from_arrays(
        ...     {"text": [np.ones((3, 300))]}, y=[0.5], split=["train"]
        ... )
        >>> MOSI.mismatches(dataset)[-1]
        'split test: expected 686 samples, got 0'
        """
        found = []
        for name, widths in self.widths.items():
            if name not in dataset.modalities:
                found.append(f"{name}: expected width {_either(widths)}, got no such modality")
                continue
            if dataset.channels[name] not in widths:
                found.append(f"{name}: expected width {_either(widths)}, got {dataset.channels[name]}")
            if (longest := int(dataset.lengths[name].max(initial=0))) > self.max_lengths[name]:
                found.append(f"{name}: expected at most {self.max_lengths[name]} steps, got {longest}")
        if extra := [name for name in dataset.modalities if name not in self.widths]:
            found.append(f"modalities: expected {list(self.widths)}, got {extra} besides")
        found += self._label_mismatches(dataset.y)
        if self.label_names and dataset.label_names not in (None, self.label_names):
            found.append(f"label names: expected {self.label_names}, got {dataset.label_names}")
        if dataset.split is None:
            return [*found, f"split: expected {list(self.split_sizes)}, got none"]
        for name, expected in self.split_sizes.items():
            if (got := int(np.count_nonzero(dataset.split == name))) != expected:
                found.append(f"split {name}: expected {expected} samples, got {got}")
        return found

    def _label_mismatches(self, y: np.ndarray | None) -> list[str]:
        if self.label_names:
            fits = y is not None and y.ndim == 2 and y.shape[1] == len(self.label_names)
            wanted = f"{len(self.label_names)} binary labels {self.label_names}"
        else:
            fits = y is not None and y.ndim == 1 and y.dtype.kind == "f" and bool((np.abs(y) <= 3).all())
            wanted = "real numbers in [-3, 3]"
        got = "none" if y is None else f"{y.dtype} of shape {y.shape}" + (f" from {y.min():g} to {y.max():g}" if y.size else "")
        return [] if fits else [f"y: expected {wanted}, got {got}"]


def _either(values: tuple[int, ...]) -> str:
    return " or ".join(map(str, values))


def _read_only(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(values)


def _table_one(
    batch_size: int, epochs: int, learning_rate: float, heads: int, audio_kernel: int, mu: float, alpha: float, beta: float
) -> Mapping[str, Any]:
    return _read_only(
        batch_size=batch_size,
        epochs=epochs,
        channels=40,
        hidden_channels=64,
        learning_rate=learning_rate,
        heads=heads,
        extractor=_read_only(kernel_size=_read_only(text=3, audio=audio_kernel, vision=3)),
        exclusive=_read_only(num_layers=3, mu=mu),
        agnostic=_read_only(num_layers=2),
        alpha=alpha,
        beta=beta,
    )


MOSI = Preset(
    name="CMU-MOSI",
    widths=_read_only(text=(300, 768), audio=(5,), vision=(20,)),  # text: GloVe in MulT's file, BERT in MMSA's
    max_lengths=_read_only(text=50, audio=375, vision=500),
    split_sizes=_read_only(train=1284, valid=229, test=686),
    task="regression",
    metrics=_SENTIMENT_METRICS,
    hyperparameters=_table_one(32, 60, 1e-3, 8, 3, mu=0.25, alpha=2e-2, beta=3e-2),
    files=MappingProxyType({"mosi_data_noalign.pkl": "MulT's pickle", "MOSI/Processed/unaligned_50.pkl": "MMSA's pickle"}),
    owner="the MultiComp Lab of Carnegie Mellon University",
)
"""CMU-MOSI, unaligned protocol: sentiment of 2,199 opinion segments."""

MOSEI = Preset(
    name="CMU-MOSEI",
    widths=_read_only(text=(300, 768), audio=(74,), vision=(35,)),
    max_lengths=_read_only(text=50, audio=500, vision=500),
    split_sizes=_read_only(train=16326, valid=1871, test=4659),
    task="regression",
    metrics=_SENTIMENT_METRICS,
    hyperparameters=_table_one(64, 100, 2e-3, 10, 3, mu=0.15, alpha=3e-2, beta=5e-2),
    files=MappingProxyType({"mosei_senti_data_noalign.pkl": "MulT's pickle", "MOSEI/Processed/unaligned_50.pkl": "MMSA's pickle"}),
    owner="the MultiComp Lab of Carnegie Mellon University",
)
"""CMU-MOSEI, unaligned protocol: sentiment of 22,856 segments."""

_EMOTIONS = ("neutral", "happy", "sad", "angry")

IEMOCAP = Preset(
    name="IEMOCAP",
    widths=_read_only(text=(300,), audio=(74,), vision=(35,)),
    max_lengths=_read_only(text=20, audio=400, vision=500),
    split_sizes=_read_only(train=2717, valid=798, test=938),
    task="multilabel",
    metrics=tuple(f"{metric}_{emotion}" for emotion in _EMOTIONS for metric in ("accuracy", "f1")),
    hyperparameters=_table_one(32, 60, 1e-3, 8, 5, mu=0.2, alpha=1e-2, beta=2e-2),
    files=MappingProxyType({"iemocap_data_noalign.pkl": "MulT's pickle"}),
    owner="the Signal Analysis and Interpretation Laboratory of the University of Southern California",
    label_names=_EMOTIONS,
)
"""IEMOCAP, unaligned protocol: four binary emotions of 4,453 utterances."""
