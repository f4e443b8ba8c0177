"""Pages whose text stands in the repository's root: here is a pointer that is replaced on reading. And links between the two."""

import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx

PAGES = {"contracts": "DESIGN.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md", "security": "SECURITY.md"}
PAGE_OF = {file: f"{page}.md" for page, file in PAGES.items()}
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<file>[\w./-]+)(?P<anchor>#[^)]*)?\)")
_TABLE = re.compile(r"results/(?P<data>\w+)/(?:(?:compare|ablate|sensitivity|missing|disentangle)(?:_|(?=/)))?(?P<which>\w*)/table")


def _to_site(text: str, folder: str) -> str:
    """Turns the links of a document in `folder` of the repository; a link to what is no page leaves its words only."""

    def turn(found: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(folder, found["file"]))
        page = PAGE_OF.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
        return found["text"] if page is None else f"[{found['text']}]({page}{found['anchor'] or ''})"

    return _LINK.sub(turn, text)


def _with_its_data(page: str, text: str) -> str:
    """A table of a study with its data in the title: the studies of several data sets have the same."""
    if (found := _TABLE.fullmatch(page)) is None:
        return text
    which = [found["data"], *([found["which"]] if found["which"] else [])]
    return re.sub(r"\A# (.+)$", lambda title: f"# {title[1]}: {', '.join(which).replace('_', ' ')}", text, count=1, flags=re.MULTILINE)


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    if page in PAGES:
        path = Path(app.srcdir).parent / PAGES[page]
        app.env.note_dependency(str(path))
        source[0] = _to_site(path.read_text(encoding="utf-8"), "")
    elif not page.startswith("api/"):
        source[0] = _to_site(source[0], "docs")
    if page.startswith("results"):  # their many headings would stand before the pages that say how to do a thing
        source[0] = f"---\nnosearch: true\n---\n\n{_with_its_data(page, source[0])}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
