"""The page of ``lake serve``: the explorer of the report, its data asked for."""

from functools import cache
from pathlib import Path

import jinja2

FOLDER = Path(__file__).parent


@cache
def parts() -> dict[str, str]:
    """Style and scripts, read once."""
    report, explorer = FOLDER.parent / "report", FOLDER.parent / "explorer"
    files = {"style": report / "style.css", "frame": explorer / "frame.js", "explorer": explorer / "explorer.js"}
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()} | {
        "script": (FOLDER / "serve.js").read_text(encoding="utf-8")
    }


@cache
def template() -> jinja2.Template:
    """The page without its values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("serve.html")


def serve_page(title: str, nonce: str) -> str:
    """The page of a lake; scripts and style carry the nonce that the browser is told of."""
    return template().render(title=title, nonce=nonce, **parts())
