"""Results for people (a table) and for programs (`metrics.json`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from mea_graph.train.metrics import MAIN_METRIC, Task
from mea_graph.train.monitors import LOWER_IS_BETTER
from mea_graph.train.whole_files import write_whole


def behind_a_baseline(task: Task, scores: Mapping[str, Mapping[str, float]]) -> str | None:
    """Returns the sentence that says which baseline is better than the model, by the main metric of the task; None where none is.

    Args:
        task: The kind of target: `regression`, `classification` or `multilabel`.
        scores: The scores of `model` and of baselines, by name.

    >>> behind_a_baseline(
    ...     "classification",
    ...     {"model": {"accuracy": 0.49}, "pooled linear": {"accuracy": 0.72}},
    ... )
    'the model is behind pooled linear: accuracy 0.490 against 0.720'
    """
    metric = MAIN_METRIC[task]
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    own, others = scores["model"][metric], {name: found[metric] for name, found in scores.items() if name != "model"}
    name = max(others, key=lambda name: sign * others[name])
    return f"the model is behind {name}: {metric} {cell(own)} against {cell(others[name])}" if sign * others[name] > sign * own else None


def plain(scores: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Returns the scores as Python numbers.

    >>> plain({"accuracy": 1})
    {'accuracy': 1.0}
    """
    return {name: float(value) for name, value in scores.items()}


def scores_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Table:
    """Returns a table with one row per metric and one column per model; an undefined value is a dash.

    Args:
        title: Text above the table.
        columns: Scores of each model; the first one names the rows.

    >>> scores_table(
    ...     "test", {"MEA": {"accuracy": 0.9}, "constant": {"accuracy": 0.5}}
    ... ).row_count
    1
    """
    table = Table("metric", title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in next(iter(columns.values())):
        table.add_row(metric, *(cell(scores.get(metric, math.nan)) for scores in columns.values()))
    return table


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as strict JSON, whole or not at all; an undefined value becomes null.

    Args:
        path: File to write; its folder is made.
        record: Nested dicts, lists, strings and numbers.

    Raises:
        TypeError: If a value is none of these.
    """
    write_whole(path, json.dumps(defined(record), indent=2, allow_nan=False) + "\n")


def cell(value: float) -> str:
    """A number of a table, in powers of ten where three decimals show nothing; one that is undefined shows as a dash."""
    return "-" if math.isnan(value) else f"{value:{number_format(value)}}"


def number_format(value: float) -> str:
    """Returns the format in which a table shows numbers of this size: errors of small targets are no 0.000.

    Args:
        value: A finite number.

    >>> number_format(0.25), number_format(2e-6)
    ('.3f', '.1e')
    """
    return ".1e" if 0 < abs(value) < 5e-4 else ".3f"


def defined(value: Any) -> Any:
    """Returns nested dicts and lists with null for every number that is not finite, as strict JSON wants it.

    Args:
        value: The containers, or what stands in them.

    >>> defined({"auc": math.nan, "accuracy": 1.0})
    {'auc': None, 'accuracy': 1.0}
    """
    if isinstance(value, Mapping):
        return {name: defined(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [defined(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
