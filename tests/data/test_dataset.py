import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.loader import DataLoader

from mea_graph.data import DataError, MultimodalDataset


def test_sample_holds_true_lengths_and_no_padding(dataset, sequences):
    for i in range(len(dataset)):
        sample = dataset[i]
        for name, arrays in sequences.items():
            assert sample[name].x.dtype == torch.float32
            np.testing.assert_array_equal(sample[name].x.numpy(), arrays[i])
        np.testing.assert_allclose(sample["audio"].time.numpy(), np.arange(len(sequences["audio"][i]), dtype=np.float32) / 10, rtol=1e-6)
        assert "time" not in sample["video"]
        assert sample.id == "abcdef"[i]


@pytest.mark.parametrize(
    ("y", "dtype", "shape"),
    [
        ([0.5, -1], torch.float32, (1,)),
        ([1, 0], torch.int64, (1,)),
        ([True, False], torch.int64, (1,)),
        ([[0, 1, 1], [1, 0, 0]], torch.float32, (1, 3)),
    ],
)
def test_label_form_follows_the_task(y, dtype, shape):
    sample = MultimodalDataset.from_arrays({"a": [np.ones((2, 1))] * 2}, y=y)[1]
    assert sample.y.dtype == dtype
    assert tuple(sample.y.shape) == shape
    np.testing.assert_array_equal(sample.y.numpy().ravel(), np.asarray(y[1], dtype=np.float64).ravel())


def test_without_labels_a_sample_has_none():
    assert "y" not in MultimodalDataset.from_arrays({"a": [np.ones((2, 1))]})[0]


def test_knows_without_reading(dataset):
    assert dataset.modalities == ("audio", "video")
    assert dataset.channels == {"audio": 3, "video": 2}
    assert {k: v.tolist() for k, v in dataset.lengths.items()} == {"audio": [4, 0, 7, 2, 5, 3], "video": [2, 3, 0, 6, 1, 4]}
    assert dataset.lengths["audio"].dtype == np.int64
    assert dataset.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.ids == list("abcdef")
    assert dataset.has_time("audio")
    assert not dataset.has_time("video")


def test_changing_a_sample_does_not_change_the_data(dataset):
    dataset[0]["audio"].x.fill_(99)
    dataset[0].y.fill_(7)
    assert dataset[0]["audio"].x.max() < 50
    assert dataset[0].y.item() == 0


def test_index_out_of_range_ends_iteration(dataset):
    assert dataset[-1].id == "f"
    with pytest.raises(IndexError):
        dataset[6]
    assert [sample.id for sample in dataset] == list("abcdef")


def test_views_select_the_same_samples_as_numpy(dataset):
    view = dataset.subset([4, 0, -1])
    assert view.ids == ["e", "a", "f"]
    assert view[1].id == "a"
    assert view.lengths["video"].tolist() == [1, 2, 4]
    assert view.fields["room"].tolist() == ["x", "x", "y"]
    assert view.subset([2]).ids == ["f"]
    assert dataset.subset(dataset.y == 2).ids == ["c", "f"]
    assert dataset.select("train").ids == ["a", "b", "d"]
    assert dataset.select("test").where("room", isin=["y"]).ids == ["f"]
    assert dataset.where("subject", isin=[2, 3]).ids == ["c", "d", "e", "f"]
    assert dataset.where("subject", isin=[]).ids == []
    assert dataset.where("subject", isin=[2.0, 3.0]).ids == ["c", "d", "e", "f"]  # compared as numbers, not as text
    assert dataset.with_modalities(["video"]).select("valid").channels == {"video": 2}
    assert view.hash == dataset.hash


