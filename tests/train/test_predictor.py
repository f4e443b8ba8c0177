"""From a checkpoint to predictions, with nothing else at hand."""

import csv
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, HeteroData
from torch_geometric.loader import DataLoader

import mea_graph
from mea_graph import baselines
from mea_graph.__main__ import main
from mea_graph.data import AddMissingModalities, DataError, MultimodalDataset, open_dataset
from mea_graph.nn import MEAOutput
from mea_graph.train import MEAModule, Predictor, SequenceDataModule, SplitPolicy, TaskModule

SMALL = {"channels": 8, "heads": 2, "hidden_channels": 6}
MODULES = {MEAModule: SMALL, baselines.LateFusionGRUModule: {"hidden_channels": 4}}
MODULES |= {baselines.EarlyFusionGRUModule: {"hidden_channels": 4}, baselines.SharedPrivateEncodersModule: {"hidden_channels": 4}}
MODULES |= {
    module: {"channels": 8, "heads": 2} for module in (baselines.ConcatenationTransformerModule, baselines.PairwiseTransformerModule)
}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def trained(data, module=MEAModule, path="run/checkpoints/best.ckpt", **options):
    """Trains a little and leaves a checkpoint; returns the trainer."""
    torch.manual_seed(0)
    sizes = {"in_channels": data.in_channels, "task": data.task, "out_channels": data.out_channels}
    model = module(**sizes, **{**MODULES[module], **options})
    trainer = L.Trainer(max_epochs=1, **QUIET, enable_checkpointing=False)
    trainer.fit(model, data, weights_only=True)
    trainer.save_checkpoint(path)
    return trainer


def of_lightning(trainer, data, part="all"):
    """What Lightning's own loop predicts, by id: the numbers behind `test`."""
    data.predict_split = part
    found = {}
    for batch in trainer.predict(trainer.model, data):
        found |= dict(zip(batch["id"], batch["prediction"].numpy(), strict=True))
    return found


def assert_same(found, expected):
    assert found.ids
    np.testing.assert_allclose(found.output, np.stack([expected[name] for name in found.ids]), rtol=1e-5, atol=1e-6)


@pytest.fixture
def data(classes_source):
    return SequenceDataModule(**classes_source, standardize="train", classes=["rest", "stress"], batch_size=16)


@pytest.fixture(scope="module")
def once():
    """What the first test that asks for `run` leaves to the others, whose data are the same."""
    return {}


@pytest.fixture
def run(data, once):
    """The trainer of a run on `data`, whose folder is `run`."""
    path = Path("run/checkpoints/best.ckpt")
    if not once:
        once |= {"trainer": trained(data), "checkpoint": path.read_bytes()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(once["checkpoint"])
    return once["trainer"]


@pytest.fixture
def expected(run, data):
    return of_lightning(run, data)


@pytest.mark.parametrize("module", MODULES)
def test_predictions_are_those_of_lightning_for_every_module(data, module):
    trainer = trained(data, module)
    expected = of_lightning(trainer, data)
    predictor = mea_graph.Predictor.load("run/checkpoints/best.ckpt", batch_size=7)
    assert type(predictor.module) is module
    found = predictor(data.source)
    assert found.ids == data.dataset.ids
    assert_same(found, expected)
    assert len({tuple(row) for row in found.output.tolist()}) > 10
    fused = predictor.predict(data.source, embeddings=True).embeddings.fused
    assert fused.shape[0] == 60
    assert len({tuple(row) for row in fused.tolist()}) > 10


def test_the_numbers_are_those_of_test(run, data):
    (scores,) = run.test(run.model, data, verbose=False)
    found = Predictor.load("run").predict(data.source)
    test = [n for n, part in enumerate(found.part) if part == "test"]
    assert test == data.parts["test"].tolist()
    assert np.mean([found.labels[n] == found.target[n] for n in test]) == pytest.approx(scores["test/accuracy"])
    assert set(found.target) == {"rest", "stress"}
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-6)
    assert found.labels == [("rest", "stress")[k] for k in found.probabilities.argmax(1)]


