"""A run whose folder is replaced while it trains writes nothing into what stands there instead, whatever it was about to write."""

import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from mea_graph.data import DataError
from mea_graph.train.epoch_log import EpochLog
from mea_graph.train.own_folder import OwnFolder
from mea_graph.train.run_folder import RunFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing claims a folder there")
LOG = Path("run/logs/version_0/metrics.csv")


class Model(L.LightningModule):
    def __init__(self, monitors):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.monitors = monitors

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().sum()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        if self.monitors:  # as Lightning's monitors do: the logger keeps such numbers until it saves its next ones
            self.logger.log_metrics({"rate": 0.1}, self.global_step)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("valid/loss", self.layer(batch).square().sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Replace(L.Callback):
    """At a moment of the second epoch moves the folder away and puts another one in its place."""

    def __init__(self, when):
        self.done = False
        setattr(self, when, self.replace)

    def replace(self, trainer, *_):
        if trainer.current_epoch == 1 and not self.done:
            self.done = True
            Path("run").rename("moved")
            LOG.parent.mkdir(parents=True)
            LOG.touch()


@pytest.mark.parametrize(
    ("when", "monitors", "checkpoints", "options"),
    [
        ("on_validation_epoch_start", False, {}, {}),
        ("on_train_epoch_start", False, {}, {"limit_val_batches": 0}),
        ("on_train_batch_start", False, {"every_n_train_steps": 1, "save_top_k": -1}, {}),
        ("on_train_batch_end", False, {"save_top_k": -1, "monitor": "valid/loss"}, {"val_check_interval": 1}),
        ("on_train_batch_end", True, {}, {}),
    ],
    ids=["numbers of a validation", "numbers of an epoch", "a checkpoint", "a checkpoint after a validation", "what waits"],
)
def test_nothing_is_written_into_another_folder(when, monitors, checkpoints, options):
    folder = RunFolder("run")
    assert folder.claim()
    data = DataLoader(torch.ones(3, 3))
    trainer = L.Trainer(
        logger=EpochLog("run", name="logs"),
        callbacks=[OwnFolder(folder), Replace(when), *([ModelCheckpoint("run/checkpoints", **checkpoints)] if checkpoints else [])],
        enable_checkpointing=bool(checkpoints),
        **{"max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "accelerator": "cpu", **options},
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(DataError, match="run_dir: run was moved, removed or replaced"):
        trainer.fit(Model(monitors), data, data)
    folder.release()
    assert LOG.read_text() == ""
    assert [path for path in Path("run").rglob("*") if path.is_file()] == [LOG]
    assert trainer.current_epoch == 1
    assert "train/loss" in Path("moved/logs/version_0/metrics.csv").read_text()  # of the first epoch
