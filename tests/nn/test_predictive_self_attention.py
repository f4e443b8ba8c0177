"""Eq. 2-4 for one layer, head by head and neighbour by neighbour, from the layer's own parameters."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from mea_graph.nn import PredictiveSelfAttention, Prior

B, T, D, HEADS = 2, 5, 6, 2
LENGTHS = [5, 3]
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]


def literal(layer: PredictiveSelfAttention, z: np.ndarray, logits_before: np.ndarray | None, formulas) -> tuple[np.ndarray, ...]:
    """One unpadded sequence (T, d) in; Z_e, the map A and the logits A_cur (both (K, T, T)) out."""
    steps, width = len(z), D // HEADS
    normalised = formulas.layer_norm(z, layer.norm)
    weight, bias = layer.query_key_value.weight.detach().numpy(), layer.query_key_value.bias.detach().numpy()
    query, key, value = (normalised @ weight[i * D : (i + 1) * D].T + bias[i * D : (i + 1) * D] for i in range(3))
    logits = np.zeros((HEADS, steps, steps))
    for h in range(HEADS):
        own = slice(h * width, (h + 1) * width)
        logits[h] = query[:, own] @ key[:, own].T / math.sqrt(width)
    attention = formulas.softmax(logits)
    if logits_before is not None:
        kernel, offset = layer.predictor.weight.detach().numpy(), layer.predictor.bias.detach().numpy()
        framed = np.pad(logits_before, ((0, 0), (1, 1), (1, 1)))
        predicted = np.zeros_like(logits)
        for o in range(HEADS):
            for i in range(steps):
                for j in range(steps):
                    predicted[o, i, j] = offset[o] + (kernel[o] * framed[:, i : i + 3, j : j + 3]).sum()
        attention = formulas.softmax(layer.mu * formulas.gelu(predicted) + (1 - layer.mu) * attention)
    attended = np.concatenate([attention[h] @ value[:, h * width : (h + 1) * width] for h in range(HEADS)], -1)
    z_prime = (normalised if layer.residual == "normalized" else z) + formulas.linear(attended, layer.out)
    block = layer.feed_forward
    return formulas.feed_forward(z_prime, block.norm, block.expand, block.contract), attention, logits


@pytest.mark.parametrize("residual", ["normalized", "input"])
@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
def test_three_layers_equal_the_formula(formulas, randomised, mu: float, residual: Any) -> None:
    layers = [randomised(PredictiveSelfAttention(D, HEADS, mu, prediction=i > 0, residual=residual)) for i in range(3)]
    x = torch.randn(B, T, D, dtype=torch.float64)
    expected, logits = [x[b, :n].numpy() for b, n in enumerate(LENGTHS)], [None] * B
    prior = None
    for layer in layers:
        x, prior, attention = layer(x, MASK, prior, return_attention_weights=True)
        for b, n in enumerate(LENGTHS):
            expected[b], wanted, logits[b] = literal(layer, expected[b], logits[b], formulas)
            np.testing.assert_allclose(x[b, :n].detach().numpy(), expected[b], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(attention[b, :, :n, :n].detach().numpy(), wanted, rtol=1e-9, atol=1e-12)
            assert not attention[b, :, :, n:].any()


def test_the_prior_is_the_factored_logit_map_of_the_layer(formulas, randomised) -> None:
    layer = randomised(PredictiveSelfAttention(D, HEADS, prediction=False))
    x = torch.randn(B, T, D, dtype=torch.float64)
    _, prior = layer(x, MASK)
    assert prior.query.shape == (sum(LENGTHS), HEADS, D // HEADS)
    for b, (query, key) in enumerate(zip(prior.query.split(LENGTHS), prior.key.split(LENGTHS), strict=True)):
        logits = (query.transpose(0, 1) @ key.permute(1, 2, 0) / math.sqrt(D // HEADS)).detach()
        _, _, expected = literal(layer, x[b, : LENGTHS[b]].numpy(), None, formulas)
        np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_without_a_prior_the_layer_does_not_predict(randomised) -> None:
    layer = randomised(PredictiveSelfAttention(D, HEADS, mu=0.9))
    plain = PredictiveSelfAttention(D, HEADS, prediction=False).double()
    plain.load_state_dict({name: v for name, v in layer.state_dict().items() if not name.startswith("predictor")})
    x = torch.randn(B, T, D, dtype=torch.float64)
    assert torch.equal(layer(x, MASK)[0], plain(x, MASK)[0])


def test_asking_for_the_map_does_not_change_the_result(randomised) -> None:
    layer = randomised(PredictiveSelfAttention(D, HEADS))
    x = torch.randn(B, T, D, dtype=torch.float64)
    _, prior = layer(x, MASK)
    torch.testing.assert_close(layer(x, MASK, prior, return_attention_weights=True)[0], layer(x, MASK, prior)[0], rtol=1e-12, atol=1e-14)


def test_the_gradient_reaches_the_layer_before_through_its_logits(randomised) -> None:
    layer = randomised(PredictiveSelfAttention(D, HEADS))
    x = torch.randn(1, T, D, dtype=torch.float64, requires_grad=True)
    z = torch.randn(1, T, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, x: layer(z, prior=layer(x)[1])[0], (z, x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels: expected an integer of at least 1, got 0"),
        ({"heads": 4}, "heads: expected a divisor of channels = 6, got 4"),
        ({"heads": 0}, "heads: expected a divisor of channels = 6, got 0"),
        ({"mu": 1.01}, r"mu: expected a number in \[0, 1\], got 1.01"),
        ({"mu": -0.5}, r"mu: expected a number in \[0, 1\], got -0.5"),
        ({"residual": "none"}, "residual: expected 'normalized' or 'input', got 'none'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictiveSelfAttention(**({"channels": D, "heads": HEADS} | options))


def test_bad_input_is_named() -> None:
    layer, x = PredictiveSelfAttention(D, HEADS), torch.randn(B, T, D)
    _, prior = layer(x)
    with pytest.raises(ValueError, match=r"x: expected \(B, T, 6\), .*got \(2, 5, 8\)"):
        layer(torch.randn(B, T, 8))
    with pytest.raises(ValueError, match=r"x: expected a bool mask \(2, 5\), .*got torch.bool \(2, 5, 5\)"):
        layer(x, MASK[:, None].expand(-1, T, -1))
    with pytest.raises(ValueError, match="prior: expected None, since the layer was built with prediction=False, got a Prior"):
        PredictiveSelfAttention(D, HEADS, prediction=False)(x, prior=prior)
    with pytest.raises(ValueError, match=r"prior: expected that of 10 rows, as the layer before had, got 9"):
        layer(x, prior=Prior(prior.query[1:], prior.key[1:]))