def test_hash_follows_the_contents(sequences):
    first = MultimodalDataset.from_arrays(sequences, y=[0.0] * 6)
    assert first.hash == MultimodalDataset.from_arrays(sequences, y=[0.0] * 6).hash
    assert first.hash != MultimodalDataset.from_arrays(sequences, y=[1.0] + [0.0] * 5).hash
    times = [np.arange(float(len(x))) for x in sequences["audio"]]
    others = [{"ids": list("abcdef")}, {"split": ["train"] * 6}, {"split": ["train"] * 5 + ["test"]}, {"fields": {"room": list("xyxyxy")}}]
    others += [{"fields": {"room": list("xyxyxx")}}, {"time": {"audio": times}}, {"time": {"audio": [t + 0.5 for t in times]}}]
    hashes = [first.hash, *(MultimodalDataset.from_arrays(sequences, y=[0.0] * 6, **other).hash for other in others)]
    assert len(set(hashes)) == len(hashes)
    sequences["audio"][0] = sequences["audio"][0] + 1
    assert first.hash != MultimodalDataset.from_arrays(sequences, y=[0.0] * 6).hash


GOOD = [np.ones((2, 3)), np.ones((1, 3))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": {}}, "at least one modality"),
        ({"x": {"a.b": GOOD}}, "modality name"),
        ({"x": {"y": GOOD}}, "modality name"),
        ({"x": {"a": GOOD, "b": GOOD[:1]}}, "b: expected 2 sequences"),
        ({"x": {"a": [np.ones((2, 3)), np.ones((1, 4))]}}, "a: sample '1': expected width 3 .*got 4"),
        ({"x": {"a": [np.ones((2, 3)), np.ones(3)]}}, r"a: sample '1': expected numbers of shape \(T, d\)"),
        ({"x": {"a": [np.ones((2, 3)), np.array([["p"] * 3])]}}, "a: sample '1': expected numbers"),
        ({"x": {"a": [np.ones((2, 3)), np.ones((1, 3)) * 1j]}}, "a: sample '1': expected numbers"),
        ({"x": {"a": [None, None]}}, "a: expected a width"),
        ({"x": {"a": [np.ones((2, 0)), np.ones((1, 0))]}}, "a: expected a width"),
        (
            {"x": {"a": [np.ones((2, 3)), np.array([[1, 2, np.nan]])]}},
            "a: sample '1': expected finite numbers, got nan in step 0, channel 2",
        ),
        ({"x": {"a": [np.array([[1, 2, 3], [-np.inf, 0, 0]]), None]}}, "a: sample '0': .*-inf in step 1, channel 0"),
        ({"x": {"a": [np.full((2, 3), 1e300), None]}}, "a: sample '0': .*inf"),
        ({"x": {"a": GOOD}, "ids": ["p", "p"]}, "'p' more than once"),
        ({"x": {"a": GOOD}, "ids": ["p"]}, "ids: expected 2"),
        ({"x": {"a": GOOD}, "y": [1.0]}, r"y: expected shape \(2,\)"),
        ({"x": {"a": GOOD}, "y": [[1.0], [0.0]]}, "y: expected shape"),
        ({"x": {"a": GOOD}, "y": [1.0, np.nan], "ids": ["p", "q"]}, "y: sample 'q'"),
        ({"x": {"a": GOOD}, "y": [1, -1], "ids": ["p", "q"]}, "y: sample 'q': expected a class number >= 0"),
        ({"x": {"a": GOOD}, "y": [[1, 0], [0, 2]], "ids": ["p", "q"]}, "y: sample 'q': expected binary"),
        ({"x": {"a": GOOD}, "y": ["p", 1.5]}, "y: expected numbers for all samples, or strings for all, got float among strings"),
        ({"x": {"a": GOOD}, "y": ["p", None]}, "y: expected numbers .* got NoneType among strings"),
        ({"x": {"a": GOOD}, "y": [[1], [0, 1]]}, "y: expected an array, got rows of different lengths"),
        ({"x": {"a": GOOD}, "y": np.array([["p", "q"]] * 2)}, "y: expected numbers, got <U1"),
        ({"x": {"a": GOOD}, "y": ["p", "q"], "label_names": ["q"]}, r"y: expected labels among \['q'\], got \['p'\]"),
        ({"x": {"a": GOOD}, "split": ["train"]}, "split: expected one value a sample"),
        ({"x": {"a": GOOD}, "split": [1, 2]}, "split: expected strings"),
        ({"x": {"a": GOOD}, "fields": {"s": [1]}}, "field 's'"),
        ({"x": {"a": GOOD}, "fields": {"s": [{}, {}]}}, "field 's': expected numbers or strings"),
        ({"x": {"a": GOOD}, "time": {"b": [[0, 1], [0]]}}, "time: expected modalities among"),
        ({"x": {"a": GOOD}, "time": {"a": [[0, 1], [0, 1]]}}, "a: sample '1': expected 1 times"),
        (
            {"x": {"a": GOOD}, "time": {"a": [np.zeros(2, "M8[ms]"), [0]]}},
            r"a: expected dates in all times of all modalities, or in none, got others beside those of 'a'; \(t - start\) / np.timedelta64",
        ),
        ({"x": {"a": GOOD}, "time": {"a": [[0, np.nan], [0]]}}, "a: sample '0': .*nan in time of step 1"),
        ({"x": {"a": GOOD}, "y": [0, 2], "label_names": ["p", "q"]}, "label_names: expected 3 names"),
        ({"x": {"a": GOOD}, "y": [0.0, 2.0], "label_names": ["p", "q"]}, "label_names: .*regression"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, message):
    with pytest.raises(DataError, match=message):
        MultimodalDataset.from_arrays(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.subset([6]), "indices"),
        (lambda d: d.subset([-7]), "indices"),
        (lambda d: d.subset([0.5]), "indices"),
        (lambda d: d.subset([True, False]), "indices"),
        (lambda d: d.select("fold 1"), r"\['test', 'train', 'valid'\], got 'fold 1'"),
        (lambda d: d.where("speaker", isin=[1]), r"\['subject', 'room'\], got 'speaker'"),
        (lambda d: d.where("subject", isin=["1"]), "field 'subject'"),
        (lambda d: d.with_modalities(["text"]), r"\['audio', 'video'\], got \['text'\]"),
        (lambda d: d.with_modalities([]), "modalities"),
        (lambda d: d.with_modalities("audio"), r"expected a list of different names among \['audio', 'video'\], got 'audio'"),
        (lambda d: d.with_modalities(3), r"expected a list of different names .*, got 3"),
        (lambda d: d.with_modalities([["audio"]]), r"expected a list of different names .*, got \[\['audio'\]\]"),
        (lambda d: d.standardize().standardize(), "already"),
        (lambda d: d.standardize(fit_on=[]), "at least one sample"),
        (lambda d: d.standardize(by="subject", fit_on=[0, 2]), r"got none of \[3\]"),
    ],
)
def test_wrong_requests_are_refused(dataset, call, message):
    with pytest.raises(DataError, match=message):
        call(dataset)


