"""One set of options says what labels are, and what becomes of NaN, whichever reader reads them."""

import pickle
import warnings

import numpy as np
import pytest

from mea_graph.data import DataError, open_dataset

h5py = pytest.importorskip("h5py")

SAMPLES = 6
ONE = np.array([-1.0, 2.0, 0.0, 1.0, -3.0, 0.0])
SEVERAL = np.array([[1.5, 0, 0, 3], [-1, 1, 0, 0], [0, 0, 0, 0], [0.5, 0, 2, 0], [-3, 0, 1, 1], [2, 1, 1, 1]])
AUDIO = np.random.default_rng(0).uniform(1, 2, (SAMPLES, 4, 3)).astype(np.float32)


def csd(folder, y, audio):
    folder.mkdir()
    for name, arrays in (("audio", audio), ("labels", y.reshape(SAMPLES, 1, -1))):
        with h5py.File(folder / f"{name}.csd", "w") as file:
            for i, array in enumerate(arrays):
                video = file.create_group(f"{name}/data/v{i}[0]")
                video["features"], video["intervals"] = array, np.stack([np.arange(len(array)), np.arange(len(array)) + 1.0], 1)
    return folder


def write(form, folder, y, audio=AUDIO):
    """The same samples in every form of the field; what `open_dataset` takes."""
    y, path = np.asarray(y), folder / f"{form}.pkl"
    if form == "npz":
        np.savez(folder / "a.npz", audio=audio, y=y)
        return {"source": folder / "a.npz"}
    if form == "csd":
        return {"source": csd(folder / "csd", y, audio)}
    if form == "misa":
        no = np.zeros((0,))
        value = [((no, no, x), row, f"v{i}") for i, (x, row) in enumerate(zip(audio, y, strict=True))]
        path.write_bytes(pickle.dumps(value))
        return {"source": path, "format": "misa"}
    key = {"mult": "labels", "mmsa": "regression_labels"}[form]
    path.write_bytes(pickle.dumps({"train": {"audio": audio, key: y}}))
    return {"source": path, "format": form}


every_form = pytest.mark.parametrize("form", ["npz", "csd", "misa", "mult", "mmsa"])


