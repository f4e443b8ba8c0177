import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from mea_graph.data import DataError, MultimodalDataset, open_dataset
from mea_graph.train import Sampling, SequenceDataModule, SplitPolicy
from mea_graph.train.targets import check_targets

from .commands import attach

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def ids_of(loader):
    return [id_ for batch in loader for id_ in batch.id]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_embedded_events(task):
    data = SequenceDataModule(events={"num_samples": 40, "task": task, "num_modalities": 2}, batch_size=16)
    assert data.task == task
    assert set(data.in_channels) == {"text", "audio"}
    assert data.out_channels == (3 if task == "classification" else 1)
    assert len(ids_of(data.train_dataloader())) == 24


def test_sizes_are_known_before_setup(classes_source, scores_source, labels_source):
    for source, task, out_channels in (
        (classes_source, "classification", 2),
        (scores_source, "regression", 1),
        (labels_source, "multilabel", 3),
    ):
        data = SequenceDataModule(**source)
        assert (data.in_channels, data.task, data.out_channels) == ({"audio": 4, "lips": 3}, task, out_channels)


def test_modalities_are_chosen_and_ordered(classes_source):
    assert list(SequenceDataModule(**classes_source, modalities=["lips", "audio"]).in_channels) == ["lips", "audio"]


@pytest.mark.parametrize("split", [SplitPolicy(), SplitPolicy(by="subject", folds=5, fold=3, valid_fraction=0.25, valid_by="subject")])
def test_the_parts_share_no_sample(classes_source, split):
    data = SequenceDataModule(**classes_source, split=split, batch_size=7)
    found = [id_ for loader in LOADERS for id_ in ids_of(getattr(data, loader)())]
    assert sorted(found) == sorted(data.dataset.ids)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_evaluation_sees_every_sample_once_whatever_the_number_of_processes(classes_source, processes):
    seen = []
    for rank in range(processes):
        data = attach(SequenceDataModule(**classes_source, batch_size=2), rank, processes)
        seen += ids_of(data.test_dataloader())
    assert sorted(seen) == sorted(data.dataset.subset(data.parts["test"]).ids)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_training_is_shared_in_equal_numbers_of_batches(classes_source, processes):
    loaders = [attach(SequenceDataModule(**classes_source, batch_size=3), rank, processes).train_dataloader() for rank in range(processes)]
    assert len({len(loader) for loader in loaders}) == 1
    data = SequenceDataModule(**classes_source)
    assert {id_ for loader in loaders for id_ in ids_of(loader)} == set(data.dataset.subset(data.parts["train"]).ids)


def test_more_processes_than_samples_is_an_error(classes_source):
    data = attach(SequenceDataModule(**classes_source), 0, 13)
    with pytest.raises(DataError, match="'test' has 12 samples, fewer than the 13 processes"):
        data.test_dataloader()


def test_the_order_of_training_depends_on_seed_and_epoch(classes_source):
    def order(seed, epoch):
        loader = SequenceDataModule(**classes_source, seed=seed, batch_size=4).train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        return ids_of(loader)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_workers_give_the_same_batches(classes_source):
    orders = [ids_of(SequenceDataModule(**classes_source, num_workers=workers).train_dataloader()) for workers in (0, 1)]
    assert orders[0] == orders[1]


def test_standardisation_uses_the_statistics_of_the_training_samples_only(classes_source):
    data = SequenceDataModule(**classes_source, standardize="train", batch_size=100)
    raw = data.dataset
    train = np.concatenate([raw[i]["audio"].x.numpy() for i in data.parts["train"]]).astype(np.float64)
    (batch,) = data.test_dataloader()
    place = {id_: i for i, id_ in enumerate(raw.ids)}
    test = np.concatenate([raw[place[id_]]["audio"].x.numpy() for id_ in batch.id])
    assert np.allclose(batch["audio"].x.numpy(), (test - train.mean(0)) / train.std(0), atol=1e-5)


