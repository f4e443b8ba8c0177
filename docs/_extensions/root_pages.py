"""Pages whose text stands in the repository's root, where it is looked for: the page here is a pointer that is replaced on reading."""

import re
from pathlib import Path

from sphinx.application import Sphinx

PAGES = {"contracts": "DESIGN.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
PAGE_OF = {file: f"{page}.md" for page, file in PAGES.items()}
_DOWN = re.compile(r"\]\((?P<file>[\w./-]+\.md)")
_UP = re.compile(r"\[(?P<text>[^\]]*)\]\(\.\./(?P<file>[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def _up(found: re.Match[str]) -> str:
    """A link out of `docs` leads to the page that shows the file; without one, only its words are left."""
    page = PAGE_OF.get(found["file"])
    return found["text"] if page is None else f"[{found['text']}]({page}{found['anchor'] or ''})"


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    if page in PAGES:
        path = Path(app.srcdir).parent / PAGES[page]
        app.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8")
        source[0] = _DOWN.sub(lambda found: f"]({PAGE_OF.get(found['file'], found['file'].removeprefix('docs/'))}", text)
    else:
        source[0] = _UP.sub(_up, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
