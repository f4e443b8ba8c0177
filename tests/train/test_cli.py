"""The command line, end to end, inside this process."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from mea_graph.__main__ import main
from mea_graph.train import packaged_configs

from .commands import SMALL_MEA, data_of, read_csv, run


def read_logs(folder):
    """Everything that was logged, by epoch; the parts of a resumed run joined."""
    numbers = {}
    for path in sorted(Path(folder, "logs").glob("version_*/metrics.csv")):
        for row in read_csv(path):
            numbers |= {(int(row["epoch"]), name): value for name, value in row.items() if "/" in name and value}
    return numbers


@pytest.fixture
def fitted(classes_source):
    run("fit", *data_of(classes_source), *SMALL_MEA, "--trainer.max_epochs", 2, "--run_dir", "run", "--model.exclusive.mu", 0.3)
    return Path("run")


def test_fit_writes_what_the_other_commands_need(fitted):
    config = yaml.safe_load((fitted / "config.yaml").read_text())
    assert config["model"]["init_args"]["exclusive"]["mu"] == 0.3
    for name in ("best", "last"):
        checkpoint = torch.load(fitted / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"]["exclusive"]["mu"] == 0.3
    logged = read_logs(fitted)
    assert {name for _, name in logged} >= {"train/disparity", "valid/loss", "valid/accuracy"}
    assert {epoch for epoch, _ in logged} == {0, 1}
    rows = read_csv(fitted / "logs/version_0/metrics.csv")
    assert [row["epoch"] for row in rows if row["train/loss"]] == ["0", "1"]  # one row an epoch, though each is logged twice


def test_fit_tells_what_the_reader_left_out(classes_source, capsys):
    arrays = dict(np.load(classes_source["source"]))
    np.savez("more.npz", **arrays, about=np.zeros((len(arrays["label"]), 3)))
    run("fit", *data_of(classes_source | {"source": "more.npz"}), *SMALL_MEA, "--trainer.max_epochs", 1, "--run_dir", "run")
    lines = capsys.readouterr().out.splitlines()
    samples = next(i for i, line in enumerate(lines) if line.startswith("samples: "))
    notes = [line for line in lines[samples:] if line.startswith("note: ")]
    assert any("array 'about'" in note and "left out" in note for note in notes), lines


def test_test_and_predict_agree_and_are_right(fitted, classes_source, capsys):
    run("test", "--config", fitted / "config.yaml")
    table = capsys.readouterr().out
    run("predict", "--ckpt", fitted, "--data", classes_source["source"], "--output", "out.csv")
    record = json.loads((fitted / "metrics.json").read_text())
    rows = [row for row in read_csv("out.csv") if row["part"] == "test"]
    target = np.array([int(row["target"]) for row in rows])
    predicted = np.array([int(row["prediction"]) for row in rows])
    expected = {
        "accuracy": accuracy_score(target, predicted),
        "f1_macro": f1_score(target, predicted, average="macro"),
        "f1_weighted": f1_score(target, predicted, average="weighted"),
        "auc": roc_auc_score(target, [float(row["probability_1"]) for row in rows]),
    }
    assert record["metrics"]["model"] == pytest.approx(expected, abs=1e-6)
    arrays = np.load(classes_source["source"])
    majority = np.bincount(arrays["label"][arrays["split"] == "train"]).argmax()
    assert record["metrics"]["constant"] == pytest.approx(
        {
            "accuracy": accuracy_score(target, np.full(12, majority)),
            "f1_macro": f1_score(target, np.full(12, majority), average="macro"),
            "f1_weighted": f1_score(target, np.full(12, majority), average="weighted"),
            "auc": 0.5,
        },
        abs=1e-6,
    )
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), key=int)
    assert len(rows) == record["samples"]["test"] == 12
    assert record["seed"] == 0
    assert record["config"]["model"]["init_args"]["exclusive"]["mu"] == 0.3
    assert set(record["versions"]) >= {"torch", "mea-graph"}
    assert len(record["data_hash"]) == 64
    for name, value in expected.items():
        assert any(name in line and f"{value:.3f}" in line for line in table.splitlines())


def test_what_is_measured_on_other_samples_replaces_nothing(fitted, classes_source, capsys):
    config = ["--config", fitted / "config.yaml"]
    run("test", *config)
    before = (fitted / "metrics.json").read_bytes()
    arrays = dict(np.load(classes_source["source"]))
    np.savez("other.npz", **{**arrays, "audio": arrays["audio"] + 1})
    capsys.readouterr()
    run("test", *config, "--data.source", "other.npz")
    (written,) = [Path(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line.startswith("written: ")]
    assert json.loads(written.read_text())["data_hash"] != json.loads(before)["data_hash"]
    assert written.name.startswith("metrics_other_")
    assert (fitted / "metrics.json").read_bytes() == before


def test_no_file_of_the_current_folder_stands_for_another_module(classes_source, capsys):
    """A module of the user's is found there, but last."""
    Path("wave.py").write_text("raise SystemExit('a file of the current folder was imported in place of another module')")
    run("fit", *data_of(classes_source), "--model", "wave.Mine", expect=2)
    assert "wave" in capsys.readouterr().err
    assert sys.path[-1] == os.getcwd()
    assert sys.path.count(os.getcwd()) == 1