def test_standardisation_per_value_of_a_field(classes_source):
    data = SequenceDataModule(
        **classes_source, standardize="subject", split=SplitPolicy(by="subject", train=[0, 1], test=[4]), batch_size=100
    )
    (batch,) = data.test_dataloader()
    assert np.allclose(batch["audio"].x.mean(0), 0, atol=1e-5)
    assert np.allclose(batch["audio"].x.std(0, correction=0), 1, atol=1e-4)


@pytest.mark.parametrize(("part", "count"), [("test", 12), ("valid", 12), ("train", 36), ("all", 60)])
def test_the_part_to_predict_is_chosen(classes_source, part, count):
    data = SequenceDataModule(**classes_source)
    data.predict_split = part
    assert len(ids_of(data.part_dataloader(part))) == len(ids_of(data.predict_dataloader())) == count


def test_a_source_without_targets_or_splits_can_be_predicted(classes_source, tmp_path):
    arrays = dict(np.load(classes_source["source"]))
    np.savez(tmp_path / "new.npz", **{name: array for name, array in arrays.items() if name not in ("label", "split")})
    data = SequenceDataModule(str(tmp_path / "new.npz"), task="classification", classes=2)
    assert len(ids_of(data.part_dataloader("all"))) == 60
    assert data.out_channels == 2
    with pytest.raises(DataError, match=r"expected data\.task"):
        SequenceDataModule(str(tmp_path / "new.npz")).task  # noqa: B018


def test_a_missing_part_is_an_error(classes_source):
    data = SequenceDataModule(**classes_source, split=SplitPolicy(by="subject", train=[0, 1], test=[4]))
    with pytest.raises(DataError, match=r"no sample is in part 'valid'; there are train, test; give data.split.valid_fraction"):
        data.val_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"expected data.source .* or data.events .*, got none"),
        ({"source": "a.npz", "events": {}}, "got both"),
        ({"events": {}, "batch_size": 0}, "data.batch_size: expected an integer >= 1"),
        ({"events": {}, "sampling": {"balanced": True}}, r"data.sampling: expected Sampling\(...\), got {'balanced': True}"),
        ({"events": {}, "split": None}, r"data.split: expected SplitPolicy\(...\), got None"),
        ({"events": {}, "reader": {"format": "npz"}}, r"data.reader: expected options with a file only, got {'format': 'npz'} without one"),
        ({"source": "a.npz", "reader": {"modalities": ["a"]}}, "data.reader: .* got 'modalities', which is data.modalities"),
        ({"events": {}, "classes": "rest"}, "data.classes: expected how many there are, or a list of their names, each once; got 'rest'"),
        ({"events": {}, "classes": True}, "data.classes: .* got True"),
        ({"events": {}, "classes": ["rest", "rest"]}, r"data.classes: .* got \['rest', 'rest'\]"),
        ({"events": {}, "classes": ["rest", 1]}, r"data.classes: .* got \['rest', 1\]"),
    ],
)
def test_contradicting_options(options, message):
    with pytest.raises(DataError, match=message):
        SequenceDataModule(**options)


def test_unknown_arguments_of_the_embedded_data_are_named():
    with pytest.raises(DataError, match=r"data.events: .*num_samplez"):
        SequenceDataModule(events={"num_samplez": 3}).dataset  # noqa: B018


