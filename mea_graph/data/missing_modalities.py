"""Samples that lack a node type: how to give it to them, and how to notice a batch that was made without."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform

from mea_graph.data.errors import DataError

_REMEDY = "give every sample every modality, empty where it is missing, with mea_graph.data.AddMissingModalities"
_NAMED = 8  # samples that an error names


class AddMissingModalities(BaseTransform):
    """Gives a sample an empty node type for every modality that it lacks.

    If some samples of a batch lack a node type, PyG assigns the rows of the others to the wrong samples (`check_batch` detects that). Apply
    this transform to every sample, or give it to a data set as `transform`.

    Args:
        channels: The width d of every modality, as `MEA` takes it for `in_channels`.
        time: The modalities whose steps carry a `time`.

    Shape:
        - `x` of a missing modality: :math:`(0, d)`; its `time`, if `time` names it: :math:`(0,)`

    Raises:
        DataError: If `time` names no modality, or a sample has a modality in another width, or without `x`; the sample is named.

    >>> from torch_geometric.loader import DataLoader
    >>> fill = AddMissingModalities({"text": 4, "audio": 2})
    >>> whole, without = HeteroData(), HeteroData()
    >>> whole["text"].x, whole["audio"].x, without["text"].x = (
    ...     torch.ones(3, 4),
    ...     torch.ones(2, 2),
    ...     torch.ones(1, 4),
    ... )
    >>> batch = next(
    ...     iter(
    ...         DataLoader(
    ...             [fill(sample) for sample in (whole, without, whole)], batch_size=3
    ...         )
    ...     )
    ... )
    >>> batch["audio"].batch
    tensor([0, 0, 2, 2])
    """

    def __init__(self, channels: Mapping[str, int], time: Iterable[str] = ()) -> None:
        self.channels = dict(channels)
        self.time = (time,) if isinstance(time, str) else tuple(time)
        if unknown := [name for name in self.time if name not in self.channels]:
            raise DataError(f"time: expected modalities among {list(self.channels)}, got {unknown}")

    def forward(self, data: HeteroData) -> HeteroData:
        like = next((data[name].x for name in data.node_types if torch.is_tensor(data[name].get("x"))), torch.empty(0))
        for name, width in self.channels.items():
            node = data[name]
            if "x" not in node and len(node):
                raise DataError(f"{_name(data)}: {name}: expected x of shape (T, {width}), got none beside {list(node.keys())}")
            if "x" not in node:
                node.x = like.new_empty(0, width)
                if name in self.time:
                    node.time = torch.empty(0, device=like.device)
            elif node.x.dim() != 2 or node.x.size(1) != width:
                raise DataError(f"{_name(data)}: {name}: expected x of shape (T, {width}), got {tuple(node.x.shape)}")
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels})"


def check_batch(batch: HeteroData | Sequence[HeteroData], modalities: Collection[str] | None = None) -> None:
    """Raises an error if some samples lack a node type, or if a batch was made of such samples.

    In such a batch the rows of the node type belong to the wrong samples. The error names the faulty sample if you give the list of
    samples; a batch no longer holds that information.

    Args:
        batch: What a PyG loader yields (`Batch.from_data_list` makes it), or the samples that it is to be made of.
        modalities: The node types that must be there; those of the batch, or of any of the samples, if None.

    Raises:
        DataError: If a node type is missing; the error names it, the sample (of a batch: its samples) and what to do.

    >>> from torch_geometric.data import Batch
    >>> whole, without = HeteroData(id="ann"), HeteroData(id="bob")
    >>> whole["text"].x, whole["audio"].x, without["text"].x = (
    ...     torch.ones(3, 4),
    ...     torch.ones(2, 2),
    ...     torch.ones(1, 4),
    ... )
    >>> for samples in ([whole, without], Batch.from_data_list([whole, without])):
    ...     try:
    ...         check_batch(samples)
    ...     except DataError as error:
    ...         print(str(error).partition(";")[0])
    sample 'bob': expected the node types ['audio', 'text'], got none 'audio'
    node type 'audio': expected all 2 samples of the batch ('ann', 'bob') to have it, got 1
    """
    if isinstance(batch, HeteroData) and hasattr(batch, "num_graphs"):
        _check_batch(batch, modalities)
        return
    samples = [batch] if isinstance(batch, HeteroData) else list(batch)
    wanted = sorted({name for sample in samples for name in _filled(sample)}) if modalities is None else list(modalities)
    for i, sample in enumerate(samples):
        if lacking := [name for name in wanted if name not in _filled(sample)]:
            raise DataError(f"{_name(sample, i)}: expected the node types {wanted}, got none {lacking[0]!r}; {_REMEDY}")


def _check_batch(batch: Any, modalities: Collection[str] | None) -> None:
    total = batch.num_graphs
    for name in batch.node_types if modalities is None else modalities:
        if name in batch.node_types and "ptr" not in batch[name]:
            continue  # batched by other means than PyG's: nothing says how many samples it knows
        known = batch[name].ptr.numel() - 1 if name in batch.node_types else 0
        if known != total:
            raise DataError(
                f"node type {name!r}: expected all {total} samples of the batch{_names(batch.get('id'))} to have it, "
                f"got {known or 'none'}; where some lack a node type PyG gives its rows to the first samples, or drops them; "
                f"{_REMEDY}"
            )


def _filled(sample: HeteroData) -> list[str]:
    """Node types with content: asking a sample for a node type makes an empty one, which a batch does not count."""
    return [name for name in sample.node_types if len(sample[name])]


def _name(sample: HeteroData, number: int | None = None) -> str:
    name = sample.get("id", number)
    return "sample" if name is None else f"sample {name!r}"


def _names(ids: Any) -> str:
    if not isinstance(ids, list):
        return ""
    return f" ({', '.join(map(repr, ids[:_NAMED]))}{', ...' if len(ids) > _NAMED else ''})"
