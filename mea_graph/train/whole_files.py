"""Files that are whole or not there, whenever the process ends and however full the disk is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mea_graph.data import DataError
from mea_graph.data.lock import only_one
from mea_graph.data.store_files import sync_folder

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK = ".lock"
_TEMPORARY = ".writing"  # after the name: nothing that looks for *.ckpt or *.csv finds it


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
    temporary = place.with_name(place.name + _TEMPORARY)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with only_one(place.with_name(place.name + _LOCK)):  # two processes that write it at once would write into one file
            try:
                with open(temporary, "wb") as file:
                    file.write(content.encode() if isinstance(content, str) else content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, place)
            finally:
                temporary.unlink(missing_ok=True)
        sync_folder(place.parent)
    except OSError as error:
        remedy = f"; {hint}" if error.errno in _FULL else ""
        raise DataError(f"{place}: the {what} could not be written ({error}){remedy}") from error