def forms(dataset):
    """The samples of a data set in every form, without labels."""
    samples = [dataset[i] for i in range(len(dataset))]
    for sample in samples:
        del sample.y
        sample["lips", "near", "audio"].edge_index = torch.zeros(2, 0, dtype=torch.long)  # of the user's own pipeline
        if not len(sample["lips"].x):
            del sample["lips", "near", "audio"], sample["lips"]
    arrays = {m: [None if m not in s.node_types else s[m].x.double().numpy() for s in samples] for m in dataset.modalities}
    whole = [AddMissingModalities(dataset.channels)(s.clone()) for s in samples]
    for sample in whole:
        for edge_type in sample.edge_types:
            del sample[edge_type]
    return {
        "arrays": arrays,
        "tensors": {m: [None if x is None else torch.from_numpy(x).bfloat16().double() for x in v] for m, v in arrays.items()},
        "samples": samples,
        "batch": Batch.from_data_list(whole),
        "data set": MultimodalDataset.from_arrays(arrays, ids=dataset.ids),
    }


def test_every_form_of_the_same_samples_gives_the_same(data, expected):
    predictor = Predictor.load("run")
    rows = np.stack(list(map(expected.get, data.dataset.ids)))
    for name, form in forms(data.dataset).items():
        found = predictor(form)
        tolerance = 0.05 if name == "tensors" else 1e-5  # bfloat16
        np.testing.assert_allclose(found.output, rows, rtol=tolerance, atol=tolerance, err_msg=name)
        assert found.target is None
        assert found.ids == data.dataset.ids
    assert_same(predictor(data.dataset[3]), expected)
    assert_same(predictor(data.dataset[10:20]), expected)
    equal = torch.stack([data.dataset[i]["audio"].x[:3] for i in range(60)])
    assert predictor({"audio": equal}).output.tolist() == predictor({"audio": list(equal.numpy())}).output.tolist()


def test_modalities_that_are_missing_are_absent(run):
    predictor = Predictor.load("run")
    only = {"audio": [np.ones((4, 4)), np.zeros((3, 4))]}
    alone = predictor.predict(only, embeddings=True)
    np.testing.assert_array_equal(alone.output, predictor(only | {"lips": [None, None]}).output)
    assert np.isnan(alone.embeddings.exclusive["lips"]).all()
    assert np.isfinite(alone.embeddings.exclusive["audio"]).all()
    with pytest.warns(UserWarning, match="1 samples have no step in any modality, so their predictions mean nothing: '1'"):
        predictor({"audio": [np.ones((4, 4)), None]})


def test_embeddings_are_those_of_the_model(run, data):
    found = Predictor.load("run", batch_size=4).predict(data.dataset, embeddings=True)
    model = run.model.network.eval()
    samples = data.dataset.standardize(fit_on=data.parts["train"])
    (batch,) = DataLoader(samples, batch_size=60)
    with torch.no_grad():
        output = model(batch)
    for space in ("exclusive", "agnostic"):
        for m, h in getattr(found.embeddings, space).items():
            there = output.present[m].numpy()
            assert there.all() == (m == "audio")
            np.testing.assert_allclose(h[there], getattr(output, space)[m].numpy()[there], rtol=1e-4, atol=1e-6)
            assert np.isnan(h[~there]).all()
    with torch.no_grad():
        np.testing.assert_allclose(model.head(torch.from_numpy(found.embeddings.fused)).numpy(), found.output, rtol=1e-4, atol=1e-6)
    found.save_embeddings("vectors.npz")
    saved = np.load("vectors.npz")
    assert set(saved) == {"ids", "fused", "audio_exclusive", "lips_exclusive", "audio_agnostic", "lips_agnostic"}
    assert saved["ids"].tolist() == found.ids
    with pytest.raises(ValueError, match="ask for them with"):
        Predictor.load("run")(data.dataset).save_embeddings("none.npz")


def test_attention_is_that_of_each_sample(data, expected):
    found = Predictor.load("run").predict(data.dataset[:9], attention=True)
    assert_same(found, expected)
    for number, output in enumerate(found.attention):
        assert isinstance(output, MEAOutput)
        for m, (steps,) in output.predictive_attention.items():
            assert steps.shape[-2:] == (data.dataset.lengths[m][number],) * 2
        np.testing.assert_allclose(output.prediction[0], found.output[number], rtol=1e-6)


