"""Eq. 2 against loops over samples, heads, steps and 3 x 3 neighbourhoods, and against the folding identity, on every CPU backend."""

import functools
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops import predictive_attention, predictive_attention_map

B, K, T, D, D_VALUE, D_PRIOR = 3, 2, 5, 3, 4, 6
LENGTHS = torch.tensor([5, 3, 0])
MASK = torch.arange(T) < LENGTHS[:, None]

Attend = functools.partial[Tensor]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {
        "query": random(B, K, T, D),
        "key": random(B, K, T, D),
        "value": random(B, K, T, D_VALUE),
        "prior_query": random(B, K, T, D_PRIOR),
        "prior_key": random(B, K, T, D_PRIOR),
        "weight": random(K, K, 3, 3),
        "bias": random(K),
    }


@pytest.fixture(params=["cpu", "reference"])
def attend(request: pytest.FixtureRequest) -> Attend:
    return functools.partial(predictive_attention, backend=request.param)


def without_value(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: v for name, v in inputs.items() if name != "value"}


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def softmax(scores: dict[int, float]) -> dict[int, float]:
    total = sum(math.exp(s) for s in scores.values())
    return {j: math.exp(s) / total for j, s in scores.items()}


def dot(x: Tensor, y: Tensor) -> float:
    return sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))


def loop_map(inputs: dict[str, Tensor], mu: float, mask: Tensor) -> Tensor:
    """The map A, (B, K, T, T), one entry after the other; zero in rows and columns of steps that are not real."""
    query, key, prior_query, prior_key, weight = (inputs[n] for n in ("query", "key", "prior_query", "prior_key", "weight"))
    attention = torch.zeros(B, K, T, T, dtype=torch.float64)
    for b in range(B):
        real = [t for t in range(T) if mask[b, t]]

        def previous(h: int, i: int, j: int, b: int = b, real: list[int] = real) -> float:
            return dot(prior_query[b, h, i], prior_key[b, h, j]) / math.sqrt(D_PRIOR) if i in real and j in real else 0.0

        for o in range(K):
            for i in real:
                current = softmax({j: dot(query[b, o, i], key[b, o, j]) / math.sqrt(D) for j in real})
                mixed = {}
                for j in real:
                    seen = float(inputs["bias"][o])
                    for h in range(K):
                        for x in (-1, 0, 1):
                            for y in (-1, 0, 1):
                                seen += float(weight[o, h, x + 1, y + 1]) * previous(h, i + x, j + y)
                    mixed[j] = mu * gelu(seen) + (1 - mu) * current[j]
                for j, a in softmax(mixed).items():
                    attention[b, o, i, j] = a
    return attention


