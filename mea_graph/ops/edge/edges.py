"""The edges of a graph in the order that the kernels read them."""

import operator
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from mea_graph.ops.eager import is_traced, is_transformed
from mea_graph.ops.edge import counting_sort
from mea_graph.ops.library import register
from mea_graph.ops.native import library

__all__ = ["InEdges", "sort_edges"]

_ORDER = 2  # the place of `order` among the fields


class InEdges(NamedTuple):
    """Edges sorted by destination, as `sort_edges` makes them; a graph that stays the same is sorted once and used for many calls.

    `source[k]` and `target[k]` are the ends of the k-th edge in that order, and `order[k]` is its column in `edge_index`. The in-edges of
    node i are those from `start[i]` to `start[i + 1]`. For the backward pass, `by_source` visits the same edges by source instead:
    the out-edges of node j are `by_source[k]` for k from `source_start[j]` to `source_start[j + 1]`.

    Shape:
        - source, target, order, by_source: :math:`(E,)`; start: :math:`(N_{dst} + 1,)`; source_start: :math:`(N_{src} + 1,)`; all int64

    >>> import torch
    >>> from mea_graph.ops import sort_edges
    >>> edges = sort_edges(
    ...     torch.tensor([[0, 1, 1], [1, 0, 1]]), num_sources=2, num_targets=2
    ... )
    >>> edges.source.tolist(), edges.start.tolist()
    ([1, 0, 1], [0, 1, 3])
    """

    source: Tensor
    target: Tensor
    order: Tensor
    start: Tensor
    by_source: Tensor
    source_start: Tensor

    def edge_index(self) -> Tensor:
        """Returns the edges as they were before the sort, (2, E)."""
        sorted_edges = torch.stack([self.source, self.target])
        return torch.empty_like(sorted_edges).index_copy_(1, self.order, sorted_edges)


def sort_edges(edge_index: Tensor, num_sources: int, num_targets: int) -> InEdges:
    """Sorts edges by destination, for `edge_attention`.

    The sort is stable, runs on the device of `edge_index` and does not wait for it.

    Args:
        edge_index: Row 0 holds sources, row 1 destinations, in any order; parallel edges count separately.
        num_sources, num_targets: How many nodes there are on each side; in a graph that is not bipartite the same number twice.

    Shape:
        - edge_index: :math:`(2, E)`, integers in :math:`[0, N_{src})` and :math:`[0, N_{dst})`
        - result: `InEdges`

    Raises:
        ValueError: If `edge_index` is not as above (a number out of range is seen on a CPU only), or a number of nodes is negative.

    >>> import torch
    >>> from mea_graph.ops import edge_attention, sort_edges
    >>> edges = sort_edges(torch.tensor([[0, 1], [0, 0]]), num_sources=2, num_targets=3)
    >>> y, weights = edge_attention(
    ...     torch.ones(2, 1, 4), torch.zeros(3, 1), torch.zeros(2, 1), edges
    ... )
    >>> y.shape, weights.flatten().tolist()
    (torch.Size([3, 1, 4]), [0.5, 0.5])
    """
    check_edge_index(edge_index)
    for name, number in (("num_sources", num_sources), ("num_targets", num_targets)):
        if number < 0:
            raise ValueError(f"{name}: expected at least 0, got {number}")
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and _is_far(edge_index):
        return InEdges(*_OPERATOR(edge_index, num_sources, num_targets))
    if is_traced() or is_transformed():
        return _sorted(edge_index, num_sources, num_targets)
    return _vouched_sort(edge_index, num_sources, num_targets)


def _vouched_sort(edge_index: Tensor, num_sources: int, num_targets: int) -> InEdges:
    with torch.inference_mode(False):  # whose tensors would not count their changes, and could not be vouched for
        edges = _sorted(edge_index, num_sources, num_targets)
    vouch_for(*edges)
    return edges