class TestTasks:
    def test_regression(self, scores_source):
        data = SequenceDataModule(**scores_source)
        expected = of_lightning(trained(data), data)
        found = Predictor.load("run")(data.source)
        assert_same(found, expected)
        np.testing.assert_allclose(found.values, [expected[name][0] for name in found.ids], rtol=1e-5, atol=1e-6)
        assert found.labels is None
        assert found.probabilities is None
        assert found.target == pytest.approx(data.dataset.y.tolist())

    def test_binary_labels(self, labels_source):
        data = SequenceDataModule(**labels_source, classes=["happy", "sad", "angry"])
        expected = of_lightning(trained(data), data)
        found = Predictor.load("run")(data.source)
        assert_same(found, expected)
        for row, names in zip(found.output, found.labels, strict=True):
            assert names == [name for name, logit in zip(("happy", "sad", "angry"), row, strict=True) if logit > 0]
        np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-found.output)), rtol=1e-5)

    def test_targets_go_by_their_names(self, run):
        """New data that lacks a class numbers the others from 0: its numbers are not the model's."""
        new = MultimodalDataset.from_arrays({"audio": [np.ones((3, 4))] * 2}, y=["stress", "stress"])
        assert Predictor.load("run")(new).target == ["stress", "stress"]
        other = MultimodalDataset.from_arrays({"audio": [np.ones((3, 4))] * 2}, y=[0.5, 1.5])
        assert Predictor.load("run")(other).target is None


class TestScaling:
    def test_of_the_training_samples_on_other_data(self, run, data):
        found = Predictor.load("run")(data.dataset[:5])
        mean, std = data.dataset.standardize(fit_on=data.parts["train"]).statistics["audio"]
        x = {m: [(data.dataset[i][m].x.numpy()) for i in range(5)] for m in ("audio", "lips")}
        x["audio"] = [(part - mean) / std for part in x["audio"]]
        mean, std = data.dataset.standardize(fit_on=data.parts["train"]).statistics["lips"]
        x["lips"] = [(part - mean) / std for part in x["lips"]]
        np.testing.assert_allclose(Predictor(run.model)(x).output, found.output, rtol=1e-4, atol=1e-6)
        assert np.abs(Predictor(run.model)(data.dataset[:5]).output - found.output).max() > 1e-3

    def test_by_a_field_needs_the_field(self, classes_source):
        data = SequenceDataModule(
            **classes_source, standardize="subject", split=SplitPolicy(by="subject", train=[0, 1, 2], valid=[3], test=[4])
        )
        expected = of_lightning(trained(data), data)
        predictor = Predictor.load("run")
        assert_same(predictor(data.source), expected)
        assert_same(predictor(data.dataset.where("subject", isin=[4, 5])), expected)
        samples = [data.dataset[i] for i in range(6)]
        with pytest.raises(DataError, match=r"trained on z-scores by 'subject'.*expected data with that field"):
            predictor(samples)
        for sample in samples:
            sample.subject = 0
        assert_same(predictor(samples), expected)
        with pytest.raises(DataError, match="export_onnx: the features were scaled by each value of a field"):
            predictor.export_onnx("x.onnx")

    def test_scaled_data_is_refused(self, run, data):
        with pytest.raises(DataError, match="expected a raw data set, got a standardized one"):
            Predictor.load("run")(data.dataset.standardize())

    def test_a_transform_is_not_forgotten(self, data):
        dataset = data.dataset
        dataset.transform = lambda sample: sample
        changed = SequenceDataModule(dataset, classes=["a", "b"])
        trained(changed)
        predictor = Predictor.load("run")
        assert len(predictor(dataset)) == 60
        dataset.transform = None
        with pytest.raises(DataError, match="trained on samples that a transform changed"):
            predictor(dataset)

    def test_in_double_precision(self, data):
        torch.manual_seed(0)
        module = MEAModule(data.in_channels, data.task, data.out_channels, **SMALL)
        trainer = L.Trainer(max_epochs=1, precision="64-true", enable_checkpointing=False, **QUIET)
        trainer.fit(module, data, weights_only=True)
        trainer.save_checkpoint("double.ckpt")
        found = Predictor.load("double.ckpt")(data.source)
        assert found.output.dtype == np.float64
        samples = data.dataset.standardize(fit_on=data.parts["train"])
        (batch,) = DataLoader(samples, batch_size=60)
        with torch.no_grad():
            expected = module.eval()(batch.x_dict, batch.batch_dict, batch_size=60).prediction
        np.testing.assert_allclose(found.output, expected.numpy(), rtol=1e-9)


