import hashlib
import pickle

import numpy as np
import pytest
import torch

from mea_graph.data import DataError, open_dataset


def samples(count, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        steps = int(rng.integers(2, 6))
        features = (rng.integers(0, 10, steps), rng.normal(size=(steps, 3)), rng.normal(size=(steps, 2)), [f"w{j}" for j in range(steps)])
        out.append((features, np.array([[rng.uniform(-3, 3)]], np.float32), f"video{seed}[{i}]"))
    return out


def write(path, payload):
    path.write_bytes(pickle.dumps(payload, 3))
    return path


def test_a_bare_list_is_one_split_and_text_is_left_out(tmp_path):
    data = samples(5)
    path = write(tmp_path / "dev.pkl", data)
    dataset = open_dataset(path, split="valid")
    assert dataset.channels == {"audio": 2, "vision": 3}
    assert set(dataset.split) == {"valid"}
    assert any("embedding=" in note for note in dataset.notes)
    for i, ((_, visual, acoustic, spoken), label, name) in enumerate(data):
        np.testing.assert_allclose(dataset[i]["vision"].x.numpy(), visual, rtol=1e-6)
        np.testing.assert_allclose(dataset[i]["audio"].x.numpy(), acoustic, rtol=1e-6)
        assert dataset.y[i] == label[0, 0]
        assert dataset.ids[i] == name
        assert dataset.fields["raw_text"][i] == " ".join(spoken)
    assert dataset.fields["video"][0] == "video0"
    assert open_dataset(path).split is None
    with pytest.raises(DataError, match=r"\['text'\].*embedding="):
        open_dataset(path, modalities=["text"])


@pytest.mark.parametrize("given", ["path", "array", "list", "tensor"])
def test_an_embedding_gives_text_its_vectors(tmp_path, given):
    table = np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)
    np.save(tmp_path / "table.npy", table)
    data = samples(3)
    forms = {"path": str(tmp_path / "table.npy"), "array": table, "list": table.tolist(), "tensor": torch.from_numpy(table)}
    dataset = open_dataset(write(tmp_path / "a.pkl", data), embedding=forms[given])
    assert dataset.channels == {"text": 4, "audio": 2, "vision": 3}
    np.testing.assert_array_equal(dataset[2]["text"].x.numpy(), table[data[2][0][0]])


def test_an_embedding_with_a_mask_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"embedding: .* got 4 that are masked"):
        open_dataset(write(tmp_path / "a.pkl", samples(3)), embedding=np.ma.array(np.ones((10, 4)), mask=np.eye(10, 4)))


def test_an_embedding_without_numbers_is_told_plainly(tmp_path):
    with pytest.raises(DataError, match=r"^embedding: expected numbers of shape \(V, d\), got no numbers, of shape \(\)$"):
        open_dataset(write(tmp_path / "a.pkl", samples(3)), embedding={"word": 1})


def test_another_embedding_gives_other_samples(tmp_path):
    """Under one hash a run was resumed, and a study went on, with other vectors of the same words, without a word."""
    path = write(tmp_path / "a.pkl", samples(3))
    found = [open_dataset(path, embedding=np.full((10, 2), value)).hash for value in (1.0, 2.0, 1.0)]
    assert found[0] == found[2] != found[1]
    assert open_dataset(path).hash == hashlib.sha256(path.read_bytes()).hexdigest()


def test_another_embedding_is_another_cache_entry(tmp_path):
    path = write(tmp_path / "a.pkl", samples(3))
    first, second = (open_dataset(path, embedding=np.full((10, 2), value)) for value in (1.0, 2.0))
    assert first[0]["text"].x.max() == 1
    assert second[0]["text"].x.max() == 2


def test_a_dict_of_splits_and_a_folder_of_files(tmp_path):
    parts = {"train": samples(4, 1), "dev": samples(2, 2), "test": samples(3, 3)}
    whole = open_dataset(write(tmp_path / "all.pkl", parts))
    assert whole.split.tolist() == ["train"] * 4 + ["valid"] * 2 + ["test"] * 3
    (tmp_path / "folder").mkdir()
    for name, part in parts.items():
        write(tmp_path / "folder" / f"{name}.pkl", part)
    folder = open_dataset(tmp_path / "folder")
    mapping = open_dataset({"train": tmp_path / "folder" / "train.pkl", "valid": tmp_path / "folder" / "dev.pkl"})
    assert sorted(folder.ids) == sorted(whole.ids)
    assert {s: len(folder.select(s)) for s in ("train", "valid", "test")} == {"train": 4, "valid": 2, "test": 3}
    assert mapping.split.tolist() == ["train"] * 4 + ["valid"] * 2


def test_one_of_several_labels(tmp_path):
    data = [(features, np.array([[1.0, 2.0, 3.0]]), name) for features, _, name in samples(2)]
    path = write(tmp_path / "a.pkl", data)
    assert open_dataset(path, columns=2).y.tolist() == [3, 3]
    with pytest.raises(DataError, match="expected one label a sample, got 3; say which with columns="):
        open_dataset(path)
    with pytest.raises(DataError, match=r"columns: expected an integer in \[0, 3\)"):
        open_dataset(path, columns=3)


