"""Edge attention, [MEA] Eq. 18-19: every node gathers its in-neighbours, weighted by a softmax of additive scores."""

from torch import Tensor

from mea_graph.ops.edge_attention import reference

__all__ = ["edge_attention"]


def edge_attention(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weighted sum over in-edges, on any graph ([MEA] Eq. 18-19).

    .. math::
        \xi_{ij} = \mathrm{softmax}_{j \in N(i)} \, \mathrm{GELU}(a_i + b_j), \qquad y_i = \sum_{j \in N(i)} \xi_{ij} \, x_j

    Args:
        x: Values of the source nodes, per head.
        score_dst, score_src: The additive scores a of the destinations and b of the sources, per head.
        edge_index: Row 0 holds sources, row 1 destinations, in any order; parallel edges count separately.

    Shape:
        - x: :math:`(N_{src}, H, C)`; score_dst: :math:`(N_{dst}, H)`; score_src: :math:`(N_{src}, H)`; edge_index: :math:`(2, E)`, int64
        - result: y :math:`(N_{dst}, H, C)`, zeros where a destination has no in-edge, and :math:`\xi` :math:`(E, H)`

    Raises:
        ValueError: A shape or the index type is not as above.

    >>> import torch
    >>> x = torch.tensor([[[2.0]], [[4.0]]])  # two nodes, one head, one channel
    >>> y, weights = edge_attention(x, torch.zeros(3, 1), torch.zeros(2, 1), torch.tensor([[0, 1], [0, 0]]))
    >>> y.flatten().tolist(), weights.flatten().tolist()
    ([3.0, 0.0, 0.0], [0.5, 0.5])
    """
    if x.dim() != 3:
        raise ValueError(f"x: expected (N, H, C), got {tuple(x.shape)}")
    if score_src.shape != x.shape[:2]:
        raise ValueError(f"score_src: expected {tuple(x.shape[:2])}, got {tuple(score_src.shape)}")
    if score_dst.dim() != 2 or score_dst.size(1) != x.size(1):
        raise ValueError(f"score_dst: expected (N, {x.size(1)}), got {tuple(score_dst.shape)}")
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.is_floating_point():
        raise ValueError(f"edge_index: expected integers (2, E), got {edge_index.dtype} {tuple(edge_index.shape)}")
    return reference.edge_attention(x, score_dst, score_src, edge_index)
