"""Message passing in one graph per sample and space, read out to one vector each, [MEA] Eq. 17-19."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import Aggregation, MaxAggregation, MeanAggregation, MinAggregation, SumAggregation
from torch_geometric.nn.dense import HeteroDictLinear
from torch_geometric.nn.inits import reset
from torch_geometric.nn.resolver import aggregation_resolver
from torch_geometric.typing import EdgeType, NodeType

from mea_graph.nn._sequences import apart, check_dtype, check_modalities, check_sizes, weight_dtype
from mea_graph.nn._side_by_side import is_watched
from mea_graph.nn.graph._at_once import pass_side_by_side
from mea_graph.nn.graph._by_type import ByType
from mea_graph.nn.graph.fusion_graph import SPACES
from mea_graph.nn.graph.graph_fusion_conv import GraphFusionConv
from mea_graph.ops.eager import is_traced
from mea_graph.option_types import plain_value

_ANY_ORDER = (SumAggregation, MeanAggregation, MaxAggregation, MinAggregation)  # others expect a sample's nodes in one run


class FusedRepresentations(NamedTuple):
    """One vector per sample by space (or, without a readout, the nodes by type), and on request the transfer coefficients by edge type.

    >>> import torch
    >>> from mea_graph.nn import fusion_graph
    >>> graph = fusion_graph({"a": torch.randn(3, 8), "b": torch.randn(3, 8)}, None)
    >>> fuse = DecoupledGraphFusion(8, spaces=["exclusive"])
    >>> fuse(
    ...     graph.x_dict, graph.edge_index_dict, graph.sample_dict, graph.num_samples
    ... ).x["exclusive"].shape
    torch.Size([3, 8])
    """

    x: dict[str, Tensor]  # (B, d_out) by space; (N, d_out) by node type where `aggr` is None
    transfer: dict[EdgeType, Tensor]  # xi, (E, heads) by edge type; 0 where an edge is absent


def _aggregation(aggr: str | Aggregation | None) -> Aggregation | None:
    if not isinstance(aggr, str):
        return aggr
    try:
        return aggregation_resolver(aggr)
    except (ValueError, TypeError) as error:
        raise ValueError(f"aggr: expected a torch_geometric.nn.Aggregation, the name of one, or None, got {aggr!r}") from error


class _Part(NamedTuple):
    """The edges of one type in the graph of a space."""

    edge_index: Tensor
    source: int  # the rows before those of the source and of the destination type
    target: int
    present: Tensor | None

    def equals(self, other: "_Part") -> bool:
        same_tensors = self.edge_index is other.edge_index and self.present is other.present
        return same_tensors and (self.source, self.target) == (other.source, other.target)


class _Graph(NamedTuple):
    """The graph of a space: its node and edge types, the edges of each type, and all edges between the stacked nodes."""

    names: list[NodeType]
    types: list[EdgeType]
    parts: list[_Part]
    rows: int
    edge_index: Tensor
    x: list[Tensor]  # the nodes of each type, and one more if edges are absent: these start and end there


class DecoupledGraphFusion(nn.Module):
    r"""Fuses the representations of each space on a graph of its own ([MEA] Eq. 17-19).

    .. math:: h_{fin} = \sum_i \sigma\Big(\sum_{j \in N(i)} \xi_{ij} \, W h_j\Big)

    Each space has a convolution in the `ModuleDict` `convs`; you can replace any of them. W is shared inside a space, not between spaces.
    The layer takes the graph that `fusion_graph` makes, or any heterogeneous graph: the nodes of a space are those whose type ends in
    `_<space>`. Other node types, and edges from or to them, are ignored.

    With `aggr=None` the nodes themselves are returned, so that layers stack:
    `last(first(x_dict, edge_index_dict).x, edge_index_dict, sample_dict)`.

    The explainers of PyG work on a module of yours that calls it with `x_dict` and `edge_index_dict`, with a mask for each edge type.

    Args:
        channels: Width d_h of the representations, -1 to take it from the first call; or a dict of widths by node type, each of which is
            brought to `out_channels` by a linear map first.
        out_channels: Width of the result; None means d_h.
        conv: The convolution: a class or function that takes two widths and returns a module `f(x, edge_index)`, such as `GATConv` or
            `partial(GraphFusionConv, heads=2, concat=False)`.
        aggr: The readout of a sample's nodes: an `Aggregation` of PyG, shared by the spaces, or its name; None returns the nodes. (PyG's
            LSTM and GRU also read padding: the result of a sample with fewer nodes than others depends on the others.)
        spaces: Which graphs to expect, by the endings of their node types (Table V, "w/o exclusive", "w/o agnostic").

    Shape:
        - x_dict: by node type :math:`(N, d_h)`; edge_index_dict: by edge type :math:`(2, E)`; sample_dict: by node type :math:`(N,)`, int64
        - present_dict: by node type :math:`(N,)` and by edge type :math:`(E,)`, bool; a type that it lacks is present as a whole
        - result: `FusedRepresentations`, :math:`(B, d_{out})` by space; a sample without any node has what `aggr` gives for an empty
          set, zeros for "sum"

    Raises:
        ValueError: If a width is wrong, an edge type joins two spaces, an expected space has no node type, or a readout gets no
            `sample_dict`.

    >>> import torch
    >>> from mea_graph.nn import fusion_graph
    >>> h = {m: torch.randn(5, 64) for m in ("text", "audio", "vision", "heart")}
    >>> graph = fusion_graph(h, h)
    >>> fused = DecoupledGraphFusion(64)(
    ...     graph.x_dict, graph.edge_index_dict, graph.sample_dict, graph.num_samples
    ... )
    >>> fused.x["agnostic"].shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        channels: int | Mapping[NodeType, int],
        out_channels: int | None = None,
        conv: Callable[[int, int], nn.Module] = GraphFusionConv,
        aggr: str | Aggregation | None = "sum",
        spaces: tuple[str, ...] | list[str] = SPACES,
    ) -> None:
        super().__init__()
        if isinstance(spaces, str) or not spaces:
            raise ValueError(f"spaces: expected a list of at least one name, got {spaces!r}")
        self.spaces = check_modalities(spaces)
        channels = plain_value(channels)
        if out_channels is None:
            if not isinstance(channels, int) or channels == -1:
                raise ValueError(f"out_channels: expected a width, since channels is {channels!r}, got None")
            out_channels = channels
        check_sizes(out_channels=out_channels)
        self.channels, self.out_channels = channels, out_channels
        self.align = None
        if not isinstance(channels, int):
            self.align = HeteroDictLinear(dict(channels), out_channels, bias=False)
            channels = out_channels
        self.convs = nn.ModuleDict({space: conv(channels, out_channels) for space in self.spaces})
        self.aggr = _aggregation(aggr)
        self.by_type = ByType()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for part in self.children():
            reset(part)

    def forward(
        self,
        x_dict: Mapping[NodeType, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
        sample_dict: Mapping[NodeType, Tensor] | None = None,
        num_samples: int | None = None,
        present_dict: Mapping[Any, Tensor] | None = None,
        return_attention_weights: bool = False,
    ) -> FusedRepresentations:
        """Fuses a graph. Without `num_samples` the number is read from the data, which miss the last samples if these have no node."""
        present = {} if present_dict is None else present_dict
        edge_index_dict = {t: _list_of(edges, t) for t, edges in edge_index_dict.items()}
        space_of = self._spaces_of(x_dict, edge_index_dict)
        nodes = {name: x_dict[name] for name in space_of}
        self._check_features(nodes, space_of)
        for name in [name for name in nodes if name in present]:  # what absent nodes hold, NaN even, would reach the gradients of weights
            _check_size(present[name], nodes[name].size(0), "present_dict", name)
            nodes[name] = nodes[name].masked_fill(~present[name].unsqueeze(1), 0)
        if self.align is not None:
            nodes = self.align(nodes)
        if self.aggr is not None:
            if sample_dict is None or set(space_of) - set(sample_dict):
                raise ValueError(f"sample_dict: expected the samples of {list(space_of)}, got {sample_dict and list(sample_dict)}")
            for name, x in nodes.items():
                _check_size(sample_dict[name], x.size(0), "sample_dict", name)
            if num_samples is None:
                num_samples = max((int(sample_dict[n].max()) + 1 for n in space_of if sample_dict[n].numel()), default=0)
        result: dict[str, Tensor] = {}
        transfer: dict[EdgeType, Tensor] = {}
        graphs = self._graphs(space_of, nodes, edge_index_dict, present)
        joined = self._side_by_side(list(graphs.values()), return_attention_weights)
        index: tuple[list[Tensor | None], Tensor] | None = None
        for i, (space, graph) in enumerate(graphs.items()):
            out = joined[i] if joined else self._alone(self.convs[space], graph, edge_index_dict, return_attention_weights, transfer)
            if self.aggr is None or is_watched(self.by_type):
                sizes = [nodes[name].size(0) for name in graph.names]
                by_type = self.by_type(dict(zip(graph.names, out.split(sizes), strict=True)))
            if self.aggr is None:
                result.update(apart(by_type, None))
                continue
            assert sample_dict is not None
            assert num_samples is not None
            made_of = [of.get(name) for of in (sample_dict, present) for name in graph.names]
            if index is None or is_traced() or not _same_tensors(made_of, index[0]):  # the spaces mostly have the same samples
                index = made_of, self._samples(graph.names, sample_dict, num_samples, present)
            result[space] = self._read_out(out, index[1], num_samples, any(name in present for name in graph.names))
        return FusedRepresentations(result, transfer)

    def _spaces_of(self, x_dict: Mapping[NodeType, Tensor], edge_index_dict: Mapping[EdgeType, Tensor]) -> dict[NodeType, str]:
        """The space of each node type that has one."""
        space_of = {}
        for name in x_dict:
            fitting = [space for space in self.spaces if name.endswith(f"_{space}")]
            if fitting:
                space_of[name] = max(fitting, key=len)
        for space in self.spaces:
            if space not in space_of.values():
                remedy = f"; spaces={list(dict.fromkeys(space_of.values()))} leaves out the others" if space_of else ""
                raise ValueError(f"x_dict: expected node types ending in '_{space}', got {list(x_dict)}{remedy}")
        for edge_type in edge_index_dict:
            ends = {space_of.get(edge_type[0]), space_of.get(edge_type[2])} - {None}
            if len(ends) == 2:
                raise ValueError(f"edge_index_dict: expected edges inside one space, got {edge_type}")
        return space_of

    def _check_features(self, nodes: Mapping[NodeType, Tensor], space_of: Mapping[NodeType, str]) -> None:
        if isinstance(self.channels, int):
            width = self.channels if self.channels != -1 else next(iter(nodes.values())).size(-1)
            expected = dict.fromkeys(nodes, width)
        else:
            expected = {name: nodes[name].size(-1) if width == -1 else width for name, width in self.channels.items() if name in nodes}
        for name, x in nodes.items():
            if name not in expected:
                raise ValueError(f"x_dict: expected the node types {list(expected)} that channels names, got {name!r}")
            if x.dim() != 2 or x.size(1) != expected[name]:
                raise ValueError(f"x_dict[{name!r}]: expected (N, {expected[name]}), got {tuple(x.shape)}")
            if self.align is None:
                check_dtype(x, weight_dtype(self.convs[space_of[name]], "lin"), f"x_dict[{name!r}]")

    def _graphs(
        self,
        space_of: Mapping[NodeType, str],
        nodes: Mapping[NodeType, Tensor],
        edge_index_dict: Mapping[EdgeType, Tensor],
        present: Mapping[Any, Tensor],
    ) -> dict[str, _Graph]:
        graphs: dict[str, _Graph] = {}
        last: _Graph | None = None
        nothing: Tensor | None = None  # a row of zeros, where edges of absent nodes lead
        for space in self.convs:
            names = [name for name, own in space_of.items() if own == space]
            types = [t for t in edge_index_dict if t[0] in names and t[2] in names]
            start, rows = {}, 0
            for name in names:
                start[name], rows = rows, rows + nodes[name].size(0)
            parts = [_Part(edge_index_dict[t], start[t[0]], start[t[2]], present.get(t)) for t in types]
            x = [nodes[name] for name in names]
            if any(part.present is not None for part in parts):
                if nothing is None or (nothing.size(1), nothing.dtype) != (x[0].size(1), x[0].dtype):
                    nothing = x[0].new_zeros(1, x[0].size(1))
                x.append(nothing)
            if last is not None and not is_traced() and _same(parts, rows, last.parts, last.rows):  # as spaces mostly have
                edge_index = last.edge_index
            else:
                edge_index = self._homogeneous(parts, rows, x[0].device)
            graphs[space] = last = _Graph(names, types, parts, rows, edge_index, x)
        return graphs

    def _side_by_side(self, graphs: list[_Graph], return_attention_weights: bool) -> tuple[Tensor, ...] | None:
        """The nodes of each space, by one pass, where the spaces have the same edges and nobody wants to see these; else None."""
        first = graphs[0]
        if len(graphs) == 1 or any(graph.edge_index is not first.edge_index for graph in graphs):
            return None
        if return_attention_weights or self.by_type.asks_attention() or len(self.by_type.masks):
            return None
        out = pass_side_by_side(list(self.convs.values()), [x for graph in graphs for x in graph.x], first.edge_index)
        return None if out is None else out[:, : first.rows].unbind()

    def _alone(
        self,
        conv: nn.Module,
        graph: _Graph,
        edge_index_dict: Mapping[EdgeType, Tensor],
        return_attention_weights: bool,
        transfer: dict[EdgeType, Tensor],
    ) -> Tensor:
        """The nodes of a space; its coefficients go to `transfer`, if they are wanted."""
        weighed = return_attention_weights or (self.by_type.asks_attention() and _has_weights(conv))
        masks = self.by_type.masks
        with self.by_type.masked(conv, edge_index_dict, graph.types, graph.edge_index) if len(masks) else nullcontext():
            out = self._pass(conv, torch.cat(graph.x), graph.edge_index, weighed)
        if weighed:
            out, weights = out
            by_edge = self._weights_by_type(graph.types, graph.parts, weights)
            self.by_type.show_attention(by_edge)
            if return_attention_weights:
                transfer.update(by_edge)
        return out[: graph.rows]

    @staticmethod
    def _homogeneous(parts: list[_Part], rows: int, device: torch.device) -> Tensor:
        """The edges between the rows of a space, type by type; absent ones start and end at one more row."""
        if not parts:
            return torch.empty(2, 0, dtype=torch.long, device=device)
        edges = None if is_traced() else _between_all(parts, rows, device)
        if edges is None:
            edges = DecoupledGraphFusion._one_after_the_other(parts)
        if all(part.present is None for part in parts):
            return edges
        there = [p.edge_index.new_ones(p.edge_index.size(1), dtype=torch.bool) if p.present is None else p.present for p in parts]
        return torch.where(torch.cat(there), edges, rows)

    @staticmethod
    def _one_after_the_other(parts: list[_Part]) -> Tensor:
        ends: list[list[Tensor]] = [[], []]
        moved: dict[tuple[int, int, int], Tensor] = {}  # the types of `fusion_graph` mostly share one list of edges
        for part in parts:
            for end, first in enumerate((part.source, part.target)):
                if is_traced():  # sizes are symbols, and a compiler sees by itself what is the same
                    ends[end].append(part.edge_index[end] + first)
                    continue
                key = id(part.edge_index), end, first
                if key not in moved:
                    moved[key] = part.edge_index[end] + first if first else part.edge_index[end]
                ends[end].append(moved[key])
        return torch.stack([torch.cat(ends[0]), torch.cat(ends[1])])

    @staticmethod
    def _pass(conv: nn.Module, x: Tensor, edge_index: Tensor, return_attention_weights: bool) -> Any:
        if not return_attention_weights:
            return conv(x, edge_index)
        if not _has_weights(conv):
            raise ValueError(f"return_attention_weights: expected False, since {type(conv).__name__} has no attention weights")
        out, (edges, weights) = conv(x, edge_index, return_attention_weights=True)
        if edges.shape != edge_index.shape:
            name = type(conv).__name__
            raise ValueError(f"return_attention_weights: expected weights of {edge_index.size(1)} edges, got {edges.size(1)} of {name}")
        return out, weights

    @staticmethod
    def _weights_by_type(types: list[EdgeType], parts: list[_Part], weights: Tensor) -> dict[EdgeType, Tensor]:
        own = weights.split([part.edge_index.size(1) for part in parts])
        return {
            t: xi if part.present is None else xi.masked_fill(~part.present.unsqueeze(1), 0)
            for t, part, xi in zip(types, parts, own, strict=True)
        }

    @staticmethod
    def _samples(names: list[NodeType], sample_dict: Mapping[NodeType, Tensor], num_samples: int, present: Mapping[Any, Tensor]) -> Tensor:
        """The sample of each node; absent nodes belong to one more sample, which is cut off."""
        samples = torch.cat([sample_dict[name] for name in names])
        if not any(name in present for name in names):
            return samples
        there = [present[name] if name in present else torch.ones_like(sample_dict[name], dtype=torch.bool) for name in names]
        return torch.where(torch.cat(there), samples, num_samples)

    def _read_out(self, x: Tensor, sample: Tensor, num_samples: int, absent: bool) -> Tensor:
        if not isinstance(self.aggr, _ANY_ORDER):
            sample, order = torch.sort(sample, stable=True)
            x = x.index_select(0, order)
        assert self.aggr is not None
        out = self.aggr(x, sample, dim_size=num_samples + int(absent))
        return out[:num_samples] if absent else out


def _list_of(edges: Any, edge_type: EdgeType) -> Tensor:
    """The edges as plain numbers; PyG's own kind of tensor stays such in sums."""
    edges = edges.as_tensor() if isinstance(edges, EdgeIndex) else edges
    if not isinstance(edges, Tensor) or edges.layout != torch.strided or edges.dim() != 2 or edges.size(0) != 2:
        got = f"{edges.layout} {tuple(edges.shape)}" if isinstance(edges, Tensor) else type(edges).__name__
        raise ValueError(f"edge_index_dict[{edge_type}]: expected an edge_index (2, E), got {got}")
    return edges


def _check_size(of_nodes: Tensor, nodes: int, argument: str, node_type: NodeType) -> None:
    if of_nodes.dim() != 1 or of_nodes.size(0) != nodes:
        raise ValueError(f"{argument}[{node_type!r}]: expected ({nodes},), one for each node, got {tuple(of_nodes.shape)}")


def _between_all(parts: list[_Part], rows: int, device: torch.device) -> Tensor | None:
    """The edges, if they are the same list between all node types, of one size, as `fusion_graph` makes them: in three calls; else None."""
    types = math.isqrt(len(parts))
    size, rest = divmod(rows, types)
    if rest or not size or any(part.edge_index is not parts[0].edge_index for part in parts):
        return None
    firsts = range(0, rows, size)
    if [(part.source, part.target) for part in parts] != [(s, t) for s in firsts for t in firsts]:
        return None
    first = torch.arange(0, rows, size, device=device)
    ends = torch.stack([first.unsqueeze(1).expand(-1, types), first.expand(types, -1)]).view(2, -1, 1)
    return (ends + parts[0].edge_index.unsqueeze(1)).flatten(1)


def _same(parts: list[_Part], rows: int, others: list[_Part], other_rows: int) -> bool:
    return rows == other_rows and len(parts) == len(others) and all(a.equals(b) for a, b in zip(parts, others, strict=True))


def _same_tensors(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _has_weights(conv: nn.Module) -> bool:
    return "return_attention_weights" in inspect.signature(conv.forward).parameters
