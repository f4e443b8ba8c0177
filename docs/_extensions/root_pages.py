"""Pages whose text stands in the repository's root, where it is looked for: the page here is a pointer that is replaced on reading."""

import re
from pathlib import Path

from sphinx.application import Sphinx

PAGES = {"contracts": "DESIGN.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
_LINK = re.compile(r"\]\((?P<target>[\w./-]+\.md)")


def _target(found: re.Match[str]) -> str:
    """Where a link of the root leads on the site."""
    page_of = {file: f"{page}.md" for page, file in PAGES.items()}
    return f"]({page_of.get(found['target'], found['target'].removeprefix('docs/'))}"


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    if page in PAGES:
        path = Path(app.srcdir).parent / PAGES[page]
        app.env.note_dependency(str(path))
        source[0] = _LINK.sub(_target, path.read_text(encoding="utf-8"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
