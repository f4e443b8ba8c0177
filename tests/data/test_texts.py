"""Texts from files: what cannot be written, or would take memory out of proportion, is refused with its field."""

import pickle
import time
import tracemalloc

import numpy as np
import pytest

from mea_graph.data import DataError, MultimodalDataset, open_dataset
from mea_graph.data.texts import as_text


class Series:
    """As a column of pandas is to numpy."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=object)


def dataset(samples=2, **given):
    return MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * samples}, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": ["a", "b\ud800"]}, "ids: expected text that can be written as UTF-8"),
        ({"ids": ["a", "a\0"]}, r"ids: expected text without NUL, got 'a\\x00'"),  # numpy takes the two for the same
        ({"split": ["train", "\udfff"]}, "split: expected text that can be written"),
        ({"fields": {"speaker": None}}, r"field 'speaker': expected one value a sample, shape \(2,\), got \(\)"),
        ({"fields": {"speaker": ["x", None]}}, "field 'speaker': expected one text a sample, got None among them"),
        ({"fields": {"speaker": ["x", "\ud800"]}}, "field 'speaker': expected text that can be written"),
        ({"fields": {"speaker": np.array(["x", "\ud800"])}}, "field 'speaker': expected text that can be written"),
        ({"fields": {"speaker": np.array([0x110000, 97], "u4").view("U1")}}, "field 'speaker': expected text that can be written"),
        ({"y": [0, 1], "label_names": ["a", "\ud800"]}, "label_names: expected text that can be written"),
        ({"y": [0, 2**33]}, "y: sample '1': expected a class number below 65536 .*, got 8589934592"),
    ],
)
def test_what_cannot_be_kept_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        dataset(**given)


@pytest.mark.parametrize("kind", ["ids", "field", "split"])
def test_one_long_text_among_thousands_takes_no_memory(kind):
    texts = [str(i) for i in range(4000)]
    texts[7] = "x" * (1 << 20)
    given = {"ids": {"ids": texts}, "field": {"fields": {"raw_text": texts}}, "split": {"split": texts}}[kind]
    tracemalloc.start()
    with pytest.raises(DataError, match="expected texts of similar length, got one so long"):
        dataset(4000, **given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_long_transcripts_are_kept():
    texts = ["x" * 3000, *["well"] * 3999]
    assert dataset(4000, fields={"raw_text": texts}).fields["raw_text"].tolist() == texts


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda v: np.array(v, object), Series])
def test_texts_may_come_in_any_sequence(kind):
    assert dataset(2, fields={"speaker": kind(["x", "yy"])}).fields["speaker"].tolist() == ["x", "yy"]


def test_a_note_is_shown_without_control_characters():
    assert dataset(notes=["left out: \x1b[2J"]).notes == ("left out: \\x1b[2J",)


def nested(depth):
    value = np.empty(1, object)
    value[0] = 1
    for _ in range(depth):
        outer = np.empty(2, object)
        outer[:] = [value, value]
        value = outer
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.update(id=[nested(40), "b"]), "over and over"),
        (lambda part: part.update(id=[nested(12), "b"]), r"train/id: expected text or a number as a name, got a ndarray"),
        (lambda part: part.update(id=[["x", {"k": 1}], "b"]), r"train/id: expected text or a number as a name, got a dict"),
        (lambda part: part.update(raw_text=[["x" * (1 << 21)], *[["y"]] * 4999], audio=np.ones((5000, 1, 1))), "texts of similar length"),
    ],
)
def test_names_that_are_no_names(tmp_path, change, message):
    part = {"audio": np.ones((2, 1, 1)), "regression_labels": np.ones(2), "raw_text": ["a", "b"]}
    change(part)
    part["regression_labels"] = np.ones(len(part["audio"]))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"train": part}))
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "a.pkl")


def test_as_text():
    assert [as_text(v) for v in ("ü", b"\xff", 3, np.int64(4), 1.5)] == ["ü", "\ufffd", "3", "4", "1.5"]
    with pytest.raises(DataError, match="an integer of 100001 bits"):
        as_text(1 << 100_000)


@pytest.mark.parametrize("shape", [(2**40, 3), (3,)])
def test_an_embedding_that_claims_more_than_it_has_takes_no_memory(tmp_path, shape):
    with open(tmp_path / "e.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    words = (np.zeros(1, int), np.ones((1, 1)), np.ones((1, 1)))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([(words, 1.0, "a")]))
    with pytest.raises(DataError, match=r"embedding: .*e\.npy: cannot be read"):
        open_dataset(tmp_path / "a.pkl", format="misa", embedding=tmp_path / "e.npy")


def test_as_many_labels_as_samples_take_a_second():
    """Each was once looked for among all of them."""
    names = [f"label {i}" for i in range(60_000)]
    x = {"a": list(np.ones((len(names), 1, 1), np.float32))}
    start = time.process_time()
    found = MultimodalDataset.from_arrays(x, y=names[::-1], label_names=names)
    guessed = MultimodalDataset.from_arrays(x, y=names)
    assert found.y.tolist() == list(range(len(names)))[::-1]
    assert [guessed.label_names[i] for i in guessed.y] == names
    assert guessed.describe().splitlines()[-1].startswith("label 60000 classes")
    assert time.process_time() - start < 10
