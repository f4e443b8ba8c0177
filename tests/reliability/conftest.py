"""Small data with a signal, and what runs on it."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs go to `runs/` in the current folder; and no run may see what another one left in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("MEA_GRAPH_RUN_DIR", "LOCAL_RANK", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    """40 samples of two modalities in two classes; the lips are missing now and then. 24 train, 8 validate, 8 test."""
    rng = np.random.default_rng(0)
    label = rng.permutation(40) % 2
    lengths = {"audio": rng.integers(3, 9, 40), "lips": rng.integers(1, 6, 40)}
    lengths["lips"][::7] = 0
    out: dict[str, np.ndarray] = {"label": label, "part": np.array((["train"] * 3 + ["valid", "test"]) * 8)}
    for name, width in (("audio", 4), ("lips", 3)):
        out[name] = (rng.normal(size=(40, lengths[name].max(), width)) + label[:, None, None]).astype(np.float32)
        out[f"{name}_len"] = lengths[name]
    return out


@pytest.fixture
def source(tmp_path, arrays) -> Path:
    np.savez(tmp_path / "clips.npz", **arrays)
    return tmp_path / "clips.npz"


@pytest.fixture(scope="session")
def small_model() -> list[str]:
    """Options of a command line for a small MEA on the file that `source` writes."""
    size = {"channels": "8", "heads": "2", "hidden_channels": "8", "exclusive.num_layers": "1", "agnostic.num_layers": "1"}
    model = [word for name, value in ({"form": "published"} | size).items() for word in (f"--model.{name}", value)]
    return ["--data.reader.split", "part", "--trainer.accelerator", "cpu", *model]


@pytest.fixture
def small_fit(source, small_model) -> list[str]:
    """Words of a command line that trains a small MEA on `source`; give it `--run_dir` and `--trainer.max_epochs`."""
    return ["fit", "--data.source", str(source), *small_model]


@pytest.fixture(scope="session")
def read_logs() -> Callable[[str | Path], dict[tuple[int, str], str]]:
    """Reads everything that a run logged, by epoch and name; the parts of a resumed run joined."""

    def read(folder: str | Path) -> dict[tuple[int, str], str]:
        numbers = {}
        for path in sorted(Path(folder, "logs").glob("version_*/metrics.csv")):
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    numbers |= {(int(row["epoch"]), name): value for name, value in row.items() if "/" in name and value}
        return numbers

    return read


@pytest.fixture(scope="session")
def fuzz_cases() -> int:
    """Files for each reader: a few hundred in CI, more on demand."""
    return int(os.environ.get("MEA_GRAPH_FUZZ_CASES", "400"))
