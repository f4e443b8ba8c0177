"""Eq. 7: a target attends to its sources, from the unit's own parameters, one head after the other."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mea_graph.nn import ModalityReinforcementUnit

D, HEADS = 6, 2
TARGET = [4, 2, 3]
SOURCES = [[5, 0, 0], [1, 3, 0]]  # the last sample has no source


def sequence(lengths: list[int]) -> tuple[Tensor, Tensor]:
    steps = torch.arange(max(lengths))
    return torch.randn(len(lengths), max(lengths), D, dtype=torch.float64), steps < torch.tensor(lengths)[:, None]


def literal(unit: ModalityReinforcementUnit, sources: list[np.ndarray], target: np.ndarray, formulas) -> tuple[np.ndarray, np.ndarray]:
    """One unpadded sample: the reinforced target and the map (K, T, T_s)."""
    source = formulas.layer_norm(np.concatenate(sources), unit.norm_source)
    normalised = formulas.layer_norm(target, unit.norm_target)
    query = formulas.linear(normalised, unit.query)
    key_value = formulas.linear(source, unit.key_value)
    width, heads, maps = D // HEADS, [], []
    for h in range(HEADS):
        own, key, value = slice(h * width, (h + 1) * width), key_value[:, :D], key_value[:, D:]
        if len(source):
            maps.append(formulas.softmax(query[:, own] @ key[:, own].T / math.sqrt(width)))
        else:
            maps.append(np.zeros((len(target), 0)))
        heads.append(maps[-1] @ value[:, own])
    attended = formulas.linear(np.concatenate(heads, -1), unit.out)
    z = (normalised if unit.residual == "normalized" else target) + attended
    block = unit.feed_forward
    return formulas.feed_forward(z, block.norm, block.expand, block.contract), np.stack(maps)


@pytest.mark.parametrize("residual", ["normalized", "input"])
@pytest.mark.parametrize("lengths", [SOURCES[:1], SOURCES[1:], SOURCES], ids=["first", "second", "both"])
def test_equals_the_formula(formulas, randomised, residual: Any, lengths: list[list[int]]) -> None:
    unit = randomised(ModalityReinforcementUnit(D, HEADS, residual))
    target, target_mask = sequence(TARGET)
    sources, masks = zip(*(sequence(n) for n in lengths), strict=True)
    out, maps = unit(target, target_mask, source=list(sources), source_layout=list(masks), return_attention_weights=True)
    assert torch.equal(out, unit(target, target_mask, source=list(sources), source_layout=list(masks)))
    columns = torch.cat(masks, 1)
    for b, n in enumerate(TARGET):
        real = [s[b][m[b]].numpy() for s, m in zip(sources, masks, strict=True)]
        expected, attention = literal(unit, real, target[b, :n].numpy(), formulas)
        np.testing.assert_allclose(out[b, :n].detach().numpy(), expected, rtol=1e-9, atol=1e-12)
        assert not out[b, n:].any()
        np.testing.assert_allclose(maps[b, :, :n][..., columns[b]].detach().numpy(), attention, rtol=1e-9, atol=1e-12)
        assert not maps[b][..., ~columns[b]].any()


def test_one_source_may_come_without_a_list(randomised) -> None:
    unit = randomised(ModalityReinforcementUnit(D, HEADS))
    (source, source_mask), (target, target_mask) = sequence([4, 2, 1]), sequence(TARGET)
    listed = unit(target, target_mask, source=[source], source_layout=[source_mask])
    assert torch.equal(unit(target, target_mask, source=source, source_layout=source_mask), listed)


def test_several_sources_are_one_concatenated_sequence(randomised) -> None:
    unit = randomised(ModalityReinforcementUnit(D, HEADS))
    (one, one_mask), (two, two_mask), (target, target_mask) = sequence([2, 1, 3]), sequence([3, 3, 1]), sequence(TARGET)
    apart = unit(target, target_mask, source=[one, two], source_layout=[one_mask, two_mask])
    for b, n in enumerate(TARGET):
        joined = torch.cat([one[b][one_mask[b]], two[b][two_mask[b]]])
        torch.testing.assert_close(apart[b, :n], unit(target[b, :n], source=joined), rtol=1e-12, atol=1e-14)


def test_target_and_source_do_not_change_places(randomised) -> None:
    unit = randomised(ModalityReinforcementUnit(D, HEADS))
    x, y = torch.randn(2, 1, 4, D, dtype=torch.float64)
    assert not torch.allclose(unit(x, source=y), unit(y, source=x))
    with pytest.raises(TypeError, match="source"):
        unit(x, y)  # the order of torch's decoder layer


def test_gradcheck(randomised) -> None:
    unit = randomised(ModalityReinforcementUnit(4, 2))
    inputs = tuple(torch.randn(2, t, 4, dtype=torch.float64, requires_grad=True) for t in (3, 1, 2))
    mask = torch.tensor([[True, True, False], [False, False, False]])
    full = torch.ones(2, 1, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda a, b, target: unit(target, source=[a, b], source_layout=[mask, full]), inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4}, "heads: expected a divisor of channels = 6, got 4"),
        ({"residual": "both"}, "residual: expected 'normalized' or 'input', got 'both'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalityReinforcementUnit(**({"channels": D, "heads": HEADS} | options))


def test_bad_input_is_named() -> None:
    unit, x, mask = ModalityReinforcementUnit(D, HEADS), torch.randn(2, 3, D), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"target: expected \(B, T, 6\), .*got \(2, 3, 5\)"):
        unit(x[..., :5], source=x)
    with pytest.raises(ValueError, match=r"source\[1\]: expected \(B, T, 6\), .*got \(2, 3, 4\)"):
        unit(x, source=[x, x[..., :4]])
    with pytest.raises(ValueError, match=r"source\[0\]: expected a bool mask \(2, 3\), .*got torch.bool \(2, 2\)"):
        unit(x, source=[x], source_layout=[mask[:, 1:]])
    with pytest.raises(ValueError, match="source_layout: expected one for each of the 2 sources, got 1"):
        unit(x, source=[x, x], source_layout=[mask])
    with pytest.raises(ValueError, match="source_layout: expected one for each of the 2 sources, got 1"):
        unit(x, source=[x, x], source_layout=mask)
    with pytest.raises(ValueError, match="source: expected at least one, got none"):
        unit(x, source=[])
    with pytest.raises(ValueError, match=r"sources\[0\]: expected 2 samples as the target has, got 1"):
        unit(x, source=x[:1])


def test_the_map_is_that_of_the_queries_that_were_used() -> None:
    """A wrapper that draws or counts was called once more for the map."""
    unit, calls = ModalityReinforcementUnit(D, HEADS), []
    unit.query.register_forward_hook(lambda module, inputs, output: calls.append(output))
    unit(torch.randn(2, 3, D), source=torch.randn(2, 4, D), return_attention_weights=True)
    assert len(calls) == 1
