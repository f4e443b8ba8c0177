"""Computes the navigation of the pages of source once for each folder, since it would take most of the time of each of them.

No such page is part of it, so it depends only on the folder, from which its links start.
"""

import posixpath
from collections.abc import Callable
from functools import cache
from typing import Any

from sphinx.application import Sphinx

BEFORE_THE_THEME = 400  # which writes the navigation at 500


def setup(app: Sphinx) -> dict[str, bool]:
    known: dict[str, Callable[..., str]] = {}

    def share(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
        if page not in app.env.all_docs and "toctree" in context:
            context["toctree"] = known.setdefault(posixpath.dirname(page), cache(context["toctree"]))

    app.connect("html-page-context", share, priority=BEFORE_THE_THEME)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
