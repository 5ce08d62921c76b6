"""No file and no function longer than one can hold in mind."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("schemas", "store", "extract", "analyze", "lake", "benchmarks", "docs", "tests")
MOST_OF_FILE = 400
MOST_OF_FUNCTION = 60
MOST_OF_SECTION = 60


def sources() -> Iterator[Path]:
    """Every module of the project."""
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob("*.py")


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Lines of a function's body without blank ones, comments and its docstring."""
    body = function.body[ast.get_docstring(function, clean=False) is not None :]
    if not body:
        return 0
    inside = (text.strip() for text in lines[body[0].lineno - 1 : function.end_lineno])
    return sum(bool(text) and not text.startswith("#") for text in inside)


def test_no_file_is_long():
    long = {
        str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text().splitlines())) > MOST_OF_FILE
    }
    assert long == {}, f"files of more than {MOST_OF_FILE} lines: split them by what they are about"


def test_no_function_is_long():
    long = {}
    for path in sources():
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node, lines) > MOST_OF_FUNCTION:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = code_lines(node, lines)
    assert long == {}, f"functions of more than {MOST_OF_FUNCTION} lines of code"


def test_no_section_of_the_page_is_long():
    long = {}
    for path in sources():
        if path.name == "section.py" or path.name.endswith("_section.py"):
            code = re.sub(r"^TEXTS = .*?^'''$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
            if (n := len(code.splitlines())) > MOST_OF_SECTION:
                long[str(path.relative_to(ROOT))] = n
    assert long == {}, (
        f"sections of more than {MOST_OF_SECTION} lines; what several do has its place in analyze/page.py"
    )
