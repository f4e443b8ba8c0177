"""Without the extra, one line that names it."""

import subprocess
import sys

import pytest

HIDE = "import sys; sys.modules[{name!r}] = None; from mea_graph.__main__ import main; sys.exit(main(['fit']))"


@pytest.mark.parametrize("name", ["lightning", "torchmetrics", "jsonargparse", "rich"])
def test_a_missing_package(name):
    done = subprocess.run([sys.executable, "-c", HIDE.format(name=name)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == f"mea-graph: error: mea_graph.train needs {name}, which is not installed: pip install 'mea-graph[train]'\n"
