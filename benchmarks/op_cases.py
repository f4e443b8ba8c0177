"""Each op on every backend that takes it, by shape and dtype, forward alone or with the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import HEADS, MU, WIDTH, Case, graph, prefix_mask, step
from mea_graph.ops import cross_modal_attention, edge_attention, explain, predictive_attention

Inputs = Sequence[Tensor]
COMPILED = "torch.compile of the formula"


def _case(
    op: Callable[..., Any],
    call: Callable[..., Tensor],
    inputs: list[Tensor],
    arguments: Callable[[list[Tensor]], dict[str, Any]],
    grad: Tensor,
    name: str,
    backward: bool,
    eager: bool,
    about: dict[str, Any],
    compiled: bool = False,
) -> Case:
    """A contender for each backend; the reference is the paper's eager formula. `auto` is named mea_graph, with the backend it takes.

    On request also what `torch.compile` makes of the reference: the first pass takes the compiler's time, so no memory is read of it.
    """
    chosen = explain(op, **arguments(inputs)).chosen
    cotangent = grad if backward else None
    contenders = {"mea_graph": step(lambda *parts: call(*parts, backend="auto"), inputs, cotangent)}
    for backend in _willing(op, arguments(inputs)):
        if backend != chosen and (eager or backend != "reference"):
            label = "eager formula" if backend == "reference" else f"backend {backend}"
            contenders[label] = step(lambda *parts, backend=backend: call(*parts, backend=backend), inputs, cotangent)
    if compiled:
        contenders[COMPILED] = step(torch.compile(lambda *parts: call(*parts, backend="reference")), inputs, cotangent)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    truth = step(lambda *parts: call(*parts, backend="reference"), wide, cotangent.double() if cotangent is not None else None)
    title = f"{name}, {'forward and backward' if backward else 'forward'}"
    return Case(title, contenders, list(contenders), truth, grad.dtype, {}, {**about, "auto": chosen})


def _willing(op: Callable[..., Any], arguments: dict[str, Any]) -> list[str]:
    found = explain(op, **arguments)
    asked = "taken only when asked for by name"
    return [found.chosen, *(n for n, reason in found.refused.items() if reason.startswith(("could run", asked)))]


def _share(*lengths: Sequence[int], longest: Sequence[int]) -> float:
    return round(1 - sum(map(sum, lengths)) / sum(len(each) * n for each, n in zip(lengths, longest, strict=True)), 4)


def predictive(
    lengths: Sequence[int],
    longest: int,
    dtype: torch.dtype = torch.float32,
    backward: bool = True,
    eager: bool = True,
    device: str = "cpu",
    title: str = "",
    compiled: bool = False,
) -> Case:
    """Predictive attention with a prior."""
    batch = len(lengths)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(batch, HEADS, longest, WIDTH) for _ in range(5)]
    inputs += [(0.1 * draw(HEADS, HEADS, 3, 3)).detach().requires_grad_(), draw(HEADS)]
    full = min(lengths) == longest
    mask = None if full else prefix_mask(lengths, longest, device)
    grad = draw(batch, HEADS, longest, WIDTH).detach()
    names = ("query", "key", "value", "prior_query", "prior_key", "weight", "bias")
    arguments = lambda parts: {**dict(zip(names, parts, strict=True)), "mu": MU, "mask": mask}  # noqa: E731
    pad = None if mask is None else ~mask[:, None, :, None]

    def call(*parts: Tensor, backend: str) -> Tensor:
        out = predictive_attention(**arguments(list(parts)), backend=backend)
        return out if pad is None else out.masked_fill(pad, 0)

    name = f"predictive attention, B {batch}, T {longest}{title}, {_name(dtype)}"
    about = {"padding_share": _share(lengths, longest=[longest]), "T": longest}
    return _case(predictive_attention, call, inputs, arguments, grad, name, backward, eager, about, compiled)


def crossing(
    lengths: Sequence[Sequence[int]],
    longest: Sequence[int],
    dtype: torch.dtype = torch.float32,
    backward: bool = True,
    device: str = "cpu",
    title: str = "",
) -> Case:
    """Cross-modal attention: the first sequence attends to the others."""
    batch, count = len(lengths[0]), len(longest) - 1
    generator = torch.Generator().manual_seed(4)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(batch, HEADS, n, WIDTH) for n in (longest[0], *longest[1:], *longest[1:])]
    query_mask, *masks = [prefix_mask(each, n, device) for each, n in zip(lengths, longest, strict=True)]
    grad = draw(batch, HEADS, longest[0], WIDTH).detach()
    pad = ~query_mask[:, None, :, None]

    def arguments(parts: list[Tensor]) -> dict[str, Any]:
        keys, values = parts[1 : 1 + count], parts[1 + count :]
        return {"query": parts[0], "keys": keys, "values": values, "key_masks": masks, "query_mask": query_mask}

    def call(*parts: Tensor, backend: str) -> Tensor:
        given = arguments(list(parts))
        return cross_modal_attention(*given.values(), backend=backend).masked_fill(pad, 0)

    name = f"cross-modal attention, B {batch}, {'/'.join(map(str, longest))}{title}, {_name(dtype)}"
    about = {"padding_share": _share(*lengths, longest=longest)}
    return _case(cross_modal_attention, call, inputs, arguments, grad, name, backward, True, about)


def edges(
    name: str, heads: int, dtype: torch.dtype = torch.float32, backward: bool = True, channels: int = 64, device: str = "cpu"
) -> Case:
    """The op of the graph layer on random scores."""
    edge_index, nodes = graph(name, device)
    generator = torch.Generator().manual_seed(3)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(nodes, heads, channels), draw(nodes, heads), draw(nodes, heads)]
    grad = draw(nodes, heads, channels).detach()
    names = ("x", "score_dst", "score_src")
    arguments = lambda parts: {**dict(zip(names, parts, strict=True)), "edge_index": edge_index}  # noqa: E731

    def call(*parts: Tensor, backend: str) -> Tensor:
        return edge_attention(*parts, edge_index, backend=backend)[0]

    title = f"edge attention, {name}, {heads} x {channels}, {_name(dtype)}"
    return _case(edge_attention, call, inputs, arguments, grad, title, backward, True, {})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
