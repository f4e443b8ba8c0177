import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, roc_auc_score

from mea_graph.baselines import LateFusionGRUModule
from mea_graph.train import MEAModule, TaskMetrics

SIZES = {"a": 3, "b": 3}


def scored(prediction, target, task, out_channels=1, batches=1, **options):
    """The metrics as numbers, from several batches of uneven size."""
    metrics = TaskMetrics(task, out_channels, **options)
    cuts = np.sort(np.random.default_rng(0).choice(np.arange(1, len(target)), batches - 1, replace=False))
    for part in np.split(np.arange(len(target)), cuts):
        metrics.update(torch.as_tensor(prediction[part]).reshape(len(part), out_channels), torch.as_tensor(target[part]))
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.fixture
def sentiment():
    """Scores with zeros, with halves (which round to even) and with predictions outside [-3, 3]."""
    rng = np.random.default_rng(0)
    target = np.round(rng.uniform(-3, 3, 400) * 5) / 5
    target[::10] = 0
    prediction = target + rng.normal(size=400)
    prediction[5::50] = np.round(prediction[5::50]) + 0.5
    prediction[7::50] = 0
    prediction[3], prediction[4] = 9.0, -9.0
    return prediction, target


@pytest.mark.parametrize("batches", [1, 7])
def test_sentiment_metrics_are_those_of_the_field(sentiment, batches):
    prediction, target = sentiment
    found = scored(prediction, target, "regression", sentiment=True, batches=batches)
    polar = target != 0
    expected = {
        "mae": mean_absolute_error(target, prediction),
        "corr": pearsonr(prediction, target).statistic,
        "acc7": accuracy_score(np.round(np.clip(target, -3, 3)), np.round(np.clip(prediction, -3, 3))),
        "acc5": accuracy_score(np.round(np.clip(target, -2, 2)), np.round(np.clip(prediction, -2, 2))),
        "acc2_nonneg": accuracy_score(target >= 0, prediction >= 0),
        "f1_nonneg": f1_score(target >= 0, prediction >= 0, average="weighted"),
        "acc2_pos": accuracy_score(target[polar] > 0, prediction[polar] > 0),
        "f1_pos": f1_score(target[polar] > 0, prediction[polar] > 0, average="weighted"),
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(expected.values())) == len(expected)  # the two conventions differ here, so neither can stand in for the other


def test_the_two_conventions_treat_zero_as_named():
    found = scored(np.array([-0.1, 0.2, 0.2]), np.array([0.0, 0.0, 1.0]), "regression", sentiment=True)
    assert found["acc2_nonneg"] == pytest.approx(2 / 3)
    assert found["acc2_pos"] == 1.0


@pytest.mark.parametrize("batches", [1, 5])
def test_regression_metrics(batches):
    rng = np.random.default_rng(1)
    target = rng.normal(100, 3, 200)
    prediction = target + rng.normal(size=200)
    expected = {
        "mae": mean_absolute_error(target, prediction),
        "rmse": math.sqrt(np.mean((target - prediction) ** 2)),
        "corr": pearsonr(prediction, target).statistic,
        "r2": r2_score(target, prediction),
    }
    assert scored(prediction, target, "regression", batches=batches) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("batches", [1, 6])
@pytest.mark.parametrize("classes", [2, 5])
def test_classification_metrics(classes, batches):
    rng = np.random.default_rng(2)
    target = rng.integers(0, classes, 150)
    target[target == classes - 1] = np.where(rng.random((target == classes - 1).sum()) < 0.8, 0, classes - 1)  # uneven classes
    logits = rng.normal(size=(150, classes)) + np.eye(classes)[target]
    predicted = logits.argmax(1)
    expected = {
        "accuracy": accuracy_score(target, predicted),
        "f1_macro": f1_score(target, predicted, average="macro"),
        "f1_weighted": f1_score(target, predicted, average="weighted"),
    }
    if classes == 2:
        expected["auc"] = roc_auc_score(target, logits[:, 1] - logits[:, 0])
    assert scored(logits, target, "classification", classes, batches=batches) == pytest.approx(expected, abs=1e-6)


def test_auc_ranks_samples_whose_probabilities_saturate():
    logits = np.array([[0.0, 40.0], [0.0, 60.0], [0.0, -40.0], [0.0, 50.0]])
    target = np.array([0, 1, 0, 1])
    assert scored(logits, target, "classification", 2)["auc"] == roc_auc_score(target, logits[:, 1]) == 1.0


def test_multilabel_metrics_per_label():
    rng = np.random.default_rng(3)
    target = (rng.random((120, 4)) < [0.1, 0.3, 0.5, 0.9]).astype(np.float32)
    logits = rng.normal(size=(120, 4)) + 2 * target - 1
    names = ["neutral", "happy", "sad", "angry"]
    found = scored(logits, target, "multilabel", 4, batches=3, label_names=names)
    for column, name in enumerate(names):
        true, predicted = target[:, column] > 0, logits[:, column] > 0
        assert found[f"accuracy_{name}"] == pytest.approx(accuracy_score(true, predicted))
        assert found[f"f1_{name}"] == pytest.approx(f1_score(true, predicted, average="weighted"))
    assert found["f1"] == pytest.approx(np.mean([found[f"f1_{name}"] for name in names]))


