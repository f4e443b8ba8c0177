"""Classes of very different sizes."""

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mea_graph.baselines import LateFusionGRUModule
from mea_graph.data import DataError
from mea_graph.nn import MEALoss
from mea_graph.train import MEAModule, Sampling, SequenceDataModule
from mea_graph.train.class_balance import balanced_weights, imbalance_note
from mea_graph.train.task_module import prediction_of

TINY = {"channels": 8, "heads": 2, "hidden_channels": 8}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def unequal_source(path, labels=False):
    """Six of 36 training samples have the rare class, three of them the rare label."""
    y = np.array(([0] * 5 + [1]) * 10) if not labels else np.stack([np.arange(60) % 2, np.arange(60) % 12 == 0], 1).astype(np.float32)
    rng = np.random.default_rng(0)
    split = np.array(["train"] * 36 + ["valid"] * 12 + ["test"] * 12)
    np.savez(path, audio=rng.normal(size=(60, 5, 4)), lips=rng.normal(size=(60, 3, 3)), label=y, split=split)
    return {"source": str(path), "reader": {"split": "split"}}


def fit(module, data, epochs=1, **options):
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=0, **{**QUIET, **options})
    trainer.fit(module, data)
    return trainer


class TestTheLoss:
    def test_is_the_mean_over_samples_of_weighted_cross_entropies(self):
        logits, target, weights = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0]), torch.tensor([0.5, 1.0, 4.0])
        loss = MEALoss("classification")
        loss.class_weights = weights
        each = -logits.log_softmax(1)[torch.arange(5), target] * weights[target]
        torch.testing.assert_close(loss.task_loss(logits, target), each.mean())
        parts = (2 * loss.task_loss(logits[:2], target[:2]) + 3 * loss.task_loss(logits[2:], target[2:])) / 5
        torch.testing.assert_close(parts, each.mean())

    def test_smoothes_labels_as_well(self):
        logits, target, weights = torch.randn(4, 3), torch.tensor([0, 1, 2, 2]), torch.tensor([0.5, 1.0, 4.0])
        loss = MEALoss("classification", label_smoothing=0.3)
        loss.class_weights = weights
        share = 0.7 * F.one_hot(target, 3) + 0.1
        torch.testing.assert_close(loss.task_loss(logits, target), -(share * weights * logits.log_softmax(1)).sum(1).mean())

    def test_of_labels_weighs_samples_that_have_them(self):
        logits, target, weights = (
            torch.randn(4, 2),
            torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
            torch.tensor([3.0, 0.5]),
        )
        loss = MEALoss("multilabel")
        loss.class_weights = weights
        each = torch.where(target == 1, -F.logsigmoid(logits) * weights, -F.logsigmoid(-logits))
        torch.testing.assert_close(loss.task_loss(logits, target), each.mean())


def test_balanced_weights_give_every_class_the_same_part_of_the_loss():
    y = torch.tensor([0] * 30 + [1] * 5 + [3] * 10)
    weights = balanced_weights(y, "classification", 4)
    parts = [float(weights[c] * (y == c).sum()) for c in (0, 1, 3)]
    assert parts == pytest.approx([15.0] * 3)
    assert weights[2] == 1
    labels = torch.stack([torch.arange(20) < 4, torch.zeros(20), torch.ones(20)], 1).float()
    assert balanced_weights(labels, "multilabel", 3).tolist() == [4.0, 1.0, 1.0]


@pytest.mark.parametrize("module_class", [MEAModule, LateFusionGRUModule])
@pytest.mark.parametrize("labels", [False, True])
def test_modules_train_and_validate_with_weights_of_the_training_samples(tmp_path, module_class, labels):
    data = SequenceDataModule(**unequal_source(tmp_path / "unequal.npz", labels), batch_size=5)
    options = TINY if module_class is MEAModule else {"hidden_channels": 4}
    module = module_class(data.in_channels, data.task, data.out_channels, class_weights="balanced", **options)
    trainer = fit(module, data)
    expected = balanced_weights(data.targets("train"), data.task, 2)
    assert expected.tolist() == pytest.approx([1.0, 11.0] if labels else [0.6, 3.0])
    assert torch.equal(module.loss.class_weights, expected)
    data.batch_size = 12
    (batch,) = data.val_dataloader()
    with torch.no_grad():
        prediction = prediction_of(module.eval()(batch.x_dict, batch.batch_dict, batch_size=12))
    loss = MEALoss(data.task)
    unweighted = loss.task_loss(prediction, batch.y).item()
    loss.class_weights = expected
    assert trainer.callback_metrics["valid/task"].item() == pytest.approx(loss.task_loss(prediction, batch.y).item(), rel=1e-5)
    assert trainer.callback_metrics["valid/task"].item() != pytest.approx(unweighted, rel=1e-2)


