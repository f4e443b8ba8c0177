"""Eq. 15-16 and R6: what the two discriminators compute, and where their gradients go."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mea_graph.nn import DoubleDiscriminator

B, D_H = 4, 5
NAMES = ["text", "audio", "vision"]


@pytest.fixture
def exclusive() -> dict[str, Tensor]:
    return {m: torch.randn(B, D_H, dtype=torch.float64, requires_grad=True) for m in NAMES}


@pytest.fixture
def agnostic() -> dict[str, Tensor]:
    return {m: torch.randn(B, D_H, dtype=torch.float64, requires_grad=True) for m in NAMES}


def test_equals_the_formula(formulas, randomised, exclusive, agnostic) -> None:
    layer = randomised(DoubleDiscriminator(D_H, NAMES))
    found = layer(exclusive, agnostic)
    for i, m in enumerate(NAMES):
        h_e, h_a = exclusive[m].detach().numpy(), agnostic[m].detach().numpy()
        for h, logits in ((h_e, found.exclusive), (h_a, found.agnostic)):
            expected = formulas.linear(formulas.gelu(formulas.linear(h, layer.hidden)), layer.out)
            np.testing.assert_allclose(logits[:, i].detach().numpy(), expected, rtol=1e-9, atol=1e-12)
        importance = h_a @ layer.importance.weight.detach().numpy().T  # softmax(h W_i) has no bias
        np.testing.assert_allclose(found.importance[:, i].detach().numpy(), importance, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.omega[:, i].numpy(), 1 - formulas.softmax(importance)[:, i], rtol=1e-9, atol=1e-12)


def test_both_spaces_meet_the_same_network(randomised, agnostic) -> None:
    found = randomised(DoubleDiscriminator(D_H, NAMES))(agnostic, agnostic)
    assert torch.equal(found.exclusive, found.agnostic)


@pytest.mark.parametrize("reversal", [1.0, 0.3])
def test_only_the_agnostic_gradient_is_reversed(randomised, agnostic, reversal: float) -> None:
    layer = randomised(DoubleDiscriminator(D_H, NAMES, reversal=reversal))
    found = layer(agnostic, agnostic)
    weights, h = list(layer.hidden.parameters()) + list(layer.out.parameters()), list(agnostic.values())
    to_layer, to_layer_reversed = (torch.autograd.grad(z.square().sum(), weights, retain_graph=True) for z in found[:2])
    to_h, to_h_reversed = (torch.autograd.grad(z.square().sum(), h, retain_graph=True) for z in found[:2])
    torch.testing.assert_close(to_layer_reversed, to_layer, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(to_h_reversed, tuple(-reversal * g for g in to_h), rtol=1e-12, atol=1e-14)
    assert all(g.any() for g in (*to_layer, *to_h))


def test_with_confusion_the_discriminator_and_the_representations_learn_apart(randomised, exclusive, agnostic) -> None:
    layer = randomised(DoubleDiscriminator(D_H, NAMES, adversary="confusion"))
    found = layer(exclusive, agnostic)
    torch.testing.assert_close(found.confusion, found.agnostic, rtol=1e-12, atol=1e-14)
    weights, h = list(layer.hidden.parameters()) + list(layer.out.parameters()), list(agnostic.values())
    both = [*weights, *h]
    to_discriminator = torch.autograd.grad(found.agnostic.square().sum(), both, allow_unused=True, retain_graph=True)
    to_representations = torch.autograd.grad(found.confusion.square().sum(), both, allow_unused=True)
    assert [g is None for g in to_discriminator] == [False] * len(weights) + [True] * len(h)
    assert [g is None for g in to_representations] == [True] * len(weights) + [False] * len(h)
    plain = randomised(DoubleDiscriminator(D_H, NAMES))
    plain.load_state_dict(layer.state_dict())
    expected = torch.autograd.grad(plain(agnostic, None).exclusive.square().sum(), h)  # unreversed
    torch.testing.assert_close(to_representations[len(weights) :], expected, rtol=1e-12, atol=1e-14)
    assert plain(exclusive, agnostic).confusion is None


def test_with_confusion_whatever_stands_in_place_of_a_layer_is_called_and_held(agnostic) -> None:
    """As LoRA and quantisation put it there: a module without a weight of its own."""
    layer = DoubleDiscriminator(D_H, NAMES, adversary="confusion").double()
    wanted = layer(None, agnostic).confusion
    layer.hidden, layer.out = (nn.Sequential(part, nn.Identity()) for part in (layer.hidden, layer.out))
    found = layer(None, agnostic).confusion
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert torch.autograd.grad(found.sum(), list(layer.parameters()), allow_unused=True) == (None,) * 5
    layer.hidden.append(nn.Linear(D_H, D_H).double())
    assert not torch.allclose(layer(None, agnostic).confusion, wanted)


def test_the_importance_discriminator_trains_itself_alone(randomised, exclusive, agnostic) -> None:
    layer = randomised(DoubleDiscriminator(D_H, NAMES))
    found = layer(exclusive, agnostic)
    assert not found.omega.requires_grad
    leaves = [*agnostic.values(), *exclusive.values(), *layer.hidden.parameters(), *layer.out.parameters()]
    others = torch.autograd.grad(found.importance.square().sum(), leaves, allow_unused=True, retain_graph=True)
    assert others == (None,) * len(leaves)
    (own,) = torch.autograd.grad(found.importance.square().sum(), layer.importance.weight)
    assert own.any()


def test_without_importance_every_degree_is_one(randomised, exclusive, agnostic) -> None:
    layer = randomised(DoubleDiscriminator(D_H, NAMES, importance=False))
    found = layer(exclusive, agnostic)
    assert layer.importance is None
    assert found.importance is None
    assert torch.equal(found.omega, torch.ones(B, len(NAMES), dtype=torch.float64))


def test_a_space_that_is_not_there_is_none(exclusive, agnostic) -> None:
    layer = DoubleDiscriminator(D_H, NAMES).double()
    only_exclusive, only_agnostic = layer(exclusive, None), layer(None, agnostic)
    assert [part is None for part in only_exclusive] == [False, True, True, True, True]
    assert [part is None for part in only_agnostic] == [True, False, False, False, True]


@pytest.mark.parametrize("count", [2, 4, 5])
def test_any_number_of_modalities(count: int) -> None:
    h = {f"m{i}": torch.randn(B, D_H) for i in range(count)}
    found = DoubleDiscriminator(D_H, h)(h, h)
    assert found.exclusive.shape == found.agnostic.shape == found.importance.shape == (B, count, count)
    assert found.omega.shape == (B, count)


def test_bad_input_is_named(exclusive, agnostic) -> None:
    layer = DoubleDiscriminator(D_H, NAMES).double()
    with pytest.raises(ValueError, match=r"agnostic: expected the modalities \['text', 'audio', 'vision'\], got \['text'\]"):
        layer(exclusive, {"text": agnostic["text"]})
    with pytest.raises(ValueError, match=r"exclusive: expected the modalities .*'gaze'"):
        layer(exclusive | {"gaze": exclusive["text"]}, agnostic)
    with pytest.raises(ValueError, match=r"agnostic: expected the same number of samples in every modality, got .*'text': 1"):
        layer(exclusive, agnostic | {"text": agnostic["text"][:1]})
    with pytest.raises(ValueError, match="modalities: expected at least 2 different names"):
        DoubleDiscriminator(D_H, ["text"])
    with pytest.raises(ValueError, match="reversal: expected a finite number of at least 0, got -1"):
        DoubleDiscriminator(D_H, NAMES, reversal=-1)
    with pytest.raises(ValueError, match="adversary: expected 'reversal' or 'confusion', got 'entropy'"):
        DoubleDiscriminator(D_H, NAMES, adversary="entropy")
