"""The built site: `make docs` makes it, which `make test` does first. Every public name has a page, every link leads somewhere."""

import importlib
import importlib.util
import inspect
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SITE = DOCS / "_build" / "html"
PARTS = ("nn", "ops", "data", "train", "baselines", "viz")
PUBLIC = [f"mea_graph.{part}.{name}" for part in PARTS for name in importlib.import_module(f"mea_graph.{part}").__all__]


class Page(HTMLParser):
    """What a page links to, loads, and offers as anchors; and the words of its article."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.depth, self.words = 0, ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "link" and found.get("href") and found.get("rel") != "canonical":
            self.loads.append(found["href"])
        self.depth += tag == "article"

    def handle_endtag(self, tag):
        self.depth -= tag == "article"

    def handle_data(self, data):
        if self.depth:
            self.words += data


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: make docs")
    return {path: Page(path) for path in sorted(SITE.rglob("*.html")) if "_modules" not in path.parts}


def test_every_public_name_has_a_page(pages):
    missing = []
    for name in PUBLIC:
        path = SITE / "api" / f"{name}.html"
        if path not in pages or name not in pages[path].anchors:
            missing.append(name)
    assert not missing


def test_a_page_of_the_reference_says_what_it_has_to(pages):
    for name in PUBLIC:
        value = getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
        words = pages[SITE / "api" / f"{name}.html"].words
        assert ">>>" in words, f"{name}: no example"
        if inspect.isclass(value) or inspect.isroutine(value):
            assert "[source]" in words, f"{name}: no link to its source"
        for section in ("Shape", "Raises"):
            if re.search(rf"^\s*{section}:\s*$", inspect.getdoc(value) or "", re.MULTILINE):
                assert section in words, f"{name}: no {section}"


def test_every_local_link_leads_somewhere(pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors):
                dead.append(f"{path.relative_to(SITE)}: {link}")
    assert not dead


def test_nothing_is_loaded_from_elsewhere(pages):
    for path, page in pages.items():
        assert not [load for load in page.loads if "//" in load], path


def test_no_page_is_empty_and_no_markup_shows(pages):
    for path, page in pages.items():
        if path.parent == SITE and path.stem not in ("genindex", "search", "py-modindex"):
            assert len(page.words.split()) > 40, f"{path.name}: nearly empty"
        assert not re.search(r"\{py:|:math:|:py:|(?<!`)``(?!`)", page.words), f"{path.name}: markup shows"


def drawings() -> list[Path]:
    return sorted((DOCS / "drawings").glob("*.svg"))


def test_every_drawing_stands_on_a_page():
    text = "".join(path.read_text() for path in DOCS.glob("*.md"))
    assert drawings()
    for path in drawings():
        assert f"```{{drawing}} {path.stem}\n" in text, path.name


@pytest.mark.parametrize("path", drawings(), ids=lambda path: path.stem)
def test_a_drawing_takes_the_colour_of_the_page_and_says_what_it_shows(path):
    svg = path.read_text()
    assert "<title " in svg
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg))
    assert colours <= {"none", "currentColor", f"url(#{path.stem}-padding)"}


@pytest.fixture
def extension(monkeypatch):
    """A module of docs/_extensions; skips where Sphinx is not installed."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (DOCS / "_extensions" / f"{name}.py").is_file():
            del sys.modules[name]


def test_every_table_of_a_study_has_a_title_of_its_own(extension):
    """Readers and search engines saw seven pages called "MEA and its baselines"."""
    root_pages = extension("root_pages")
    titles = {}
    for path in DOCS.glob("results/*/*/table.md"):
        text = path.read_text(encoding="utf-8")
        named = root_pages._with_its_data(path.relative_to(DOCS).with_suffix("").as_posix(), text)
        titles[path] = named.partition("\n")[0]
        assert named.partition("\n")[2] == text.partition("\n")[2]
    assert len(titles) > 20
    assert len(set(titles.values())) == len(titles)
    assert titles[DOCS / "results/events/missing_24_epochs/table.md"] == "# Missing modalities: events, 24 epochs"
    assert root_pages._with_its_data("results_events", "# Results") == "# Results"


def test_a_name_in_backticks_becomes_a_link_where_it_is_public(extension):
    with_links = extension("docstrings").with_links
    assert with_links("see `hsic`.") == "see :py:obj:`hsic <mea_graph.nn.hsic>`."
    assert with_links("`MEA`s and `x`", own="mea_graph.nn.MEA") == "``MEA``\\ s and ``x``"
    assert with_links(":math:`(B, T)`, bool; ``x``; :math:`(B,)`") == ":math:`(B, T)`, bool; ``x``; :math:`(B,)`"


def test_the_reference_names_everything_where_a_reader_looks_for_it(extension, monkeypatch):
    pages, known = extension("api_pages"), extension("api_groups")
    assert next(iter(pages.groups("nn"))) == "The model"
    assert pages.groups("nn")["The model"][0] == "MEA"
    nn = importlib.import_module("mea_graph.nn")
    classes = {name: getattr(nn, name) for name in nn.__all__ if inspect.isclass(getattr(nn, name))}
    assert set(known.PLACES) == {name.removeprefix("mea_graph.") for name in PUBLIC}
    layers = {f"nn.{name}" for name, value in classes.items() if not issubclass(value, tuple)}  # a result costs nothing
    assert set(known.COSTS) == layers | {f"ops.{name}" for name in known.GROUPS["ops"]["Attention"]}
    monkeypatch.setitem(known.GROUPS, "ops", {"Attention": ["predictive_attention"]})
    with pytest.raises(ValueError, match=r"each public name of mea_graph.ops once, got it wrong for .*segment_sum"):
        pages.groups("ops")


