"""The documentation site: pages of this folder, notebooks with their stored output, reference from docstrings."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent

project = "activation-lake"
html_title = "The activation lake"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "jupyter_execute"]  # both are written by a build
html_theme = "furo"
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run them
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False


def take_notebooks(app: Any) -> None:
    """Copy the notebooks below this folder, where Sphinx finds them."""
    (DOCS / "notebooks").mkdir(exist_ok=True)
    for notebook in (DOCS.parent / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, DOCS / "notebooks")


def describe_settings(app: Any, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Settings say what each field means in its metadata, as flags do; here it follows the docstring."""
    if what == "class" and dataclasses.is_dataclass(documented):
        fields = {field.name: field.metadata.get("help") for field in dataclasses.fields(documented)}
        if any(fields.values()):
            lines += ["", *(f":param {name}: {text}" for name, text in fields.items() if text)]


def setup(app: Any) -> None:
    """Called by Sphinx before it reads anything."""
    app.connect("builder-inited", take_notebooks)
    app.connect("autodoc-process-docstring", describe_settings)
