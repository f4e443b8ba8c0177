"""The navigation at the side of each page.

It is computed once for each folder of pages of source, since it would take most of the time of each of them. No such page is part of it, so
it depends only on the folder, from which its links start. Long names in it may break where their words join.
"""

import posixpath
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from sphinx.application import Sphinx
from tables import TITLE, pieces

BEFORE_THE_THEME, AFTER_THE_THEME = 400, 600  # which writes the navigation at 500
_NAME = re.compile(r"(?<=>)\w+(?=</a>)")


def setup(app: Sphinx) -> dict[str, bool]:
    known: dict[str, Callable[..., str]] = {}

    def share(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
        if page not in app.env.all_docs and "toctree" in context:
            context["toctree"] = known.setdefault(posixpath.dirname(page), cache(context["toctree"]))

    def may_break(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
        tree = context.get("furo_navigation_tree", "")
        context["furo_navigation_tree"] = _NAME.sub(lambda name: "<wbr>".join(pieces(name[0], TITLE)), tree)

    app.connect("html-page-context", share, priority=BEFORE_THE_THEME)
    app.connect("html-page-context", may_break, priority=AFTER_THE_THEME)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
