"""What `mea-graph` says and does about how long to train, unequal classes, and baselines."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mea_graph.data import DataError
from mea_graph.studies.recipe import read_recipe

from .commands import SMALL_GRU, data_of, run


def words(source):
    return [*data_of(source), *SMALL_GRU]


def checkpoint(folder):
    return torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)


class TestTraining:
    def test_counts_updates_and_resumes_bit_for_bit(self, classes_source):
        Path("length.yaml").write_text("training: {updates: 12, check_every: 4, patience: 8}\nmodel: {init_args: {cosine_decay: true}}\n")
        fit = ["fit", *words(classes_source), "--config", "length.yaml", "--data.batch_size", 18]  # a pass has 2 updates
        run(*fit, "--run_dir", "whole")
        assert (checkpoint("whole")["global_step"], checkpoint("whole")["epoch"]) == (12, 2)
        Path("halt.py").write_text(
            "import lightning as L\n"
            "class End(L.Callback):\n"
            "    def on_train_epoch_start(self, trainer, module):\n"
            "        trainer.should_stop = trainer.current_epoch == 1\n"
        )
        config = yaml.safe_load(Path("whole/config.yaml").read_text())
        assert config["training"] == {"updates": 12, "check_every": 4, "patience": 8}
        assert config["trainer"]["max_epochs"] is None
        run("fit", "--config", "whole/config.yaml", "--run_dir", "cut", "--trainer.callbacks+=halt.End")
        assert checkpoint("cut")["global_step"] < 12
        run("fit", "--config", "whole/config.yaml", "--run_dir", "cut", "--ckpt_path", "last")
        assert checkpoint("cut")["global_step"] == 12
        assert all(torch.equal(a, b) for a, b in zip(*(checkpoint(f)["state_dict"].values() for f in ("whole", "cut")), strict=True))

    def test_waits_by_updates(self, classes_source, capsys):
        never = ["--model.learning_rate", 1e-12, "--early_stopping.min_delta", 1]
        length = ["--training.updates", 40, "--training.check_every", 4, "--training.patience", 10]
        run("fit", *words(classes_source), *never, *length, "--run_dir", "run")
        assert checkpoint("run")["global_step"] == 4 + 12
        assert "stopped early: Monitored metric valid/task did not improve in the last 3 records." in capsys.readouterr().out

    @pytest.mark.parametrize("epochs", [[], ["--trainer.max_epochs=-1"]])
    def test_lasts_as_many_steps_as_the_trainer_is_told(self, classes_source, epochs):
        """Alone, `max_steps` above 2,000 ended after 2,000 updates without a word."""
        run("fit", *words(classes_source), "--trainer.max_steps", 21, *epochs, "--data.batch_size", 18, "--run_dir", "run")
        assert checkpoint("run")["global_step"] == 21
        config = yaml.safe_load(Path("run/config.yaml").read_text())
        assert config["training"]["updates"] == 21
        run("fit", "--config", "run/config.yaml", "--run_dir", "again")  # no limit of epochs does not contradict the updates
        assert checkpoint("again")["global_step"] == 21

    def test_may_end_before_the_first_validation(self, classes_source, capsys):
        """It ended with an error about early stopping, and without a checkpoint."""
        run("fit", *words(classes_source), "--trainer.max_steps", 1, "--trainer.max_epochs", 3, "--data.batch_size", 18, "--run_dir", "run")
        assert checkpoint("run")["global_step"] == 1
        written = capsys.readouterr()
        assert "no best checkpoint: valid/task was never measured: no validation came; watch another one" in written.out
        assert written.err == ""

    def test_of_a_study_too(self):
        Path("steps.yaml").write_text("trainer: {max_steps: 3000}\n")
        recipe = read_recipe("events", ["steps.yaml"], None)
        assert (recipe.trainer["max_epochs"], recipe.data["sampling"]["batches"], recipe.trainer["max_steps"]) == (20, 150, 3000)

    def test_and_epochs_are_not_said_both(self, classes_source, capsys):
        run("fit", *words(classes_source), "--training.updates", 4, "--trainer.max_epochs", 3, expect=2)
        assert "training: expected no trainer.max_epochs (null) beside it, got 3: updates say how long to train" in capsys.readouterr().err
        run("fit", *words(classes_source), "--training.patience", 4, expect=2)
        assert "error: training: expected updates beside check_every and patience, got none" in capsys.readouterr().err
        run("fit", *words(classes_source), "--training.updates", 0, expect=2)
        assert "updates: expected a number of updates >= 1, got 0" in capsys.readouterr().err

    def test_is_read_by_studies(self):
        Path("mine.yaml").write_text("data: {events: {num_samples: 40}}\ntraining: {updates: 100, patience: 20}\n")
        recipe = read_recipe("events", ["mine.yaml"], None)
        assert (recipe.data["sampling"]["batches"], recipe.trainer["max_epochs"], recipe.patience) == (5, 20, 4)
        Path("both.yaml").write_text("training: {updates: 100}\ntrainer: {max_epochs: 3}\n")
        with pytest.raises(DataError, match=r"training: expected no trainer.max_epochs \(null\) beside it, got 3"):
            read_recipe("events", ["both.yaml"], None)
        Path("run.yaml").write_text("training: {updates: null, check_every: null, patience: null}\n")
        recipe = read_recipe("events", ["run.yaml"], None)  # 2,000 updates, as `fit` has it
        assert recipe.data["sampling"]["batches"] * recipe.trainer["max_epochs"] == 2000
        assert read_recipe("events", ["run.yaml"], 7).trainer["max_epochs"] == 7
        Path("wrong.yaml").write_text("training: {update: 100}\n")
        with pytest.raises(DataError, match=r"training: .*update"):
            read_recipe("events", ["wrong.yaml"], None)


def test_baselines_stand_beside_the_model_and_it_is_told_where_it_is_behind(scores_source, capsys):
    run("fit", *words(scores_source), "--model.learning_rate", 1e-12, "--trainer.max_epochs", 1, "--run_dir", "run")
    capsys.readouterr()
    run("test", "--config", "run/config.yaml")
    out = capsys.readouterr().out
    metrics = json.loads(Path("run/metrics.json").read_text())["metrics"]
    assert list(metrics) == ["model", "constant", "pooled linear"]
    model, linear = metrics["model"]["mae"], metrics["pooled linear"]["mae"]
    assert linear < model
    assert f"note: the model is behind pooled linear: mae {model:.3f} against {linear:.3f}" in out


def test_unequal_classes_are_said_before_training(tmp_path, capsys):
    y = np.array([0] * 9 + [1])[np.arange(40) % 10]
    np.savez(tmp_path / "rare.npz", audio=np.ones((40, 4, 2)), label=y, split=np.array(["train"] * 20 + ["valid"] * 10 + ["test"] * 10))
    run("fit", *words({"source": str(tmp_path / "rare.npz")}), "--trainer.max_epochs", 1, "--run_dir", "run")
    assert "note: classes are unequal: 18 training samples of 0, 2 of 1; class_weights: balanced" in capsys.readouterr().out
