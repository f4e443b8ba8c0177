import math
import pickle
from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, HeteroData
from torch_geometric.loader import DataLoader

from mea_graph.baselines import LateFusionGRUModule
from mea_graph.data import AsynchronousEvents, DataError
from mea_graph.nn import MEALoss
from mea_graph.train import LearningRateSchedule, MEAModule, NonFiniteLossError, Predictor, Sampling, SequenceDataModule, TaskModule
from mea_graph.train.mea_module import BY_FORM
from mea_graph.train.same_options import check_same_options

TINY = {"channels": 8, "heads": 2, "hidden_channels": 8}


class Output(NamedTuple):
    prediction: torch.Tensor
    mean: torch.Tensor


class MeanOfAudio(nn.Module):
    """A network whose output is more than the prediction."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.scale = scale

    def forward(self, x_dict, batch_dict, batch_size):
        mean = torch.zeros(batch_size, 4).index_add(0, batch_dict["audio"], x_dict["audio"])
        return Output(self.linear(mean) * self.scale, mean)


def fit(module, data, epochs=1, **options):
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, data)
    return trainer


def test_any_network_with_a_prediction_can_be_trained(scores_source):
    trainer = fit(TaskModule(MeanOfAudio(), "regression", 1, sentiment=True), SequenceDataModule(**scores_source))
    logged = {name for name in trainer.callback_metrics if name.startswith("valid/")}
    names = ("loss", "task", "mae", "corr", "acc7", "acc5", "acc2_nonneg", "f1_nonneg", "acc2_pos", "f1_pos")
    assert logged == {f"valid/{name}" for name in names}


def test_every_term_of_the_objective_is_logged(classes_source):
    data = SequenceDataModule(**classes_source)
    trainer = fit(MEAModule(data.in_channels, data.task, data.out_channels, **TINY, alpha=0.5, beta=0.25), data)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for part in ("train", "valid"):
        terms = {name: logged[f"{part}/{name}"] for name in ("task", "disparity", "agnostic", "exclusive", "importance")}
        assert min(terms.values()) > 0
        expected = terms["task"] + 0.5 * terms["disparity"] + 0.25 * (terms["agnostic"] + terms["exclusive"] + terms["importance"])
        assert logged[f"{part}/loss"] == pytest.approx(expected, rel=1e-5)


class FirstLook(L.Callback):
    """What validation saw of the means, and who was training."""

    def on_validation_start(self, trainer, pl_module):
        self.mean = pl_module.network.agnostic.centering.mean.clone()

    def on_train_epoch_end(self, trainer, pl_module):
        self.training = [part.training for part in pl_module.network.modules()]


def test_means_of_modalities_are_measured_without_dropout_before_validation(classes_source):
    data = SequenceDataModule(**classes_source, batch_size=5)
    options = {"dropout": 0.5, "augmentation": {"feature_noise": 0.5, "modality_dropout": 0.5}, "agnostic": {"center": True}}
    module = MEAModule(data.in_channels, data.task, data.out_channels, **TINY, **options)
    look = FirstLook()
    fit(module, data, epochs=2, callbacks=[look])
    assert all(look.training)
    centering, module.network.agnostic.centering = module.network.agnostic.centering, None
    module.eval()
    with torch.no_grad():
        found = [module(batch.x_dict, batch.batch_dict, batch_size=batch.num_graphs) for batch in data.train_dataloader()]
    for i, m in enumerate(data.in_channels):
        h = torch.cat([output.agnostic[m][output.present[m]] for output in found])
        assert centering.seen[i] == len(h)
        torch.testing.assert_close(look.mean[i], h.mean(0), rtol=1e-4, atol=1e-6)
        assert torch.equal(centering.mean[i], look.mean[i])


def test_the_loss_of_an_epoch_of_training_is_the_mean_over_samples(scores_source):
    data = SequenceDataModule(**scores_source, batch_size=5)
    module = LateFusionGRUModule(data.in_channels, data.task, data.out_channels, hidden_channels=4, dropout=0.0, learning_rate=1e-12)
    trainer = fit(module, data, limit_val_batches=0)
    losses, sizes = [], []
    with torch.no_grad():
        for batch in data.train_dataloader():
            losses.append(module.loss_terms(module.run(batch), batch.y)["loss"].item())
            sizes.append(batch.num_graphs)
    expected = np.average(losses, weights=sizes)
    assert abs(np.mean(losses) - expected) > 1e-4 * expected  # batches of different sizes
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("source", ["classes_source", "labels_source", "scores_source"])
def test_validation_loss_and_metrics_are_those_of_all_samples_at_once(source, request):
    data = SequenceDataModule(**request.getfixturevalue(source), batch_size=5)
    module = LateFusionGRUModule(data.in_channels, data.task, data.out_channels, hidden_channels=4)
    trainer = fit(module, data, limit_train_batches=1)
    data.batch_size = 12
    (batch,) = data.val_dataloader()
    with torch.no_grad():
        prediction = module.eval()(batch.x_dict, batch.batch_dict, batch_size=batch.num_graphs)
    expected = module.valid_metrics.scores(prediction.double(), batch.y)
    for name, value in expected.items():
        assert trainer.callback_metrics[f"valid/{name}"].item() == pytest.approx(value.item(), abs=1e-5)
    assert trainer.callback_metrics["valid/task"].item() == pytest.approx(
        MEALoss(data.task).task_loss(prediction, batch.y).item(), abs=1e-5
    )


@pytest.mark.parametrize("module_class", [MEAModule, LateFusionGRUModule])
def test_training_learns(module_class, classes_source):
    data = SequenceDataModule(**classes_source)
    options = TINY if module_class is MEAModule else {"hidden_channels": 8}
    module = module_class(data.in_channels, data.task, data.out_channels, learning_rate=1e-2, **options)
    trainer = fit(module, data, epochs=60, check_val_every_n_epoch=60)  # of two updates each; validated once, at the end
    assert trainer.callback_metrics["train/task"] < 0.5 * math.log(2)  # half of what a coin reaches
    assert trainer.callback_metrics["valid/accuracy"] > 0.8


def test_a_loss_that_is_not_finite_names_the_samples(scores_source):
    data = SequenceDataModule(**scores_source, batch_size=4)
    with pytest.raises(
        NonFiniteLossError, match=r"train loss: expected a finite number, got loss nan, task nan; samples of the batch: \w+, \w+"
    ):
        fit(TaskModule(MeanOfAudio(scale=float("nan")), "regression", 1), data)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_so_does_one_in_evaluation(scores_source, stage):
    data = SequenceDataModule(**scores_source, batch_size=4)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(NonFiniteLossError, match=r"(valid|test) loss: expected a finite number, got loss nan, task nan; samples of"):
        getattr(trainer, stage)(TaskModule(MeanOfAudio(scale=float("nan")), "regression", 1), data, verbose=False)


@pytest.mark.parametrize("source", ["classes_source", "labels_source", "scores_source"])
def test_double_precision_is_that_of_weights_features_and_losses(source, request):
    """Also with the pass that measures the means of modalities, which makes its batches itself."""
    losses = {}
    for precision in ("32-true", "64-true"):
        torch.manual_seed(0)
        data = SequenceDataModule(**request.getfixturevalue(source))
        module = MEAModule(data.in_channels, data.task, data.out_channels, **TINY, agnostic={"center": True})
        trainer = fit(module, data, precision=precision)
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float64 if precision == "64-true" else torch.float32}
        losses[precision] = {name: value.item() for name, value in trainer.callback_metrics.items() if name.endswith("task")}
        predicted = trainer.predict(module, data)
        assert torch.isfinite(predicted[0]["prediction"]).all()
    assert losses["64-true"] == pytest.approx(losses["32-true"], rel=1e-5)
    assert losses["64-true"] != losses["32-true"]


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_of_16_bits_are_refused_with_the_choices(scores_source, precision):
    choices = "trainer.precision: expected one of 32-true, 64-true, bf16-mixed, 16-mixed, got"
    with pytest.raises(DataError, match=f"{choices} '{precision}'"):
        fit(TaskModule(MeanOfAudio(), "regression", 1), SequenceDataModule(**scores_source), precision=precision)


def test_weights_go_by_the_order_of_the_modalities():
    """Those of a model of the same modalities in another order fit it, and mean something else."""
    widths = {"audio": 4, "lips": 3}
    module, same, other = (LateFusionGRUModule(w, "regression", 1, hidden_channels=4) for w in (widths, widths, {"lips": 3, "audio": 4}))
    saved = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    message = "in_channels: expected the modalities in the order of the checkpoint, audio, lips, got lips, audio"
    for load in (same.on_load_checkpoint, lambda saved: check_same_options("a.ckpt", saved, same)):
        load(saved)
    for load in (other.on_load_checkpoint, lambda saved: check_same_options("a.ckpt", saved, other)):
        with pytest.raises(DataError, match=message):
            load(saved)
    torch.save(saved, "a.ckpt")
    Predictor.load("a.ckpt", module=same, statistics={})
    with pytest.raises(DataError, match=message):
        Predictor.load("a.ckpt", module=other, statistics={})


@pytest.mark.parametrize("module_class", [MEAModule, LateFusionGRUModule])
def test_a_module_comes_back_from_its_checkpoint_safely(module_class, tmp_path, classes_source):
    data = SequenceDataModule(**classes_source)
    options = (
        {**TINY, "exclusive": {"mu": 0.4}, "alpha": 0.3} if module_class is MEAModule else {"hidden_channels": 8, "modalities": ["lips"]}
    )
    module = module_class(data.in_channels, data.task, data.out_channels, learning_rate=0.005, **options)
    trainer = fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = module_class.load_from_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match="cannot be called on an instance"):  # whose weights would stay as they are
        again.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dict(again.hparams) == dict(module.hparams)
    assert again.learning_rate == 0.005
    batch = next(iter(data.val_dataloader()))
    outputs = [m.eval().predict_step(batch, 0)["prediction"] for m in (module, again)]
    assert torch.equal(*outputs)


class Trap:
    """What a foreign file may hold: it would run code when it is opened."""

    def __reduce__(self):
        return pytest.fail, ("code out of a checkpoint was run",)


def test_no_code_out_of_a_checkpoint_is_run(tmp_path):
    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "foreign.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        MEAModule.load_from_checkpoint(tmp_path / "foreign.ckpt")


def test_optimiser_and_schedule(scores_source):
    data = SequenceDataModule(**scores_source, batch_size=9)  # 4 steps an epoch
    plain = TaskModule(MeanOfAudio(), "regression", 1)
    assert type(plain.configure_optimizers()) is torch.optim.Adam
    assert plain.configure_optimizers().defaults["fused"], "hundreds of small tensors want one call on a CPU"
    module = TaskModule(MeanOfAudio(), "regression", 1, learning_rate=0.1, weight_decay=0.01, warmup=0.5, cosine_decay=True)
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = fit(module, data, epochs=2, callbacks=[Rates()])
    assert type(trainer.optimizers[0]) is torch.optim.AdamW
    assert trainer.optimizers[0].defaults["fused"]
    expected = [0.025, 0.05, 0.075, 0.1, *(0.05 * (1 + np.cos(np.pi * k / 4)) for k in range(4))]
    assert rates == pytest.approx(expected)


def test_schedule_needs_an_end(scores_source):
    module = TaskModule(MeanOfAudio(), "regression", 1, cosine_decay=True)
    with pytest.raises(ValueError, match=r"expected trainer.max_epochs or trainer.max_steps with them, got an endless run"):
        fit(module, SequenceDataModule(**scores_source), epochs=-1)


def test_schedule_without_parts_is_constant():
    assert {LearningRateSchedule(10, 0.0, False)(step) for step in range(11)} == {1.0}


@pytest.mark.parametrize("options", [{"learning_rate": 0.0}, {"weight_decay": -1.0}, {"warmup": 1.0}])
def test_options_outside_their_range(options):
    with pytest.raises(ValueError, match="learning_rate, weight_decay, warmup: expected > 0, >= 0 and in"):
        TaskModule(MeanOfAudio(), "regression", 1, **options)


def test_mea_module_takes_every_option_of_its_parts_and_no_other():
    import inspect

    from mea_graph.nn import MEA

    visible = inspect.signature(MEAModule).parameters
    for part in (MEA, MEALoss, TaskModule):
        for name, parameter in inspect.signature(part).parameters.items():
            if name in BY_FORM:
                assert visible[name].default is None  # as the form has it
            elif name != "network":
                assert visible[name].default == parameter.default or name == "task"
    with pytest.raises(TypeError, match="unknown option colour; options are those of MEA, MEALoss and TaskModule"):
        MEAModule({"a": 1, "b": 1}, "regression", 1, colour="red")


def test_a_checkpoint_of_the_model_before_its_parts_is_refused_with_the_reason():
    module = MEAModule({"audio": 3, "text": 2}, "regression", 1, channels=8, heads=2)
    weights = {name.replace("network.fusion.", "network.graph_fusion."): value for name, value in module.state_dict().items()}
    with pytest.raises(DataError, match=r"ckpt_path: old.ckpt was written before MEA was made of parts, .*train it again"):
        check_same_options("old.ckpt", {"state_dict": weights, "hyper_parameters": {"num_predictive_layers": 3}}, module)
    with pytest.raises(TypeError, match=r"unknown option head_norm \(head.norm now"):
        MEAModule({"audio": 3, "text": 2}, "regression", 1, head_norm=True)
    with pytest.raises(TypeError, match=r"unknown option learning_rat \(did you mean 'learning_rate'"):
        MEAModule({"audio": 3, "text": 2}, "regression", 1, learning_rat=1.0)


def test_the_published_form_is_the_papers_down_to_its_training():
    module = MEAModule({"audio": 3, "text": 2}, "regression", 1, form="published", exclusive={"mu": 0.5})
    assert (module.loss.beta, module.weight_decay, module.warmup, module.cosine_decay) == (0.03, 0.0, 0.0, False)
    assert {"num_layers": 3, "residual": "normalized", "pooling": "mean", "mu": 0.5}.items() <= module.hparams["exclusive"].items()
    again = MEAModule(**module.hparams)  # as a checkpoint holds them, whatever the defaults have become
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in module.named_parameters()}
    with pytest.raises(TypeError, match="fusion: expected options, which a checkpoint can hold, got a module"):
        MEAModule({"audio": 3, "text": 2}, "regression", 1, fusion=torch.nn.Identity())


@pytest.mark.parametrize("options", [{"batches": 3}, {"balanced": True}])
def test_means_of_modalities_are_of_each_training_sample_once_where_an_epoch_is_no_pass(classes_source, options):
    data = SequenceDataModule(**classes_source, batch_size=4, sampling=Sampling(**options))
    module = MEAModule(data.in_channels, data.task, data.out_channels, **TINY, agnostic={"center": True})
    fit(module, data)
    there = [int((data.dataset.lengths[m][data.parts["train"]] > 0).sum()) for m in data.in_channels]
    assert module.network.agnostic.centering.seen.tolist() == there


class Clock(nn.Module):
    """A network that reads times: every step's features are its time."""

    def __init__(self, timed=("text", "audio", "vision")) -> None:
        super().__init__()
        self.timed_modalities, self.linear, self.seen = timed, nn.Linear(1, 1), []

    def forward(self, x_dict, batch_dict, batch_size, time=None):
        self.seen.append((x_dict, batch_dict, time))
        return self.linear(x_dict["text"].new_zeros(batch_size, 1))


