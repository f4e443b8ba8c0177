"""`standardize` against plain numpy."""

import numpy as np
import pytest

from mea_graph.data import DataError, MultimodalDataset


def all_steps(dataset, name, indices=None):
    return np.concatenate([dataset[i][name].x.numpy() for i in (range(len(dataset)) if indices is None else indices)])


@pytest.mark.parametrize("fit_on", [None, [0, 2, 3]])
def test_statistics_come_from_the_named_samples_only(dataset, fit_on):
    scaled = dataset.standardize(fit_on=fit_on)
    for name in dataset.modalities:
        steps = all_steps(dataset, name, fit_on).astype(np.float64)
        expected = (all_steps(dataset, name) - steps.mean(axis=0)) / steps.std(axis=0)
        np.testing.assert_allclose(all_steps(scaled, name), expected, rtol=1e-5, atol=1e-5)


def test_other_samples_do_not_leak(dataset, sequences):
    changed = dict(sequences, audio=[*sequences["audio"][:4], sequences["audio"][4] * 100, sequences["audio"][5] + 50])
    other = MultimodalDataset.from_arrays(changed)
    for i in range(4):
        left, right = (d.standardize(fit_on=[0, 1, 2, 3])[i]["audio"].x.numpy() for d in (dataset, other))
        np.testing.assert_array_equal(left, right)


def test_every_value_of_a_field_has_its_own_statistics(dataset):
    scaled = dataset.standardize(by="subject")
    for subject in (1, 2, 3):
        for name in dataset.modalities:
            steps = all_steps(scaled.where("subject", isin=[subject]), name).astype(np.float64)
            np.testing.assert_allclose(steps.mean(axis=0), 0, atol=1e-5)
            if len(steps) > 1:
                np.testing.assert_allclose(steps.std(axis=0), 1, rtol=1e-5)


def test_a_field_and_fit_on_together(dataset):
    scaled = dataset.standardize(by="room", fit_on=[0, 1])
    raw = dataset[0]["audio"].x.numpy().astype(np.float64)
    np.testing.assert_allclose(
        scaled[4]["audio"].x.numpy(), (dataset[4]["audio"].x.numpy() - raw.mean(0)) / raw.std(0), rtol=1e-4, atol=1e-5
    )


def test_a_view_standardizes_on_itself_and_keeps_its_scale_when_cut(dataset):
    train = dataset.select("train").standardize()
    np.testing.assert_allclose(all_steps(train, "audio").mean(axis=0), 0, atol=1e-5)
    np.testing.assert_array_equal(train.subset([2])[0]["audio"].x.numpy(), train[2]["audio"].x.numpy())


def test_samples_to_fit_on_are_counted_in_the_view(dataset):
    view = dataset[[5, 2, 0]]
    for name in dataset.modalities:
        steps = all_steps(dataset, name, [2, 0]).astype(np.float64)
        expected = (all_steps(view, name) - steps.mean(axis=0)) / steps.std(axis=0)
        for fit_on in ([1, 2], np.array([False, True, True])):
            np.testing.assert_allclose(all_steps(view.standardize(fit_on=fit_on), name), expected, rtol=1e-5, atol=1e-5)


def test_constant_channels_and_large_means_stay_finite():
    rng = np.random.default_rng(0)
    x = np.stack([np.full(1000, 0.1), 1e6 + rng.normal(size=1000), np.zeros(1000)], axis=1).astype(np.float32)
    scaled = MultimodalDataset.from_arrays({"a": [x[:400], x[400:]]}).standardize()
    steps = all_steps(scaled, "a")
    np.testing.assert_allclose(steps[:, [0, 2]], 0, atol=1e-6)
    assert steps[:, 1].std() == pytest.approx(1, rel=1e-3)
    assert abs(steps[:, 1].mean()) < 0.05  # float32 itself has a resolution of 0.06 here


def test_a_modality_without_any_step_in_a_group_is_left_alone():
    data = MultimodalDataset.from_arrays(
        {"a": [np.ones((2, 1)), np.ones((1, 1))], "b": [None, np.array([[1.0], [3.0]])]}, fields={"s": [1, 2]}
    )
    scaled = data.standardize(by="s")
    assert scaled[0]["b"].x.shape == (0, 1)
    assert scaled[1]["b"].x.tolist() == [[-1], [1]]


def test_samples_longer_than_a_chunk(monkeypatch):
    monkeypatch.setattr("mea_graph.data.scaling._CHUNK", 7)
    x = np.random.default_rng(0).normal(size=(50, 2))
    scaled = MultimodalDataset.from_arrays({"a": [x]}).standardize()
    np.testing.assert_allclose(scaled[0]["a"].x.numpy(), (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5)


def test_statistics_taken_elsewhere_scale_as_there(dataset):
    fitted = dataset.standardize(fit_on=[0, 2])
    again = dataset.subset([4, 5]).standardize(statistics=fitted.statistics)
    for i, j in ((0, 4), (1, 5)):
        for name in dataset.modalities:
            np.testing.assert_array_equal(again[i][name].x.numpy(), fitted[j][name].x.numpy())
    assert dataset.statistics is None
    assert dataset.standardize(by="subject").statistics is None


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"audio": (np.zeros(3), np.ones(3))}, r"expected those of \['audio', 'video'\], got none of \['video'\]"),
        (
            {"audio": (np.zeros(3), np.ones(3)), "video": (np.zeros(5), np.ones(5))},
            r"video: expected .* shape \(2,\), got \[\(5,\)",
        ),
        ({"audio": (np.zeros(3), np.zeros(3)), "video": (np.zeros(2), np.ones(2))}, "audio: expected finite means and standard deviations"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(dataset, statistics, message):
    with pytest.raises(DataError, match=message):
        dataset.standardize(statistics=statistics)
    with pytest.raises(DataError, match="got both"):
        dataset.standardize(fit_on=[0], statistics=statistics)
