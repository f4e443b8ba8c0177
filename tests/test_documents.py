"""The documents hold true: their Python runs, their links, paths, names, commands and tests exist."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "benchmarks").rglob("*.md")])
DOCUMENT_IDS = [d.relative_to(REPOSITORY).as_posix() for d in DOCUMENTS]

FENCE = re.compile(r"(?:<!-- no-run: (?P<reason>[^\n]+?) -->\n+)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
PATH = re.compile(r"`(?P<path>(?:mea_graph|tests|docs|benchmarks|\.ci)/[\w./-]*)(?:::(?P<test>\w+))?`")
NAME = re.compile(r"`(?P<name>mea_graph(?:\.\w+)+)`")


class Block(NamedTuple):
    document: Path
    line: int
    code: str
    reason: str | None  # why it is not run; None where it is


def blocks(document: Path, *languages: str) -> list[Block]:
    text = document.read_text()
    return [
        Block(document, text.count("\n", 0, found.start("code")), found["code"], found["reason"])
        for found in FENCE.finditer(text)
        if found["language"] in languages
    ]


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def load(block: Block):
    """Compiles a block so that a traceback shows the document's own line."""
    return compile("\n" * block.line + block.code, str(block.document), "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__document__"}
    for block in blocks(document, "python"):
        if not block.reason:
            exec(load(block), namespace)


@pytest.mark.slow
def test_the_readme_trains_on_own_recordings(tmp_path, monkeypatch):
    """Makes the README's file, takes its configuration and types its commands, with one epoch instead of many."""
    monkeypatch.chdir(tmp_path)
    readme = REPOSITORY / "README.md"
    (python,) = (block for block in blocks(readme, "python") if "np.savez" in block.code)
    exec(load(python), {})
    (config,) = blocks(readme, "yaml")
    name = config.code.splitlines()[0].removeprefix("# ")
    Path(name).write_text(config.code)
    shell = "".join(block.code for block in blocks(readme, "bash"))
    commands = re.findall(rf"^mea-graph (\w+) --config {re.escape(name)}", shell, re.MULTILINE)
    assert commands == ["fit", "test", "predict"]
    for command in commands:
        words = [sys.executable, "-m", "mea_graph", command, "--config", name] + ["--trainer.max_epochs", "1"] * (command == "fit")
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert {"metrics.json", "predictions.csv", "config.yaml"} <= {path.name for path in Path("runs").rglob("*")}


def test_python_blocks_that_are_not_run_compile_and_are_few():
    not_run = [block for document in DOCUMENTS for block in blocks(document, "python") if block.reason]
    for block in not_run:
        load(block)
    assert len(not_run) == 0, "an example that is not run may be wrong; if it has to be, raise this number"


def test_the_readme_has_its_example():
    code = "".join(block.code for block in blocks(REPOSITORY / "README.md", "python") if not block.reason)
    assert "PredictiveSelfAttention(" in code
    assert "GraphFusionConv(" in code


@pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)
def test_local_links_resolve(document):
    for found in LINK.finditer(prose(document)):
        target, _, anchor = found["target"].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{found['target']} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{found['target']}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)
def test_paths_and_tests_exist(document):
    for found in PATH.finditer(prose(document)):
        path = REPOSITORY / found["path"]
        assert path.exists(), f"{found['path']} does not exist"
        if found["test"]:
            assert re.search(rf"^def {found['test']}\b", path.read_text(), re.MULTILINE), f"{found['path']} has no {found['test']}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)
def test_dotted_names_resolve(document):
    for found in NAME.finditer(prose(document)):
        pkgutil.resolve_name(found["name"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)
def test_commands_name_what_exists(document):
    makefile = (REPOSITORY / "Makefile").read_text()
    shell = "\n".join(block.code for block in blocks(document, "bash", "sh", "console")) + "\n" + prose(document)
    for target in re.findall(r"(?:^|`|&& )make ([a-z]+)", shell, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for config in re.findall(r"mea-graph \w+ --config ([\w./-]+)", shell):
        if "/" not in config and not config.endswith(".yaml"):
            assert (REPOSITORY / f"mea_graph/train/configs/{config}.yaml").exists(), f"--config {config}"


def test_the_citation_is_whole():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["title"] == "mea-graph"
    assert {"message", "authors", "version", "license"} <= set(citation)
    (paper,) = citation["references"]
    assert {"type", "title", "authors", "journal", "year"} <= set(paper)
    assert len(paper["authors"]) == 7