@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(
    "mask", [MASK, MASK | True, torch.tensor([[True, False, True, True, False]]).expand(B, T)], ids=["ragged", "full", "gap"]
)
def test_equals_the_loops(attend: Attend, inputs: dict[str, Tensor], mu: float, mask: Tensor) -> None:
    expected = loop_map(inputs, mu, mask)
    attention = predictive_attention_map(**without_value(inputs), mu=mu, mask=mask)
    rows = mask[:, None, :, None]
    torch.testing.assert_close(attention * rows, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(attend(**inputs, mu=mu, mask=mask), expected @ inputs["value"], rtol=1e-9, atol=1e-12)


def test_no_mask_means_that_all_steps_are_real(attend: Attend, inputs: dict[str, Tensor]) -> None:
    torch.testing.assert_close(attend(**inputs), attend(**inputs, mask=MASK | True), rtol=1e-12, atol=1e-14)


def test_the_convolution_commutes_with_the_outer_product(inputs: dict[str, Tensor]) -> None:
    """conv(A_pre)[o, i, j] = b_o + s sum_y <qhat_oy(i), k(j + y)>: the identity that a fused kernel may rest on."""
    prior_query, prior_key = (inputs[n] * MASK[:, None, :, None] for n in ("prior_query", "prior_key"))
    query, key = (F.pad(p, (0, 0, 1, 1)) for p in (prior_query, prior_key))  # a row of zeros before and after the sequence
    keys = key.transpose(1, 2).flatten(2)  # (B, T + 2, K D), k(j) of all heads
    predicted = inputs["bias"][None, :, None, None].expand(B, K, T, T).clone()
    for o in range(K):
        for y in (-1, 0, 1):
            folded = torch.cat(
                [sum(inputs["weight"][o, h, x + 1, y + 1] * query[:, h, 1 + x : 1 + x + T] for x in (-1, 0, 1)) for h in range(K)], -1
            )  # (B, T, K D), qhat_oy(i)
            predicted[:, o] += folded @ keys[:, 1 + y : 1 + y + T].mT / math.sqrt(D_PRIOR)
    mu, hidden = 0.4, ~MASK[:, None, None, :]
    current = (inputs["query"] @ inputs["key"].mT / math.sqrt(D)).masked_fill(hidden, -torch.inf).softmax(-1)
    mixed = (mu * F.gelu(predicted) + (1 - mu) * current).masked_fill(hidden, -torch.inf).softmax(-1)
    expected = mixed.nan_to_num(0) * MASK[:, None, :, None]
    attention = predictive_attention_map(**without_value(inputs), mu=mu, mask=MASK) * MASK[:, None, :, None]
    torch.testing.assert_close(attention, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["plain", "reference"])
@pytest.mark.parametrize("mask", [None, MASK[:2]])
def test_without_a_prior_it_is_plain_attention(inputs: dict[str, Tensor], mask: Tensor | None, backend: str) -> None:
    query, key, value = (inputs[n][:2] for n in ("query", "key", "value"))
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=None if mask is None else mask[:, None, None, :])
    expected = plain if mask is None else plain * mask[:, None, :, None]
    attended = predictive_attention(query, key, value, mu=0.7, mask=mask, backend=backend)
    torch.testing.assert_close(attended, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(attended, predictive_attention(query, key, value, mu=0.1, mask=mask, backend=backend))


def test_mu_0_is_the_softmax_of_the_softmax_as_printed(inputs: dict[str, Tensor]) -> None:
    current = (inputs["query"] @ inputs["key"].mT / D**0.5).softmax(-1)
    torch.testing.assert_close(predictive_attention_map(**without_value(inputs), mu=0.0), current.softmax(-1), rtol=1e-12, atol=1e-14)


def test_mu_1_is_the_prediction_alone(inputs: dict[str, Tensor]) -> None:
    other = without_value(inputs) | {"query": random(B, K, T, D), "key": random(B, K, T, D)}
    assert torch.equal(predictive_attention_map(**without_value(inputs), mu=1.0), predictive_attention_map(**other, mu=1.0))
    previous = inputs["prior_query"] @ inputs["prior_key"].mT / D_PRIOR**0.5
    predicted = F.gelu(F.conv2d(previous, inputs["weight"], inputs["bias"], padding="same"))
    torch.testing.assert_close(predictive_attention_map(**without_value(inputs), mu=1.0), predicted.softmax(-1), rtol=1e-12, atol=1e-14)


def test_no_bias_is_a_bias_of_zero(attend: Attend, inputs: dict[str, Tensor]) -> None:
    zero = attend(**(inputs | {"bias": torch.zeros(K, dtype=torch.float64)}), mask=MASK)
    del inputs["bias"]
    assert torch.equal(attend(**inputs, mask=MASK), zero)


def test_the_map_times_the_values_is_the_result(attend: Attend, inputs: dict[str, Tensor]) -> None:
    attention = predictive_attention_map(**without_value(inputs), mask=MASK)
    expected = attention @ inputs["value"] * MASK[:, None, :, None]
    torch.testing.assert_close(attend(**inputs, mask=MASK), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(attention.sum(-1)[:2], torch.ones(2, K, T, dtype=torch.float64), rtol=1e-12, atol=0)
    assert not attention.masked_select(~MASK[:, None, None, :]).any()


def test_finite_junk_in_the_padding_changes_nothing(attend: Attend, inputs: dict[str, Tensor]) -> None:
    sequences = ("query", "key", "value", "prior_query", "prior_key")
    dirty = inputs | {n: inputs[n].masked_fill(~MASK[:, None, :, None], 1e30) for n in sequences}
    assert torch.equal(attend(**dirty, mask=MASK), attend(**inputs, mask=MASK))


def test_a_sample_without_steps_gives_zeros_and_no_gradient(attend: Attend, inputs: dict[str, Tensor]) -> None:
    inputs = {n: v.requires_grad_() for n, v in inputs.items()}
    out = attend(**inputs, mask=MASK)
    assert not out[2].any()
    out.square().sum().backward()
    for name in ("query", "key", "value", "prior_query", "prior_key"):
        assert not inputs[name].grad[2].any(), name


@pytest.mark.parametrize(("batch", "length"), [(0, T), (B, 0), (0, 0), (B, 1)])
def test_empty_sizes_are_legal(attend: Attend, batch: int, length: int) -> None:
    shapes = {"query": D, "key": D, "value": D_VALUE, "prior_query": D_PRIOR, "prior_key": D_PRIOR}
    inputs = {n: random(batch, K, length, d) for n, d in shapes.items()} | {"weight": random(K, K, 3, 3), "bias": random(K)}
    assert attend(**inputs).shape == (batch, K, length, D_VALUE)
    assert predictive_attention_map(**without_value(inputs)).shape == (batch, K, length, length)


@pytest.mark.parametrize("mu", [0.25, 1.0])
def test_gradcheck(attend: Attend, inputs: dict[str, Tensor], mu: float) -> None:
    names = list(inputs)
    values = tuple(v.requires_grad_() for v in inputs.values())
    run = lambda *tensors: attend(**dict(zip(names, tensors, strict=True)), mu=mu, mask=MASK)  # noqa: E731
    assert torch.autograd.gradcheck(run, values, fast_mode=attend.keywords["backend"] != "reference")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": random(K, T, D)}, r"query: expected \(B, K, T, D\), got \(2, 5, 3\)"),
        ({"key": random(B, K, T + 1, D)}, r"key: expected \(3, 2, 5, 3\) as query, got \(3, 2, 6, 3\)"),
        ({"mask": MASK[:, 1:]}, r"mask: expected bool \(3, 5\), got torch.bool \(3, 4\)"),
        ({"mask": MASK.double()}, r"mask: expected bool \(3, 5\), got torch.float64"),
        ({"mask": MASK.long()}, r"mask: expected bool \(3, 5\), got torch.int64"),
        ({"prior_key": None}, "prior_query, prior_key and weight: expected all of them or none"),
        ({"weight": None}, "prior_query, prior_key and weight: expected all of them or none"),
        ({"prior_query": random(B, K, T - 1, D_PRIOR)}, r"prior_query, prior_key: expected \(3, 2, 5, any\), got \(3, 2, 4, 6\)"),
        ({"prior_query": random(B, K, T, D)}, r"prior_query, prior_key: expected .*\(3, 2, 5, 3\), \(3, 2, 5, 6\)"),
        ({"weight": random(K, K, 5, 5)}, r"weight: expected \(2, 2, 3, 3\), got \(2, 2, 5, 5\)"),
        ({"bias": random(K + 1)}, r"bias: expected \(2,\), got \(3,\)"),
        ({"mu": 1.5}, r"mu: expected a number in \[0, 1\], got 1.5"),
        ({"mu": -0.1}, r"mu: expected a number in \[0, 1\], got -0.1"),
    ],
)
def test_bad_input_is_named(inputs: dict[str, Tensor], change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = inputs | change
    with pytest.raises(ValueError, match=message):
        predictive_attention(**arguments)
    del arguments["value"]
    with pytest.raises(ValueError, match=message):
        predictive_attention_map(**arguments)


@pytest.mark.parametrize("shape", [(B, K, T + 1, D_VALUE), (B, 1, T, D_VALUE), (B, T, D_VALUE)])
def test_a_bad_value_is_named(inputs: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"value: expected \(3, 2, 5, any\), got " + re.escape(str(shape))):
        predictive_attention(**(inputs | {"value": random(*shape)}))