def test_a_label_whose_logit_is_0_is_not_there():
    found = scored(np.zeros((3, 2)), np.array([[0, 1], [0, 1], [1, 1]]), "multilabel", 2, label_names=["a", "b"])
    assert found["accuracy_a"] == pytest.approx(2 / 3)
    assert found["accuracy_b"] == 0.0


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_sums_are_those_of_float64_also_for_what_a_network_gives(kind):
    """In float32 the mean, the variance and the correlation of 20,000 values far from 0 are off in the third digit."""
    rng = np.random.default_rng(4)
    target = (rng.normal(size=20_000) + 1000).astype(kind)
    prediction = (target + rng.normal(size=20_000)).astype(kind)
    true, predicted = target.astype(np.float64), prediction.astype(np.float64)
    expected = {
        "mae": mean_absolute_error(true, predicted),
        "rmse": math.sqrt(np.mean((true - predicted) ** 2)),
        "corr": pearsonr(predicted, true).statistic,
        "r2": r2_score(true, predicted),
    }
    assert scored(prediction, target, "regression", batches=3) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("size", "middle"), [(1e-6, 0.0), (1e-3, 0.0), (1e6, 0.0), (1.0, 1e6), (1e-3, 1e4)])
def test_the_size_of_targets_does_not_change_r2(size, middle):
    """Sums of squares below 1e-4 would count as 0: a prediction that is worse than the mean got R2 = 1."""
    rng = np.random.default_rng(5)
    target = (size * rng.normal(size=30) + middle).astype(np.float32)
    prediction = target + 2 * size * rng.normal(size=30)
    true = target.astype(np.float64)
    expected = 1 - np.square(prediction - true).sum() / np.square(true - true.mean()).sum()
    assert expected < -1
    assert scored(prediction, target, "regression")["r2"] == pytest.approx(expected, rel=1e-9)


def test_a_constant_prediction_has_no_correlation_but_all_else():
    target = np.array([-1.0, 0.0, 2.0, 1.0])
    found = scored(np.full(4, 0.1), target, "regression", sentiment=True)
    assert math.isnan(found["corr"])
    assert found["acc2_nonneg"] == 0.75
    assert found["f1_nonneg"] == pytest.approx(f1_score(target >= 0, [1] * 4, average="weighted"))


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_two_labels_of_one_name_are_refused(task):
    """The scores of one took the place of the other's, and counted twice in the mean."""
    with pytest.raises(ValueError, match=r"label_names: expected different names, got \['sad', 'sad', 'happy'\]"):
        TaskMetrics(task, 3, label_names=["sad", "sad", "happy"])


def test_what_is_not_defined_is_nan():
    assert math.isnan(scored(np.zeros((3, 2)), np.array([1, 1, 1]), "classification", 2)["auc"])
    assert math.isnan(scored(np.array([0.1, 0.2]), np.array([0.0, 0.0]), "regression", sentiment=True)["acc2_pos"])
    assert math.isnan(scored(np.array([0.1]), np.array([0.3]), "regression")["r2"])


def test_macro_f1_of_a_constant_counts_the_class_never_predicted():
    target = np.array([0, 0, 1, 2])
    logits = np.tile([1.0, 0.0, 0.0], (4, 1))
    expected = f1_score(target, [0] * 4, average="macro")
    assert scored(logits, target, "classification", 3)["f1_macro"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskMetrics("ranking", 1), "task: expected one of regression, classification, multilabel, got 'ranking'"),
        (lambda: TaskMetrics("multilabel", 3, label_names=["a"]), "label_names: expected 3 names"),
        (lambda: TaskMetrics("classification", 3, label_names=["a"]), r"label_names: expected 3 names \(one per output\), got 1: \['a'\]"),
        (lambda: TaskMetrics("classification", 3, label_names="abc"), r"label_names: expected 3 names \(one per output\), got 'abc'"),
        (lambda: MEAModule(SIZES, "classification", 3, label_names=["a"]), "label_names: expected 3 names .* got 1"),
        (lambda: MEAModule(SIZES, "regression", 1, label_names=["a", "b"]), "label_names: expected 1 names .* got 2"),
        (lambda: LateFusionGRUModule(SIZES, "classification", 3, label_names=list("abcd")), "label_names: expected 3 names .* got 4"),
        (lambda: TaskMetrics("regression", 1).update(torch.zeros(2), torch.zeros(2)), r"expected \(2, 1\).*got \(2,\)"),
        (lambda: TaskMetrics("regression", 1).update(torch.zeros(3, 1), torch.zeros(2)), r"expected \(2, 1\).*got \(3, 1\)"),
        (lambda: TaskMetrics("regression", 1).compute(), "no sample was added"),
        (lambda: TaskMetrics("regression", 2), "out_channels: expected 1 for the metrics of a regression, which have one target, got 2"),
        (lambda: MEAModule(SIZES, "regression", 2, channels=8, heads=2), "out_channels: expected 1 .* got 2"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*compute.*before the ``update``")
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
