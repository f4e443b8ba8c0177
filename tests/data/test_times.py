"""Time stamps: what has a unit is taken by it, and what can hardly be seconds is told."""

import datetime
import warnings

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from mea_graph.data import DataError, MultimodalDataset, open_dataset

RATES = {"audio": 100, "video": 25, "text": 2}  # of people who speak and look
STEPS = {name: 6 * rate for name, rate in RATES.items()}
DOUBT = "the times are taken as seconds"


def seconds(name, start=0.0, steps=None):
    return start + np.arange(STEPS[name] if steps is None else steps) / RATES[name]


def made(times, **arguments):
    """A data set of two samples with these times, one array for each modality."""
    x = {name: [np.ones((len(time), 1)), np.ones((len(time), 1))] for name, time in times.items()}
    return MultimodalDataset.from_arrays(x, time={name: [time, time] for name, time in times.items()}, **arguments)


@pytest.mark.parametrize("kind", ["int64", "float64", "tensor"])
@pytest.mark.parametrize(
    ("unit", "divisor", "doubted"),
    [("milliseconds", "1e3", {"audio", "video", "text"}), ("microseconds", "1e6", {*RATES}), ("nanoseconds", "1e9", {*RATES})],
)
def test_another_unit_is_told_by_name_step_and_remedy(unit, divisor, doubted, kind):
    given = {name: seconds(name) * float(divisor) for name in RATES}
    if kind != "float64":
        given = {name: time.round().astype(np.int64) for name, time in given.items()}
    if kind == "tensor":
        given = {name: torch.from_numpy(time) for name, time in given.items()}
    with pytest.warns(UserWarning, match=DOUBT) as caught:
        dataset = made(given)
    said = [str(warning.message) for warning in caught]
    assert {line.partition(":")[0] for line in said} == doubted
    for line in said:
        name = line.partition(":")[0]
        assert f"steps are {float(divisor) / RATES[name]:g} s apart (median)" in line
        assert f"if they are {unit}, give t / {divisor}" in line or name == "text"
        assert "timedelta64[ms]" in line
    assert set(said) <= set(dataset.notes)
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "ps", "10ms", "25us"])
def test_durations_are_exact_whatever_their_unit(unit):
    """The reference divides integers of Python, which are exact."""
    numbers = np.array([0, 1, 3, 1000, 123457, 2**40 + 1])
    size, name = np.datetime_data(f"m8[{unit}]")[::-1]
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12}[name]
    expected = [int(number) * size / per_second for number in numbers]
    found = made({"a": numbers.astype(f"timedelta64[{unit}]")})
    assert found[1]["a"].time.tolist() == np.array(expected, np.float32).tolist()
    assert not [note for note in found.notes if DOUBT in note]  # taken at its word, however slow


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("order", [("audio", "video"), ("video", "audio")])
def test_dates_count_from_the_first_of_their_sample_in_any_modality(order):
    start = np.datetime64("2024-03-31T01:59:59.9995", "ns")  # in float32 the seconds of a date are two minutes apart
    video = start + np.arange(50) * np.timedelta64(40, "ms")
    audio = (start + np.timedelta64(250, "us") + np.arange(200) * np.timedelta64(10, "ms")).astype("datetime64[us]")
    x = {"audio": [np.ones((200, 1)), None, np.ones((200, 1))], "video": [np.ones((50, 1)), np.ones((50, 1)), None]}
    dataset = MultimodalDataset.from_arrays(
        {name: x[name] for name in order}, time={"audio": [audio, None, audio], "video": [video, video, None]}
    )
    steps = np.arange(200) / 100
    assert torch.equal(dataset[0]["audio"].time, torch.from_numpy(np.float32(0.00025 + steps)))
    assert torch.equal(dataset[2]["audio"].time, torch.from_numpy(np.float32(steps)))  # no video in it
    for n in (0, 1):
        assert torch.equal(dataset[n]["video"].time, torch.from_numpy(np.float32(np.arange(50) / 25)))
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ({"a": np.array([0, "NaT", 1], "m8[ms]")}, "a: sample '0': expected a time for every step, got NaT in step 1"),
        ({"a": np.array(["2024-01-01", "NaT"], "M8[s]")}, "a: sample '0': expected a time for every step, got NaT in step 1"),
        ({"a": np.array([0, 1], "m8")}, r"a: sample '0': expected times in a unit from weeks to attoseconds, got timedelta64$"),
        ({"a": np.array([0, 1], "m8[M]")}, r"a: sample '0': .* got timedelta64\[M\]"),
        ({"a": np.array(["2024", "2025"], "M8[Y]")}, r"a: sample '0': .* got timedelta64\[Y\]"),
        (
            {"a": np.zeros(2, "M8[s]"), "b": np.zeros(2)},
            "b: expected dates in all times of all modalities, or in none, got others beside those of 'a'",
        ),
        (
            {"a": np.zeros(2, "m8[s]"), "b": np.zeros(2, "M8[s]")},
            "a: expected dates in all times of all modalities, or in none, got others beside those of 'b'",
        ),
        (
            {"a": np.array(["3000-01-01"] * 2, "M8[s]"), "b": np.array(["2024-01-01"] * 2, "M8[ns]")},
            "expected dates that one unit can hold",
        ),
        ({"a": np.zeros((2, 1), "m8[s]")}, r"a: sample '0': expected 2 times in seconds, one a step, got float64 of shape \(2, 1\)"),
        ({"a": [datetime.datetime(2024, 1, 1)] * 2}, r"got object of shape \(2,\); np.asarray\(t, 'datetime64\[us\]'\) has dates"),
    ],
)
def test_units_that_are_no_number_of_seconds_are_refused(times, says):
    with pytest.raises(DataError, match=says):
        made(times)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "times",
    [
        {name: seconds(name) for name in RATES},
        {name: seconds(name, start=3600.0) for name in RATES},  # from the start of a session
        {"pulse": np.arange(0, 600, 5.0), "audio": seconds("audio", steps=60_000)},  # a slow sensor beside a fast one
        {"turn": np.array([0, 4, 11, 19, 26]), "audio": seconds("audio")},  # utterances in a talk
        {"age": np.array([1.7e9]), "audio": seconds("audio")},  # one step says nothing of steps
        {"a": np.zeros(5), "b": np.zeros(0)},
        {"a": np.array([0.0, 100.0, 0.1, 0.2, 0.3])},  # a gap
    ],
)
def test_what_may_well_be_seconds_is_left_in_peace(times):
    assert not [note for note in made(times).notes if DOUBT in note or "lie apart" in note]


