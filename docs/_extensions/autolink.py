"""Makes a link of every public name that a hand-written page puts in backticks, so that the pages read well as plain Markdown too."""

from docstrings import public_names
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class Autolink(SphinxTransform):
    default_priority = 500

    def apply(self) -> None:
        page = self.env.docname
        if page.startswith("api/"):  # docstrings have their links already
            return
        for literal in list(self.document.findall(nodes.literal)):
            target = public_names().get(literal.astext().removesuffix("()"))
            if target is None or isinstance(literal.parent, nodes.reference | addnodes.pending_xref):
                continue
            link = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True, refdoc=page)
            literal.replace_self(link)
            link += literal


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(Autolink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
