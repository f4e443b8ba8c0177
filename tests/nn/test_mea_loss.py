"""Eq. 20: each term from its printed form, and their weighted sum."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mea_graph.nn import DoubleDiscriminator, LossTerms, MEALoss, MEAOutput

B, D_H = 5, 4
NAMES = ["text", "audio", "vision"]
PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [1, 0, 0]]).bool()


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def make_output(channels: int = 1, exclusive: bool = True, agnostic: bool = True, importance: bool = True, **options: Any) -> MEAOutput:
    """What a model might return; a missing modality's representation is zero, as the encoders make it."""
    spaces = [{m: leaf(B, D_H) * PRESENT[:, i, None] for i, m in enumerate(NAMES)} if there else None for there in (exclusive, agnostic)]
    discriminator = DoubleDiscriminator(D_H, NAMES, importance, **options).double()
    present = {m: PRESENT[:, i] for i, m in enumerate(NAMES)}
    return MEAOutput(leaf(B, channels), *spaces, present, HeteroData(), torch.zeros(B, 1), discriminator(*spaces), {}, [], {}, [], {})


def gram_hsic(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    return (centring @ x @ x.mT @ centring @ y @ y.mT).trace() / (n - 1) ** 2


def cross_correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
    return (x.mT @ y).square().sum()


def adversarial(logits: Tensor, omega: Tensor) -> Tensor:
    """-(1/n) sum_m sum_k omega log D[m], over the modalities that are there."""
    total = torch.zeros((), dtype=torch.float64)
    for k in range(B):
        for m in range(len(NAMES)):
            if PRESENT[k, m]:
                total = total - omega[k, m] * (logits[k, m, m] - logits[k, m].logsumexp(0)) / B
    return total


TARGETS: dict[str, Tensor] = {
    "regression": torch.tensor([0.5, -1.0, 3.0, 0.0, 2.0]),
    "classification": torch.tensor([0, 2, 1, 1, 0]),
    "multilabel": torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).float(),
}


