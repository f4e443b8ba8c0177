"""Means, standard deviations, paired t-tests, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from mea_graph.train.metrics import MAIN_METRIC, Task
from mea_graph.train.reports import number_format

Values = dict[int, float]  # by seed


def shown_metrics(task: Task, names: Iterable[str], monitor: str) -> list[str]:
    """Returns the metrics of a table, the main one first: that which chose the epochs, where it is one of the task's.

    Args:
        task: The kind of target: `regression`, `classification` or `multilabel`.
        names: The names of all test metrics.
        monitor: The validation metric that chose the epochs.

    >>> shown_metrics("regression", ["mae", "rmse", "corr", "r2"], "valid/r2")
    ['r2', 'mae', 'rmse', 'corr']
    >>> shown_metrics("classification", ["accuracy", "f1_macro"], "valid/task")
    ['accuracy', 'f1_macro']
    """
    known = list(names)
    main = monitor.rpartition("/")[2]
    if main not in known:
        main = MAIN_METRIC[task]
    return [main, *(name for name in known if name != main)]


def mean_and_sd(values: Sequence[float]) -> str:
    """Returns "mean ± sd" (of the sample, n - 1); the mean alone for one value, a dash for none or an undefined one.

    Args:
        values: One a seed.

    >>> (
    ...     mean_and_sd([0.5, 0.7]),
    ...     mean_and_sd([0.5]),
    ...     mean_and_sd([]),
    ...     mean_and_sd([2e-6]),
    ... )
    ('0.600 ± 0.141', '0.500', '-', '2.0e-06')
    """
    if not len(values) or not np.isfinite(values).all():
        return "-"
    mean = float(np.mean(values))
    form = number_format(mean)
    if len(values) == 1:
        return f"{mean:{form}}"
    sd = np.std(values, ddof=1)
    return f"{mean:{form}} ± {sd:{form}}" if sd or form == ".3f" else f"{mean:{form}} ± 0"


def paired_p(ours: Values, theirs: Values) -> float:
    """Returns the p-value of a two-sided paired t-test over the seeds that both have; NaN for fewer than two, or where nothing varies.

    Args:
        ours: One value a seed.
        theirs: Another model's.

    >>> round(paired_p({0: 1.0, 1: 1.2, 2: 1.4}, {0: 0.5, 1: 0.8, 2: 0.9}), 4)
    0.0051
    """
    seeds = sorted(ours.keys() & theirs.keys())
    difference = np.array([ours[seed] - theirs[seed] for seed in seeds])
    if len(seeds) < 2 or not np.isfinite(difference).all() or np.ptp(difference) == 0:
        return math.nan
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number by Holm's method; NaN, which is no test, stays NaN and does not count.

    Args:
        values: The p-values of the tests of one table.

    >>> holm([0.01, 0.04, math.nan, 0.03])
    [0.03, 0.06, nan, 0.06]
    """
    corrected, least = [math.nan] * len(values), 0.0
    order = sorted((i for i, p in enumerate(values) if not math.isnan(p)), key=lambda i: values[i])
    for place, i in enumerate(order):
        least = corrected[i] = max(least, min(1.0, (len(order) - place) * values[i]))
    return corrected


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table.

    Args:
        header: The header of the columns.
        rows: One cell a column.

    >>> print(markdown(["model", "r2"], [["MEA", "0.6"]]))
    | model | r2 |
    |---|---|
    | MEA | 0.6 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "|".join(line) + "|" if line is lines[1] else "| " + " | ".join(line) + " |" for line in lines)


def scores_by_row(records: Iterable[Mapping], part: str = "test") -> dict[str, dict[str, Values]]:
    """Returns row -> metric -> seed -> value; an undefined value is NaN.

    Args:
        records: The records of runs, each with its name.
        part: `test` or `valid`.
    """
    found: dict[str, dict[str, Values]] = {}
    for record in records:
        for metric, value in record[part].items():
            found.setdefault(record["name"], {}).setdefault(metric, {})[record["seed"]] = math.nan if value is None else value
    return found


def comparison_table(scores: Mapping[str, Mapping[str, Values]], metrics: Sequence[str], reference: str, extra: Mapping[str, str]) -> str:
    """Returns the table of models: metrics, the distance of the main one to the reference's, its p-value, and one more column.

    The p-values are corrected for the number of rows (`holm`); the column's title says so where there is more than one.

    Args:
        scores: Row -> metric -> seed -> value.
        metrics: The columns, the main one first.
        reference: The row that the others are tested against.
        extra: What the last column says of each row.
    """
    main = metrics[0]
    others = [name for name in scores if name != reference] if reference in scores else []
    p_values = dict(zip(others, holm([paired_p(scores[reference][main], scores[name][main]) for name in others]), strict=True))
    rows = []
    for name, found in scores.items():
        away, p = "", ""
        if name in p_values:
            ours, theirs = scores[reference][main], found[main]
            seeds = sorted(ours.keys() & theirs.keys())
            difference = [theirs[seed] - ours[seed] for seed in seeds]
            mean = float(np.mean(difference)) if seeds else math.nan
            away = f"{mean:+{number_format(mean)}}" if math.isfinite(mean) else "-"
            value = p_values[name]
            p = "-" if math.isnan(value) else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"
        seeds_of = found[main]
        cells = [mean_and_sd([found.get(metric, {}).get(seed, math.nan) for seed in seeds_of]) for metric in metrics]
        rows.append([name, str(len(seeds_of)), *cells, away, p, extra.get(name, "")])
    title = "p (Holm)" if len(others) > 1 else "p"
    return markdown(["model", "n", *metrics, f"{main} against {reference}", title, "parameters"], rows)
