"""Results for people (a table) and for programs (`metrics.json`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from mea_graph.baselines import PooledLinear, constant_prediction
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.metrics import LOWER_IS_BETTER, MAIN_METRIC, Task, TaskMetrics
from mea_graph.train.whole_files import write_whole


def constant_scores(data: SequenceDataModule, part: str, sentiment: bool = False) -> dict[str, float]:
    """Returns the metrics of the constant predictor: what a model that looks at nothing reaches.

    Args:
        data: Its training targets make the prediction.
        part: `test` or `valid`, whose targets it is measured on.
        sentiment: As for `TaskMetrics`.

    >>> data = SequenceDataModule(events={"num_samples": 60, "task": "classification", "num_classes": 2})
    >>> constant_scores(data, "test")["auc"]
    0.5
    """
    constant = constant_prediction(data.targets("train"), data.task, data.out_channels)
    return _scores(data, part, sentiment, constant.expand(len(data.targets(part)), -1))


def pooled_linear(data: SequenceDataModule) -> PooledLinear:
    """Returns `PooledLinear`, fitted to the training samples as a network sees them.

    Its penalty is chosen in folds of which each leaves out other values of the field that divides the data, such as other speakers.

    Args:
        data: Has the samples.

    >>> data = SequenceDataModule(events={"num_samples": 60})
    >>> pooled_linear(data).num_parameters
    201
    """
    by = data.split.by
    groups = None if by is None else data.dataset.fields[by][data.parts["train"]]
    data.targets("train")  # says what is missing
    return PooledLinear(data.task, data.out_channels).fit(data.samples("train"), groups)


def pooled_linear_scores(
    data: SequenceDataModule, part: str, sentiment: bool = False, model: PooledLinear | None = None
) -> dict[str, float]:
    """Returns the metrics of the pooled linear model: what is reached without looking at the order of steps.

    Args:
        data: Its training samples make the model.
        part: `test` or `valid`, which it is measured on.
        sentiment: As for `TaskMetrics`.
        model: What `pooled_linear` made of the data, where it is at hand.

    >>> data = SequenceDataModule(events={"num_samples": 300, "task": "classification", "num_classes": 2})
    >>> pooled_linear_scores(data, "test")["auc"] > constant_scores(data, "test")["auc"]
    True
    """
    model = pooled_linear(data) if model is None else model
    return _scores(data, part, sentiment, model.predict(data.samples(part)))


def baseline_scores(data: SequenceDataModule, part: str, sentiment: bool = False) -> dict[str, dict[str, float]]:
    """Returns the metrics of what every model has to beat, by name, in the order of the table.

    The arguments are those of `constant_scores`.

    >>> list(baseline_scores(SequenceDataModule(events={"num_samples": 60}), "test"))
    ['constant', 'pooled linear']
    """
    return {"constant": constant_scores(data, part, sentiment), "pooled linear": pooled_linear_scores(data, part, sentiment)}


def behind_a_baseline(task: Task, scores: Mapping[str, Mapping[str, float]]) -> str | None:
    """Returns the sentence that says which baseline is better than the model, by the main metric of the task; None where none is.

    Args:
        task: The kind of target: `regression`, `classification` or `multilabel`.
        scores: The scores of `model` and of baselines, by name.

    >>> behind_a_baseline("classification", {"model": {"accuracy": 0.49}, "pooled linear": {"accuracy": 0.72}})
    'the model is behind pooled linear: accuracy 0.490 against 0.720'
    """
    metric = MAIN_METRIC[task]
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    own, others = scores["model"][metric], {name: found[metric] for name, found in scores.items() if name != "model"}
    name = max(others, key=lambda name: sign * others[name])
    return f"the model is behind {name}: {metric} {cell(own)} against {cell(others[name])}" if sign * others[name] > sign * own else None


def _scores(data: SequenceDataModule, part: str, sentiment: bool, prediction: Tensor) -> dict[str, float]:
    metrics = TaskMetrics(data.task, data.out_channels, sentiment, data.label_names if data.task == "multilabel" else None)
    return plain(metrics.scores(prediction, data.targets(part)))


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
        path: File to write; its folder is made.
        record: Nested dicts, lists, strings and numbers.

    Raises:
        TypeError: If a value is none of these.
    """
    write_whole(path, json.dumps(defined(record), indent=2, allow_nan=False) + "\n")


def cell(value: float) -> str:
    """A number of a table; one that is undefined shows as a dash."""
    return "-" if math.isnan(value) else f"{value:.3f}"


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
