"""Says what a file is that was given as a checkpoint but is not one."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from mea_graph.data import DataError
from mea_graph.data.kinds import kind_of


def what_it_is(path: str | Path) -> str | None:
    """Returns what a file plainly is, or None where it may be a checkpoint.

    Args:
        path: The path of the file.

    >>> what_it_is("pyproject.toml") is None
    True
    """
    try:
        kind = "npz" if zipfile.is_zipfile(path) else kind_of(Path(path))  # a checkpoint is a zip archive too
    except DataError as error:
        return str(error).removeprefix(f"{path}: ").removeprefix("is ")
    if kind == "csd":
        return "an HDF5 file; data are given by --data.source"
    if kind == "pickle":
        return "a pickle, which may hold code and is not opened; data are given by --data.source"
    if kind == "npz":
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except zipfile.BadZipFile:
            return None
        if arrays:
            more = ", ..." if len(arrays) > 5 else ""
            return f"an .npz with the arrays {', '.join(arrays[:5])}{more}; data are given by --data.source"
    return None


def what_it_holds(loaded: Any) -> str:
    """Returns what a file of torch's holds that is no checkpoint of a run.

    Args:
        loaded: Its contents.

    >>> what_it_holds({"weight": torch.zeros(2)})
    'weights alone (1 tensor, weight ...) without the options of their network; load_state_dict of that network takes them in Python'
    >>> what_it_holds({"epoch": 3, "model": {}})
    "a dict of epoch, model without 'state_dict'; expected what `mea-graph fit` or Lightning writes"
    """
    if isinstance(loaded, dict) and loaded and all(isinstance(value, torch.Tensor) for value in loaded.values()):
        count = f"{len(loaded)} tensor{'s' if len(loaded) > 1 else ''}, {next(iter(loaded))} ..."
        return f"weights alone ({count}) without the options of their network; load_state_dict of that network takes them in Python"
    what = f"a dict of {', '.join(map(str, list(loaded)[:5]))} without 'state_dict'" if isinstance(loaded, dict) else type(loaded).__name__
    return f"{what}; expected what `mea-graph fit` or Lightning writes"
