"""The predictive branch is its layers one after the other: attention per modality, then weights across modalities."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.nn import PredictiveEncoder, _side_by_side
from mea_graph.nn.attention import predictive_self_attention
from mea_graph.ops import IntervalEdges, Pointers, predictive_attention

D, HEADS = 6, 2
LENGTHS = {"text": [4, 1], "audio": [3, 5]}


@pytest.fixture
def x() -> dict[str, Tensor]:
    return {m: torch.randn(2, max(n), D, dtype=torch.float64) for m, n in LENGTHS.items()}


@pytest.fixture
def mask() -> dict[str, Tensor]:
    return {m: torch.arange(max(n)) < torch.tensor(n)[:, None] for m, n in LENGTHS.items()}


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_its_layers_in_turn(randomised, x, mask, num_layers: int, chain: bool, weighted: bool) -> None:
    encoder = randomised(PredictiveEncoder(D, LENGTHS, HEADS, num_layers, mu=0.4, prediction_chain=chain, weighted_attention=weighted))
    output = encoder(x, mask, return_attention_weights=True)
    current, prior, weights = dict(x), dict.fromkeys(x), []
    for i in range(num_layers):
        for m in x:
            current[m], prior[m], attention = encoder.attention[m][i](current[m], mask[m], prior[m] if chain else None, None, True)
            torch.testing.assert_close(output.attention[m][i], attention, rtol=1e-12, atol=1e-14)
        if weighted:
            current, psi = encoder.weighted[i](current, mask)
            weights.append(psi)
    for m in x:
        torch.testing.assert_close(output.x[m], current[m], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(output.modality_weights, weights, rtol=1e-12, atol=1e-14)
    assert len(output.modality_weights) == num_layers * weighted


def test_only_layers_that_can_use_a_prior_own_a_convolution() -> None:
    chained = PredictiveEncoder(D, LENGTHS, HEADS, num_layers=3)
    plain = PredictiveEncoder(D, LENGTHS, HEADS, num_layers=3, prediction_chain=False)
    for m in LENGTHS:
        assert [layer.predictor is not None for layer in chained.attention[m]] == [False, True, True]
        assert [layer.predictor is not None for layer in plain.attention[m]] == [False, False, False]


def test_options_reach_every_layer() -> None:
    encoder = PredictiveEncoder(D, LENGTHS, HEADS, num_layers=2, mu=0.7, residual="input", dropout=0.3)
    for m in LENGTHS:
        for layer in encoder.attention[m]:
            assert (layer.heads, layer.mu, layer.residual) == (HEADS, 0.7, "input")
            assert (layer.dropout.p, layer.feed_forward.dropout.p) == (0.3, 0.3)


def test_no_two_modalities_or_layers_share_parameters() -> None:
    encoder = PredictiveEncoder(D, LENGTHS, HEADS, num_layers=3)
    (one,) = {sum(p.numel() for p in layer.parameters()) for m in LENGTHS for layer in encoder.attention[m][1:]}
    predictor = HEADS * HEADS * 9 + HEADS
    weighted = 3 * 2 * (D * D + D + D)
    assert sum(p.numel() for p in encoder.parameters()) == 2 * (3 * one - predictor) + weighted


def test_maps_only_on_request(x, mask) -> None:
    encoder = PredictiveEncoder(D, LENGTHS, HEADS).double()
    assert encoder(x, mask).attention == {}
    assert [a.shape for a in encoder(x, mask, return_attention_weights=True).attention["audio"]] == [(2, HEADS, 5, 5)] * 3


def test_bad_input_is_named(x: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="num_layers: expected at least 1, got 0"):
        PredictiveEncoder(D, LENGTHS, HEADS, num_layers=0)
    with pytest.raises(ValueError, match="heads: expected a divisor of channels = 6, got 4"):
        PredictiveEncoder(D, LENGTHS, heads=4)
    with pytest.raises(ValueError, match=r"x: expected the modalities \['text', 'audio'\], got \['text'\]"):
        PredictiveEncoder(D, LENGTHS, HEADS)({"text": x["text"]})
    with pytest.raises(ValueError, match=r"layout: expected the modalities \['text', 'audio'\], got \['text'\]"):
        PredictiveEncoder(D, LENGTHS, HEADS).double()(x, {"text": torch.ones(2, 4, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"x: expected the same number of samples in every modality, got {'text': 2, 'audio': 1}"):
        PredictiveEncoder(D, LENGTHS, HEADS).double()(x | {"audio": x["audio"][:1]})
    wrong: dict[str, Any] = x | {"text": x["text"][..., :4]}
    with pytest.raises(ValueError, match=r"expected \(B, T, 6\), .*got \(2, 4, 4\)"):
        PredictiveEncoder(D, LENGTHS, HEADS)(wrong)


def _set_by_set(calls: list[int]) -> Callable[..., Tensor]:
    """Stands in for the kernels of a GPU, which take all sets at once."""

    def attend(query, key, value, prior_query, prior_key, weights, biases, mu, pointers, together):
        assert together.num_rows == query.size(0)
        calls.append(len(pointers))
        parts = zip(*(t.split([p.num_rows for p in pointers]) for t in (query, key, value, prior_query, prior_key)), strict=True)
        return torch.cat(
            [
                predictive_attention(q, k, v, p, q_prior, k_prior, weight, bias, mu)
                for (q, k, v, q_prior, k_prior), p, weight, bias in zip(parts, pointers, weights, biases, strict=True)
            ]
        )

    return attend


def _widen(encoder: PredictiveEncoder) -> None:
    encoder.attention["text"][1].mu = 0.5


CHANGES = {
    "as built": (lambda encoder: None, 2),
    "hook on a convolution": (lambda encoder: encoder.attention["text"][1].predictor.register_forward_hook(lambda *_: None), 0),
    "another share": (_widen, 1),
    "dropped weights": (lambda encoder: [setattr(a, "p", 0.5) for a in encoder.modules() if isinstance(a, torch.nn.Dropout)], 2),
}


@pytest.mark.parametrize(("change", "calls"), CHANGES.values(), ids=CHANGES)
def test_on_a_device_all_modalities_are_guided_in_one_call(randomised, x, mask, monkeypatch, change, calls: int) -> None:
    encoder = randomised(PredictiveEncoder(D, LENGTHS, HEADS, num_layers=3)).eval()
    change(encoder)
    expected = encoder(x, mask)
    seen: list[int] = []
    monkeypatch.setattr(predictive_self_attention, "predictive_attention_of_sets", _set_by_set(seen))
    monkeypatch.setattr(_side_by_side, "_launches", lambda device: True)
    found = encoder(x, mask)
    assert seen == [len(LENGTHS)] * calls
    for m in x:
        torch.testing.assert_close(found.x[m], expected.x[m], rtol=1e-12, atol=1e-14)


def test_maps_windows_and_dropped_weights_take_a_call_for_each_modality(randomised, x, mask, monkeypatch) -> None:
    encoder = randomised(PredictiveEncoder(D, LENGTHS, HEADS, num_layers=2, attention_dropout=0.5))
    rows = {m: x[m][own] for m, own in mask.items()}
    pointers = {m: Pointers.from_ptr(torch.tensor([0, *n]).cumsum(0)) for m, n in LENGTHS.items()}
    seen: list[int] = []
    monkeypatch.setattr(predictive_self_attention, "predictive_attention_of_sets", _set_by_set(seen))
    monkeypatch.setattr(_side_by_side, "_launches", lambda device: True)
    encoder.train()(x, mask)
    encoder.eval()(x, mask, return_attention_weights=True)
    encoder(rows, pointers, {"text": IntervalEdges.window(pointers["text"], pointers["text"], steps=1)})
    assert not seen
    encoder(x, mask)
    assert seen == [len(LENGTHS)]
