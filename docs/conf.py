"""Sphinx: ``python -m sphinx -n -W -b html docs docs/_build/html``, without network."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import python_inventory  # noqa: E402

import atomik  # noqa: E402

project = "atomik"
author = "The atomik developers"
copyright = "The atomik developers"
version = release = atomik.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "names",
    "picture",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext", "pictures"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

intersphinx_mapping = {"python": ("https://docs.python.org/3", str(python_inventory.write(HERE / "_build")))}

highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what a parameter may be; the signatures say it to type checkers
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"atomik {release}"
html_static_path = ["_static"]
html_css_files = ["atomik.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
