"""The directive `drawing`: puts an SVG into the page itself, so that its lines and letters take the colour of the page's theme."""

from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class Drawing(Directive):
    """`{drawing} name` shows `drawings/name.svg`; the directive's content is the caption."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        environment = self.state.document.settings.env
        path = Path(environment.srcdir) / "drawings" / f"{self.arguments[0]}.svg"
        environment.note_dependency(str(path))
        if not path.is_file():
            raise self.error(f"drawing: expected {path}, got no such file")
        caption = nodes.inline()
        children, messages = self.state.inline_text("\n".join(self.content), self.lineno)
        caption += children

        def html(text: str) -> nodes.Node:
            return nodes.raw("", text, format="html")

        svg = path.read_text(encoding="utf-8")
        return [html(f'<figure class="drawing">{svg}<figcaption>'), caption, html("</figcaption></figure>"), *messages]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("drawing", Drawing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
