"""`HeteroData` samples as the arrays that a data set is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch_geometric.data import HeteroData

from mea_graph.data.arrays import as_numbers
from mea_graph.data.errors import DataError, brief

if TYPE_CHECKING:
    from mea_graph.data.dataset import MultimodalDataset

_OF_A_NODE_TYPE = {"x", "time"}
_REMEDY = "delete it, or add it on access with transform="


def arrays_of(samples: Sequence[HeteroData]) -> dict[str, Any]:
    """The arguments of `MultimodalDataset.from_arrays` that give these samples; what it could not give back is refused by name."""
    if strange := [sample for sample in samples if not isinstance(sample, HeteroData)]:
        raise DataError(f"samples: expected HeteroData, got {brief(strange[0])}")
    names = list(dict.fromkeys(name for sample in samples for name in sample.node_types))
    x: dict[str, list[Any]] = {name: [] for name in names}
    time: dict[str, list[Any]] = {name: [] for name in names}
    for i, sample in enumerate(samples):
        where = f"sample {sample.get('id', i)!r}"
        if sample.edge_types:
            raise DataError(f"{where}: expected node types only, got edges {sample.edge_types[0]}; {_REMEDY}")
        for name in names:
            node = sample[name] if name in sample.node_types else {}
            if rest := set(node.keys()) - _OF_A_NODE_TYPE:
                raise DataError(f"{where}: {name}: expected x and time only, got {sorted(rest)}; {_REMEDY}")
            if "x" not in node and "time" in node:
                raise DataError(f"{where}: {name}: expected x beside time, got none")
            x[name].append(as_numbers(f"{where}: {name}", node["x"]) if "x" in node else None)
            time[name].append(as_numbers(f"{where}: {name}: time", node["time"]) if "time" in node else None)
    for name in names:
        here = [t is not None for t, sequence in zip(time[name], x[name], strict=True) if sequence is not None and len(sequence)]
        if any(here) and not all(here):
            raise DataError(f"{name}: expected a time in every sample or in none, got one in {sum(here)} of {len(here)}")
    own = _own_columns(samples)
    ids, split, y = own.pop("id", None), own.pop("split", None), own.pop("y", None)
    return {
        "x": x,
        "y": None if y is None else _stacked("y", y),
        "ids": ids,
        "time": {name: parts for name, parts in time.items() if any(part is not None for part in parts)},
        "split": split,
        "fields": {name: _stacked(name, values) for name, values in own.items()},
    }


def changed_arrays(
    raw: MultimodalDataset,
    pre_transform: Callable[[HeteroData], HeteroData] | None,
    pre_filter: Callable[[HeteroData], bool] | None,
) -> dict[str, Any]:
    """The arguments that give the samples of `raw` which `pre_filter` keeps, as `pre_transform` makes them."""
    if pre_filter is not None:
        raw = raw.subset(np.array([bool(pre_filter(sample)) for sample in raw], dtype=bool))
    arrays = arrays_of(list(raw if pre_transform is None else map(pre_transform, raw)))
    known = {"split": raw.split, "label_names": raw.label_names, "notes": raw.notes}
    return arrays | known | {"fields": raw.fields | arrays["fields"]}


def _own_columns(samples: Sequence[HeteroData]) -> dict[str, list[Any]]:
    """What the samples hold beside their node types, by name: each must stand in all of them."""
    # a Mapping of its own for every sample: `to_dict` would copy the sequences too
    own = [{key: sample[key] for key in sample._global_store.keys()} for sample in samples]  # noqa: SIM118
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(key for part in own for key in part):
        if lacking := [i for i, part in enumerate(own) if name not in part]:
            raise DataError(
                f"{name}: expected one in every sample or in none, got none in sample {own[lacking[0]].get('id', lacking[0])!r}"
            )
        columns[name] = [part[name] for part in own]
    return columns


def _stacked(name: str, values: Sequence[Any]) -> np.ndarray:
    """`(N,)` of one value a sample, or `(N, K)`."""
    rows = [as_numbers(name, value).reshape(-1) for value in values]
    if len({len(row) for row in rows}) > 1:
        raise DataError(f"{name}: expected as many values in every sample, got {sorted({len(row) for row in rows})}")
    stacked = np.stack(rows)
    if name != "y" and stacked.shape[1] != 1:
        raise DataError(f"{name}: expected one value a sample, got {stacked.shape[1]}; {_REMEDY}")
    return stacked[:, 0] if stacked.shape[1] == 1 else stacked
