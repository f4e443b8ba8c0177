"""The documents hold true: their Python runs, their links, paths, names, commands and tests exist."""

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import yaml

from mea_graph.__main__ import main

REPOSITORY = Path(__file__).parents[1]
FOLDERS = (REPOSITORY, REPOSITORY / "docs", REPOSITORY / "benchmarks", REPOSITORY / ".github", REPOSITORY / ".github" / "ISSUE_TEMPLATE")
DOCUMENTS = sorted(document for folder in FOLDERS for document in folder.glob("*.md"))
DOCUMENT_IDS = [d.relative_to(REPOSITORY).as_posix() for d in DOCUMENTS]

FENCE = re.compile(
    r"(?:<!-- no-run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^```(?:\{(?P<directive>[\w-]+)\}|(?P<language>\w*))[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
PATH = re.compile(r"`(?P<path>(?:mea_graph|tests|docs|benchmarks|\.ci)/[\w./-]*)(?:::(?P<test>\w+))?`")
FILE_NAME = re.compile(r"# (?P<name>[\w-]+\.(?:py|yaml))\n")
SHELL = ("bash", "sh", "console")
PROGRAMS = {
    "mea-graph": [sys.executable, "-m", "mea_graph"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    "python": [sys.executable],
}
REASONS = {
    "installs packages",
    "it asks a data base of weaknesses over the network",
    "makes an environment and takes minutes",
    "needs a package that is not installed",
    "needs recordings that are not in the repository",
    "needs two machines with GPUs",
    "runs the tests themselves",
    "takes minutes",
}
CAMEL = re.compile(r"(?<!`)`(?P<name>[A-Z][a-z]+(?:[A-Z]\w*)+|MEA(?:[A-Z][a-z]\w*)?)(?:\([^`]*\))?`(?!`)")
PUBLIC = {name for part in ("nn", "ops", "data", "train", "baselines", "viz") for name in pkgutil.resolve_name(f"mea_graph.{part}").__all__}
ELSEWHERE = {
    "AttentionExplainer": "torch_geometric.explain.AttentionExplainer",
    "BasicGNN": "torch_geometric.nn.models.basic_gnn.BasicGNN",
    "CaptumExplainer": "torch_geometric.explain.CaptumExplainer",
    "DataLoader": "torch_geometric.loader.DataLoader",
    "DeepGCNLayer": "torch_geometric.nn.DeepGCNLayer",
    "EdgeIndex": "torch_geometric.EdgeIndex",
    "FlopCounterMode": "torch.utils.flop_counter.FlopCounterMode",
    "GraphMaskExplainer": "torch_geometric.explain.algorithm.GraphMaskExplainer",
    "HeteroConv": "torch_geometric.nn.HeteroConv",
    "HeteroData": "torch_geometric.data.HeteroData",
    "ImbalancedSampler": "torch_geometric.loader.ImbalancedSampler",
    "ImportError": "builtins.ImportError",
    "LightningDataset": "torch_geometric.data.lightning.LightningDataset",
    "OnDiskDataset": "torch_geometric.data.OnDiskDataset",
    "MessagePassing": "torch_geometric.nn.MessagePassing",
    "RandomNodeLoader": "torch_geometric.loader.RandomNodeLoader",
    "SparseTensor": "torch_geometric.typing.SparseTensor",
    "TransformerConv": "torch_geometric.nn.TransformerConv",
    "TypeError": "builtins.TypeError",
    "ValueError": "builtins.ValueError",
    "StochasticWeightAveraging": "lightning.pytorch.callbacks.StochasticWeightAveraging",
}
NAME = re.compile(r"`(?P<name>mea_graph(?:\.\w+)+)`")


class Block(NamedTuple):
    document: Path
    line: int
    language: str
    code: str
    reason: str | None  # why it is not run; None where it is


def blocks(document: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a document, of these languages or all."""
    text = document.read_text()
    return [
        Block(
            document,
            text.count("\n", 0, found.start("code")),
            found["language"] or found["directive"] or "",
            found["code"],
            found["reason"],
        )
        for found in FENCE.finditer(text)
        if not languages or found["language"] in languages
    ]


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def load(block: Block):
    """Compiles a block so that a traceback shows the document's own line."""
    return compile("\n" * block.line + block.code, str(block.document), "exec")


def has_commands(document: Path) -> bool:
    return any(not block.reason for block in blocks(document, *SHELL))


def config_of(words: list[str]) -> Path:
    """The last configuration that a command names; an empty file where it is a packaged one."""
    last = Path(words[len(words) - words[::-1].index("--config")])
    return last if last.is_file() else Path(os.devnull)


def run_shell(block: Block) -> None:
    """Types the commands of a block: `mea-graph` in this process where it needs no other, since an import takes seconds."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "mea-graph" and "ddp" not in words:
            if words[1] == "fit" and "--trainer.max_epochs" not in words:
                counts = "--config" in words and "training:" in config_of(words).read_text()
                words += ["--training.updates", "20"] if counts else ["--trainer.max_epochs", "1"]  # the one liberty taken
            if words[1] == "study" and "--epochs" not in words:
                words += ["--epochs", "1"]  # and the same in studies
            try:
                with patch.dict(os.environ):  # each command has a process of its own in a reader's shell
                    code = main(words[1:])
            except SystemExit as stop:  # --help and --print_config
                code = stop.code
            assert code == 0, f"{block.document.name}: {line}"
        else:
            assert words[0] in PROGRAMS, f"{block.document.name}: {words[0]} is not run here; give the block a reason"
            done = subprocess.run([*PROGRAMS[words[0]], *words[1:]], capture_output=True, text=True, timeout=900, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def run_blocks(document: Path) -> None:
    """Does what a reader would, from top to bottom: types the Python and the commands, saves the files that begin with their name."""
    namespace: dict[str, object] = {"__name__": "__document__"}
    for block in blocks(document, "python", "yaml", *SHELL):
        if block.reason:
            continue
        name = FILE_NAME.match(block.code)
        if name:
            Path(name["name"]).write_text(block.code)
        if block.language in SHELL:
            run_shell(block)
        elif block.language == "python":
            exec(load(block), namespace)
        else:
            assert name, f"{document.name}: expected the name of the file in the first line of the yaml"
            yaml.safe_load(block.code)


@pytest.mark.parametrize(
    "document", [pytest.param(d, marks=pytest.mark.slow) if has_commands(d) else d for d in DOCUMENTS], ids=DOCUMENT_IDS
)
def test_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MEA_GRAPH_RUN_DIR", "LOCAL_RANK", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPOSITORY)])
    run_blocks(document)


def test_blocks_that_are_not_run_are_few_and_say_why():
    every = [block for document in DOCUMENTS for block in blocks(document)]
    known = {
        "",
        "text",
        "python",
        "yaml",
        "bibtex",
        "toctree",
        "drawing",
        "backends",
        "admonition",
        "literalinclude",
        *SHELL,
    }  # included programs: test_gallery
    assert {block.language for block in every} <= known
    not_run = [block for block in every if block.reason]
    assert not [block for block in not_run if block.language == "python"], "an example that is not run may be wrong"
    assert {block.reason for block in not_run} <= REASONS


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
        if found["path"].startswith("docs/_build/"):  # what `make docs` makes
            continue
        assert path.exists(), f"{found['path']} does not exist"
        if found["test"]:
            assert re.search(rf"^def {found['test']}\b", path.read_text(), re.MULTILINE), f"{found['path']} has no {found['test']}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)
def test_dotted_names_resolve(document):
    for found in NAME.finditer(prose(document)):
        pkgutil.resolve_name(found["name"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)
def test_class_names_are_those_of_the_code(document):
    """`CamelCase` in backticks is public here, a class of another library, or one that the page itself writes."""
    own = "".join(block.code for block in blocks(document, "python"))
    for found in CAMEL.finditer(prose(document)):
        name = found["name"]
        if name in ELSEWHERE:
            pkgutil.resolve_name(ELSEWHERE[name])
        elif f"class {name}" not in own:
            assert name in PUBLIC, f"`{name}` is no public class"


@pytest.mark.parametrize("document", DOCUMENTS, ids=DOCUMENT_IDS)
def test_commands_name_what_exists(document):
    makefile = (REPOSITORY / "Makefile").read_text()
    shell = "\n".join(block.code for block in blocks(document, *SHELL)) + "\n" + prose(document)
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
