"""The sort of edges by compiled C++, a tenth of the time of torch's: nodes are few, so edges are counted by node and not compared."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mea_graph.ops.eager import is_observed, is_traced, is_transformed
from mea_graph.ops.native import library


def takes(edge_index: Tensor) -> bool:
    """Whether it can sort these edges: plain numbers on a CPU, which no transform, trace or mode of torch watches."""
    watched = is_traced() or is_transformed() or is_observed()
    return not watched and type(edge_index) is Tensor and edge_index.is_cpu and library.refuse() is None


def check_ends(edge_index: Tensor, num_sources: int, num_targets: int) -> None:
    """Refuses edges of nodes that are not there; it reads the numbers."""
    for row, name, nodes in ((edge_index[0], "sources", num_sources), (edge_index[1], "destinations", num_targets)):
        if row.numel():
            least, most = (int(end) for end in row.aminmax())
            if least < 0 or most >= nodes:
                raise ValueError(f"edge_index: expected {name} in [0, {nodes}), got {least} to {most}")


def by_target(edge_index: Tensor, num_sources: int, num_targets: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first four fields of `InEdges`, as `dtype`; edges of nodes that are not there are refused."""
    source, target, order = edge_index.new_empty((3, edge_index.size(1)), dtype=dtype)
    start = edge_index.new_empty(num_targets + 1, dtype=dtype)
    if not _sort(edge_index[1], edge_index[0], num_targets, num_sources, (order, start, target, source)):
        check_ends(edge_index, num_sources, num_targets)
    return source, target, order, start


def by_source(source: Tensor, num_sources: int) -> tuple[Tensor, Tensor]:
    """The last two fields of `InEdges`, of the dtype of `source`, that of sorted edges."""
    order, start = torch.empty_like(source, memory_format=torch.contiguous_format), source.new_empty(num_sources + 1)
    if not _sort(source, None, num_sources, 0, (order, start, None, None)):
        raise ValueError(f"source: expected numbers in [0, {num_sources}), got others")
    return order, start


def _sort(key: Tensor, other: Tensor | None, keys: int, others: int, results: Sequence[Tensor | None]) -> bool:
    """Fills the results; whether all numbers are in the range."""
    fault = ctypes.c_int64(0)
    fields = [key.data_ptr(), _address(other), key.stride(0), 0 if other is None else other.stride(0), key.dtype == torch.int64]
    fields += [key.size(0), keys, others, *map(_address, results), results[0].dtype == torch.int64]  # type: ignore[union-attr]
    library.call_addresses("edge_sort", torch.float32, [*fields, ctypes.addressof(fault)])
    return not fault.value


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
