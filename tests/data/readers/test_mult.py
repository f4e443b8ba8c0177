import pickle

import numpy as np
import pytest

from mea_graph.data import DataError, open_dataset

WIDTHS = {"text": 4, "audio": 3, "vision": 2}
STEPS = {"text": 5, "audio": 9, "vision": 8}


def padded(rng, steps, width, lengths, front):
    """Rows that are nowhere zero, at the front or back of zeros; the true arrays beside."""
    x, true = np.zeros((len(lengths), steps, width), np.float32), []
    for row, n in zip(x, lengths, strict=True):
        values = rng.uniform(1, 2, (n, width)).astype(np.float32)
        row[steps - n if front else 0 :][:n] = values
        true.append(values)
    return x, true


@pytest.fixture
def payload():
    rng = np.random.default_rng(0)
    parts, truth = {}, {name: [] for name in WIDTHS}
    for split, samples in (("train", 4), ("valid", 2), ("test", 3)):
        part = {}
        for name, width in WIDTHS.items():
            lengths = rng.integers(1, STEPS[name] + 1, samples)
            part[name], true = padded(rng, STEPS[name], width, lengths, front=name == "text")
            truth[name] += true
        part["labels"] = rng.uniform(-3, 3, (samples, 1, 1))
        part["id"] = np.array([[f"{split}{i}", "0.5", "2.25"] for i in range(samples)], dtype="S8")
        parts[split] = part
    return parts, truth


def write(path, parts, protocol=2):
    path.write_bytes(pickle.dumps(parts, protocol))
    return path


@pytest.mark.parametrize("format", ["auto", "mult"])
def test_true_lengths_are_recovered_at_both_ends(tmp_path, payload, format):
    parts, truth = payload
    dataset = open_dataset(write(tmp_path / "mosi.pkl", parts), format=format)
    assert dataset.modalities == ("text", "audio", "vision")
    assert dataset.split.tolist() == ["train"] * 4 + ["valid"] * 2 + ["test"] * 3
    assert dataset.ids[0] == "train0[0.5,2.25]"
    assert dataset.fields["video"].tolist()[4] == "valid0"
    np.testing.assert_allclose(dataset.y, np.concatenate([p["labels"].ravel() for p in parts.values()]), rtol=1e-6)
    assert dataset.y.dtype == np.float32
    for name, arrays in truth.items():
        for i, true in enumerate(arrays):
            np.testing.assert_array_equal(dataset[i][name].x.numpy(), true)
    assert dataset.notes == ()


def test_zero_rows_inside_are_steps(tmp_path, payload):
    parts, _ = payload
    parts["train"]["audio"][0] = 0
    parts["train"]["audio"][0, [2, 5]] = 1
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset[0]["audio"].x[:, 0].tolist() == [1, 0, 0, 1]


def test_all_zero_is_missing_and_reported(tmp_path, payload):
    parts, _ = payload
    parts["test"]["vision"][1] = 0
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset.select("test").lengths["vision"][1] == 0
    assert any("vision: 1 samples" in note for note in dataset.notes)


def test_minus_infinity_in_audio_becomes_zero_and_is_counted(tmp_path, payload):
    parts, truth = payload
    parts["train"]["audio"][0, 0, :2] = -np.inf
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset[0]["audio"].x[0].tolist() == [0, 0, truth["audio"][0][0, 2]]
    assert any("audio: 2 values of -inf" in note for note in dataset.notes)
    assert "audio: 2 values of -inf" in dataset.describe()


@pytest.mark.parametrize(("name", "value"), [("audio", np.nan), ("audio", np.inf), ("vision", -np.inf), ("text", np.nan)])
def test_other_broken_values_are_refused_by_sample(tmp_path, payload, name, value):
    parts, _ = payload
    parts["valid"][name][1, -1 if name == "text" else 0, 0] = value
    with pytest.raises(DataError, match=rf"{name}: sample 'valid1\[0.5,2.25\]'"):
        open_dataset(write(tmp_path / "a.pkl", parts))


def test_pairs_become_binary_labels(tmp_path, payload):
    parts, _ = payload
    truth = []
    for part in parts.values():
        yes = np.random.default_rng(1).integers(0, 2, (len(part["labels"]), 4))
        part["labels"] = np.eye(2)[yes]
        truth.append(yes)
        del part["id"]
    dataset = open_dataset(write(tmp_path / "a.pkl", parts), format="mult", label_names=["neutral", "happy", "sad", "angry"])
    np.testing.assert_array_equal(dataset.y, np.concatenate(truth))
    assert dataset.label_names == ("neutral", "happy", "sad", "angry")
    assert dataset.ids[:2] == ["train_0", "train_1"]


