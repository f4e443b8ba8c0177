"""The programs of docs/gallery.md run as they are, draw the pictures that the page shows, and are all on it."""

import ast
import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "gallery.md").read_text()
FIGURES = REPOSITORY / "docs" / "figures"
PROGRAMS = sorted((REPOSITORY / "examples").glob("*.py"))
NAMES = [path.stem for path in PROGRAMS]


@pytest.mark.parametrize("path", PROGRAMS, ids=NAMES)
def test_a_program_runs_and_draws_what_the_page_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = FIGURES / f"gallery-{path.stem}.png"
    if shown.exists():
        pytest.importorskip("matplotlib")
    runpy.run_path(str(path), run_name="__main__")
    assert [made.name for made in tmp_path.iterdir()] == ([f"{path.stem}.png"] if shown.exists() else [])
    if shown.exists():
        from matplotlib.image import imread

        made, kept = imread(f"{path.stem}.png"), imread(shown)
        assert made.shape == kept.shape
        assert abs(made - kept).mean() < 0.01, f"{shown.name} is another picture: copy the new one there"


@pytest.mark.parametrize("path", PROGRAMS, ids=NAMES)
def test_a_program_is_short_and_ends_by_asserting_its_idea(path: Path) -> None:
    text = path.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
    assert isinstance(ast.parse(text).body[-1], ast.Assert)


def test_the_page_has_every_program_and_every_picture_once() -> None:
    assert sorted(re.findall(r"^:::\{literalinclude\} \.\./examples/(\w+)\.py$", PAGE, re.MULTILINE)) == NAMES
    assert len(NAMES) == 8
    pictures = sorted(path.name for path in FIGURES.glob("gallery-*"))
    assert sorted(re.findall(r"\]\(figures/(gallery-[\w-]+\.png)\)", PAGE)) == pictures
    assert {name.removeprefix("gallery-").removesuffix(".png") for name in pictures} <= set(NAMES)