def timed_batch():
    """Of each step the first feature is its time."""
    events = AsynchronousEvents(num_samples=12)
    samples = [events[n] for n in range(12)]
    for sample in samples:
        for m in events.modalities:
            sample[m].x[:, 0] = sample[m].time
    del samples[0]["vision"].time  # PyG leaves the attribute out of the batch then
    return Batch.from_data_list(samples)


def test_times_reach_a_network_that_reads_them_and_stay_with_their_steps():
    batch = timed_batch()
    module = TaskModule(Clock(), "regression", 1, augmentation={"modality_dropout": 0.5})
    module.train().run(batch)
    x, sample, time = module.network.seen.pop()
    assert set(time) == {"text", "audio"}
    for m, seconds in time.items():
        assert torch.equal(seconds, x[m][:, 0])
        assert 0 < len(seconds) == len(sample[m]) < len(batch[m].time)
    module = TaskModule(Clock(), "regression", 1, augmentation={"time_mask": 0.5, "feature_noise": 0.1})
    module.train().run(batch)
    assert all(torch.equal(module.network.seen[-1][2][m], batch[m].time) for m in time)
    still = TaskModule(Clock(timed=()), "regression", 1)
    still.run(batch)
    assert still.network.seen.pop()[2] is None


def test_another_pace_beside_times_is_refused():
    with pytest.raises(ValueError, match=r"augmentation.time_stretch: expected 0 with a network that reads times in seconds, .*got 0.1"):
        TaskModule(Clock(), "regression", 1, augmentation={"time_stretch": 0.1})
    TaskModule(Clock(timed=()), "regression", 1, augmentation={"time_stretch": 0.1})
    with pytest.raises(ValueError, match="time_stretch: expected 0 with a network that reads times"):
        MEAModule({"a": 1, "b": 1}, "regression", 1, extractor={"positions": "seconds"}, augmentation={"time_stretch": 0.1})


