"""A data set saved comes back equal, as a file like any other."""

import numpy as np
import pytest
import torch

from mea_graph.data import DataError, MultimodalDataset, open_dataset


def assert_equal(one, other):
    """All that two data sets hold, but for the hash of the source."""
    assert (one.modalities, one.channels, one.ids, one.label_names, one.notes) == (
        other.modalities,
        other.channels,
        other.ids,
        other.label_names,
        other.notes,
    )
    for name in ("y", "split"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.dtype.kind == theirs.dtype.kind
            np.testing.assert_array_equal(mine, theirs)
    assert list(one.fields) == list(other.fields)
    for name, values in one.fields.items():
        assert values.dtype == other.fields[name].dtype
        np.testing.assert_array_equal(values, other.fields[name])
    for mine, theirs in zip(one, other, strict=True):
        for name in one.modalities:
            assert torch.equal(mine[name].x, theirs[name].x)
            assert one.has_time(name) == other.has_time(name)
            if one.has_time(name):
                assert torch.equal(mine[name].time, theirs[name].time)


def test_everything_comes_back(dataset, tmp_path):
    dataset.save(tmp_path / "mine.npz")
    again = open_dataset(tmp_path / "mine.npz")
    assert_equal(again, dataset)
    again.save(str(tmp_path / "again.npz"))
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "mine.npz").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mine.npz", "again.npz"] or len(
        list(tmp_path.glob("*.npz"))
    ) == 2


def test_the_command_trains_on_it_without_a_word_of_configuration(dataset, tmp_path):
    train = pytest.importorskip("mea_graph.train")
    dataset.save(tmp_path / "mine.npz")
    data = train.SequenceDataModule(str(tmp_path / "mine.npz"), batch_size=2)
    assert (data.task, data.out_channels, data.label_names) == ("classification", 3, ["low", "middle", "high"])
    assert {name: part.tolist() for name, part in data.parts.items()} == {"train": [0, 1, 3], "valid": [2], "test": [4, 5]}
    assert [sorted(batch.id) for batch in data.test_dataloader()] == [["e", "f"]]


def test_a_view_is_saved_as_it_is_seen(dataset, tmp_path):
    dataset.transform = lambda data: pytest.fail("a transform is not saved")
    view = dataset.standardize()[[5, 0, 1]].with_modalities(["video"])
    view.save(tmp_path / "view.npz")
    again = open_dataset(tmp_path / "view.npz")
    view.transform = None
    assert_equal(again, view)
    assert again.statistics is None


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"y": [0.5, 1.5, -2.0]},
        {"y": [2.0, 1.0, 3.0]},
        {"y": [[0, 1], [1, 1], [0, 0]], "label_names": ["sad", "happy"]},
        {"y": ["no", "yes", "no"], "notes": ["heard twice"], "fields": {"a/b.c": [1.5, 2, 3], "split": ["p", "", "q"], "ok": [True] * 3}},
        {"ids": ["ä", "b c", "d/e"], "split": ["fold 1", "fold 2", "train"]},
        {"time": {"x/y": [[0, 0.5], [], [1]]}},
    ],
)
def test_every_form_of_labels_and_names_comes_back(tmp_path, arguments):
    data = MultimodalDataset.from_arrays({"x/y": [np.ones((2, 3)), None, np.zeros((1, 3))], "id_len": [np.ones((1, 1))] * 3}, **arguments)
    data.save(tmp_path / "a.npz")
    assert_equal(open_dataset(tmp_path / "a.npz"), data)


def test_a_modality_that_no_sample_has_comes_back(dataset, tmp_path):
    dataset[[1]].save(tmp_path / "a.npz")
    assert_equal(open_dataset(tmp_path / "a.npz"), dataset[[1]])


@pytest.mark.parametrize("arguments", [{}, {"by": "subject"}])
def test_what_was_standardized_is_not_standardized_again(dataset, tmp_path, arguments):
    """Its file did not say so: z-scores were taken of z-scores."""
    dataset.save(tmp_path / "raw.npz")
    dataset.standardize(**arguments).save(tmp_path / "a.npz")
    again = open_dataset(tmp_path / "a.npz")
    again[:3].copy().save(tmp_path / "b.npz")
    for scaled in (again, again[1:], again.copy(), open_dataset(tmp_path / "b.npz"), open_dataset(tmp_path / "a.npz")):  # from the cache
        with pytest.raises(DataError, match="standardize: this data set holds z-scores: it was standardized when it was saved"):
            scaled.standardize()
    assert open_dataset(tmp_path / "raw.npz").standardize().statistics is not None


def changed(path, **changes):
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mea_graph_dataset": np.array(2)}, "expected a data set saved in form 1, got 2; a later mea-graph"),
        ({"ptr/audio": None}, "ptr/audio: expected 7 integers that rise from 0 to 21"),
        ({"ptr/audio": np.array([0, 4, 2, 11, 13, 18, 21])}, "ptr/audio: expected 7 integers that rise"),
        ({"ptr/audio": np.array([0, 4, 4, 11, 13, 18, 20])}, "ptr/audio: expected 7 integers that rise"),
        ({"ptr/audio": np.arange(7) * 3.5}, "ptr/audio: expected 7 integers"),
        ({"x/audio": np.ones(21)}, r"x/audio: expected shape \(sum of T, d\), got \(21,\)"),
        ({"x/audio": np.array("a")}, "x/audio: expected shape"),
        ({"ids": np.array("a")}, "ptr/audio: expected 2 integers"),
        ({"time/audio": np.ones(20)}, "audio: sample 'f': expected 3 times"),
        ({"time/audio": np.array(1.0)}, "audio: sample 'a': expected 4 times"),
        ({"x/audio": np.full((21, 3), np.nan)}, "audio: sample 'a': expected finite"),
        ({"y": np.zeros(5, int)}, "y: expected shape"),
        ({"ids": None}, "ptr/audio: expected 1 integers"),
        ({"split": np.arange(6)}, "split: expected strings"),
    ],
)
def test_a_damaged_file_is_refused(dataset, tmp_path, changes, message):
    dataset.save(tmp_path / "a.npz")
    changed(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=rf"a\.npz: {message}"):
        open_dataset(tmp_path / "a.npz")


def test_wrong_requests_are_refused(dataset, tmp_path):
    dataset.save(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz: options: expected none for a saved data set"):
        open_dataset(tmp_path / "a.npz", label="y")
    with pytest.raises(DataError, match="expected at least one sample to save"):
        dataset[[]].save(tmp_path / "b.npz")
    with pytest.raises(DataError, match="cannot be written"):
        dataset.save(tmp_path / "no folder" / "a.npz")
    with pytest.raises(DataError, match="ids: expected text without NUL"):  # NumPy's text would lose it
        MultimodalDataset.from_arrays({"a": [np.ones((1, 1))]}, ids=["a\0"]).save(tmp_path / "b.npz")


def test_a_write_that_fails_leaves_what_was_there(dataset, tmp_path, monkeypatch):
    dataset.save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    monkeypatch.setattr(np, "savez", lambda file, **arrays: file.write(b"half") and (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(DataError, match=r"a\.npz: cannot be written .*no space left"):
        dataset[:2].save(tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert (tmp_path / "a.npz").read_bytes() == before
