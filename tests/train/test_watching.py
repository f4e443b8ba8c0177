"""What early stopping and the best checkpoint go by."""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from mea_graph.studies.run import MODULES
from mea_graph.train import SequenceDataModule
from mea_graph.train.monitors import logged_names, mode_of

from .commands import data_of, error_of, run

SMALL = ["--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0"]
GRU = ["--model", "LateFusionGRUModule", "--model.hidden_channels", "4"]

# A constant for as many epochs as `constant` says, so that the correlation is not defined; then it sees the input.
LATE = """
import torch
from mea_graph.train import TaskModule

class Late(torch.nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.linear, self.constant, self.epoch = torch.nn.Linear(4, 1), constant, 0

    def forward(self, x_dict, batch_dict, batch_size):
        mean = torch.zeros(batch_size, 4).index_add(0, batch_dict["audio"], x_dict["audio"])
        return self.linear(mean if self.epoch not in self.constant else mean * 0)

class LateModule(TaskModule):
    def __init__(self, task, out_channels, constant: list[int], learning_rate: float = 1e-3):
        super().__init__(Late(constant), task, out_channels, learning_rate=learning_rate)
        self.save_hyperparameters()

    def on_train_epoch_start(self):
        self.network.epoch = self.current_epoch
"""


@pytest.fixture
def late(scores_source):
    Path("late.py").write_text(LATE)
    watch = ["--early_stopping.monitor", "valid/corr", "--early_stopping.patience", 2]
    return ["fit", *data_of(scores_source), "--model", "late.LateModule", *SMALL, *watch]


def epoch_of(name):
    return torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True)["epoch"]


class TestAMetricThatIsNotDefined:
    def test_is_waited_for(self, late, capsys):
        run(*late, "--model.constant", "[0, 1, 2]", "--trainer.max_epochs", 5, "--run_dir", "run")
        assert epoch_of("last") == 4
        assert epoch_of("best") >= 3
        assert "best checkpoint: run/checkpoints/best.ckpt" in capsys.readouterr().out

    def test_ends_training_by_patience_once_there_was_a_number(self, late, capsys):
        run(*late, "--model.constant", "[1, 2, 3, 4, 5]", "--trainer.max_epochs", 6, "--run_dir", "run")
        assert epoch_of("last") == 2
        assert epoch_of("best") == 0
        assert "stopped early: Monitored metric valid/corr did not improve in the last 2 records." in capsys.readouterr().out

    def test_throughout_is_said(self, late, capsys):
        run(*late, "--model.constant", "[0, 1, 2]", "--trainer.max_epochs", 3, "--run_dir", "run")
        out = capsys.readouterr().out
        assert out.count("no best checkpoint: valid/corr was not a number in any epoch") == 1
        assert "best checkpoint: run" not in out
        assert epoch_of("last") == 2
        run("test", "--config", "run/config.yaml", expect=2)
        assert "there is no checkpoint run/checkpoints/best.ckpt; there is --ckpt_path last" in capsys.readouterr().err
        run("test", "--config", "run/config.yaml", "--ckpt_path", "last")

    def test_ends_training_at_once_where_that_is_asked_for_and_says_so(self, late, capsys):
        ask = ["--early_stopping.check_finite", "true"]
        run(*late, *ask, "--model.constant", "[0]", "--trainer.max_epochs", 3, "--run_dir", "run")
        assert epoch_of("last") == 0
        assert "stopped early: Monitored metric valid/corr = nan is not finite" in capsys.readouterr().out


def test_by_default_the_task_alone_is_watched(classes_source):
    """Not the whole loss, whose other terms may fall for ever."""
    words = [*data_of(classes_source), *GRU, *SMALL]
    run("fit", *words, "--trainer.max_epochs", 1, "--run_dir", "run")
    states = torch.load("run/checkpoints/best.ckpt", weights_only=True)["callbacks"]
    for kind in ("EarlyStopping", "ModelCheckpoint"):
        assert any(kind in key and "'monitor': 'valid/task', 'mode': 'min'" in key for key in states)
        assert not any("valid/loss" in key for key in states)


