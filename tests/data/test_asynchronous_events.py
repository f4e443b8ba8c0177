"""What the docstring of `AsynchronousEvents` claims, each claim a test: the truth is known, and where it is hidden."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch_geometric.loader import DataLoader

from mea_graph.data import AsynchronousEvents, Latents
from mea_graph.nn import MEA, MEALoss

RATES = {"text": 3.0, "audio": 6.0, "vision": 4.5, "motion": 5.0, "pulse": 4.0}  # steps a second
N = 4000
ROWS = np.arange(N)
TRAIN, TEST = ROWS < N // 2, ROWS >= N // 2


@pytest.fixture(scope="module")
def events() -> AsynchronousEvents:
    return AsynchronousEvents(num_samples=N)


@pytest.fixture(scope="module")
def latents(events: AsynchronousEvents) -> Latents:
    return events.latents


@pytest.fixture(scope="module")
def signals(events: AsynchronousEvents) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Features (T, d) and times (T,) of every sample, by modality."""
    samples = [events[n] for n in range(N)]
    return {m: [(s[m].x.numpy(), s[m].time.numpy()) for s in samples] for m in events.modalities}


def before(name: str, names: tuple[str, ...]) -> str:
    """The modality whose focus asks for the value of `name`; the first one is asked by the last."""
    return names[names.index(name) - 1]


def r2(model: Any, features: np.ndarray, target: np.ndarray) -> float:
    """Of a model fitted on one half of the samples, on the other half."""
    return r2_score(target[TEST], model.fit(features[TRAIN], target[TRAIN]).predict(features[TEST]))


MODELS = pytest.mark.parametrize(
    "make", [LinearRegression, lambda: HistGradientBoostingRegressor(max_iter=50, random_state=0)], ids=["linear", "boosted trees"]
)


def test_one_seed_gives_one_data_set_and_another_seed_another() -> None:
    one, again, other = (AsynchronousEvents(num_samples=6, missing_rate=0.3, seed=seed) for seed in (3, 3, 4))
    for n in range(6):
        assert torch.equal(one[n].y, again[n].y)
        for m in one.modalities:
            assert torch.equal(one[n][m].x, again[n][m].x)
            assert torch.equal(one[n][m].time, again[n][m].time)
    assert np.array_equal(one.latents.score, again.latents.score)
    for field in ("shared", "code", "times", "score"):
        assert not np.isclose(getattr(one.latents, field), getattr(other.latents, field)).any(), field
    lengths = [np.stack(list(events.lengths.values())) for events in (one, other)]
    assert not np.array_equal(*lengths)


@pytest.mark.parametrize("duration", [(3.0, 3.0), (2.5, 4.0), (1.0, 9.0)])
def test_lengths_are_duration_times_rate(duration: tuple[float, float]) -> None:
    events = AsynchronousEvents(num_samples=50, num_modalities=5, duration=duration)
    shortest, longest = duration
    low = np.max([(events.lengths[m] - 0.5) / rate for m, rate in RATES.items()], 0)
    high = np.min([(events.lengths[m] + 0.5) / rate for m, rate in RATES.items()], 0)
    assert (low <= high).all(), "the modalities of a sample last for different times"
    assert (low <= longest).all()
    assert (high >= shortest).all()


def test_times_increase_and_stay_within_the_duration() -> None:
    duration = 3.3
    events = AsynchronousEvents(num_samples=50, num_modalities=5, duration=(duration, duration))
    for n in range(50):
        for m, rate in RATES.items():
            time = events[n][m].time
            assert len(time) == round(duration * rate)
            assert (time.diff() > 0).all()
            assert time[0] >= 0
            assert time[-1] <= duration + 0.5 / rate  # the number of steps is rounded
    times = events.latents.times
    assert ((times > 0) & (times < duration)).all()
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("num_modalities", [2, 3, 4, 5])
@pytest.mark.parametrize("num_events", [2, 4, 8])
def test_shapes(num_modalities: int, num_events: int) -> None:
    events = AsynchronousEvents(num_samples=20, num_modalities=num_modalities, num_events=num_events)
    names = list(RATES)[:num_modalities]
    latents = events.latents
    assert list(events.modalities) == list(latents.value) == list(latents.focus) == list(latents.private) == names
    for m in names:
        x, time = events[0][m].x, events[0][m].time
        assert x.shape == (events.lengths[m][0], events.channels[m])
        assert (x.dtype, time.dtype, time.shape) == (torch.float32, torch.float32, x.shape[:1])
        assert latents.value[m].shape == (20, num_events)
        assert latents.focus[m].shape == (20,)
        assert set(latents.focus[m]) <= set(range(num_events))
    assert latents.code.shape == (20, num_events, 4)
    np.testing.assert_allclose(np.linalg.norm(latents.code, axis=-1), 1, rtol=1e-12)
    assert {s: len(events.select(s)) for s in ("train", "valid", "test")} == {"train": 12, "valid": 3, "test": 5}


