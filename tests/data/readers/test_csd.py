import builtins
import os

import numpy as np
import pytest

from mea_graph.data import DataError, open_dataset

h5py = pytest.importorskip("h5py")


def write(path, root, entries):
    with h5py.File(path, "w") as file:
        for key, (features, intervals) in entries.items():
            group = file.create_group(f"{root}/data/{key}")
            group["features"], group["intervals"] = features, intervals
        file[root].create_group("metadata")
    return path


def regular(steps, width, rate, seed=0):
    edges = np.arange(steps + 1) / rate
    return np.random.default_rng(seed).normal(size=(steps, width)), np.stack([edges[:-1], edges[1:]], axis=1)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "COVAREP.csd", "COVAREP", {"vidA": regular(40, 3, 10), "vidB": regular(20, 3, 10, 1)})
    write(tmp_path / "glove.csd", "glove_vectors", {"vidA": regular(8, 2, 2, 2)})
    labels = {"vidA": (np.array([[1.5], [-2.0]]), np.array([[0.0, 1.0], [1.5, 3.0]])), "vidB": (np.array([[0.5]]), np.array([[0.3, 1.2]]))}
    write(tmp_path / "Opinion_Labels.csd", "Opinion Segment Labels", labels)
    return tmp_path


def test_labels_cut_the_videos_into_segments(folder):
    dataset = open_dataset(folder)
    assert dataset.ids == ["vidA[0]", "vidA[1]", "vidB[0]"]
    assert dataset.y.tolist() == [1.5, -2.0, 0.5]
    assert dataset.fields["video"].tolist() == ["vidA", "vidA", "vidB"]
    assert dataset.lengths["COVAREP"].tolist() == [10, 15, 9]
    assert dataset.lengths["glove"].tolist() == [2, 3, 0]
    features, _ = regular(40, 3, 10)
    np.testing.assert_allclose(dataset[1]["COVAREP"].x.numpy(), features[15:30], rtol=1e-6)
    np.testing.assert_allclose(dataset[1]["COVAREP"].time.numpy(), 0.05 + np.arange(15) / 10, atol=1e-6)
    assert any("glove: 1 segments" in note for note in dataset.notes)


def test_files_by_name_and_splits(folder):
    dataset = open_dataset(
        {"audio": folder / "COVAREP.csd", "score": folder / "Opinion_Labels.csd"},
        label="score",
        split={"train": ["vidA"], "test": ["vidC"]},
    )
    assert dataset.modalities == ("audio",)
    assert dataset.split.tolist() == ["train", "train"]
    assert any("1 segments left out" in note for note in dataset.notes)
    assert "split: 1 videos of the lists have no labels, such as 'vidC'" in dataset.notes


def test_the_same_files_under_other_names_are_another_entry_of_the_cache(folder):
    files = [folder / name for name in ("COVAREP.csd", "glove.csd", "Opinion_Labels.csd")]
    for names in (("audio", "text", "label"), ("text", "audio", "label")):
        dataset = open_dataset(dict(zip(names, files, strict=True)))
        assert dataset.channels == {names[0]: 3, names[1]: 2}


def test_files_already_aligned_to_segments(tmp_path):
    write(
        tmp_path / "audio.csd", "COVAREP", {"v[0]": (np.ones((2, 3)), [[5.0, 5.5], [5.5, 6.0]]), "v[1]": (np.zeros((1, 3)), [[7.0, 8.0]])}
    )
    write(tmp_path / "labels.csd", "labels", {"v[0]": ([[2.0]], [[5.0, 6.0]]), "v[1]": ([[1.0]], [[7.0, 9.0]])})
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ["v[0]", "v[1]"]
    assert dataset[0]["audio"].time.tolist() == [0.25, 0.75]
    assert dataset.fields["video"].tolist() == ["v", "v"]


def test_several_labels_need_a_column(folder):
    labels = {"vidA": (np.array([[1.0, 0.0, 2.0]]), np.array([[0.0, 1.0]]))}
    write(folder / "Opinion_Labels.csd", "All Labels", labels)
    with pytest.raises(DataError, match="expected one label a sample, got 3; say which with columns="):
        open_dataset(folder)
    assert open_dataset(folder, columns=2).y.tolist() == [2]
    with pytest.raises(DataError, match=r"columns: expected an integer in \[0, 3\)"):
        open_dataset(folder, columns=3)


