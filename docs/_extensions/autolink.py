"""Makes a link of every public name that a hand-written page puts in backticks, so that the pages read well as plain Markdown too.

In a cell that holds nothing else the link is short: `MEA` for `mea_graph.nn.MEA`.
"""

from docstrings import public_names
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


def alone(literal: nodes.literal) -> bool:
    """Whether the cell around it holds names in code and commas, nothing else."""
    beside = literal.parent.children
    return isinstance(literal.parent.parent, nodes.entry) and all(isinstance(n, nodes.literal) or n.astext() == ", " for n in beside)


class Autolink(SphinxTransform):
    default_priority = 500

    def apply(self) -> None:
        page = self.env.docname
        if page.startswith("api/"):  # docstrings have their links already
            return
        literals = list(self.document.findall(nodes.literal))
        short = {id(literal) for literal in literals if alone(literal)}
        for literal in literals:
            target = public_names().get(literal.astext().removesuffix("()"))
            if target is None or isinstance(literal.parent, nodes.reference | addnodes.pending_xref):
                continue
            link = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True, refdoc=page)
            literal.replace_self(link)
            if id(literal) in short and target.count(".") > 1:
                literal = nodes.literal("", literal.astext().rpartition(".")[2])
            link += literal


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(Autolink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
