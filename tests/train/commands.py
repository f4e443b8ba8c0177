"""Commands run inside this process, `run(command, *words)`, and what they say and write; a trainer for data that nobody trains on."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from mea_graph.__main__ import main

SMALL_MEA = ["--model.channels", "8", "--model.heads", "2", "--model.hidden_channels", "8"]
SMALL_GRU = ["--model", "LateFusionGRUModule", "--model.hidden_channels", "4", "--trainer.accelerator", "cpu"]


def run(*arguments: object, expect: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == expect


def data_of(source: dict[str, str]) -> list[str]:
    """Words that name a file of `write_source` and its own splits."""
    return ["--data.source", source["source"], "--data.reader.split", "split"]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that must be refused says: one line."""
    capsys.readouterr()
    run(*arguments, expect=2)
    error = capsys.readouterr().err
    assert error.startswith("mea-graph: error: ")
    assert error.count("\n") == 1
    return error


def read_csv(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def attach(data, rank=0, processes=1, fn=TrainerFn.FITTING):
    """What the data module asks of a trainer."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=0), is_last_batch=False)
    fit_loop = SimpleNamespace(epoch_progress=progress, epoch_loop=SimpleNamespace(batch_progress=progress), restarting=False)
    intervals = {"val_check_interval": 1.0, "limit_train_batches": 1.0, "limit_val_batches": 1.0, "check_val_every_n_epoch": 1}
    place = {"global_rank": rank, "world_size": processes}
    data.trainer = SimpleNamespace(**place, **intervals, state=SimpleNamespace(fn=fn), fit_loop=fit_loop)
    return data