def _sorted(edge_index: Tensor, num_sources: int, num_targets: int) -> InEdges:
    plain = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
    if library.hold() is None and counting_sort.takes(plain):
        source, target, order, start = counting_sort.by_target(plain, num_sources, num_targets, torch.int64)
        return InEdges(source, target, order, start, *counting_sort.by_source(source, num_sources))
    if plain.is_cpu and not is_traced() and not is_transformed():  # elsewhere the look would wait for the device
        counting_sort.check_ends(plain, num_sources, num_targets)
    source, target, order, start = sort_by_target(edge_index, num_targets)
    return InEdges(source, target, order, start, *sort_by_source(source, num_sources))


def _is_far(edge_index: Tensor) -> bool:
    """Whether a look at the numbers would wait for a device; not for PyG's own edges, whose operators a graph is made of."""
    return edge_index.device.type != "cpu" and not isinstance(edge_index, EdgeIndex)


def _fake_sort(edge_index: Tensor, num_sources: int, num_targets: int) -> tuple[Tensor, ...]:
    sizes = (edge_index.size(1),) * 3 + (num_targets + 1, edge_index.size(1), num_sources + 1)
    return tuple(edge_index.new_empty(size, dtype=torch.int64) for size in sizes)


# In a graph of `torch.compile` the sort is one operator, which vouches for its results whenever the graph runs.
_OPERATOR = register(
    "sort_edges",
    "(Tensor edge_index, SymInt num_sources, SymInt num_targets) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _vouched_sort,
    _fake_sort,
)


# By the identity of `order`: all fields, and how often each had been changed. They hold a sort, which need not be checked again.
_vouched: dict[int, tuple[list[weakref.ref[Tensor]], list[int]]] = {}


def vouch_for(*fields: Tensor) -> None:
    """Remembers that these fields of an `InEdges` hold a sort; it forgets them when they are gone or changed."""
    changes = _changes(fields)
    if changes is None:
        return
    key = id(fields[_ORDER])
    refs = [weakref.ref(field) for field in fields]
    refs[_ORDER] = weakref.ref(fields[_ORDER], lambda gone: _forget(key, gone))
    _vouched[key] = refs, changes


def _forget(key: int, gone: "weakref.ref[Tensor]") -> None:
    if key in _vouched and _vouched[key][0][_ORDER] is gone:  # not a later tensor in the same place
        del _vouched[key]


def is_vouched_for(*fields: Tensor) -> bool:
    known = _vouched.get(id(fields[_ORDER]))
    return known is not None and all(map(operator.is_, (ref() for ref in known[0]), fields)) and known[1] == _changes(fields)


def _changes(fields: Sequence[Tensor]) -> list[int] | None:
    """How often each was changed; None for tensors of inference mode, which do not count that and are checked at every call."""
    return None if any(field.is_inference() for field in fields) else [field._version for field in fields]


def check_edge_index(edge_index: Tensor) -> None:
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"edge_index: expected integers (2, E), got {edge_index.dtype} {tuple(edge_index.shape)}")


def check_edges(edges: Tensor | InEdges, num_sources: int, num_targets: int) -> None:
    if not isinstance(edges, InEdges):
        check_edge_index(edges)
        return
    sorted_for = (edges.source_start.size(0) - 1, edges.start.size(0) - 1)
    if sorted_for != (num_sources, num_targets):
        raise ValueError(f"edge_index: expected edges sorted for {(num_sources, num_targets)} nodes, got {sorted_for}")


def sort_by_target(edge_index: Tensor, num_targets: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first four fields of `InEdges`; PyG's own edges that are sorted already are not sorted again."""
    is_sorted = isinstance(edge_index, EdgeIndex) and edge_index.is_sorted_by_col
    plain = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
    source, target = plain.long().unbind(0)
    if is_sorted:
        return source.contiguous(), target.contiguous(), torch.arange(target.size(0), device=target.device), _starts(target, num_targets)
    target, order = torch.sort(target, stable=True)
    return source.index_select(0, order), target, order, _starts(target, num_targets)


def sort_by_source(source: Tensor, num_sources: int) -> tuple[Tensor, Tensor]:
    """The last two fields of `InEdges`; only a backward pass needs them."""
    source, by_source = torch.sort(source, stable=True)
    return by_source, _starts(source, num_sources)


def _starts(sorted_index: Tensor, nodes: int) -> Tensor:
    return torch.searchsorted(sorted_index, torch.arange(nodes + 1, device=sorted_index.device))
