"""Predictive attention, [MEA] Eq. 2: attention whose map is guided by a convolution over the previous layer's maps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.backends import Backend, Op, accept
from mea_graph.ops.interval import interval_attention, refuse_kept, refuse_plain, refuse_unlisted
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.native import library
from mea_graph.ops.places import check_device
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.predictive import cpu, listed, native, padded, reference, triton

__all__ = ["predictive_attention", "predictive_attention_map"]


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    pointers: Pointers,
    prior_query: Tensor | None,
    prior_key: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mu: float,
    edges: Any,
) -> None:
    if query.dim() != 3:
        raise ValueError(f"query: expected (N, K, D), got {tuple(query.shape)}")
    rows, heads, _ = query.shape
    if not isinstance(pointers, Pointers) or pointers.num_rows != rows:
        got = f"those of {pointers.num_rows}" if isinstance(pointers, Pointers) else type(pointers).__name__
        raise ValueError(f"pointers: expected Pointers of {rows} rows, got {got}")
    check_device("pointers", pointers.start, query.device, "query")
    if key.shape != query.shape:
        raise ValueError(f"key: expected {tuple(query.shape)} as query, got {tuple(key.shape)}")
    if value is not None and (value.dim() != 3 or value.shape[:2] != query.shape[:2]):
        raise ValueError(f"value: expected ({rows}, {heads}, any), got {tuple(value.shape)}")
    if not 0 <= mu <= 1:
        raise ValueError(f"mu: expected a number in [0, 1], got {mu}")
    if isinstance(edges, IntervalEdges):
        if edges.target.num_rows != rows or edges.num_source_rows != rows or edges.source_start.size(1) != 1:
            raise ValueError(f"edges: expected those of {rows} rows with themselves, got {edges}")
    elif edges is not None and (not isinstance(edges, Tensor) or edges.dim() != 2 or edges.size(0) != 2 or edges.dtype != torch.int64):
        got = f"{edges.dtype} {tuple(edges.shape)}" if isinstance(edges, Tensor) else type(edges).__name__
        raise ValueError(f"edges: expected IntervalEdges, an int64 edge_index (2, E) or None, got {got}")
    if edges is not None:
        check_device("edges", edges if isinstance(edges, Tensor) else edges.target.start, query.device, "query")
    given = [prior_query is not None, prior_key is not None, weight is not None]
    if any(given) and not all(given):
        raise ValueError("prior_query, prior_key and weight: expected all of them or none")
    if prior_query is None or prior_key is None or weight is None:
        return
    if prior_query.shape != prior_key.shape or prior_query.shape[:2] != query.shape[:2]:
        raise ValueError(
            f"prior_query, prior_key: expected ({rows}, {heads}, any), got {tuple(prior_query.shape)}, {tuple(prior_key.shape)}"
        )
    if weight.shape != (heads, heads, 3, 3):
        raise ValueError(f"weight: expected ({heads}, {heads}, 3, 3), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (heads,):
        raise ValueError(f"bias: expected ({heads},), got {tuple(bias.shape)}")


def predictive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pointers: Pointers,
    prior_query: Tensor | None = None,
    prior_key: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mu: float = 0.25,
    edges: IntervalEdges | Tensor | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    r"""Computes attention guided by the previous layer's logits ([MEA] Eq. 2, times V).

    .. math::
        A &= \mathrm{softmax}\big(\mu \, \mathrm{GELU}(\mathrm{conv}_{3 \times 3}(A_{pre}))
            + (1 - \mu) \, \mathrm{softmax}(Q K^T / \sqrt{D})\big) \\
        A_{pre} &= Q_{pre} K_{pre}^T / \sqrt{D_{pre}}

    The convolution mixes the K heads as channels of a T x T image that is zero outside the sample (R1); both softmaxes run over the keys
    that a step hears: all of its sample, or those that `edges` give it. The image is that of the whole sample in any case. Without a prior
    the result is plain attention, that of `interval_attention` on the backend of the same name.

    The backends "native", "cpu" and "triton" never store a map: they compute it block by block, and again in the backward pass. "cpu" and
    "triton" fold the convolution into one more dot product of width 3 K D. All take O(N K D) memory, and time that follows the true
    lengths, or the edges. Sums are taken in float32, or in float64 where an input is float64, and repeat bit for bit. One exception:
    without a gradient, a single sequence of up to 64 steps on a CPU runs the formula itself, whose maps then fit a block.

    Args:
        query, key, value: This layer's projections, split into heads.
        pointers: Where each sample's rows are.
        prior_query, prior_key: The previous layer's query and key; both or neither.
        weight, bias: Parameters of the convolution, as `torch.nn.Conv2d(K, K, 3)` holds them; `weight` goes with the prior.
        mu: Share of the prediction, in [0, 1].
        edges: Which steps hear which: `IntervalEdges` of the rows with themselves, a PyG `edge_index`, or None: all of the sample.
        dropout: As for `interval_attention`, on the map A.
        backend: "plain" (without a prior: `interval_attention` of the rows with themselves), "triton" (CUDA), "native" (C++ that a
            compiler on this machine builds at first use), "cpu" (plain torch, block by
            block; on another device only by name, since it waits for the lengths), "listed" (edge by edge: lists and windows) or
            "reference" (stores the maps). "auto" takes the first that can run.

    Shape:
        - query, key: :math:`(N, K, D)`; prior_query, prior_key: :math:`(N, K, D_{pre})`; value: :math:`(N, K, D_v)`
        - weight: :math:`(K, K, 3, 3)`; bias: :math:`(K,)`
        - result: :math:`(N, K, D_v)`, of the dtype of `value`; zero in gaps

    Raises:
        ValueError: If a shape or `mu` is not as above, the edges are those of other rows, or the backend cannot run.

    >>> import torch
    >>> from mea_graph.ops import Pointers
    >>> pointers = Pointers.from_ptr(torch.tensor([0, 6, 9]))  # two samples
    >>> q, k, v = torch.randn(3, 9, 4, 5).unbind()  # N = 9, K = 4, D = 5
    >>> prior = {"prior_query": q, "prior_key": k, "weight": torch.randn(4, 4, 3, 3)}
    >>> predictive_attention(q, k, v, pointers, **prior, bias=torch.zeros(4)).shape
    torch.Size([9, 4, 5])
    """
    _check(query, key, value, pointers, prior_query, prior_key, weight, bias, mu, edges)
    arguments: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "prior_query": prior_query,
        "prior_key": prior_key,
        "weight": weight,
        "bias": bias,
        "mu": mu,
        "pointers": pointers,
        "edges": edges,
    }
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
    if dropout:
        arguments["dropout"] = dropout  # only backends that keep the weights know it
    return _OP.run(backend, query.device, arguments)


def predictive_attention_map(
    query: Tensor,
    key: Tensor,
    pointers: Pointers,
    prior_query: Tensor | None = None,
    prior_key: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mu: float = 0.25,
    edges: IntervalEdges | None = None,
) -> Tensor:
    r"""Computes the attention map A of `predictive_attention`, padded, for figures; it takes O(B K T^2) memory.

    Args:
        query, key, pointers, prior_query, prior_key, weight, bias, mu, edges: As for `predictive_attention`.

    Shape:
        - result: :math:`(B, K, T, T)`; rows of real steps sum to one over the keys that they hear, columns of padding are zero.

    Raises:
        ValueError: If `predictive_attention` would raise it.

    >>> import torch
    >>> from mea_graph.ops import Pointers
    >>> q, k = torch.randn(2, 3, 2, 4).unbind()
    >>> predictive_attention_map(q, k, Pointers.from_ptr(torch.tensor([0, 3]))).sum(
    ...     -1
    ... ).allclose(torch.ones(1, 2, 3))
    True
    """
    _check(query, key, None, pointers, prior_query, prior_key, weight, bias, mu, edges)
    if isinstance(edges, Tensor):
        raise ValueError("edges: expected IntervalEdges or None for a map, got an edge_index")
    sequences, mask, heard = padded.padded_arguments((query, key, prior_query, prior_key), pointers, edges, query.dtype)
    if mask.numel() == 0:
        return sequences[0] @ sequences[1].mT
    q, k, prior_q, prior_k = sequences
    return reference.attention_map(q, k, prior_q, prior_k, weight, bias, mu, mask, heard)


def _as_plain(query: Tensor, key: Tensor, value: Tensor, pointers: Pointers, edges: Any, dropout: float = 0.0, **_: Any) -> dict[str, Any]:
    edges = IntervalEdges.complete(pointers, pointers) if edges is None else edges
    return {"query": query, "key": key, "value": value, "edges": edges, "dropout": dropout}


def _run_plain(**arguments: Any) -> Tensor:
    return interval_attention(**_as_plain(**arguments))


def _refuse_plain(prior_query: Tensor | None, **_: Any) -> str | None:
    return None if prior_query is None else "a prior is given, and this computes attention without one"


def _guided(name: str, run: Callable[..., Tensor], refuse: Callable[..., str | None], **kind: Any) -> Backend:
    """One for attention with a prior; without one it is `interval_attention` on the backend of the same name."""

    def run_either(**arguments: Any) -> Tensor:
        if arguments["prior_query"] is None:
            return interval_attention(**_as_plain(**arguments), backend=name)
        return run(**arguments)

    def refuse_either(**arguments: Any) -> str | None:
        return refuse_plain(name, **_as_plain(**arguments)) if arguments["prior_query"] is None else refuse(**arguments)

    return Backend(run_either, refuse_either, **kind)


def _refuse_native(query: Tensor, **arguments: Any) -> str | None:
    return refuse_kept(**arguments) or native.refuse(query)


def _refuse_triton(dropout: float = 0.0, **arguments: Any) -> str | None:
    return refuse_kept(arguments["edges"], dropout) or triton.refuse(**arguments)


def _run_reference(edges: Any, **arguments: Any) -> Tensor:
    if not isinstance(edges, Tensor):
        return padded.run_reference(**arguments, edges=edges)
    if arguments["prior_query"] is None:
        dropout = arguments.get("dropout", 0.0)
        return interval_attention(arguments["query"], arguments["key"], arguments["value"], edges, dropout, backend="reference")
    return listed.run(**arguments, edges=edges)


_OP = Op(
    predictive_attention,
    {
        "plain": Backend(_run_plain, _refuse_plain),
        "triton": _guided("triton", triton.run, _refuse_triton, prefers="cuda"),
        "native": _guided("native", native.run, _refuse_native, hold=library.hold),
        "cpu": _guided("cpu", cpu.run, refuse_kept, prefers="cpu"),
        "listed": _guided("listed", listed.run, refuse_unlisted),
        "reference": Backend(_run_reference, accept),
    },
)
