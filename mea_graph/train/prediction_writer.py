"""Writing one row per predicted sample."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mea_graph.train.metrics import Task
from mea_graph.train.whole_files import write_whole


class PredictionWriter(L.Callback):
    """Collects the predictions of all processes and writes them as CSV, in the order of the data.

    Columns: ``id``, the target where it is known, and by task ``prediction``; ``prediction`` and a probability per class; or
    a prediction and a probability per label. A class is written by its name in every column, by its number where it has none. The file
    is written whole or not at all.

    Args:
        path: file to write.
        task: what the target is.
        ids: all sample ids, in the order of the rows.
        names: names of the classes or labels; their numbers where it is ``None``.

    Example:
        >>> writer = PredictionWriter(Path("predictions.csv"), "classification", ["a"], names=["rest", "stress"])
        >>> writer.row("a", torch.tensor([0.0, 0.0]), torch.tensor(1))
        {'id': 'a', 'target': 'stress', 'prediction': 'rest', 'probability_rest': 0.5, 'probability_stress': 0.5}
    """

    def __init__(self, path: Path, task: Task, ids: Sequence[str], names: Sequence[str] | None = None) -> None:
        self.path = path
        self.task = task
        self.ids = ids
        self.names = names
        self._batches: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._batches.append(outputs)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = [
            self.row(id_, batch["prediction"][i], None if batch["target"] is None else batch["target"][i])
            for batch in self._batches
            for i, id_ in enumerate(batch["id"])
        ]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if trainer.is_global_zero:
            self._write(rows)

    def row(self, id_: str, prediction: Tensor, target: Tensor | None) -> dict[str, Any]:
        """Returns the cells of one sample, by column.

        Args:
            id_: sample id.
            prediction: what the network gave.
            target: the true value, where known.

        Shape: prediction ``(out_channels,)``; target a scalar, or ``(K,)`` for several labels.
        """
        cells: dict[str, Any] = {"id": id_}
        names = self.names or [str(i) for i in range(len(prediction))]
        if self.task == "multilabel":
            probabilities = prediction.sigmoid().tolist()
            if target is not None:
                cells |= {f"target_{name}": int(value) for name, value in zip(names, target.tolist(), strict=True)}
            cells |= {f"prediction_{name}": int(value > 0) for name, value in zip(names, prediction.tolist(), strict=True)}
            return cells | {f"probability_{name}": value for name, value in zip(names, probabilities, strict=True)}
        if self.task == "regression":
            return cells | ({} if target is None else {"target": target.item()}) | {"prediction": prediction.item()}
        if target is not None:
            cells["target"] = names[int(target)]
        cells["prediction"] = names[int(prediction.argmax())]
        return cells | {f"probability_{name}": value for name, value in zip(names, prediction.softmax(0).tolist(), strict=True)}

    def _write(self, rows: list[dict[str, Any]]) -> None:
        place = {id_: number for number, id_ in enumerate(self.ids)}
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: place[row["id"]]))
        write_whole(self.path, text.getvalue())
