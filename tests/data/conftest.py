"""Sequences with known true lengths, in memory and in a file."""

from pathlib import Path

import numpy as np
import pytest

from mea_graph.data import MultimodalDataset

LENGTHS = {"audio": [4, 0, 7, 2, 5, 3], "video": [2, 3, 0, 6, 1, 4]}
WIDTHS = {"audio": 3, "video": 2}


@pytest.fixture
def sequences() -> dict[str, list[np.ndarray]]:
    """Two modalities of six samples, each missing once."""
    rng = np.random.default_rng(0)
    return {name: [rng.normal(3.0, 2.0, (t, WIDTHS[name])).astype(np.float32) for t in lengths] for name, lengths in LENGTHS.items()}


@pytest.fixture
def dataset(sequences: dict[str, list[np.ndarray]]) -> MultimodalDataset:
    return MultimodalDataset.from_arrays(
        sequences,
        y=[0, 1, 2, 0, 1, 2],
        ids=list("abcdef"),
        time={"audio": [np.arange(len(x)) / 10 for x in sequences["audio"]]},
        split=["train", "train", "valid", "train", "test", "test"],
        fields={"subject": [1, 1, 2, 2, 3, 3], "room": ["x", "y", "x", "y", "x", "y"]},
        label_names=["low", "middle", "high"],
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of five samples, one of which lacks a modality."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "clips.npz",
        audio=rng.normal(size=(5, 8, 3)),
        audio_len=np.array([8, 0, 3, 5, 2]),
        lips=rng.normal(size=(5, 4, 2)),
        y=np.arange(5.0),
    )
    return tmp_path / "clips.npz"
