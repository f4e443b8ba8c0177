"""Message passing in two graphs per sample, summed to one vector each, [MEA] Eq. 17-19."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset
from torch_geometric.typing import EdgeType, NodeType

from mea_graph.nn.fusion_graph import SPACES
from mea_graph.nn.graph_fusion_conv import GraphFusionConv
from mea_graph.ops import segment_sum


class FusedRepresentations(NamedTuple):
    """One vector per sample and space (None where the space is absent), and on request the transfer coefficients by edge type.

    >>> import torch
    >>> from mea_graph.nn import fusion_graph
    >>> graph = fusion_graph({"a": torch.randn(3, 8), "b": torch.randn(3, 8)}, None)
    >>> fused = DecoupledGraphFusion(8, spaces=["exclusive"])(graph.x_dict, graph.edge_index_dict, graph.batch_dict)
    >>> fused.exclusive.shape, fused.agnostic
    (torch.Size([3, 8]), None)
    """

    exclusive: Tensor | None  # (B, d_out)
    agnostic: Tensor | None  # (B, d_out)
    transfer: dict[EdgeType, Tensor]  # xi, (E, 1) by edge type


class DecoupledGraphFusion(nn.Module):
    r"""Fuses the representations of each space on a graph of its own ([MEA] Eq. 17-19).

    .. math:: h_{fin} = \sum_i \sigma\Big(\sum_{j \in N(i)} \xi_{ij} \, W h_j\Big)

    One `GraphFusionConv` for the exclusive and one for the agnostic graph: W is shared inside a graph, not between the two. Takes the graph
    that `fusion_graph` makes, or any heterogeneous graph whose node types end in `_exclusive` or `_agnostic`.

    Args:
        channels: Width d_h of the representations.
        out_channels: Width of the result; None means d_h.
        heads: Attention heads; the results of several are averaged. The paper has one.
        activation: As for `GraphFusionConv`.
        spaces: Which graphs to expect (Table V, "w/o exclusive", "w/o agnostic").

    Shape:
        - x_dict: by node type :math:`(N, d_h)`; edge_index_dict: by edge type :math:`(2, E)`; batch_dict: by node type :math:`(N,)`, int64
        - result: `FusedRepresentations`, :math:`(B, d_{out})` each; zeros for a sample without any node

    Raises:
        ValueError: A node type of another ending, an edge type between the spaces, or no node of an expected space.

    >>> import torch
    >>> from mea_graph.nn import fusion_graph
    >>> h = {m: torch.randn(5, 64) for m in ("text", "audio", "vision", "heart")}
    >>> graph = fusion_graph(h, h)
    >>> DecoupledGraphFusion(64)(graph.x_dict, graph.edge_index_dict, graph.batch_dict).agnostic.shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        heads: int = 1,
        activation: Literal["sigmoid", "relu", "none"] = "sigmoid",
        spaces: tuple[str, ...] | list[str] = SPACES,
    ) -> None:
        super().__init__()
        if not spaces or set(spaces) - set(SPACES):
            raise ValueError(f"spaces: expected some of {SPACES}, got {tuple(spaces)}")
        out_channels = channels if out_channels is None else out_channels
        self.convs = nn.ModuleDict({space: GraphFusionConv(channels, out_channels, heads, False, activation) for space in spaces})

    def reset_parameters(self) -> None:
        """Draws new weights."""
        reset(self.convs)

    def forward(
        self,
        x_dict: Mapping[NodeType, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
        batch_dict: Mapping[NodeType, Tensor],
        batch_size: int | None = None,
        return_attention_weights: bool = False,
    ) -> FusedRepresentations:
        """Returns one vector per sample and space; `batch_size` spares a look at the data (and is needed if last samples have no node)."""
        space_of = {name: name.rsplit("_", 1)[-1] for name in x_dict}
        for name, space in space_of.items():
            if space not in self.convs:
                raise ValueError(f"x_dict: expected node types ending in {['_' + s for s in self.convs]}, got {name!r}")
        if batch_size is None:
            batch_size = max((int(batch.max()) + 1 for batch in batch_dict.values() if batch.numel()), default=0)
        fused: dict[str, Tensor] = {}
        transfer: dict[EdgeType, Tensor] = {}
        for space, conv in self.convs.items():
            names = [name for name in x_dict if space_of[name] == space]
            if not names:
                raise ValueError(f"x_dict: expected node types ending in '_{space}', got {list(x_dict)}")
            start, nodes = {}, 0
            for name in names:
                start[name], nodes = nodes, nodes + x_dict[name].size(0)
            edges, types = [], []
            for edge_type, edge_index in edge_index_dict.items():
                if edge_type[0] in start and edge_type[2] in start:
                    edges.append(torch.stack([edge_index[0] + start[edge_type[0]], edge_index[1] + start[edge_type[2]]]))
                    types.append(edge_type)
                elif edge_type[0] in start or edge_type[2] in start:
                    raise ValueError(f"edge_index_dict: expected edges inside one space, got {edge_type}")
            x = torch.cat([x_dict[name] for name in names])
            edge_index = torch.cat(edges, 1) if edges else torch.empty(2, 0, dtype=torch.long, device=x.device)
            out = conv(x, edge_index, return_attention_weights=return_attention_weights)
            if return_attention_weights:
                out, (_, weights) = out
                transfer.update(zip(types, weights.split([e.size(1) for e in edges]), strict=True))
            fused[space] = segment_sum(out, torch.cat([batch_dict[name] for name in names]), batch_size)
        return FusedRepresentations(fused.get("exclusive"), fused.get("agnostic"), transfer)