@pytest.mark.parametrize(
    ("payload", "options", "message"),
    [
        ([1, 2], {}, r"sample 0: expected \(\(words, visual, acoustic"),
        ([((np.ones(2, int), np.ones((2, 2))), 1, "a")], {}, "sample 0: expected"),
        ([((np.ones(1, bool), np.ones((1, 2)), np.ones((1, 2))), np.ones(1), "a")], {}, "sample 0: words: expected numbers"),
        ([((np.ones(1, int), np.ones((1, 2)), np.ones((1, 2))), np.array(["x"]), "a")], {}, "label: expected numbers"),
        (
            [((np.ones(1, int), np.ones((1, 2)), np.ones((1, 2))), np.ones(1), "a")],
            {"embedding": np.ones((1, 2))},
            "do not fit an embedding of 1",
        ),
        (
            [((np.ones(1, int), np.ones((1, 2)), np.ones((1, 2))), np.ones(1), "a")],
            {"embedding": np.ones(2)},
            "embedding: expected numbers",
        ),
        ([((np.ones(1, int), np.ones((1, 2)), np.full((1, 2), np.nan)), np.ones(1), "a")], {}, "audio: sample 'a': .*nan"),
        ({"train": []}, {"split": "train"}, "split: expected None"),
        ({"train": []}, {}, "audio: expected a width"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, payload, options, message):
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path / "a.pkl", payload), format="misa", **options)


def test_the_real_dev_split(recording, tmp_path):
    dataset = open_dataset(recording("mosi_misa_dev.pkl"), cache_dir=tmp_path)
    assert len(dataset) == 229
    assert dataset.channels == {"audio": 74, "vision": 47}
    assert (dataset.lengths["audio"].min(), dataset.lengths["audio"].max()) == (2, 44)
    assert np.abs(dataset.y).max() <= 3
    assert len(set(dataset.ids)) == 229


class TestOtherCorpora:
    """As MISA's own loaders write them for UR-FUNNY and others."""

    def test_samples_without_an_id_are_numbered(self, tmp_path):
        parts = {name: [(features, label) for features, label, _ in samples(3)] for name in ("train", "dev")}
        dataset = open_dataset(write(tmp_path / "a.pkl", parts))
        assert dataset.ids == ["train_0", "train_1", "train_2", "dev_0", "dev_1", "dev_2"]
        assert "id: 6 samples have none and are named by their number" in dataset.notes
        assert "video" not in dataset.fields
        assert open_dataset(write(tmp_path / "b.pkl", parts["train"])).ids == ["0", "1", "2"]

    def test_empty_arrays_are_missing_modalities(self, tmp_path):
        data = samples(3)
        data[1] = ((np.zeros(0), np.zeros(0), data[1][0][2], []), *data[1][1:])
        dataset = open_dataset(write(tmp_path / "a.pkl", data), embedding=np.ones((10, 2)))
        assert [int(dataset.lengths[name][1]) for name in ("text", "vision")] == [0, 0]
        assert dataset.lengths["audio"][1] > 0
        assert dataset.channels == {"text": 2, "audio": 2, "vision": 3}
        assert dataset.fields["raw_text"][1] == ""

    def test_a_modality_that_nobody_has_is_left_out(self, tmp_path):
        data = [((features[0], np.zeros(0), *features[2:]), label, name) for features, label, name in samples(3)]
        dataset = open_dataset(write(tmp_path / "a.pkl", data))
        assert dataset.modalities == ("audio",)
        assert "vision left out: no sample has any" in dataset.notes

    @pytest.mark.parametrize("kind", [list, np.array, lambda words: np.array(words, object)])
    def test_words_as_text_become_a_field(self, tmp_path, kind):
        data = [((kind(features[3]), *features[1:3]), label, name) for features, label, name in samples(3)]
        path = write(tmp_path / "a.pkl", data)
        dataset = open_dataset(path)
        assert dataset.modalities == ("audio", "vision")
        assert dataset.fields["raw_text"].tolist() == [" ".join(features[3]) for features, *_ in samples(3)]
        assert "text left out: the file holds words as text, without vectors" in dataset.notes
        with pytest.raises(DataError, match="embedding: expected word numbers to look up, got words as text"):
            open_dataset(path, embedding=np.ones((10, 2)))

    def test_words_of_two_kinds_are_refused(self, tmp_path):
        data = samples(2)
        data[1] = ((data[1][0][3], *data[1][0][1:3]), *data[1][1:])
        with pytest.raises(DataError, match="words: expected the same kind in every sample, got numbers and text"):
            open_dataset(write(tmp_path / "a.pkl", data))

    @pytest.mark.parametrize("non_finite", ["zero", "drop"])
    def test_minus_infinity_as_covarep_has_it(self, tmp_path, non_finite):
        data = samples(3)
        data[0][0][2][1, 0] = -np.inf
        path = write(tmp_path / "a.pkl", data)
        with pytest.raises(DataError, match=r"audio: sample 'video0\[0\]': .*-inf in step 1, channel 0; non_finite='zero'"):
            open_dataset(path)
        x = open_dataset(path, non_finite=non_finite)[0]["audio"].x
        steps = len(data[0][0][2])
        assert len(x) == (steps if non_finite == "zero" else steps - 1)
        assert x.isfinite().all()
