"""Which samples the statistics of a standardized data set come from, and which of them each sample uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mea_graph.data.errors import DataError
from mea_graph.data.scaling import Scaling, fit_scaling, given_scaling

if TYPE_CHECKING:
    from mea_graph.data.dataset import MultimodalDataset


def scaling_of(
    dataset: MultimodalDataset,
    by: str | None,
    fit_on: Sequence[int] | np.ndarray | None,
    statistics: Mapping[str, tuple[Any, Any]] | None,
) -> Scaling:
    """The scaling that `MultimodalDataset.standardize` promises."""
    sequences = {name: dataset._store.sequences[name] for name in dataset.modalities}
    if statistics is not None:
        if by is not None or fit_on is not None:
            raise DataError("standardize: expected statistics, or by and fit_on to take them, got both")
        return given_scaling(sequences, statistics, dataset.len())
    fit = (dataset if fit_on is None else dataset.subset(fit_on))._rows
    if not len(fit):
        raise DataError("fit_on: expected at least one sample, got none")
    group = np.full(dataset.len(), -1)
    if by is None:
        group[dataset._rows] = 0
    else:
        values, group[dataset._rows] = np.unique(dataset._field(by), return_inverse=True)
        if lacking := sorted(set(range(len(values))) - set(group[fit].tolist())):
            raise DataError(f"standardize by {by!r}: expected samples of every value in fit_on, got none of {values[lacking].tolist()[:5]}")
    return fit_scaling(sequences, group, fit)
