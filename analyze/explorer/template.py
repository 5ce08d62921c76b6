"""Templates of the pages that show the explorer."""

from functools import cache
from pathlib import Path

import jinja2


@cache
def template(file: Path) -> jinja2.Template:
    """A page without its values; rendered without one that it names, it raises."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(file.name)
