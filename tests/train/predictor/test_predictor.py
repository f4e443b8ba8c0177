"""From a checkpoint to predictions, with nothing else at hand."""

from concurrent.futures import ThreadPoolExecutor

import lightning as L
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, HeteroData
from torch_geometric.loader import DataLoader

import mea_graph
from mea_graph import baselines
from mea_graph.data import AddMissingModalities, DataError, MultimodalDataset, open_dataset
from mea_graph.nn import MEAOutput
from mea_graph.train import MEAModule, Predictor, SequenceDataModule, SplitPolicy
from mea_graph.train.evaluation_mode import evaluating
from mea_graph.train.predictor import _watched

from .trained import MODULES, QUIET, SMALL, assert_same, of_lightning, trained


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
    for save, suffix in ((found.save, ".csv"), (found.save_embeddings, ".npz")):
        with pytest.raises(ValueError, match=rf"path: expected a name that ends in \{suffix}, the form that is written, got found.xlsx"):
            save("found.xlsx")


def test_threads_get_embeddings_of_their_own_samples(run, data):
    """One predictor for all: what a thread keeps of the model was what another thread computed."""
    predictor = Predictor.load("run", batch_size=4)
    parts = [data.dataset[n::4] for n in range(4)]
    alone = [predictor.predict(part, embeddings=True) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(lambda part: predictor.predict(part, embeddings=True), parts))
            for found, expected in zip(together, alone, strict=True):
                np.testing.assert_array_equal(found.embeddings.fused, expected.embeddings.fused)


def test_what_another_thread_asks_for_is_passed_over_also_while_it_is_taken_away():
    """Torch calls a hook that is being added or removed without the options that it was promised."""
    network = torch.nn.Identity()
    with _watched(network, embeddings=False, attention=True), ThreadPoolExecutor(1) as pool:
        network._forward_pre_hooks_with_kwargs.clear()
        assert pool.submit(network, 1).result() == 1


def test_a_thread_that_ends_leaves_the_others_in_evaluation_mode():
    """It gave the module its dropout back while another thread predicted."""
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    first, second = evaluating(module), evaluating(module)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in module.modules())
    second.__exit__(None, None, None)
    assert [part.training for part in module.modules()] == [True, True, False]


def test_predictions_are_those_of_evaluation_however_the_module_is_trained_meanwhile(run, data, expected):
    """A predictor that was made before or within a training predicted with dropout, or ended the dropout of the training."""

    class Look(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            before = {name: part.training for name, part in pl_module.named_modules()}
            found.append(Predictor(pl_module, data)(data.dataset).output)
            assert {name: part.training for name, part in pl_module.named_modules()} == before
            assert pl_module.training

    module, found = Predictor.load("run").module, []
    early = Predictor(module, data)
    module.train()
    assert_same(early(data.dataset), expected)
    assert module.training
    L.Trainer(max_epochs=1, **QUIET, enable_checkpointing=False, callbacks=[Look()]).fit(module, data)
    np.testing.assert_array_equal(early(data.dataset).output, found[0])


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


def test_a_device_that_is_not_there_is_named(untrained):
    with pytest.raises(DataError, match="device: expected one that is there, got 'nowhere'"):
        Predictor(untrained.module, device="nowhere")


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
