"""What README shows is what comes out: its commands and its first lines of Python, in their own sizes.

A minute of processor time, so not among the tests of every change: ``pytest -m slow tests/test_readme.py``.
"""

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from called import run_lake

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def section(name: str, end: str) -> str:
    """Text of README between two marks."""
    return (ROOT / "README.md").read_text().partition(f"<!-- {name} -->")[2].partition(f"<!-- {end} -->")[0]


def shown(text: str) -> list[tuple[list[str], list[str]]]:
    """Words of each command of the console blocks, and the lines that are shown below it."""
    blocks = "\n".join(re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    parts = re.split(r"^\$ lake ", blocks, flags=re.MULTILINE)[1:]
    return [
        (shlex.split(first), [line for line in rest.splitlines() if line.strip()])
        for first, _, rest in (part.partition("\n") for part in parts)
    ]


def is_part(shown_line: str, printed_line: str) -> bool:
    """Whether a line's words are those of a printed one, of which columns may be left out."""
    words = iter(printed_line.split())
    return all(word in words for word in shown_line.split())


def test_readme_shows_what_comes_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, lines in shown(section("a first lake", "end of a first lake")):
        code = run_lake(*words)
        printed = capsys.readouterr().out.splitlines()
        assert code == 0
        assert not [line for line in lines if not any(is_part(line, one) for one in printed)]
    block = re.findall(r"^```python\n(.*?)^```", section("querying", "end of querying"), re.DOTALL | re.MULTILINE)[0]
    *lines, last = ast.parse(block).body
    names: dict[str, object] = {}
    exec(compile(ast.Module(lines, []), "README", "exec"), names)
    assert isinstance(last, ast.Expr)
    table = eval(compile(ast.Expression(last.value), "README", "eval"), names)
    assert isinstance(table, pd.DataFrame)
    rows = [line.split() for line in re.findall(r"^# layer (.*)$", block, re.MULTILINE)]
    np.testing.assert_allclose(np.array(rows, float), table.reset_index().to_numpy(), atol=1.1e-3)
