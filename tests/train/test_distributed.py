"""Two processes (gloo, CPU) give the metrics of one. That Lightning starts the second one itself, docs/training.md shows as a test."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mea_graph.train import MEAModule

from .commands import SMALL_MEA, run

ONE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]


def results():
    metrics = json.loads(Path("run/metrics.json").read_text())["metrics"]
    return metrics["model"], metrics["constant"]


@pytest.mark.slow
def test_two_processes_fit_and_test(two, classes_source):
    # 11 test samples and 37 training samples: neither can be shared evenly
    split = "{by: subject, train: [0, 1, 2, 3, 4, 5], valid: [6, 7], test: [8, 9]}"
    source = ["--data.source", classes_source["source"], "--data.split", split, "--data.batch_size", "5"]
    fit = ["fit", *source, *SMALL_MEA, "--model.agnostic.center", "true", "--trainer.max_epochs", "1"]
    printed = two(*fit, "--run_dir", "run")
    assert printed.count("epoch 0: ") == 1
    run(*fit, *ONE, "--run_dir", "alone")
    states = [torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("run", "alone")]
    seen = [state["network.agnostic.centering.seen"].tolist() for state in states]
    assert seen[0] == seen[1]  # the means are those of the samples of both
    assert 0 < min(seen[0]) < max(seen[0]) < 37  # some samples lack a modality
    two("test", "--config", "run/config.yaml")
    model, constant = results()
    run("test", "--config", "run/config.yaml", *ONE)
    alone, alone_constant = results()
    assert model == pytest.approx(alone, abs=1e-6)
    assert constant == alone_constant


def test_a_network_is_alone_again_when_processes_have_trained_it():
    """Its means would wait for the others in a loop of one's own, and a copy of it would hold the trainer."""
    module = MEAModule({"text": 3, "audio": 2}, "regression", 1, agnostic={"center": True})
    module._trainer = SimpleNamespace(world_size=2, precision="32-true")
    module.setup("fit")
    centering = module.network.agnostic.centering
    assert centering._joint is not None
    module.teardown("fit")
    assert centering._joint is None
    assert copy.deepcopy(module.network).agnostic.centering._joint is None
