"""A `MultimodalDataset` is a data set of PyG: every index, transforms, PyG's loaders and samplers, and properties that follow."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Dataset, HeteroData, OnDiskDataset
from torch_geometric.loader import DataLoader, ImbalancedSampler

from mea_graph.data import AsynchronousEvents, DataError, MultimodalDataset, open_dataset

INDICES = [
    (slice(2, 5), "cde"),
    (slice(None, None, -2), "fdb"),
    (slice(4, 99), "ef"),
    (slice(0.5, 1.0), "def"),
    ([1, 2], "bc"),
    ((5, -6), "fa"),
    (range(2), "ab"),
    ([], ""),
    ([True, False, False, True, False, False], "ad"),
    (torch.tensor([4]), "e"),
    (torch.tensor([[4], [0]]), "ea"),
    (torch.tensor([False] * 5 + [True]), "f"),
    (np.array([3, 3]), "dd"),
    (np.array([1, 0], np.int32), "ba"),
    (np.arange(6) > 3, "ef"),
]


class Tag:
    """A transform that can be pickled, and seen."""

    def __call__(self, data: HeteroData) -> HeteroData:
        data.tag = f"<{data.id}>"
        return data


@pytest.mark.parametrize(("index", "ids"), INDICES)
@pytest.mark.parametrize("cut", ["[]", "index_select", "subset"])
def test_every_index_of_pyg_gives_a_view_that_everything_follows(dataset, index, ids, cut):
    whole = {"lengths": dataset.lengths, "y": dataset.y, "ids": dataset.ids, "split": dataset.split, "fields": dataset.fields}
    view = dataset[index] if cut == "[]" else getattr(dataset, cut)(index)
    rows = ["abcdef".index(name) for name in ids]
    assert (type(view), len(view), view.ids) == (MultimodalDataset, len(ids), list(ids))
    assert [sample.id for sample in view] == list(ids)
    assert view.y.tolist() == whole["y"][rows].tolist()
    assert view.split.tolist() == whole["split"][rows].tolist()
    for name in ("audio", "video"):
        assert view.lengths[name].tolist() == whole["lengths"][name][rows].tolist() == [len(sample[name].x) for sample in view]
    for name, values in view.fields.items():
        assert values.tolist() == whole["fields"][name][rows].tolist()
    assert (view.modalities, view.channels, view.hash, view.label_names) == (
        dataset.modalities,
        dataset.channels,
        dataset.hash,
        dataset.label_names,
    )
    assert dataset.ids == list("abcdef")


@pytest.mark.parametrize("index", [3, -3, np.int64(3), np.array(3), torch.tensor(3)])
def test_a_number_of_any_kind_gives_a_sample(dataset, index):
    assert isinstance(dataset[index], HeteroData)
    assert dataset[index].id == "d"


@pytest.mark.parametrize("index", [[6], torch.tensor([-7]), [0.5], [True], "ab", torch.zeros(6, dtype=torch.uint8), np.zeros((6, 6), bool)])
def test_a_wrong_index_is_an_index_error(dataset, index):
    with pytest.raises(IndexError, match="indices: expected"):
        dataset[index]
    with pytest.raises(DataError, match="indices: expected"):
        dataset.subset(index)


def test_views_of_views(dataset):
    assert dataset[1:][::-1][[0, 4]].ids == ["f", "b"]
    assert dataset[3:].select("test").ids == ["e", "f"]
    assert dataset.where("room", ["y"])[1:].with_modalities(["video"])[0]["video"].x.shape == (6, 2)
    scaled = dataset.standardize(by="subject")
    assert torch.equal(scaled[[4, 2]][1]["audio"].x, scaled[2]["audio"].x)


def test_shuffle_is_pygs(dataset):
    torch.manual_seed(0)
    shuffled, order = dataset.shuffle(return_perm=True)
    assert shuffled.ids == [dataset.ids[i] for i in order]
    assert sorted(shuffled.ids) == list("abcdef") != shuffled.ids
    assert shuffled.lengths["audio"].tolist() == dataset.lengths["audio"][order].tolist()


def test_an_index_set_from_outside_is_followed(dataset):
    assert dataset.ids == list("abcdef")
    other = copy.copy(dataset)
    other._indices = [2, 0]  # as PyG's own `index_select` does it
    assert (other.ids, other.y.tolist(), other[1].id, len(other)) == (["c", "a"], [2, 0], "a", 2)


def test_transform_is_applied_on_access_and_kept_by_views(dataset):
    assert "tag" not in dataset[0]
    view = dataset[1:3]
    dataset.transform = T.Compose([T.NormalizeFeatures(), Tag()])
    assert dataset[0].tag == "<a>"
    assert dataset[0]["audio"].x.sum(1).tolist() == pytest.approx([1] * 4)
    assert "tag" not in view[0]
    views = (
        dataset[1:],
        dataset.select("train"),
        dataset.standardize(),
        dataset.with_modalities(["audio"]),
        dataset.shuffle(),
        dataset.copy(),
    )
    assert all(sample.tag == f"<{sample.id}>" for part in views for sample in part)
    assert next(iter(DataLoader(dataset[1:3], batch_size=2))).tag == ["<b>", "<c>"]
    dataset.transform = None
    assert "tag" not in dataset[0]


def test_transform_of_the_constructor(sequences):
    data = MultimodalDataset.from_arrays(sequences, transform=Tag())
    assert data[1:][0].tag == "<1>"
    assert "tag" not in data.get(0)


def test_pre_transform_and_pre_filter_are_applied_once(sequences):
    asked, changed = [], []

    def has_audio(data):
        asked.append(data.id)
        return len(data["audio"].x) > 0

    def half(data):
        changed.append(data.id)
        data["audio"].x = data["audio"].x[::2]
        data["audio"].time = data["audio"].time[::2]
        data.energy = float(data["audio"].x.square().sum())
        return data

    data = MultimodalDataset.from_arrays(
        sequences,
        y=[0, 1, 2, 0, 1, 2],
        ids=list("abcdef"),
        time={"audio": [np.arange(len(x)) / 10 for x in sequences["audio"]]},
        split=["train"] * 5 + ["test"],
        fields={"room": list("xyxyxy")},
        label_names=["low", "middle", "high"],
        notes=["recorded in one room"],
        pre_filter=has_audio,
        pre_transform=half,
    )
    assert data.notes == ("recorded in one room",)
    assert (asked, changed) == (list("abcdef"), list("acdef"))
    assert (data.ids, data.label_names) == (list("acdef"), ("low", "middle", "high"))
    assert data.lengths["audio"].tolist() == [2, 4, 1, 3, 2]
    assert (data.y.tolist(), data.split[-1], data.fields["room"].tolist()) == ([0, 2, 0, 1, 2], "test", list("xxyxy"))
    np.testing.assert_array_equal(data[1]["audio"].x.numpy(), sequences["audio"][2][::2])
    np.testing.assert_allclose(data[1]["audio"].time.numpy(), np.arange(0, 7, 2) / 10, rtol=1e-6)
    np.testing.assert_allclose(data.fields["energy"][1], np.square(sequences["audio"][2][::2]).sum(), rtol=1e-6)
    assert len(changed) == 5  # not again on access


def test_what_cannot_be_stored_is_refused(sequences):
    def join(data):
        data["audio", "to", "video"].edge_index = torch.zeros(2, 0, dtype=torch.long)
        return data

    with pytest.raises(DataError, match=r"sample '0': expected node types only, got edges \('audio', 'to', 'video'\); .*transform="):
        MultimodalDataset.from_arrays(sequences, pre_transform=join)


def test_numbers_that_pyg_asks_for_need_no_sample(dataset, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MultimodalDataset, "get", lambda self, idx: pytest.fail("a sample was read"))
        assert dataset.num_classes == dataset[:1].num_classes == 3
        assert dataset.num_features == dataset.num_node_features == {"audio": 3, "video": 2}
        assert MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * 2}).num_classes == 0
        assert MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * 2}, y=[1, 0]).num_classes == 2
        assert MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * 2}, y=[[1, 0, 0]] * 2).num_classes == 3
        with pytest.warns(UserWarning, match="floating-point labels"):
            assert MultimodalDataset.from_arrays({"a": [np.ones((1, 1))] * 3}, y=[1.5, 0, 2]).num_classes == 3

    def widen(data):
        data["audio"].x = data["audio"].x.repeat(1, 2)
        data.y = data.y + 1
        return data

    dataset.transform = widen
    assert (dataset.num_features["audio"], dataset.num_classes) == (6, 4)


def test_opening_cutting_and_transforming_read_no_sequence(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", a=np.ones((6, 4, 2)), label=np.arange(6) % 2, split=np.array(["train", "test"] * 3))
    from mea_graph.data.ragged import Ragged

    data = open_dataset(tmp_path / "a.npz")
    monkeypatch.setattr(Ragged, "steps", lambda *args: pytest.fail("a sequence was read"))
    assert (data.num_classes, data.num_features) == (2, {"a": 2})
    data.transform = Tag()
    view = pickle.loads(pickle.dumps(data.select("train").shuffle()[[1, 0]]))
    assert (len(view), view.channels, sum(view.lengths["a"]), view.y.tolist()) == (2, {"a": 2}, 8, [0, 0])
    assert len(pickle.dumps(view)) < 5_000


def test_pygs_samplers_loaders_and_summary(dataset):
    assert isinstance(dataset, Dataset)
    sampler = ImbalancedSampler(dataset[[0, 3, 1]])  # classes 0, 0, 1
    assert sampler.weights.tolist() == [0.5, 0.5, 1]
    assert sampler.weights.tolist() == ImbalancedSampler(torch.from_numpy(dataset[[0, 3, 1]].y)).weights.tolist()
    batches = list(DataLoader(dataset[[0, 3, 1]], batch_size=2, sampler=sampler))
    assert [batch.num_graphs for batch in batches] == [2, 1]
    assert dataset[1:].get_summary().num_nodes_per_type["audio"].max == 7


def test_lightning_takes_it(dataset):
    pytest.importorskip("lightning")
    from torch_geometric.data.lightning import LightningDataset

    data = LightningDataset(dataset.select("train"), dataset.select("valid"), batch_size=3, pin_memory=False)
    assert sorted(next(iter(data.train_dataloader())).id) == ["a", "b", "d"]
    assert next(iter(data.val_dataloader())).id == ["c"]


def test_a_database_of_pyg_takes_its_samples(dataset, tmp_path):
    """`OnDiskDataset`: appended or all at once, opened again, in batches, and back."""
    stored = OnDiskDataset(str(tmp_path), log=False)
    stored.append(dataset[0])
    stored.extend(list(dataset[1:]), batch_size=2)
    stored.close()
    stored = OnDiskDataset(str(tmp_path), log=False)
    assert (len(stored), stored[3].id, [sample.id for sample in stored[[5, 0]]]) == (6, "d", ["f", "a"])
    again = MultimodalDataset.from_samples(stored, label_names=dataset.label_names)
    assert (again.ids, again.channels, again.y.tolist()) == (dataset.ids, dataset.channels, dataset.y.tolist())
    for found, wanted in zip(DataLoader(stored, batch_size=4), DataLoader(dataset, batch_size=4), strict=True):
        assert (found.id, found.y.tolist()) == (wanted.id, wanted.y.tolist())
        for name in ("audio", "video"):
            assert torch.equal(found[name].x, wanted[name].x)
            assert torch.equal(found[name].ptr, wanted[name].ptr)
        assert torch.equal(found["audio"].time, wanted["audio"].time)
    stored.transform = Tag()
    assert next(iter(DataLoader(stored, batch_size=2))).tag == ["<a>", "<b>"]
    stored.close()


def test_spawned_workers_see_view_transform_and_scaling(dataset):
    dataset.transform = Tag()
    view = dataset.standardize()[[5, 0, 3]]
    (batch,) = DataLoader(view, batch_size=3, num_workers=1, multiprocessing_context="spawn")
    assert (batch.id, batch.tag) == (["f", "a", "d"], ["<f>", "<a>", "<d>"])
    assert torch.equal(batch["audio"].x, torch.cat([sample["audio"].x for sample in view]))


def test_a_copy_shares_nothing(dataset):
    view = dataset.standardize(by="subject")[[4, 2]]
    for made in (view.copy(), dataset.standardize(by="subject").copy([4, 2])):
        assert (made.ids, made.len(), made.y.tolist(), made.split.tolist()) == (["e", "c"], 2, [1, 2], ["test", "valid"])
        for one, other in zip(made, view, strict=True):
            for name in ("audio", "video"):
                assert torch.equal(one[name].x, other[name].x)
            assert torch.equal(one["audio"].time, other["audio"].time)
        assert made[1:].ids == ["c"]
        assert not np.shares_memory(made._store.sequences["audio"].values, dataset._store.sequences["audio"].values)
    assert dataset.with_modalities(["video"]).copy().modalities == ("video",)


def test_the_truth_of_the_embedded_data_follows_a_view():
    events = AsynchronousEvents(num_samples=8)
    rows = [5, 2]
    for view in (events[rows], events[2:][[3, 0]], events.copy(rows), events.with_modalities(["text"])[rows]):
        assert type(view) is AsynchronousEvents
        np.testing.assert_array_equal(view.latents.score, events.latents.score[rows])
        np.testing.assert_array_equal(view.latents.private["text"], events.latents.private["text"][rows])
        np.testing.assert_allclose(view.y, view.latents.score, rtol=1e-6)


# from_samples


def test_samples_come_back(dataset):
    again = MultimodalDataset.from_samples(dataset, label_names=dataset.label_names)
    assert (again.ids, again.y.tolist(), again.channels, again.label_names) == (
        dataset.ids,
        dataset.y.tolist(),
        dataset.channels,
        dataset.label_names,
    )
    for one, other in zip(again, dataset, strict=True):
        for name in ("audio", "video"):
            assert torch.equal(one[name].x, other[name].x)
        assert torch.equal(one["audio"].time, other["audio"].time)
        assert "time" not in one["video"]


def graph(x=True, **own):
    data = HeteroData(**own)
    data["a"].x = torch.ones(2, 3)
    if x:
        data["b"].x = torch.ones(1, 2)
    return data


def test_a_sample_may_lack_a_node_type_and_attributes_become_fields():
    data = MultimodalDataset.from_samples(
        [
            graph(False, y=torch.tensor([[1.0, 0.0]]), speaker="ann", split="train", age=torch.tensor([3])),
            graph(y=torch.tensor([[0.0, 1.0]]), speaker="bob", split="dev", age=torch.tensor([4])),
        ],
        transform=Tag(),
    )
    assert data.lengths["b"].tolist() == [0, 1]
    assert (data.y.tolist(), data.split.tolist()) == ([[1, 0], [0, 1]], ["train", "valid"])
    assert {name: values.tolist() for name, values in data.fields.items()} == {"speaker": ["ann", "bob"], "age": [3, 4]}
    assert data[1].tag == "<1>"


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([graph(y=1.0), graph(id="q")], "y: expected one in every sample or in none, got none in sample 'q'"),
        ([graph(y=torch.ones(2)), graph(y=torch.ones(3))], r"y: expected as many values in every sample, got \[2, 3\]"),
        ([graph(box=torch.ones(4))], "box: expected one value a sample, got 4"),
        ([HeteroData(a={"x": torch.ones(1, 1), "pos": torch.ones(1, 3)})], r"sample 0: a: expected x and time only, got \['pos'\]"),
        ([HeteroData(a={"time": torch.ones(1)})], "sample 0: a: expected x beside time"),
        (
            [HeteroData(a={"x": torch.ones(1, 1), "time": torch.ones(1)}), HeteroData(a={"x": torch.ones(1, 1)})],
            "a: expected a time in every sample or in none, got one in 1 of 2",
        ),
        ([], "at least one modality"),
    ],
)
def test_samples_that_do_not_fit_are_refused(samples, message):
    with pytest.raises(DataError, match=message):
        MultimodalDataset.from_samples(samples)
