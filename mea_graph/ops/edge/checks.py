"""Whether an `InEdges` holds a sort: where it does not, loops over it would read outside of tensors, or sum over the wrong edges."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from mea_graph.ops.edge.edges import InEdges, is_vouched_for, vouch_for

_EXPECTED = {
    "source": "sources in [0, N_src)",
    "target": "destinations that rise, as `start` counts them",
    "order": "each number in [0, E) once",
    "start": "numbers that rise from 0 to E",
    "by_source": "each number in [0, E) once, that of an edge whose `source` is as `source_start` counts them",
    "source_start": "numbers that rise from 0 to E",
}


def refuse(field: str) -> NoReturn:
    """Says that the numbers of a field are wrong."""
    raise ValueError(f"edge_index.{field}: expected {_EXPECTED[field]}, as sort_edges gives them, got others")


def check_fields(edges: Sequence[Tensor | None], sources: int, targets: int, device: torch.device) -> torch.dtype:
    """Refuses fields that are of unlike types or sizes, or elsewhere; returns their type. The last two may be None."""
    count, kind = edges[0].size(0), edges[0].dtype  # type: ignore[union-attr]
    kind = kind if kind in (torch.int32, torch.int64) else torch.int64
    sizes = (count, count, count, targets + 1, count, sources + 1)
    for field, tensor, size in zip(InEdges._fields, edges, sizes, strict=True):
        if not (tensor is None or (tensor.device == device and tensor.dtype == kind and tensor.shape == (size,))):
            got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"edge_index.{field}: expected {kind} ({size},) on {device}, as sort_edges gives it, got {got}")
    return kind


def check_on_device(edges: InEdges) -> None:
    """Refuses a field whose numbers are wrong. That waits for the device, and so sorts that are vouched for are not looked at.

    While a CUDA graph is captured nothing may wait: then the device looks by itself, and ends with an assertion, at each replay.
    """
    if is_vouched_for(*edges):
        return
    sound = _soundness(*(field.long() for field in edges))
    if _is_capturing(edges.source):
        torch._assert_async(torch.stack(list(sound.values())).all(), "edge_index: expected edges as sort_edges gives them, got others")
        return
    for field, is_sound in zip(sound, torch.stack(list(sound.values())).tolist(), strict=True):
        if not is_sound:
            refuse(field)
    vouch_for(*edges)


def _soundness(source: Tensor, target: Tensor, order: Tensor, start: Tensor, by_source: Tensor, source_start: Tensor) -> dict[str, Tensor]:
    """By field, in the order in which they rely on each other: whether its numbers are as they should be. Nothing is read out of bounds."""
    every = torch.arange(source.size(0), device=source.device)
    sources = source_start.size(0) - 1
    owner = torch.searchsorted(start, every, right=True) - 1
    out_owner = torch.searchsorted(source_start, every, right=True) - 1
    out_source = source.index_select(0, by_source.clamp(0, max(source.size(0) - 1, 0)))
    return {
        "start": _divides(start, source.size(0)),
        "source": ((source >= 0) & (source < sources)).all(),
        "order": (order.sort().values == every).all(),
        "target": (target == owner).all(),
        "source_start": _divides(source_start, source.size(0)),
        "by_source": ((by_source.sort().values == every) & (out_source == out_owner)).all(),
    }


def _divides(start: Tensor, edges: int) -> Tensor:
    return (start[0] == 0) & (start[-1] == edges) & (start.diff() >= 0).all()


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