class TestSampling:
    def test_an_epoch_may_be_any_number_of_batches(self, classes_source):
        data = SequenceDataModule(**classes_source, batch_size=9, sampling=Sampling(batches=6))  # a pass has 4
        loader = data.train_dataloader()
        batches = []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            batches += [list(batch.id) for batch in loader]
        assert len(batches) == 12
        for first in (0, 4, 8):
            once = sorted(id_ for batch in batches[first : first + 4] for id_ in batch)
            assert once == sorted(data.dataset.subset(data.parts["train"]).ids)
        assert len(data.val_dataloader()) == 2, "evaluation sees each sample once as ever"

    def test_balanced_training_draws_all_classes_equally_often(self, tmp_path):
        y = np.array(([0] * 8 + [1, 2]) * 6)
        np.savez(tmp_path / "rare.npz", audio=np.ones((60, 4, 2)), label=y, split=np.array(["train"] * 40 + ["valid"] * 10 + ["test"] * 10))

        def found(loader, **options):
            data = SequenceDataModule(str(tmp_path / "rare.npz"), reader={"split": "split"}, **options)
            return sorted(np.bincount(np.concatenate([batch.y for batch in getattr(data, loader)()]), minlength=3))

        assert found("train_dataloader") == [4, 4, 32]
        assert found("train_dataloader", sampling=Sampling(balanced=True)) == [13, 13, 14]
        assert found("val_dataloader", sampling=Sampling(balanced=True)) == [1, 1, 8]
        assert found("test_dataloader", sampling=Sampling(balanced=True)) == [1, 1, 8]

    @pytest.mark.parametrize(("source", "task"), [("scores_source", "regression"), ("labels_source", "multilabel")])
    def test_nothing_but_classes_can_be_balanced(self, source, task, request):
        data = SequenceDataModule(**request.getfixturevalue(source), sampling=Sampling(balanced=True))
        with pytest.raises(DataError, match=f"data.sampling.balanced: expected classification, .* got {task}"):
            data.train_dataloader()

    def test_no_batches_are_refused(self):
        with pytest.raises(DataError, match=r"data.sampling.batches: expected an integer >= 1, .* got 0"):
            Sampling(batches=0)


@pytest.mark.parametrize(
    ("y", "task", "classes", "message"),
    [
        (np.array([0.5, 1.0]), "classification", None, r"float \(2,\), which is regression; got task='classification'"),
        (np.array([0, 1]), "regression", None, r"integer \(2,\), which is classification"),
        (np.zeros((2, 3), np.float32), "regression", None, r"2-D \(2, 3\), which is multilabel"),
        (np.array([0, 3]), None, None, "no sample has class 1 of 0..3"),
        (np.array([0, 3]), None, 3, r"classes in \[0, 3\), got 0 to 3"),
        (np.array([0, 0]), None, None, "at least two classes"),
        (np.array([0.0]), None, 2, "data.classes: expected none for regression"),
        (np.zeros((2, 3)), None, 2, "data.classes: expected 3"),
        (np.array([0, 1]), "ranking", None, "task: expected one of"),
        (None, "classification", None, "data.classes"),
    ],
)
def test_targets_that_do_not_fit_the_task(y, task, classes, message):
    with pytest.raises(DataError, match=message):
        check_targets(y, task, classes)


def test_classes_that_do_not_occur_are_allowed_when_counted():
    assert check_targets(np.array([0, 3]), None, 5) == ("classification", 5)
    assert check_targets(None, "regression", None) == ("regression", 1)


def test_the_source_is_read_as_open_dataset_does(classes_source, tmp_path):
    reader = {"format": "npz", "cache_dir": str(tmp_path / "elsewhere"), "split": "split"}
    data = SequenceDataModule(classes_source["source"], reader=reader)
    assert data.dataset.hash == open_dataset(classes_source["source"], split="split").hash
    assert list((tmp_path / "elsewhere").iterdir())
    with pytest.raises(DataError, match=r"expected some of .* got \['formt'\] \(did you mean 'format'\?\)"):
        _ = SequenceDataModule(classes_source["source"], reader={"formt": "npz"}).dataset


def test_a_preset_says_what_to_place_where_and_what_differs(tmp_path):
    with pytest.raises(DataError, match=r"(?s)got none.*mosi_data_noalign\.pkl.*mea-graph fit --config mosi"):
        SequenceDataModule(preset="MOSI")
    np.savez(tmp_path / "own.npz", text=np.ones((4, 3, 300)), label=np.zeros(4))
    with pytest.warns(UserWarning, match="does not follow the protocol of MOSI: audio: expected width 5"):
        assert SequenceDataModule(str(tmp_path / "own.npz"), preset="MOSI").in_channels == {"text": 300}


