"""Eq. 7-10: mixed, coarse and fine, each arrow a unit of its own; the stack reads the layer before (R4)."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.nn import CrossModalEncoder, HierarchicalCrossModalAttention, ModalityReinforcementUnit

D, HEADS = 4, 2
LENGTHS = {"text": [3, 2, 1, 2], "audio": [5, 4, 0, 0], "vision": [2, 0, 4, 0]}  # the last sample has text alone
STAGES = [s for s in itertools.product([True, False], repeat=3) if any(s)]


@pytest.fixture
def x() -> dict[str, Tensor]:
    return {m: torch.randn(4, max(n), D, dtype=torch.float64) for m, n in LENGTHS.items()}


@pytest.fixture
def mask() -> dict[str, Tensor]:
    return {m: torch.arange(max(n)) < torch.tensor(n)[:, None] for m, n in LENGTHS.items()}


def literal(layer: HierarchicalCrossModalAttention, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """One sample, unpadded, with the modalities that it has: {m: (1, T_m, d)}."""
    out = {}
    for t, z in x.items():
        others = [s for s in layer.modalities if s != t]
        if layer.mixed is not None:
            z = layer.mixed[t](z, source=[x[s] for s in layer.modalities if s in x])
        if layer.coarse is not None:
            # Without any other modality the unit attends to nothing: a source of no step.
            z = layer.coarse[t](z, source=[x[s] for s in others if s in x] or [z[:, :0]])
        arrows = [s for s in others if s in x]
        if layer.fine is not None and arrows:
            z = sum(layer.fine[t][s](z, source=x[s]) for s in arrows)
        out[t] = z
    return out


def alone(x: dict[str, Tensor], b: int) -> dict[str, Tensor]:
    return {m: x[m][b : b + 1, : n[b]] for m, n in LENGTHS.items() if n[b]}


@pytest.mark.parametrize("in_turn", [False, True], ids=["at once", "in turn"])
@pytest.mark.parametrize("stages", STAGES)
def test_equals_the_arrows_of_each_sample(randomised, x, mask, stages: tuple[bool, bool, bool], in_turn: bool) -> None:
    layer = randomised(HierarchicalCrossModalAttention(D, LENGTHS, HEADS, *stages))
    out = layer(x, mask, return_attention_weights=in_turn).x  # maps are drawn arrow by arrow
    for b in range(4):
        for m, expected in literal(layer, alone(x, b)).items():
            n = LENGTHS[m][b]
            torch.testing.assert_close(out[m][b, :n], expected[0], rtol=1e-9, atol=1e-12)
            assert not out[m][b, n:].any()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_layer_of_the_stack_reads_the_one_before(randomised, x, mask, num_layers: int) -> None:
    encoder = randomised(CrossModalEncoder(D, LENGTHS, HEADS, num_layers))
    out, maps = encoder(x, mask, return_attention_weights=True)
    current = x
    for layer, found in zip(encoder.layers, maps, strict=True):
        expected = layer(current, mask, return_attention_weights=True)
        current = expected.x
        torch.testing.assert_close(found, expected.attention, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(out, current, rtol=1e-12, atol=1e-14)
    assert encoder(x, mask)[1] == []


def test_the_maps_are_those_of_the_arrows(randomised, x, mask) -> None:
    layer = randomised(HierarchicalCrossModalAttention(D, LENGTHS, HEADS))
    maps = layer(x, mask, return_attention_weights=True).attention
    arrows = {("mixed", "all", t) for t in LENGTHS} | {("coarse", "others", t) for t in LENGTHS}
    assert set(maps) == arrows | {("fine", s, t) for s, t in itertools.permutations(LENGTHS, 2)}
    for (_, source, target), attention in maps.items():
        sources = {"all": list(LENGTHS), "others": [m for m in LENGTHS if m != target]}.get(source, [source])
        columns = torch.cat([mask[s] for s in sources], 1)
        assert attention.shape == (4, HEADS, max(LENGTHS[target]), columns.size(1))
        assert not attention.masked_select(~columns[:, None, None]).any()
        rows = (columns.any(1, keepdim=True) & mask[target]).double()[:, None].expand(attention.shape[:3])
        torch.testing.assert_close(attention.sum(-1), rows, rtol=1e-12, atol=1e-14)
    assert layer(x, mask).attention == {}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_arrow_has_parameters_of_its_own(count: int) -> None:
    names = [f"m{i}" for i in range(count)]
    layer = HierarchicalCrossModalAttention(D, names, HEADS)
    units = [u for u in layer.modules() if isinstance(u, ModalityReinforcementUnit)]
    assert len(units) == count + count + count * (count - 1)
    one = sum(p.numel() for p in units[0].parameters())
    assert sum(p.numel() for p in layer.parameters()) == one * len(units)


def test_options_reach_every_unit() -> None:
    encoder = CrossModalEncoder(D, LENGTHS, HEADS, num_layers=2, mixed=False, residual="input", dropout=0.2)
    units = [u for u in encoder.modules() if isinstance(u, ModalityReinforcementUnit)]
    assert len(units) == 2 * (3 + 6)
    assert {(u.heads, u.residual, u.dropout.p, u.feed_forward.dropout.p) for u in units} == {(HEADS, "input", 0.2, 0.2)}


def test_gradcheck(randomised) -> None:
    layer = randomised(HierarchicalCrossModalAttention(3, ["a", "b"], 1))
    mask = {"a": torch.tensor([[True, True], [True, False]]), "b": torch.tensor([[True], [False]])}
    inputs = tuple(torch.randn(2, t, 3, dtype=torch.float64, requires_grad=True) for t in (2, 1))
    assert torch.autograd.gradcheck(lambda a, b: tuple(layer({"a": a, "b": b}, mask).x.values()), inputs)


@pytest.mark.parametrize("build", [HierarchicalCrossModalAttention, CrossModalEncoder])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed": False, "coarse": False, "fine": False}, "mixed, coarse, fine: expected at least one stage, got none"),
        ({"modalities": ["text"]}, r"modalities: expected at least 2 different names, got \('text',\)"),
        ({"heads": 3}, "heads: expected a divisor of channels = 4, got 3"),
    ],
)
def test_bad_options_are_named(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**({"channels": D, "modalities": LENGTHS, "heads": HEADS} | options))


def test_bad_input_is_named(x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="num_layers: expected at least 1, got 0"):
        CrossModalEncoder(D, LENGTHS, HEADS, num_layers=0)
    layer = HierarchicalCrossModalAttention(D, LENGTHS, HEADS).double()
    with pytest.raises(ValueError, match=r"x: expected the modalities \['text', 'audio', 'vision'\], got \['text', 'audio'\]"):
        layer({m: x[m] for m in ("text", "audio")}, mask)
    with pytest.raises(ValueError, match=r"layout: expected the modalities \['text', 'audio', 'vision'\], got \['text'\]"):
        HierarchicalCrossModalAttention(D, LENGTHS, HEADS).double()(x, {"text": torch.ones(x["text"].shape[:2], dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"x: expected the same number of samples in every modality, got .*'audio': 1"):
        HierarchicalCrossModalAttention(D, LENGTHS, HEADS).double()(x | {"audio": x["audio"][:1]})
    with pytest.raises(ValueError, match=r"vision: expected \(B, T, 4\), .*got \(4, 4, 3\)"):
        layer(x | {"vision": x["vision"][..., :3]}, mask)
