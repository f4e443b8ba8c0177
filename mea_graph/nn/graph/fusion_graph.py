"""The heterogeneous graph over the representations of a batch, section 7 of [MEA]."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.typing import EdgeType

from mea_graph.nn._sequences import check_keys
from mea_graph.nn._side_by_side import saves_launches
from mea_graph.ops import IntervalEdges, Pointers
from mea_graph.ops.eager import is_traced, is_transformed
from mea_graph.ops.pointers import put_rows

SPACES = ("exclusive", "agnostic")


class FusionGraph(HeteroData):
    """A `HeteroData` whose nodes belong to samples, also after several graphs become one batch.

    PyG's `batch` says which of the collated graphs a node comes from. `sample` says which sample; a graph may hold any number of them.
    Collating counts on from graph to graph, and `num_samples` is the number of all. `to_homogeneous` keeps both, the latter as `samples`.

    Shape:
        - sample, of a node type: :math:`(N,)`, int64 in :math:`[0, B)`

    >>> import torch
    >>> from torch_geometric.data import Batch
    >>> from mea_graph.nn import fusion_graph
    >>> two, three = (
    ...     fusion_graph({"a": torch.randn(n, 8), "b": torch.randn(n, 8)}, None)
    ...     for n in (2, 3)
    ... )
    >>> both = Batch.from_data_list([two, three])
    >>> both["a_exclusive"].sample.tolist(), both.num_samples
    ([0, 1, 2, 3, 4], 5)
    """

    def __getitem__(self, *args: Any) -> Any:
        key = args[0] if len(args) == 1 else args
        if isinstance(key, str) or (isinstance(key, tuple) and all(isinstance(name, str) for name in key)):
            return super().__getitem__(*args)
        asked = f"graph: expected the name of a node type or an edge type (source, relation, target), got {key!r}"[:200]
        raise TypeError(f"{asked}; cut samples off before `embed`; the `sample` of a node type says whose its nodes are")

    @property
    def num_samples(self) -> int:
        """The number of samples, those without a node included."""
        samples = self["samples"]
        return int(samples.sum()) if isinstance(samples, Tensor) else samples  # a tensor once it is collated

    def pointers(self, node_type: str) -> Pointers:
        """Returns where each sample's rows are among the steps of a node type."""
        return Pointers.from_batch(self[node_type].sample, self.num_samples)

    def interval_edges(self, edge_type: EdgeType) -> IntervalEdges:
        """Returns the edges of a type that stores `interval`, (N_t, 2), each target step's run among the source steps of its sample."""
        source, _, target = edge_type
        return IntervalEdges.from_relative(self[edge_type].interval, self.pointers(source), self.pointers(target))

    def expand(self) -> "FusionGraph":
        """Returns a copy whose interval edges are lists, `edge_index` (2, E), as other layers and drawings take them.

        >>> from mea_graph.nn import MEA
        >>> graph = MEA({"a": 3, "b": 3}, 1, 8, 8, 2).embed(
        ...     {"a": torch.randn(2, 3), "b": torch.randn(3, 3)}
        ... )
        >>> graph.expand()["a", "fine", "b"].edge_index.shape
        torch.Size([2, 6])
        """
        graph = copy.copy(self)
        for edge_type in self.edge_types:
            if "interval" in self[edge_type]:
                graph[edge_type].edge_index = self.interval_edges(edge_type).edge_index()
                del graph[edge_type].interval
        return graph

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.num_samples if key == "sample" else super().__inc__(key, value, *args, **kwargs)


def fusion_graph(
    exclusive: Mapping[str, Tensor] | None,
    agnostic: Mapping[str, Tensor] | None,
    present: Mapping[str, Tensor] | None = None,
    self_loops: bool = False,
    keep_absent: bool | None = False,
) -> FusionGraph:
    r"""Builds the two fusion graphs of every sample as one `FusionGraph`.

    Node types are `<modality>_exclusive` and `<modality>_agnostic`, with `x` and `sample` (the sample each node belongs to); edge types
    `(<s>_<space>, "to", <t>_<space>)` join every ordered pair of different modalities of the same sample, within a space (R7). A missing
    modality is a node that is not there. A node that would have no in-edge, because its sample has no other modality, gets a self loop.

    With `keep_absent` every sample has a node of each modality and all edges between them, and `present`, of nodes and of edges, says which
    of them count. Sizes then follow from shapes alone, without waiting for the device, as compiling, exporting and CUDA graphs
    need it. `DecoupledGraphFusion` takes both forms, with equal results.

    Args:
        exclusive, agnostic: Representations by modality; None leaves the space out.
        present: Which samples have the modality. None: all have all.
        self_loops: Whether every node also sends to itself.
        keep_absent: Whether what is absent is marked instead of left out; without effect where `present` is None. None: yes on
            a device, where leaving it out would read numbers from it, and while a graph is recorded.

    Shape:
        - exclusive[m], agnostic[m]: :math:`(B, d_m)`; present[m]: :math:`(B,)`, bool
        - `present` of a node type and of an edge type: :math:`(B,)`, bool

    Raises:
        TypeError: If a representation, or who is present, is no tensor.
        ValueError: If there is no space, or the arguments differ in their modalities or sizes.

    >>> import torch
    >>> h = {"text": torch.randn(2, 8), "audio": torch.randn(2, 8)}
    >>> graph = fusion_graph(
    ...     h,
    ...     h,
    ...     {"text": torch.tensor([True, True]), "audio": torch.tensor([True, False])},
    ... )
    >>> (
    ...     graph["audio_agnostic"].num_nodes,
    ...     graph["audio_agnostic", "to", "text_agnostic"].edge_index.tolist(),
    ... )
    (1, [[0], [0]])
    """
    return make_graph(exclusive, agnostic, present, self_loops, keep_absent).graph