def test_a_model_of_seconds_trains_by_its_options_and_predicts():
    data = SequenceDataModule(events={"num_samples": 24, "missing_rate": 0.2}, batch_size=8)
    options = {"extractor": {"positions": "seconds", "time_scale": 0.2}, "augmentation": {"modality_dropout": 0.3}, **TINY}
    module = MEAModule(data.in_channels, data.task, data.out_channels, **options)
    fit(module, data)
    again = MEAModule(**module.hparams)
    assert again.network.timed_modalities == tuple(data.in_channels)
    assert again.network.extractors["audio"].time_scale == 0.2
    again.load_state_dict(module.state_dict())
    batch = next(iter(data.val_dataloader()))
    outputs = [m.eval().predict_step(batch, 0)["prediction"] for m in (module, again)]
    assert torch.equal(*outputs)
    late = batch.clone()
    late["audio"].time = late["audio"].time + 1
    assert not torch.allclose(module.predict_step(late, 0)["prediction"], outputs[0])


def test_the_data_module_says_what_makes_a_data_set_of_pyg_samples():
    for source in ([HeteroData()], HeteroData(), np.zeros(3)):
        with pytest.raises(DataError, match=r"data.source: expected a path or a MultimodalDataset, got .*; MultimodalDataset.from_samples"):
            SequenceDataModule(source)


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_what_is_no_batch_of_samples_is_told(stage):
    """A data set in the place of a loader gave: 'HeteroData' has no attribute 'num_graphs'."""
    dataset = AsynchronousEvents(num_samples=8)
    module = MEAModule(dataset.channels, "regression", 1, **TINY)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(TypeError, match="batch: expected a batch of PyG samples, got HeteroData; SequenceDataModule"):
        getattr(trainer, stage)(module, dataset)
    bare = [HeteroData({m: {"x": torch.randn(3, width)} for m, width in dataset.channels.items()}, id=str(i)) for i in range(4)]
    if stage != "predict":
        with pytest.raises(DataError, match="y: the samples of a batch have no targets"):
            getattr(trainer, stage)(module, DataLoader(bare, batch_size=2))
