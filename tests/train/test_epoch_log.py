"""The log of a run: one row for what an epoch of training came to, whenever checkpoints are written."""

import csv
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from mea_graph.train.epoch_log import EpochLog, LogBeforeCheckpoint

BATCHES = 3


class Counts(L.LightningModule):
    """Its loss in epoch e and batch b is 10 e + b, so that the mean of an epoch says which epoch it is of."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.log("train/loss", 10.0 * self.current_epoch + batch_idx, on_step=False, on_epoch=True)
        return self.weight.square()

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", 100.0 + self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(*callbacks, **options):
    data = DataLoader(TensorDataset(torch.zeros(BATCHES)))
    trainer = L.Trainer(
        logger=EpochLog("run", name="logs"),
        callbacks=[LogBeforeCheckpoint(), *callbacks],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, "log_every_n_steps": 1, **options},
    )
    trainer.fit(Counts(), data, data)
    with Path("run/logs/version_0/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def rows_of(rows, name):
    return [(int(row["epoch"]), int(row["step"]), float(row[name])) for row in rows if row[name]]


@pytest.mark.parametrize(
    ("every", "options"),
    [
        ({"save_last": True}, {}),
        ({"every_n_train_steps": 1, "save_top_k": -1}, {}),
        ({"every_n_train_steps": 2, "save_top_k": -1}, {}),
        ({"save_on_train_epoch_end": True, "save_top_k": -1}, {"check_val_every_n_epoch": 2}),
        ({"save_top_k": -1, "monitor": "valid/loss"}, {"val_check_interval": 1}),
    ],
    ids=["last", "every step", "every second step", "every epoch", "with every validation"],
)
def test_an_epoch_has_one_row_with_its_own_numbers(every, options):
    """A checkpoint in the middle of an epoch knows those of the epoch before."""
    rows = fit(ModelCheckpoint("run/checkpoints", **every), **options)
    assert rows_of(rows, "train/loss") == [(epoch, BATCHES * (epoch + 1) - 1, 10.0 * epoch + 1) for epoch in range(3)]
    assert all(row["valid/loss"] == "" for row in rows if row["train/loss"])
    evaluated = [epoch for epoch, _, value in rows_of(rows, "valid/loss") if value == 100 + epoch]
    assert len(evaluated) == len(rows_of(rows, "valid/loss")) > 0


def test_the_row_of_an_epoch_is_on_disk_before_its_checkpoint():
    """A process that is killed in between goes on with the next epoch."""
    seen = []

    class Reads(ModelCheckpoint):
        def _save_checkpoint(self, trainer, filepath):
            super()._save_checkpoint(trainer, filepath)
            with Path("run/logs/version_0/metrics.csv").open() as file:
                seen.append(rows_of(list(csv.DictReader(file)), "train/loss"))

    fit(Reads("run/checkpoints", save_top_k=-1))
    assert [[epoch for epoch, *_ in rows] for rows in seen] == [[0], [0, 1], [0, 1, 2]]


def test_rows_of_other_numbers_are_kept():
    log = EpochLog("run", name="logs")
    log.log_metrics({"epoch": 0, "train/loss": 1.0}, 2)
    log.log_metrics({"epoch": 0, "train/loss": 1.0}, 2)
    log.log_metrics({"epoch": 0, "valid/loss": 2.0}, 2)
    log.log_metrics({"epoch": 0, "valid/loss": 3.0}, 2)  # a second validation in the epoch
    log.log_metrics({"epoch": 1, "train/loss": 4.0}, 5)
    log.save()
    with Path("run/logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows_of(rows, "train/loss") == [(0, 2, 1.0), (1, 5, 4.0)]
