from pathlib import Path

import pytest

from mea_graph.data import DataError
from mea_graph.train.run_folder import RunFolder


def finish(folder):
    folder.checkpoint("last").parent.mkdir(parents=True)
    folder.checkpoint("last").touch()


def test_fresh_runs_count_up_and_others_use_the_latest():
    for number in (0, *range(1, 11)):
        folder = RunFolder.choose(None, [Path("configs/mosi.yaml")], fresh=True)
        assert folder.path == Path(f"runs/mosi/{number}")
        finish(folder)
    assert RunFolder.choose(None, [Path("mosi.yaml")], fresh=False).path == Path("runs/mosi/10")


def test_the_configuration_of_a_run_stands_for_its_folder():
    finish(RunFolder("moved/here"))
    assert RunFolder.choose(None, [Path("mosi.yaml"), Path("moved/here/config.yaml")], fresh=False).path == Path("moved/here")
    assert RunFolder.choose("other", [Path("moved/here/config.yaml")], fresh=True).path == Path("other")


def test_a_run_is_never_overwritten():
    finish(RunFolder("mine"))
    with pytest.raises(DataError, match="mine holds a run; resume it with --ckpt_path last"):
        RunFolder.choose("mine", [], fresh=True)


def test_processes_that_are_launched_use_the_folder_of_the_first(monkeypatch):
    chosen = RunFolder.choose(None, [], fresh=True)
    finish(chosen)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RunFolder.choose(None, [], fresh=True).path == chosen.path


def test_checkpoints_by_name_and_by_path():
    folder = RunFolder("mine")
    finish(folder)
    assert folder.find_checkpoint("last") == folder.find_checkpoint("mine/checkpoints/last.ckpt")
    for wanted in (None, "best", "else.ckpt"):
        with pytest.raises(DataError, match="there is no checkpoint"):
            folder.find_checkpoint(wanted)
