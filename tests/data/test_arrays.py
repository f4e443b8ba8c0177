"""Numbers and names as people hold them: taken for what they are, or refused by name."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData

from mea_graph.data import DataError, MultimodalDataset, open_dataset

X = {"a": [np.ones((3, 2)), np.ones((2, 2))]}
HIDDEN = np.ma.array([1.0, 2.0], mask=[False, True])


def made(**arrays):
    return MultimodalDataset.from_arrays(**{"x": X, **arrays})


TENSORS = {
    "gradient": torch.full((3, 2), 1.5, requires_grad=True),
    "bfloat16": torch.full((3, 2), 1.5, dtype=torch.bfloat16),
    "sparse": torch.full((3, 2), 1.5).to_sparse(),
    "conjugate view": torch.full((2, 3), 1.5).mT,
}


@pytest.mark.parametrize("kind", TENSORS)
def test_every_tensor_of_numbers_is_taken(kind):
    """torch refused some in its own words."""
    given = TENSORS[kind]
    dataset = MultimodalDataset.from_arrays({"a": [given]}, time={"a": [given[:, 0].to_dense()] if kind != "sparse" else [[0, 1, 2]]})
    assert dataset[0]["a"].x.tolist() == [[1.5, 1.5]] * 3


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">f8", ">i2", "u1", "?", "g"])
def test_every_order_and_size_of_bytes_is_taken(dtype, tmp_path):
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    for array in (values, np.asfortranarray(values), values[::-1][::-1], np.broadcast_to(values[:1], (3, 2))):
        assert made(x={"a": [array]})[0]["a"].x.tolist() == array.tolist()
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    dataset = made(x={"a": [mapped, mapped[:1]]}, y=values[:2, 0], ids=values[:2, 0].astype(int))
    dataset.save(tmp_path / "x.npz")
    again = open_dataset(tmp_path / "x.npz")
    assert again[0]["a"].x.tolist() == values.tolist()
    assert again.y.tolist() == [0, 1]
    assert again.y.dtype == ("int64" if values.dtype.kind in "iub" else "float32")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x": {"a": [np.ma.array(np.ones((3, 2)), mask=np.eye(3, 2)), np.ones((2, 2))]}}, "a: sample '0': .* got 2 that are masked"),
        ({"time": {"a": [np.ma.array(np.arange(3), mask=[0, 1, 0]), [0, 1]]}}, "a: time of sample '0': .* got 1 that are masked"),
        ({"y": HIDDEN}, "y: .* got 1 that are masked"),
        ({"y": HIDDEN.astype(int)}, "y: .* got 1 that are masked"),
        ({"fields": {"speaker": HIDDEN}}, "field 'speaker': .* got 1 that are masked"),
        ({"ids": HIDDEN}, "ids: .* got 1 that are masked"),
    ],
)
def test_what_a_mask_hides_is_no_data(given, says):
    """numpy takes the values under the mask."""
    with pytest.raises(DataError, match=says):
        made(**given)
    assert MultimodalDataset.from_arrays({"a": np.ma.array(np.ones((2, 3, 2)))}, y=np.ma.array([0, 1])).y.tolist() == [0, 1]


@pytest.mark.parametrize(
    "ids", [[b"3", b"4"], np.array([b"3", b"4"]), torch.tensor([3, 4]), [torch.tensor(3), np.int64(4)], np.array(["3", "4"], object)]
)
def test_names_are_what_they_say(ids):
    """They became "b'3'" and "tensor(3)"."""
    assert made(ids=ids).ids == ["3", "4"]
    assert made(y=["4", "3"], label_names=ids).y.tolist() == [1, 0]
    assert made(y=[1, 0], label_names=ids).label_names == ("3", "4")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"p", "q"}, "expected a list, whose order counts, got a set"),
        ({0: "p", 1: "q"}, "expected a list, whose order counts, got a dict"),
        ("pq", "expected a list, whose order counts, got 'pq'"),
        ((name for name in "pq"), "expected a list, whose order counts, got a generator"),
        (["p", None], "expected a name for each, got None"),
        ([1.0, float("nan")], "expected a name for each, got nan"),
        (np.array([["p"], ["q"]]), r"expected one name each, shape \(N,\), got \(2, 1\)"),
    ],
)
def test_what_has_no_order_or_lacks_one_is_no_list_of_names(names, says):
    """A dict gave its keys, a text its letters, a set any order."""
    with pytest.raises(DataError, match=f"^ids: {says}"):
        made(ids=names)
    with pytest.raises(DataError, match=r"^label_names: expected"):
        made(y=[0, 1], label_names=names)


def test_fields_may_be_bytes_and_lack_none():
    assert made(fields={"speaker": [b"ann", b"bob"]}).fields["speaker"].tolist() == ["ann", "bob"]
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match="field 'speaker': expected text or a number"):
        made(fields={"speaker": pandas.Series(["ann", None], dtype="string")})


def test_times_that_windows_cannot_use_are_told():
    """On a GPU nobody looks at them again."""
    clock = 1.7e9 + np.arange(3) / 100
    dataset = made(time={"a": [clock, [1.0, 0.0]]})
    assert dataset.notes == (
        "a: the times of 1 samples fall somewhere; a window in seconds needs them in order",
        "a: different times of 1 samples are the same in float32; let them begin near 0, at one moment for all modalities of a sample",
    )
    assert made(time={"a": [clock - clock[0], [0.0, 0.0]]}).notes == ()


def test_labels_that_lie_too_close_for_float32_are_told():
    """They became one number, or a few, without a word."""
    sequences = {"a": [np.ones((1, 1))] * 3}
    with pytest.warns(UserWarning, match="y: the labels keep few digits in float32, since they lie between 1000000000 and 1000000002.5"):
        MultimodalDataset.from_arrays(sequences, y=[1e9, 1e9 + 1, 1e9 + 2.5])
    for y in ([1e9, 1.5e9, 2e9 + 0.5], [0.5, 0.5, 0.5], [0.1 + 0.2, 0.3, 0.3], [1e-9, 2e-9, 3e-9]):
        assert not [note for note in MultimodalDataset.from_arrays(sequences, y=y).notes if "digits" in note]


def test_names_of_splits_may_have_spaces_around_them():
    assert made(split=["train ", "dev"]).select("train").ids == ["0"]


@pytest.mark.parametrize("labels", [np.int64(0), np.float32(0), np.array(0)])
def test_options_of_readers_may_be_numbers_and_arrays_of_numpy(labels, tmp_path):
    """The error named no option: expected plain values or arrays, got int64."""
    np.savez(tmp_path / "x.npz", audio=np.ones((2, 3, 1)), y=np.array([[-1.0, 1, 2], [0.5, -2, 2]]))
    dataset = open_dataset(tmp_path / "x.npz", labels=labels, columns=np.array([0, 1]), label_names=np.array(["p", "q", "r"]))
    assert dataset.y.tolist() == [[0, 1], [1, 0]]
    assert dataset.label_names is None or len(dataset.label_names) == 2
    with pytest.raises(DataError, match="label_names: expected plain values or arrays, got set"):
        open_dataset(tmp_path / "x.npz", label_names={"p", "q", "r"})


@pytest.mark.parametrize(
    ("statistics", "got"),
    [
        (None, r"got \[\]"),
        ((["p", "q"], [1.0, 1.0]), r"got \['<U1'\]"),
        (([1j, 0], [1.0, 1.0]), r"got \['complex128'\]"),
    ],
)
def test_statistics_that_are_no_numbers_are_refused_by_modality(statistics, got):
    with pytest.raises(DataError, match=rf"statistics: a: expected a mean and a standard deviation of shape \(2,\), ({got})"):
        made().standardize(statistics={"a": statistics})


@pytest.mark.parametrize("isin", ["ann", b"ann", 1.0])
def test_a_single_value_is_no_list_of_values(isin):
    """Of a text the letters were looked for, and no sample found."""
    with pytest.raises(DataError, match="isin: expected a list of values, got"):
        made(fields={"speaker": ["ann", "bob"]}).where("speaker", isin=isin)


def test_samples_are_a_list_of_graphs():
    sample = HeteroData()
    sample["a"].x = torch.ones(3, 2)
    for batch in (Batch.from_data_list([sample, sample]), sample):
        with pytest.raises(DataError, match=r"samples: expected a list of HeteroData, got one, or a batch"):
            MultimodalDataset.from_samples(batch)
    with pytest.raises(DataError, match="samples: expected HeteroData, got a Data"):
        MultimodalDataset.from_samples([sample, Data(x=torch.ones(3, 2))])


def test_what_is_done_to_the_arrays_later_changes_nothing():
    """Fields were the caller's own array."""
    given = {"y": np.array([0.5, 1.5], np.float32), "split": np.array(["train", "test"])}
    x, time = np.zeros((2, 3, 1), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    fields = {"age": np.array([31, 45]), "name": np.array(["ann", "bob"]), "part": np.arange(4)[::2]}
    dataset = MultimodalDataset.from_arrays({"a": x}, time={"a": time}, fields=fields, **given)
    for array in (x, time, *fields.values(), *given.values()):
        array[:] = array[::-1].copy()
    x += 1
    assert dataset.y.tolist() == [0.5, 1.5]
    assert dataset.split.tolist() == ["train", "test"]
    assert {name: values.tolist() for name, values in dataset.fields.items()} == {"age": [31, 45], "name": ["ann", "bob"], "part": [0, 2]}
    assert dataset[0]["a"].x.ravel().tolist() == [0, 0, 0]
    assert dataset[0]["a"].time.tolist() == [0, 1, 2]
