"""The example that searches for options runs where Optuna is installed; no environment of ours has it."""

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_search_finds_options(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(blocks[0], {})  # writes mine.npz
    (code,) = [block for block in blocks if block.startswith("# search.py")]
    Path("search.py").write_text(code)
    study = runpy.run_path("search.py")["study"]
    assert len(study.trials) == 8
    assert set(study.best_params) == {"channels", "dropout", "learning_rate"}
    assert 0.5 <= study.best_value <= 1