@every_form
class TestLabels:
    @pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1)])
    def test_one_a_sample(self, form, tmp_path, shape):
        where = write(form, tmp_path, ONE.reshape(shape))
        for options in ({}, {"labels": "regression"}, {"labels": "regression", "columns": 0}):
            y = open_dataset(**where, **options).y
            assert y.dtype == np.float32
            assert y.tolist() == ONE.tolist()
        dataset = open_dataset(**where, labels="classes")
        assert dataset.y.dtype == np.int64
        assert dataset.y.tolist() == [1, 4, 2, 3, 0, 2]
        assert dataset.label_names == ("-3", "-1", "0", "1", "2")
        assert "classes are numbered anew: -3 is 0, -1 is 1, 0 is 2, 1 is 3, 2 is 4" in dataset.notes
        dataset = open_dataset(**where, labels=0)
        assert dataset.y.dtype == np.int64
        assert dataset.y.tolist() == [0, 1, 0, 1, 0, 0]
        assert dataset.label_names == ("at most 0", "above 0")
        assert open_dataset(**where, labels=-0.5, label_names=["no", "yes"]).y.tolist() == [0, 1, 1, 1, 0, 1]

    def test_classes_that_are_numbered_as_they_should_be(self, form, tmp_path):
        for i, kind in enumerate((np.int64, np.float64)):
            (tmp_path / str(i)).mkdir()
            dataset = open_dataset(**write(form, tmp_path / str(i), np.array([0, 3, 1, 1, 0, 3], kind)), labels="classes")
            assert dataset.y.tolist() == [0, 3, 1, 1, 0, 3]
            assert not any("anew" in note for note in dataset.notes)

    @pytest.mark.parametrize("shape", [(-1, 4), (-1, 1, 4), (-1, 4, 1)])
    def test_several_a_sample(self, form, tmp_path, shape):
        """As CMU-MOSEI has them: a sentiment, and how strong each emotion is."""
        where, names = write(form, tmp_path, SEVERAL.reshape(SAMPLES, *shape[1:])), ["sentiment", "happy", "sad", "angry"]
        assert open_dataset(**where, columns=0).y.tolist() == SEVERAL[:, 0].tolist()
        assert open_dataset(**where, columns="sentiment", label_names=names).y.tolist() == SEVERAL[:, 0].tolist()
        for columns, known in (([1, 3], ["happy", "angry"]), (["happy", "angry"], names), ([1, "angry"], names)):
            dataset = open_dataset(**where, columns=columns, label_names=known, labels=0)
            assert dataset.y.dtype == np.float32
            assert dataset.y.tolist() == (SEVERAL[:, [1, 3]] > 0).tolist()
            assert dataset.label_names == ("happy", "angry")
        assert open_dataset(**where, columns=["happy"], labels=0.5, label_names=names).y.tolist() == [0, 1, 0, 0, 0, 1]
        with pytest.raises(DataError, match="labels: expected one label a sample, got 4; say which with columns="):
            open_dataset(**where)
        with pytest.raises(DataError, match=r"columns: expected an integer in \[0, 4\); label_names= gives them names, got 'happy'"):
            open_dataset(**where, columns="happy")
        with pytest.raises(DataError, match=r"columns: expected an integer in \[0, 4\) or a name among .*, got 'joy'"):
            open_dataset(**where, columns=["joy"], label_names=names)
        for wrong in (4, -1, True, [], [1, 1]):
            with pytest.raises(DataError, match="columns: expected"):
                open_dataset(**where, columns=wrong)
        with pytest.raises(DataError, match=r"labels: sample '.*': expected zeros and ones, got \[1.5, 0.0.*; labels=NUMBER"):
            open_dataset(**where, labels="labels")
        with pytest.raises(DataError, match=r"labels: sample '.*': expected a single one among 4 for labels='classes'"):
            open_dataset(**where, labels="classes")

    def test_zeros_and_ones(self, form, tmp_path):
        ones = np.eye(3)[[0, 2, 1, 1, 0, 2]]
        where = write(form, tmp_path, ones.astype(np.int64))
        for options in ({}, {"labels": "labels"}):
            y = open_dataset(**where, **options).y
            assert y.dtype == np.float32
            assert y.tolist() == ones.tolist()
        assert open_dataset(**where, labels="classes", label_names=["a", "b", "c"]).y.tolist() == [0, 2, 1, 1, 0, 2]
        assert open_dataset(**where, columns=2, labels="classes").y.tolist() == [0, 1, 0, 0, 0, 1]

    def test_minus_one_and_one(self, form, tmp_path):
        signs = np.where(SEVERAL > 0, 1, -1)
        dataset = open_dataset(**write(form, tmp_path, signs), labels="labels")
        assert dataset.y.tolist() == (SEVERAL > 0).tolist()
        assert "labels of -1 are taken as 0" in dataset.notes

    def test_what_labels_cannot_be(self, form, tmp_path):
        where = write(form, tmp_path, ONE + 0.5)
        for wrong in ("class", True, np.nan, [1]):
            with pytest.raises(DataError, match=r"labels: expected one of \['regression', 'classes', 'labels'\] or a number"):
                open_dataset(**where, labels=wrong)
        with pytest.raises(DataError, match=r"labels: sample '.*': expected a whole number as a class, got -0.5; labels=NUMBER"):
            open_dataset(**where, labels="classes")
        with pytest.raises(DataError, match="labels: expected several labels a sample"):
            open_dataset(**where, labels="labels")

    @pytest.mark.parametrize("options", [{}, {"labels": 0}, {"labels": "classes"}], ids=str)
    def test_nan_is_no_label(self, form, tmp_path, options):
        """A comparison would take it as 0."""
        y = ONE.copy()
        y[2] = np.nan
        with pytest.raises(DataError, match=r"y: sample '.*': expected finite numbers, got nan$"):
            open_dataset(**write(form, tmp_path, y), **options)


