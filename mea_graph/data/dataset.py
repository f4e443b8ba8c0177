"""`MultimodalDataset`: samples with sequences of several modalities, each at its true length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torch_geometric.data import HeteroData

from mea_graph.data.description import describe
from mea_graph.data.errors import DataError
from mea_graph.data.scaling import Scaling, fit_scaling, given_scaling
from mea_graph.data.store import Store, build_store


class MultimodalDataset(Dataset):
    """Samples of several modalities as `HeteroData` graphs: one node a time step, one node type a modality, no padding.

    Everything a sampler, a splitter or a report needs (lengths, labels, fields) is at hand without reading a sequence. Make one
    with `from_arrays` or `open_dataset`; cut it with `subset`, `select` and `where`, which copy nothing. Views of a subclass are
    plain `MultimodalDataset`s, so that a subclass may have a constructor of its own.

    Shape:
        A sample: `sample[m].x` `(T_m, d_m)` float32, where known `sample[m].time` `(T_m,)` in seconds; `sample.y` float32 `(1,)`
        for regression, int64 `(1,)` for a class, float32 `(1, K)` for K binary labels; `sample.id` a string. A modality that is
        missing from a sample has `(0, d_m)`.

    Example:
        >>> audio = [np.zeros((3, 2)), np.ones((5, 2))]
        >>> lips = [np.zeros((2, 4)), None]
        >>> dataset = MultimodalDataset.from_arrays({"audio": audio, "lips": lips}, y=[0, 1], split=["train", "test"])
        >>> dataset.lengths["audio"].tolist(), tuple(dataset[1]["lips"].x.shape)
        ([3, 5], (0, 4))
    """

    def __init__(
        self, store: Store, rows: np.ndarray | None = None, modalities: Sequence[str] | None = None, scaling: Scaling | None = None
    ) -> None:
        self._store = store
        self._rows = np.arange(len(store.ids)) if rows is None else rows
        self._modalities = tuple(store.sequences if modalities is None else modalities)
        self._scaling = scaling

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
    ) -> MultimodalDataset:
        """Makes a data set from arrays in memory, checking all of them.

        Args:
            x: for each modality one `(T, d)` array a sample, at its true length; None or zero rows where it is missing.
            y: `(N,)` floats for regression, `(N,)` integers >= 0 for classes, or `(N, K)` zeros and ones for K binary labels.
            ids: unique names of the samples; their numbers where None.
            time: for some of the modalities one `(T,)` array a sample, in seconds.
            split: the name of each sample's split, such as "train".
            fields: further numbers or strings, one a sample, such as a speaker.
            label_names: names of the classes or of the K binary labels.
            notes: remarks that `describe` repeats.

        Raises:
            DataError: where shapes, widths or counts do not fit, a value is not finite, or an id stands twice.

        Example:
            >>> dataset = MultimodalDataset.from_arrays({"a": [np.ones((2, 3))], "b": [np.ones((4, 1))]}, y=[0.5], ids=["clip"])
            >>> dataset[0].id, dataset[0].y
            ('clip', tensor([0.5000]))
        """
        return cls(build_store(x, y, ids, time, split, fields, label_names, notes))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> HeteroData:
        row = int(self._rows[index])
        store, sample = self._store, HeteroData()
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
        """What the reader changed or left out."""
        return self._store.notes

    @property
    def hash(self) -> str:
        """SHA-256 of the source file (of the arrays, where there is no file); a view has that of the whole."""
        return self._store.hash

    def has_time(self, modality: str) -> bool:
        """Whether the steps of `modality` carry their time."""
        return self._store.sequences[modality].time is not None

    def subset(self, indices: Sequence[int] | np.ndarray) -> MultimodalDataset:
        """The samples at `indices` (integers, or a bool mask), in that order, as a view.

        Raises:
            DataError: where an index is out of range or not an integer.

        Example:
            >>> dataset = MultimodalDataset.from_arrays({"a": [np.ones((t, 1)) for t in (1, 2, 3)]})
            >>> dataset.subset([2, 0]).ids
            ['2', '0']
        """
        picked = np.asarray(indices)
        if picked.dtype == bool and picked.shape == (len(self),):
            picked = np.flatnonzero(picked)
        if picked.ndim != 1 or (picked.size and picked.dtype.kind not in "iu"):
            raise DataError(
                f"indices: expected integers of shape (n,) or a mask of shape ({len(self)},), got {picked.dtype} of shape {picked.shape}"
            )
        picked = picked.astype(np.int64)
        if picked.size and (picked.min() < -len(self) or picked.max() >= len(self)):
            raise DataError(f"indices: expected integers in [{-len(self)}, {len(self)}), got {picked.min()} to {picked.max()}")
        return MultimodalDataset(self._store, self._rows[picked], self._modalities, self._scaling)

    def select(self, split: str) -> MultimodalDataset:
        """The samples of one split, as a view.

        Raises:
            DataError: where the data set has no splits, or none of that name.

        Example:
            >>> dataset = MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * 2}, split=["train", "test"])
            >>> dataset.select("test").ids
            ['1']
        """
        if self.split is None:
            raise DataError(f"split {split!r}: this data set has no splits; cut it by a field with `where`")
        if split not in self.split:
            raise DataError(f"split: expected one of {np.unique(self.split).tolist()}, got {split!r}")
        return self.subset(self.split == split)

    def where(self, field: str, isin: Iterable[Any]) -> MultimodalDataset:
        """The samples whose `field` has one of the values `isin`, as a view (possibly empty).

        Raises:
            DataError: where there is no such field, or a value is of another type than the field's.

        Example:
            >>> dataset = MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * 3}, fields={"speaker": ["ann", "bob", "ann"]})
            >>> dataset.where("speaker", isin=["ann"]).ids
            ['0', '2']
        """
        values = self._field(field)
        wanted = np.asarray(list(isin))
        if wanted.size and (wanted.dtype.kind == "U") != (values.dtype.kind == "U"):
            raise DataError(f"field {field!r}: expected values like {values[:1].tolist()}, got {wanted[:1].tolist()}")
        return self.subset(np.isin(values, wanted))

    def with_modalities(self, modalities: Sequence[str]) -> MultimodalDataset:
        """The same samples with these modalities only, in this order, as a view.

        Raises:
            DataError: where the data set has no such modality, or one stands twice.

        Example:
            >>> dataset = MultimodalDataset.from_arrays({"a": [np.ones((1, 1))], "b": [np.ones((1, 2))]})
            >>> dataset.with_modalities(["b"]).channels
            {'b': 2}
        """
        wanted = list(modalities)
        if not wanted or len(set(wanted)) != len(wanted) or set(wanted) - set(self._modalities):
            hint = "".join(f" ({note})" for note in self.notes)
            raise DataError(f"modalities: expected different ones among {list(self._modalities)}, got {wanted}{hint}")
        return MultimodalDataset(self._store, self._rows, wanted, self._scaling)

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
    ) -> MultimodalDataset:
        """A view whose `x` are z-scored per channel, computed when a sample is read.

        Statistics are means over steps, in float64, of the named samples only, so that nothing leaks from the others. A channel
        that is constant there keeps standard deviation 1.

        Args:
            by: a field: each of its values (such as a subject) has statistics of its own.
            fit_on: indices or mask of the samples that the statistics come from; all of this data set's where None.
            statistics: those to use instead of taking any, by modality: `statistics` of the data set that a model was trained on.

        Raises:
            DataError: where the data set is standardized already, a value of `by` has no sample in `fit_on`, or `statistics` do not fit.

        Example:
            >>> dataset = MultimodalDataset.from_arrays({"a": [np.array([[1.0], [3.0]]), np.array([[5.0]])]})
            >>> dataset.standardize(fit_on=[0])[1]["a"].x
            tensor([[3.]])
        """
        if self._scaling is not None:
            raise DataError("standardize: this data set is standardized already; start from the raw one")
        sequences = {name: self._store.sequences[name] for name in self._modalities}
        if statistics is not None:
            if by is not None or fit_on is not None:
                raise DataError("standardize: expected statistics, or by and fit_on to take them, got both")
            scaling = given_scaling(sequences, statistics, len(self._store.ids))
            return MultimodalDataset(self._store, self._rows, self._modalities, scaling)
        fit = (self if fit_on is None else self.subset(fit_on))._rows
        if not len(fit):
            raise DataError("fit_on: expected at least one sample, got none")
        group = np.full(len(self._store.ids), -1)
        if by is None:
            group[self._rows] = 0
        else:
            values, group[self._rows] = np.unique(self._field(by), return_inverse=True)
            if lacking := sorted(set(range(len(values))) - set(group[fit].tolist())):
                raise DataError(
                    f"standardize by {by!r}: expected samples of every value in fit_on, got none of {values[lacking].tolist()[:5]}"
                )
        return MultimodalDataset(self._store, self._rows, self._modalities, fit_scaling(sequences, group, fit))

    def describe(self) -> str:
        """A readable table: samples per split, widths, true lengths, share missing, labels, and the reader's notes.

        Lengths are those of the samples that have the modality.

        Example:
            >>> print(MultimodalDataset.from_arrays({"a": [np.ones((2, 3)), None]}, y=[0.5, 1.5]).describe())
            samples 2
            modality  width  min  median  mean  max  missing  time
            a             3    2       2   2.0    2    50.0%    no
            label real numbers, min 0.5, mean 1, std 0.5, max 1.5
        """
        return describe(self)

    def _field(self, name: str) -> np.ndarray:
        if name not in self.fields:
            raise DataError(f"field: expected one of {list(self.fields)}, got {name!r}")
        return self.fields[name]
