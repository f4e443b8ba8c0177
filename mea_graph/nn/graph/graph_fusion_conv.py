"""The message passing of decoupled graph fusion, for any graph, [MEA] Eq. 17-19."""

import warnings
from typing import Any, Literal, cast, overload

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size, SparseTensor
from torch_geometric.utils import is_sparse, is_torch_sparse_tensor, to_edge_index
from torch_geometric.utils.sparse import set_sparse_value

from mea_graph.nn._dropout import probability_below_1
from mea_graph.nn._sequences import check_dtype, check_sizes, weight_dtype
from mea_graph.nn._side_by_side import is_watched
from mea_graph.ops import edge_attention, segment_softmax, segment_sum
from mea_graph.ops.eager import is_traced, is_transformed
from mea_graph.ops.native import library
from mea_graph.option_types import plain_value

_ACTIVATIONS = {"sigmoid": torch.sigmoid, "relu": torch.relu, "none": lambda x: x}
# Edges times heads from which the fused form is taken. By torch it takes, at 16 to 64 channels and 1 and 4 heads on one thread, half to 4/3
# of the time of single messages below 20,000, and 1/5 to all of it from 80,000 on. In C++ it takes 1/8 to half of it from 4,000 on.
_LARGE, _LARGE_IN_CPP = 2**16, 2**11
_HOOKS = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
_STEPS = ("propagate", "message", "aggregate", "update", "edge_updater", "edge_update")


