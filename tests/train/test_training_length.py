"""Training by updates: as many as asked for, whatever the number of samples, and resumed bit for bit."""

import lightning as L
import pytest
import torch

from mea_graph.baselines import LateFusionGRUModule
from mea_graph.data import DataError
from mea_graph.train import Sampling, SequenceDataModule, TrainingLength
from mea_graph.train.early_stopping import EarlyStopping


class Seen(L.Callback):
    """What happened by update: learning rates, samples, and after how many updates there was a validation."""

    def __init__(self, stop_at=None):
        self.rates, self.samples, self.validations, self.stop_at = [], [], [], stop_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.samples.append(sorted(batch.id))

    def on_validation_end(self, trainer, pl_module):
        self.validations.append(trainer.global_step)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.stop_at:
            raise InterruptedError


def train(source, length, batch_size, folder, stop_at=None, resume=None, accumulate=1, watched=()):
    L.seed_everything(0, verbose=False)
    data = SequenceDataModule(**source, batch_size=batch_size, sampling=Sampling(batches=length.batches_per_epoch(accumulate)))
    options = {"learning_rate": 0.1, "warmup": 0.2, "cosine_decay": True, "dropout": 0.5, "augmentation": {"modality_dropout": 0.3}}
    module = LateFusionGRUModule(data.in_channels, data.task, data.out_channels, hidden_channels=3, **options)
    seen = Seen(stop_at)
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = L.Trainer(
        max_epochs=length.epochs,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        callbacks=[seen, checkpoint, *watched],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except InterruptedError:
        assert stop_at is not None
    return module, trainer, seen


# a pass has 2 updates, or 36: an epoch of 8 is four passes, or less than a quarter of one
@pytest.mark.parametrize("batch_size", [18, 1])
def test_a_resumed_training_equals_one_never_interrupted(classes_source, tmp_path, batch_size):
    length = TrainingLength(24, check_every=8)
    module, trainer, seen = train(classes_source, length, batch_size, tmp_path / "whole")
    assert trainer.global_step == 24
    assert seen.validations == [8, 16, 24]
    assert max(seen.rates) == pytest.approx(0.1)
    assert seen.rates[0] == pytest.approx(0.1 / 5)  # 0.2 of 24 updates warm up
    assert 0 < seen.rates[-1] < 0.001
    _, _, before = train(classes_source, length, batch_size, tmp_path / "parts", stop_at=2)
    resumed, _, after = train(classes_source, length, batch_size, tmp_path / "parts", resume=tmp_path / "parts/last.ckpt")
    assert before.samples + after.samples == seen.samples
    assert before.rates + after.rates == seen.rates
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_updates_are_counted_where_each_takes_several_batches(classes_source, tmp_path):
    _, trainer, seen = train(classes_source, TrainingLength(12, check_every=4), 6, tmp_path, accumulate=2)
    assert trainer.global_step == 12
    assert seen.validations == [4, 8, 12]
    assert len(seen.samples) == 24


def test_patience_is_counted_in_updates(classes_source, tmp_path):
    length = TrainingLength(60, check_every=6, patience=15)
    stopping = EarlyStopping("valid/accuracy", mode="max", min_delta=2.0, patience=length.patience_epochs)  # nothing is an improvement
    _, trainer, _ = train(classes_source, length, 18, tmp_path, watched=[stopping])
    assert trainer.global_step == 6 + 18  # the first value, and then 15 updates in whole epochs


def test_without_more_said_there_are_twenty_validations_and_no_early_end():
    length = TrainingLength(2000)
    assert (length.updates_per_epoch, length.epochs, length.patience_epochs, length.batches_per_epoch(3)) == (100, 20, 20, 300)
    assert (TrainingLength(7).updates_per_epoch, TrainingLength(7).epochs) == (1, 7)
    rounded = TrainingLength(2001)
    assert rounded.updates_per_epoch * rounded.epochs >= 2001


@pytest.mark.parametrize("name", ["updates", "check_every", "patience"])
def test_fewer_than_one_are_refused(name):
    with pytest.raises(DataError, match=f"{name}: expected a number of updates >= 1, got 0"):
        TrainingLength(**{"updates": 10, name: 0})