def test_validate_prints_the_numbers_of_training(fitted, capsys):
    logged = read_logs(fitted)
    best = min(range(2), key=lambda epoch: float(logged[epoch, "valid/task"]))
    run("validate", "--config", fitted / "config.yaml")
    line = next(line for line in capsys.readouterr().out.splitlines() if "auc" in line)
    assert f"{float(logged[best, 'valid/auc']):.3f}" in line


def test_a_resumed_run_equals_one_never_interrupted(classes_source):
    options = [*data_of(classes_source), *SMALL_MEA, "--model.dropout", 0.2, "--model.cosine_decay", "true", "--data.batch_size", 8]
    run("fit", *options, "--trainer.max_epochs", 4, "--run_dir", "whole")
    run("fit", *options, "--trainer.max_epochs", 4, "--run_dir", "other", "--seed_everything", 1)
    stop = ["--trainer.callbacks+", "stop_early.StopAfterTwo"]
    Path("stop_early.py").write_text(
        "import lightning as L\n"
        "class StopAfterTwo(L.Callback):\n"
        "    def on_train_epoch_end(self, trainer, module):\n"
        "        trainer.should_stop = trainer.current_epoch == 1\n"
    )
    run("fit", *options, "--trainer.max_epochs", 4, "--run_dir", "parts", *stop)
    assert {epoch for epoch, _ in read_logs("parts")} == {0, 1}
    run("fit", *options, "--trainer.max_epochs", 4, "--run_dir", "parts", "--ckpt_path", "last")
    whole, parts, other = (read_logs(name) for name in ("whole", "parts", "other"))
    assert parts == whole
    assert other != whole  # another seed is another run, so the line above can fail
    states = [torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "parts")]
    assert states[0]["epoch"] == states[1]["epoch"] == 3
    assert all(torch.equal(a, b) for a, b in zip(states[0]["state_dict"].values(), states[1]["state_dict"].values(), strict=True))


def test_runs_are_numbered_and_the_latest_is_evaluated():
    for _ in range(2):
        run("fit", "--config", "events", "--data.events", "{num_samples: 40}", *SMALL_MEA, "--trainer.max_epochs", 1)
    assert sorted(path.name for path in Path("runs/events").iterdir()) == ["0", "1"]
    run("test", "--config", "events", "--data.events", "{num_samples: 40}", *SMALL_MEA)
    assert (Path("runs/events/1") / "metrics.json").exists()


def test_configurations_compose_and_print(capsys):
    Path("mine.yaml").write_text("model: {init_args: {exclusive: {mu: 0.9}}}\ntrainer: {max_epochs: 7}\n")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "mosi", "--config", "mine.yaml", "--model.beta", "0.5", "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    options = config["model"]["init_args"]
    assert (options["exclusive"]["mu"], options["beta"], options["alpha"], config["trainer"]["max_epochs"]) == (0.9, 0.5, 0.02, 7)


@pytest.mark.parametrize("name", sorted(packaged_configs()))
def test_every_packaged_configuration_is_valid(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", name, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"] == "mea_graph.train.MEAModule"


TABLE_I = {
    "mosi": (32, 60, 1e-3, 8, {"text": 3, "vision": 3, "audio": 3}, 0.25, 2e-2, 3e-2),
    "mosei": (64, 100, 2e-3, 10, {"text": 3, "vision": 3, "audio": 3}, 0.15, 3e-2, 5e-2),
    "iemocap": (32, 60, 1e-3, 8, {"text": 3, "vision": 3, "audio": 5}, 0.2, 1e-2, 2e-2),
}


KEYS = ("learning_rate", "heads", "kernel_size", "mu", "alpha", "beta")