def test_repeated_names_are_told_apart(tmp_path, payload):
    parts, _ = payload
    parts["train"]["id"][1] = parts["train"]["id"][0]
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset.ids[:2] == ["train0[0.5,2.25]", "train0[0.5,2.25]#2"]
    assert any(note.startswith("id: 1 samples") for note in dataset.notes)


def test_a_number_that_is_added_does_not_make_another_name(tmp_path, payload):
    """The third sample bears the name that the second would get."""
    parts, _ = payload
    parts["train"]["id"] = np.array(["a", "a", "a#2", "a"])
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset.ids[:4] == ["a", "a#3", "a#2", "a#4"]


def test_unknown_keys_are_left_out_and_reported(tmp_path, payload):
    parts, _ = payload
    for part in parts.values():
        part["gaze"] = np.ones(3)
    assert "left out: gaze" in open_dataset(write(tmp_path / "a.pkl", parts)).notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["valid"].pop("audio"), "split 'valid': expected an array 'audio'"),
        (lambda p: p["valid"].update(audio=p["valid"]["audio"][:1]), r"valid/audio: expected numbers of shape \(2, T, d\)"),
        (lambda p: p["valid"].update(audio=p["valid"]["audio"][..., :1]), "audio: .*expected width 3"),
        (lambda p: p["valid"].update(audio=p["valid"]["audio"].astype(str)), "valid/audio: expected numbers"),
        (lambda p: p["valid"].update(labels=np.ones((2, 3, 1))), "labels: expected the same shape"),
        (
            lambda p: [q.update(labels=np.ones((len(q["labels"]), 2, 3))) for q in p.values()],
            r"labels: expected one value a sample, several \(N, K\)",
        ),
        (lambda p: [q.update(labels=np.ones((len(q["labels"]), 3, 2))) for q in p.values()], "labels: expected one-hot pairs"),
        (lambda p: p["valid"].update(id=["a"]), "valid/id: expected 2 names, got 1"),
        (lambda p: [[q.pop(m) for m in WIDTHS] for q in p.values()], "expected arrays named"),
        (lambda p: p["test"]["labels"].__setitem__((0, 0, 0), np.nan), "y: sample 'test0"),
    ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path, payload, change, message):
    parts, _ = payload
    change(parts)
    with pytest.raises(DataError, match=rf"a\.pkl: .*{message}"):
        open_dataset(write(tmp_path / "a.pkl", parts))
    assert not list(tmp_path.glob("*.mea-cache/*/"))


@pytest.mark.parametrize("synonyms", [{"vision": "visual"}, {"audio": "acoustic"}, {"text": "language", "vision": "visual"}])
def test_other_names_of_a_modality_are_read_and_noted(tmp_path, payload, synonyms):
    parts, truth = payload
    for part in parts.values():
        for name, synonym in synonyms.items():
            part[synonym] = part.pop(name)
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset.modalities == ("text", "audio", "vision")
    for name, arrays in truth.items():
        np.testing.assert_array_equal(dataset[3][name].x.numpy(), arrays[3])
    assert set(dataset.notes) == {f"{name}: read from the key {synonym!r}" for name, synonym in synonyms.items()}
    assert open_dataset(tmp_path / "a.pkl").notes == dataset.notes  # the cache keeps them
    assert all(note in dataset.describe() for note in dataset.notes)


def test_a_synonym_beside_the_usual_name_is_left_out_and_noted(tmp_path, payload):
    parts, truth = payload
    for part in parts.values():
        part["visual"] = part["vision"] + 1
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    np.testing.assert_array_equal(dataset[0]["vision"].x.numpy(), truth["vision"][0])
    assert dataset.notes == ("left out: visual",)


def test_features_without_labels_have_no_y(tmp_path, payload):
    parts, _ = payload
    for part in parts.values():
        del part["labels"]
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset.y is None
    assert "y" not in dataset[0]
    assert "no labels: there is no 'labels' in any split" in dataset.notes
    del parts["train"]["id"]
    parts["train"]["labels"] = np.ones((4, 1, 1))
    with pytest.raises(DataError, match="split 'valid': expected an array 'labels'"):  # some, but not all
        open_dataset(write(tmp_path / "a.pkl", parts))


