"""Processes to kill, limit and measure; and small data with a signal."""

import csv
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# What a child does first. Its text is run by `exec`, so that the child needs to import nothing of the tests.
START = """
import os, runpy, sys
os.chdir(folder)
os.environ.pop("MEA_GRAPH_RUN_DIR", None)  # of a run in the process of the tests
os.environ.update(environment)
for number in (1, 2):
    os.dup2(os.open(f"child-{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
sys.path.insert(0, folder)
sys.argv[:] = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


@dataclass
class Child:
    """A running process, as `python script arguments` would be."""

    process: Any
    output: Path

    def wait(self, timeout: float = 120) -> int:
        """Returns the exit code, or the negative number of the signal that ended it; a process that takes too long fails the test."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            pytest.fail(f"the child took more than {timeout} s; it wrote:\n{self.text()}")
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


@pytest.fixture(scope="session")
def warm_server() -> Any:
    """A server that has imported the package once and forks children from there: seconds saved for each of them."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["mea_graph.train.cli", "h5py"])
    return server


@pytest.fixture
def child(warm_server, tmp_path) -> Callable[..., Child]:
    """Starts a script in a process of its own, in the test's folder."""
    started = []

    def start(script: str | Path, *arguments: object, environment: dict[str, str] | None = None) -> Child:
        name = str(len(started))
        known = {
            "folder": str(tmp_path),
            "environment": {"CUDA_VISIBLE_DEVICES": "", **(environment or {})},
            "name": name,
            "script": str(script),
            "arguments": [str(argument) for argument in arguments],
        }
        process = warm_server.Process(target=exec, args=(START, known))
        process.start()
        started.append(process)
        return Child(process, tmp_path / f"child-{name}.txt")

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


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


@pytest.fixture
def command() -> Path:
    """The script behind `mea-graph`."""
    import mea_graph.__main__

    return Path(mea_graph.__main__.__file__)


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
