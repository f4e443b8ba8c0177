"""Edge attention, [MEA] Eq. 18-19: every node gathers its in-neighbours, weighted by a softmax of additive scores."""

from torch import Tensor

from mea_graph.ops.backends import Backend, Op, accept
from mea_graph.ops.edge import cpu, cuda, native, reference
from mea_graph.ops.edge.edges import InEdges, check_edges, sort_edges
from mea_graph.ops.edge.operator import refuse_transforms
from mea_graph.ops.native import library
from mea_graph.ops.places import check_device

__all__ = ["InEdges", "edge_attention", "sort_edges"]


def edge_attention(
    x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor | InEdges, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""Computes a weighted sum over in-edges, on any graph ([MEA] Eq. 18-19).

    .. math::
        \xi_{ij} = \mathrm{softmax}_{j \in N(i)} \, \mathrm{GELU}(a_i + b_j), \qquad y_i = \sum_{j \in N(i)} \xi_{ij} \, x_j

    Takes time in proportion to the edges, and stores nothing of size edges x channels (the reference does). Sums are taken in float32, or
    in float64 where an input is float64, and repeat bit for bit. The gradient can be differentiated again, by way of the reference, which
    also runs under the transforms of `torch.func`.

    Args:
        x: Values of the source nodes, per head.
        score_dst, score_src: The additive scores a of the destinations and b of the sources, per head.
        edge_index: Row 0 holds sources, row 1 destinations, in any order; parallel edges count separately. Or the result of `sort_edges`,
            which spares the sort: worth it for a graph used more than once.
        backend: "auto", "cuda" (CUDA C++), "native" (C++), "cpu" (plain torch) or "reference".

    Shape:
        - x: :math:`(N_{src}, H, C)`; score_dst: :math:`(N_{dst}, H)`; score_src: :math:`(N_{src}, H)`; edge_index: :math:`(2, E)`, int64
        - result: y :math:`(N_{dst}, H, C)` of the dtype of x, zeros where a destination has no in-edge; and :math:`\xi` :math:`(E, H)` of
          the dtype of the scores, in the order of `edge_index` (with the result of `sort_edges` too)

    Raises:
        ValueError: If a shape or the index type is not as above, or the backend cannot run.

    >>> import torch
    >>> x = torch.tensor([[[2.0]], [[4.0]]])  # two nodes, one head, one channel
    >>> y, weights = edge_attention(
    ...     x, torch.zeros(3, 1), torch.zeros(2, 1), torch.tensor([[0, 1], [0, 0]])
    ... )
    >>> y.flatten().tolist(), weights.flatten().tolist()
    ([3.0, 0.0, 0.0], [0.5, 0.5])
    """
    _check(x, score_dst, score_src, edge_index)
    arguments = {"x": x, "score_dst": score_dst, "score_src": score_src, "edge_index": edge_index}
    return _OP.run(backend, x.device, arguments)


def _check(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor | InEdges) -> None:
    if x.dim() != 3:
        raise ValueError(f"x: expected (N, H, C), got {tuple(x.shape)}")
    if score_src.shape != x.shape[:2]:
        raise ValueError(f"score_src: expected {tuple(x.shape[:2])}, got {tuple(score_src.shape)}")
    if score_dst.dim() != 2 or score_dst.size(1) != x.size(1):
        raise ValueError(f"score_dst: expected (N, {x.size(1)}), got {tuple(score_dst.shape)}")
    check_edges(edge_index, x.size(0), score_dst.size(0))
    check_device("edge_index", edge_index if isinstance(edge_index, Tensor) else edge_index.source, x.device, "x")


def _run_reference(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor | InEdges) -> tuple[Tensor, Tensor]:
    if isinstance(edge_index, InEdges):
        edge_index = edge_index.edge_index()
    y, weights = reference.edge_attention(x, score_dst, score_src, edge_index)
    return y.to(x.dtype), weights


_OP = Op(
    edge_attention,
    {
        "cuda": Backend(cuda.run, cuda.refuse, prefers="cuda"),
        "native": Backend(native.run, native.refuse, prefers="cpu", hold=library.hold),
        "cpu": Backend(cpu.run, refuse_transforms),
        "reference": Backend(_run_reference, accept),
    },
)