def test_weights_change_what_is_learnt(tmp_path):
    data = SequenceDataModule(**unequal_source(tmp_path / "unequal.npz"))
    share = {}
    for weights in (None, "balanced"):
        L.seed_everything(0, verbose=False)
        options = {"hidden_channels": 2, "dropout": 0.5, "learning_rate": 0.02}
        module = LateFusionGRUModule(data.in_channels, data.task, data.out_channels, class_weights=weights, **options)
        trainer = fit(module, data, epochs=20)
        predicted = torch.cat([batch["prediction"] for batch in trainer.predict(module, data)])
        share[weights] = predicted.softmax(1)[:, 1].mean()
    assert share[None] < 0.35 < share["balanced"]


def test_a_checkpoint_keeps_them_for_other_data(tmp_path, classes_source):
    data = SequenceDataModule(**unequal_source(tmp_path / "unequal.npz"))
    module = MEAModule(data.in_channels, data.task, data.out_channels, class_weights="balanced", **TINY)
    fit(module, data).save_checkpoint(tmp_path / "a.ckpt")
    again = MEAModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(again.loss.class_weights, module.loss.class_weights)
    fresh = MEAModule(data.in_channels, data.task, data.out_channels, class_weights="balanced", **TINY)
    L.Trainer(accelerator="cpu", **QUIET).test(
        fresh, SequenceDataModule(**classes_source), ckpt_path=tmp_path / "a.ckpt", verbose=False, weights_only=True
    )
    assert fresh.loss.class_weights.tolist() == pytest.approx([0.6, 3.0])


def test_numbers_are_taken_as_they_are(classes_source):
    data = SequenceDataModule(**classes_source)
    module = MEAModule(data.in_channels, data.task, data.out_channels, class_weights=[1, 2.5], **TINY)
    fit(module, data)
    assert module.loss.class_weights.tolist() == [1.0, 2.5]


def test_balanced_without_targets_to_count_is_refused(classes_source):
    data = SequenceDataModule(**classes_source)
    module = MEAModule(data.in_channels, data.task, data.out_channels, class_weights="balanced", **TINY)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    with pytest.raises(DataError, match="class_weights: expected a SequenceDataModule, whose training targets 'balanced' counts"):
        trainer.fit(module, data.train_dataloader())


def test_evening_out_twice_is_refused(classes_source):
    data = SequenceDataModule(**classes_source, sampling=Sampling(balanced=True))
    module = LateFusionGRUModule(data.in_channels, data.task, data.out_channels, class_weights="balanced")
    with pytest.raises(DataError, match=r"class_weights: expected 'balanced' here or data.sampling.balanced, got both"):
        fit(module, data)


@pytest.mark.parametrize(
    ("task", "weights", "message"),
    [
        ("regression", "balanced", "class_weights: expected none for regression, got 'balanced'"),
        (
            "classification",
            "equal",
            "a list of 2 finite numbers >= 0, one a class or label, some above 0, got 'equal'",
        ),
        ("classification", [1.0], r"expected 'balanced' or a list of 2 finite numbers .* got \[1.0\]"),
        ("multilabel", [1.0, -1.0], r"got \[1.0, -1.0\]"),
        ("classification", [1.0, float("nan")], "got .*nan"),
        ("classification", [0, 0], r"got \[0, 0\]"),
        ("classification", [1.0, "2"], "got .*'2'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(task, weights, message):
    with pytest.raises(ValueError, match=message):
        MEAModule({"a": 1, "b": 1}, task, 1 if task == "regression" else 2, class_weights=weights, **TINY)


class TestTheNote:
    def test_names_the_largest_and_the_smallest_class(self):
        y = torch.tensor([0] * 50 + [1] * 9 + [2] * 30)
        note = imbalance_note(y, "classification", 3, ["rest", "fall", "walk"])
        assert note.startswith("classes are unequal: 50 training samples of rest, 9 of fall; ")
        assert imbalance_note(y, "classification", 3).startswith("classes are unequal: 50 training samples of 0, 9 of 1; ")
        assert imbalance_note(torch.tensor([0] * 49 + [1] * 10), "classification", 2) is None
        assert "0 of 2;" in imbalance_note(torch.tensor([0, 1]), "classification", 3)

    def test_names_the_label_that_says_least(self):
        y = torch.zeros(20, 3)
        y[:10, 0], y[:4, 1], y[1:, 2] = 1, 1, 1
        assert imbalance_note(y, "multilabel", 3, ["a", "b", "c"]).startswith("labels are unequal: 19 of 20 training samples have c; ")
        assert imbalance_note(y[:, :2], "multilabel", 2) is None

    def test_says_nothing_of_values(self):
        assert imbalance_note(torch.tensor([0.0] * 50 + [1.0]), "regression", 1) is None
