"""Numbers as numpy and searches give them: models take them, and checkpoints hold Python's own, which every command opens."""

from enum import Enum

import lightning as L
import numpy as np
import pytest
import torch

from mea_graph.baselines import EarlyFusionGRUModule, LateFusionGRUModule
from mea_graph.data import AsynchronousEvents
from mea_graph.nn import MEA, DecoupledGraphFusion, GraphFusionConv
from mea_graph.train import MEAModule, SequenceDataModule, TaskModule

WIDTHS = {"a": np.int64(3), "b": np.int64(5)}


class Way(Enum):
    MEAN = "mean"


class Own(TaskModule):
    def __init__(self, network, learning_rate):
        super().__init__(network, "regression", 1, learning_rate=learning_rate)
        self.save_hyperparameters(ignore="network")


@pytest.mark.parametrize("own", [False, True], ids=["MEAModule", "a class of the user's own"])
def test_a_checkpoint_of_numpy_options_is_opened_safely(own):
    """Training ended with a file that `weights_only=True` refused."""
    data = SequenceDataModule(AsynchronousEvents(num_samples=20), batch_size=8)
    options = {"channels": np.int64(8), "heads": np.int64(2), "exclusive": {"mu": np.float64(0.5), "pooling": Way.MEAN}}
    rate = np.float64(0.01)
    module = MEAModule(data.in_channels, "regression", np.int64(1), learning_rate=rate, **options)
    module = Own(module.network, rate) if own else module
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, data)
    trainer.save_checkpoint("x.ckpt")
    saved = torch.load("x.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["learning_rate"] == 0.01
    if not own:
        assert (saved["channels"], saved["exclusive"]["mu"], saved["exclusive"]["pooling"]) == (8, 0.5, "mean")


def test_layers_take_widths_of_numpy():
    """torch and PyG said "invalid index to scalar variable" and "input_size should be of type int"."""
    eight, two = np.int64(8), np.int64(2)
    x = torch.randn(3, 8)
    assert GraphFusionConv(eight, eight, heads=two)(x, torch.tensor([[0, 1], [1, 2]])).shape == (3, 16)
    assert DecoupledGraphFusion(eight).out_channels == 8
    parts = {"exclusive": {"mu": np.float32(0.5), "num_layers": two, "pooling": "gru"}, "discriminator": {"importance": np.bool_(True)}}
    model = MEA(WIDTHS, 1, channels=eight, heads=two, hidden_channels=eight, **parts)
    assert model({"a": torch.randn(2, 4, 3), "b": torch.randn(2, 6, 5)}).prediction.shape == (2, 1)


def test_windows_self_loops_extractors_and_baselines_take_numbers_of_numpy():
    model = MEA(
        WIDTHS,
        1,
        channels=8,
        heads=2,
        hidden_channels=8,
        window={"steps": np.int64(2), "causal": np.bool_(True)},
        fusion={"self_loops": np.bool_(True)},
        extractor={"kernel_size": {"a": np.int64(3), "b": np.int32(5)}, "stride": np.int64(1), "dropout": np.float32(0.25)},
    )
    assert (model.window.steps, model.self_loops, model.extractors["b"].dropout.p) == (2, True, 0.25)
    assert MEA(WIDTHS, 1, channels=8, heads=2, window={"seconds": np.float64(0.5)}).window.seconds == 0.5
    options = {"hidden_channels": np.int64(8), "stride": np.int64(2), "dropout": np.float64(0.25)}
    for kind in (LateFusionGRUModule, EarlyFusionGRUModule):
        module = kind(WIDTHS, "regression", np.int64(1), **options)
        assert (module.hparams["hidden_channels"], module.hparams["dropout"]) == (8, 0.25)
        assert type(module.hparams["hidden_channels"]) is int


@pytest.mark.parametrize("kind", [MEAModule, LateFusionGRUModule, None])
def test_arrays_are_weights_and_names_of_classes(kind):
    """numpy said "the truth value of an array with more than one element is ambiguous"; sklearn computes weights as an array."""
    given = {"class_weights": np.array([1.0, 4.0, 0.5]), "label_names": np.array(["a", "b", "c"])}
    if kind is None:
        module = TaskModule(torch.nn.Linear(3, 3), "multilabel", 3, **given)
    else:
        module = kind(WIDTHS, "multilabel", 3, **given)
        assert (module.hparams["class_weights"], module.hparams["label_names"]) == ([1.0, 4.0, 0.5], ["a", "b", "c"])
    module.setup("fit")
    assert module.loss.class_weights.tolist() == [1.0, 4.0, 0.5]
    assert module.label_names == module.test_metrics.label_names == ["a", "b", "c"]


WRONG = [np.ones(2), np.array([1.0, np.nan, 1.0]), np.zeros(3), np.ones((3, 1)), torch.ones(3), [True, 1, 2], "even"]


@pytest.mark.parametrize("weights", WRONG)
def test_weights_that_do_not_fit_are_refused_plainly(weights):
    with pytest.raises(ValueError, match=r"class_weights: expected 'balanced' or a list of 3 finite numbers >= 0, .* got "):
        TaskModule(torch.nn.Linear(3, 3), "classification", 3, class_weights=weights)


def test_what_is_no_number_is_still_refused():
    with pytest.raises(TypeError, match="channels: expected int, got True"):
        MEAModule(WIDTHS, "regression", 1, channels=np.bool_(True))
    with pytest.raises(TypeError, match=r"exclusive.num_layers: expected int, got 2\.0"):
        MEA(WIDTHS, 1, exclusive={"num_layers": np.float32(2)})