def test_what_has_no_targets_is_neither_trained_nor_measured(tmp_path):
    np.savez(tmp_path / "bare.npz", audio=np.ones((6, 4, 2)), lips=np.ones((6, 4, 2)), split=np.array(["train", "valid", "test"] * 2))
    data = SequenceDataModule(str(tmp_path / "bare.npz"), reader={"split": "split"}, task="classification", classes=2)
    for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        with pytest.raises(DataError, match="y: the data has no targets, so nothing can be trained or measured on it"):
            loader()
    assert sum(batch.num_graphs for batch in data.predict_dataloader()) == 2
    told = r"y: the data has no targets \(no labels: none of the arrays is called .*; label= names another\) to train or test on; "
    with pytest.raises(DataError, match=told):
        _ = SequenceDataModule(str(tmp_path / "bare.npz")).task


def test_a_modality_that_no_training_sample_has_gives_a_warning(recwarn):
    """It reached untrained weights in the test, unscaled, without a word."""
    lips = [None, None, None, np.ones((2, 3))]
    split = ["train", "train", "valid", "test"]

    def told(x):
        dataset = MultimodalDataset.from_arrays({"audio": [np.ones((4, 2))] * 4, "lips": x}, y=[0, 1, 0, 1], split=split)
        SequenceDataModule(dataset).check_training()
        return [str(warning.message) for warning in recwarn]

    assert told([np.ones((2, 3)), None, None, None]) == []
    assert told(lips) == ["data: no training sample has 'lips', but 1 others have it: what is made of it there is not learnt"]


class TestClasses:
    def test_are_named_or_counted(self, classes_source, labels_source):
        named = SequenceDataModule(**classes_source, classes=["rest", "stress", "never"])
        assert (named.out_channels, named.label_names) == (3, ["rest", "stress", "never"])
        counted = SequenceDataModule(**classes_source, classes=3)
        assert (counted.out_channels, counted.label_names) == (3, None)
        assert SequenceDataModule(**labels_source, classes=["happy", "sad", "angry"]).out_channels == 3

    def test_that_are_too_few_are_refused(self, classes_source, labels_source):
        with pytest.raises(DataError, match=r"expected classes in \[0, 1\), got 0 to 1"):
            _ = SequenceDataModule(**classes_source, classes=["rest"]).out_channels
        with pytest.raises(DataError, match=r"data.classes: expected 3 \(the labels of the data\), got 2"):
            _ = SequenceDataModule(**labels_source, classes=["happy", "sad"]).out_channels

    @pytest.mark.parametrize("classes", [3, ["stress", "rest"], ["rest"]])
    def test_are_not_named_against_the_data(self, classes_source, classes):
        """The data numbers its classes in the order of its own names."""
        file = {**classes_source, "reader": {**classes_source["reader"], "label_names": ["rest", "stress"]}}
        for same in (None, 2, ["rest", "stress"]):
            assert SequenceDataModule(**file, classes=same).label_names == ["rest", "stress"]
        with pytest.raises(DataError, match=r"data.classes: expected none, or the 2 that the data names: rest, stress; got "):
            _ = SequenceDataModule(**file, classes=classes).out_channels

    def test_that_the_data_names_need_not_occur(self, classes_source):
        reader = {**classes_source["reader"], "label_names": ["rest", "stress", "never"]}
        assert SequenceDataModule(**{**classes_source, "reader": reader}).out_channels == 3


