import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import HeteroData

from mea_graph.baselines import PooledLinear
from mea_graph.baselines.pooled_linear import folds
from mea_graph.baselines.scores import baseline_scores, pooled_linear, pooled_linear_scores
from mea_graph.data import AsynchronousEvents, DataError, MultimodalDataset
from mea_graph.train import SequenceDataModule, SplitPolicy
from mea_graph.train.reports import behind_a_baseline


def inputs(samples, at=None):
    """The standardised statistics, written out: means, deviations, minima and maxima of "a" (2) and "b" (1), and whether there is a "b"."""
    rows = []
    for sample in samples:
        row = []
        for name, width in (("a", 2), ("b", 1)):
            x = sample[name].x.double().numpy()
            row += [f(x, axis=0) for f in (np.mean, np.std, np.min, np.max)] if len(x) else [np.full(4 * width, np.nan)]
        rows.append(np.concatenate([*row, [float(len(sample["b"].x) > 0)]]))
    rows = np.stack(rows)
    mean, deviation = (np.nanmean(rows, 0), np.nanstd(rows, 0)) if at is None else at
    return torch.from_numpy(np.nan_to_num((rows - mean) / deviation)), (mean, deviation)


def samples(count, seed=0):
    """Two modalities, of which "b" is missing now and then; the target is to be set."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        sample = HeteroData(id=f"s{number}")
        sample["a"].x = torch.from_numpy(rng.normal(rng.normal(size=2), 1, (rng.integers(1, 9), 2)))
        sample["b"].x = torch.from_numpy(rng.normal(rng.normal(), 1, (rng.integers(1, 9) if number % 4 else 0, 1)))
        found.append(sample)
    return found


def mean_of_a(sample):
    return sample["a"].x.mean(0)


class TestTheFit:
    def test_of_values_is_ridge_regression(self):
        train, test = samples(40), samples(10, seed=1)
        for number, sample in enumerate(train):
            sample.y = 100 + mean_of_a(sample)[:1] + 0.1 * number % 3
        model = PooledLinear("regression", 1).fit(train)
        z, at = inputs(train)
        y = torch.stack([sample.y for sample in train]).double()
        weight = torch.linalg.solve(z.mT @ z + len(y) * model.penalty * torch.eye(13), z.mT @ (y - y.mean()))
        torch.testing.assert_close(model.predict(test), inputs(test, at)[0] @ weight + y.mean())

    @pytest.mark.parametrize("task", ["classification", "multilabel"])
    def test_of_classes_and_labels_has_the_least_penalised_cross_entropy(self, task):
        train = samples(60)
        for sample in train:
            labels = (mean_of_a(sample) + 0.3 * torch.randn(2) > 0).long()
            sample.y = labels.sum().reshape(1) if task == "classification" else labels[None].float()
        model = PooledLinear(task, 3 if task == "classification" else 2).fit(train)
        z, _ = inputs(train)
        target = torch.cat([sample.y for sample in train])
        prediction = model.predict(train)
        bias = (prediction - z @ (weight := torch.linalg.lstsq(z, prediction - prediction.mean(0)).solution)).mean(0)
        weight.requires_grad_(), bias.requires_grad_()
        logits = z @ weight + bias
        torch.testing.assert_close(logits, prediction)
        if task == "classification":
            loss = F.cross_entropy(logits, target)
        else:
            loss = F.binary_cross_entropy_with_logits(logits, target.double(), reduction="none").sum(1).mean()
        (loss + model.penalty / 2 * weight.square().sum()).backward()
        assert weight.grad.abs().max() < 1e-4
        assert bias.grad.abs().max() < 1e-4

    def test_is_the_same_every_time_and_leaves_random_numbers_alone(self):
        data = AsynchronousEvents(num_samples=80, task="classification")
        state = torch.get_rng_state()
        first, second = (PooledLinear("classification", 3).fit(data[:60]).predict(data[60:]) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(state, torch.get_rng_state())

    def test_learns_what_a_constant_cannot_and_not_what_is_noise(self):
        rng = np.random.default_rng(0)
        y = np.arange(200) % 5  # in the order of folds: none may be without a class
        x = [rng.normal(c == np.arange(5), 0.3, (6, 5)) for c in y]
        data = MultimodalDataset.from_arrays({"a": x}, y)
        model = PooledLinear("classification", 5).fit(data[:150])
        assert (model.predict(data[150:]).argmax(1).numpy() == y[150:]).mean() > 0.95
        noise = MultimodalDataset.from_arrays({"a": list(rng.normal(size=(200, 6, 5)))}, y)
        assert PooledLinear("classification", 5).fit(noise).penalty > model.penalty


class TestWhatSamplesLack:
    def test_a_modality_that_is_missing_is_the_training_mean_and_said(self):
        train = samples(40)
        for sample in train:
            sample.y = torch.tensor([5.0 * (len(sample["b"].x) == 0)])  # only whether it is there matters
        model = PooledLinear("regression", 1).fit(train)
        there, gone = train[1].clone(), train[1].clone()
        gone["b"].x = gone["b"].x[:0]
        assert model.predict([gone]) - model.predict([there]) > 4
        del gone["b"]  # no node type at all
        assert model.predict([gone]) - model.predict([there]) > 4

    def test_one_that_is_never_missing_in_training_may_be_in_the_test(self):
        train = samples(40)[1::4]
        for sample in train:
            sample.y = mean_of_a(sample)[:1]
        lacking = train[0].clone()
        del lacking["b"]
        model = PooledLinear("regression", 1).fit(train)
        assert model.num_parameters == 12 + 1
        assert torch.isfinite(model.predict([lacking])).all()

    def test_values_that_are_not_finite_are_left_out(self):
        train = samples(12)
        for sample in train:
            sample.y = mean_of_a(sample)[:1]
        model = PooledLinear("regression", 1).fit(train)
        expected = model.predict(train)
        for sample in train:
            junk = torch.full((2, 2), torch.nan)
            junk[1] = -torch.inf
            sample["a"].x = torch.cat([sample["a"].x[:1], junk, sample["a"].x[1:]])
        torch.testing.assert_close(model.predict(train), expected)
        torch.testing.assert_close(PooledLinear("regression", 1).fit(train).predict(train), expected)
        train[0]["a"].x[:, 1] = torch.nan  # a channel without any
        assert torch.isfinite(model.predict(train)).all()

    def test_constant_channels_count_for_nothing(self):
        train = samples(12)
        for sample in train:
            sample.y = mean_of_a(sample)[:1]
        expected = PooledLinear("regression", 1).fit(train).predict(train)
        for sample in train:
            sample["c"].x = torch.full((3, 2), 0.1)
        model = PooledLinear("regression", 1).fit(train)
        torch.testing.assert_close(model.predict(train), expected)
        train[0]["c"].x = torch.full((3, 2), 7.0)
        torch.testing.assert_close(model.predict(train), expected)

    def test_where_nothing_varies_the_prediction_is_the_constant(self):
        data = MultimodalDataset.from_arrays({"a": [np.ones((2, 3))] * 4}, [1.0, 2.0, 3.0, 6.0])
        assert PooledLinear("regression", 1).fit(data).predict(data[:1]).item() == 3.0
        data = MultimodalDataset.from_arrays({"a": [np.ones((2, 3))] * 4}, [1, 1, 0, 1])
        torch.testing.assert_close(
            PooledLinear("classification", 2).fit(data).predict(data[:1]).softmax(1)[0], torch.tensor([0.25, 0.75]).double()
        )

    def test_a_class_or_label_of_which_there_is_one_value_takes_no_part(self):
        x = {"a": list(np.random.default_rng(0).normal(size=(30, 4, 2)))}
        model = PooledLinear("classification", 4).fit(MultimodalDataset.from_arrays(x, np.arange(30) % 2 * 2))
        prediction = model.predict(MultimodalDataset.from_arrays(x))
        assert torch.isneginf(prediction[:, [1, 3]]).all()
        assert torch.isfinite(prediction[:, [0, 2]]).all()
        y = np.stack([np.arange(30) % 2, np.zeros(30), np.ones(30)], 1)
        prediction = PooledLinear("multilabel", 3).fit(MultimodalDataset.from_arrays(x, y)).predict(MultimodalDataset.from_arrays(x))
        assert torch.isfinite(prediction[:, 0]).all()
        assert torch.isneginf(prediction[:, 1]).all()
        assert torch.isposinf(prediction[:, 2]).all()


class TestFolds:
    def test_leave_out_each_sample_once_and_a_group_together(self):
        groups = np.repeat(["p", "q", "r", "s", "t", "u", "v"], [9, 1, 4, 4, 2, 6, 4])
        held = torch.stack(list(folds(30, groups)))
        assert held.shape == (5, 30)
        assert (held.sum(0) == 1).all()
        assert all(len({tuple(column) for column in held[:, torch.from_numpy(groups == g)].T.tolist()}) == 1 for g in "pqrstuv")
        assert held.sum(1).max() == 9

    def test_are_as_many_as_there_are_groups_and_none_of_one(self):
        assert len(list(folds(30, ["p"] * 20 + ["q"] * 10))) == 2
        assert list(folds(30, ["p"] * 30)) == []
        assert len(list(folds(4, None))) == 4
        with pytest.raises(DataError, match="groups: expected one value for each of 4 samples, got 3"):
            list(folds(4, [1, 2, 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[2].__delattr__("y"), "y: expected a target in every sample, got none in sample 's2'"),
        (lambda s: s[2].__setattr__("y", torch.tensor([2.5])), r"y: expected a class in \[0, 3\), got \[2.5\] in sample 's2'"),
        (lambda s: s[2].__setattr__("y", torch.tensor([3])), r"y: expected a class in \[0, 3\), got \[3\] in sample 's2'"),
        (lambda s: s[2].__setattr__("y", torch.tensor([1, 1])), r"y: expected 1 finite number\(s\) for classification, got \[1, 1\]"),
        (lambda s: s[2]["b"].__setattr__("x", torch.ones(2, 3)), r"b: expected \(T, 1\), got \(2, 3\) in sample 's2'"),
        (lambda s: s.clear(), "samples: expected at least one to fit on, got none"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change, message):
    train = samples(6)
    for number, sample in enumerate(train):
        sample.y = torch.tensor([number % 3])
    change(train)
    with pytest.raises(DataError, match=message):
        PooledLinear("classification", 3).fit(train)


def test_predicting_asks_for_a_fit_and_for_the_modalities_of_it():
    with pytest.raises(DataError, match="PooledLinear: expected fit before"):
        PooledLinear("regression", 1).predict(samples(2))
    train = samples(6)
    for sample in train:
        sample.y = mean_of_a(sample)[:1]
    model = PooledLinear("regression", 1).fit(train)
    train[1]["c"].x = torch.ones(1, 1)
    with pytest.raises(DataError, match="samples: expected modalities a, b, got 'c' in sample 's1'"):
        model.predict(train)
    assert model.predict([]).shape == (0, 1)
    with pytest.raises(ValueError, match="task: expected one of regression, classification, multilabel, got 'ranking'"):
        PooledLinear("ranking", 1)


class TestScores:
    def test_are_those_of_the_prediction_for_the_part(self, classes_source):
        data = SequenceDataModule(**classes_source, standardize="train")
        prediction = pooled_linear(data).predict(data.samples("test"))
        accuracy = (prediction.argmax(1) == data.targets("test")).double().mean().item()
        found = baseline_scores(data, "test")
        assert list(found) == ["constant", "pooled linear"]
        assert found["pooled linear"]["accuracy"] == pytest.approx(accuracy)
        assert accuracy > found["constant"]["accuracy"]
        assert list(found["pooled linear"]) == list(found["constant"])

    @pytest.mark.parametrize("source", ["scores_source", "labels_source"])
    def test_of_every_task(self, source, request):
        data = SequenceDataModule(**request.getfixturevalue(source))
        found = baseline_scores(data, "valid", sentiment=source == "scores_source")
        assert list(found["pooled linear"]) == list(found["constant"])
        assert np.isfinite(list(found["pooled linear"].values())).all()

    def test_are_learnt_from_training_samples_alone(self, tmp_path):
        def prediction(last):
            y = np.array([0, 1] * 12 + [0, 1, 1, last])
            x = np.random.default_rng(0).normal(size=(28, 4, 3)) + y[:, None, None] * (np.arange(28) < 24)[:, None, None]
            split = np.array(["train"] * 24 + ["valid"] * 2 + ["test"] * 2)
            np.savez(tmp_path / f"{last}.npz", audio=x, label=y, split=split)
            data = SequenceDataModule(str(tmp_path / f"{last}.npz"), reader={"split": "split"})
            return pooled_linear(data).predict(data.samples("test")), pooled_linear_scores(data, "test")["accuracy"]

        (first, one), (second, other) = prediction(0), prediction(1)
        assert torch.equal(first, second)
        assert one != other

    def test_folds_leave_out_whole_values_of_the_field_that_divides_the_data(self, classes_source, monkeypatch):
        asked = []
        monkeypatch.setattr("mea_graph.baselines.pooled_linear.folds", lambda count, groups: asked.append(groups) or iter(()))
        data = SequenceDataModule(**classes_source, split=SplitPolicy(by="subject", train=[0, 1, 2], test=[4]))
        pooled_linear(data)
        assert asked[0].tolist() == [0] * 6 + [1] * 6 + [2] * 6


@pytest.mark.parametrize(
    ("task", "metric", "worse", "better"),
    [("regression", "mae", 0.9, 0.5), ("classification", "accuracy", 0.5, 0.9), ("multilabel", "f1", 0.5, 0.9)],
)
def test_a_model_behind_is_told_so(task, metric, worse, better):
    def said(model, linear, constant=worse):
        return behind_a_baseline(task, {"model": {metric: model}, "constant": {metric: constant}, "pooled linear": {metric: linear}})

    assert said(worse, better) == f"the model is behind pooled linear: {metric} {worse:.3f} against {better:.3f}"
    assert said(worse, worse, constant=better) == f"the model is behind constant: {metric} {worse:.3f} against {better:.3f}"
    assert said(better, worse) is None
    assert said(better, better) is None
