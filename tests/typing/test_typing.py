"""Type checkers on a user's files: every public name can be imported, and results have the types that the program states.

The package is read as an installed one, by its `py.typed`; the files lie elsewhere, without a configuration.
"""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PARTS = ("nn", "ops", "data", "train", "baselines", "viz")
CHECKED_ONCE = REPOSITORY / ".mypy_cache" / "strict"  # what mypy finds out about torch takes it most of a minute, and serves the next run
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"  # mypy has a folder for each


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A file that imports every public name, and a program."""
    lines = [f"from mea_graph.{part} import {name} as {part}_{name}" for part in PARTS for name in public_names(part)]
    (tmp_path / "names.py").write_text("\n".join(lines) + "\n")
    shutil.copy(Path(__file__).with_name("program.py"), tmp_path)
    return ["names.py", "program.py"]


def public_names(part: str) -> list[str]:
    return importlib.import_module(f"mea_graph.{part}").__all__


def check(folder: Path, *command: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_strict_passes(files: list[str], tmp_path: Path) -> None:
    found = CHECKED_ONCE.with_name(VERSION)  # by `make types`, which checks torch with the same options
    if found.is_dir() and not CHECKED_ONCE.exists():
        shutil.copytree(found, CHECKED_ONCE / VERSION)
    (tmp_path / "wrong.py").write_text("from mea_graph.nn import FeedForward\n\nFeedForward('8').forward(3)\n")
    # PyG has no types, and the flag is one of those that the cache depends on.
    options = ("--strict", "--ignore-missing-imports", "--cache-dir", str(CHECKED_ONCE))
    _, said = check(tmp_path, "mypy", *options, *files, "wrong.py")
    assert said.count("[arg-type]") == said.count("wrong.py:3: error:") == 2, said
    assert said.endswith("Found 2 errors in 1 file (checked 3 source files)\n"), said


@pytest.mark.slow
def test_pyright_passes(files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    code, said = check(tmp_path, "pyright", "--pythonpath", sys.executable, *files)
    assert code == 0, said
