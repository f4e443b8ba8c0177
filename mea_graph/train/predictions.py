"""What a `Predictor` gives: one row a sample, whatever was requested."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mea_graph.nn import MEAOutput
from mea_graph.train.metrics import Task
from mea_graph.train.prediction_writer import prediction_row, write_embeddings, write_rows


@dataclass(frozen=True)
class Embeddings:
    """The vectors behind predictions; NaN where a sample lacks the modality.

    Args:
        fused: What the head reads.
        exclusive: Representations by modality; None where the model has none.
        agnostic: Representations by modality; None where the model has none.

    Shape:
        - `fused` :math:`(N, d)`, each representation :math:`(N, d_h)`, float32 or float64.

    >>> Embeddings(np.zeros((3, 8)), None, None).fused.shape
    (3, 8)
    """

    fused: np.ndarray
    exclusive: dict[str, np.ndarray] | None
    agnostic: dict[str, np.ndarray] | None


@dataclass(frozen=True)
class Predictions:
    """Predictions of a `Predictor`, in the order of the samples.

    Args:
        ids: Names of the samples.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        output: The network's own output: the value, or a logit for each class or label.
        label_names: Names of the classes or labels; their numbers as text where they have none.
        target: The true labels or values, if the data has them and they fit the model's task.
        part: For data that the model was trained with, the part of each sample: `train`, `valid`, `test` or an empty text. Else None.
        notes: What was left out of the data, guessed or renamed.
        embeddings: The vectors behind the predictions, with `predict(..., embeddings=True)`; else None.
        attention: The `MEAOutput` of each sample with every map, with `predict(..., attention=True)`; else None.

    Shape:
        - `output` `(N, out_channels)`.

    >>> found = Predictions(
    ...     ["a", "b"],
    ...     "classification",
    ...     np.array([[2.0, 0.0], [0.0, 1.0]]),
    ...     ["rest", "stress"],
    ... )
    >>> found.labels, found.probabilities.round(2).tolist()
    (['rest', 'stress'], [[0.88, 0.12], [0.27, 0.73]])
    """

    ids: list[str]
    task: Task
    output: np.ndarray
    label_names: list[str]
    target: list[Any] | None = None
    part: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    embeddings: Embeddings | None = None
    attention: list[MEAOutput] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[Any] | None:
        """The name of each sample's class, or the list of its binary labels; None for regression."""
        if self.task == "regression":
            return None
        if self.task == "classification":
            return [self.label_names[k] for k in self.output.argmax(1)]
        return [[name for name, logit in zip(self.label_names, row, strict=True) if logit > 0] for row in self.output]

    @property
    def probabilities(self) -> np.ndarray | None:
        """A probability for each class, or each binary label, `(N, C)`; None for regression."""
        if self.task == "regression":
            return None
        output = torch.from_numpy(self.output)
        return (output.softmax(1) if self.task == "classification" else output.sigmoid()).numpy()

    @property
    def values(self) -> np.ndarray | None:
        """The predicted values `(N,)` of a regression; else None."""
        return self.output[:, 0] if self.task == "regression" else None

    def rows(self) -> list[dict[str, Any]]:
        """Returns the cells of each sample by column, as `save` writes them."""
        targets = [None] * len(self) if self.target is None else self.target
        output = torch.from_numpy(self.output)
        rows = [
            prediction_row(id_, self.task, self.label_names, prediction, target)
            for id_, prediction, target in zip(self.ids, output, targets, strict=True)
        ]
        if self.part is not None:
            rows = [row | {"part": part} for row, part in zip(rows, self.part, strict=True)]
        return rows

    def save(self, path: str | Path) -> None:
        """Writes a CSV with one row a sample, whole or not at all.

        Args:
            path: The file, `.csv`; one of that name is replaced.

        Raises:
            ValueError: If the name ends otherwise.
        """
        write_rows(_named(path, ".csv"), self.rows())

    def save_embeddings(self, path: str | Path) -> None:
        """Writes an `.npz` with `ids`, `fused` and for each modality `<modality>_exclusive` and `<modality>_agnostic`.

        Args:
            path: The file, `.npz`; one of that name is replaced.

        Raises:
            ValueError: If the predictions were made without embeddings, or the name ends otherwise.
        """
        if self.embeddings is None:
            raise ValueError("embeddings: these predictions have none; ask for them with predictor.predict(data, embeddings=True)")
        spaces = {"exclusive": self.embeddings.exclusive, "agnostic": self.embeddings.agnostic}
        arrays = {f"{m}_{space}": x for space, by_modality in spaces.items() for m, x in (by_modality or {}).items()}
        write_embeddings(_named(path, ".npz"), {"ids": np.array(self.ids, dtype=np.str_), "fused": self.embeddings.fused, **arrays})


def _named(path: str | Path, suffix: str) -> Path:
    """The path, if its name says what is written."""
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"path: expected a name that ends in {suffix}, the form that is written, got {path}")
    return path
