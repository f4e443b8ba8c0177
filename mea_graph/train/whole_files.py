"""Files of a run: whole or not there, and in one line what keeps them from being written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mea_graph.data import DataError
from mea_graph.whole_files import replacing

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: str | Path, content: bytes | memoryview | str, what: str = "file", hint: str = "make room and do it again") -> None:
    """Writes a file beside its place, and gives it its name only when all of it is on the disk; its folder is made.

    Args:
        path: File to write, or to replace.
        content: All of it; text is written as UTF-8, as it is.
        what: The file's name in an error.
        hint: What to do where the disk is full.

    Raises:
        DataError: If the folder or the disk does not take the file; what was there before is still there.
    """
    place = Path(path)
    if place.is_dir():
        raise DataError(f"{place}: expected a {what} to write, got a folder; give the name of a file in it")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        remedy = f"; {hint}" if error.errno in _FULL else ""
        raise DataError(f"{place}: the {what} could not be written ({error}){remedy}") from error


def can_be_written(place: Path) -> bool:
    """Whether a file can be written in the folder of a place, or in one that is made for it.

    Args:
        place: The file.
    """
    there = next(folder for folder in place.absolute().parents if folder.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
