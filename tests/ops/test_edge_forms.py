"""Edges as runs and the same edges as a list give the same, and what they give can be differentiated twice."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, interval_attention, predictive_attention, use_backend

from .layouts import FORMS, Layout, random_runs, windowed

TARGET, SOURCES = [6, 0, 3, 1], [[4, 2, 0, 5], [7, 1, 3, 0]]
HEADS, WIDTH = 2, 3
BOUNDS = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
every_form = pytest.mark.parametrize("form", FORMS)


def edges_of(kind: str, sources: list[Layout], target: Layout) -> IntervalEdges:
    """The shapes of edges that are told apart by how they are made."""
    parts = [s.pointers for s in sources]
    if kind == "complete":
        return IntervalEdges.complete(parts, target.pointers)
    if kind == "causal":
        return IntervalEdges.join([IntervalEdges.window(s, target.pointers, causal=True) for s in parts])
    if kind == "near":
        return IntervalEdges.join([IntervalEdges.window(s, target.pointers, steps=1) for s in parts])
    return windowed(sources, target, random_runs(sources, target))


every_kind = pytest.mark.parametrize("kind", ["complete", "causal", "near", "any runs"])


def outcome(call: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and every gradient."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = call(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@BOUNDS
@every_form
@every_kind
@pytest.mark.parametrize("count", [1, 2])
def test_interval_attention_is_the_same_on_runs_and_on_a_list(dtype: torch.dtype, bound: float, form: str, kind: str, count: int) -> None:
    target, sources = Layout(TARGET, form), [Layout(n, form) for n in SOURCES[:count]]
    edges = edges_of(kind, sources, target)
    draw = lambda at: at.place(torch.randn(at.steps, HEADS, WIDTH, dtype=dtype))  # noqa: E731
    tensors = [draw(target), *(torch.cat([draw(s) for s in sources]) for _ in range(2))]
    grad = target.place(torch.randn(target.steps, HEADS, WIDTH, dtype=dtype))
    runs, listed = (outcome(lambda *t, e=e: interval_attention(*t, e), tensors, grad) for e in (edges, edges.edge_index()))
    torch.testing.assert_close(runs, listed, rtol=bound, atol=bound)


@BOUNDS
@every_form
@every_kind
@pytest.mark.parametrize("prior", [True, False])
def test_predictive_attention_is_the_same_on_runs_and_on_a_list(
    dtype: torch.dtype, bound: float, form: str, kind: str, prior: bool
) -> None:
    at = Layout(TARGET, form)
    edges = edges_of(kind, [at], at)
    tensors = [at.place(torch.randn(at.steps, HEADS, WIDTH, dtype=dtype)) for _ in range(5 if prior else 3)]
    if prior:
        tensors += [0.3 * torch.randn(HEADS, HEADS, 3, 3, dtype=dtype), torch.randn(HEADS, dtype=dtype)]
    grad = at.place(torch.randn(at.steps, HEADS, WIDTH, dtype=dtype))

    def call(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor, e: IntervalEdges | Tensor | None) -> Tensor:
        return predictive_attention(query, key, value, at.pointers, *rest, edges=e)

    forms = [edges, edges.edge_index(), *([None] if kind == "complete" else [])]
    runs, *others = (outcome(lambda *t, e=e: call(*t, e=e), tensors, grad) for e in forms)
    for other in others:
        torch.testing.assert_close(runs, other, rtol=bound, atol=bound)


def small(kind: str) -> tuple[Layout, list[Layout], IntervalEdges]:
    target, sources = Layout([2, 0, 1], "packed"), [Layout([1, 2, 2], "packed"), Layout([2, 0, 0], "packed")]
    return target, sources, edges_of(kind, sources, target)


@every_kind
@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference", "listed"])
def test_second_derivatives_of_interval_attention(kind: str, backend: str) -> None:
    target, sources, edges = small(kind)
    rows = sum(s.steps for s in sources)
    leaves = [torch.randn(n, HEADS, 2, dtype=torch.float64, requires_grad=True) for n in (target.steps, rows, rows)]
    given = edges.edge_index() if backend == "listed" else edges
    call = lambda q, k, v: interval_attention(q, k, v, given, backend=backend)  # noqa: E731
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=backend != "cpu")


@every_kind
@pytest.mark.parametrize("backend", ["cpu", "reference", "listed"])
@pytest.mark.parametrize("bias", [True, False])
def test_second_derivatives_of_predictive_attention(kind: str, backend: str, bias: bool) -> None:
    at = Layout([3, 0, 1], "packed")
    edges = edges_of(kind, [at], at)
    given = edges.edge_index() if backend == "listed" else edges
    leaves = [torch.randn(at.steps, HEADS, 2, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    leaves += [torch.randn(HEADS, HEADS, 3, 3, dtype=torch.float64, requires_grad=True)]
    leaves += [torch.randn(HEADS, dtype=torch.float64, requires_grad=True)] * bias

    def call(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> Tensor:
        return predictive_attention(query, key, value, at.pointers, *rest, mu=0.4, edges=given, backend=backend)

    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@every_form
@pytest.mark.parametrize("windows", [False, True], ids=["complete", "windows"])
@pytest.mark.parametrize("of", ["interval_attention", "predictive_attention"])
def test_second_derivatives_in_every_form_are_those_of_the_reference(of: str, windows: bool, form: str) -> None:
    """With NaN in the gaps; one tensor serves as query, key and value, so that each of its uses adds its part."""
    at = Layout([4, 0, 3], form)
    edges = edges_of("any runs" if windows else "complete", [at], at)
    x = at.place(torch.randn(at.steps, HEADS, WIDTH, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(HEADS, HEADS, 3, 3, dtype=torch.float64, requires_grad=True)
    penalties = []
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            if of == "interval_attention":
                out = interval_attention(x, x, x, edges) * weight.sum()
            else:
                out = predictive_attention(x, x, x, at.pointers, x, x, weight, edges=edges)
        firsts = torch.autograd.grad(out[~at.gaps].sin().sum(), [x, weight], create_graph=True)
        seconds = torch.autograd.grad(sum(g.square().sum() for g in (firsts[0][~at.gaps], firsts[1])), [x, weight])
        penalties.append([at.collect(firsts[0].detach()), firsts[1].detach(), at.collect(seconds[0]), seconds[1]])
    torch.testing.assert_close(*penalties, rtol=1e-9, atol=1e-10)


def test_third_derivatives_are_had_by_the_reference() -> None:
    at = Layout([3], "packed")
    edges = IntervalEdges.complete(at.pointers, at.pointers)

    def third(backend: str) -> Tensor:
        x = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 2, 3).requires_grad_()
        grad = interval_attention(x, x, x, edges, backend=backend).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(grad.sum(), x, create_graph=True)
        return grad

    torch.testing.assert_close(third("cpu"), third("reference"), rtol=1e-9, atol=1e-11)