def test_describe_says_what_is_there(dataset):
    text = dataset.describe()
    assert "samples 6 (test 2, train 3, valid 1)" in text
    assert [line.split() for line in text.splitlines() if line.startswith("audio")] == [
        ["audio", "3", "2", "4", "4.2", "7", "16.7%", "0.1", "s,", "10", "Hz"]
    ]
    assert "3 classes, samples of each: low 2, middle 2, high 2" in text
    assert "fields subject, room" in text
    assert "no samples" in dataset.subset([]).describe()


@pytest.mark.parametrize(
    ("y", "names", "line"),
    [
        (None, None, "label none"),
        ([0.5, -1.0, 2.0, 0.5], None, "label real numbers, min -1, mean 0.5, std 1.06, max 2"),
        ([[1, 0], [1, 0], [1, 1], [0, 0]], None, "label 2 binary labels, share of ones: 0 75.0%, 1 25.0%"),
        ([[1, 0], [1, 0], [1, 1], [0, 0]], ["happy", "sad"], "label 2 binary labels, share of ones: happy 75.0%, sad 25.0%"),
        ([0, 3, 3, 1], None, "label 4 classes, samples of each: 0 1, 1 1, 2 0, 3 2"),
        ([*range(10), 9], None, f"label 10 classes, samples of each: {', '.join(f'{k} 1' for k in range(9))}, 9 2"),
        (
            [*range(11), 10, 10],
            None,
            f"label 11 classes, samples of each: {', '.join(f'{k} 1' for k in range(10))}, ... (largest 3, smallest 1)",
        ),
    ],
)
def test_describe_says_what_the_labels_are(y, names, line):
    sequences = [np.ones((2, 1))] * (2 if y is None else len(y))
    described = MultimodalDataset.from_arrays({"a": sequences}, y=y, label_names=names).describe()
    assert [text for text in described.splitlines() if text.startswith("label")] == [line]


