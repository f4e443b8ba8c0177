"""Checkpoints that are whole or not there, whenever the process ends and however full the disk is."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mea_graph.data import DataError
from mea_graph.train.error_message import one_line
from mea_graph.train.foreign_files import what_it_holds, what_it_is
from mea_graph.train.whole_files import write_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and gives it its name only when all of it is on the disk; reads none that is damaged.

    Lightning's own writer collects the file in the system's temporary folder and moves it from there: on another file system the move
    is a copy, which a kill or a full disk leaves half done, under the checkpoint's name. What is left by a killed process here ends in
    `.writing`, is never read, and is replaced by the next checkpoint of that name. A checkpoint that is replaced is removed as the
    one file it is; a folder never is.

    Raises:
        DataError: If the folder or the disk does not take the file; the checkpoint that was there before is still there. Where a file
            is no checkpoint, or other bytes than were written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path) or storage_options is not None:  # an object store, which is atomic by itself
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        memory = io.BytesIO()  # torch reports a full disk as an error of its own; a plain write does so as the OSError it is
        torch.save(checkpoint, memory)
        write_whole(path, memory.getbuffer(), "checkpoint", "make room and resume with --ckpt_path last")

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        if "://" in str(path):
            super().remove_checkpoint(path)
        else:
            Path(path).unlink(missing_ok=True)  # of a folder this is an error


def read_checkpoint(path: str | Path, option: str = "ckpt_path") -> dict[str, Any]:
    """Returns what a checkpoint holds, after its check sums were found right: torch itself does not look at them.

    Args:
        path: File that `WholeCheckpoints` or Lightning wrote.
        option: The user's option that gave the file, for an error.

    Raises:
        DataError: If the file is damaged, is no checkpoint, or holds more than tensors and plain containers.

    >>> read_checkpoint("pyproject.toml")
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: ckpt_path: expected a checkpoint ..., got pyproject.toml: File is not a zip file
    """
    try:
        if (foreign := what_it_is(path)) is not None:
            raise TypeError(f"it is {foreign}")
        checkpoint = torch.load(_rewritten(path), map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
            raise TypeError(f"it holds {what_it_holds(checkpoint)}")
    except Exception as error:  # a damaged archive raises nearly anything
        raise DataError(f"{option}: expected a checkpoint of plain tensors and containers, got {path}: {one_line(error)[:300]}") from error
    return checkpoint


def _rewritten(path: str | Path) -> io.BytesIO:
    """The same archive, its parts found right by their check sums, under headers of our own.

    No check sum covers the headers, and torch believes them: one bit of an attribute makes a part a folder, whose tensor is then whatever
    stood in memory.
    """
    clean = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(clean, "w") as copy:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise zipfile.BadZipFile("a part stands there twice")
        for part in archive.infolist():
            copy.writestr(zipfile.ZipInfo(part.filename), archive.read(part))  # of a date of its own: the bytes follow from the parts alone
    clean.seek(0)
    return clean
