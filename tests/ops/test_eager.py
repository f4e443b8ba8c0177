"""The short ways that ops take for few short samples which are only evaluated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers, interval_attention, predictive_attention
from mea_graph.ops.eager import is_transformed, only_evaluated
from mea_graph.ops.interval import cpu as interval
from mea_graph.ops.predictive import cpu

from .layouts import FORMS, Layout

DTYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])


def operators_called(function: Callable[[], Any], name: str) -> tuple[Any, bool]:
    with torch.profiler.profile() as profile:
        result = function()
    return result, name in {event.name for event in profile.events()}


def runs(name: str, function: Callable[[], Any]) -> bool:
    """Whether the operator ran."""
    return operators_called(function, f"mea_graph::{name}")[1]


@DTYPES
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1.0, 40.0])  # the second overflows without a shift
@pytest.mark.parametrize(("target", "source"), [([7], [11]), ([1], [1]), ([5], [0]), ([0], [5]), ([7, 0, 4], [3, 2, 0])])
def test_interval_attention_of_few_samples(
    dtype: torch.dtype, bound: float, form: str, scale: float, target: list[int], source: list[int]
) -> None:
    to, of = Layout(target, form), Layout(source, form)
    query = to.place(scale * torch.randn(to.steps, 4, 5, dtype=dtype))
    key, value = (of.place(scale * torch.randn(of.steps, 4, d, dtype=dtype)) for d in (5, 3))
    edges = IntervalEdges.complete(of.pointers, to.pointers)
    short, called = operators_called(lambda: interval_attention(query, key, value, edges), "mea_graph::interval_attention_cpu")
    assert not called
    tensors = (to.pointers.start, to.pointers.length, edges.source_start, edges.source_length, None, None)
    torch.testing.assert_close(short, interval._operator(query, key, value, *tensors)[0], rtol=bound, atol=bound * scale)


def test_interval_attention_that_learns_is_windowed_or_large_takes_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "interval_attention_cpu"

    def call(lengths: list[int], **change: Any) -> Callable[[], Tensor]:
        x = torch.randn(sum(lengths), 2, 3, **change)
        pointers = Layout(lengths, "packed").pointers
        return lambda: interval_attention(x, x, x, IntervalEdges.complete(pointers, pointers))

    assert not runs(name, call([4]))
    assert runs(name, call([4], requires_grad=True))
    assert runs(name, call([4], dtype=torch.bfloat16))
    with torch.no_grad():
        assert not runs(name, call([4], requires_grad=True))
    x, pointers = torch.randn(4, 2, 3), Layout([4], "packed").pointers
    assert runs(name, lambda: interval_attention(x, x, x, IntervalEdges.window(pointers, pointers, steps=1)))
    assert not runs(name, call([1] * interval._FEW))
    assert runs(name, call([1] * (interval._FEW + 1)))
    two = Layout([1, 3], "packed").pointers  # of two sources, a sample has two runs of rows
    assert runs(name, lambda: interval_attention(x, *[torch.randn(8, 2, 3)] * 2, IntervalEdges.complete([two, two], two)))
    monkeypatch.setattr(interval, "_BLOCK", 2 * 4 * 4 - 1)
    assert runs(name, call([4]))


def predictive(length: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    q, k, v, q_prior, k_prior = torch.randn(5, length, 4, 5, dtype=dtype).unbind()
    weight, bias = torch.randn(4, 4, 3, 3, dtype=dtype), torch.randn(4, dtype=dtype)
    return {"query": q, "key": k, "value": v, "prior_query": q_prior, "prior_key": k_prior, "weight": weight, "bias": bias}


@DTYPES
def test_predictive_attention_of_a_short_sample(dtype: torch.dtype, bound: float) -> None:
    for length in (1, 9, cpu.SHORT):
        for pointers in (Layout([length], "packed").pointers, Layout([length], "padded", spare=0).pointers):
            tensors = predictive(length, dtype)
            call = lambda t=tensors, p=pointers: predictive_attention(**t, pointers=p, backend="cpu")  # noqa: E731
            short, called = operators_called(call, "mea_graph::predictive_attention_cpu")
            assert not called
            blocked = cpu._FORWARD(*tensors.values(), pointers.start, pointers.length, None, None, 0.25)[0]
            torch.testing.assert_close(short, blocked, rtol=bound, atol=bound)


def test_predictive_attention_that_learns_has_gaps_or_windows_or_is_long_takes_the_operator() -> None:
    name, tensors = "predictive_attention_cpu", predictive(9)

    def call(pointers: Pointers, given: dict[str, Tensor] = tensors, edges: Any = None) -> bool:
        return runs(name, lambda: predictive_attention(**given, pointers=pointers, edges=edges, backend="cpu"))

    whole = Layout([9], "packed").pointers
    assert not call(whole)
    assert call(Layout([7], "padded").pointers)
    assert call(Layout([5], "loose").pointers)
    assert call(Layout([5, 4], "packed").pointers)
    assert call(whole, edges=IntervalEdges.window(whole, whole, steps=1))
    assert call(Layout([cpu.SHORT + 1], "packed").pointers, predictive(cpu.SHORT + 1))
    tensors["weight"].requires_grad_()
    assert call(whole)


@pytest.mark.parametrize("form", FORMS[1:])
def test_gaps_of_a_short_sample_are_never_read(form: str) -> None:
    at, tensors = Layout([7], form), predictive(7)
    placed = {n: at.place(t) if n not in ("weight", "bias") else t for n, t in tensors.items()}
    found = predictive_attention(**placed, pointers=at.pointers, backend="cpu")
    expected = predictive_attention(**tensors, pointers=Layout([7], "packed").pointers, backend="reference")
    torch.testing.assert_close(at.collect(found), expected, rtol=2e-6, atol=2e-6)


def test_only_evaluated() -> None:
    x = torch.ones(2)
    learns = torch.ones(2, requires_grad=True)
    assert only_evaluated(x, None, x)
    assert not only_evaluated(x, learns)
    with torch.no_grad():
        assert only_evaluated(x, learns)
    with torch.autocast("cpu"):
        assert not only_evaluated(x)
    assert not only_evaluated(x, x.double())
    assert not only_evaluated(x.bfloat16())
    assert not only_evaluated(torch.ones(2, device="meta"))


def test_is_transformed() -> None:
    seen = []
    torch.func.grad(lambda x: seen.append(is_transformed()) or x.sum())(torch.ones(2))
    torch.func.vmap(lambda x: seen.append(is_transformed()) or x)(torch.ones(2))
    assert seen == [True, True]
    assert not is_transformed()
