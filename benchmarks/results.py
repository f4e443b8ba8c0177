"""Reads the JSON files of the checks and of the suites into one form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SUITES = ("full-", "growth-", "quick-")  # how the name of a suite's file begins: all of it, its growth curves, what `make bench` runs
Run = dict[str, Any]  # what `measure.environment()` names, and "cases"


def of(path: Path) -> str:
    """What a file is of: its name without the date, and the time of a check on a GPU."""
    return re.sub(r"-\d{4}-\d\d-\d\d(-\d{6})?$", "", path.stem)


def called(contender: str, suite: str = "") -> str:
    """What the page and its figures call a contender; the files call the library's own "mea_graph"."""
    return contender if contender != "mea_graph" else "MEA" if suite == "model" else "this library"


def load(path: Path) -> dict[str, Any]:
    """The command that made a file, and its runs; for a suite's file also the baselines that were absent."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if "benchmarks" not in found:
        return found
    run = {
        **found["machine_info"],
        "date": found["datetime"],
        "absent": found["absent"],
        "minutes": found["minutes"],
        "revision": found["revision"],
        "clock": found["clock"],
    }
    return {"command": found["command"], "runs": [{**run, "cases": [_case(one) for one in found["benchmarks"]]}]}


def _case(one: dict[str, Any]) -> dict[str, Any]:
    info, stats = one["extra_info"], one["stats"]
    ours = {"median": stats["median"], "lower": stats["q1"], "upper": stats["q3"], "passes": stats["rounds"]}
    contenders = {"mea_graph": ours, **info["rivals"]}
    for name, c in contenders.items():
        c["error"] = info["errors"].get(name)
        if name in info.get("peak_bytes", {}):
            c["peak_bytes"] = info["peak_bytes"][name]
    names = ("case", "dtype", "key", "curve", "samples", "padding_share", "padding_share_random", "mean", "load", "refused")
    kept = {k: info.get(k) for k in names}
    return {**kept, "suite": one["group"], "contenders": contenders}
