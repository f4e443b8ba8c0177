"""Writing predictions: one row a sample as CSV, the vectors behind them as `.npz`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mea_graph.train.metrics import Task
from mea_graph.train.whole_files import write_whole


def prediction_row(id_: str, task: Task, names: Sequence[str], prediction: Tensor, target: Any = None) -> dict[str, Any]:
    """Returns the cells of one sample, by column: `id`, the target where it is known, and what was predicted.

    By task that is `prediction`; `prediction` and a probability per class; or a prediction and a probability per label. A class is
    written by its name in every column.

    Args:
        id_: Sample id.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        names: Names of the classes or labels.
        prediction: What the network gave.
        target: The true value, the name of the class, or a list of zeros and ones.

    Shape:
        - prediction `(out_channels,)`.

    >>> import torch
    >>> prediction_row(
    ...     "a",
    ...     "classification",
    ...     ["rest", "stress"],
    ...     torch.tensor([0.0, 0.0]),
    ...     "stress",
    ... )
    {'id': 'a', 'target': 'stress', 'prediction': 'rest', 'probability_rest': 0.5, 'probability_stress': 0.5}
    """
    cells: dict[str, Any] = {"id": id_}
    if task == "multilabel":
        probabilities = prediction.sigmoid().tolist()
        if target is not None:
            cells |= {f"target_{name}": int(value) for name, value in zip(names, target, strict=True)}
        cells |= {f"prediction_{name}": int(value > 0) for name, value in zip(names, prediction.tolist(), strict=True)}
        return cells | {f"probability_{name}": value for name, value in zip(names, probabilities, strict=True)}
    if target is not None:
        cells["target"] = target
    if task == "regression":
        return cells | {"prediction": prediction.item()}
    cells["prediction"] = names[int(prediction.argmax())]
    return cells | {f"probability_{name}": value for name, value in zip(names, prediction.softmax(0).tolist(), strict=True)}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV, whole or not at all.

    Args:
        path: File to write.
        rows: Cells by column, the same columns in each.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def write_embeddings(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `.npz`, whole or not at all.

    Args:
        path: File to write.
        arrays: By name.
    """
    memory = io.BytesIO()
    np.savez(memory, **arrays)  # type: ignore[arg-type]
    write_whole(path, memory.getbuffer())
