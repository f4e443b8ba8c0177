"""Checking that the targets of a data set fit the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch_geometric.data import HeteroData

from mea_graph.data import DataError
from mea_graph.train.metrics import TASKS, Task


def check_targets(y: np.ndarray | None, task: Task | None, classes: int | None, notes: Sequence[str] = ()) -> tuple[Task, int]:
    """Returns the task and the width of the prediction, or says why the targets do not allow it.

    Args:
        y: Targets, or `None` where they are not known.
        task: The task requested; follows from the targets if `None`.
        classes: Number of classes or labels; the largest class number plus one if `None`.
        notes: Of the data set: its reader may say why the targets are not known.

    Shape:
        - `y` is float :math:`(N,)` for regression, integer :math:`(N,)` for classification, :math:`(N, K)` of zeros and ones for labels.

    Raises:
        DataError: If the targets do not fit the task, or a class has no sample.

    >>> check_targets(np.array([0, 2, 1]), None, None)
    ('classification', 3)
    """
    if task is not None and task not in TASKS:
        raise DataError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    if y is None:
        if task is None or (task != "regression" and classes is None):
            needed = "to train or test on; to predict alone, expected data.task (and data.classes unless it is regression), got none"
            why = next((f" ({note})" for note in notes if note.startswith("no labels")), "")
            raise DataError(f"y: the data has no targets{why} {needed}")
        return task, 1 if task == "regression" else int(classes or 0)
    natural = _natural_task(y)
    if task is not None and task != natural:
        kind = "2-D" if y.ndim == 2 else "float" if natural == "regression" else "integer"
        raise DataError(f"task: the targets of the data are {kind} {y.shape}, which is {natural}; got task={task!r}")
    if classes is not None and natural == "regression":
        raise DataError(f"data.classes: expected none for regression, got {classes}")
    if natural == "regression":
        return natural, 1
    if natural == "multilabel":
        if classes not in (None, y.shape[1]):
            raise DataError(f"data.classes: expected {y.shape[1]} (the labels of the data), got {classes}")
        return natural, y.shape[1]
    return natural, _count_classes(y, classes)


def check_samples(batch: Any, labelled: bool) -> None:
    """Refuses what a loader yields where it is no batch of samples, or has no targets though they are needed.

    Args:
        batch: What came.
        labelled: Whether targets are needed.

    Raises:
        TypeError: If it is no batch.
        DataError: If its samples have no targets.

    >>> check_samples([1, 2], labelled=False)
    Traceback (most recent call last):
    TypeError: batch: expected a batch of PyG samples, got list; ...
    """
    if not isinstance(batch, HeteroData) or not hasattr(batch, "num_graphs"):
        remedy = "SequenceDataModule(dataset) makes batches, and so does DataLoader of torch_geometric.loader"
        raise TypeError(f"batch: expected a batch of PyG samples, got {type(batch).__name__}; {remedy}")
    if labelled and "y" not in batch:
        raise DataError("y: the samples of a batch have no targets; expected y in each, to train or to measure")


def _natural_task(y: np.ndarray) -> Task:
    if y.ndim == 2:
        return "multilabel"
    return "classification" if np.issubdtype(y.dtype, np.integer) else "regression"


def _count_classes(y: np.ndarray, classes: int | None) -> int:
    present = np.unique(y)
    count = int(present[-1]) + 1 if classes is None else classes
    if present[0] < 0 or present[-1] >= count:
        raise DataError(f"y: expected classes in [0, {count}), got {present[0]} to {present[-1]}")
    missing = np.setdiff1d(np.arange(count), present)
    if classes is None and len(missing):
        raise DataError(f"y: no sample has class {missing[0]} of 0..{count - 1}; number the classes without gaps or give data.classes")
    if count < 2:
        raise DataError("y: expected at least two classes, got one")
    return count
