import signal
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

from mea_graph.__main__ import main
from mea_graph.studies import demo
from mea_graph.studies.recipe import read_recipe
from mea_graph.train import MEAModule, TaskModule
from mea_graph.train.run_folder import claimed


@pytest.fixture
def small(monkeypatch):
    recipe = read_recipe("events", [], 2)
    data = {"events": {"num_samples": 40, "num_modalities": 2}, "batch_size": 8}
    smaller = replace(recipe, data=data, model=recipe.model | {"channels": 8, "heads": 2, "hidden_channels": 8})
    monkeypatch.setattr(demo, "read_recipe", lambda *_: smaller)


@pytest.mark.usefixtures("small")
def test_the_demo_ends_with_table_margin_checkpoint_and_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "LINE_EVERY", 0)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for row in (
        "constant",
        "best single modality (GRU ",
        "late fusion GRU",
        "pairwise Transformer (MulT)",
        "MEA",
        "points more of the variance than its best baseline",
    ):
        assert row in printed
    lines = printed.splitlines()
    assert lines.index("MEA: epoch 1 of 2") < next(i for i, line in enumerate(lines) if line.startswith("[1/5] MEA: 2 epochs in "))
    assert any(line.startswith("pairwise Transformer (MulT): epoch 2 of 2, valid/r2 ") for line in lines)
    assert matplotlib.image.imread(tmp_path / "out" / "learning_curves.png").std() > 0.05
    module = MEAModule.load_from_checkpoint(tmp_path / "out" / "checkpoints" / "MEA" / "best.ckpt", weights_only=True)
    assert module.hparams["channels"] == 8


@pytest.mark.usefixtures("small")
def test_a_missing_extra_is_told_before_the_training(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "mea_graph.viz", None)
    assert main(["demo"]) == 2
    captured = capsys.readouterr()
    assert "mea_graph.viz" in captured.err
    assert captured.out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing claims a folder there")
@pytest.mark.usefixtures("small")
def test_a_folder_is_one_demonstration_s(capsys):
    with claimed(Path("out")):
        assert main(["demo", "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "mea-graph: error: out: another process is at work in out; wait for it, or give another --out\n"
    assert captured.out == ""
    Path("out").touch()
    assert main(["demo", "--out", "out"]) == 2
    assert capsys.readouterr().err == "mea-graph: error: out: expected a folder, got the file out\n"


@pytest.mark.usefixtures("small")
def test_ctrl_c_says_the_command_again(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(TaskModule, "training_step", interrupt)
    try:
        assert main(["demo", "--out", "my demo"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    assert capsys.readouterr().err == "\nmea-graph: stopped by Ctrl+C; start again with: mea-graph demo --out 'my demo'\n"