@pytest.mark.filterwarnings("error")
def test_slow_sensors_are_taken_and_said_to_be_in_seconds_by_a_unit():
    daily = np.arange(30) * 86400.0
    with pytest.warns(UserWarning, match=r"mood: .* steps are 86400 s apart .* \(1000 \* t\).astype\('timedelta64\[ms\]'\)"):
        doubted = made({"mood": daily})
    said = made({"mood": (1000 * daily).astype("timedelta64[ms]")})
    assert torch.equal(said[0]["mood"].time, doubted[0]["mood"].time)
    assert said.notes == ()


def test_one_modality_in_another_unit_is_told_also_where_its_steps_are_short():
    """Of 1000 steps a second, one a millisecond: steps of 1, as a pulse may have."""
    with pytest.warns(UserWarning, match="eyes: .*last 1e[+]03 times as long as those of 'audio'; give both in seconds"):
        made({"audio": seconds("audio"), "eyes": np.arange(6000)})


def test_modalities_that_never_meet_are_noted():
    dataset = made({"audio": seconds("audio", start=30.0), "video": seconds("video")})
    assert dataset.notes == (
        "audio: its times and those of 'video' lie apart in 2 of 2 samples; count the times of a sample from one moment for all modalities",
    )


def test_what_was_said_of_units_goes_with_the_data_set(tmp_path):
    slow = np.arange(6) * np.timedelta64(1, "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = made({"pulse": slow}, pre_transform=lambda sample: sample)
        said.save(tmp_path / "said.npz")
        again = open_dataset(tmp_path / "said.npz")
        samples = [HeteroData(pulse={"x": torch.ones(6, 1), "time": slow})]
        assert MultimodalDataset.from_samples(samples)[0]["pulse"].time.tolist() == [0, 60, 120, 180, 240, 300]
    assert again.notes == said.notes == ()
    with pytest.warns(UserWarning, match=DOUBT) as caught:
        doubted = made({"pulse": np.arange(6) * 60}, pre_transform=lambda sample: sample)
    assert len(caught) == 1
    doubted.save(tmp_path / "doubted.npz")
    with pytest.warns(UserWarning, match=DOUBT):
        assert open_dataset(tmp_path / "doubted.npz").notes == doubted.notes


def test_a_file_may_have_times_with_a_unit(tmp_path):
    x = {"video": np.ones((3, 50, 1)), "video_len": np.array([50, 20, 0]), "label": np.array([0, 1, 0])}
    times = np.tile(np.arange(50) * 40, (3, 1))
    np.savez(tmp_path / "unit.npz", **x, video_time=times.astype("timedelta64[ms]"))
    np.savez(tmp_path / "none.npz", **x, video_time=times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_dataset(tmp_path / "unit.npz")
    assert torch.equal(found[1]["video"].time, torch.from_numpy(np.float32(np.arange(20) / 25)))
    for _ in range(2):  # read, and from the cache
        with pytest.warns(UserWarning, match="video: .* steps are 40 s apart") as caught:
            open_dataset(tmp_path / "none.npz")
        assert [warning.filename for warning in caught] == [__file__]


def test_describe_shows_the_median_step_of_the_samples_in_view():
    x = {"video": [np.ones((4, 1)), np.ones((2, 1)), None], "text": [np.ones((1, 1))] * 3}
    time = {"video": [[0, 0.04, 0.08, 9.0], [0, 0.5], None], "text": [[0.0], [1.0], [2.0]]}
    dataset = MultimodalDataset.from_arrays(x, time=time)

    def cells(view):
        return [line.rpartition("  ")[2] for line in view.describe().splitlines() if line.startswith(("modality", "video", "text"))]

    assert cells(dataset) == ["time", "0.27 s, 3.7 Hz", "yes"]  # of 0.04, 0.04, 0.5 and 8.92
    assert cells(dataset[:1]) == ["time", "0.04 s, 25 Hz", "yes"]
    assert cells(dataset[[1, 2]]) == ["time", "0.5 s, 2 Hz", "yes"]
    assert cells(dataset[[2]]) == ["time", "yes", "yes"]
