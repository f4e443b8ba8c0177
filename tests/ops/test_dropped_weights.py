"""Dropout on the weights of attention: on real edges, unbiased, by the formulas that keep the weights; nothing else changes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers, explain, interval_attention, predictive_attention, record_calls

ROWS, HEADS, WIDTH, P = 12, 2, 3, 0.4
POINTERS = Pointers.from_ptr(torch.tensor([0, 7, 7, 12]))
EDGES: dict[str, tuple[Any, str]] = {
    "complete": (IntervalEdges.complete(POINTERS, POINTERS), "reference"),
    "windows": (IntervalEdges.window(POINTERS, POINTERS, steps=2), "listed"),
    "a list": (IntervalEdges.window(POINTERS, POINTERS, causal=True).edge_index(), "listed"),
}
every_kind = pytest.mark.parametrize("kind", EDGES)
every_op = pytest.mark.parametrize("op", ["interval_attention", "predictive_attention", "predictive_attention without a prior"])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def call(op: str, kind: str) -> Any:
    """The op as a function of the values, and of dropout."""
    torch.manual_seed(0)
    query, key, before, prior = random(4, ROWS, HEADS, WIDTH).unbind()
    guide = {"prior_query": before, "prior_key": prior, "weight": random(HEADS, HEADS, 3, 3), "bias": random(HEADS)}
    edges, _ = EDGES[kind]
    if op == "interval_attention":
        return lambda value, dropout=0.0, **o: interval_attention(query, key, value, edges, dropout, **o)
    given = {} if op.endswith("prior") else guide
    return lambda value, dropout=0.0, **o: predictive_attention(query, key, value, POINTERS, **given, edges=edges, dropout=dropout, **o)


@pytest.fixture
def units() -> Tensor:
    """Values whose results are the map."""
    return torch.eye(ROWS, dtype=torch.float64).unsqueeze(1).expand(-1, HEADS, -1).contiguous()


@every_op
@every_kind
def test_each_weight_is_dropped_or_grows(call: Any, units: Tensor, kind: str) -> None:
    weights = call(units)
    found = torch.stack([call(units, P) for _ in range(60)])
    kept = found != 0
    torch.testing.assert_close(found, torch.where(kept, weights / (1 - P), 0), rtol=1e-10, atol=1e-12)
    edge = (weights != 0).expand_as(kept)
    assert abs(kept[edge].double().mean().item() - (1 - P)) < 0.02
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(kept[:, :, 0], kept[:, :, 1]), "heads share what they drop"


@every_op
@every_kind
def test_who_runs_is_said(call: Any, units: Tensor, kind: str) -> None:
    for dropout, expected in ((P, EDGES[kind][1]), (0.0, "listed" if kind == "a list" else "cpu")):
        with record_calls() as calls:
            call(units, dropout)
        assert {backend for _, backend in calls} - {"plain"} == {expected}


def test_other_backends_say_why_they_do_not() -> None:
    x = random(ROWS, HEADS, WIDTH)
    refused = explain(interval_attention, x, x, x, EDGES["complete"][0], dropout=P).refused
    assert refused["cpu"] == refused["sdpa"] == refused["triton"] == "weights are dropped, and it stores none"
    with pytest.raises(ValueError, match="cannot run on 'cpu' here: weights are dropped"):
        interval_attention(x, x, x, EDGES["complete"][0], P, backend="cpu")
    for op in (interval_attention, predictive_attention):
        with pytest.raises(ValueError, match=r"dropout: expected a probability in \[0, 1\), got 1.0"):
            op(x, x, x, EDGES["complete"][0] if op is interval_attention else POINTERS, dropout=1.0)


@every_op
@every_kind
def test_gradients_are_those_of_what_was_kept(call: Any, units: Tensor, kind: str) -> None:
    """The result is linear in the values: with one draw, its gradient is the dropped map."""
    value = random(ROWS, HEADS, 1).requires_grad_()
    torch.manual_seed(5)
    dropped = call(units, P)
    torch.manual_seed(5)
    out = call(value, P)
    torch.testing.assert_close(out, torch.einsum("nhm,mho->nho", dropped, value), rtol=1e-10, atol=1e-12)
    (grad,) = torch.autograd.grad(out.sum(), value)
    torch.testing.assert_close(grad.squeeze(2), dropped.sum(0).mT, rtol=1e-10, atol=1e-12)
