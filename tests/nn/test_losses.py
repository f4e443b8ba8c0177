"""Eq. 13-16 against their printed forms: HSIC with n x n Gram matrices, the adversarial sums term by term."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.nn import agnostic_adversarial, exclusive_adversarial, hsic, modality_confusion, orthogonality

N = 7
MASKS = {
    "all": torch.ones(N, dtype=torch.bool),
    "some": torch.tensor([True, False, True, True, False, False, True]),
    "two": torch.tensor([False, False, True, True, False, False, False]),
}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def gram_hsic(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    return (centring @ (x @ x.mT) @ centring @ (y @ y.mT)).trace() / (n - 1) ** 2


def row_orthogonality(x: Tensor, y: Tensor) -> Tensor:
    x, y = (v / v.square().sum(1, keepdim=True).sqrt() for v in (x, y))
    return sum((x[:, i] @ y[:, j]) ** 2 for i in range(x.size(1)) for j in range(y.size(1)))


@pytest.mark.parametrize(("loss", "literal"), [(hsic, gram_hsic), (orthogonality, row_orthogonality)])
@pytest.mark.parametrize("kind", MASKS)
def test_disparity_equals_its_printed_form_over_the_rows_that_count(loss: Callable, literal: Callable, kind: str) -> None:
    x, y, mask = random(N, 4), random(N, 3), MASKS[kind]
    torch.testing.assert_close(loss(x, y, mask), literal(x[mask], y[mask]), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(loss(x[mask], y[mask]), literal(x[mask], y[mask]), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", [hsic, orthogonality])
def test_several_pairs_at_once_are_each_by_itself(loss: Callable) -> None:
    x, y, mask = random(2, 3, N, 4), random(2, 3, N, 5), torch.rand(2, 3, N) < 0.7
    for masks in (mask, None):
        found = loss(x, y, masks)
        pairs = zip(x.flatten(0, 1), y.flatten(0, 1), mask.flatten(0, 1), strict=True)
        alone = [loss(a, b, None if masks is None else own) for a, b, own in pairs]
        torch.testing.assert_close(found, torch.stack(alone).view(2, 3), rtol=1e-12, atol=1e-14)


def test_several_adversarial_losses_at_once() -> None:
    logits, omega, present = random(2, 4, 3, 3), torch.rand(4, 3, dtype=torch.float64), torch.rand(4, 3) < 0.6
    for loss, more in ((exclusive_adversarial, ()), (agnostic_adversarial, (omega,)), (modality_confusion, (omega,))):
        alone = torch.stack([loss(each, *more, present) for each in logits])
        torch.testing.assert_close(loss(logits, *more, present), alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [hsic, orthogonality])
@pytest.mark.parametrize("kind", MASKS)
def test_disparity_gradients(loss: Callable, kind: str) -> None:
    x, y, mask = random(N, 4).requires_grad_(), random(N, 3).requires_grad_(), MASKS[kind]
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, mask), (x, y))
    for gradient in torch.autograd.grad(loss(x, y, mask), (x, y)):
        assert not gradient[~mask].any()


@pytest.mark.parametrize("loss", [hsic, orthogonality])
def test_rows_that_do_not_count_may_hold_anything(loss: Callable) -> None:
    x, y, mask = random(N, 4), random(N, 3), MASKS["some"]
    dirty = [v.masked_fill(~mask[:, None], math.nan).requires_grad_() for v in (x, y)]
    assert torch.equal(loss(*dirty, mask), loss(x, y, mask))
    for gradient in torch.autograd.grad(loss(*dirty, mask), dirty):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [hsic, orthogonality])
@pytest.mark.parametrize(("rows", "count"), [(0, 0), (3, 0), (1, 1), (3, 1)])
def test_too_few_rows(loss: Callable, rows: int, count: int) -> None:
    """One row is no sample of a dependence, so HSIC is zero; orthogonality still is defined for it."""
    x, y = random(rows, 4).requires_grad_(), random(rows, 3).requires_grad_()
    value = loss(x, y, torch.arange(rows) < count)
    assert value.item() == 0 if loss is hsic or count == 0 else value.item() > 0
    for gradient in torch.autograd.grad(value, (x, y)):
        assert gradient.isfinite().all()


def test_hsic_ignores_shifts_and_vanishes_where_one_side_is_constant() -> None:
    x, y = random(N, 4), random(N, 3)
    torch.testing.assert_close(hsic(x + 5, y - 2), hsic(x, y), rtol=1e-10, atol=1e-13)
    assert hsic(x, torch.ones(N, 3, dtype=torch.float64)).item() == 0


def test_orthogonality_ignores_lengths_and_vanishes_for_orthogonal_columns() -> None:
    x, y = random(N, 4), random(N, 3)
    torch.testing.assert_close(orthogonality(3 * x, y / 7), orthogonality(x, y), rtol=1e-10, atol=1e-13)
    assert orthogonality(torch.tensor([[2.0, 0.0], [5.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, -4.0]])).item() == 0


@pytest.mark.parametrize("loss", [hsic, orthogonality])
def test_half_precision_is_summed_in_float32(loss: Callable) -> None:
    x, y = torch.randn(N, 4).bfloat16(), torch.randn(N, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(x, y), loss(x.float(), y.float()))


def log_likelihood(logits: Tensor, sample: int, modality: int) -> float:
    scores = [math.exp(z) for z in logits[sample, modality].tolist()]
    return math.log(scores[modality] / sum(scores))


@pytest.mark.parametrize("modalities", [2, 3, 5])
@pytest.mark.parametrize("missing", [False, True])
def test_adversarial_losses_by_hand(modalities: int, missing: bool) -> None:
    n = 4
    logits, omega = random(n, modalities, modalities), torch.rand(n, modalities, dtype=torch.float64)
    present = torch.rand(n, modalities) < 0.5 if missing else torch.ones(n, modalities, dtype=torch.bool)
    plain = weighed = 0.0
    for k in range(n):
        for m in range(modalities):
            if present[k, m]:
                plain -= log_likelihood(logits, k, m) / n
                weighed -= omega[k, m].item() * log_likelihood(logits, k, m) / n
    given = present if missing else None
    assert exclusive_adversarial(logits, given).item() == pytest.approx(plain, rel=1e-10)
    assert agnostic_adversarial(logits, omega, given).item() == pytest.approx(weighed, rel=1e-10)
    assert agnostic_adversarial(logits, torch.ones_like(omega), given).item() == pytest.approx(plain, rel=1e-10)


@pytest.mark.parametrize("modalities", [2, 3, 5])
@pytest.mark.parametrize("missing", [False, True])
def test_confusion_by_hand(modalities: int, missing: bool) -> None:
    n = 4
    logits, omega = random(n, modalities, modalities), torch.rand(n, modalities, dtype=torch.float64)
    present = torch.rand(n, modalities) < 0.5 if missing else torch.ones(n, modalities, dtype=torch.bool)
    divergence = 0.0
    for k in range(n):
        for m in range(modalities):
            p = [math.exp(z) for z in logits[k, m].tolist()]
            uniform = 1 / modalities
            terms = [uniform * math.log(uniform * sum(p) / value) for value in p]
            divergence += omega[k, m].item() * present[k, m].item() * sum(terms) / n
    assert modality_confusion(logits, omega, present if missing else None).item() == pytest.approx(divergence, rel=1e-10)


def test_confusion_is_least_where_the_discriminator_is_undecided() -> None:
    undecided, ones = random(5, 3, 1).expand(5, 3, 3), torch.ones(5, 3, dtype=torch.float64)
    assert modality_confusion(undecided, ones).item() == pytest.approx(0, abs=1e-12)
    assert modality_confusion(random(5, 3, 3), ones).item() > 0.01


def test_a_missing_modality_gives_no_gradient() -> None:
    logits, present = random(3, 2, 2).requires_grad_(), torch.tensor([[True, False], [False, False], [True, True]])
    (gradient,) = torch.autograd.grad(exclusive_adversarial(logits, present), logits)
    assert [[bool(g.any()) for g in row] for row in gradient] == present.tolist()


def test_an_empty_batch_is_legal() -> None:
    assert exclusive_adversarial(random(0, 3, 3)).item() == 0
    assert agnostic_adversarial(random(0, 3, 3), random(0, 3)).item() == 0
    assert modality_confusion(random(0, 3, 3), random(0, 3)).item() == 0


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (hsic, (random(3, 2), random(4, 2)), r"x, y: expected \(\*, n, d\) with one n, got \(3, 2\), \(4, 2\)"),
        (orthogonality, (random(3), random(3, 2)), r"x, y: expected \(\*, n, d\) with one n, got \(3,\), \(3, 2\)"),
        (hsic, (random(3, 2), random(3, 2), torch.ones(3)), r"mask: expected bool \(3,\), got torch.float32 \(3,\)"),
        (orthogonality, (random(3, 2), random(3, 2), torch.ones(2).bool()), r"mask: expected bool \(3,\), got torch.bool \(2,\)"),
        (exclusive_adversarial, (random(3, 2),), r"logits: expected \(\*, B, M, M\), got \(3, 2\)"),
        (agnostic_adversarial, (random(3, 2, 4), random(3, 2)), r"logits: expected \(\*, B, M, M\), got \(3, 2, 4\)"),
        (modality_confusion, (random(2, 2, 2), random(2)), r"omega: expected \(B, M\) = \(2, 2\), got \(2,\)"),
        (agnostic_adversarial, (random(2, 2, 2), random(2)), r"omega: expected \(B, M\) = \(2, 2\), got \(2,\)"),
        (exclusive_adversarial, (random(2, 2, 2), torch.ones(2, dtype=torch.bool)), r"present: expected \(B, M\) = \(2, 2\), got \(2,\)"),
    ],
)
def test_bad_input_is_named(loss: Callable, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*arguments)
