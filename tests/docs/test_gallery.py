"""The programs of docs/gallery.md run as they are, draw the pictures that the page shows, and are all on it."""

import ast
import re
import runpy
import sys
import traceback
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "gallery.md").read_text()
PROGRAMS = sorted((REPOSITORY / "examples").glob("*.py"))
NAMES = [path.stem for path in PROGRAMS]
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def program_of(section: str) -> list[str]:
    return re.findall(r"^:::\{literalinclude\} \.\./examples/(\w+)\.py$", section, re.MULTILINE)


def pictures_of(section: str) -> list[Path]:
    drawings = re.findall(r"^```\{drawing\} (\S+)$", section, re.MULTILINE)
    return [DOCS / path for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", section)] + [DOCS / "drawings" / f"{d}.svg" for d in drawings]


@pytest.mark.parametrize("path", PROGRAMS, ids=NAMES)
def test_a_program_runs_and_draws_what_the_page_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert [made.name for made in tmp_path.iterdir()] == [f"{path.stem}.png"]
    shown = DOCS / "figures" / f"gallery-{path.stem}.png"
    made, kept = imread(f"{path.stem}.png"), imread(shown)
    assert made.shape == kept.shape
    assert abs(made - kept).mean() < 0.01, f"{shown.name} is another picture: copy the new one there"


@pytest.mark.parametrize("path", PROGRAMS, ids=NAMES)
def test_a_program_without_matplotlib_stops_at_once_and_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mea_graph.viz")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="matplotlib") as caught:
        runpy.run_path(str(path), run_name="__main__")
    assert re.search(r"extra viz|mea-graph\[viz\]", "".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("path", PROGRAMS, ids=NAMES)
def test_a_program_is_short_and_ends_by_asserting_its_idea(path: Path) -> None:
    text = path.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 50
    assert isinstance(ast.parse(text).body[-1], ast.Assert)


def test_the_page_has_every_program_and_every_picture_once() -> None:
    assert sorted(program_of(PAGE)) == NAMES
    assert len(NAMES) == 8
    kept = sorted((DOCS / "figures").glob("gallery-*"))
    assert [path.name for path in kept] == [f"gallery-{name}.png" for name in NAMES]
    assert max(path.stat().st_size for path in kept) < 60_000


def test_every_section_of_the_page_has_its_own_picture() -> None:
    for title, section in SECTIONS.items():
        (picture,) = pictures_of(section)
        assert picture.is_file(), title
        programs = program_of(section)
        if programs:
            assert picture == DOCS / "figures" / f"gallery-{programs[0]}.png"
    others = [section for section in SECTIONS.values() if not program_of(section)]
    links = [re.findall(r"(?<!!)\[[^\]]+\]\((\w+\.md)\)", section)[0] for section in others]
    assert links == ["tutorial.md", "layers.md", "studies.md"]