class TestDataSetsInMemory:
    @pytest.fixture
    def dataset(self, classes_source):
        """The samples of the file, made in memory; labels are words."""
        stored = open_dataset(classes_source["source"])
        x = {m: [sample[m].x.numpy() for sample in stored] for m in stored.modalities}
        words = np.array(["rest", "stress"])[stored.y]
        return MultimodalDataset.from_arrays(x, words, split=stored.split, fields=stored.fields)

    def test_are_divided_and_scaled_as_files_are(self, dataset, classes_source):
        options = {"standardize": "train", "batch_size": 7}
        made, file = SequenceDataModule(dataset, **options), SequenceDataModule(classes_source["source"], **options)
        assert (made.in_channels, made.task, made.out_channels, made.label_names) == (
            file.in_channels,
            "classification",
            2,
            ["rest", "stress"],
        )
        for name in LOADERS:
            for a, b in zip(getattr(made, name)(), getattr(file, name)(), strict=True):
                assert a.id == b.id
                assert a.y.tolist() == b.y.tolist()
                assert all((a[m].x == b[m].x).all() for m in dataset.modalities)

    def test_come_back_from_their_file(self, dataset, tmp_path):
        dataset.save(tmp_path / "saved.npz")
        made, saved = SequenceDataModule(dataset), SequenceDataModule(tmp_path / "saved.npz")
        assert saved.label_names == made.label_names
        assert {name: part.tolist() for name, part in saved.parts.items()} == {name: part.tolist() for name, part in made.parts.items()}
        (a,), (b,) = (SequenceDataModule(d, batch_size=99).test_dataloader() for d in (dataset, tmp_path / "saved.npz"))
        assert a["audio"].x.tolist() == b["audio"].x.tolist()

    def test_choose_modalities(self, dataset):
        assert SequenceDataModule(dataset, modalities=["lips"]).in_channels == {"lips": 3}

    def test_widths_are_those_after_a_transform(self, dataset):
        def halve(sample):
            sample["audio"].x = sample["audio"].x[:, :2]
            return sample

        dataset.transform = halve
        data = SequenceDataModule(dataset)
        assert data.in_channels == {"audio": 2, "lips": 3}
        assert data.state_dict()["channels"] == {"audio": 2, "lips": 3}

    def test_a_run_is_not_resumed_on_another_cut(self, dataset):
        """A cut has the hash of the whole, and the same positions in it are other samples."""
        state = SequenceDataModule(dataset[:50]).state_dict()
        attach(SequenceDataModule(dataset[:50])).load_state_dict(state)
        with pytest.raises(DataError, match="expected the data and split that the checkpoint was trained on"):
            attach(SequenceDataModule(dataset[10:])).load_state_dict(state)

    def test_labels_under_another_name_are_told(self):
        samples = [HeteroData(audio={"x": torch.ones(2, 3)}, label=n % 2, split="train") for n in range(4)]
        with pytest.raises(
            DataError, match=r"the data has no targets.*its field 'label' is none: targets are y, in from_arrays and in a PyG"
        ):
            SequenceDataModule(MultimodalDataset.from_samples(samples)).train_dataloader()

    @pytest.mark.filterwarnings("ignore:split")
    def test_a_misspelt_split_is_told_by_its_sample(self):
        names = ["train", "train", "trian", "test"]
        samples = [HeteroData(audio={"x": torch.ones(2, 3)}, y=n % 2, split=name, id=f"clip {n}") for n, name in enumerate(names)]
        data = SequenceDataModule(MultimodalDataset.from_samples(samples))
        with pytest.raises(
            DataError, match=r"split: sample 'clip 2': expected train, valid or test, got 'trian' \(did you mean 'train'\?\)"
        ):
            data.check_parts("train")

    def test_z_scores_that_were_saved_are_not_scaled_again(self, dataset, tmp_path):
        dataset.standardize(by="subject").save(tmp_path / "scaled.npz")
        SequenceDataModule(tmp_path / "scaled.npz").check_training()
        for standardize in ("train", "subject"):
            with pytest.raises(DataError, match=f"data.standardize: expected None, since the data holds z-scores: .*; got '{standardize}'"):
                SequenceDataModule(tmp_path / "scaled.npz", standardize=standardize).check_training()

    def test_what_is_about_files_is_refused(self, dataset):
        with pytest.raises(DataError, match=r"data.reader: expected options with a file only"):
            SequenceDataModule(dataset, reader={"label": "y"})
        with pytest.raises(DataError, match="expected a raw data set, got a standardized one; give standardize="):
            SequenceDataModule(dataset.standardize())


def test_a_file_with_splits_of_its_own_needs_no_option(classes_source):
    found = SequenceDataModule(classes_source["source"]).parts
    assert {name: len(part) for name, part in found.items()} == {"train": 36, "valid": 12, "test": 12}
