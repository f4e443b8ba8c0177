"""Results for people (a table) and for programs (``metrics.json``)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from mea_graph.baselines import constant_prediction
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.metrics import TaskMetrics
from mea_graph.train.whole_files import write_whole


def constant_scores(data: SequenceDataModule, part: str, sentiment: bool = False) -> dict[str, float]:
    """Returns the metrics of the constant predictor: what a model that looks at nothing reaches.

    Args:
        data: its training targets make the prediction.
        part: ``test`` or ``valid``, whose targets it is measured on.
        sentiment: as of `TaskMetrics`.

    Example:
        >>> data = SequenceDataModule(events={"num_samples": 60, "task": "classification", "num_classes": 2})
        >>> constant_scores(data, "test")["auc"]
        0.5
    """
    target = data.targets(part)
    constant = constant_prediction(data.targets("train"), data.task, data.out_channels)
    metrics = TaskMetrics(data.task, data.out_channels, sentiment, data.label_names if data.task == "multilabel" else None)
    return plain(metrics.scores(constant.expand(len(target), -1), target))


def plain(scores: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Returns the scores as Python numbers.

    Example:
        >>> plain({"accuracy": 1})
        {'accuracy': 1.0}
    """
    return {name: float(value) for name, value in scores.items()}


def scores_table(title: str, columns: Mapping[str, Mapping[str, float]]) -> Table:
    """Returns a table with one row per metric and one column per model; an undefined value is a dash.

    Args:
        title: above the table.
        columns: scores of each model; the first one names the rows.

    Example:
        >>> scores_table("test", {"MEA": {"accuracy": 0.9}, "constant": {"accuracy": 0.5}}).row_count
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
        path: file to write; its folder is made.
        record: nested dicts, lists, strings and numbers.

    Raises:
        TypeError: where a value is none of these.
    """
    write_whole(path, json.dumps(defined(record), indent=2, allow_nan=False) + "\n")


def cell(value: float) -> str:
    """A number of a table; one that is undefined shows as a dash."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def defined(value: Any) -> Any:
    """Returns nested dicts and lists with null for every number that is not finite, as strict JSON wants it.

    Args:
        value: the containers, or what stands in them.

    Example:
        >>> defined({"auc": math.nan, "accuracy": 1.0})
        {'auc': None, 'accuracy': 1.0}
    """
    if isinstance(value, Mapping):
        return {name: defined(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [defined(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
