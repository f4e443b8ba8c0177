"""Every command computes on one thread unless it is asked for more, and says so."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from mea_graph.studies import demo, schedule
from mea_graph.train import predict_command
from mea_graph.train.threads import computing_on

from .commands import data_of, run

NOTE = "note: computing on 1 of 2 threads, which suits small models; --threads 2 takes all"
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    """As on a machine of two, where nobody has said anything."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == (2, None)  # a command leaves the process as it was
    torch.set_num_threads(before)


@pytest.mark.parametrize("variable", VARIABLES)
def test_who_asks_is_obeyed(variable, monkeypatch):
    with computing_on(None) as note:
        assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], f"note: {note}") == (1, "1", NOTE)
    with computing_on(3) as note:
        assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], note) == (3, "3", None)
    with monkeypatch.context() as said:
        said.setenv(variable, "2")
        with computing_on(None) as note:
            assert (torch.get_num_threads(), note) == (2, None)
        with computing_on(1) as note:
            assert (torch.get_num_threads(), note) == (1, None)
        assert os.environ[variable] == "2"


def test_training_and_testing(scores_source, capsys):
    Path("count.py").write_text(
        "import lightning as L\nimport torch\n"
        "class Count(L.Callback):\n"
        "    def setup(self, trainer, module, stage):\n"
        "        print(torch.get_num_threads(), 'threads')\n"
    )
    gru = ["--model", "LateFusionGRUModule", "--model.hidden_channels", 4, "--trainer.max_epochs", 1, "--trainer.callbacks+=count.Count"]
    fit = ["fit", *data_of(scores_source), *gru]
    run(*fit, "--run_dir", "one")
    said = capsys.readouterr().out.splitlines()
    assert "1 threads" in said
    assert NOTE in said
    assert yaml.safe_load(Path("one/config.yaml").read_text())["threads"] == 1
    run(*fit, "--run_dir", "two", "--threads", 2)
    said = capsys.readouterr().out.splitlines()
    assert "2 threads" in said
    assert NOTE not in said
    run("test", "--config", "two/config.yaml")  # which says how the run was trained
    assert "2 threads" in capsys.readouterr().out.splitlines()
    run("test", "--config", "two/config.yaml", "--threads", 0, expect=2)
    assert capsys.readouterr().err == "mea-graph: error: threads: expected an integer in [1, 1024], got 0\n"


@pytest.mark.parametrize(
    ("words", "owner", "name"),
    [
        (["demo"], demo, "run"),
        (["study", "compare", "--data", "events"], schedule, "finish"),
        (["predict", "--ckpt", "run", "--data", "mine.npz", "--output", "out.csv"], predict_command, "predict"),
    ],
)
def test_other_commands(words, owner, name, capsys, monkeypatch):
    found = []

    def count(*_):
        found.append(torch.get_num_threads())
        raise OSError("seen enough")

    monkeypatch.setattr(owner, name, count)
    run(*words, expect=2)
    assert NOTE in capsys.readouterr().out.splitlines()
    run(*words, "--threads", 2, expect=2)
    assert NOTE not in capsys.readouterr().out
    assert found == [1, 2]
    run(*words, "--threads", "many", expect=2)
    assert "expected an integer in [1, 1024], got 'many'" in capsys.readouterr().err


def test_a_study_reads_them_from_a_configuration(monkeypatch, capsys):
    found = []
    monkeypatch.setattr(schedule, "finish", lambda *_: (found.append(torch.get_num_threads()) or {}, []))
    Path("mine.yaml").write_text("threads: 2\n")
    run("study", "compare", "--config", "events", "--config", "mine.yaml")
    run("study", "compare", "--config", "events", "--config", "mine.yaml", "--threads", 1)
    assert found == [2, 1]
    Path("mine.yaml").write_text("threads: many\n")
    run("study", "compare", "--config", "events", "--config", "mine.yaml", expect=2)
    assert "threads: expected an integer in [1, 1024], got 'many'" in capsys.readouterr().err
