"""The inputs and the contenders: each case pairs an op with what a user would run instead, and with its truth in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Pass, error
from mea_graph.nn import GraphFusionConv
from mea_graph.ops import cross_modal_attention, edge_attention, predictive_attention

HEADS, WIDTH, MU = 8, 5, 0.25  # d = 40, Table I


class Case(NamedTuple):
    """Contenders over the same input. Those in `checked` must return `truth`; the others compute something else of the same size.

    What is compared with the truth is what a contender returns, unless `seen` has something else for it (the gradients of a whole model
    on a few samples, say). `about` goes into the results.
    """

    name: str
    contenders: dict[str, Pass]
    checked: list[str]
    truth: Pass
    dtype: torch.dtype
    seen: dict[str, Pass] = {}
    about: dict[str, Any] = {}

    def errors(self) -> dict[str, float]:
        """The relative error of every checked contender."""
        truth = self.truth()
        return {name: error(self.seen.get(name, self.contenders[name])(), truth) for name in self.checked}


def step(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor | None) -> Pass:
    """A forward and backward pass that returns the output and the gradients of `inputs`; without `grad` the forward pass alone."""

    def run() -> list[Tensor]:
        if grad is None:
            with torch.no_grad():
                return [function(*inputs)]
        out = function(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

    return run


def mosi_lengths(batch: int, longest: int = 500, mean: int = 60) -> list[int]:
    """Lengths like those of MOSI's vision: many short clips, one as long as the padding."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(batch - 1).log_normal_(0.0, 0.6, generator=generator)
    drawn = (drawn / drawn.sum() * (mean * batch - longest)).round().clamp(3, longest).long()
    return [longest, *drawn.tolist()]


def prefix_mask(lengths: Sequence[int], longest: int, device: str) -> Tensor:
    return torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]


def predictive(
    batch: int,
    length: int,
    lengths: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compiled: bool = False,
) -> Case:
    """Predictive attention beside the eager formula (maps stored, `conv2d`) and, on request, what `torch.compile` makes of that."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(batch, HEADS, length, WIDTH) for _ in range(5)]
    inputs += [(0.1 * draw(HEADS, HEADS, 3, 3)).detach().requires_grad_(), draw(HEADS)]
    mask = None if lengths is None else prefix_mask(lengths, length, device)
    grad = torch.randn(batch, HEADS, length, WIDTH, generator=generator).to(device, dtype)
    if mask is not None:  # what the layers do: nothing flows back from padding
        grad = grad.masked_fill(~mask[:, None, :, None], 0)

    def attend(backend: str) -> Callable[..., Tensor]:
        def run(query: Tensor, key: Tensor, value: Tensor, prior_query: Tensor, prior_key: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            out = predictive_attention(query, key, value, prior_query, prior_key, weight, bias, MU, mask, backend=backend)
            return out if mask is None else out.masked_fill(~mask[:, None, :, None], 0)

        return run

    contenders = {"mea_graph": step(attend("auto"), inputs, grad), "eager formula": step(attend("reference"), inputs, grad)}
    if compiled:
        contenders["torch.compile of the formula"] = step(torch.compile(attend("reference")), inputs, grad)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    kind = "" if lengths is None else f", true lengths (mean {sum(lengths) / batch:.0f})"
    name = f"predictive attention, B {batch}, K {HEADS}, T {length}, d {HEADS * WIDTH}{kind}"
    about = {"lengths": [length] * batch if lengths is None else list(lengths), "longest": length, "heads": HEADS, "width": WIDTH}
    return Case(name, contenders, list(contenders), step(attend("reference"), wide, grad.double()), dtype, {}, {"attention": about})


def graph(name: str, device: str = "cpu") -> tuple[Tensor, int]:
    """A graph of the benchmark by name: its edges and its number of nodes."""
    if name == "32 graphs of 6 nodes":
        pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]].T  # (2, 30), every ordered pair
        return torch.cat([pairs + 6 * g for g in range(32)], 1).to(device), 192
    nodes, edges = {"20k nodes, 400k edges": (20_000, 400_000), "200k nodes, 4M edges": (200_000, 4_000_000)}[name]
    generator = torch.Generator().manual_seed(2)
    return torch.randint(nodes, (2, edges), generator=generator).to(device), nodes


def edges(name: str, heads: int, channels: int = 64, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    """`GraphFusionConv` beside PyG's `GATConv` of the same width and heads, and the op beside its reference."""
    from torch_geometric.nn import GATConv

    edge_index, nodes = graph(name, device)
    generator = torch.Generator().manual_seed(3)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype)  # noqa: E731
    x = draw(nodes, channels).requires_grad_()
    grad = draw(nodes, heads * channels)
    conv = GraphFusionConv(channels, channels, heads, activation="none").to(device, dtype)
    rival = GATConv(channels, channels, heads, add_self_loops=False).to(device, dtype)

    def layer(module: torch.nn.Module, inputs: list[Tensor], cotangent: Tensor) -> Pass:
        return step(lambda *_: module(inputs[0], edge_index), [*inputs, *module.parameters()], cotangent)

    def formula(kind: torch.dtype) -> list[Tensor]:
        wide = {n: p.detach().to(kind).requires_grad_() for n, p in conv.named_parameters()}
        h = x.detach().to(kind).requires_grad_()

        def forward(*_: Tensor) -> Tensor:
            source = F.linear(h, wide["lin.weight"]).view(-1, heads, channels)
            score_dst = (source * wide["score_dst"]).sum(-1) + wide["score_bias"]
            return edge_attention(source, score_dst, (source * wide["score_src"]).sum(-1), edge_index, backend="reference")[0].flatten(1)

        return step(forward, [h, *wide.values()], grad.to(kind))()

    contenders = {"mea_graph": layer(conv, [x], grad), "GATConv": layer(rival, [x], grad)}
    checked = ["mea_graph"]
    if dtype != torch.float32:  # the layer's own products round too: what that costs, the formula in the same dtype shows
        contenders["eager formula"] = lambda: formula(dtype)
        checked.append("eager formula")
    return Case(f"graph layer, {name}, {heads} x {channels}", contenders, checked, lambda: formula(torch.float64), dtype)