REFUSED = [
    ({}, r"expected some of the modalities \['audio', 'lips'\], got none"),
    ([], r"data: expected arrays by modality, .* got none"),
    (3, r"data: expected arrays by modality, .* got int"),
    ({"audio": []}, "expected at least one sample, got none"),
    ({"gyro": [np.ones((3, 4))]}, r"expected modalities among \['audio', 'lips'\], which the model was trained on, got \['gyro'\]"),
    ({"audio": [np.ones((3, 5))]}, r"audio: .*expected width 4"),
    ({"audio": np.ones((3, 4))}, r"audio: expected a list of arrays \(T, d\).*of one sample \(T, d\) it is \[array\]"),
    ({"audio": [np.ones((3, 4), complex)]}, "audio: sample '0': expected numbers of shape"),
    ({"audio": [["a", "b"]]}, "audio: sample '0': expected numbers of shape"),
    ({"audio": [np.full((3, 4), np.nan)]}, "audio: sample '0': expected finite numbers"),
    ({"audio": 7}, "audio: expected a list of arrays"),
    ({"audio": [np.ones((3, 4))], "lips": [np.ones((3, 3))] * 2}, "expected as many samples in every modality"),
    ("none.npz", "none.npz: no such file"),
    (HeteroData(), "expected some of the modalities"),
    (HeteroData(audio={"x": torch.ones(2, 5)}), r"sample 0: audio: expected x of shape \(T, 4\), got shape \(2, 5\)"),
    (HeteroData(gyro={"x": torch.ones(2, 5)}), r"got \['gyro'\]"),
]


@pytest.fixture(scope="module")
def untrained():
    return Predictor(MEAModule({"audio": 4, "lips": 3}, "regression", 1, **SMALL))


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_predicted_is_refused_in_one_error(untrained, given, message):
    with pytest.raises(DataError, match=message):
        untrained(given)


def test_modalities_that_training_left_out_may_be_there(classes_source):
    data = SequenceDataModule(**classes_source, modalities=["audio"])
    expected = of_lightning(trained(data, baselines.LateFusionGRUModule), data)
    predictor = Predictor.load("run")
    assert_same(predictor(data.source), expected)
    assert_same(predictor(open_dataset(data.source)), expected)


@pytest.mark.parametrize("shape", [(2, 3), (2,)])
def test_an_array_that_is_no_sequence_is_no_missing_modality(untrained, shape):
    """It would be left out of the file, with a note that nobody reads, and predicted without."""
    np.savez("new.npz", audio=np.ones((2, 3, 4)), lips=np.ones(shape))
    with pytest.raises(DataError, match="lips: expected sequences of width 3, as in training, got"):
        untrained("new.npz")
    np.savez("other.npz", audio=np.ones((2, 3, 4)), about=np.ones((2, 3)))
    assert any("array 'about'" in note and "left out" in note for note in untrained("other.npz").notes)


def test_arrays_of_one_vector_are_read_as_in_training(classes_source):
    arrays = dict(np.load(classes_source["source"]))
    np.savez("static.npz", **arrays, about=np.arange(120.0).reshape(60, 2))
    data = SequenceDataModule("static.npz", reader={"static": ["about"]}, standardize="train")
    expected = of_lightning(trained(data), data)
    predictor = Predictor.load("run")
    assert_same(predictor("static.npz"), expected)
    data.dataset.save("saved.npz")
    assert_same(predictor("saved.npz"), expected)
    assert len(predictor(classes_source["source"])) == 60  # without that array


class Own(TaskModule):
    def __init__(self, task, out_channels, saved=True):
        super().__init__(torch.nn.Module(), task, out_channels)
        self.network.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.network.forward = lambda x, batch, batch_size: self.network.weight.expand(batch_size, 1)
        if saved:
            self.save_hyperparameters()


