"""The inputs and the contenders: each case pairs an op with what a user would run instead, and with its truth in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Pass, error
from mea_graph.check.attention import graph as graph
from mea_graph.check.cases import HEADS, MU, WIDTH, pointers_of, prefix_mask
from mea_graph.check.cases import mosi_lengths as mosi_lengths
from mea_graph.nn import GraphFusionConv
from mea_graph.ops import IntervalEdges, edge_attention, interval_attention, predictive_attention


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


def predictive(
    batch: int,
    length: int,
    lengths: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compiled: bool = False,
) -> Case:
    """Predictive attention beside the eager formula (maps stored, `conv2d`) and, on request, what `torch.compile` makes of that."""
    each = [length] * batch if lengths is None else list(lengths)
    pointers = pointers_of(each, device)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(sum(each), HEADS, WIDTH) for _ in range(5)]
    inputs += [(0.1 * draw(HEADS, HEADS, 3, 3)).detach().requires_grad_(), draw(HEADS)]
    grad = draw(sum(each), HEADS, WIDTH).detach()

    def attend(backend: str) -> Callable[..., Tensor]:
        def run(query: Tensor, key: Tensor, value: Tensor, prior_query: Tensor, prior_key: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return predictive_attention(query, key, value, pointers, prior_query, prior_key, weight, bias, MU, backend=backend)

        return run

    contenders = {"mea_graph": step(attend("auto"), inputs, grad), "eager formula": step(attend("reference"), inputs, grad)}
    if compiled:
        contenders["torch.compile of the formula"] = step(torch.compile(attend("reference")), inputs, grad)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    kind = "" if lengths is None else f", true lengths (mean {sum(each) / batch:.0f})"
    name = f"predictive attention, B {batch}, K {HEADS}, T {length}, d {HEADS * WIDTH}{kind}"
    about = {"lengths": each, "longest": length, "heads": HEADS, "width": WIDTH}
    return Case(name, contenders, list(contenders), step(attend("reference"), wide, grad.double()), dtype, {}, {"attention": about})


def edges(name: str, heads: int, channels: int = 64, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    """`GraphFusionConv` beside PyG's `GATConv` of the same width and heads, and the op beside its reference."""
    from torch_geometric.nn import GATConv

    edge_index, nodes = graph(name, device)
    generator = torch.Generator().manual_seed(3)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype)  # noqa: E731
    x = draw(nodes, channels).requires_grad_()
    grad = draw(nodes, heads * channels)
    conv = GraphFusionConv(channels, channels, heads, activation="none").to(device, dtype)
    baseline = GATConv(channels, channels, heads, add_self_loops=False).to(device, dtype)

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

    contenders = {"mea_graph": layer(conv, [x], grad), "GATConv": layer(baseline, [x], grad)}
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
    """Interval attention over several sources beside `scaled_dot_product_attention` over the padded concatenation with a key padding mask.

    The baseline's sequences are padded to `longest` beforehand. Its result becomes rows only for the comparison with the truth.
    """
    layouts = [pointers_of(each, device) for each in (target, *sources)]
    edges = IntervalEdges.complete(layouts[1:], layouts[0])
    rows = [p.num_rows for p in layouts[1:]]
    generator = torch.Generator().manual_seed(4)
    draw = lambda n: torch.randn(n, HEADS, WIDTH, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(layouts[0].num_rows), draw(sum(rows)), draw(sum(rows))]
    grad = draw(layouts[0].num_rows).detach()
    masks = [prefix_mask(each, n, device) for each, n in zip((target, *sources), longest, strict=True)]
    pad = ~masks[0][:, None, :, None]

    def ours(backend: str) -> Callable[..., Tensor]:
        return lambda query, key, value: interval_attention(query, key, value, edges, backend=backend)

    def to_padded(x: Tensor, mask: Tensor) -> Tensor:
        """Rows (N, K, D) to (B, K, T, D)."""
        return x.new_zeros(*mask.shape, HEADS, WIDTH).masked_scatter(mask[:, :, None, None], x).transpose(1, 2)

    def to_rows(x: Tensor, mask: Tensor) -> Tensor:
        return x.transpose(1, 2)[mask]

    def beside(x: Tensor) -> Tensor:
        return torch.cat([to_padded(part, mask) for part, mask in zip(x.split(rows), masks[1:], strict=True)], 2)

    def apart(x: Tensor) -> Tensor:
        return torch.cat([to_rows(part, mask) for part, mask in zip(x.split(list(longest[1:]), 2), masks[1:], strict=True)])

    heard = torch.cat(masks[1:], 1)[:, None, None, :]
    leaves = [to_padded(inputs[0], masks[0]), beside(inputs[1]), beside(inputs[2])]
    leaves = [t.detach().requires_grad_() for t in leaves]

    def padded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=heard).masked_fill(pad, 0)

    baseline = step(padded, leaves, to_padded(grad, masks[0]))

    def seen() -> list[Tensor]:
        out, d_query, d_key, d_value = baseline()
        return [to_rows(out, masks[0]), to_rows(d_query, masks[0]), apart(d_key), apart(d_value)]

    contenders = {"mea_graph": step(ours("auto"), inputs, grad), "padded SDPA with a mask": baseline}
    wide = [t.detach().double().requires_grad_() for t in inputs]
    mean = [round(sum(n) / batch) for n in (target, *sources)]
    name = f"cross-modal attention, B {batch}, K {HEADS}, d {HEADS * WIDTH}, lengths up to {list(longest)} (mean {mean})"
    truth = step(ours("reference"), wide, grad.double())
    return Case(name, contenders, list(contenders), truth, dtype, {"padded SDPA with a mask": seen})
