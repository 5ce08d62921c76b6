"""The notebooks run from a lake like the demo's, are shown with their output, and hold no logic of their own."""

import ast
import io
import re
import shutil
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pytest
import xarray as xr
from called import run_lake
from reentry_lake import MODELS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks here")


@pytest.fixture(scope="module")
def place(reentry_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a small ``demo.lake`` and, beside it, where the notebooks run."""
    folder = tmp_path_factory.mktemp("demo")
    lake = shutil.copytree(reentry_lake, folder / "demo.lake")
    # what the last notebook lays side by side
    problems, pairs = ([f"{model}/{name}" for model in MODELS] for name in ("test", "pairs"))
    for command in (
        ["analyze", "heads", lake, *problems, "--resamples", "20"],
        ["analyze", "lens", lake, *problems],
        ["reenter", "patch", lake, *pairs, "--sites", "latent_embedding", "--subsets", "none"],
    ):
        assert run_lake(*command) == 0
    (folder / "notebooks").mkdir()
    return folder


def run_cell(source: str, names: dict[str, object]) -> None:
    """Run a cell as a notebook does: its last expression is shown, and its figures are drawn."""
    code = ast.parse(source)
    last = code.body.pop() if code.body and isinstance(code.body[-1], ast.Expr) else None
    exec(compile(code, "cell", "exec"), names)
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        getattr(shown, "_repr_html_", lambda: repr(shown))()
    for number in plt.get_fignums():
        plt.figure(number).savefig(io.BytesIO(), dpi=30, bbox_inches="tight")
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a kernel of its own would mostly import."""
    monkeypatch.chdir(place / "notebooks")
    names: dict[str, object] = {"__name__": "__main__"}
    with mpl.rc_context(), xr.set_options(display_style="text"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                run_cell(cell.source, names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_shown_with_its_output(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it from the top and save it"
    assert kinds <= {"display_data", "execute_result", "stream"}
    assert not [output.text for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert path.stat().st_size < 1_000_000  # figures of 144 dpi


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_no_logic(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    source = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    nodes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.Try, ast.If)
    assert not [ast.unparse(node)[:60] for node in ast.walk(ast.parse(source)) if isinstance(node, nodes)]


@pytest.mark.parametrize("page", ["README.md", "docs/extending.md"])
def test_python_of_a_page_runs(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (place / "first.lake").exists():
        (place / "first.lake").symlink_to(place / "demo.lake")
    monkeypatch.chdir(place)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
