"""`MultimodalDataset`: samples with sequences of several modalities, each at its true length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch_geometric.data import HeteroData

from mea_graph.data.description import describe
from mea_graph.data.doubts import warn_of_doubts
from mea_graph.data.errors import DataError
from mea_graph.data.labels import read_names, split_meant
from mea_graph.data.samples import arrays_of, changed_arrays
from mea_graph.data.saved import save, taken
from mea_graph.data.scaling import Scaling, scaling_of
from mea_graph.data.store import Store, build_store
from mea_graph.data.views import Index, ViewedDataset, positions

if TYPE_CHECKING:
    from typing_extensions import Self


class MultimodalDataset(ViewedDataset):
    """Samples as `HeteroData` graphs, with a node type for each modality and a node for each of its steps.

    Make one with `from_arrays`, `from_samples` or `open_dataset`. Lengths, labels and fields are available without reading a sequence.
    It is a data set of PyG: select samples by `dataset[2:5]`, an index, a mask, `shuffle`, `select` or `where`. The result is a
    view of the same class; it copies nothing, and all properties follow it.

    Args:
        store: The checked arrays.
        transform: A function applied to a sample on every access, as in PyG; you can also assign `dataset.transform = f`. `lengths`, `y`
            and `channels` describe the stored samples, before the transform.

    Shape:
        - `sample[m].x`: :math:`(T_m, d_m)`, float32; :math:`(0, d_m)` if the sample lacks the modality
        - `sample[m].time`, where known: :math:`(T_m,)`, float32, in seconds
        - `sample.y`: float32 :math:`(1,)` for regression, int64 :math:`(1,)` for a class, float32 :math:`(1, K)` for K binary labels
        - `sample.id`: a string

    >>> audio, lips = [np.zeros((3, 2)), np.ones((5, 2))], [np.zeros((2, 4)), None]
    >>> x, split = {"audio": audio, "lips": lips}, ["train", "test"]
    >>> dataset = MultimodalDataset.from_arrays(x, y=[0, 1], split=split)
    >>> dataset.lengths["audio"].tolist(), tuple(dataset[1]["lips"].x.shape)
    ([3, 5], (0, 4))
    >>> dataset[1:].ids, dataset.num_classes, dataset.num_features
    (['1'], 2, {'audio': 2, 'lips': 4})
    """

    def __init__(self, store: Store, *, transform: Callable[[HeteroData], Any] | None = None) -> None:
        super().__init__(transform=transform)
        self._store = store
        self._indices = np.arange(len(store.ids))
        self._modalities = tuple(store.sequences)
        self._scaling: Scaling | None = None

    @classmethod
    def from_arrays(
        cls,
        x: Mapping[str, Sequence[Any]],
        y: Any = None,
        *,
        ids: Sequence[Any] | None = None,
        time: Mapping[str, Sequence[Any]] | None = None,
        split: Sequence[str] | np.ndarray | None = None,
        fields: Mapping[str, Any] | None = None,
        label_names: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        transform: Callable[[HeteroData], Any] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_filter: Callable[[HeteroData], bool] | None = None,
    ) -> Self:
        """Makes a data set from arrays in memory, checking all of them.

        Args:
            x: For each modality a list with one `(T, d)` array for each sample, at its true length; None or zero rows if it is missing.
            y: `(N,)` floats for regression, `(N,)` integers >= 0 or strings for classes, or `(N, K)` zeros and ones for K binary labels.
            ids: Unique names of the samples; their numbers if None.
            time: For some modalities one `(T,)` array for each sample, in seconds, or with a unit: `timedelta64`, or `datetime64`, which
                counts from the sample's first date. Numbers that can hardly be seconds give a warning.
            split: The name of each sample's split: "train", "valid" ("val" and "dev" mean the same), "test", or names of your own. One that
                looks like a misspelt usual name gives a warning.
            fields: Further values by name, one number or string for each sample, such as the speaker.
            label_names: Names of the classes or of the K binary labels; of strings in `y`, in alphabetical order if None.
            notes: Remarks that `describe` repeats.
            transform: Applied to a sample on every access.
            pre_transform: A function applied once to every sample; `x`, `time` and `y` of its result are stored.
            pre_filter: A function of a sample that returns whether to store it; it runs before `pre_transform`.

        Raises:
            DataError: If shapes, widths or counts do not fit, a value is not finite, or an id occurs twice.

        >>> x = {"a": [np.ones((2, 3))], "b": [np.ones((4, 1))]}
        >>> dataset = MultimodalDataset.from_arrays(x, y=[0.5], ids=["clip"])
        >>> dataset[0].id, dataset[0].y
        ('clip', tensor([0.5000]))
        """
        y, label_names, split, notes = read_names(y, label_names, split, notes)
        store = build_store(x, y, ids, time, split, fields, label_names, notes)
        if pre_transform is not None or pre_filter is not None:
            store = build_store(**changed_arrays(MultimodalDataset(store), pre_transform, pre_filter), units_known=True)
        warn_of_doubts(store.notes, stacklevel=2)
        dataset = cls(store)  # a subclass may have a constructor without `transform`
        dataset.transform = transform
        return dataset

    @classmethod
    def from_samples(
        cls,
        samples: Iterable[HeteroData],
        *,
        label_names: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        transform: Callable[[HeteroData], Any] | None = None,
    ) -> Self:
        """Makes a data set from PyG samples of your own, checking all of them.

        Each node type is a modality; its `x` and, if present, its `time` are kept. `y` and `id` have the meaning of this class, `split`
        names the split of the sample, and further attributes with one value become `fields`. A sample may lack a node type.

        Args:
            samples: The samples.
            label_names: Names of the classes or of the K binary labels.
            notes: Remarks that `describe` repeats.
            transform: Applied to a sample on every access.

        Raises:
            DataError: If `from_arrays` would raise it, or a sample holds something that a data set cannot store, such as edges.

        >>> both = HeteroData(y=1.5, id="p", speaker="ann")
        >>> both["text"].x, both["audio"].x = torch.ones(3, 4), torch.ones(2, 2)
        >>> text = HeteroData(y=0.5, id="q", speaker="bob", text={"x": torch.ones(1, 4)})
        >>> dataset = MultimodalDataset.from_samples([both, text])
        >>> dataset.lengths["audio"].tolist(), dataset.fields["speaker"].tolist()
        ([2, 0], ['ann', 'bob'])
        """
        if isinstance(samples, HeteroData):
            raise DataError("samples: expected a list of HeteroData, got one, or a batch, whose samples are batch.to_data_list()")
        arrays = arrays_of(list(samples))
        return cls.from_arrays(**arrays, label_names=label_names, notes=notes, transform=transform)

    def len(self) -> int:
        """Returns the number of stored samples, of which a view shows some; `len(dataset)` is the number of those shown."""
        return len(self._store.ids)

    def get(self, idx: int) -> HeteroData:
        """Returns the stored sample number `idx`, whatever the view shows, without `transform`. Use `dataset[i]` instead."""
        row, store, sample = int(idx), self._store, HeteroData()
        for name in self._modalities:
            ragged = store.sequences[name]
            first, last = int(ragged.ptr[row]), int(ragged.ptr[row + 1])
            x = ragged.steps(first, last)
            node = sample[name]
            # a copy: the store may be a read-only file, and a sample must not drag the whole array along when it is pickled
            node.x = torch.from_numpy(x.copy() if self._scaling is None else self._scaling.apply(name, row, x))
            if ragged.time is not None:
                node.time = torch.from_numpy(ragged.time[first:last].copy())
        if store.y is not None:
            sample.y = torch.from_numpy(store.y[row : row + 1].copy())
        sample.id = store.ids[row]
        return sample

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)}, {', '.join(f'{m}={d}' for m, d in self.channels.items())})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in their order."""
        return self._modalities

    @property
    def channels(self) -> dict[str, int]:
        """Width d of every modality."""
        return {name: self._store.sequences[name].width for name in self._modalities}

    @property
    def num_node_features(self) -> dict[str, int]:
        """Width of every modality, as PyG asks for it, after `transform` if there is one."""
        return self.channels if self.transform is None else super().num_node_features

    @property
    def num_classes(self) -> int:
        """Number of classes or of binary labels of all stored samples, also in a view; 0 without labels.

        As in every data set of PyG, real labels give the number of different values, with a warning. With a `transform` all samples are
        read to see their labels.
        """
        if self.transform is not None:
            return super().num_classes
        y, names = self._store.y, self._store.label_names
        return len(names) if names is not None else self._infer_num_classes(None if y is None else torch.from_numpy(np.array(y)))

    @cached_property
    def lengths(self) -> dict[str, np.ndarray]:
        """True lengths `(N,)` int64 of every modality; 0 where it is missing."""
        return {name: self._store.sequences[name].lengths[self._rows] for name in self._modalities}

    @cached_property
    def y(self) -> np.ndarray | None:
        """Labels, float32 `(N,)`, int64 `(N,)` or float32 `(N, K)`; None where there are none."""
        return None if self._store.y is None else self._store.y[self._rows]

    @cached_property
    def ids(self) -> list[str]:
        """Unique names of the samples."""
        return [self._store.ids[row] for row in self._rows]

    @cached_property
    def split(self) -> np.ndarray | None:
        """Name `(N,)` of each sample's split, or None."""
        return None if self._store.split is None else self._store.split[self._rows]

    @cached_property
    def fields(self) -> dict[str, np.ndarray]:
        """Further values `(N,)` of every sample, by name."""
        return {name: values[self._rows] for name, values in self._store.fields.items()}

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the classes or binary labels, or None."""
        return self._store.label_names

    @property
    def notes(self) -> tuple[str, ...]:
        """What was dropped, repaired, guessed or renamed."""
        return self._store.notes

    @property
    def hash(self) -> str:
        """SHA-256 of the source file and its `embedding`, or of the arrays without a file; a view has that of the whole data set."""
        return self._store.hash

    def has_time(self, modality: str) -> bool:
        """Returns whether the steps of `modality` carry their time."""
        return self._store.sequences[modality].time is not None

    def subset(self, indices: Index) -> Self:
        """Returns the samples at `indices` (integers, a bool mask or a slice), in that order, as a view.

        Raises:
            DataError: If an index is out of range or not an integer.

        >>> x = {"a": [np.ones((t, 1)) for t in (1, 2, 3)]}
        >>> MultimodalDataset.from_arrays(x).subset([2, 0]).ids
        ['2', '0']
        """
        return self._view(_indices=self._rows[positions(indices, len(self))])

    def copy(self, idx: Index | None = None) -> Self:
        """Copies the samples, or those at `idx`, into memory: a data set that shares nothing with this one.

        Raises:
            IndexError: If an index is out of range, or no integer.

        >>> x = {"a": [np.ones((t, 1)) for t in (1, 2, 3)]}
        >>> dataset = MultimodalDataset.from_arrays(x)
        >>> dataset.copy([2, 0]).len(), dataset[[2, 0]].len()
        (2, 3)
        """
        part = self if idx is None else self.index_select(idx)
        rows, scaling = part._rows, part._scaling
        if scaling is not None:
            scaling = replace(scaling, group=scaling.group[rows])
        return part._view(_store=taken(part), _indices=np.arange(len(rows)), _scaling=scaling)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the samples to an `.npz` file for `open_dataset` and the command `mea-graph`.

        Opening it returns equal sequences, times, labels, names, splits, fields and notes. A standardised data set is written with its
        z-scores, and opened it is one that cannot be standardised again. `transform` is not written.

        Args:
            path: The file, in an existing folder; it replaces a file of that name.

        Raises:
            DataError: If it cannot be written.

        >>> import tempfile
        >>> from mea_graph.data import open_dataset
        >>> x = {"a": [np.ones((3, 2)), None]}
        >>> dataset = MultimodalDataset.from_arrays(x, y=["no", "yes"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dataset.save(f"{folder}/mine.npz")
        ...     print(open_dataset(f"{folder}/mine.npz").label_names)
        ('no', 'yes')
        """
        save(self, Path(path))

    def select(self, split: str) -> Self:
        """Returns the samples of one split, as a view.

        Raises:
            DataError: If the data set has no splits, or none of that name.

        >>> x, split = {"a": [np.ones((1, 1))] * 2}, ["train", "test"]
        >>> MultimodalDataset.from_arrays(x, split=split).select("test").ids
        ['1']
        """
        if self.split is None:
            raise DataError(f"split {split!r}: this data set has no splits; cut it by a field with `where`")
        split = split if split in self.split else split_meant(split)
        if split not in self.split:
            raise DataError(f"split: expected one of {np.unique(self.split).tolist()}, got {split!r}")
        return self.subset(self.split == split)

    def where(self, field: str, isin: Iterable[Any]) -> Self:
        """Returns the samples whose `field` has one of the values `isin`, as a view (possibly empty).

        Raises:
            DataError: If there is no such field, or a value is of another type than the field's.

        >>> x, fields = {"a": [np.ones((1, 1))] * 3}, {"speaker": ["ann", "bob", "ann"]}
        >>> dataset = MultimodalDataset.from_arrays(x, fields=fields)
        >>> dataset.where("speaker", isin=["ann"]).ids
        ['0', '2']
        """
        values = self._field(field)
        if isinstance(isin, str | bytes) or not isinstance(isin, Iterable):  # of a text the letters would be looked for
            raise DataError(f"isin: expected a list of values, got {isin!r}"[:300])
        wanted = np.asarray(list(isin))
        if wanted.size and (wanted.dtype.kind == "U") != (values.dtype.kind == "U"):
            raise DataError(f"field {field!r}: expected values like {values[:1].tolist()}, got {wanted[:1].tolist()}")
        return self.subset(np.isin(values, wanted))

    def with_modalities(self, modalities: Sequence[str]) -> Self:
        """Returns the same samples with these modalities only, in this order, as a view.

        Raises:
            DataError: If the data set has no such modality, or one is named twice.

        >>> x = {"a": [np.ones((1, 1))], "b": [np.ones((1, 2))]}
        >>> MultimodalDataset.from_arrays(x).with_modalities(["b"]).channels
        {'b': 2}
        """
        wanted = list(modalities) if isinstance(modalities, Iterable) and not isinstance(modalities, str) else []
        if not wanted or any(name not in self._modalities for name in wanted) or len(set(wanted)) != len(wanted):
            hint = "".join(f" ({note})" for note in self.notes)
            known = list(self._modalities)
            raise DataError(f"modalities: expected a list of different names among {known}, got {wanted or modalities!r}{hint}")
        return self._view(_modalities=tuple(wanted))

    @property
    def statistics(self) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
        """Mean and standard deviation `(d,)` of every modality that `standardize` uses; None without it, or where groups have their own."""
        scaling = self._scaling
        if scaling is None or any(len(mean) != 1 for mean in scaling.mean.values()):
            return None
        return {name: (scaling.mean[name][0], scaling.std[name][0]) for name in self._modalities}

    def standardize(
        self,
        by: str | None = None,
        fit_on: Sequence[int] | np.ndarray | None = None,
        statistics: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> Self:
        """Returns a view whose `x` are z-scored per channel, computed when a sample is read.

        Statistics are means over steps, in float64, of the named samples only, so that nothing leaks from the others. A channel
        that is constant there keeps standard deviation 1.

        Args:
            by: A field, such as the subject, each of whose values gets statistics of its own.
            fit_on: Indices or mask of the samples that the statistics come from, usually the training samples; all samples if None.
            statistics: Those to use instead of taking any, by modality: `statistics` of the data set that a model was trained on.

        Raises:
            DataError: If the data set is standardized already, or was when it was saved, a value of `by` has no sample in `fit_on`, or
                `statistics` do not fit.

        >>> x = {"a": [np.array([[1.0], [3.0]]), np.array([[5.0]])]}
        >>> MultimodalDataset.from_arrays(x).standardize(fit_on=[0])[1]["a"].x
        tensor([[3.]])
        """
        return self._view(_scaling=scaling_of(self, by, fit_on, statistics))

    def describe(self) -> str:
        """Returns a readable table: samples per split, widths, true lengths, share missing, time, labels, and the reader's notes.

        Lengths are those of the samples that have the modality; `time` is the median step between its time stamps, and the rate.

        >>> x, time = {"a": [np.ones((2, 3)), None]}, {"a": [[0, 0.04], []]}
        >>> print(MultimodalDataset.from_arrays(x, [0.5, 1.5], time=time).describe())
        samples 2
        modality  width  min  median  mean  max  missing           time
        a             3    2       2   2.0    2    50.0%  0.04 s, 25 Hz
        label real numbers, min 0.5, mean 1, std 0.5, max 1.5
        """
        return describe(self)

    def _field(self, name: str) -> np.ndarray:
        if name not in self.fields:
            raise DataError(f"field: expected one of {list(self.fields)}, got {name!r}")
        return self.fields[name]
