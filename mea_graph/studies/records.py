"""`runs.jsonl`: one line for each finished run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mea_graph.data import DataError
from mea_graph.train.reports import defined
from mea_graph.train.whole_files import write_whole

Record = dict[str, Any]


def read_records(path: Path) -> dict[str, Record]:
    """Returns the records of finished runs by id.

    A last line that was cut off by a crash is dropped from the file: that run is not finished.

    Args:
        path: The file; it need not exist.

    Raises:
        DataError: If another line is no record.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole, _, cut = text.rpartition("\n")
    if cut:
        write_whole(path, whole + "\n" if whole else "")
    records = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            records[record["id"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: expected the record of a run, got {line[:60]!r}") from error
    return records


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds the record of a finished run, safely on disk when this returns; an undefined number becomes null.

    Args:
        path: The file; its folder is made.
        record: A record, of plain containers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(defined(record), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
