"""What is said when training ends: the classes that are confused, and whether it ended too early."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as reference
from sklearn.metrics import precision_recall_fscore_support

from mea_graph.train.confusion import class_scores, confusion_matrix, confusion_text
from mea_graph.train.convergence import WatchedValues, still_improves

from .commands import SMALL_GRU, data_of, run


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 200)
    predicted = np.where(rng.random(200) < 0.6, target, rng.integers(0, 3, 200))  # class 3 is predicted where it is true alone
    return predicted, target


def test_the_matrix_and_the_scores_are_those_of_scikit_learn(drawn):
    predicted, target = drawn
    matrix = confusion_matrix(torch.tensor(predicted), torch.tensor(target), 4)
    assert matrix.tolist() == reference(target, predicted).tolist()
    precision, recall, f1, _ = precision_recall_fscore_support(target, predicted)
    assert np.allclose(class_scores(matrix), np.stack([recall, precision, f1], 1))


def test_a_class_that_does_not_occur_has_no_score():
    recall, precision, f1 = class_scores(torch.tensor([[3, 0], [0, 0]]))[1]
    assert all(math.isnan(score) for score in (recall, precision, f1))
    text = confusion_text(torch.tensor([[3, 0], [0, 0]]), None, "test")
    assert text.splitlines()[3].split() == ["1", "0", "0", "-", "-", "-", "0"]


def test_twelve_classes_are_shown_whole_and_fit_a_page():
    matrix = torch.full((12, 12), 3) + 97 * torch.eye(12, dtype=torch.long)
    lines = confusion_text(matrix, [f"a long name {i}" for i in range(12)], "valid").splitlines()
    assert len(lines) == 14
    assert max(map(len, lines)) <= 110
    assert lines[2].split()[:5] == ["0", "a", "long", "name", "0"]
    assert lines[2].split()[5:] == ["100", *["3"] * 11, "0.75", "0.75", "0.75", "133"]


def test_of_many_classes_the_worst_and_their_confusions_are_named():
    matrix = 20 * torch.eye(26, dtype=torch.long)
    matrix[16, 14], matrix[16, 16] = 7, 13  # Q as O
    matrix[5, 19] = 2  # F as T
    letters = [chr(65 + i) for i in range(26)]
    lines = confusion_text(matrix, letters, "test").splitlines()
    assert lines[0] == "test: scores of each class, the 12 of 26 with the least F1"
    assert len(lines) == 15
    assert [line.split()[1] for line in lines[2:6]] == ["Q", "O", "F", "T"]
    assert lines[-1] == "most often confused: Q as O (7 of 20), F as T (2 of 22)"


def test_fit_and_test_end_with_the_classes(classes_source, capsys):
    words = [*data_of(classes_source), "--data.classes", "[rest, stress]"]
    run("fit", *words, *SMALL_GRU, "--trainer.max_epochs", 3, "--early_stopping.monitor", "valid/accuracy", "--run_dir", "run")
    printed = capsys.readouterr().out
    best = torch.load("run/checkpoints/best.ckpt", weights_only=True)["epoch"]
    assert f"valid, epoch {best} (the best): rows are the true classes" in printed
    shown = [line.split() for line in printed.splitlines() if line.startswith(("0 rest", "1 stress"))]
    arrays = np.load(classes_source["source"])
    assert [int(row[-1]) for row in shown] == np.bincount(arrays["label"][arrays["split"] == "valid"]).tolist()

    run("validate", "--config", "run/config.yaml")  # the checkpoint of the best epoch has that matrix
    again = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("0 rest", "1 stress"))]
    assert again == shown

    run("test", "--config", "run/config.yaml")
    printed = capsys.readouterr().out
    record = json.loads(Path("run/metrics.json").read_text())
    matrix = np.array(record["confusion"])
    assert matrix.sum(1).tolist() == np.bincount(arrays["label"][arrays["split"] == "test"]).tolist()
    assert np.trace(matrix) / matrix.sum() == pytest.approx(record["metrics"]["model"]["accuracy"])
    assert confusion_text(torch.tensor(matrix), ["rest", "stress"], "test") in printed


class TestConvergence:
    def values(self, series, mode="min"):
        watched = WatchedValues("valid/task", mode)
        watched.values = dict(enumerate(series))
        return watched

    def test_the_best_epoch_is_the_last(self):
        assert self.values([3.0, 2.0, 1.0]).unfinished() == "valid/task was best in the last epoch (2)"
        assert self.values([1.0, 2.0, 3.0], "max").unfinished() == "valid/task was best in the last epoch (2)"
        assert self.values([1.0, 2.0, 3.0]).unfinished() is None
        assert self.values([math.nan, 1.0, 1.0]).best_epoch == 1
        assert self.values([math.nan]).unfinished() is None

    def test_better_by_more_than_noise(self):
        rng = np.random.default_rng(0)
        noise = 0.02 * rng.normal(size=40)
        falling = np.linspace(1.0, 0.4, 40) + noise
        falling[-1] += 0.1  # the last one is not the best
        assert self.values(falling).unfinished() == "valid/task was still getting better at the end"
        assert self.values(-falling, "max").unfinished() is not None
        assert self.values(falling, "max").unfinished() is None

    def test_noise_alone_is_told_seldom(self):
        rng = np.random.default_rng(1)
        assert sum(still_improves(rng.normal(size=30), "min") for _ in range(500)) < 10

    def test_is_said_with_the_command_that_trains_longer(self, scores_source, capsys):
        words = [*data_of(scores_source), *SMALL_GRU, "--trainer.max_epochs", 2]
        run("fit", *words, "--run_dir", "run", "--model.learning_rate", 1e-4)
        told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("not converged: "))
        assert told.startswith("not converged: valid/task was best in the last epoch (1); train longer: mea-graph fit ")
        run(*told.partition("mea-graph ")[2].split())
        assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 3

        capsys.readouterr()
        run("fit", *words, "--run_dir", "cosine", "--model.learning_rate", 1e-4, "--model.cosine_decay", "true")
        told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("not converged: valid/task"))
        assert "train anew and longer: mea-graph fit --config cosine/config.yaml --run_dir cosine-longer --trainer.max_epochs 4" in told

    def test_a_run_that_takes_every_validation_sample_for_what_it_is_is_not_told_to_go_on(self, classes_source, capsys):
        """Its loss falls on for ever, a little in each epoch, so that the last one is always the best."""
        arrays = dict(np.load(classes_source["source"]))
        there = np.arange(arrays["audio"].shape[1]) < arrays["audio_len"][:, None]
        arrays["audio"] += 9 * (arrays["label"][:, None] * there)[:, :, None]
        np.savez("easy.npz", **arrays)
        words = [*data_of({"source": "easy.npz"}), *SMALL_GRU, "--trainer.max_epochs", 4, "--model.learning_rate", 0.02]
        run("fit", *words, "--run_dir", "run")
        printed = capsys.readouterr().out
        best = torch.load("run/checkpoints/best.ckpt", weights_only=True)["epoch"]
        assert best == 3  # the last one
        matrix = confusion_text(torch.tensor(np.diag(np.bincount(arrays["label"][arrays["split"] == "valid"]))), None, "")
        assert matrix.partition("\n")[2] in printed
        assert "not converged" not in printed

    def test_a_run_that_was_stopped_early_is_not_told_to_go_on(self, scores_source, capsys):
        words = [*data_of(scores_source), *SMALL_GRU, "--trainer.max_epochs", 9]
        run("fit", *words, "--run_dir", "run", "--model.learning_rate", 10.0, "--early_stopping.patience", 1)
        printed = capsys.readouterr().out
        assert "stopped early" in printed
        assert "not converged" not in printed