class TestCheckpoints:
    def test_of_a_folder_it_is_the_best_one_or_the_last(self, run, data):
        state = torch.load("run/checkpoints/best.ckpt", weights_only=True)
        name = [name for name in state["state_dict"] if name.startswith("network.head.")][-1]
        state["state_dict"][name] += 1
        torch.save(state, "run/checkpoints/last.ckpt")
        best, last = Predictor.load("run"), Predictor.load("run", "last")
        assert [p.checkpoint for p in (best, last)] == [Path(f"run/checkpoints/{name}.ckpt") for name in ("best", "last")]
        np.testing.assert_allclose(last(data.dataset).output, best(data.dataset).output + 1, rtol=1e-4)
        Path("run/checkpoints/best.ckpt").unlink()
        with pytest.raises(DataError, match=r"there is no checkpoint run/checkpoints/best.ckpt; there is checkpoint='last'"):
            Predictor.load("run")
        with pytest.raises(DataError, match="the folder of a run is such as"):
            Predictor.load(".")

    def test_that_a_data_module_did_not_train(self, run, data):
        module = MEAModule(data.in_channels, data.task, data.out_channels, **SMALL)
        trainer = L.Trainer(max_epochs=1, **QUIET, enable_checkpointing=False)
        trainer.fit(module, DataLoader(data.dataset.standardize(), batch_size=20))
        trainer.save_checkpoint("own.ckpt")
        with pytest.raises(DataError, match="does not say how its features were scaled; give statistics="):
            Predictor.load("own.ckpt")
        statistics = data.dataset.standardize().statistics
        expected = Predictor.load("own.ckpt", statistics={})
        by_hand = {m: [(s[m].x.numpy() - statistics[m][0]) / statistics[m][1] for s in data.dataset] for m in data.in_channels}
        found = Predictor.load("own.ckpt", statistics=statistics)(data.dataset).output
        np.testing.assert_allclose(found, expected(by_hand).output, rtol=1e-4, atol=1e-6)
        with pytest.raises(DataError, match="statistics: expected none"):
            Predictor.load("run", statistics=statistics)

    def test_of_a_class_of_the_users(self, scores_source):
        data = SequenceDataModule(**scores_source)
        for saved in (True, False):
            trainer = L.Trainer(max_epochs=1, **QUIET, enable_checkpointing=False)
            trainer.fit(Own("regression", 1, saved), data)
            trainer.save_checkpoint(f"{saved}.ckpt")
        assert Predictor.load("True.ckpt").channels == {"audio": 4, "lips": 3}  # imported already
        with pytest.raises(DataError, match=r"Own cannot be made of the options.*save_hyperparameters"):
            Predictor.load("False.ckpt")
        found = Predictor.load("False.ckpt", module=Own("regression", 1))(data.source)
        assert found.values.tolist() == pytest.approx([trainer.model.network.weight.item()] * 60)
        state = torch.load("True.ckpt", weights_only=True)
        torch.save({**state, "module": "os.path.Own"}, "foreign.ckpt")
        with pytest.raises(DataError, match=r"was trained by 'os\.path\.Own', which is not known here; import it before"):
            Predictor.load("foreign.ckpt")
        assert len(Predictor.load("foreign.ckpt", module=Own)(data.source)) == 60
        for name in ("mea_graph.train.cli", "mea_graph.train.augment", "mea_graph.__main__.main", "mea_graph.train.TaskMetrics", None):
            torch.save({**state, "module": name}, "foreign.ckpt")
            with pytest.raises(DataError, match="module: "):
                Predictor.load("foreign.ckpt")

    def test_a_changed_one_is_told_in_one_error(self, run):
        state = torch.load("run/checkpoints/best.ckpt", weights_only=True)
        inner = state["SequenceDataModule"]
        for changed in (
            {**state, "hyper_parameters": {**state["hyper_parameters"], "heads": 3}},
            {**state, "hyper_parameters": {**state["hyper_parameters"], "channels": 16}},
            {**state, "state_dict": {}},
            {**state, "SequenceDataModule": {**inner, "statistics": None}},
            {**state, "SequenceDataModule": {**inner, "label_names": ["one"]}},
            {**state, "SequenceDataModule": {**inner, "standardize": ["one"]}},
        ):
            torch.save(changed, "changed.ckpt")
            with pytest.raises(DataError, match=r"changed\.ckpt"):
                Predictor.load("changed.ckpt")

    def test_one_that_holds_code_is_refused_and_not_run(self, run):
        class Trap:
            def __reduce__(self):
                return Path.touch, (Path("sprung"),)

        torch.save({**torch.load("run/checkpoints/best.ckpt", weights_only=True), "trap": Trap()}, "trap.ckpt")
        with pytest.raises(DataError, match="expected a checkpoint of plain tensors"):
            Predictor.load("trap.ckpt")
        assert not Path("sprung").exists()


