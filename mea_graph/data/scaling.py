"""Per-channel z-scores whose statistics come from the samples you name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mea_graph.data.arrays import as_numbers
from mea_graph.data.doubts import warn_of_alike
from mea_graph.data.errors import DataError
from mea_graph.data.ragged import Ragged

if TYPE_CHECKING:
    from mea_graph.data.dataset import MultimodalDataset

_CHUNK = 1 << 16  # steps summed in one go, in float64


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation `(G, d)` of every modality in G groups, and the group `(N,)` of every stored sample (-1: none)."""

    mean: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    group: np.ndarray

    def apply(self, modality: str, row: int, x: np.ndarray) -> np.ndarray:
        group = self.group[row]
        mean, std = self.mean[modality][group], self.std[modality][group]
        with np.errstate(all="ignore"):
            scaled = (x - mean) / std
            if not np.isfinite(scaled).all():  # the difference of very large numbers does not fit float32, but their quotient may
                scaled = ((x.astype(np.float64) - mean) / std).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise DataError(f"standardize: {modality}: expected statistics of such data, got some that leave values beyond float32")
        return scaled


def scaling_of(
    dataset: MultimodalDataset,
    by: str | None,
    fit_on: Sequence[int] | np.ndarray | None,
    statistics: Mapping[str, tuple[Any, Any]] | None,
) -> Scaling:
    """The scaling that `MultimodalDataset.standardize` promises."""
    if dataset._scaling is not None:
        raise DataError("standardize: this data set is standardized already; start from the raw one")
    if dataset._store.standardized:
        raise DataError("standardize: this data set holds z-scores: it was standardized when it was saved; start from the raw one")
    sequences = {name: dataset._store.sequences[name] for name in dataset.modalities}
    if statistics is not None:
        if by is not None or fit_on is not None:
            raise DataError("standardize: expected statistics, or by and fit_on to take them, got both")
        return _given_scaling(sequences, statistics, dataset.len())
    fit = (dataset if fit_on is None else dataset.subset(fit_on))._rows
    if not len(fit):
        raise DataError("fit_on: expected at least one sample, got none")
    group = np.full(dataset.len(), -1)
    if by is None:
        group[dataset._rows] = 0
    else:
        warn_of_alike("standardize", by, dataset._field(by))
        values, group[dataset._rows] = np.unique(dataset._field(by), return_inverse=True)
        if lacking := sorted(set(range(len(values))) - set(group[fit].tolist())):
            raise DataError(f"standardize by {by!r}: expected samples of every value in fit_on, got none of {values[lacking].tolist()[:5]}")
    return _fit_scaling(sequences, group, fit)


def _fit_scaling(sequences: dict[str, Ragged], group: np.ndarray, fit_rows: np.ndarray) -> Scaling:
    """Statistics of each modality and group over the stored samples `fit_rows` only; a constant channel gets standard deviation 1."""
    groups = int(group.max(initial=0)) + 1
    mean, std = {}, {}
    for name, ragged in sequences.items():
        mean[name], std[name] = _moments(ragged, group, np.sort(fit_rows), groups)
    return Scaling(mean, std, group)


def _given_scaling(sequences: dict[str, Ragged], statistics: Mapping[str, tuple[Any, Any]], samples: int) -> Scaling:
    """Statistics that were taken elsewhere, the same for every sample."""
    if missing := [name for name in sequences if name not in statistics]:
        raise DataError(f"statistics: expected those of {list(sequences)}, got none of {missing}")
    mean, std = {}, {}
    for name, ragged in sequences.items():
        given = statistics[name] if isinstance(statistics[name], Iterable) else ()
        parts = [as_numbers(f"statistics: {name}", part) for part in given]
        strange = [str(part.dtype) for part in parts if part.dtype.kind not in "biuf"]
        if strange or [part.shape for part in parts] != [(ragged.width,)] * 2:
            shapes = [part.shape for part in parts]
            raise DataError(
                f"statistics: {name}: expected a mean and a standard deviation of shape ({ragged.width},), got {strange or shapes}"
            )
        with np.errstate(all="ignore"):  # what overflows becomes infinite, and is refused
            pair = [part.astype(np.float32) for part in parts]
        if not (np.isfinite(pair).all() and (pair[1] > 0).all()):
            raise DataError(f"statistics: {name}: expected finite means and standard deviations above 0")
        mean[name], std[name] = pair[0][None], pair[1][None]
    return Scaling(mean, std, np.zeros(samples, np.int64))


def _moments(ragged: Ragged, group: np.ndarray, rows: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Two passes (a mean, then squared deviations from it): one pass cancels when the mean is large against the spread."""
    total, square = np.zeros((groups, ragged.width)), np.zeros((groups, ragged.width))
    low, high = np.full_like(total, np.inf), np.full_like(total, -np.inf)
    steps = np.zeros(groups)
    lengths = ragged.lengths
    for row in rows:
        for x in _chunks(ragged, row):
            g = group[row]
            total[g] += x.sum(axis=0)
            low[g] = np.minimum(low[g], x.min(axis=0))
            high[g] = np.maximum(high[g], x.max(axis=0))
    np.add.at(steps, group[rows], lengths[rows])
    count = np.maximum(steps, 1)[:, None]
    mean = total / count
    for row in rows:
        for x in _chunks(ragged, row):
            square[group[row]] += np.square(x - mean[group[row]]).sum(axis=0)
    std = np.sqrt(square / count)
    with np.errstate(under="ignore"):
        std = std.astype(np.float32)
    std[(high <= low) | (std == 0)] = 1.0  # constant, as far as float32 can tell, or no step at all
    return mean.astype(np.float32), std


def _chunks(ragged: Ragged, row: int):
    """The steps of one stored sample in float64, a bounded piece at a time."""
    for first in range(int(ragged.ptr[row]), int(ragged.ptr[row + 1]), _CHUNK):
        yield ragged.steps(first, min(first + _CHUNK, int(ragged.ptr[row + 1]))).astype(np.float64)