def test_describe_of_a_modality_that_nobody_has():
    described = MultimodalDataset.from_arrays({"a": [np.ones((2, 1))] * 3, "b": [np.ones((0, 4))] * 3}).describe()
    assert [line.split() for line in described.splitlines() if line.startswith("b ")] == [["b", "4", "-", "-", "-", "-", "100.0%", "no"]]


def test_samples_and_views_survive_pickling(dataset):
    view = dataset.select("train").standardize()
    copy = pickle.loads(pickle.dumps(view))
    assert copy.ids == view.ids
    torch.testing.assert_close(copy[2]["audio"].x, view[2]["audio"].x, rtol=0, atol=0)
    sample = pickle.loads(pickle.dumps(dataset[3]))
    torch.testing.assert_close(sample["video"].x, dataset[3]["video"].x, rtol=0, atol=0)
    assert len(pickle.dumps(dataset[3])) < 20_000  # a sample does not drag the whole array along


def test_batches_hold_a_missing_modality_as_zero_nodes(dataset, sequences):
    batch = next(iter(DataLoader(dataset, batch_size=6)))
    assert batch.num_graphs == 6
    assert batch.id == list("abcdef")
    for name, arrays in sequences.items():
        np.testing.assert_array_equal(batch.x_dict[name].numpy(), np.concatenate(arrays))
        assert batch.batch_dict[name].tolist() == np.repeat(np.arange(6), [len(a) for a in arrays]).tolist()
    assert batch.y.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_modality_may_be_missing_in_the_whole_batch(dataset):
    batch = next(iter(DataLoader(dataset.subset([1]), batch_size=1)))
    assert tuple(batch.x_dict["audio"].shape) == (0, 3)
    assert batch.batch_dict["audio"].numel() == 0
    assert batch.batch_dict["video"].tolist() == [0, 0, 0]
    assert batch.num_graphs == 1


def test_binary_labels_batch_to_a_matrix():
    data = MultimodalDataset.from_arrays({"a": [np.ones((2, 1))] * 3}, y=[[0, 1], [1, 1], [0, 0]])
    assert next(iter(DataLoader(data, batch_size=3))).y.tolist() == [[0, 1], [1, 1], [0, 0]]


def test_views_of_a_subclass_do_not_call_its_constructor(dataset):
    class Special(MultimodalDataset):
        def __init__(self):
            super().__init__(dataset._store)

    special = Special()
    for view in (special.subset([1]), special.select("test"), special.standardize(), special.with_modalities(["audio"])):
        assert type(view) is Special
        assert len(view[0].node_types) in (1, 2)


ONE = {"a": [np.ones((1, 1))] * 4}


@pytest.mark.parametrize("make", [list, np.array, lambda y: np.array(y, dtype=object), lambda y: np.array(y, dtype="S")])
def test_strings_are_classes(make):
    data = MultimodalDataset.from_arrays(ONE, y=make(["no", "yes", "no", "maybe"]))
    assert (data.y.tolist(), data.label_names, data.y.dtype) == ([1, 2, 1, 0], ("maybe", "no", "yes"), np.int64)
    data = MultimodalDataset.from_arrays(ONE, y=make(["no", "yes", "no", "yes"]), label_names=["yes", "no", "maybe"])
    assert (data.y.tolist(), data.num_classes, data.notes) == ([1, 0, 1, 0], 3, ())


