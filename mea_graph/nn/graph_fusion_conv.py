"""The message passing of decoupled graph fusion, for any graph, [MEA] Eq. 17-19."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing

from mea_graph.nn._sequences import check_sizes
from mea_graph.ops import InEdges
from mea_graph.ops.edge_attention.linear import linear_edge_attention

_ACTIVATIONS = {"sigmoid": torch.sigmoid, "relu": torch.relu, "none": lambda x: x}


class GraphFusionConv(MessagePassing):
    r"""Attention over in-neighbours with a GELU score and a squashed sum ([MEA] Eq. 17-19, before the sum over nodes).

    .. math::
        \delta_{ij} = q^T [W h_i, W h_j] + b, \qquad
        \xi_{ij} = \mathrm{softmax}_{j \in N(i)} \mathrm{GELU}(\delta_{ij}), \qquad
        h_i' = \sigma\Big(\sum_{j \in N(i)} \xi_{ij} \, W h_j\Big)

    Takes any PyG graph, bipartite ones too; messages go from `edge_index[0]` to `edge_index[1]`, or back with
    `flow = "target_to_source"` (not on a bipartite graph: PyG's own layers give no meaning to that). A node without in-edges gets
    :math:`\sigma(0)`. The score splits into a term per node, so nothing of size edges x channels is computed for it.

    Args:
        in_channels: Width of the node features.
        out_channels: Width of the result, per head.
        heads: Number of attention heads; the paper has one.
        concat: Whether heads are concatenated; otherwise averaged (before the activation).
        activation: :math:`\sigma`: "sigmoid" (the paper's), "relu" or "none".

    Shape:
        - x: :math:`(N, C_{in})`, or a pair :math:`((N_s, C_{in}), (N_t, C_{in}))` for a bipartite graph
        - edge_index: :math:`(2, E)`, int64, or what `mea_graph.ops.sort_edges` makes of it (sooner done on a graph that stays the same)
        - result: :math:`(N_t, H C_{out})`, or :math:`(N_t, C_{out})` without `concat`;
          with `return_attention_weights` also :math:`(edge\_index, \xi)`, :math:`\xi` being :math:`(E, H)`

    Raises:
        ValueError: A wrong shape, a size below 1, an unknown activation, or a pair `x` with `flow = "target_to_source"`.

    >>> import torch
    >>> conv = GraphFusionConv(16, 32)
    >>> conv(torch.randn(4, 16), torch.tensor([[0, 1, 2], [1, 2, 0]])).shape
    torch.Size([4, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        activation: Literal["sigmoid", "relu", "none"] = "sigmoid",
    ) -> None:
        super().__init__(aggr="sum", node_dim=0)
        check_sizes(in_channels=in_channels, out_channels=out_channels, heads=heads)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation: expected one of {list(_ACTIVATIONS)}, got {activation!r}")
        self.in_channels, self.out_channels, self.heads, self.concat = in_channels, out_channels, heads, concat
        self.activation = activation
        self.lin = nn.Linear(in_channels, heads * out_channels, bias=False)
        self.score_dst = nn.Parameter(torch.empty(heads, out_channels))  # the halves of q that meet W h_i and W h_j
        self.score_src = nn.Parameter(torch.empty(heads, out_channels))
        self.score_bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        super().reset_parameters()
        self.lin.reset_parameters()
        bound = (2 * self.out_channels) ** -0.5  # as a linear layer on the concatenation
        for parameter in (self.score_dst, self.score_src, self.score_bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor | tuple[Tensor, Tensor], edge_index: Tensor | InEdges, return_attention_weights: bool = False):
        """Returns the new features of the destination nodes."""
        pair = x if isinstance(x, tuple) else (x, x)
        for name, part in zip(("x", "x[1]"), pair, strict=True):
            if part.dim() != 2 or part.size(1) != self.in_channels:
                raise ValueError(f"{name}: expected (N, {self.in_channels}), got {tuple(part.shape)}")
        turned = self.flow == "target_to_source"
        if turned and isinstance(x, tuple):
            raise ValueError('x: expected one tensor with flow="target_to_source", got a pair; turn edge_index and the pair round instead')
        edges = edge_index
        if turned:
            if isinstance(edge_index, InEdges):
                raise ValueError('edge_index: expected (2, E) with flow="target_to_source", got sorted edges; turn them before sorting')
            edges = edge_index.flip(0)
        out, weights = linear_edge_attention(
            pair, self.lin.weight, self.score_dst, self.score_src, self.score_bias, edges, return_attention_weights
        )
        out = _ACTIVATIONS[self.activation](out.flatten(1) if self.concat else out.mean(1))
        return (out, (edge_index, weights)) if return_attention_weights else out

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"
