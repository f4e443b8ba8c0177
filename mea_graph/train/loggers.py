"""Where the numbers of a run go beside its CSV."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from mea_graph.data import DataError
from mea_graph.train.epoch_log import EpochLog

LoggerName = Literal["csv", "tensorboard", "wandb"]
PACKAGES = {"csv": (), "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}  # any of them will do


def loggers(name: LoggerName | None, folder: Path) -> list[Logger]:
    """Returns the loggers of a run: its CSV in any case, and the one that is requested by name.

    Args:
        name: `csv`, `tensorboard` (files below `folder/tensorboard`) or `wandb` (which uploads, as its own settings say).
        folder: The folder of the run.

    Raises:
        DataError: If the package that the logger needs is not installed.

    >>> [type(logger).__name__ for logger in loggers("csv", Path("runs/mine/0"))]
    ['EpochLog']
    """
    needed = PACKAGES[name or "csv"]
    if needed and not any(_installed(package) for package in needed):
        raise DataError(f"logger: {name} needs the package {needed[0]}, which is not installed: pip install {needed[0]}")
    found: list[Logger] = [EpochLog(folder, name="logs")]
    if name == "tensorboard":
        found.append(TensorBoardLogger(folder, name="tensorboard"))
    if name == "wandb":
        found.append(WandbLogger(name=folder.as_posix(), save_dir=folder, project="mea-graph"))
    return found


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # one that was hidden
        return False
