"""How the site is built: `make docs`, or `python -m sphinx -W docs docs/_build/html`. Nothing is fetched from a network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
sys.path.insert(0, str(Path(__file__).parents[1]))  # the package of this checkout, installed or not

from mea_graph import __version__

project = "mea-graph"
author = "The mea-graph developers"
copyright = "the mea-graph developers, MIT licence"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "autolink",  # this and the following stand in _extensions
    "api_pages",
    "backend_tables",
    "docstrings",
    "drawings",
    "mathml",
    "navigation",
    "root_pages",
    "source_pages",
    "tables",
]
exclude_patterns = ["_build", "_extensions"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # those of torch and Lightning speak of their own documentation
maximum_signature_line_length = 70
python_display_short_literal_types = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape", "Fields"]

html_theme = "furo"
html_title = f"mea-graph {__version__}"
html_static_path = ["_static"]
html_css_files = ["mea_graph.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
html_search_scorer = str(Path(__file__).parent / "_extensions" / "search_scorer.js")  # Sphinx would take it from where it is started
