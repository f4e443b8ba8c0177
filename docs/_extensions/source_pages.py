"""Shows the files that pages name, such as `tests/nn/test_mea.py::test_x`: each gets a page of its source, and its name becomes a link.

In a cell that holds nothing else the link is short, `test` or `source`, and shows the whole name under the mouse.
"""

import posixpath
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from autolink import alone
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

_FILE = re.compile(r"(?P<path>(?:mea_graph|tests|examples|benchmarks|tools)/[\w/]+)\.py(?:::(?P<name>\w+))?$")
_DEFINITION = re.compile(r"(?:async )?(?:def|class) (\w+)")
FOLDER = "_modules/files"


def _found(root: Path, text: str) -> re.Match[str] | None:
    match = _FILE.match(text)
    return match if match and (root / f"{match['path']}.py").is_file() else None


class SourceLinks(SphinxTransform):
    default_priority = 501  # after the links to public names

    def apply(self) -> None:
        page = self.env.docname
        literals = list(self.document.findall(nodes.literal))
        short = {id(literal) for literal in literals if alone(literal)}
        for literal in literals:
            match = _found(Path(self.env.srcdir).parent, literal.astext())
            if match is None or page.startswith("api/") or isinstance(literal.parent, nodes.reference):
                continue
            named: set[str] = getattr(self.env, "source_pages", set())
            self.env.source_pages = named | {match["path"]}
            target = posixpath.relpath(f"{FOLDER}/{match['path']}.html", posixpath.dirname(page) or ".")
            link = nodes.reference("", "", refuri=target + (f"#{match['name']}" if match["name"] else ""), internal=True)
            literal.replace_self(link)
            if id(literal) in short:
                link["reftitle"] = literal.astext()
            link += nodes.Text("test" if match["path"].startswith("tests/") else "source") if id(literal) in short else literal


def _body(code: str, highlighted: str) -> str:
    """The highlighted file, with an anchor at each definition."""
    lines = highlighted.split("\n")
    for number, line in enumerate(code.split("\n")):
        if definition := _DEFINITION.match(line):
            before, mark, after = lines[number].rpartition("<pre>")
            lines[number] = f'{before}{mark}<span id="{definition[1]}"></span>{after}'
    return "\n".join(lines)


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    root = Path(app.srcdir).parent
    for path in sorted(getattr(app.env, "source_pages", set())):
        if not (root / f"{path}.py").is_file():  # an earlier build's page named a file that has moved since
            continue
        code = (root / f"{path}.py").read_text(encoding="utf-8")
        highlighted = app.builder.highlighter.highlight_block(code, "python")  # type: ignore[attr-defined]
        yield (
            f"{FOLDER}/{path}",
            {"title": f"{path}.py", "body": f"<h1>{escape(path)}.py</h1>{_body(code, highlighted)}"},
            "page.html",
        )


def _merge(app: Sphinx, env: Any, docnames: Any, other: Any) -> None:
    env.source_pages = getattr(env, "source_pages", set()) | getattr(other, "source_pages", set())


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(SourceLinks)
    app.connect("html-collect-pages", _pages)
    app.connect("env-merge-info", _merge)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
