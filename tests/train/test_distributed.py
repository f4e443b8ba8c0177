"""Two processes (gloo, CPU) give the metrics of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mea_graph.__main__ import main

SMALL = ["--model.channels", "8", "--model.heads", "2", "--model.hidden_channels", "8"]
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
ONE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]


def run(*words):
    """A process of its own, since the second one is started by repeating the command line."""
    done = subprocess.run([sys.executable, "-m", "mea_graph", *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def results():
    metrics = json.loads(Path("run/metrics.json").read_text())["metrics"]
    return metrics["model"], metrics["constant"]


@pytest.mark.slow
def test_two_processes_fit_and_test(classes_source):
    # 11 test samples and 37 training samples: neither can be shared evenly
    split = "{by: subject, train: [0, 1, 2, 3, 4, 5], valid: [6, 7], test: [8, 9]}"
    source = ["--data.source", classes_source["source"], "--data.split", split, "--data.batch_size", "5"]
    fit = ["fit", *source, *SMALL, "--model.agnostic.center", "true", "--trainer.max_epochs", "1"]
    printed = run(*fit, *TWO, "--run_dir", "run")
    assert printed.count("epoch 0: ") == 1
    assert main([*fit, *ONE, "--run_dir", "alone"]) == 0
    states = [torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("run", "alone")]
    seen = [state["network.agnostic.centering.seen"].tolist() for state in states]
    assert seen[0] == seen[1]  # the means are those of the samples of both
    assert 0 < min(seen[0]) < max(seen[0]) < 37  # some samples lack a modality
    run("test", "--config", "run/config.yaml", *TWO)
    model, constant = results()
    assert main(["test", "--config", "run/config.yaml", *ONE]) == 0
    alone, alone_constant = results()
    assert model == pytest.approx(alone, abs=1e-6)
    assert constant == alone_constant
