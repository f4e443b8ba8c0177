"""Small data with a signal, and a command line that runs inside this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

SPLITS = (["train"] * 6 + ["valid"] * 2 + ["test"] * 2) * 6


def write_source(path: Path, y: np.ndarray) -> dict[str, Any]:
    """Arguments of `SequenceDataModule` for a new file: 60 samples of two ragged modalities, one of them missing now and then.

    There are ten subjects of six samples, and the file has splits of its own.
    """
    rng = np.random.default_rng(0)
    count = len(y)
    lengths = {"audio": rng.integers(3, 9, count), "lips": rng.integers(1, 6, count)}
    lengths["lips"][::7] = 0
    arrays = {}
    for name, width in (("audio", 4), ("lips", 3)):
        x = rng.normal(size=(count, lengths[name].max(), width)) + (y if y.ndim == 1 else y[:, 0])[:, None, None]
        x[np.arange(x.shape[1]) >= lengths[name][:, None]] = 0
        arrays |= {name: x.astype(np.float32), f"{name}_len": lengths[name]}
    np.savez(path, **arrays, label=y, subject=np.arange(count) // 6, split=np.array(SPLITS[:count]))
    return {"source": str(path), "reader": {"split": "split"}}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs go to `runs/` in the current folder; and no run may see what another one left in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("MEA_GRAPH_RUN_DIR", "LOCAL_RANK", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def classes_source(tmp_path) -> dict[str, Any]:
    return write_source(tmp_path / "classes.npz", np.random.default_rng(1).permutation(60) % 2)


@pytest.fixture
def scores_source(tmp_path) -> dict[str, Any]:
    """Scores in [-3, 3], a few of them exactly 0."""
    scores = np.random.default_rng(2).uniform(-3, 3, 60).round(1)
    scores[::9] = 0
    return write_source(tmp_path / "scores.npz", scores.astype(np.float32))


@pytest.fixture
def labels_source(tmp_path) -> dict[str, Any]:
    return write_source(tmp_path / "labels.npz", np.random.default_rng(3).integers(0, 2, (60, 3)).astype(np.float32))
