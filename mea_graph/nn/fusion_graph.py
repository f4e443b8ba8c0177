"""The heterogeneous graph over the representations of a batch, section 7 of [MEA]."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mea_graph.nn._sequences import check_keys

SPACES = ("exclusive", "agnostic")


def fusion_graph(
    exclusive: Mapping[str, Tensor] | None,
    agnostic: Mapping[str, Tensor] | None,
    present: Mapping[str, Tensor] | None = None,
    self_loops: bool = False,
) -> HeteroData:
    r"""Builds the two fusion graphs of every sample as one `HeteroData`.

    Node types are `<modality>_exclusive` and `<modality>_agnostic`, with `x` and `batch` (the sample each node belongs to); edge types
    `(<s>_<space>, "to", <t>_<space>)` join every ordered pair of different modalities of the same sample, within a space (R7). A missing
    modality is a node that is not there. A node that would have no in-edge, because its sample has no other modality, gets a self loop.

    Args:
        exclusive, agnostic: Representations by modality; None leaves the space out.
        present: Which samples have the modality. None: all have all.
        self_loops: Whether every node also sends to itself.

    Shape:
        - exclusive[m], agnostic[m]: :math:`(B, d_h)`; present[m]: :math:`(B,)`, bool

    Raises:
        ValueError: No space, modalities that differ between the arguments, or widths and sizes that do not agree.

    >>> import torch
    >>> h = {"text": torch.randn(2, 8), "audio": torch.randn(2, 8)}
    >>> graph = fusion_graph(h, h, {"text": torch.tensor([True, True]), "audio": torch.tensor([True, False])})
    >>> graph["audio_agnostic"].num_nodes, graph["audio_agnostic", "to", "text_agnostic"].edge_index.tolist()
    (1, [[0], [0]])
    """
    spaces = {name: h for name, h in zip(SPACES, (exclusive, agnostic), strict=True) if h is not None}
    if not spaces:
        raise ValueError("exclusive, agnostic: expected at least one of them, got None twice")
    first = next(iter(spaces.values()))
    modalities = list(first)
    for name, h in {**spaces, **({} if present is None else {"present": present})}.items():
        check_keys(h, tuple(modalities), name)
        if any(h[m].size(0) != first[modalities[0]].size(0) for m in modalities):
            raise ValueError(
                f"{name}: expected {first[modalities[0]].size(0)} samples of each modality, got {[h[m].size(0) for m in modalities]}"
            )
        if name == "present":
            if any(h[m].dim() != 1 or h[m].dtype != torch.bool for m in modalities):
                raise ValueError(f"present: expected bool (B,), got {[(h[m].dtype, tuple(h[m].shape)) for m in modalities]}")
        elif any(h[m].dim() != 2 or h[m].size(1) != h[modalities[0]].size(-1) for m in modalities):
            raise ValueError(f"{name}: expected (B, d_h) with one d_h, got {[tuple(h[m].shape) for m in modalities]}")
    graph = HeteroData()
    edges = _edges(modalities, first[modalities[0]], present, self_loops)
    for space, h in spaces.items():
        for m in modalities:
            samples = torch.arange(h[m].size(0), device=h[m].device)
            keep = slice(None) if present is None else present[m]
            graph[f"{m}_{space}"].x = h[m][keep]
            graph[f"{m}_{space}"].batch = samples[keep]
        for (s, t), edge_index in edges.items():
            graph[f"{s}_{space}", "to", f"{t}_{space}"]["edge_index"] = edge_index  # Dynamo cannot trace the attribute's setter
    return graph


def _edges(modalities: list[str], like: Tensor, present: Mapping[str, Tensor] | None, self_loops: bool) -> dict[tuple[str, str], Tensor]:
    """Edges by (source, target) modality; the same for both spaces."""
    every = torch.ones(like.size(0), dtype=torch.bool, device=like.device)
    there = dict.fromkeys(modalities, every) if present is None else present
    node = {m: there[m].cumsum(0) - 1 for m in modalities}  # a sample's row among the nodes of the type
    alone = torch.stack([there[m] for m in modalities]).sum(0) == 1
    edges = {}
    for s in modalities:
        for t in modalities:
            if s == t and present is None and not self_loops and len(modalities) > 1:
                continue
            joined = there[s] & there[t] & (alone | self_loops if s == t else every)
            if present is not None:
                edges[s, t] = torch.stack([node[s][joined], node[t][joined]])
            else:
                edges[s, t] = torch.stack([node[s], node[t]])
    return edges
