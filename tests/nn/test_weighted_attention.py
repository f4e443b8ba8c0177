"""Eq. 5-6, tied along time (R3): a score per modality from the mean over its real steps, a softmax over modalities."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mea_graph.nn import WeightedAttention

D = 4
LENGTHS = {"text": [3, 1, 0, 0], "audio": [5, 2, 4, 0], "vision": [2, 0, 1, 0]}  # the last sample is empty


@pytest.fixture
def x() -> dict[str, Tensor]:
    return {m: torch.randn(4, max(n), D, dtype=torch.float64) for m, n in LENGTHS.items()}


@pytest.fixture
def mask() -> dict[str, Tensor]:
    return {m: torch.arange(max(n)) < torch.tensor(n)[:, None] for m, n in LENGTHS.items()}


def literal(layer: WeightedAttention, x: dict[str, Tensor], sample: int) -> list[float]:
    """The weights of one sample, in the order of the modalities."""
    gamma: dict[str, float] = {}
    for m in layer.modalities:
        transform, score = layer.transform[m], layer.score[m]
        steps = [x[m][sample, t].numpy() for t in range(LENGTHS[m][sample])]
        if steps:
            w, b, p = (v.detach().numpy() for v in (transform.weight, transform.bias, score.weight))
            gamma[m] = sum(float(p[0] @ np.tanh(w @ z + b)) for z in steps) / len(steps)
    total = sum(math.exp(g) for g in gamma.values())
    return [math.exp(gamma[m]) / total if m in gamma else 0.0 for m in layer.modalities]


def test_equals_the_formula(randomised, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    layer = randomised(WeightedAttention(D, LENGTHS))
    out, weights = layer(x, mask)
    for b in range(4):
        expected = literal(layer, x, b)
        np.testing.assert_allclose(weights[b].detach().numpy(), expected, rtol=1e-9, atol=1e-12)
        for i, (m, n) in enumerate(LENGTHS.items()):
            scaled = out[m][b].detach().numpy()
            np.testing.assert_allclose(scaled[: n[b]], expected[i] * x[m][b, : n[b]].numpy(), rtol=1e-9, atol=1e-12)
            assert not scaled[n[b] :].any()


def test_weights_sum_to_one_over_what_is_there(randomised, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    _, weights = randomised(WeightedAttention(D, LENGTHS))(x, mask)
    np.testing.assert_allclose(weights.sum(1).detach().numpy(), [1, 1, 1, 0], rtol=1e-12)
    assert weights[2, 0] == 0
    assert weights[1, 2] == 0


def test_a_lone_modality_keeps_its_scale(randomised) -> None:
    layer = randomised(WeightedAttention(D, ["pulse"]))
    x = torch.randn(2, 3, D, dtype=torch.float64)
    assert torch.equal(layer({"pulse": x})[0]["pulse"], x)


def test_the_order_in_which_modalities_are_passed_does_not_matter(randomised, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    layer = randomised(WeightedAttention(D, LENGTHS))
    assert torch.equal(layer(dict(reversed(x.items())), mask)[1], layer(x, mask)[1])


def test_gradcheck(randomised) -> None:
    layer = randomised(WeightedAttention(2, ["a", "b"]))
    inputs = tuple(torch.randn(2, t, 2, dtype=torch.float64, requires_grad=True) for t in (3, 1))
    assert torch.autograd.gradcheck(lambda a, b: tuple(layer({"a": a, "b": b})[0].values()), inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gaze": torch.zeros(4, 1, D)}, r"x: expected the modalities \['text', 'audio', 'vision'\], got .*'gaze'"),
        ({"audio": torch.zeros(4, 5, D + 1)}, r"audio: expected \(B, T, 4\), .*got \(4, 5, 5\)"),
        ({"audio": torch.zeros(4, 6, D)}, r"audio: expected a bool mask \(4, 6\), .*got torch.bool \(4, 5\)"),
    ],
)
def test_bad_input_is_named(x: dict[str, Tensor], mask: dict[str, Tensor], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedAttention(D, LENGTHS).double()(x | change, mask)


def test_a_bad_mask_or_batch_is_named(x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    layer = WeightedAttention(D, LENGTHS).double()
    del mask["audio"]
    with pytest.raises(ValueError, match=r"layout: expected the modalities \['text', 'audio', 'vision'\], got \['text', 'vision'\]"):
        layer(x, mask)
    with pytest.raises(
        ValueError, match=r"x: expected the same number of samples in every modality, got {'text': 4, 'audio': 3, 'vision': 4}"
    ):
        layer(x | {"audio": x["audio"][:3]})
    with pytest.raises(ValueError, match="channels: expected an integer of at least 1, got 0"):
        WeightedAttention(0, LENGTHS)


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a.b", "c"], ["forward", "a"], ["", "a"], [1, "a"]])
def test_bad_names_are_refused(names: list[Any]) -> None:
    with pytest.raises(ValueError, match="modalities: expected"):
        WeightedAttention(D, names)
