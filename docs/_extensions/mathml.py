"""Formulas as MathML: drawn by the reader's browser, without a script and without a network. docutils does the conversion."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_ACCENT = re.compile(r"(\\(?:hat|check|bar|tilde)(?: \w|\{\w\}))_")
_BIG = re.compile(r"\\(big|Big)([()\[\]|])")


def convert(formula: str, as_block: bool) -> str:
    """MathML of a formula in LaTeX; `\\big(` becomes `\\bigl(`, `\\dots` `\\ldots`: what docutils knows."""
    formula = _BIG.sub(lambda found: f"\\{found[1]}{'l' if found[2] in '([' else 'r'}{found[2]}", formula.strip())
    formula = _ACCENT.sub(r"\1{}_", formula)  # docutils would set the index below the letter
    return tex2mathml(formula.replace(r"\dots", r"\ldots"), as_block=as_block)


def _visit(self: Any, node: nodes.Element, as_block: bool) -> None:
    try:
        markup = convert(node.astext(), as_block)
    except MathError as error:
        _LOG.warning("formula cannot be drawn: %s in %s", error, node.astext(), location=node)
        markup = f"<code>{self.encode(node.astext())}</code>"
    # A wide formula scrolls within its own box, so that the page does not.
    self.body.append(f'<div class="formula">{markup}</div>' if as_block else markup)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: _visit(self, node, False), None),
        (lambda self, node: _visit(self, node, True), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
