"""Widths of sources, of heads and of the feed-forward block, and dropout on the map: the manners of torch's own Transformer layers."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mea_graph import nn as mea
from mea_graph.ops import IntervalEdges, Pointers, record_calls, use_backend

D, HEADS, SOURCE = 5, 3, 7  # five channels, which three heads do not divide
WIDTHS: dict[str, Any] = {"head_channels": 2, "feed_forward_channels": 11}
LENGTHS = {"text": [3, 1, 2], "audio": [5, 4, 1], "vision": [2, 2, 3]}
PTR = {m: torch.tensor([0, *itertools.accumulate(n)]) for m, n in LENGTHS.items()}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def heads(x: Tensor) -> Tensor:
    """(T, K D) to (K, T, D)."""
    return x.unflatten(1, (HEADS, 2)).transpose(0, 1)


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = (heads(query) @ heads(key).mT / math.sqrt(2)).softmax(-1)
    return (weights @ heads(value)).transpose(0, 1).flatten(1)


def test_a_unit_of_other_widths_equals_the_formula(randomised: Any) -> None:
    unit = randomised(mea.ModalityReinforcementUnit(D, HEADS, source_channels=SOURCE, **WIDTHS))
    linear = {n: (p.in_features, p.out_features) for n, p in unit.named_modules() if isinstance(p, nn.Linear)}
    widths = {"query": (5, 6), "key_value": (7, 12), "out": (6, 5), "feed_forward.expand": (5, 11), "feed_forward.contract": (11, 5)}
    assert linear == widths
    target, sources = random(4, D), [random(3, SOURCE), random(2, SOURCE)]
    out, found = unit(target, source=sources, return_attention_weights=True)
    assert found.shape == (1, HEADS, 4, 5)
    normalised = unit.norm_target(target)
    key, value = unit.key_value(unit.norm_source(torch.cat(sources))).chunk(2, 1)
    z = normalised + unit.out(attended(unit.query(normalised), key, value))
    torch.testing.assert_close(out, unit.feed_forward(z), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"source\[0\]: expected \(N, 7\), got \(3, 5\)"):
        unit(target, source=sources[0][:, :5])


def test_self_attention_of_other_widths_equals_the_formula(randomised: Any) -> None:
    layer = randomised(mea.PredictiveSelfAttention(D, HEADS, **WIDTHS))
    x = random(4, D)
    z, prior = layer(x)
    assert prior.query.shape == (4, HEADS, 2)
    normalised = layer.norm(x)
    query, key, value = layer.query_key_value(normalised).chunk(3, 1)
    torch.testing.assert_close(z, layer.feed_forward(normalised + layer.out(attended(query, key, value))), rtol=1e-10, atol=1e-12)
    guided = layer(x, prior=prior)[0]
    with use_backend("reference"):
        torch.testing.assert_close(layer(x, prior=prior)[0], guided, rtol=1e-10, atol=1e-12)


def test_the_default_has_the_parameters_of_the_paper() -> None:
    shapes = {n: tuple(v.shape) for n, v in mea.ModalityReinforcementUnit(8, 2).state_dict().items() if n.endswith("weight")}
    assert shapes == {
        "norm_target.weight": (8,),
        "norm_source.weight": (8,),
        "query.weight": (8, 8),
        "key_value.weight": (16, 8),
        "out.weight": (8, 8),
        "feed_forward.norm.weight": (8,),
        "feed_forward.expand.weight": (32, 8),
        "feed_forward.contract.weight": (8, 32),
    }
    given = {"head_channels": 4, "feed_forward_channels": 32, "attention_dropout": 0.0}
    for build in (mea.ModalityReinforcementUnit, mea.PredictiveSelfAttention):
        states = []
        for options in ({}, given):
            torch.manual_seed(0)
            states.append(build(8, 2, **options).state_dict())
        torch.testing.assert_close(*states, rtol=0, atol=0)


ENCODERS: dict[str, tuple[Any, Any]] = {
    "PredictiveEncoder": (lambda **o: mea.PredictiveEncoder(D, LENGTHS, HEADS, **o), lambda layer, x: layer(x, PTR).x),
    "HierarchicalCrossModalAttention": (
        lambda **o: mea.HierarchicalCrossModalAttention(D, LENGTHS, HEADS, **o),
        lambda layer, x: layer(x, PTR).x,
    ),
    "CrossModalEncoder": (lambda **o: mea.CrossModalEncoder(D, LENGTHS, HEADS, **o), lambda layer, x: layer(x, PTR)[0]),
}


@pytest.fixture
def x() -> dict[str, Tensor]:
    return {m: random(sum(n), D) for m, n in LENGTHS.items()}


def in_turn(layer: nn.Module) -> nn.Module:
    """Somebody listens: each unit is called alone."""
    for part in layer.modules():
        if isinstance(part, mea.ModalityReinforcementUnit | mea.PredictiveSelfAttention):
            part.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_hand_options_down(randomised: Any, x: Any, name: str) -> None:
    build, call = ENCODERS[name]
    layer = randomised(build(**WIDTHS, attention_dropout=0.3))
    units = [u for u in layer.modules() if isinstance(u, mea.ModalityReinforcementUnit | mea.PredictiveSelfAttention)]
    seen = {(u.out.in_features, u.feed_forward.expand.out_features, u.attention_dropout.p) for u in units}
    assert seen == {(6, 11, 0.3)}
    layer.eval()
    with record_calls() as calls:
        joined = call(layer, x)
    assert calls["grouped_linear", "joined"] > 0
    torch.testing.assert_close(call(in_turn(layer), x), joined, rtol=1e-10, atol=1e-12)
    with pytest.raises(TypeError, match="head_width"):
        build(head_width=2)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_map_is_thinned_in_training_only(randomised: Any, x: Any, name: str) -> None:
    build, call = ENCODERS[name]
    layer, plain = randomised(build(**WIDTHS, attention_dropout=0.3)), build(**WIDTHS).double()
    plain.load_state_dict(layer.state_dict())
    with record_calls() as calls:
        one, two = call(layer, x), call(layer, x)
    assert {backend for op, backend in calls if op.endswith("attention")} <= {"reference", "plain"}
    assert not any(torch.allclose(one[m], two[m]) for m in x)
    with record_calls() as calls:
        quiet = call(layer.eval(), x)
    assert {backend for op, backend in calls if op.endswith("attention")} <= {"cpu", "plain"}
    torch.testing.assert_close(quiet, call(plain, x), rtol=0, atol=0)


def test_with_windows_dropped_weights_take_memory_by_edge(randomised: Any, x: Any) -> None:
    steps = Pointers.from_ptr(PTR["audio"])
    windows = IntervalEdges.window(steps, steps, steps=1)
    layer = randomised(mea.PredictiveSelfAttention(D, HEADS, attention_dropout=0.5, **WIDTHS))
    for edges in (windows, windows.edge_index()):
        with record_calls() as calls:
            y, prior = layer(x["audio"], PTR["audio"], edges=edges)
            layer(y, PTR["audio"], prior, edges)
        assert calls == {("interval_attention", "listed"): 1, ("predictive_attention", "plain"): 1, ("predictive_attention", "listed"): 1}


OTHERS: dict[str, Any] = {
    "heads": lambda: mea.ModalityReinforcementUnit(6, 3),
    "head_channels": lambda: mea.ModalityReinforcementUnit(6, 2, head_channels=5),
    "feed_forward_channels": lambda: mea.ModalityReinforcementUnit(6, 2, feed_forward_channels=5),
    "residual": lambda: mea.ModalityReinforcementUnit(6, 2, residual="input"),
}


@pytest.mark.parametrize("option", OTHERS)
def test_units_that_differ_are_not_joined(randomised: Any, option: str) -> None:
    layer = mea.HierarchicalCrossModalAttention(6, LENGTHS, heads=2)
    layer.mixed["audio"] = OTHERS[option]()
    randomised(layer)
    x = {m: random(sum(n), 6) for m, n in LENGTHS.items()}
    found = layer(x, PTR).x
    torch.testing.assert_close(found, in_turn(layer)(x, PTR).x, rtol=1e-10, atol=1e-12)


def test_units_that_thin_their_maps_differently_are_not_joined(x: Any) -> None:
    layer = mea.HierarchicalCrossModalAttention(D, LENGTHS, HEADS, mixed=False, coarse=False, **WIDTHS).double()
    layer.fine["text"]["audio"].attention_dropout.p = 0.5
    with record_calls() as calls:
        layer(x, PTR)
    assert calls["interval_attention", "reference"] == 1
    assert calls["interval_attention", "cpu"] == 5


@pytest.mark.parametrize("build", [mea.ModalityReinforcementUnit, mea.PredictiveSelfAttention])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_channels": 0}, "head_channels: expected an integer of at least 1, got 0"),
        ({"head_channels": 2, "heads": 0}, "heads: expected an integer of at least 1, got 0"),
        ({"heads": 5}, "heads: expected a divisor of channels = 8, got 5"),
        ({"feed_forward_channels": 0}, "feed_forward_channels: expected an integer of at least 1, got 0"),
        ({"attention_dropout": 1.0}, r"attention_dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, r"attention_dropout: expected a probability in \[0, 1\), got -0.1"),
    ],
)
def test_bad_options_are_named(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(8, **({"heads": 2} | options))


def test_a_source_without_width_is_named() -> None:
    with pytest.raises(ValueError, match="source_channels: expected an integer of at least 1, got 0"):
        mea.ModalityReinforcementUnit(8, 2, source_channels=0)
