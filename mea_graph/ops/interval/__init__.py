"""Interval attention, [MEA] Eq. 7: each target row attends to runs of consecutive source rows."""

from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.backends import Backend, Op, accept
from mea_graph.ops.dtypes import common_dtype
from mea_graph.ops.eager import is_traced, is_transformed
from mea_graph.ops.interval import cpu, listed, native, padded, reference, triton
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.native import library
from mea_graph.ops.places import check_device

__all__ = ["interval_attention", "interval_attention_map"]


def _check(query: Tensor, key: Tensor, value: Tensor | None, edges: Any, dropout: float = 0.0) -> None:
    if query.dim() != 3:
        raise ValueError(f"query: expected (N, K, D), got {tuple(query.shape)}")
    _, heads, width = query.shape
    if key.dim() != 3 or key.shape[1:] != (heads, width):
        raise ValueError(f"key: expected (N_s, {heads}, {width}), got {tuple(key.shape)}")
    if value is not None and (value.dim() != 3 or value.shape[:2] != key.shape[:2]):
        raise ValueError(f"value: expected ({key.size(0)}, {heads}, any), got {tuple(value.shape)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
    if isinstance(edges, IntervalEdges):
        if edges.target.num_rows != query.size(0) or edges.num_source_rows != key.size(0):
            expected = f"{query.size(0)} target and {key.size(0)} source rows"
            raise ValueError(f"edges: expected {expected}, got {edges.target.num_rows} and {edges.num_source_rows}")
        check_device("edges", edges.target.start, query.device, "query")
    elif not isinstance(edges, Tensor) or edges.dim() != 2 or edges.size(0) != 2 or edges.dtype != torch.int64:
        got = f"{edges.dtype} {tuple(edges.shape)}" if isinstance(edges, Tensor) else type(edges).__name__
        raise ValueError(f"edges: expected IntervalEdges or an int64 edge_index (2, E), got {got}")
    else:
        check_device("edges", edges, query.device, "query")


def interval_attention(
    query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges | Tensor, dropout: float = 0.0, backend: str = "auto"
) -> Tensor:
    r"""Computes multi-head attention over a graph whose edges come in runs ([MEA] Eq. 7).

    .. math:: o_i = \sum_{j \in N(i)} \mathrm{softmax}_{j \in N(i)}\big(q_i^T k_j / \sqrt{D}\big) \, v_j

    :math:`N(i)` are the source rows that `edges` gives to the target row i. A row that hears nothing gives zeros. With `IntervalEdges` no
    map and no list of edges is stored: memory grows with the rows, time with the edges. Sums are taken in float32, or in float64 where an
    input is float64, and repeat bit for bit; but for the gradients of "sdpa" on a GPU, which torch's own kernels may add in any order.

    Args:
        query: The query of the target rows, split into heads.
        key, value: The key and value of the source rows; several sources stand one below the other.
        edges: `IntervalEdges`, or a PyG `edge_index` for any other graph, which is computed edge by edge.
        dropout: Probability with which an edge's weight is dropped, anew in each call; the others grow by 1 / (1 - p). Weights that are
            dropped must be stored: memory then grows with the edges, or, where each step hears its sample, with the padded map.
        backend: "native" is C++ that a compiler on this machine builds at first use, "cpu" computes block by block, both for tensors on a
            CPU; "triton" is for those on an NVIDIA GPU; "sdpa" pads and hands the batch to PyTorch, on any device; "listed" computes edge
            by edge, lists and windows; "reference" stores the map. "auto" takes the first that can run.

    Shape:
        - query: :math:`(N_t, K, D)`; key: :math:`(N_s, K, D)`; value: :math:`(N_s, K, D_v)`
        - result: :math:`(N_t, K, D_v)`, of the values' dtype

    Raises:
        ValueError: If a shape is not as above, the edges are those of other rows, or the backend cannot run.

    >>> import torch
    >>> from mea_graph.ops import IntervalEdges, Pointers
    >>> text, audio = (
    ...     Pointers.from_ptr(torch.tensor([0, 3, 7])),
    ...     Pointers.from_ptr(torch.tensor([0, 9, 20])),
    ... )
    >>> sound = torch.randn(20, 4, 5)
    >>> interval_attention(
    ...     torch.randn(7, 4, 5), sound, sound, IntervalEdges.complete(audio, text)
    ... ).shape
    torch.Size([7, 4, 5])
    """
    _check(query, key, value, edges, dropout)
    arguments: dict[str, Any] = {"query": query, "key": key, "value": value, "edges": edges}
    if dropout:
        arguments["dropout"] = dropout  # only backends that keep the weights know it
    return _OP.run(backend, query.device, arguments)


def interval_attention_map(query: Tensor, key: Tensor, edges: IntervalEdges) -> Tensor:
    r"""Computes the attention map of `interval_attention`, padded, for figures.

    Args:
        query, key, edges: As for `interval_attention`.

    Shape:
        - result: :math:`(B, K, T, \sum_s T_s)`, the sources' steps in the order given; zero where nothing is heard.

    Raises:
        ValueError: If `interval_attention` would raise it.

    >>> import torch
    >>> from mea_graph.ops import IntervalEdges, Pointers
    >>> a, b = (
    ...     Pointers.from_ptr(torch.tensor([0, 3])),
    ...     Pointers.from_ptr(torch.tensor([0, 5])),
    ... )
    >>> interval_attention_map(
    ...     torch.randn(3, 2, 4), torch.randn(5, 2, 4), IntervalEdges.complete(b, a)
    ... ).shape
    torch.Size([1, 2, 3, 5])
    """
    _check(query, key, None, edges)
    if not isinstance(edges, IntervalEdges):
        raise ValueError("edges: expected IntervalEdges for a map, got an edge_index")
    q, k, _, mask = padded.pad(query, key, key, edges, common_dtype(query, key))
    steps = edges.target.mask.unsqueeze(2)
    return reference.attention_map(q, k, mask & steps)


def refuse_kept(edges: Any, dropout: float = 0.0, **_: Any) -> str | None:
    """Why a backend that follows runs and stores no weights cannot run; or None."""
    if isinstance(edges, Tensor):
        return "the edges are a list"
    return "weights are dropped, and it stores none" if dropout else None


def refuse_unlisted(edges: Any, **_: Any) -> str | None:
    """Why "listed" cannot run; or None. It takes windows too, unless the host must not read how many edges they have."""
    if isinstance(edges, Tensor):
        return None
    if edges is None or edges.is_complete or edges.begin.device.type == "meta" or is_traced() or is_transformed():
        return "the edges are intervals"
    return None


def refuse_plain(backend: str, **arguments: Any) -> str | None:
    """Why a backend cannot run on these arguments; or None."""
    return _OP.backends[backend].refuse(**arguments)


def _refuse_native(query: Tensor, value: Tensor, **arguments: Any) -> str | None:
    return refuse_kept(**arguments) or native.refuse(query, value)


def _refuse_cpu(query: Tensor, **arguments: Any) -> str | None:
    return refuse_kept(**arguments) or cpu.refuse(query)


def _refuse_triton(dropout: float = 0.0, **arguments: Any) -> str | None:
    return refuse_kept(arguments["edges"], dropout) or triton.refuse(**arguments)


def _run_reference(edges: Any, **arguments: Any) -> Tensor:
    return (listed.run if isinstance(edges, Tensor) else padded.run_reference)(**arguments, edges=edges)


_OP = Op(
    interval_attention,
    {
        "native": Backend(native.run, _refuse_native, hold=library.hold),
        "cpu": Backend(cpu.run, _refuse_cpu, prefers="cpu"),
        "triton": Backend(triton.run, _refuse_triton, prefers="cuda"),
        "sdpa": Backend(padded.run_sdpa, refuse_kept),
        "listed": Backend(listed.run, refuse_unlisted),
        "reference": Backend(_run_reference, accept),
    },
)