class TestNames:
    def fit(self, source, capsys, *words):
        error = error_of(capsys, "fit", *data_of(source), *SMALL, *GRU, "--run_dir", "run", "--trainer.max_epochs", 1, *words)
        assert not Path("run").exists()
        return error

    def test_an_unknown_one_is_refused_before_the_first_step(self, classes_source, capsys):
        names = "train/loss, train/task, valid/accuracy, valid/auc, valid/f1_macro, valid/f1_weighted, valid/loss, valid/task"
        error = self.fit(classes_source, capsys, "--early_stopping.monitor", "valid/acc")
        assert f"early_stopping.monitor: expected one of {names}, got 'valid/acc' (did you mean 'valid/accuracy'?)" in error
        checkpoint = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
        error = self.fit(classes_source, capsys, checkpoint, "--trainer.callbacks.monitor", "valid/acc")
        assert f"monitor: expected one of {names}, got 'valid/acc'" in error
        error = self.fit(classes_source, capsys, checkpoint, "--trainer.callbacks.monitor", "valid/accuracy")
        assert "ModelCheckpoint.mode: expected max, since valid/accuracy is best where it is greatest; got 'min'" in error
        error = self.fit(classes_source, capsys, "--trainer.limit_val_batches", 0)
        assert "expected one of train/loss, train/task, got 'valid/task', since trainer.limit_val_batches=0 leaves no validation" in error

    def test_those_of_every_kind_of_module_are_those_that_are_logged(self, labels_source):
        data = SequenceDataModule(**labels_source)
        for kind, module_class in MODULES.items():
            options = {"channels": 8, "heads": 2} if kind == "MEAModule" else {}
            module = module_class(data.in_channels, data.task, data.out_channels, **options)
            names = logged_names(module, data)
            assert module.training
            quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
            trainer = L.Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **quiet)
            trainer.fit(module, data)
            assert set(names) == set(trainer.callback_metrics), kind

    def test_a_module_that_logs_by_itself_may_be_watched_by_any_name(self, scores_source, capsys):
        Path("logging_late.py").write_text(LATE + "\n    def on_train_epoch_end(self):\n        self.log('mine', 1.0)\n")
        words = ["fit", *data_of(scores_source), *SMALL]
        words += ["--model", "logging_late.LateModule"]
        words += ["--model.constant", "[]", "--trainer.max_epochs", 1]
        error = error_of(capsys, *words, "--early_stopping.monitor", "mine", "--run_dir", "run")
        assert error == "mea-graph: error: early_stopping.mode: expected min or max, since nothing is known of 'mine'; got none\n"
        words += ["--early_stopping.mode", "max"]
        run(*words, "--early_stopping.monitor", "mine", "--run_dir", "run")
        assert epoch_of("best") == 0
        error = error_of(capsys, *words, "--early_stopping.monitor", "other", "--run_dir", "again")
        assert "early_stopping.monitor: expected one of mine, train/loss" in error


class TestTheWayRound:
    """A metric of the package is never watched the wrong way round."""

    def test_follows_from_the_name(self, classes_source):
        words = [*data_of(classes_source), *GRU, *SMALL]
        run("fit", *words, "--early_stopping.monitor", "valid/accuracy", "--trainer.max_epochs", 2, "--run_dir", "run")
        state = torch.load("run/checkpoints/best.ckpt", weights_only=True)["callbacks"]
        watching = [key for key in state if "'monitor': 'valid/accuracy'" in key]
        assert len(watching) == 2
        assert all("'mode': 'max'" in key for key in watching)
        assert yaml.safe_load(Path("run/config.yaml").read_text())["early_stopping"]["mode"] == "max"

    @pytest.mark.parametrize(("monitor", "mode", "right"), [("valid/accuracy", "min", "max"), ("valid/task", "max", "min")])
    def test_that_is_wrong_is_refused(self, monitor, mode, right, classes_source, capsys):
        words = ["--data.source", classes_source["source"], "--early_stopping.monitor", monitor, "--early_stopping.mode", mode]
        error = error_of(capsys, "fit", *words, *GRU, "--run_dir", "run")
        assert f"early_stopping.mode: expected {right}, since {monitor} is best where it is" in error
        assert not Path("run").exists()

    def test_that_is_wrong_is_refused_in_a_study(self, capsys):
        Path("wrong.yaml").write_text("early_stopping: {monitor: valid/mae, mode: max}\ndata: {events: {num_samples: 40}}\n")
        run("study", "compare", "--config", "events", "--config", "wrong.yaml", expect=2)
        assert "early_stopping.mode: expected min, since valid/mae is best where it is least; got 'max'" in capsys.readouterr().err

    def test_is_known_of_all_that_is_logged(self, classes_source, scores_source, labels_source):
        higher = set()
        for source, more in ((classes_source, {}), (scores_source, {}), (scores_source, {"sentiment": True}), (labels_source, {})):
            data = SequenceDataModule(**source)
            for kind, module_class in MODULES.items():
                small = {"channels": 8, "heads": 2} if kind == "MEAModule" else {}
                names = logged_names(module_class(data.in_channels, data.task, data.out_channels, **small, **more), data)
                assert all(mode_of(name) is not None for name in names), names
                higher |= {name for name in names if mode_of(name) == "max"}
        for name in higher:
            assert any(word in name for word in ("acc", "f1", "auc", "corr", "r2")), name