def test_a_device_that_is_not_there_is_named(untrained):
    with pytest.raises(DataError, match="device: expected one that is there, got 'nowhere'"):
        Predictor(untrained.module, device="nowhere")


class TestCommand:
    def predict(self, *words, expect=0):
        assert main(["predict", *map(str, words)]) == expect

    def rows(self, path):
        with Path(path).open(newline="") as file:
            return list(csv.DictReader(file))

    def test_a_checkpoint_and_a_file_are_enough(self, expected, classes_source, capsys):
        arrays = dict(np.load(classes_source["source"]))
        np.savez("new.npz", **{name: array for name, array in arrays.items() if name not in ("label", "split")})
        self.predict("--ckpt", "run/checkpoints/best.ckpt", "--data", "new.npz", "--output", "out.csv", "--embeddings", "out.npz")
        rows = self.rows("out.csv")
        assert list(rows[0]) == ["id", "prediction", "probability_rest", "probability_stress"]
        logits = torch.from_numpy(np.stack([expected[row["id"]] for row in rows]))
        assert [float(row["probability_stress"]) for row in rows] == pytest.approx(logits.softmax(1)[:, 1].tolist(), abs=1e-6)
        assert {row["prediction"] for row in rows} <= {"rest", "stress"}
        assert np.load("out.npz")["fused"].shape == (60, 12)
        assert "written: out.csv (60 samples, run/checkpoints/best.ckpt)" in capsys.readouterr().out

    def test_samples_that_trained_the_model_are_marked(self, expected, classes_source, capsys):
        self.predict("--ckpt", "run", "--data", classes_source["source"], "--output", "out.csv")
        parts = [row["part"] for row in self.rows("out.csv")]
        assert parts == np.load(classes_source["source"])["split"].tolist()
        assert "36 of these 60 samples trained the model" in capsys.readouterr().out

    def test_mistakes_are_told_in_one_line(self, run, capsys):
        np.savez("other.npz", audio=np.ones((3, 4, 5)))
        for words, message in (
            (["--ckpt", "nix", "--data", "other.npz"], "there is no checkpoint nix"),
            (["--ckpt", "run", "--data", "nix.npz"], "nix.npz: no such file"),
            (["--ckpt", "run", "--data", "other.npz"], "audio: expected width 4, as in training, got 5"),
            (["--ckpt", "run", "--data", "other.npz", "--module", "os.path"], "module: expected a subclass of TaskModule"),
            (["--ckpt", "run", "--data", "other.npz", "--module", "nix.Nix"], "module: expected the name of a class"),
        ):
            self.predict(*words, "--output", "out.csv", expect=2)
            error = capsys.readouterr().err
            assert error.startswith("mea-graph: error: ")
            assert error.count("\n") == 1
            assert message in error
        assert not Path("out.csv").exists()


def test_what_is_exported_takes_raw_features(run, data):
    """The file itself is held to the predictor's numbers by the page `docs/tutorial.md`: an export takes half a minute."""
    predictor = Predictor.load("run")
    samples = data.dataset[[1, 0, 2, 3]]
    x, mask = {}, {}
    for m, width in samples.channels.items():
        lengths = torch.from_numpy(samples.lengths[m])
        mask[m] = torch.arange(int(lengths.max())) < lengths[:, None]
        x[m] = torch.full((*mask[m].shape, width), 1e3)  # in the padding too
        for n, sample in enumerate(samples):
            x[m][n, : lengths[n]] = sample[m].x
    exported = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mea_graph.train.predictor.export_onnx", lambda model, path: exported.append((model, path)))
        predictor.export_onnx("mea.onnx")
    ((model, path),) = exported
    assert path == "mea.onnx"
    assert model.in_channels == predictor.channels
    with torch.no_grad():
        torch.testing.assert_close(model(x, mask).prediction, torch.from_numpy(predictor(samples).output), rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="export_onnx: expected a model MEA"):
        Predictor(baselines.LateFusionGRUModule({"audio": 4}, "regression", 1)).export_onnx("x.onnx")
