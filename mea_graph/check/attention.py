"""Cases of predictive, interval and edge attention: odd lengths, rows with gaps, empty samples, the sizes of the model and wide ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.check.cases import FLOAT16, HEADS, MU, WIDTH, Build, OpCase, draws, laid_out, mosi_lengths, op_case, shortly
from mea_graph.ops import IntervalEdges, edge_attention, interval_attention, predictive_attention, sort_edges

TEXT, AUDIO, MOSI = mosi_lengths(32, 50, 12), mosi_lengths(32, 375, 50), mosi_lengths(32)
SEQUENCES = ("query", "key", "value", "prior_query", "prior_key")
SIX, LARGE = "32 graphs of 6 nodes", "20k nodes, 400k edges"


def predictive(lengths: Sequence[int], layout: str = "packed", heads: int = HEADS, width: int = WIDTH, scale: float = 1.0) -> Build:
    """Predictive attention with a prior."""

    def build(dtype: torch.dtype, device: str) -> OpCase:
        pointers, draw = laid_out(lengths, layout, device), draws(device)
        inputs = {n: draw(pointers.num_rows, heads, width) for n in SEQUENCES}
        inputs |= {"weight": 0.1 * draw(heads, heads, 3, 3), "bias": draw(heads)}
        label = f"predictive attention, {layout} {shortly(lengths)}, {heads} x {width}" + (f", gradient x {scale}" if scale != 1 else "")
        held = "reference" if 3 * heads * width > 256 else None  # no kernel holds it
        return op_case(label, predictive_attention, inputs, {"pointers": pointers, "mu": MU}, dtype, scale, held)

    return build


def first_layer(lengths: Sequence[int], layout: str = "packed") -> Build:
    """Predictive attention without a prior."""

    def build(dtype: torch.dtype, device: str) -> OpCase:
        pointers, draw = laid_out(lengths, layout, device), draws(device)
        inputs = {n: draw(pointers.num_rows, HEADS, WIDTH) for n in SEQUENCES[:3]}
        return op_case(
            f"predictive attention, {layout} {shortly(lengths)}, no prior", predictive_attention, inputs, {"pointers": pointers}, dtype
        )

    return build


def predictive_window(lengths: Sequence[int], layout: str = "packed", steps: int = 3) -> Build:
    """Predictive attention in which each step hears those near it."""

    def build(dtype: torch.dtype, device: str) -> OpCase:
        pointers, draw = laid_out(lengths, layout, device), draws(device)
        inputs = {n: draw(pointers.num_rows, HEADS, WIDTH) for n in SEQUENCES}
        inputs |= {"weight": 0.1 * draw(HEADS, HEADS, 3, 3), "bias": draw(HEADS)}
        rest = {"pointers": pointers, "mu": MU, "edges": IntervalEdges.window(pointers, pointers, steps=steps)}
        label = f"predictive attention, {layout} {shortly(lengths)}, window {steps}"
        return op_case(label, predictive_attention, inputs, rest, dtype)

    return build


def interval(
    target: Sequence[int],
    sources: Sequence[Sequence[int]],
    layout: str = "packed",
    steps: int | None = None,
    heads: int = HEADS,
    width: int = WIDTH,
    listed: bool = False,
) -> Build:
    """Interval attention to all of the sample, or to a window of so many steps; `listed`, by an edge list of the same edges."""

    def build(dtype: torch.dtype, device: str) -> OpCase:
        at, draw = laid_out(target, layout, device), draws(device)
        layouts = [laid_out(each, layout, device) for each in sources]
        if steps is None:
            edges = IntervalEdges.complete(layouts, at)
        else:
            edges = IntervalEdges.join([IntervalEdges.window(each, at, steps=steps) for each in layouts])
        inputs = {"query": draw(at.num_rows, heads, width)}
        inputs |= {n: draw(edges.num_source_rows, heads, width) for n in ("key", "value")}
        heard = "complete" if steps is None else f"window {steps}"
        label = f"interval attention, {layout} {shortly(target)}, {len(sources)} sources, {heard}"
        label += (f", {heads} x {width}" if (heads, width) != (HEADS, WIDTH) else "") + (", an edge list" if listed else "")
        return op_case(label, interval_attention, inputs, {"edges": edges.edge_index() if listed else edges}, dtype)

    return build


def edge(edge_index: Callable[[str], tuple[Tensor, int]], name: str, heads: int, channels: int, is_sorted: bool = False) -> Build:
    """Edge attention, on request over a graph that `sort_edges` has sorted."""

    def build(dtype: torch.dtype, device: str) -> OpCase:
        (edges, nodes), draw = edge_index(device), draws(device)
        inputs = {"x": draw(nodes, heads, channels), "score_dst": draw(nodes, heads), "score_src": draw(nodes, heads)}
        held = "cpu" if dtype == FLOAT16 else None
        label = f"edge attention, {name}, {heads} x {channels}" + (", sorted" if is_sorted else "")
        given = sort_edges(edges, nodes, nodes) if is_sorted else edges
        return op_case(label, edge_attention, inputs, {"edge_index": given}, dtype, runs=held)

    return build


def edge_weights(edge_index: Callable[[str], tuple[Tensor, int]], name: str, heads: int) -> Build:
    """The second result of edge attention: the weight of each edge."""

    def weights(score_dst: Tensor, score_src: Tensor, x: Tensor, edge_index: Tensor, backend: str) -> Tensor:
        return edge_attention(x.to(score_src.dtype), score_dst, score_src, edge_index, backend)[1]

    def build(dtype: torch.dtype, device: str) -> OpCase:
        (edges, nodes), draw = edge_index(device), draws(device)
        inputs = {"score_dst": draw(nodes, heads), "score_src": draw(nodes, heads)}
        rest: dict[str, Any] = {"x": draw(nodes, heads, WIDTH), "edge_index": edges}
        return op_case(f"edge attention, {name}, {heads} x {WIDTH}, weights", weights, inputs, rest, dtype)

    return build


def named_graph(name: str) -> Callable[[str], tuple[Tensor, int]]:
    """Makes a graph of that name on a device."""
    return lambda device: graph(name, device)


def graph(name: str, device: str = "cpu") -> tuple[Tensor, int]:
    """A graph by name: its edges and its number of nodes."""
    if name == SIX:
        pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]].T  # (2, 30), every ordered pair
        return torch.cat([pairs + 6 * g for g in range(32)], 1).to(device), 192
    nodes, edges = {LARGE: (20_000, 400_000), "200k nodes, 4M edges": (200_000, 4_000_000)}[name]
    generator = torch.Generator().manual_seed(2)
    return torch.randint(nodes, (2, edges), generator=generator).to(device), nodes


def hub(device: str) -> tuple[Tensor, int]:
    """One node that all hear and that hears all, and nodes without any edge."""
    others = torch.arange(1, 1500)
    center = torch.zeros_like(others)
    return torch.stack([torch.cat([others, center]), torch.cat([center, others])]).to(device), 1510


def no_edge(device: str) -> tuple[Tensor, int]:
    """Nodes alone."""
    return torch.empty(2, 0, dtype=torch.int64, device=device), 5


# What `gpu_check` of the repository's benchmarks goes through, by its number.
PREDICTIVE: list[Build] = [
    *(predictive([n, n]) for n in (1, 3, 63, 64, 65, 127)),
    *(predictive([130, 1, 0, 64, 65], layout) for layout in ("packed", "padded", "scattered")),
    predictive([0, 0], "padded"),
    predictive([256, 256], scale=1e-2),
    predictive([500, 500]),
    predictive(MOSI),
    predictive([40, 7], heads=1, width=64),  # last: each of these has kernels of its own
    predictive([40, 7], heads=4, width=20),
    predictive([40, 7], heads=8, width=8),
    predictive([40, 7], heads=8, width=16),  # 3 K D = 384: no kernel holds it
    predictive([40, 7], heads=5, width=8),  # in float32 the narrow loops in TF32
]
INTERVAL: list[Build] = [
    *(interval([n, n], [[n, 5]]) for n in (1, 3, 63, 64, 65, 127)),
    *(interval([9, 0, 3, 70], [[5, 0, 2, 33], [0, 0, 1, 20]], layout) for layout in ("packed", "padded", "scattered")),
    interval([9, 0, 3, 170], [[5, 0, 2, 133], [0, 0, 1, 20]], steps=2),
    interval([2000], [[2000]], steps=5),
    interval(MOSI, [TEXT, AUDIO]),
]
EDGE: list[Build] = [
    *(edge(named_graph(SIX), SIX, h, c) for h, c in ((1, 64), (4, 64), (3, 5), (2, 33))),
    edge(hub, "a hub", 2, 64),
    edge(hub, "a hub", 1, 512),
    edge(no_edge, "no edge", 2, 8),
    *(edge(named_graph(LARGE), LARGE, h, 64) for h in (1, 4)),
]
