"""Each op on every backend that takes it, by shape and dtype, forward alone or with the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import HEADS, MU, WIDTH, Case, graph, pointers_of, step
from mea_graph.ops import IntervalEdges, edge_attention, explain, interval_attention, predictive_attention

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
    batch, pointers = len(lengths), pointers_of(lengths, device)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(sum(lengths), HEADS, WIDTH) for _ in range(5)]
    inputs += [(0.1 * draw(HEADS, HEADS, 3, 3)).detach().requires_grad_(), draw(HEADS)]
    grad = draw(sum(lengths), HEADS, WIDTH).detach()
    names = ("query", "key", "value", "prior_query", "prior_key", "weight", "bias")
    arguments = lambda parts: {**dict(zip(names, parts, strict=True)), "mu": MU, "pointers": pointers}  # noqa: E731

    def call(*parts: Tensor, backend: str) -> Tensor:
        return predictive_attention(**arguments(list(parts)), backend=backend)

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
    """Interval attention: the first sequence attends to the others, which stand one below the other."""
    batch = len(lengths[0])
    target, *sources = [pointers_of(each, device) for each in lengths]
    edges = IntervalEdges.complete(sources, target)
    generator = torch.Generator().manual_seed(4)
    draw = lambda n: torch.randn(n, HEADS, WIDTH, generator=generator).to(device, dtype).requires_grad_()  # noqa: E731
    inputs = [draw(n) for n in (target.num_rows, edges.num_source_rows, edges.num_source_rows)]
    grad = draw(target.num_rows).detach()
    arguments = lambda parts: {**dict(zip(("query", "key", "value"), parts, strict=True)), "edges": edges}  # noqa: E731

    def call(*parts: Tensor, backend: str) -> Tensor:
        return interval_attention(*parts, edges, backend=backend)

    name = f"cross-modal attention, B {batch}, {'/'.join(map(str, longest))}{title}, {_name(dtype)}"
    about = {"padding_share": _share(*lengths, longest=longest)}
    return _case(interval_attention, call, inputs, arguments, grad, name, backward, True, about)


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