class GraphFusionConv(MessagePassing):
    r"""Attention over in-neighbours with a GELU score and a squashed sum ([MEA] Eq. 17-19, before the sum over nodes).

    .. math::
        \delta_{ij} &= q^T [W h_i, W h_j] + b, \qquad
        \xi_{ij} = \mathrm{softmax}_{j \in N(i)} \mathrm{GELU}(\delta_{ij}) \\
        h_i' &= \sigma\Big(\sum_{j \in N(i)} \xi_{ij} \, W h_j\Big)

    Use this PyG convolution like a `GATConv`; it adds no self loops. A node without in-edges gets :math:`\sigma(0)`.
    Features of an edge add :math:`q_e^T W_e e_{ij}` to its score. An edge of weight w counts as w parallel ones: its exponential is
    multiplied by w in the softmax; one of weight 0 is as good as not there, and gets no gradient.

    In a stack put a norm between the layers. Untrained, on a random graph with 8 in-edges a node, each layer leaves a twentieth of the
    standard deviation between nodes with "sigmoid", an eighth with "relu" and a fifth with "none"; with a `LayerNorm` two fifths or more.

    Messages are made edge by edge, as PyG does it. On a large graph that is neither compiled nor exported, `mea_graph.ops.edge_attention`
    takes over, which stores nothing of size edges x channels: unless there is a hook, an explainer, an overridden step, `edge_attr`,
    `edge_weight` or dropout, or `fuse` was set to False. It is large from 65,536 edges times heads on, or from 2,048 where the backend
    "native" runs; other backends need not sort an `EdgeIndex` that is sorted by column.

    Args:
        in_channels: Width of the node features; -1 to take it from the first call. A pair for sources and destinations that have a W each;
            that of the destinations then enters the scores only.
        out_channels: Width of the result, per head.
        heads: Number of attention heads; the paper has one.
        concat: Whether heads are concatenated; otherwise averaged (before the activation).
        activation: :math:`\sigma`: "sigmoid" (the paper's), "relu" or "none".
        edge_dim: Width of the edges' features, where they have some.
        dropout: Probability in [0, 1), on :math:`\xi`.
        bias: Whether a bias is added before :math:`\sigma`; the paper has none.
        kwargs: Options of `MessagePassing`, such as `flow`.

    Shape:
        - x: :math:`(N, C_{in})`, or a pair :math:`((N_s, C_s), (N_t, C_t))` for a bipartite graph, whose second may be None
        - edge_index: :math:`(2, E)`, int64, an `EdgeIndex`, or a sparse (transposed) adjacency matrix :math:`(N_t, N_s)`, whose values are
          the edges' weights
        - edge_attr: :math:`(E, D)`; edge_weight: :math:`(E,)`, at least 0
        - result: :math:`(N_t, H C_{out})`, or :math:`(N_t, C_{out})` without `concat`; with `return_attention_weights` also
          :math:`(edge\_index, \xi)`, :math:`\xi` being :math:`(E, H)`

    Raises:
        ValueError: If a shape, a size, a weight (below 0; checked on a CPU) or the activation is wrong, or `edge_attr` lacks `edge_dim`.
        TypeError: If features have another dtype than the weights.

    >>> import torch
    >>> conv = GraphFusionConv(16, 32)
    >>> conv(torch.randn(4, 16), torch.tensor([[0, 1, 2], [1, 2, 0]])).shape
    torch.Size([4, 32])
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        activation: Literal["sigmoid", "relu", "none"] = "sigmoid",
        edge_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("aggr", "sum")
        super().__init__(node_dim=0, **kwargs)
        check_sizes(out_channels=out_channels, heads=heads)
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation: expected one of {list(_ACTIVATIONS)}, got {activation!r}")
        dropout = probability_below_1(dropout, "dropout")
        in_channels, out_channels, heads = plain_value((in_channels, out_channels, heads))
        self.in_channels, self.out_channels, self.heads, self.concat = in_channels, out_channels, heads, concat
        self.activation, self.edge_dim, self.dropout = activation, edge_dim, dropout
        self.fuse = True  # PyG's switch; its meaning here is `_fuses`
        self.lin = self.lin_src = self.lin_dst = self.lin_edge = None
        if isinstance(in_channels, int):
            self.lin = _linear(in_channels, heads * out_channels, "in_channels")
        else:
            self.lin_src = _linear(in_channels[0], heads * out_channels, "in_channels[0]")
            self.lin_dst = _linear(in_channels[1], heads * out_channels, "in_channels[1]")
        self.score_dst = nn.Parameter(torch.empty(heads, out_channels))  # the halves of q that meet W h_i and W h_j
        self.score_src = nn.Parameter(torch.empty(heads, out_channels))
        self.score_bias = nn.Parameter(torch.empty(heads))
        self.register_parameter("score_edge", None)
        if edge_dim is not None:
            self.lin_edge = _linear(edge_dim, heads * out_channels, "edge_dim")
            self.score_edge = nn.Parameter(torch.empty(heads, out_channels))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels * (heads if concat else 1))) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        super().reset_parameters()
        for linear in (self.lin, self.lin_src, self.lin_dst, self.lin_edge):
            if linear is not None:
                linear.reset_parameters()
        bound = (2 * self.out_channels) ** -0.5  # as a linear layer on the concatenation
        for parameter in (self.score_dst, self.score_src, self.score_bias, self.score_edge):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @overload
    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        edge_weight: OptTensor = None,
        size: Size = None,
        return_attention_weights: Literal[False] | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Tensor,
        edge_attr: OptTensor = None,
        edge_weight: OptTensor = None,
        size: Size = None,
        *,
        return_attention_weights: Literal[True],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: SparseTensor,
        edge_attr: OptTensor = None,
        edge_weight: OptTensor = None,
        size: Size = None,
        *,
        return_attention_weights: Literal[True],
    ) -> tuple[Tensor, SparseTensor]: ...

    @overload
    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        edge_weight: OptTensor = None,
        size: Size = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, SparseTensor]: ...

    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        edge_weight: OptTensor = None,
        size: Size = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, SparseTensor]:
        """Returns the new features of the destination nodes."""
        edge_index = _coalesced(edge_index)
        of_src, of_dst = self._checked(x)
        x_src = self._transform(of_src, 0)
        x_dst = x_src if of_dst is of_src and self.lin is not None else None
        edges, edge_attr, edge_weight, size = self._edges(edge_index, edge_attr, edge_weight, size)
        fuses = self._fuses(edges, edge_attr, edge_weight)
        scores = self._scores_at_once(of_src, of_dst, x_src.dtype) if fuses else None
        if scores is None:
            x_dst = self._transform(of_dst, 1) if x_dst is None and of_dst is not None else x_dst  # fused, nothing else reads it
            score_dst = None if x_dst is None else self._score(x_dst, self.score_dst)
            scores = self._score(x_src, self.score_src) + self.score_bias, score_dst
        if fuses:
            out, alpha = self._fused(x_src, scores, edges, size)
        else:
            edges = edges.long() if edges.dtype == torch.int32 else edges  # which the sums over edges take
            # edge_updater_type: (alpha: OptPairTensor, edge_attr: OptTensor, edge_weight: OptTensor)
            alpha = self.edge_updater(edges, alpha=scores, edge_attr=edge_attr, edge_weight=edge_weight, size=size)
            # propagate_type: (x: OptPairTensor, alpha: Tensor)
            out = self.propagate(edges, x=(x_src, x_dst), alpha=alpha, size=size).to(x_src.dtype)
        out = self._activated(out)
        if not return_attention_weights:
            return out
        if isinstance(edge_index, SparseTensor):
            return out, edge_index.set_value(alpha, layout="coo")
        return out, (set_sparse_value(edge_index, alpha) if is_torch_sparse_tensor(edge_index) else edge_index, alpha)

    def _activated(self, out: Tensor) -> Tensor:
        """The result (N_t, H C_out) or (N_t, C_out) from the sums of messages."""
        if out.dim() == 3:  # from the fused form, or from an overridden `message`
            out = rearrange(out, "n heads c -> n (heads c)") if self.concat else out.mean(1)
        elif self.heads > 1 and not self.concat:
            out = reduce(out, "n (bases heads c) -> n (bases c)", "mean", heads=self.heads, c=self.out_channels)
        if self.bias is not None:
            out = out + self.bias
        return _ACTIVATIONS[self.activation](out)

    def edge_update(
        self,
        alpha_j: Tensor,
        alpha_i: OptTensor,
        edge_attr: OptTensor,
        edge_weight: OptTensor,
        index: Tensor,
        dim_size: int,
    ) -> Tensor:
        """Computes the coefficients of the edges, (E, H), from the scores of their ends."""
        score = alpha_j if alpha_i is None else alpha_j + alpha_i
        if edge_attr is not None and self.lin_edge is not None:
            score = score + self._score(self._by_head(self.lin_edge(edge_attr)), self.score_edge)
        score = F.gelu(score)
        if edge_weight is None:
            alpha = segment_softmax(score, index, dim_size)
        else:
            weight = edge_weight.view(-1, 1)
            # Edges of weight 0 do not count for the maximum: a large score there would make all other terms underflow.
            alpha = weight * segment_softmax(score.masked_fill(weight == 0, -torch.inf), index, dim_size)
            total = segment_sum(alpha, index, dim_size)
            alpha = alpha / total.masked_fill(total == 0, 1).index_select(0, index)
        return F.dropout(alpha, self.dropout, self.training)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        """Makes the message of each edge, (E, H C), with the heads side by side; (E, H, C) while an explainer looks at several heads."""
        if self.heads == 1:
            return alpha * x_j
        messages = alpha.unsqueeze(-1) * x_j
        if self.explain:
            return messages  # `GraphMaskExplainer` reads heads, `to_hetero_with_bases` a matrix
        return rearrange(messages, "e heads c -> e (heads c)")

    def _checked(self, x: Tensor | OptPairTensor) -> tuple[Tensor, OptTensor]:
        """h of sources and destinations."""
        if isinstance(x, Tensor):
            return self._check_width(x, 0, "x"), self._check_width(x, 1, "x")
        if self.flow == "target_to_source":  # PyG reads such a pair by role, but sizes the result by row
            raise ValueError('x: expected one tensor with flow="target_to_source", got a pair; turn edge_index and the pair round instead')
        return self._check_width(x[0], 0, "x[0]"), None if x[1] is None else self._check_width(x[1], 1, "x[1]")

    def _check_width(self, x: OptTensor, role: int, name: str) -> Tensor:
        width = self.in_channels if isinstance(self.in_channels, int) else self.in_channels[role]
        if not isinstance(x, Tensor) or x.dim() != 2 or (width != -1 and width != x.size(1)):  # `in` is False of a symbolic size
            raise ValueError(f"{name}: expected (N, {'C' if width == -1 else width}), got {tuple(x.shape) if isinstance(x, Tensor) else x}")
        check_dtype(x, weight_dtype(self, "lin" if self.lin is not None else ("lin_src", "lin_dst")[role]), name)
        return x

    def _transform(self, x: Tensor, role: int) -> Tensor:
        return self._by_head(cast(nn.Module, self.lin if self.lin is not None else (self.lin_src, self.lin_dst)[role])(x))

    def _by_head(self, x: Tensor) -> Tensor:
        return x if self.heads == 1 else rearrange(x, "n (heads c) -> n heads c", heads=self.heads)

    def _score(self, x: Tensor, score: Tensor) -> Tensor:
        return (x * score).sum(-1, keepdim=self.heads == 1)  # (N, H)

    def _scores_at_once(self, of_src: Tensor, of_dst: OptTensor, dtype: torch.dtype) -> OptPairTensor | None:
        """The scores q^T (W h) of sources and destinations as (q^T W) h, which needs nothing of the size of W h, forward or backward.

        None where calling a linear layer may do more than multiply by its weights, or where autocast has it round: `dtype` is that of W h.
        """
        linears = cast(list[nn.Linear], [self.lin] * 2 if self.lin is not None else [self.lin_src, self.lin_dst])
        for linear in linears:
            if type(linear) is not nn.Linear or linear.bias is not None or linear.weight.dtype != dtype or is_watched(linear):
                return None
        weights = [linear.weight.view(self.heads, self.out_channels, -1) for linear in linears]
        if of_dst is of_src and self.lin is not None:
            halves = torch.stack([self.score_src, self.score_dst], 1) @ weights[0]  # (H, 2, C_in)
            score_src, score_dst = F.linear(of_src, halves.flatten(0, 1)).unflatten(1, (self.heads, 2)).unbind(2)
            return score_src + self.score_bias, score_dst
        rows = [(q.unsqueeze(1) @ weight).squeeze(1) for q, weight in zip((self.score_src, self.score_dst), weights, strict=True)]
        return F.linear(of_src, rows[0]) + self.score_bias, None if of_dst is None else F.linear(of_dst, rows[1])

    def _edges(
        self, edge_index: Adj, edge_attr: OptTensor, edge_weight: OptTensor, size: Size
    ) -> tuple[Tensor, OptTensor, OptTensor, Size]:
        """The edges as a list, their features, weights and sizes; the values of a sparse matrix are weights, or features if wider."""
        if is_sparse(edge_index):
            of_matrix = self._check_input(edge_index, None)
            size = (of_matrix[0], of_matrix[1])
            if isinstance(edge_index, SparseTensor):
                row, column, value = edge_index.coo()
                edge_index = torch.stack([column, row])
            elif edge_index.layout == torch.sparse_coo:
                edge_index, value = edge_index.indices().flip(0), edge_index.values()
            else:
                edge_index, value = to_edge_index(edge_index)
                edge_index = edge_index.flip(0)
            if value is not None and value.dim() == 1 and edge_weight is None:
                edge_weight = value
            elif value is not None and value.dim() > 1 and edge_attr is None:
                edge_attr = value
        else:
            self._check_input(edge_index, size)
        if edge_attr is not None:
            if self.edge_dim is None:
                raise ValueError(f"edge_attr: expected None, since edge_dim is None, got {tuple(edge_attr.shape)}")
            edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
        if edge_weight is not None:
            if edge_weight.numel() != edge_index.size(1):
                raise ValueError(f"edge_weight: expected ({edge_index.size(1)},), got {tuple(edge_weight.shape)}")
            if edge_weight.device.type == "cpu" and not is_traced() and not is_transformed() and bool((edge_weight < 0).any()):
                raise ValueError(f"edge_weight: expected at least 0, got {edge_weight.min().item()}")
        return edge_index, edge_attr, edge_weight, size

    def _fuses(self, edge_index: Tensor, edge_attr: OptTensor, edge_weight: OptTensor) -> bool:
        """Whether the fused form may replace single messages, because nothing reads them, and gains, because there are enough."""
        size, plain = edge_index.size(1) * self.heads, edge_attr is None and edge_weight is None
        if not self.fuse or is_traced() or is_transformed() or not plain or size < min(_LARGE, _LARGE_IN_CPP):
            return False  # before the next question, since a small graph must not wait for the compiler
        in_cpp = edge_index.is_cpu and library.hold() is None and library.refuse() is None
        return size >= (_LARGE_IN_CPP if in_cpp else _LARGE) and not (self.dropout and self.training) and self._passes_unseen()

    def _passes_unseen(self) -> bool:
        """Whether nobody looks at messages, or has steps of their own."""
        if self.explain or any(getattr(self, f"_{step}_forward{kind}_hooks") for step in _HOOKS for kind in ("", "_pre")):
            return False
        if type(self.aggr_module) is not SumAggregation or is_watched(self.aggr_module):
            return False
        return not any(step in self.__dict__ or getattr(type(self), step) is not getattr(GraphFusionConv, step) for step in _STEPS)

    def _fused(self, x_src: Tensor, scores: OptPairTensor, edge_index: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """The result of `edge_updater` and `propagate` in one call."""
        score_src, score_dst = scores
        if self.flow == "target_to_source":
            edge_index = edge_index.flip(0)
        for i, part in enumerate((x_src, score_dst)):
            if size is not None and size[i] is not None and part is not None and part.size(0) != size[i]:
                raise ValueError(f"size[{i}]: expected {part.size(0)}, the number of nodes, got {size[i]}")
        if score_dst is None:
            nodes = x_src.size(0) if size is None or size[1] is None else size[1]
            score_dst = score_src.new_zeros(nodes, self.heads)
        out, alpha = edge_attention(x_src.unsqueeze(1) if self.heads == 1 else x_src, score_dst, score_src, edge_index)
        return (out.squeeze(1) if self.heads == 1 else out), alpha

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"


def _coalesced(edges: Adj) -> Adj:
    """A matrix of COO with each edge once, parallel ones summed: PyG would mark the caller's own as such, and cut off its gradient.

    Features of parallel edges stay apart.
    """
    if not is_torch_sparse_tensor(edges) or edges.layout != torch.sparse_coo or edges.is_coalesced():
        return edges
    if not edges.dense_dim():
        return edges.coalesce()
    return torch.sparse_coo_tensor(edges._indices(), edges._values(), edges.shape, is_coalesced=True)


def is_large(size: int) -> bool:
    """Whether so many edges times heads pay for the fused form by any backend."""
    return size >= _LARGE


def _linear(in_channels: int, out_channels: int, name: str) -> nn.Linear:
    if in_channels == -1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the warning that lazy modules are new
            return nn.LazyLinear(out_channels, bias=False)
    check_sizes(**{name: in_channels})
    return nn.Linear(in_channels, out_channels, bias=False)
