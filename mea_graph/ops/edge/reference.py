"""Edge attention as the paper writes it: gather, score, softmax over in-edges, scatter. Frozen: the truth other backends meet."""

import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.segment import segment_softmax, segment_sum


def edge_attention(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """[MEA] Eq. 18-19 per head: the weighted sums (N_dst, H, C) and the transfer coefficients (E, H)."""
    source, target = edge_index[0], edge_index[1]
    score = F.gelu(score_dst[target] + score_src[source])  # (E, H)
    weights = segment_softmax(score, target, score_dst.size(0))  # (E, H)
    return segment_sum(weights.unsqueeze(-1) * x[source], target, score_dst.size(0)), weights