class Made(NamedTuple):
    """A graph, and what is marked in it, where absent nodes are kept."""

    graph: FusionGraph
    absent: Tensor | None  # (M, B, 1)
    joined: Tensor | None  # (M, M, B), by source and target


def make_graph(
    exclusive: Mapping[str, Tensor] | None,
    agnostic: Mapping[str, Tensor] | None,
    present: Mapping[str, Tensor] | None,
    self_loops: bool,
    keep_absent: bool | None = None,
) -> Made:
    """See `fusion_graph`."""
    spaces = {name: h for name, h in zip(SPACES, (exclusive, agnostic), strict=True) if h is not None}
    samples = _check(spaces, present)
    modalities = list(next(iter(spaces.values())))
    like = next(iter(spaces.values()))[modalities[0]]
    there = None if present is None else torch.stack([present[m] for m in modalities])  # (M, B)
    if keep_absent is None:
        keep_absent = there is not None and (saves_launches(there) or is_traced())
    if there is None or keep_absent or (there.device.type == "cpu" and bool(there.all())):  # elsewhere it would wait for the device twice
        every = torch.arange(samples, device=like.device)
        rows = dict.fromkeys(modalities, every)
        edges = _all_edges(modalities, every, (there is not None and keep_absent) or self_loops)
        if there is not None and not keep_absent:  # the types of edges must not depend on the data
            edges, there = {pair: edges.get(pair, every.new_empty(2, 0)) for pair in _pairs(modalities)}, None
    else:
        rows = dict(zip(modalities, there.nonzero()[:, 1].split(_numbers(there.sum(1))), strict=True))
        edges = _edges_between(modalities, there, self_loops)
    joined = absent = None
    if there is not None and keep_absent:
        absent = ~there.unsqueeze(2)
        joined = _joined(there, self_loops)
        present_edges = dict(zip(_pairs(modalities), joined.flatten(0, 1).unbind(), strict=True))
    graph = FusionGraph()
    graph["samples"] = samples
    each = [h[m] for h in spaces.values() for m in modalities]
    if absent is not None:  # junk, NaN even, would reach the gradients of weights
        if not is_traced() and len({(x.shape, x.dtype) for x in each}) == 1:  # all at once
            each = list(torch.stack(each).unflatten(0, (len(spaces), -1)).masked_fill(absent, 0).flatten(0, 1).unbind())
        else:
            each = [x.masked_fill(absent[i % len(modalities)], 0) for i, x in enumerate(each)]
    for k, space in enumerate(spaces):
        h = dict(zip(modalities, each[k * len(modalities) :], strict=False))
        for m in modalities:
            # By name, since `graph[...]` takes longer; filled by key, since Dynamo cannot trace the setter of attributes.
            node = graph.get_node_store(f"{m}_{space}")
            if there is None:
                node["x"] = h[m]
            elif absent is not None:
                assert present is not None
                node["x"], node["present"] = h[m], present[m]
            else:
                node["x"] = h[m].index_select(0, rows[m])
            node["sample"] = rows[m]
        for (s, t), edge_index in edges.items():
            store = graph.get_edge_store(f"{s}_{space}", "to", f"{t}_{space}")
            store["edge_index"] = edge_index
            if joined is not None:
                store["present"] = present_edges[s, t]
    return Made(graph, absent, joined)


