"""How far exclusive and agnostic representations are apart, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mea_graph.nn import MEAOutput
from mea_graph.studies.evaluate import Seen, batches, numbers
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.task_module import TaskModule

SPACES = ("exclusive", "agnostic")
DRAWN = 300  # samples kept for the figure


def disentanglement(module: TaskModule, data: SequenceDataModule, seen: Seen, drawing: Path) -> dict[str, float]:
    """Measures the representations of the test samples; whatever is fitted for that is fitted on training samples.

    - `modality_from_<space>`: accuracy of a linear classifier that recognises the modality of a representation; it should be
      near `modality_by_chance` for agnostic ones and near 1 for exclusive ones.
    - `hsic`: the paper's measure of dependence between a sample's two representations of a modality, the mean over modalities;
      `alignment`: the same, normalised to [0, 1] (linear CKA), so that it does not shrink with the vectors.
    - on the embedded data, `shared_from_<space>` and `private_from_<space>`: R2 of the true latents by ridge regression on the
      representations of all modalities.

    Args:
        module: A trained `MEAModule` with both spaces.
        data: Has the training samples.
        seen: What the module said of the test samples.
        drawing: File for the representations of some test samples.
    """
    modalities = list(seen.outputs[0].present)
    trained = _look(module, data)
    train, test = _vectors(trained.outputs), _vectors(seen.outputs)
    scores: dict[str, float] = {}
    for space in SPACES:
        scores[f"modality_from_{space}"] = _probe(*_labelled(train, space, modalities), *_labelled(test, space, modalities))
    labels = _labelled(test, SPACES[0], modalities)[1]
    scores["modality_by_chance"] = float(np.bincount(labels).max() / len(labels))
    scores["hsic"], scores["alignment"] = _dependence(test, modalities)
    if (latents := getattr(data.dataset, "latents", None)) is not None:
        truth = {"shared": latents.shared, "private": np.concatenate([latents.private[m] for m in modalities], 1)}
        for space in SPACES:
            x = [np.concatenate([part[space, m] for m in modalities], 1) for part in (train, test)]
            for name, values in truth.items():
                scores[f"{name}_from_{space}"] = _ridge_r2(x[0], values[trained.samples], x[1], values[seen.samples])
    drawing.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"{kind}.{m}": values[:DRAWN] for (kind, m), values in test.items()}
    np.savez_compressed(drawing, **arrays)
    return scores


def read_drawing(path: Path) -> MEAOutput:
    """Returns the representations in a file as the output that figures take.

    Args:
        path: The path of a file that `disentanglement` wrote.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            kind, _, modality = name.partition(".")
            found.setdefault(kind, {})[modality] = torch.as_tensor(arrays[name])
    nothing: Any = None
    return MEAOutput(nothing, found["exclusive"], found["agnostic"], found["present"], nothing, nothing, nothing, {}, [], {}, [], {})


def _vectors(outputs: Sequence[MEAOutput]) -> dict[tuple[str, str], np.ndarray]:
    """Representations and presence of all samples, by kind and modality."""
    vectors = {}
    for kind in (*SPACES, "present"):
        for m in outputs[0].present:
            vectors[kind, m] = torch.cat([getattr(output, kind)[m] for output in outputs]).cpu().numpy()
    return vectors


def _labelled(vectors: dict[tuple[str, str], np.ndarray], space: str, modalities: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Representations that are there, and the number of the modality each stems from."""
    there = [vectors[space, m][vectors["present", m]] for m in modalities]
    return np.concatenate(there), np.repeat(np.arange(len(there)), [len(h) for h in there])


def _probe(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return float(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x, y).score(x_test, y_test))


def _ridge_r2(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    """Mean R2 over the columns of y."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 7)))
    return float(model.fit(x, y).score(x_test, y_test))


def _dependence(vectors: dict[tuple[str, str], np.ndarray], modalities: Sequence[str]) -> tuple[float, float]:
    """HSIC with inner-product kernels and its normalised form, means over modalities."""
    raw, normalised = [], []
    for m in modalities:
        e, a = (vectors[space, m][vectors["present", m]].astype(np.float64) for space in SPACES)
        e, a = e - e.mean(0), a - a.mean(0)
        cross, own = np.square(e.T @ a).sum(), np.linalg.norm(e.T @ e) * np.linalg.norm(a.T @ a)
        raw.append(cross / max(len(e) - 1, 1) ** 2)
        normalised.append(cross / own if own > 0 else 0.0)
    return float(np.mean(raw)), float(np.mean(normalised))


def _look(module: TaskModule, data: SequenceDataModule) -> Seen:
    """What the module says of the training samples."""
    number, seen = numbers(data), Seen([], [])
    with torch.inference_mode():
        for batch in batches(module, data, "train"):
            seen.outputs.append(module.run(batch))
            seen.samples.extend(number[name] for name in batch.id)
    return seen
