"""Data and options that a `Predictor` is given and its model cannot take as they are."""

import pickle
import re

import numpy as np
import pytest
import torch

from mea_graph.data import DataError, LengthBucketBatchSampler, MultimodalDataset, open_dataset
from mea_graph.train import MEAModule, Predictor, SequenceDataModule

AUDIO, TEXT = np.random.default_rng(0).normal(size=(5, 2)), np.random.default_rng(1).normal(size=(4, 3))
SMALL = {"channels": 8, "heads": 2, "hidden_channels": 8}


@pytest.fixture(scope="module")
def timed():
    return Predictor(MEAModule({"audio": 2, "text": 3}, "regression", 1, window={"seconds": 1.0}, **SMALL))


def test_a_model_that_reads_times_says_which_are_not_there(timed):
    """It was a plain ValueError of a layer, about positions."""
    told = r"sample '0': text: expected the seconds of its steps, which the model reads, got none; MultimodalDataset\.from_arrays"
    with pytest.raises(DataError, match=told):
        timed(MultimodalDataset.from_arrays({"audio": [AUDIO], "text": [TEXT]}, time={"audio": [np.arange(5)]}))
    with pytest.raises(DataError, match="sample '0': audio: expected the seconds"):
        timed({"audio": [AUDIO], "text": [TEXT]})


def test_what_is_no_module_and_no_data_module_is_told(timed):
    with pytest.raises(TypeError, match=r"module: expected a TaskModule, such as MEAModule, got MEA; Predictor.load takes the path"):
        Predictor(timed.module.network)
    with pytest.raises(TypeError, match="data: expected the SequenceDataModule of the training, or None, got MultimodalDataset"):
        Predictor(timed.module, MultimodalDataset.from_arrays({"audio": [AUDIO], "text": [TEXT]}))


def test_a_missing_modality_needs_no_times(timed):
    """Data without the modality were refused for want of its times."""
    audio, time = [AUDIO, AUDIO[:2]], [np.arange(5), np.arange(2)]
    without = MultimodalDataset.from_arrays({"audio": audio}, time={"audio": time})
    empty = MultimodalDataset.from_arrays({"audio": audio, "text": [TEXT[:0]] * 2}, time={"audio": time, "text": [[], []]})
    np.testing.assert_array_equal(timed(without).values, timed(empty).values)