def by_sample(
    graph: FusionGraph, modalities: Sequence[str], spaces: Sequence[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The representations (B, d) by space and modality, 0 where a sample has none, and which samples have which modality, (B,)."""
    if not hasattr(graph, "num_samples"):
        raise TypeError(f"graph: expected what `embed` or `fusion_graph` makes, or num_samples beside it, got {type(graph).__name__}")
    samples = graph.num_samples
    found: dict[str, dict[str, Tensor]] = {}
    present: dict[str, Tensor] = {}
    for space in spaces:
        if missing := [f"{m}_{space}" for m in modalities if f"{m}_{space}" not in graph.node_types]:
            raise ValueError(f"graph: expected the node types {missing}, got {graph.node_types}")
        found[space] = {}
        for m in modalities:
            node = graph[f"{m}_{space}"]
            _check_samples(node, f"{m}_{space}", samples)
            x = node.x if "present" not in node else node.x.masked_fill(~node.present.unsqueeze(1), 0)
            found[space][m] = put_rows(x, node.sample, samples)
            there = torch.zeros(samples, dtype=torch.bool, device=node.x.device)
            # What is absent may be there all the same, marked so.
            here = there.index_fill(0, node.sample, True) if "present" not in node else there.scatter(0, node.sample, node.present)
            known = present.setdefault(m, here)
            if known is here:
                continue
            if here.device.type == "cpu" and not is_traced() and not is_transformed() and not torch.equal(known, here):
                which = f"{m}_{space} differs from {m}_{spaces[0]} in samples {(known ^ here).nonzero().flatten().tolist()}"
                raise ValueError(f"graph: expected nodes of the same samples in every space, got some of others: {which}"[:300])
            present[m] = known & here
    return found, present


def _check_samples(node: Any, name: str, samples: int) -> None:
    """Refuses nodes that do not say whose they are. Two of one sample would be one of them; looked at on a CPU alone, as numbers are."""
    x, sample = node.get("x"), node.get("sample")
    if not isinstance(x, Tensor) or not isinstance(sample, Tensor) or x.dim() != 2 or sample.shape != x.shape[:1]:
        got = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in (x, sample)]
        raise ValueError(f"graph: {name}: expected x (N, d) and sample (N,), the sample of each node, got {got}")
    if sample.device.type == "cpu" and not is_traced() and not is_transformed() and sample.numel():
        counts = sample.bincount(minlength=samples) if int(sample.min()) >= 0 else None
        if counts is None or counts.numel() > samples or int(counts.max()) > 1:
            raise ValueError(
                f"graph: {name}: expected one node for a sample at most, of samples in [0, {samples}), got {sample.tolist()}"[:300]
            )


def _check(spaces: Mapping[str, Mapping[str, Tensor]], present: Mapping[str, Tensor] | None) -> int:
    """Returns the number of samples."""
    if not spaces:
        raise ValueError("exclusive, agnostic: expected at least one of them, got None twice")
    first = next(iter(spaces.values()))
    modalities = tuple(first)
    given = {**spaces, **({} if present is None else {"present": present})}
    for name, h in given.items():
        check_keys(h, modalities, name)
        if not all(isinstance(h[m], Tensor) for m in modalities):
            raise TypeError(f"{name}: expected tensors, got {[type(h[m]).__name__ for m in modalities]}")
    samples = first[modalities[0]].size(0)
    for name, h in given.items():
        if any(h[m].size(0) != samples for m in modalities):
            raise ValueError(f"{name}: expected {samples} samples of each modality, got {[h[m].size(0) for m in modalities]}")
        if name == "present":
            if any(h[m].dim() != 1 or h[m].dtype != torch.bool for m in modalities):
                raise ValueError(f"present: expected bool (B,), got {[(h[m].dtype, tuple(h[m].shape)) for m in modalities]}")
        elif any(h[m].dim() != 2 for m in modalities):
            raise ValueError(f"{name}: expected (B, d_m), got {[tuple(h[m].shape) for m in modalities]}")
    return samples


def _pairs(modalities: list[str]) -> list[tuple[str, str]]:
    return [(s, t) for s in modalities for t in modalities]


def _joined(there: Tensor, self_loops: bool) -> Tensor:
    """Which modalities of which samples are joined, (M, M, B)."""
    joined = there.unsqueeze(1) & there
    if self_loops:
        return joined
    different = ~torch.eye(there.size(0), dtype=torch.bool, device=there.device).unsqueeze(2)
    return joined & (different | (there.sum(0) == 1))  # a loop where it is the only modality of its sample


def _all_edges(modalities: list[str], every: Tensor, loops: bool) -> dict[tuple[str, str], Tensor]:
    """The edges from node b of each modality to node b of each other one, by (source, target)."""
    edge_index = torch.stack([every, every])
    return {(s, t): edge_index for s, t in _pairs(modalities) if s != t or loops or len(modalities) == 1}


def _edges_between(modalities: list[str], there: Tensor, self_loops: bool) -> dict[tuple[str, str], Tensor]:
    """Edges by (source, target) between the nodes that are there."""
    joined = _joined(there, self_loops)
    node = there.cumsum(1).sub_(1)  # a sample's row among the nodes of the type
    source, target, sample = joined.nonzero().unbind(1)
    edges = torch.stack([node[source, sample], node[target, sample]])
    return dict(zip(_pairs(modalities), edges.split(_numbers(joined.sum(2).flatten()), 1), strict=True))


def _numbers(x: Tensor) -> list[int]:
    return [int(n) for n in x] if is_transformed() else x.tolist()  # torch 2.9 has no list for `torch.func`
