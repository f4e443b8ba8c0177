import numpy as np
import pytest
import torch
from torch import nn

from mea_graph.baselines import LateFusionGRU, LateFusionGRUModule, constant_prediction
from mea_graph.train import TaskMetrics


def sequences(lengths, width, generator):
    """One modality of a batch: all steps one after the other, and their sample numbers."""
    x = torch.randn(sum(lengths), width, generator=generator)
    return x, torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def test_a_sample_in_a_batch_is_predicted_as_alone():
    generator = torch.Generator().manual_seed(0)
    lengths = {"audio": [5, 0, 2, 9], "lips": [0, 3, 1, 4]}
    model = LateFusionGRU({"audio": 4, "lips": 3}, 2, hidden_channels=6)
    x, batch = {}, {}
    for name, width in (("audio", 4), ("lips", 3)):
        x[name], batch[name] = sequences(lengths[name], width, generator)
    together = model(x, batch, batch_size=4)
    for sample in range(4):
        own = {name: value[batch[name] == sample] for name, value in x.items()}
        alone = model(own, {name: torch.zeros(len(value), dtype=torch.long) for name, value in own.items()}, batch_size=1)
        torch.testing.assert_close(together[sample], alone[0])


def test_pooling_is_the_mean_of_the_gru_states():
    model = LateFusionGRU({"audio": 4}, 1, hidden_channels=3)
    model.head = nn.Identity()
    x = torch.randn(5, 4)
    states, _ = model.grus["audio"](x[None])
    torch.testing.assert_close(model({"audio": x}, {"audio": torch.zeros(5, dtype=torch.long)}, batch_size=1), states.mean(1))


def test_a_batch_in_which_a_modality_is_missing_everywhere():
    model = LateFusionGRU({"audio": 4, "lips": 3}, 2)
    x = {"audio": torch.randn(3, 4), "lips": torch.randn(0, 3)}
    batch = {"audio": torch.tensor([0, 0, 1]), "lips": torch.zeros(0, dtype=torch.long)}
    output = model(x, batch, batch_size=2)
    output.sum().backward()
    assert torch.isfinite(output).all()


def test_reset_parameters_draws_anew():
    model = LateFusionGRU({"audio": 4}, 1)
    before = [p.clone() for p in model.parameters()]
    model.reset_parameters()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_module_reads_only_the_modalities_named():
    module = LateFusionGRUModule({"audio": 4, "lips": 3}, "classification", 2, modalities=["lips"])
    lips = torch.randn(2, 3)
    where = {"audio": torch.tensor([0]), "lips": torch.tensor([0, 0])}
    outputs = [module({"audio": torch.full((1, 4), value), "lips": lips}, where, batch_size=1) for value in (0.0, 100.0)]
    assert torch.equal(*outputs)


def test_the_module_refuses_an_unknown_modality():
    with pytest.raises(ValueError, match="modalities: expected some of audio, lips, got text"):
        LateFusionGRUModule({"audio": 4, "lips": 3}, "regression", 1, modalities=["text"])


def test_constant_prediction_is_the_best_constant():
    y = torch.tensor([0.0, 1.0, 5.0])
    assert constant_prediction(y, "regression", 1).item() == pytest.approx(2.0)
    classes = torch.tensor([2, 1, 2, 0, 2])
    logits = constant_prediction(classes, "classification", 3)
    assert logits.argmax() == 2
    torch.testing.assert_close(logits.softmax(0), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64))
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    assert (constant_prediction(labels, "multilabel", 2) > 0).tolist() == [True, False]


def test_a_class_absent_from_training_does_not_spoil_the_constant():
    logits = constant_prediction(torch.tensor([1, 1, 0]), "classification", 3)
    scores = TaskMetrics("classification", 3).scores(logits.expand(4, -1), torch.tensor([1, 1, 2, 0]))
    assert scores["accuracy"] == 0.5
    assert np.isfinite([float(value) for value in scores.values()]).all()