def crossing(
    batch: int,
    target: Sequence[int],
    sources: Sequence[Sequence[int]],
    longest: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Case:
    """Cross-modal attention beside `scaled_dot_product_attention` over the padded concatenation with a key padding mask."""
    generator = torch.Generator().manual_seed(4)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(batch, HEADS, longest[0], WIDTH)]
    inputs += [draw(batch, HEADS, n, WIDTH) for n in longest[1:]] + [draw(batch, HEADS, n, WIDTH) for n in longest[1:]]
    query_mask = prefix_mask(target, longest[0], device)
    masks = [prefix_mask(lengths, n, device) for lengths, n in zip(sources, longest[1:], strict=True)]
    pad = ~query_mask[:, None, :, None]
    grad = draw(batch, HEADS, longest[0], WIDTH).detach().masked_fill(pad, 0)
    count = len(masks)

    def ours(backend: str) -> Callable[..., Tensor]:
        def run(query: Tensor, *parts: Tensor) -> Tensor:
            return cross_modal_attention(query, parts[:count], parts[count:], masks, query_mask=query_mask, backend=backend)

        return run

    def padded(query: Tensor, *parts: Tensor) -> Tensor:
        mask = torch.cat(masks, 1)[:, None, None, :]
        out = F.scaled_dot_product_attention(query, torch.cat(parts[:count], 2), torch.cat(parts[count:], 2), attn_mask=mask)
        return out.masked_fill(pad, 0)

    contenders = {"mea_graph": step(ours("auto"), inputs, grad), "padded SDPA with a mask": step(padded, inputs, grad)}
    wide = [t.detach().double().requires_grad_() for t in inputs]
    mean = [round(sum(n) / batch) for n in (target, *sources)]
    name = f"cross-modal attention, B {batch}, K {HEADS}, d {HEADS * WIDTH}, lengths up to {list(longest)} (mean {mean})"
    return Case(name, contenders, list(contenders), step(ours("reference"), wide, grad.double()), dtype)
