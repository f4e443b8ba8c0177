"""Eq. 11-12: pool over the real steps (R5), then a two-layer perceptron with GELU."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn import AttentionalAggregation

from mea_graph.nn import AgnosticEncoder, ExclusiveEncoder
from mea_graph.ops import Pointers

D, D_H, T = 4, 5, 7
LENGTHS = [7, 3, 1, 0]
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
POOLINGS = [("mean", 4), ("max", 4), ("segments", 1), ("segments", 2), ("segments", 3), ("segments", 10)]


def pool(steps: np.ndarray, pooling: str, segments: int) -> np.ndarray:
    """One unpadded sequence (n, d) with n > 0. Step t of n lies in segment floor(t S / n); an empty segment gives zeros."""
    if pooling == "mean":
        return steps.mean(0)
    if pooling == "max":
        return steps.max(0)
    parts = []
    for s in range(segments):
        members = [steps[t] for t in range(len(steps)) if s * len(steps) <= t * segments < (s + 1) * len(steps)]
        parts.append(np.mean(members, 0) if members else np.zeros(steps.shape[1]))
    return np.concatenate(parts)


@pytest.mark.parametrize("build", [ExclusiveEncoder, AgnosticEncoder])
@pytest.mark.parametrize(("pooling", "segments"), POOLINGS)
def test_equals_the_formula(formulas, randomised, build: Any, pooling: str, segments: int) -> None:
    encoder = randomised(build(D, D_H, pooling=pooling, segments=segments))
    x = torch.randn(len(LENGTHS), T, D, dtype=torch.float64) - 3  # below zero, where a maximum would notice a zero too many
    h = encoder(x, MASK)
    for b, n in enumerate(LENGTHS):
        expected = np.zeros(D_H)
        if n:
            pooled = pool(x[b, :n].numpy(), pooling, segments)
            expected = formulas.linear(formulas.gelu(formulas.linear(pooled, encoder.hidden)), encoder.out)
        np.testing.assert_allclose(h[b].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("watched", [False, True], ids=["at once", "each direction called"])
def test_gru_pooling_is_the_mean_of_the_states_of_torchs_own_bidirectional_gru(randomised, watched: bool) -> None:
    encoder = randomised(ExclusiveEncoder(D, D_H, "gru"))
    if watched:
        encoder.backward_gru.register_forward_hook(lambda *_: None)
    torchs = torch.nn.GRU(D, D_H, batch_first=True, bidirectional=True, dtype=torch.float64)
    for suffix, part in ("", encoder.forward_gru), ("_reverse", encoder.backward_gru):
        for name, parameter in part.named_parameters():
            getattr(torchs, name + suffix).data.copy_(parameter.data)
    x = torch.randn(len(LENGTHS), T, D, dtype=torch.float64)
    h = encoder(x, MASK)
    assert not h[LENGTHS.index(0)].any()
    for b, n in enumerate(LENGTHS[:3]):
        pooled = torchs(x[b : b + 1, :n])[0].mean(1)
        torch.testing.assert_close(h[b : b + 1], encoder.out(encoder.activation(encoder.hidden(pooled))), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("pooling", "segments"), [*POOLINGS, ("gru", 4)])
def test_gradcheck(randomised, pooling: Any, segments: int) -> None:
    encoder = randomised(ExclusiveEncoder(D, D_H, pooling, segments))
    x = torch.randn(len(LENGTHS), T, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encoder(x, MASK), x)


@pytest.mark.parametrize("pooling", ["mean", "gru"])
def test_one_agnostic_encoder_takes_every_length(pooling: Any) -> None:
    encoder = AgnosticEncoder(D, D_H, pooling)
    assert [encoder(torch.randn(2, t, D)).shape for t in (0, 1, 50)] == [(2, D_H)] * 3


def test_the_mean_forgets_the_order_and_segments_and_gru_keep_it(randomised) -> None:
    x = torch.randn(1, 8, D, dtype=torch.float64)
    mean, *others = (randomised(ExclusiveEncoder(D, D_H, pooling, 2)) for pooling in ("mean", "segments", "gru"))
    torch.testing.assert_close(mean(x), mean(x.flip(1)), rtol=1e-12, atol=1e-14)
    for encoder in others:
        assert not torch.allclose(encoder(x), encoder(x.flip(1)))


def test_gru_pooling_draws_new_weights() -> None:
    encoder = ExclusiveEncoder(D, D_H, "gru")
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    encoder.reset_parameters()
    assert len(before) == 12
    assert not any(torch.equal(before[name], parameter) for name, parameter in encoder.named_parameters())


def test_an_aggregation_of_ones_own_keeps_what_it_learned_until_a_reset() -> None:
    gate = nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
    gate[1].eval()
    learned = AttentionalAggregation(gate)
    before = {name: value.clone() for name, value in learned.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    encoder = ExclusiveEncoder(D, D_H, learned)
    assert encoder.aggregation is not learned
    for name, value in encoder.aggregation.state_dict().items():  # running statistics too, which a trial would move
        assert torch.equal(value, before[name]), name
    assert [part.training for part in encoder.aggregation.gate_nn] == [True, False, True, True]
    assert not torch.equal(state, torch.get_rng_state())  # the layers of the encoder itself are drawn
    encoder.reset_parameters()
    assert not torch.equal(encoder.aggregation.gate_nn[0].weight, before["gate_nn.0.weight"])


@pytest.mark.parametrize("pooling", ["mean", "segments"])
def test_sums_of_long_sequences_fit_into_half_precision(pooling: Any) -> None:
    """Many steps of some size add up to more than float16 can hold, and there may be more of them than it can count."""
    encoder = ExclusiveEncoder(1, D_H, pooling, segments=1).half().eval()
    x, ptr, mask = torch.full((70_000, 1), 2.0).half(), torch.tensor([0, 70_000]), torch.ones(1, 70_001, dtype=torch.bool)
    mask[:, -1] = False
    padded = torch.cat([x, x[:1]]).unsqueeze(0)
    few = encoder(x[:1000], torch.tensor([0, 1000])).float()
    for found in (encoder(x, ptr), encoder(padded, mask), encoder(padded[:, :-1]), encoder(padded[0], Pointers.from_mask(mask))):
        torch.testing.assert_close(found.float(), few, rtol=2e-3, atol=2e-3)


def test_bad_input_is_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"pooling: expected 'mean', 'segments', 'max', 'gru', a torch_geometric\.nn\.Aggregation or the name of one, got 'last'",
    ):
        ExclusiveEncoder(D, D_H, pooling="last")
    for sizes in ({"channels": 0}, {"out_channels": 0}, {"segments": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(sizes))}: expected an integer of at least 1, got 0"):
            ExclusiveEncoder(**({"channels": D, "out_channels": D_H} | sizes))
    with pytest.raises(ValueError, match=r"x: expected \(B, T, 4\), .*got \(2, 3, 5\)"):
        ExclusiveEncoder(D, D_H)(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match=r"x: expected a bool mask \(2, 3\), .*got torch.int64 \(2, 3\)"):
        ExclusiveEncoder(D, D_H)(torch.randn(2, 3, D), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="x: expected a mask that is True at real steps"):
        ExclusiveEncoder(D, D_H, "gru")(torch.randn(1, 3, D), torch.tensor([[False, True, True]]))


def test_segments_of_a_divisible_length_are_its_quarters(randomised) -> None:
    encoder = randomised(ExclusiveEncoder(D, D_H, "segments"))
    x = torch.randn(1, 12, D, dtype=torch.float64)
    quarters = x[0].unflatten(0, (4, 3)).mean(1).flatten()
    torch.testing.assert_close(encoder(x)[0], encoder.out(encoder.activation(encoder.hidden(quarters))), rtol=1e-12, atol=1e-14)
