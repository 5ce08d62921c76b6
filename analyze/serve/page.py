"""The page of ``lake serve``: the explorer of the report, its data asked for."""

from functools import cache
from pathlib import Path

from analyze.explorer.template import template

FOLDER = Path(__file__).parent


@cache
def parts() -> dict[str, str]:
    """Style and scripts, read once."""
    report, explorer = FOLDER.parent / "report", FOLDER.parent / "explorer"
    files = {"style": report / "style.css", "frame": explorer / "frame.js", "explorer": explorer / "explorer.js"}
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()} | {
        "script": (FOLDER / "serve.js").read_text(encoding="utf-8")
    }


def serve_page(title: str, nonce: str) -> str:
    """The page of a lake; scripts and style carry the nonce that the answer names to the browser."""
    return template(FOLDER / "serve.html").render(title=title, nonce=nonce, **parts())