@pytest.mark.parametrize("size", [0, 1.5, "4", True, None])
def test_a_size_of_batches_is_a_whole_number(timed, size):
    with pytest.raises(DataError, match=rf"batch_size: expected an integer >= 1, got {size!r}"):
        Predictor(timed.module, batch_size=size)
    with pytest.raises(ValueError, match=rf"batch_size: expected an integer >= 1, got {size!r}"):
        LengthBucketBatchSampler({"a": np.ones(3, int)}, size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a device that is not there")
def test_a_device_that_is_not_there_leaves_the_module_where_it_was():
    """Batches went to a device that the module was never brought to."""
    module = MEAModule({"audio": 2, "text": 3}, "regression", 1, **SMALL)
    with pytest.raises(DataError, match="device: expected one that is there, got 'cuda'"):
        Predictor(module, device="cuda")
    assert Predictor(module)({"audio": [AUDIO], "text": [TEXT]}).values.shape == (1,)


def test_the_parts_are_told_of_the_very_samples_of_training_alone():
    x = {"audio": [AUDIO + n for n in range(4)], "text": [TEXT] * 4}
    parts, y = ["train", "train", "valid", "test"], np.arange(4.0)
    dataset = MultimodalDataset.from_arrays(x, y=y, split=parts)
    predictor = Predictor(MEAModule({"audio": 2, "text": 3}, "regression", 1, **SMALL), SequenceDataModule(dataset))
    assert predictor(dataset).part == parts
    for other in (dataset[[1, 0, 2, 3]], dataset[:3], MultimodalDataset.from_arrays(x | {"text": [TEXT + 1] * 4}, y=y, split=parts)):
        assert predictor(other).part is None


class TestFilesAreReadAsInTraining:
    """The model would get sequences of other lengths than those it was trained on, or none, without a word."""

    @pytest.fixture
    def part(self):
        """A split of a pickle: audio whose stored lengths count padding, with a step of -inf in the middle."""
        rng = np.random.default_rng(0)
        audio = rng.normal(size=(4, 6, 2)).astype(np.float32)
        audio[:, 5] = 0
        audio[1, 2] = -np.inf
        return {"audio": audio, "text": rng.normal(size=(4, 3, 3)).astype(np.float32), "id": list("abcd")}

    @pytest.fixture
    def predictor(self):
        def make(source, **reader):
            data = SequenceDataModule(source, reader=reader)
            return data.dataset, Predictor(MEAModule(data.in_channels, "regression", 1, **SMALL), data)

        return make

    @pytest.mark.parametrize("form", ["mult", "mmsa", "npz", "saved"])
    @pytest.mark.parametrize("reader", [{"non_finite": "drop"}, {"lengths": "zeros"}, {"lengths": "zeros", "non_finite": "drop"}], ids=str)
    def test_with_the_options_that_decide_which_steps_there_are(self, tmp_path, part, predictor, form, reader):
        trained = tmp_path / "trained.pkl"
        stored = {"audio_lengths": np.full(4, 6), "regression_labels": np.arange(4.0)}
        parts = {name: {**part, **stored, "id": [name + sample for sample in part["id"]]} for name in ("train", "valid", "test")}
        trained.write_bytes(pickle.dumps(parts))
        dataset, made = predictor(trained, **reader)
        assert dataset.lengths["audio"][:2].tolist() == ([5, 4] if len(reader) > 1 else [6, 5] if "non_finite" in reader else [5, 5])
        source = tmp_path / ("new.npz" if form in ("npz", "saved") else "new.pkl")
        if form == "mmsa":
            expected, source = dataset, trained
        elif form == "mult":
            source.write_bytes(pickle.dumps({"test": {**part, "labels": np.arange(4.0)}}))
            expected = open_dataset(source, **{name: value for name, value in reader.items() if name != "lengths"})
        elif form == "npz":
            np.savez(source, audio=part["audio"], audio_len=[6, 5, 5, 5], text=part["text"])
            if "non_finite" not in reader:
                with pytest.raises(DataError, match="non_finite="):
                    made(source)
                return
            expected = open_dataset(source, non_finite="drop")
        else:
            dataset.save(source)
            expected = dataset
        found = made(source)
        assert found.ids == expected.ids
        np.testing.assert_array_equal(found.values, made(expected).values)

    def test_with_the_format_where_the_contents_leave_a_choice(self, tmp_path, part, predictor):
        """Stored lengths make a file MMSA's; training that read it as MulT's cut off rows of zeros."""
        parts = {name: {**part, "id": [name + sample for sample in part["id"]]} for name in ("train", "valid", "test")}
        stored = {"audio_lengths": np.full(4, 6), "labels": np.arange(4.0), "regression_labels": np.arange(4.0)}
        source = tmp_path / "trained.pkl"
        source.write_bytes(pickle.dumps({name: own | stored for name, own in parts.items()}))
        dataset, made = predictor(source, format="mult", non_finite="drop")
        assert dataset.lengths["audio"][:2].tolist() == [5, 4]
        np.testing.assert_array_equal(made(source).values, made(dataset).values)
        arrays = {"audio": list(dataset[0]["audio"].x.numpy()[None]), "text": list(dataset[0]["text"].x.numpy()[None])}
        np.savez(tmp_path / "new.npz", **{name: np.stack(x) for name, x in arrays.items()})  # which has a form of its own
        np.testing.assert_allclose(made(tmp_path / "new.npz").values, made(dataset).values[:1], rtol=1e-5)
        misa = [((np.zeros((2, 3)), np.ones((2, 4)), np.ones((2, 2))), np.ones(1), "a")]
        (tmp_path / "misa.pkl").write_bytes(pickle.dumps(misa))
        with pytest.raises(DataError, match="expected modalities among"):  # it is read, as what it is
            made(tmp_path / "misa.pkl")

    def test_with_the_format_of_a_folder_that_holds_several(self, tmp_path, predictor):
        for name in ("train", "dev", "test"):
            own = [((np.ones((5, 3)), np.ones((5, 2)), np.ones((5, 2))), np.ones(1), f"{name}{i}") for i in range(2)]
            (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(own))
        (tmp_path / "words.csd").write_bytes(b"of another kind")
        dataset, made = predictor(tmp_path, format="misa")
        np.testing.assert_array_equal(made(tmp_path).values, made(dataset).values)

    def test_with_a_folder_too(self, tmp_path, predictor):
        samples = [((np.ones((5, 3)), np.ones((5, 2)), np.arange(10.0).reshape(5, 2)), np.ones(1), name) for name in "ab"]
        samples[0][0][1][2] = np.nan
        for name in ("train", "dev", "test"):
            own = [(features, label, name + sample) for features, label, sample in samples]
            (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(own))
        dataset, made = predictor(tmp_path, non_finite="drop")
        assert dataset.lengths["vision"][:2].tolist() == [4, 5]
        np.testing.assert_array_equal(made(tmp_path).values, made(dataset).values)

    def test_words_without_the_embedding_are_no_missing_text(self, tmp_path, predictor):
        source = tmp_path / "misa.pkl"
        own = {
            name: [((np.arange(3), np.ones((3, 2)), np.ones((3, 2))), np.ones(1), f"{name}{i}") for i in range(3)]
            for name in ("train", "dev", "test")
        }
        source.write_bytes(pickle.dumps(own))
        embedding = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        dataset, made = predictor(source, embedding=embedding)
        with pytest.raises(
            DataError, match="text: expected sequences of width 4, as in training, got none: text left out: the file holds word numbers"
        ):
            made(source)
        assert made(dataset).ids == dataset.ids


class TestLabelsAreReadAsInTraining:
    """The column `target` had the numbers of another array, or the file that trained the model was refused."""

    ARRAYS = {"audio": np.stack([AUDIO] * 6), "text": np.stack([TEXT] * 6), "split": np.array(["train", "valid", "test"] * 2)}

    def predicted(self, tmp_path, arrays, new=None, task=None, **reader):
        np.savez(tmp_path / "trained.npz", **self.ARRAYS, **arrays)
        data = SequenceDataModule(str(tmp_path / "trained.npz"), reader=reader, task=task)
        made = Predictor(MEAModule(data.in_channels, data.task, data.out_channels, label_names=data.label_names, **SMALL), data)
        if new is None:
            return made(tmp_path / "trained.npz")
        np.savez(tmp_path / "new.npz", **self.ARRAYS, **new)
        return made(tmp_path / "new.npz")

    def test_by_the_array_that_trained(self, tmp_path):
        labels = {"label": np.arange(6) % 2, "emotion": np.arange(6) // 2, "clip": np.array(list("abcdef"))}
        found = self.predicted(tmp_path, labels, label="emotion", id="clip")
        assert found.target == ["0", "0", "1", "1", "2", "2"]
        assert found.ids == list("abcdef")

    def test_by_column_kind_and_name(self, tmp_path):
        real, several = np.linspace(-1, 1, 12).reshape(6, 2), np.array([[0, 1, 1], [1, 0, 0]] * 3)
        np.testing.assert_allclose(self.predicted(tmp_path, {"label": real}, columns=1).target, real[:, 1], rtol=1e-6)
        assert self.predicted(tmp_path, {"label": real}, columns=0, labels=0).target == ["at most 0"] * 3 + ["above 0"] * 3
        found = self.predicted(tmp_path, {"label": several}, columns=["c", "a"], label_names=["a", "b", "c"])
        assert found.label_names == ["c", "a"]
        assert found.target == [[1, 0], [0, 1]] * 3

    def test_a_class_below_0_keeps_its_name_in_data_that_lack_it(self, tmp_path):
        labels, new = {"label": np.array([-1, 0, 1] * 2)}, {"label": np.array([0, 1] * 3)}
        assert self.predicted(tmp_path, labels, labels="classes").target == ["-1", "0", "1"] * 2
        assert self.predicted(tmp_path, labels, new, labels="classes").target == ["0", "1"] * 3

    @pytest.mark.parametrize(
        ("options", "new", "why"),
        [
            ({"label": "emotion"}, {"label": np.arange(6) % 3}, "there is no array 'emotion', whose labels trained"),
            ({"label": "emotion", "labels": "classes"}, {"emotion": np.linspace(0, 1, 6)}, r"they do not fit the options of training \("),
        ],
    )
    def test_others_are_left_out_with_a_note(self, tmp_path, options, new, why):
        if "labels" in options:
            new = new | {"label": np.arange(6) % 3}
        found = self.predicted(tmp_path, {"emotion": np.arange(6) // 2}, new, **options)
        assert found.target is None
        assert any(re.match(f"targets left out: {why}", note) for note in found.notes)
        assert self.predicted(tmp_path, {"emotion": np.arange(6) // 2}, {}, **options).target is None  # those of no array at all