def test_regression_gives_the_score_itself(events: AsynchronousEvents, latents: Latents) -> None:
    np.testing.assert_allclose(events.y, latents.score, rtol=1e-6)
    assert events[0].y.dtype == torch.float32
    assert events[0].y.shape == (1,)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_classes_are_bins_of_equal_size_in_the_order_of_the_score(num_classes: int) -> None:
    events = AsynchronousEvents(num_samples=210, task="classification", num_classes=num_classes)
    assert events[0].y.dtype == torch.int64
    assert np.bincount(events.y).tolist() == [210 // num_classes] * num_classes
    assert (np.diff(events.y[np.argsort(events.latents.score)]) >= 0).all()


def test_half_of_the_values_are_1_and_half_minus_1_in_random_order(latents: Latents) -> None:
    for m, value in latents.value.items():
        assert set(value.flat) == {-1.0, 1.0}
        assert not value.sum(1).any(), m
        assert abs(value.mean(0)).max() < 5 / math.sqrt(N), "an event's place tells its value"


def test_the_coincidence_is_the_mean_value_at_the_focus_of_the_modality_before(latents: Latents) -> None:
    names = tuple(latents.value)
    for n in range(N):
        found = 0.0
        for m in names:
            found += latents.value[m][n, latents.focus[before(m, names)][n]] / len(names)
        assert latents.coincidence[n] == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("coincidence", [0.0, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("num_modalities", [2, 3])
def test_the_score_is_the_weighted_sum_of_parts_of_unit_variance(coincidence: float, num_modalities: int) -> None:
    latents = AsynchronousEvents(num_samples=N // 4, num_modalities=num_modalities, coincidence=coincidence, duration=(1, 1)).latents
    private = sum(p.sum(1) for p in latents.private.values())
    parts = [latents.shared.sum(1) / math.sqrt(2), private / math.sqrt(2 * num_modalities), latents.coincidence * math.sqrt(num_modalities)]
    rest = (1 - coincidence) / 2
    expected = math.sqrt(rest) * (parts[0] + parts[1]) + math.sqrt(coincidence) * parts[2]
    np.testing.assert_allclose(latents.score, expected, rtol=1e-12, atol=1e-12)
    covariance = np.cov(parts)
    # Five standard errors of a sample's variance.
    np.testing.assert_allclose(covariance, np.eye(3), rtol=0, atol=5 * math.sqrt(2 / (N // 4)))


@MODELS
@pytest.mark.parametrize("name", ["text", "audio", "vision"])
def test_no_single_modality_tells_anything_of_the_coincidence(latents: Latents, make: Callable[[], Any], name: str) -> None:
    """Not even its true values, focus and codes do. A model that learns from noise has R^2 below 0 on samples it has not seen."""
    focus = np.eye(latents.code.shape[1])[latents.focus[name]]
    dwelt = latents.code[ROWS, latents.focus[name]]
    truth = np.column_stack([latents.value[name], focus, dwelt, latents.code.reshape(N, -1)])
    assert r2(make(), truth, latents.coincidence) < 0.02


@MODELS
def test_the_averages_of_all_modalities_tell_nothing_of_the_coincidence(latents: Latents, signals, make: Callable[[], Any]) -> None:
    pooled = np.column_stack([np.stack([x.mean(0) for x, _ in signals[m]]) for m in signals])
    assert r2(make(), pooled, latents.coincidence) < 0.02
    assert r2(make(), pooled, latents.shared[:, 0]) > 0.5  # the same model does find what an average can hold


def test_one_focus_and_the_values_of_the_next_modality_tell_their_share(latents: Latents) -> None:
    """The same kind of model as above, shown what meets across two modalities, explains one of the M terms: 1 / M of the variance."""
    names = tuple(latents.value)
    for m in names:
        focus = np.eye(latents.code.shape[1])[latents.focus[before(m, names)]]
        pairs = (latents.value[m][:, :, None] * focus[:, None]).reshape(N, -1)
        assert r2(LinearRegression(), pairs, latents.coincidence) == pytest.approx(1 / len(names), abs=0.05)


def test_attention_finds_the_coincidence_in_the_signals(latents: Latents, signals) -> None:
    """From x alone: linear readouts of codes and values at the events and of the focus in the average, then the best match.

    Codes of one sample may resemble each other, and slow modalities see an event between two steps, so that some matches go wrong:
    at least nine samples in ten come out exactly.
    """
    names, dwelt, code, value = tuple(signals), {}, {}, {}

    def readout(x: np.ndarray, target: np.ndarray) -> np.ndarray:
        flat, wanted = x[TRAIN].reshape(-1, x.shape[-1]), target[TRAIN].reshape(-1, target.shape[-1])
        return LinearRegression().fit(flat, wanted).predict(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    for m in names:
        at_events = np.stack([x[abs(time[:, None] - latents.times[n]).argmin(0)] for n, (x, time) in enumerate(signals[m])])  # (N, E, d)
        average = np.stack([x.mean(0) for x, _ in signals[m]])
        code[m], value[m] = readout(at_events, latents.code), np.sign(readout(at_events, latents.value[m][..., None])[..., 0])
        dwelt[m] = readout(average, latents.code[ROWS, latents.focus[m]])
    found = np.zeros(N)
    for m in names:
        direction = code[m] / np.linalg.norm(code[m], axis=-1, keepdims=True)
        event = (direction * dwelt[before(m, names)][:, None]).sum(-1).argmax(1)
        found += value[m][ROWS, event] / len(names)
    assert np.isclose(found, latents.coincidence)[TEST].mean() > 0.9
    assert r2_score(latents.coincidence[TEST], found[TEST]) > 0.9


def test_every_modality_shows_the_shared_latent_and_its_own_private_one_alone(latents: Latents, signals) -> None:
    """This also shows that row n of the latents belongs to sample n."""
    for m in signals:
        average = np.stack([x.mean(0) for x, _ in signals[m]])
        assert r2(LinearRegression(), average, latents.shared) > 0.95
        for other, private in latents.private.items():
            found = r2(LinearRegression(), average, private)
            assert found > 0.95 if other == m else found < 0.02, f"{m} of {other}"


def test_latents_stay_with_their_samples_in_a_view(events: AsynchronousEvents, latents: Latents) -> None:
    view = events.select("test")
    rows = [int(name) for name in view.ids]
    assert rows[0] > 0
    np.testing.assert_allclose(view.y, latents.score[rows], rtol=1e-6)
    np.testing.assert_allclose(view[5].y, latents.score[rows[5]], rtol=1e-6)


def test_noise_and_jitter_are_what_they_say() -> None:
    """Data sets of one seed that differ in one of them differ by just that."""
    still, noisy, late = (
        AsynchronousEvents(num_samples=50, **({"noise": 0.0, "jitter": 0.0} | change)) for change in ({}, {"noise": 0.3}, {"jitter": 0.1})
    )
    difference = np.concatenate([(noisy[n]["audio"].x - still[n]["audio"].x).numpy().ravel() for n in range(50)])
    assert difference.std() == pytest.approx(0.3, rel=0.05)
    assert abs(difference.mean()) < 5 * 0.3 / math.sqrt(difference.size)
    assert not torch.allclose(late[0]["audio"].x, still[0]["audio"].x, atol=0.1)
    assert torch.equal(late[0]["audio"].time, still[0]["audio"].time)


@pytest.mark.parametrize("num_modalities", [2, 4])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_missing_rate(rate: float, num_modalities: int) -> None:
    """One modality, drawn at random, always stays; each of the others is missing at the rate."""
    whole, holed = (AsynchronousEvents(num_samples=400, num_modalities=num_modalities, missing_rate=r) for r in (0.0, rate))
    missing = np.stack([holed.lengths[m] == 0 for m in holed.modalities])
    assert not missing.all(0).any()
    expected = rate * (1 - 1 / num_modalities)
    assert missing.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / missing.size))
    # What is there is what it would have been anyway, the truth included.
    np.testing.assert_array_equal(holed.latents.score, whole.latents.score)
    for n in range(20):
        for m in holed.modalities:
            if holed.lengths[m][n]:
                assert torch.equal(holed[n][m].x, whole[n][m].x)
            else:
                assert holed[n][m].x.shape == (0, holed.channels[m])


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_model_of_ours_takes_its_batches(task: Any) -> None:
    events = AsynchronousEvents(num_samples=12, task=task, num_classes=3, missing_rate=0.4)
    model = MEA(events.channels, 1 if task == "regression" else 3, channels=8, hidden_channels=6, heads=2)
    for batch in DataLoader(events, batch_size=6, shuffle=True):
        output = model(batch.x_dict, batch.batch_dict, batch.num_graphs)
        for m in events.modalities:
            assert output.present[m].tolist() == [bool(events.lengths[m][int(name)]) for name in batch.id]
        MEALoss(task)(output, batch.y).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"num_samples": 3}, "num_samples: expected 4 to 1000000, got 3"),
        ({"task": "ranking"}, "task: expected 'regression' or 'classification', got 'ranking'"),
        ({"num_samples": "40"}, "num_samples: expected int, got '40'"),
        ({"num_samples": 10**13}, "num_samples: expected 4 to 1000000, got 10000000000000"),
        ({"num_classes": 1}, "num_classes: expected 2 to num_samples, got 1"),
        ({"num_samples": 9, "num_classes": 10}, "num_classes: expected 2 to num_samples, got 10"),
        ({"num_modalities": 1}, "num_modalities: expected 2 to 5, got 1"),
        ({"num_modalities": 6}, "num_modalities: expected 2 to 5, got 6"),
        ({"num_events": 3}, "num_events: expected an even number, 2 to 8, got 3"),
        ({"num_events": 10}, "num_events: expected an even number, 2 to 8, got 10"),
        ({"num_events": 0}, "num_events: expected an even number, 2 to 8, got 0"),
        ({"duration": (4.0, 2.0)}, r"duration: expected 0 < shortest <= longest <= 3600, got \(4.0, 2.0\)"),
        ({"duration": (0.0, 2.0)}, r"duration: expected 0 < shortest <= longest <= 3600, got \(0.0, 2.0\)"),
        ({"duration": 3.0}, r"duration: expected a list of 2 numbers, got 3.0"),
        ({"duration": [3.0]}, r"duration: expected a list of 2 numbers, got \[3.0\]"),
        ({"coincidence": 1.1}, "coincidence: expected 0 to 1, got 1.1"),
        ({"coincidence": -0.1}, "coincidence: expected 0 to 1, got -0.1"),
        ({"noise": -0.1}, "noise: expected 0 to 1e\\+06, got -0.1"),
        ({"jitter": -0.1}, "jitter: expected at least 0, got -0.1"),
        ({"jitter": float("inf")}, "jitter: expected a finite number, got inf"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": "1"}, "seed: expected int, got '1'"),
        ({"missing_rate": 1.0}, "missing_rate: expected 0 to below 1, got 1.0"),
        ({"missing_rate": -0.1}, "missing_rate: expected 0 to below 1, got -0.1"),
    ],
)
def test_bad_arguments_are_named(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AsynchronousEvents(**argument)


@pytest.fixture(scope="module")
def timed() -> AsynchronousEvents:
    return AsynchronousEvents(num_samples=1000, num_modalities=2, match="time", coincidence=1.0)


class TestMatchedByTime:
    """With `match="time"` the coincidence is found by the clock, and neither by the numbers of steps nor in averages."""

    @staticmethod
    def shown(timed: AsynchronousEvents, name: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How strong the mark and the value are at each step, and when it was."""
        x, time = (timed[n][name][key].numpy() for key in ("x", "time"))
        view = np.random.default_rng(2000 + timed.modalities.index(name)).normal(size=(x.shape[1], x.shape[1]))
        mark, value = (x @ np.linalg.qr(view)[0][:2].T).T
        return mark, value, time

    @pytest.mark.parametrize(("by", "least", "most"), [("seconds", 0.85, 1.0), ("steps", 0.0, 0.25)])
    def test_only_seconds_find_what_a_mark_means(self, timed: AsynchronousEvents, by: str, least: float, most: float) -> None:
        found = []
        for n in range(len(timed)):
            views = {m: self.shown(timed, m, n) for m in timed.modalities}
            total = 0.0
            for m in timed.modalities:
                mark, _, clock = views[before(m, timed.modalities)]
                _, value, time = views[m]
                step = mark.argmax()
                if by == "seconds":
                    near = np.abs(time - clock[step]) < 0.3
                    total += value[near].mean() if near.any() else 0.0
                else:
                    total += value[int((step + 0.5) / len(mark) * len(value))]
            found.append(total)
        assert least <= np.corrcoef(found, timed.latents.score)[0, 1] ** 2 <= most

    def test_averages_know_nothing(self, timed: AsynchronousEvents) -> None:
        features = np.stack([np.concatenate([timed[n][m].x.numpy().mean(0) for m in timed.modalities]) for n in range(len(timed))])
        score, half = timed.latents.score, len(timed) // 2
        model = LinearRegression().fit(features[:half], score[:half])
        assert r2_score(score[half:], model.predict(features[half:])) < 0.1

    def test_stretches_are_in_the_latents(self, timed: AsynchronousEvents) -> None:
        ends = timed.latents.times
        assert ends.shape == (1000, 2, 4)
        assert (np.diff(ends, axis=-1) > 0).all()
        _, value, time = self.shown(timed, "text", 0)
        wanted = timed.latents.value["text"][0][np.minimum(np.searchsorted(ends[0, 0], time), 3)]
        assert (np.sign(value) == wanted).all()

    def test_another_word_is_refused(self) -> None:
        with pytest.raises(ValueError, match="match: expected 'code' or 'time', got 'clock'"):
            AsynchronousEvents(num_samples=4, match="clock")  # type: ignore[arg-type]
