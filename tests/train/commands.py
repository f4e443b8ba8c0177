"""Commands of training, run inside this process: `run(command, *words)`."""

from mea_graph.__main__ import main

SMALL_MEA = ["--model.channels", "8", "--model.heads", "2", "--model.hidden_channels", "8"]
SMALL_GRU = ["--model", "LateFusionGRUModule", "--model.hidden_channels", "4", "--trainer.accelerator", "cpu"]


def run(*arguments: object, expect: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == expect


def data_of(source: dict[str, str]) -> list[str]:
    """Words that name a file of `write_source` and its own splits."""
    return ["--data.source", source["source"], "--data.reader.split", "split"]