@pytest.mark.parametrize(("name", "value"), [("audio", np.nan), ("audio", -np.inf), ("vision", -np.inf), ("text", 1e300)])
def test_broken_values_are_set_to_zero_or_their_steps_dropped(tmp_path, payload, name, value):
    parts, truth = payload
    part = parts["valid"]
    part[name] = part[name].astype(np.float64)
    part[name][1, -1 if name == "text" else 0, 0] = value
    broken = len(truth[name][5]) - 1 if name == "text" else 0
    path = write(tmp_path / "a.pkl", parts)
    if not (name == "audio" and value == -np.inf):  # this one MulT's code mends
        with pytest.raises(DataError, match=rf"{name}: sample 'valid1.*; non_finite='zero' sets such values to 0, 'drop' leaves out"):
            open_dataset(path)
    expected = truth[name][5].copy()
    expected[broken, 0] = 0
    np.testing.assert_array_equal(open_dataset(path, format="mult", non_finite="zero")[5][name].x.numpy(), expected)
    dropped = open_dataset(path, format="mult", non_finite="drop")
    np.testing.assert_array_equal(dropped[5][name].x.numpy(), np.delete(expected, broken, axis=0))
    assert f"{name}: 1 steps with NaN or infinite values left out, in 1 samples" in dropped.notes
    with pytest.raises(DataError, match="non_finite: expected 'error', 'zero' or 'drop', got 'mean'"):
        open_dataset(path, format="mult", non_finite="mean")


def test_more_samples_than_a_file_can_hold_are_refused(tmp_path):
    """One array of many samples without a step, in many splits."""
    empty = np.zeros((60_000, 0, 3), np.float32)
    parts = {split: {"audio": empty, "labels": np.zeros(60_000, np.int8)} for split in ("train", "valid", "test")}
    with pytest.raises(DataError, match=r"expected at most \d+ samples in a file of its size, got 120000 or more"):
        open_dataset(write(tmp_path / "a.pkl", parts))


def test_what_is_wrong_with_y_is_not_mended_by_non_finite(tmp_path, payload):
    parts, _ = payload
    parts["test"]["labels"][0] = np.nan
    with pytest.raises(DataError, match=r"y: sample 'test0.*got nan$"):
        open_dataset(write(tmp_path / "a.pkl", parts), non_finite="zero")


def test_rows_of_nothing_but_minus_infinity_are_padding(tmp_path, payload):
    """At the ends, once they are 0; inside they are steps."""
    parts, _ = payload
    audio = np.zeros((3, 9, 3), np.float32)
    audio[0, 4:7] = 1
    audio[0, [3, 5, 7]] = -np.inf
    audio[0, 8, 1] = -np.inf
    audio[1, 2] = -np.inf
    audio[2] = 2
    audio[2, 0, 1] = -np.inf
    parts["test"]["audio"] = audio
    dataset = open_dataset(write(tmp_path / "a.pkl", parts)).select("test")
    assert dataset[0]["audio"].x.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
    assert dataset.lengths["audio"].tolist() == [3, 0, 9]
    assert dataset[2]["audio"].x[0].tolist() == [2, 0, 2]
    assert "audio: 14 values of -inf set to 0, as MulT does" in dataset.notes


def test_names_in_several_splits_are_told(tmp_path, payload):
    """They were renamed as those that stand twice in one split, though the same sample may be trained on and tested."""
    parts, _ = payload
    parts["test"]["id"] = parts["train"]["id"][1:]
    dataset = open_dataset(write(tmp_path / "x.pkl", parts))
    assert "id: 3 names, such as 'train1[0.5,2.25]', stand in more than one split, which may share samples" in dataset.notes
    parts["test"]["id"] = np.array(["same"] * 3)
    assert not any("more than one split" in note for note in open_dataset(write(tmp_path / "y.pkl", parts)).notes)


def test_splits_may_be_named_in_bytes(tmp_path, payload):
    parts, _ = payload
    dataset = open_dataset(write(tmp_path / "x.pkl", {name.encode(): part for name, part in parts.items()}))
    assert sorted(set(dataset.split)) == ["test", "train", "valid"]


def test_a_file_is_named_once(tmp_path, payload):
    parts, _ = payload
    parts["test"]["labels"] = parts["test"]["labels"].ravel()
    with pytest.raises(DataError) as error:
        open_dataset(write(tmp_path / "x.pkl", parts))
    assert str(error.value).count("x.pkl") == 1


def test_names_that_are_given_for_want_of_others_are_told(tmp_path, payload):
    parts, _ = payload
    del parts["test"]["id"]
    dataset = open_dataset(write(tmp_path / "x.pkl", parts))
    assert dataset.ids[-3:] == ["test_0", "test_1", "test_2"]
    assert "id: 3 samples have none and are named by their split and number" in dataset.notes