def test_formulas_become_mathml(extension):
    convert = extension("mathml").convert
    assert "<mi>softmax</mi>" in convert(r"\mathrm{softmax}\big(x_1, \dots, x_n\big)", as_block=True)
    with pytest.raises(Exception, match="Unknown LaTeX command"):
        convert(r"\nosuchcommand", as_block=False)


def test_the_tables_of_backends_name_backends_that_exist(extension):
    tables = extension("backend_tables")
    from mea_graph.ops import __all__ as public
    from mea_graph.ops.backends import _OPS

    assert set(tables.CASES) == {op for op in _OPS if op in public}
    for op in tables.CASES:
        for line in tables.table(op)[2:]:
            named = set(re.findall(r"`(\w+)`", line))
            assert named == set(_OPS[op].backends), line
        assert f"```{{backends}} {op}\n" in (DOCS / "backends.md").read_text()


def test_the_tables_of_backends_do_not_depend_on_the_machine(extension, monkeypatch):
    tables = extension("backend_tables")
    here = tables.table("interval_attention")
    assert "not installed" not in "".join(here)
    monkeypatch.setattr("mea_graph.ops.interval.triton.INSTALLED", False)
    monkeypatch.setattr("torch.version.hip", "6.0")
    assert tables.table("interval_attention") == here


def test_a_file_named_on_a_page_links_to_its_source(pages):
    links = pages[SITE / "paper.html"].links
    for name in ("mea_graph/nn/unimodal_extractor", "tests/nn/test_unimodal_extractor"):
        assert f"_modules/files/{name}.html" in links
    (link,) = [link for link in links if link.endswith("#test_table_one")]
    source = (SITE / urlsplit(link).path).read_text()
    assert 'id="test_table_one"' in source


def numbered(column: list[str], kind: str) -> set[int]:
    """The numbers that cells such as "Eq. 7-10" or "Fig. 3, 4" name."""
    found: set[int] = set()
    for cell in column:
        if cell.startswith(kind):
            for first, last in re.findall(r"(\d+)(?:-(\d+))?", cell):
                found |= set(range(int(first), int(last or first) + 1))
    return found


def test_cells_of_numbers_stay_on_one_line(extension):
    numbers = extension("tables")._NUMBERS
    for text in ("14.1 s (14-14.3)", "0.0459 (0.0384-0.0554)", "+0.029 (+0.007 to +0.050)", "893 ms (627 ms)", "3.95 GB", "1e-07", ""):
        assert numbers.fullmatch(text), text
    for text in ("0.815, late fusion GRU", "R2", "5700 samples"):
        assert not numbers.fullmatch(text), text


def test_cells_of_names_are_short_and_show_the_whole_name_under_the_mouse(pages):
    text = (SITE / "paper.html").read_text(encoding="utf-8")
    assert re.search(r'<a [^>]*title="tests/nn/test_mea.py"[^>]*>test</a>', text)
    assert re.search(r'<a [^>]*title="mea_graph/nn/mea.py"[^>]*>source</a>', text)
    assert re.search(r'<a [^>]*title="mea_graph.nn.MEA"[^>]*><code[^>]*><span class="pre">MEA</span></code></a>', text)


def test_the_paper_map_has_every_equation_figure_table_and_reading():
    text = (DOCS / "paper.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    column = [row[0] for row in rows]
    assert numbered(column, "Eq.") == set(range(1, 21))
    assert numbered(column, "Fig.") == set(range(1, 10))
    assert {"Table I", "Table II-IV", "Table V"} <= set(column)
    readings = {f"R{i}" for i in range(1, 9)}
    assert readings <= set(column)
    for row in rows:
        if row[0].startswith(("Eq.", "L_sep", "all")):
            symbol, where, reading = row[2:5]
            assert "`mea_graph." in symbol, row[0]
            assert "`mea_graph/" in where, row[0]
            assert "`tests/" in where, row[0]
            assert reading in {"", *readings}, row[0]


def test_the_page_of_a_figure_shows_it(pages):
    for name in importlib.import_module("mea_graph.viz").__all__:
        path = SITE / "api" / f"mea_graph.viz.{name}.html"
        (image,) = [load for load in pages[path].loads if load.endswith(f"{name}.svg")]
        assert (path.parent / image).resolve().stat().st_size > 2000


def test_code_on_a_page_fits_its_width():
    """Performance is made by the benchmarks, whose commands are long; the site wraps them."""
    wide = []
    for path in sorted(DOCS.glob("*.md")):
        for block in re.findall(r"^```\w+\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
            wide += [f"{path.name}: {line}" for line in block.splitlines() if len(line) > 90 and path.name != "performance.md"]
    assert not wide


def test_a_long_name_breaks_at_its_joints_only(extension):
    pieces = extension("tables").pieces
    assert pieces("ops/grouped_linear/cpu.py::test") == ["ops/", "grouped_", "linear/", "cpu.py::", "test"]
    assert pieces("mea_graph.nn.PredictiveEncoder") == ["mea_", "graph.", "nn.", "Predictive", "Encoder"]
    assert pieces("mean_over_time") == ["mean_over_time"]
