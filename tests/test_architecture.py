"""The arrows between packages: schemas <- store <- {extract, analyze}."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "schemas": set(),
    "store": {"schemas"},
    "extract": {"schemas", "store"},
    "analyze": {"schemas", "store"},
}
ONLY_IN = {"zarr": {"store"}, "transformers": {"extract"}}


def imported(path: Path) -> set[str]:
    """Top-level names a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_downwards(package):
    for path in (ROOT / package).rglob("*.py"):
        found = imported(path)
        ours = found & set(MAY_IMPORT) - {package}
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[package]}"
        for library, allowed in ONLY_IN.items():
            assert library not in found or package in allowed, f"{path.relative_to(ROOT)} imports {library}"


def test_matplotlib_is_imported_by_plots_and_the_report_only():
    for path in (ROOT / "analyze").rglob("*.py"):
        if "matplotlib" in imported(path):
            assert path.name in ("figures.py", "drawing.py", "contents.py") or "report" in path.parts, path


def test_analyze_imports_without_model_libraries():
    code = (
        "import sys; sys.modules['transformers'] = None; import analyze, lake, store; store.torch_dataset;"
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