@pytest.mark.parametrize("name", TABLE_I)
def test_table_one(name):
    config = yaml.safe_load(packaged_configs()[name].read_text())
    options = config["model"]["init_args"]
    assert options["form"] == "published"
    found = (
        config["data"]["batch_size"],
        config["trainer"]["max_epochs"],
        *((options | options["extractor"] | options["exclusive"])[key] for key in KEYS),
    )
    assert found == TABLE_I[name]
    assert (options["channels"], options["hidden_channels"], options["exclusive"]["num_layers"], options["agnostic"]["num_layers"]) == (
        40,
        64,
        3,
        2,
    )


def test_another_module_by_short_name(classes_source):
    run(
        "fit",
        *data_of(classes_source),
        "--model",
        "LateFusionGRUModule",
        "--model.hidden_channels",
        4,
        "--trainer.max_epochs",
        1,
        "--run_dir",
        "gru",
    )
    assert yaml.safe_load(Path("gru/config.yaml").read_text())["model"]["class_path"].endswith("LateFusionGRUModule")
    run("test", "--config", "gru/config.yaml")


def test_a_module_of_the_users_own(scores_source):
    Path("my_module.py").write_text(
        "import torch\n"
        "from mea_graph.train import TaskModule\n"
        "class Zero(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.value = torch.nn.Parameter(torch.zeros(1))\n"
        "    def forward(self, x_dict, batch_dict, batch_size):\n"
        "        return self.value.expand(batch_size, 1)\n"
        "class Mine(TaskModule):\n"
        "    def __init__(self, task, out_channels, learning_rate: float = 0.5):\n"
        "        super().__init__(Zero(), task, out_channels, learning_rate=learning_rate)\n"
        "        self.save_hyperparameters()\n"
    )
    run("fit", *data_of(scores_source), "--model", "my_module.Mine", "--trainer.max_epochs", 1, "--run_dir", "mine")
    run("test", "--config", "mine/config.yaml")
    assert json.loads(Path("mine/metrics.json").read_text())["metrics"]["model"]["corr"] is None  # a constant has none; strict JSON


def test_sentiment_and_labels(scores_source, labels_source):
    run("fit", *data_of(scores_source), *SMALL_MEA, "--model.sentiment", "true", "--trainer.max_epochs", 1, "--run_dir", "scores")
    run("test", "--config", "scores/config.yaml")
    assert {"acc7", "acc2_pos", "f1_nonneg"} <= set(json.loads(Path("scores/metrics.json").read_text())["metrics"]["model"])
    named = [*data_of(labels_source), "--data.classes", "[happy, sad, angry]"]
    run("fit", *named, *SMALL_MEA, "--trainer.max_epochs", 1, "--run_dir", "labels")
    run("predict", "--ckpt", "labels", "--data", labels_source["source"], "--output", "labels.csv")
    assert {"target_happy", "prediction_sad", "probability_angry"} <= set(read_csv("labels.csv")[0])


def test_bfloat16(classes_source):
    run("fit", *data_of(classes_source), *SMALL_MEA, "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", 1, "--run_dir", "run")
    assert all(np.isfinite(float(value)) for value in read_logs("run").values())


def test_version(capsys):
    run("--version")
    assert capsys.readouterr().out.startswith("mea-graph 0")


class TestLoggers:
    def test_each_by_one_word(self, classes_source, monkeypatch):
        """The package may be absent; what is made of the word is looked at, and the CSV of the run stays."""
        made = []

        class Recording(CSVLogger):
            def __init__(self, save_dir, name):
                made.append((str(save_dir), name))
                super().__init__(save_dir, name)

        monkeypatch.setattr("mea_graph.train.loggers.TensorBoardLogger", Recording)
        monkeypatch.setattr("mea_graph.train.loggers._installed", lambda package: True)
        fit = ["fit", *data_of(classes_source), *SMALL_MEA, "--trainer.max_epochs", 1, "--run_dir", "run", "--logger", "tensorboard"]
        run(*fit)
        assert made == [("run", "tensorboard")]
        assert {name for _, name in read_logs("run")} >= {"train/loss", "valid/accuracy"}
        assert Path("run/tensorboard/version_0/metrics.csv").exists()
        assert yaml.safe_load(Path("run/config.yaml").read_text())["logger"] == "tensorboard"
        run("test", "--config", "run/config.yaml")

    @pytest.mark.parametrize(("word", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
    def test_a_missing_package_is_named(self, word, package, classes_source, capsys, monkeypatch):
        for name in ("tensorboard", "tensorboardX", "wandb"):
            monkeypatch.setitem(sys.modules, name, None)
        run("fit", *data_of(classes_source), *SMALL_MEA, "--logger", word, "--run_dir", "run", expect=2)
        error = capsys.readouterr().err
        assert error == f"mea-graph: error: logger: {word} needs the package {package}, which is not installed: pip install {package}\n"
        assert not Path("run").exists()