def literal_task(task: str, prediction: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        if task == "regression":
            total = total + (prediction[b, 0] - target[b]) ** 2 / B
        elif task == "classification":
            total = total - prediction[b].softmax(0)[int(target[b])].log() / B
        else:
            for c in range(3):
                p = 1 / (1 + torch.exp(-prediction[b, c]))
                total = total - (target[b, c] * p.log() + (1 - target[b, c]) * (1 - p).log()) / (3 * B)
    return total


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize(("disparity", "literal"), [("hsic", gram_hsic), ("orthogonality", cross_correlation)])
@pytest.mark.parametrize(("alpha", "beta"), [(0.02, 0.03), (0.7, 0.0), (0.0, 1.5)])
def test_terms_and_their_weighted_sum(task: Any, disparity: Any, literal: Any, alpha: float, beta: float) -> None:
    output = make_output(1 if task == "regression" else 3)
    terms = MEALoss(task, alpha, beta, disparity)(output, TARGETS[task])
    same(terms.task, literal_task(task, output.prediction, TARGETS[task]))
    parts = [literal(output.exclusive[m][PRESENT[:, i]], output.agnostic[m][PRESENT[:, i]]) for i, m in enumerate(NAMES)]
    same(terms.disparity, sum(parts) / 3)
    seen, ones = output.discrimination, torch.ones(B, 3, dtype=torch.float64)
    omega = torch.stack([1 - seen.importance[:, m].softmax(-1)[:, m] for m in range(3)], 1)
    same(terms.agnostic, adversarial(seen.agnostic, omega))
    same(terms.exclusive, adversarial(seen.exclusive, ones))
    same(terms.importance, adversarial(seen.importance, ones))
    same(terms.total, terms.task + alpha * terms.disparity + beta * (terms.agnostic + terms.exclusive + terms.importance))


@pytest.mark.parametrize(
    ("options", "off"),
    [
        ({"exclusive": False}, {"disparity", "exclusive"}),
        ({"agnostic": False, "importance": False}, {"disparity", "agnostic", "importance"}),
        ({"importance": False}, {"importance"}),
    ],
)
def test_the_terms_of_what_is_not_there_are_zero(options: dict[str, bool], off: set[str]) -> None:
    terms = MEALoss(alpha=0.5, beta=0.5)(make_output(**options), TARGETS["regression"])
    assert {name for name in LossTerms._fields if getattr(terms, name).item() == 0} == off | {"confusion"}
    same(terms.total, terms.task + 0.5 * sum(getattr(terms, name) for name in ("disparity", "agnostic", "exclusive", "importance")))


def test_without_importance_the_adversarial_loss_is_unweighted() -> None:
    output = make_output(importance=False)
    same(MEALoss()(output, TARGETS["regression"]).agnostic, adversarial(output.discrimination.agnostic, torch.ones(B, 3)))


@pytest.mark.parametrize("importance", [True, False])
def test_confusion_is_one_more_term_of_the_adversary(importance: bool) -> None:
    output = make_output(adversary="confusion", importance=importance)
    terms = MEALoss(alpha=0.5, beta=0.5)(output, TARGETS["regression"])
    seen = output.discrimination
    expected = torch.tensor(0.0, dtype=torch.float64)
    for k in range(B):
        for m in range(3):
            if PRESENT[k, m]:
                expected = expected + seen.omega[k, m] * (seen.confusion[k, m].softmax(0).log().mean() + math.log(3)) * -1 / B
    same(terms.confusion, expected)
    others = terms.agnostic + terms.exclusive + terms.importance
    same(terms.total, terms.task + 0.5 * (terms.disparity + others + terms.confusion))


def test_the_importance_loss_changes_the_importance_discriminator_alone() -> None:
    """R6: D_i is trained on detached h_a, and omega is detached."""
    h = {m: leaf(B, D_H) for m in NAMES}
    discriminator = DoubleDiscriminator(D_H, NAMES).double()
    everything = {m: torch.ones(B, dtype=torch.bool) for m in NAMES}
    output = MEAOutput(leaf(B, 1), None, h, everything, HeteroData(), torch.zeros(B, 1), discriminator(None, h), {}, [], {}, [], {})
    terms = MEALoss()(output, TARGETS["regression"])
    others = [*h.values(), *discriminator.hidden.parameters(), *discriminator.out.parameters()]
    alone = torch.autograd.grad(terms.importance, others, allow_unused=True, retain_graph=True)
    assert alone == (None,) * len(others)
    own = discriminator.importance.weight
    assert torch.autograd.grad(terms.importance, own, retain_graph=True)[0].any()
    assert torch.autograd.grad(terms.agnostic, own, allow_unused=True) == (None,)


@pytest.mark.parametrize("columns", [2, B])
def test_a_regression_of_several_targets_is_the_mean_of_theirs(columns: int) -> None:
    """Also where there are as many targets as samples, which would hide a sum over the wrong dimension."""
    output, target = make_output(columns), torch.randn(B, columns, dtype=torch.float64) * torch.arange(1, columns + 1)
    terms, own = (
        MEALoss(alpha=0.5, beta=0.5)(output, target),
        [MEALoss().task_loss(output.prediction[:, c : c + 1], target[:, c]) for c in range(columns)],
    )
    same(terms.task, sum((output.prediction[b, c] - target[b, c]) ** 2 for b in range(B) for c in range(columns)) / (B * columns))
    same(terms.task, sum(own) / columns)
    (gradient,) = torch.autograd.grad(terms.total, output.prediction)
    same(gradient, 2 * (output.prediction - target) / (B * columns))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_class_weights_of_the_constructor_are_those_of_the_attribute(dtype: torch.dtype) -> None:
    weights = torch.tensor([1, 4, 0], dtype=dtype)
    for task in ("classification", "multilabel"):
        prediction, later = leaf(B, 3), MEALoss(task, label_smoothing=0.1)
        later.class_weights = weights
        same(
            MEALoss(task, label_smoothing=0.1, class_weights=weights).task_loss(prediction, TARGETS[task]),
            later.task_loss(prediction, TARGETS[task]),
        )
    terms, target = (
        MEALoss("classification", class_weights=weights)(output := make_output(3), TARGETS["classification"]),
        TARGETS["classification"],
    )
    each = -output.prediction.log_softmax(1).gather(1, target[:, None]).squeeze(1) * weights[target]
    same(terms.task, each.mean())


def test_class_weights_move_with_the_loss_and_stay_out_of_its_state() -> None:
    loss = MEALoss("classification", class_weights=torch.tensor([1.0, 2.0]))
    assert not loss.state_dict()
    assert loss.to("meta").class_weights.is_meta
    assert loss.double().class_weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("task", "weights", "message"),
    [
        ("regression", torch.ones(1), "class_weights: expected None for regression, which has no classes, got weights"),
        (
            "classification",
            [1.0, 2.0, 3.0],
            r"class_weights: expected a tensor \(C,\) of finite numbers of at least 0, .* got \[1.0, 2.0, 3.0\]",
        ),
        ("classification", torch.ones(3, 1), r"class_weights: expected a tensor \(C,\) .* got torch.float32 \(3, 1\)"),
        ("classification", torch.tensor(1.0), r"got torch.float32 \(\)"),
        ("classification", torch.ones(3).bool(), r"got torch.bool \(3,\)"),
        ("classification", torch.ones(3).cfloat(), r"got torch.complex64 \(3,\)"),
        ("multilabel", torch.tensor([1.0, -1.0, 1.0]), r"got \[1.0, -1.0, 1.0\]"),
        ("classification", torch.tensor([1.0, math.nan, 1.0]), r"got \[1.0, nan, 1.0\]"),
        ("classification", torch.tensor([1.0, math.inf, 1.0]), r"got \[1.0, inf, 1.0\]"),
        ("classification", torch.zeros(3), r"some above 0, got \[0.0, 0.0, 0.0\]"),
        ("classification", torch.ones(0), r"some above 0, got \[\]"),
    ],
)
def test_bad_class_weights_are_named(task: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MEALoss(task, class_weights=weights)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_class_weights_must_be_as_many_as_the_prediction_has_columns(task: Any, count: int) -> None:
    """One weight would be that of every label."""
    with pytest.raises(ValueError, match=rf"class_weights: expected \(3,\), as the prediction has it, got \({count},\)"):
        MEALoss(task, class_weights=torch.ones(count)).task_loss(torch.zeros(B, 3), TARGETS[task])


def test_class_weights_set_on_a_regression_are_refused() -> None:
    loss = MEALoss()
    loss.class_weights = torch.ones(1)
    with pytest.raises(ValueError, match=r"class_weights: expected None for regression, got \(1,\)"):
        loss.task_loss(torch.zeros(B, 1), torch.zeros(B))


def test_label_smoothing() -> None:
    output, s = make_output(3), 0.2
    log_p = output.prediction.log_softmax(1)
    own = log_p.gather(1, TARGETS["classification"][:, None]).mean()
    terms = MEALoss("classification", label_smoothing=s)(output, TARGETS["classification"])
    same(terms.task, -(1 - s) * own - s * log_p.mean())


def test_label_smoothing_beside_class_weights() -> None:
    """Each class counts by its weight, whichever share of the label it has."""
    output, target, s, weights = make_output(3), TARGETS["classification"], 0.2, torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
    log_p = output.prediction.log_softmax(1) * weights
    own = log_p.gather(1, target[:, None]).squeeze(1)
    terms = MEALoss("classification", label_smoothing=s, class_weights=weights)(output, target)
    same(terms.task, -((1 - s) * own + s * log_p.mean(1)).mean())


@pytest.mark.parametrize("task", TARGETS)
def test_half_precision_predictions_are_summed_in_float32(task: Any) -> None:
    prediction = torch.randn(B, 1 if task == "regression" else 3).bfloat16()
    loss = MEALoss(task)
    assert torch.equal(loss.task_loss(prediction, TARGETS[task]), loss.task_loss(prediction.float(), TARGETS[task]))


@pytest.mark.parametrize("task", TARGETS)
def test_no_sample_costs_nothing(task: Any) -> None:
    loss = MEALoss(task)
    for weights in (None, torch.ones(3)) if task != "regression" else (None,):
        loss.class_weights = weights
        prediction = torch.zeros(0, 1 if task == "regression" else 3, requires_grad=True)
        cost = loss.task_loss(prediction, TARGETS[task][:0])
        cost.backward()
        assert cost.item() == 0
        assert prediction.grad is not None
    with pytest.raises(ValueError, match="target: expected"):
        loss.task_loss(prediction, TARGETS[task])


def test_gradients_of_the_total_are_finite_where_a_modality_is_missing() -> None:
    h = {m: leaf(B, D_H) for m in NAMES}
    clean = {m: v * PRESENT[:, i, None] for i, (m, v) in enumerate(h.items())}
    present = {m: PRESENT[:, i] for i, m in enumerate(NAMES)}
    discrimination = DoubleDiscriminator(D_H, NAMES).double()(clean, clean)
    output = MEAOutput(leaf(B, 1), clean, clean, present, HeteroData(), torch.zeros(B, 1), discrimination, {}, [], {}, [], {})
    for disparity in ("hsic", "orthogonality"):
        total = MEALoss(disparity=disparity)(output, TARGETS["regression"]).total
        for i, gradient in enumerate(torch.autograd.grad(total, list(h.values()), retain_graph=True)):
            assert gradient.isfinite().all()
            assert gradient[PRESENT[:, i]].any()
            assert not gradient[~PRESENT[:, i]].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ranking"}, "task: expected 'regression', 'classification' or 'multilabel', got 'ranking'"),
        ({"disparity": "mmd"}, "disparity: expected 'hsic' or 'orthogonality', got 'mmd'"),
        ({"alpha": -1.0}, "alpha, beta: expected finite numbers of at least 0, got -1.0, 0.001"),
        ({"beta": -2.0}, "alpha, beta: expected finite numbers of at least 0, got 0.02, -2.0"),
        ({"alpha": math.nan}, "alpha, beta: expected finite numbers of at least 0, got nan, 0.001"),
        ({"beta": math.inf}, "alpha, beta: expected finite numbers of at least 0, got 0.02, inf"),
        ({"label_smoothing": 1.5}, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing: expected a number in \[0, 1\], got -0.1"),
        ({"label_smoothing": math.nan}, r"label_smoothing: expected a number in \[0, 1\], got nan"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MEALoss(**options)


@pytest.mark.parametrize(
    ("task", "channels", "target", "message"),
    [
        ("regression", 2, torch.zeros(B), r"target: expected \(5, 2\) for regression, got \(5,\)"),
        ("regression", 5, torch.zeros(B), r"target: expected \(5, 5\) for regression, got \(5,\)"),
        ("regression", 2, torch.zeros(B, 1), r"target: expected \(5, 2\) for regression, got \(5, 1\)"),
        ("regression", 2, torch.zeros(1, 2), r"target: expected \(5, 2\) for regression, got \(1, 2\)"),
        ("regression", 2, torch.zeros(2, B), r"target: expected \(5, 2\) for regression, got \(2, 5\)"),
        ("regression", 1, torch.zeros(B, 2), r"target: expected \(5,\) for regression, got \(5, 2\)"),
        ("regression", 1, torch.zeros(1), r"target: expected \(5,\) for regression, got \(1,\)"),
        ("multilabel", 3, torch.zeros(B, 1), r"target: expected \(5, 3\) for multilabel, got \(5, 1\)"),
        ("regression", 1, torch.zeros(B, 1), r"target: expected \(5,\) for regression, got \(5, 1\)"),
        ("regression", 1, torch.zeros(B, dtype=torch.int64), "target: expected floats for regression, got torch.int64"),
        ("classification", 3, torch.zeros(B + 1).long(), r"target: expected \(5,\) for classification, got \(6,\)"),
        ("classification", 3, torch.zeros(B), "target: expected int64 for classification, got torch.float32"),
        ("classification", 3, torch.zeros(B).int(), "target: expected int64 for classification, got torch.int32"),
        ("classification", 3, torch.tensor([0, 1, 3, 0, 1]), r"target: expected classes in \[0, 3\), got 0 to 3"),
        ("classification", 3, torch.tensor([0, 1, -100, 0, 1]), r"target: expected classes in \[0, 3\), got -100 to 1"),
        ("multilabel", 3, torch.zeros(B), r"target: expected \(5, 3\) for multilabel, got \(5,\)"),
        ("multilabel", 3, torch.zeros(B, 3).long(), "target: expected floats for multilabel, got torch.int64"),
    ],
)
def test_bad_targets_are_named(task: Any, channels: int, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MEALoss(task)(make_output(channels), target)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"exclusive": {"audio": torch.zeros(B, D_H + 1)}},
            r"exclusive\['audio'\]: expected \(5, 4\), as every modality has, got \(5, 5\)",
        ),
        ({"agnostic": {"vision": torch.zeros(B)}}, r"agnostic\['vision'\]: expected \(5, 4\), as every modality has, got \(5,\)"),
        (
            {"agnostic": {m: torch.zeros(1, D_H) for m in NAMES}},
            r"agnostic\['text'\]: expected \(5, 4\), as every modality has, got \(1, 4\)",
        ),
        ({"present": {"text": torch.ones(1).bool()}}, r"present\['text'\]: expected \(5,\), as every modality has, got \(1,\)"),
        (
            {"present": {"smell": torch.ones(B).bool()}},
            r"exclusive: expected a tensor for each of .*'smell'.*, got \['text', 'audio', 'vision'\]",
        ),
        ({"discrimination": {"importance": torch.zeros(B, 2, 2)}}, r"importance: expected \(5, 3, 3\), got \(5, 2, 2\)"),
    ],
)
def test_an_output_put_together_by_hand_is_refused_by_name(changed: dict[str, dict[str, Tensor]], message: str) -> None:
    """torch named neither the field nor the modality."""
    output = make_output()
    for field, own in changed.items():
        old = getattr(output, field)
        output = output._replace(**{field: old | own if isinstance(old, dict) else old._replace(**own)})
    with pytest.raises(ValueError, match=message):
        MEALoss()(output, torch.zeros(B))


@pytest.mark.parametrize("shape", [(B,), (B, 0), (B, 1, 1)])
def test_a_prediction_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"prediction: expected \(B, C\), got {re.escape(str(shape))}"):
        MEALoss().task_loss(torch.zeros(shape), torch.zeros(B))


def test_a_random_guess_costs_the_entropy() -> None:
    zeros = torch.zeros(B, 3)
    assert MEALoss("classification").task_loss(zeros, TARGETS["classification"]).item() == pytest.approx(math.log(3))
    assert MEALoss("multilabel").task_loss(zeros, TARGETS["multilabel"]).item() == pytest.approx(math.log(2))
