"""Every program of the gallery runs as it stands and holds what it says; the page shows all of them."""

import re
import runpy
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = sorted((REPOSITORY / "examples").glob("*.py"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_runs(path: Path) -> None:
    text = path.read_text()
    assert "\nassert " in text  # it holds something
    assert len(text.splitlines()) <= 45
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")


def test_the_page_shows_every_program() -> None:
    page = (REPOSITORY / "docs/gallery.md").read_text()
    assert sorted(re.findall(r"\.\./examples/(\w+\.py)", page)) == [path.name for path in PROGRAMS]