def test_broken_values_are_refused_or_set_to_zero_on_request(folder):
    features, intervals = regular(40, 3, 10)
    features[2, 1] = -np.inf
    write(folder / "COVAREP.csd", "COVAREP", {"vidA": (features, intervals), "vidB": regular(20, 3, 10)})
    with pytest.raises(DataError, match=r"COVAREP: sample 'vidA\[0\]': .*-inf in step 2, channel 1; non_finite='zero' sets"):
        open_dataset(folder)
    dataset = open_dataset(folder, non_finite="zero")
    assert dataset[0]["COVAREP"].x[2, 1] == 0
    assert any("COVAREP: 1 values" in note for note in dataset.notes)
    dropped = open_dataset(folder, non_finite="drop")
    assert dropped.lengths["COVAREP"].tolist() == [9, 15, 9]
    np.testing.assert_allclose(dropped[0]["COVAREP"].time.numpy(), np.delete(0.05 + np.arange(10) / 10, 2), atol=1e-6)
    assert "COVAREP: 1 steps with NaN or infinite values left out, in 1 samples" in dropped.notes


def test_steps_out_of_order_are_sorted_by_time(folder):
    whole = open_dataset(folder)
    features, intervals = regular(40, 3, 10)
    order = np.random.default_rng(0).permutation(40)
    write(folder / "COVAREP.csd", "COVAREP", {"vidA": (features[order], intervals[order]), "vidB": regular(20, 3, 10, 1)})
    dataset = open_dataset(folder)
    for left, right in zip(dataset, whole, strict=True):
        np.testing.assert_array_equal(left["COVAREP"].x, right["COVAREP"].x)
        np.testing.assert_array_equal(left["COVAREP"].time, right["COVAREP"].time)
    assert "COVAREP: the steps of 1 videos were not in the order of time, and were sorted" in dataset.notes


def test_steps_without_a_time_are_left_out_and_counted(folder):
    features, intervals = regular(40, 3, 10)
    intervals[[1, 17], 1] = np.nan, np.inf
    write(folder / "COVAREP.csd", "COVAREP", {"vidA": (features, intervals), "vidB": regular(20, 3, 10, 1)})
    dataset = open_dataset(folder)
    assert dataset.lengths["COVAREP"].tolist() == [9, 14, 9]
    assert "COVAREP: 2 steps left out, whose intervals are not finite" in dataset.notes


def test_words_become_a_field(folder):
    ticks = np.array([[0.1, 0.4], [0.5, 0.7], [1.6, 2.0]])
    write(folder / "words.csd", "words", {"vidA": (np.array([[b"so"], [b"good"], ["schön".encode()]]), ticks)})
    dataset = open_dataset(folder)
    assert dataset.modalities == ("COVAREP", "glove")
    assert dataset.fields["raw_text"].tolist() == ["so good", "schön", ""]
    assert "words: holds words, which became the field 'raw_text'" in dataset.notes
    assert open_dataset(folder, modalities=["glove"]).fields["raw_text"][0] == "so good"
    with pytest.raises(DataError, match="expected a file with numbers, got only words"):
        open_dataset({"labels": folder / "Opinion_Labels.csd", "words": folder / "words.csd"})


