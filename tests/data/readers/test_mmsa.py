import pickle

import numpy as np
import pytest

from mea_graph.data import DataError, open_dataset

LENGTHS = {"audio": [3, 6, 1], "vision": [2, 4, 5]}


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    out = {}
    for split in ("train", "valid", "test"):
        part = {
            "raw_text": np.array(["so good", "bad", "fine"], dtype=object),
            "text": rng.uniform(1, 2, (3, 4, 5)).astype(np.float32),
            "text_bert": rng.integers(0, 100, (3, 3, 4)).astype(np.float64),
            "id": [f"{split}$_${i}" for i in range(3)],
            "annotations": ["Positive", "Negative", "Neutral"],
            "regression_labels": np.array([1.5, -2.0, 0.0]),
            "classification_labels": np.array([2.0, 0.0, 1.0]),
        }
        part["text"][1, 2:] = 0
        for name, lengths in LENGTHS.items():
            part[name] = np.zeros((3, 6, 2))
            for i, n in enumerate(lengths):
                part[name][i, :n] = rng.uniform(1, 2, (n, 2))
            part[f"{name}_lengths"] = list(lengths)
        out[split] = part
    return out


def write(path, parts):
    path.write_bytes(pickle.dumps(parts))
    return path


@pytest.mark.parametrize("format", ["auto", "mmsa"])
def test_everything_arrives(tmp_path, parts, format):
    dataset = open_dataset(write(tmp_path / "unaligned_50.pkl", parts), format=format)
    assert {k: v.tolist() for k, v in dataset.select("valid").lengths.items()} == {"text": [4, 2, 4], **LENGTHS}
    np.testing.assert_allclose(dataset[1]["audio"].x.numpy(), parts["train"]["audio"][1], rtol=1e-6)
    assert dataset.y.tolist() == [1.5, -2.0, 0.0] * 3
    assert dataset.y.dtype == np.float32
    assert dataset.ids[:2] == ["train$_$0", "train$_$1"]
    assert set(dataset.fields) == {"video", "raw_text", "annotation", "classification_labels"}
    assert dataset.fields["video"][3] == "valid"
    assert dataset.fields["raw_text"][0] == "so good"
    assert dataset.notes == ("left out: text_bert",)


def test_classes_instead_of_scores(tmp_path, parts):
    dataset = open_dataset(write(tmp_path / "a.pkl", parts), labels="classes")
    assert dataset.y.tolist() == [2, 0, 1] * 3
    assert dataset.y.dtype == np.int64
    assert "regression_labels" in dataset.fields


def test_a_stored_length_keeps_zero_rows_that_are_real(tmp_path, parts):
    parts["train"]["audio"][0, :3] = [[0, 0], [1, 1], [0, 0]]
    path = write(tmp_path / "a.pkl", parts)
    assert open_dataset(path)[0]["audio"].x[:, 0].tolist() == [0, 1, 0]
    assert open_dataset(path, lengths="zeros")[0]["audio"].x[:, 0].tolist() == [1]


def test_padding_in_front(tmp_path, parts):
    parts["train"]["audio"][0] = 0
    parts["train"]["audio"][0, 3:] = [[7, 7], [8, 8], [9, 9]]
    assert open_dataset(write(tmp_path / "a.pkl", parts))[0]["audio"].x[:, 0].tolist() == [7, 8, 9]


def test_without_lengths_zero_rows_tell(tmp_path, parts):
    for part in parts.values():
        del part["audio_lengths"], part["vision_lengths"]
    assert open_dataset(write(tmp_path / "a.pkl", parts)).lengths["vision"].tolist() == LENGTHS["vision"] * 3


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda p: p["test"]["audio"].__setitem__((0, 4), 1), {}, "test/audio: sample 0: its stored length is 3, but rows 0 to 4"),
        (lambda p: p["test"].update(audio_lengths=[3, 7, 1]), {}, r"test/audio_lengths: expected integers in \[0, 6\] of shape \(3,\)"),
        (lambda p: p["test"].update(audio_lengths=[3]), {}, "test/audio_lengths"),
        (lambda p: p["test"].update(regression_labels=np.ones((3, 2))), {}, "regression_labels: expected the same shape"),
        (
            lambda p: p["test"].update(classification_labels=np.array([0.5, 1, 1])),
            {"labels": "classes"},
            "expected a whole number as a class",
        ),
        (lambda p: None, {"labels": "sentiment"}, "labels: expected one of"),
        (lambda p: None, {"lengths": "guess"}, "lengths: expected"),
        (lambda p: None, {"embedding": np.ones((2, 2))}, "looks like format 'mmsa'"),
    ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path, parts, change, options, message):
    change(parts)
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path / "a.pkl", parts), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["test"].update(audio_lengths=["3", "6", "1"]), "test/audio_lengths: expected integers"),
        (lambda p: p["test"].update(audio_lengths=[3, None, 1]), "test/audio_lengths: expected integers"),
        (lambda p: p["test"].update(id=3), "test/id: expected 3 names, got int"),
        (lambda p: p["test"].update(annotations=["Positive"]), "annotations: expected one value for each of 9 samples"),
        (lambda p: p["test"].update(raw_text=np.array([b"\xff"] * 3)), "raw_text: expected the same kind of values in every split"),
        (lambda p: p["test"]["regression_labels"].__setitem__(0, 1e300), "y: sample 'test.*expected finite numbers, got inf"),
    ],
)
def test_what_fuzzing_found_is_refused_by_field(tmp_path, parts, change, message):
    for part in parts.values():
        part["raw_text"] = np.array(["so good", "bad", "fine"])
    change(parts)
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path / "a.pkl", parts))


def test_features_without_labels_have_no_y(tmp_path, parts):
    """As they are for `predict`."""
    for part in parts.values():
        del part["regression_labels"], part["classification_labels"]
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset.y is None
    assert dataset.lengths["audio"].tolist() == LENGTHS["audio"] * 3  # so it was read as MMSA's
    assert dataset.fields["raw_text"][0] == "so good"
    assert any(note.startswith("no labels") for note in dataset.notes)


def test_synonyms_with_their_lengths(tmp_path, parts):
    for part in parts.values():
        part["visual"], part["visual_lengths"] = part.pop("vision"), part.pop("vision_lengths")
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert dataset.lengths["vision"].tolist() == LENGTHS["vision"] * 3
    assert dataset.notes == ("vision: read from the key 'visual'", "left out: text_bert")


@pytest.mark.parametrize("format", ["auto", "mmsa"])
def test_broken_values_are_set_to_zero_or_their_steps_dropped(tmp_path, parts, format):
    parts["train"]["vision"][1, 2, 1] = np.nan
    path = write(tmp_path / "a.pkl", parts)
    with pytest.raises(DataError, match=r"vision: sample 'train\$_\$1': .*nan in step 2, channel 1; non_finite="):
        open_dataset(path, format=format)
    assert open_dataset(path, format=format, non_finite="zero")[1]["vision"].x[2, 1] == 0
    assert open_dataset(path, format=format, non_finite="drop").lengths["vision"][1] == LENGTHS["vision"][1] - 1


def test_what_not_every_split_has_is_left_out_and_noted(tmp_path, parts):
    """It was left out without a word: also stored lengths, so that zero rows were cut off in their place."""
    for key in ("raw_text", "audio_lengths"):
        del parts["test"][key]
    dataset = open_dataset(write(tmp_path / "a.pkl", parts))
    assert "left out, since not every split has them: audio_lengths, raw_text" in dataset.notes
    assert "raw_text" not in dataset.fields