def test_what_was_guessed_of_the_labels_is_noted_once():
    whole = "y: whole numbers, but floats: taken as regression; for classes give integers, y.astype(int)"
    assert MultimodalDataset.from_arrays(ONE, y=[0.0, 1.0, 2.0, 1.0], notes=["mine", whole]).notes == ("mine", whole)
    assert MultimodalDataset.from_arrays(ONE, y=[0.0, 1.0, 2.0, 1.5]).notes == ()
    assert MultimodalDataset.from_arrays(ONE, y=[[0.0, 1.0]] * 4).notes == ()
    assert "numbers" in MultimodalDataset.from_arrays(ONE, y=["0.5", "1", "2", "1"]).notes[0]
    assert MultimodalDataset.from_arrays(ONE, y=["1", "2", "2", "1"], label_names=["1", "2"]).notes == ()


def test_one_long_label_does_not_make_all_of_them_long():
    tracemalloc.start()
    data = MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * 500}, y=["x" * 100_000, *["y"] * 499])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.y.tolist() == [0, *[1] * 499]
    assert peak < 10_000_000  # an array of such texts takes 200 MB


def test_splits_are_known_by_the_names_people_use():
    data = MultimodalDataset.from_arrays(ONE, split=["train", "dev", "TEST", "dev"])
    assert data.split.tolist() == ["train", "valid", "test", "valid"]
    assert data.notes == ("split: 'TEST' is 'test', 'dev' is 'valid'",)
    assert data.select("valid").ids == data.select("dev").ids == data.select("val").ids == ["1", "3"]
    own = MultimodalDataset.from_arrays(ONE, split=["val", "dev", "fold 1", "train"])  # two of one meaning are not thrown together
    assert own.split.tolist() == ["val", "dev", "fold 1", "train"]
    assert own.select("dev").ids == ["1"]
    assert "kept apart" in own.notes[0]


def test_one_modality_and_one_step_are_a_data_set():
    about = np.arange(6.0).reshape(3, 2)
    data = MultimodalDataset.from_arrays({"about": about[:, None]}, y=[0, 1, 0])
    assert (data.channels, data.lengths["about"].tolist()) == ({"about": 2}, [1, 1, 1])
    assert data[1]["about"].x.tolist() == [[2, 3]]
    with pytest.raises(
        DataError, match=r"about: sample '0': expected numbers of shape \(T, d\).*got float64 of shape \(2,\); .*\[:, None\]"
    ):
        MultimodalDataset.from_arrays({"about": about})


class TestNamesOfSplits:
    def made(self, split):
        ids = [f"clip {n}" for n in range(len(split))]
        return MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * len(split)}, ids=ids, split=split)

    @pytest.mark.parametrize(("name", "meant"), [("trian", "train"), ("tset", "test"), ("vaild", "valid"), ("Trani", "train")])
    def test_one_that_is_nearly_a_usual_one_is_told_with_its_sample(self, name, meant):
        said = f"split: {name!r} of sample 'clip 1' is taken as a name of its own (did you mean {meant!r}?)"
        with pytest.warns(UserWarning, match="did you mean") as caught:
            data = self.made(["train", name, "test"])
        assert [str(warning.message) for warning in caught] == [said]
        assert data.notes == (said,)
        assert data.select(name).ids == ["clip 1"]

    def test_of_several_samples_the_first_is_named(self):
        with pytest.warns(UserWarning, match=r"'tset' of sample 'clip 0', as of 2 samples, is taken"):
            self.made(["tset", "train", "tset"])

    def test_samples_of_pyg_are_told_too(self):
        samples = [HeteroData(a={"x": torch.ones(1, 1)}, split=name, id=name) for name in ("train", "trian")]
        with pytest.warns(UserWarning, match="'trian' of sample 'trian' is taken as a name of its own"):
            MultimodalDataset.from_samples(samples)

    @pytest.mark.filterwarnings("error")
    def test_names_of_ones_own_are_none(self):
        names = ["train", "val", "dev", "Test", "test2", "testA", "train_noisy", "rest", "fold 1", "extra", "", "unlabelled"]
        assert not [note for note in self.made(names).notes if "name of its own" in note]