def test_a_step_at_the_end_of_a_segment_is_not_in_it(folder):
    """Half-open intervals: else a step between two segments would be in both."""
    write(folder / "glove.csd", "glove", {"vidA": (np.ones((3, 2)), [[0.0, 0.0], [1.0, 1.0], [1.5, 1.5]])})
    assert open_dataset(folder).lengths["glove"].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("Opinion_Labels.csd", {"vidA": (np.array([[b"word"]]), [[0.0, 1.0]])}, "Opinion_Labels.csd: 'vidA': expected numbers as features"),
        (
            "glove.csd",
            {"vidA": (np.array([[b"word"]]), [[0.0, 1.0]]), "vidB": (np.ones((1, 2)), [[0.0, 1.0]])},
            "words in some videos and numbers in others",
        ),
        ("glove.csd", {"vidA": (np.ones((2, 2)), [[0.0, 1.0]])}, r"glove.csd: 'vidA': expected features \(T, d\) and intervals \(T, 2\)"),
        ("glove.csd", {"other": (np.ones((1, 2)), [[0.0, 1.0]])}, "glove.csd: expected the videos of the label file"),
        ("Opinion_Labels.csd", {"vidA": (np.ones((1, 1)), [[2.0, 1.0]])}, "Opinion_Labels.csd: 'vidA': interval 0: expected start <= end"),
        ("Opinion_Labels.csd", {}, "cannot be read|expected one group"),
    ],
)
def test_a_wrong_file_is_refused(folder, file, entries, message):
    write(folder / file, "root", entries) if entries else h5py.File(folder / file, "w").close()
    with pytest.raises(DataError, match=message):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda f: f / "COVAREP.csd", {}, "one file a modality"),
        (lambda f: {"audio": f / "COVAREP.csd"}, {}, "label: expected one name"),
        (lambda f: f, {"label": "mood"}, "label: expected one name"),
        (lambda f: {"label": f / "Opinion_Labels.csd"}, {}, "at least one modality"),
        (lambda f: f, {"non_finite": "mean"}, "non_finite: expected 'error', 'zero' or 'drop'"),
        (lambda f: f, {"split": {"train": ["vidX"]}}, "got none in the splits"),
        (lambda f: f, {"split": {"train": ["vidA"], "test": ["vidB", "vidA"]}}, "one split, got 'vidA' in 'train' and in 'test'"),
        (lambda f: f, {"split": {"train": "vidA"}}, "split: train: expected a list of videos, got the text 'vidA'"),
    ],
)
def test_wrong_requests_are_refused(folder, source, options, message):
    with pytest.raises(DataError, match=message):
        open_dataset(source(folder), **options)


def test_no_hdf5_file(folder):
    (folder / "glove.csd").write_bytes(b"not hdf5 at all")
    with pytest.raises(DataError, match=r"glove\.csd: cannot be read"):
        open_dataset(folder)


def test_without_h5py_one_error_names_the_extra(folder, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"mea-graph\[hdf5\]"):
        open_dataset(folder)


ARRAYS = "COVAREP/data/vidA/features"
PLACES = ["COVAREP", "COVAREP/data", "COVAREP/data/vidA", ARRAYS, "COVAREP/data/vidA/extra"]


@pytest.mark.parametrize(
    ("kind", "place"), [(kind, place) for kind in ("soft", "external") for place in PLACES] + [("group", ARRAYS), ("raw", ARRAYS)]
)
def test_arrays_must_stand_in_the_file_itself(folder, kind, place):
    """A link could bring any file of the reader's into the data set, or hang at one that nobody writes."""
    (folder / "secret.txt").write_bytes(bytes(8 * 3 * 40))
    os.mkfifo(folder / "fifo")
    write(folder / "other.hdf5", "COVAREP", {"vidA": regular(40, 3, 10)})
    with h5py.File(folder / "COVAREP.csd", "a") as file:
        if place in file:
            file.move(place, "moved")  # so that a soft link has something to point at
        if kind == "soft":
            file[place] = h5py.SoftLink("/moved")
        elif kind == "external":
            file[place] = h5py.ExternalLink("fifo" if place.endswith("extra") else "other.hdf5", place)
        elif kind == "raw":
            file.create_dataset(place, (40, 3), "f8", external=[(str(folder / "secret.txt"), 0, h5py.h5f.UNLIMITED)])
        else:
            file.create_group(place)
    with pytest.raises(DataError, match=r"COVAREP\.csd: .*: expected .*in this very file"):
        open_dataset(folder)


@pytest.mark.parametrize("kind", ["soft", "external"])
def test_a_link_beside_the_group_is_not_followed(folder, kind):
    os.mkfifo(folder / "fifo")
    with h5py.File(folder / "COVAREP.csd", "a") as file:
        file["beside"] = h5py.ExternalLink("fifo", "/") if kind == "external" else h5py.SoftLink("/COVAREP")
    with pytest.raises(DataError, match=r"COVAREP\.csd: the file: expected beside in this very file, got a link"):
        open_dataset(folder)


