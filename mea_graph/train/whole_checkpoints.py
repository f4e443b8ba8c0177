"""Checkpoints that are whole or not there, whenever the process ends and however full the disk is."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mea_graph.data import DataError
from mea_graph.data.store_files import sync_folder

_TEMPORARY = ".writing"  # after the name: nothing that looks for *.ckpt finds it


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and gives it its name only when all of it is on the disk.

    Lightning's own writer collects the file in the system's temporary folder and moves it from there: on another file system the move
    is a copy, which a kill or a full disk leaves half done, under the checkpoint's name. What is left by a killed process here ends in
    ``.writing``, is never read, and is replaced by the next checkpoint of that name.

    Raises:
        DataError: where the folder or the disk does not take the file; the checkpoint that was there before is still there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path) or storage_options is not None:  # an object store, which is atomic by itself
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        temporary = place.with_name(place.name + _TEMPORARY)
        memory = io.BytesIO()  # torch reports a full disk as an error of its own; a plain write does so as the OSError it is
        torch.save(checkpoint, memory)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(memory.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, place)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(place.parent)
        except OSError as error:
            hint = "make room and resume with --ckpt_path last"
            raise DataError(f"{place}: the checkpoint could not be written ({error}); {hint}") from error