@every_form
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_non_finite_is_an_option_of_every_reader(form, tmp_path, value):
    audio = AUDIO.astype(np.float64)
    audio[2, 1, 0] = value
    where = write(form, tmp_path, ONE, audio)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"audio: sample .*; non_finite='zero' sets such values to 0, 'drop' leaves out their steps"):
            open_dataset(**where)
        zero, drop = (open_dataset(**where, non_finite=option) for option in ("zero", "drop"))
    expected = AUDIO[2].copy()
    expected[1, 0] = 0
    np.testing.assert_array_equal(zero[2]["audio"].x.numpy(), expected)
    assert "audio: 1 values that were NaN or infinite set to 0, in 1 samples" in zero.notes
    np.testing.assert_array_equal(drop[2]["audio"].x.numpy(), AUDIO[2, [0, 2, 3]])
    assert "audio: 1 steps with NaN or infinite values left out, in 1 samples" in drop.notes
    assert drop.lengths["audio"].tolist() == [4, 4, 3, 4, 4, 4]
    with pytest.raises(DataError, match="non_finite: expected 'error', 'zero' or 'drop', got 'mean'"):
        open_dataset(**where, non_finite="mean")


def test_times_are_dropped_with_their_steps(tmp_path):
    audio, time = AUDIO.copy(), np.tile(np.arange(4.0), (SAMPLES, 1))
    audio[1, 2] = np.nan
    np.savez(tmp_path / "a.npz", audio=audio, audio_time=time, audio_len=np.array([4, 4, 4, 0, 4, 2]))
    dataset = open_dataset(tmp_path / "a.npz", non_finite="drop")
    assert dataset[1]["audio"].time.tolist() == [0, 1, 3]
    assert dataset.lengths["audio"].tolist() == [4, 3, 4, 0, 4, 2]
    with pytest.raises(DataError, match="expected finite numbers, got nan in step 2"):
        open_dataset(tmp_path / "a.npz")


def test_nan_in_the_padding_is_nothing(tmp_path):
    audio = AUDIO.copy()
    audio[1, 2:] = np.nan
    np.savez(tmp_path / "a.npz", audio=audio, audio_len=np.full(SAMPLES, 2))
    assert open_dataset(tmp_path / "a.npz", non_finite="zero").notes == open_dataset(tmp_path / "a.npz").notes


def test_words_are_classes(tmp_path):
    np.savez(tmp_path / "a.npz", audio=AUDIO, y=np.array(["b", "a"] * 3))
    assert open_dataset(tmp_path / "a.npz", labels="classes").label_names == ("a", "b")
    for options in ({"labels": "regression"}, {"labels": 0.5}, {"columns": 0}):
        with pytest.raises(DataError, match="labels: expected numbers for labels="):
            open_dataset(tmp_path / "a.npz", **options)


def test_either_labels_of_mmsa(tmp_path):
    part = {"audio": AUDIO, "regression_labels": ONE, "classification_labels": np.array([0.0, 2, 1, 2, 0, 1])}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"train": part}))
    for options, y, field in (
        ({}, ONE, "classification_labels"),
        ({"labels": "classes"}, part["classification_labels"], "regression_labels"),
        ({"labels": 0}, ONE > 0, "classification_labels"),
    ):
        dataset = open_dataset(tmp_path / "a.pkl", **options)
        assert dataset.y.tolist() == y.tolist()
        assert dataset.fields[field].tolist() == part[field].tolist()
    del part["regression_labels"]
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"train": part}))
    assert open_dataset(tmp_path / "b.pkl").y.dtype == np.int64
    assert open_dataset(tmp_path / "b.pkl", labels="regression").y.dtype == np.float32


def test_a_saved_data_set_knows_its_own(tmp_path):
    np.savez(tmp_path / "a.npz", audio=AUDIO, y=ONE)
    open_dataset(tmp_path / "a.npz").save(tmp_path / "saved.npz")
    for options in ({"labels": 0}, {"columns": 0}, {"non_finite": "zero"}):
        with pytest.raises(DataError, match="options: expected none for a saved data set"):
            open_dataset(tmp_path / "saved.npz", **options)