@pytest.mark.parametrize("kind", ["unwritten", "hard links"])
def test_many_arrays_may_not_claim_together_more_than_the_file_can_hold(folder, kind):
    """Each alone is within the limit."""
    with h5py.File(folder / "COVAREP.csd", "a") as file:
        data = file["COVAREP/data"]
        for i in range(400):
            if kind == "unwritten":
                data.create_dataset(f"v{i}/features", (2**18, 16), "f4", chunks=(2**10, 16))
                data.create_dataset(f"v{i}/intervals", (2**18, 2), "f4", chunks=(2**10, 2))
            elif not i:
                data["v0/features"] = np.zeros((2**14, 16))
                data["v0/intervals"] = np.zeros((2**14, 2))
            else:
                for name in ("features", "intervals"):
                    data[f"v{i}/{name}"] = data[f"v0/{name}"]
    size, message = (folder / "COVAREP.csd").stat().st_size, "at most 1032 bytes of arrays for a byte"
    if kind == "hard links":
        message = "expected every array once"
        assert 1032 * size > 400 * 2**14 * 16 * 8  # so it is no matter of compression
    with pytest.raises(DataError, match=rf"COVAREP\.csd: .*{message}"):
        open_dataset(folder)


def test_a_filter_that_numpy_and_the_field_do_not_use_is_refused(folder):
    """HDF5 would load a plug-in for it."""
    with h5py.File(folder / "COVAREP.csd", "a") as file:
        del file["COVAREP/data/vidA/features"]
        file.create_dataset("COVAREP/data/vidA/features", data=np.ones((40, 3), int), scaleoffset=1)
    with pytest.raises(DataError, match="compressed by gzip or lzf, got the filters"):
        open_dataset(folder)
    with h5py.File(folder / "COVAREP.csd", "a") as file:
        del file["COVAREP/data/vidA/features"]
        file.create_dataset("COVAREP/data/vidA/features", data=np.ones((40, 3)), compression="gzip", shuffle=True, fletcher32=True)
    assert open_dataset(folder)[0]["COVAREP"].x.max() == 1


def test_an_array_that_claims_more_than_the_file_can_hold_takes_no_memory(folder):
    with h5py.File(folder / "COVAREP.csd", "a") as file:
        del file["COVAREP/data/vidA/features"]
        file.create_dataset("COVAREP/data/vidA/features", (2**40, 2**10), "f8", chunks=(1, 1024))  # nothing of it is ever written
    with pytest.raises(DataError, match=r"COVAREP\.csd: 'vidA': features: expected at most 1032 bytes of arrays for a byte"):
        open_dataset(folder)


def test_segments_that_overlap_without_end_are_refused(folder):
    """Each has a copy of its steps: a small file of labels would make gigabytes of a small file of features."""
    labels = {"vidA": (np.zeros((3000, 1)), np.tile([0.0, 4.0], (3000, 1)))}
    write(folder / "Opinion_Labels.csd", "labels", labels)
    with pytest.raises(DataError, match=r"COVAREP\.csd: expected segments that overlap 64 times at most, got more than \d+ steps"):
        open_dataset(folder)
    labels = {"vidA": (np.zeros((100_000, 1), np.int8), np.zeros((100_000, 2)))}
    with h5py.File(folder / "Opinion_Labels.csd", "w") as file:
        for name, array in zip(("features", "intervals"), labels["vidA"], strict=True):
            file.create_dataset(f"labels/data/vidA/{name}", data=array, compression="gzip")
    with pytest.raises(DataError, match=r"Opinion_Labels\.csd: expected at most \d+ samples in a file of its size, got 100000"):
        open_dataset(folder)


def test_intervals_in_other_units_than_the_labels_are_refused(folder):
    """All segments of the modality counted as missing, with a note, and the model trained without it."""
    features, intervals = regular(40, 3, 10)
    write(folder / "COVAREP.csd", "COVAREP", {"vidA": (features, 1000 * intervals + 5000)})
    with pytest.raises(
        DataError, match=r"COVAREP\.csd: expected steps in the intervals of the label file, got none in any of 3; are both in"
    ):
        open_dataset(folder)
