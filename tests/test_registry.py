"""Commands are found where they are declared: in the folders of our packages, and in packages of others."""

import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from schemas import UsageError
from schemas.command import Part, Settings, setting
from schemas.flags import MOST, flags
from schemas.registry import by_kind, commands, line
from store import open_lake
from tests.synthetic import make_model, make_run, write_run

GUIDE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
(CODE,) = (
    block
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    if "COMMAND = Analysis" in block
)
(PROJECT,) = re.findall(r"^```toml\n(\[build-system\].*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
(POINT,) = tomllib.loads(PROJECT)["project"]["entry-points"]["activation_lake.analyses"].items()
SECTION = """
from analyze.page import Section


def write(page):
    for result in page.results("lengths"):
        page.say(result, "longest", length=float(result.data["length"].max()))


SECTIONS = (Section(slug="lengths", write=write, needs=("lengths",)),)
"""
TEXTS = """[lengths]
title = "Lengths"
headline = "How long the states are."
[lengths.lines]
longest = "{length:.1f}"
"""
FOREIGN = {
    "lake_lengths/__init__.py": "",
    "lake_lengths/command.py": CODE,
    "lake_lengths/section.py": SECTION,
    "lake_lengths/texts.toml": TEXTS,
    "lake_lengths-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: lake-lengths\nVersion: 1.0\n",
    "lake_lengths-1.0.dist-info/entry_points.txt": "[activation_lake.analyses]\n" + " = ".join(POINT) + "\n",
}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder on the path of Python in which another package is installed."""
    for name, text in FOREIGN.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    return tmp_path / "site"


def lake(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[1])])}
    return subprocess.run(
        [sys.executable, "-m", "lake", *words], capture_output=True, text=True, env=environment, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("registry") / "a.lake"
    write_run(place, make_run(n_example=5), make_model())
    return place


def change(site: Path, file: str, right: str, wrong: str) -> None:
    """A mistake in the other package."""
    text = (site / "lake_lengths" / file).read_text()
    assert right in text
    (site / "lake_lengths" / file).write_text(text.replace(right, wrong))


def test_another_package_brings_a_command_and_its_stored_result(installed: Path, place: Path) -> None:
    run = open_lake(place).runs()[0]
    assert "lengths" in lake(installed, "analyze", "--help").stdout
    assert "--power" in lake(installed, "analyze", "lengths", "--help").stdout
    made = lake(installed, "analyze", "lengths", str(place), run, "--power", "1", "--json")
    assert made.returncode == 0, made.stderr
    name = json.loads(made.stdout)[run]["result"]
    shown = lake(installed, "show", str(place), name)
    assert "lengths of states, power 1" in shown.stdout, shown.stderr
    stored = open_lake(place).open_result(name)
    states = open_lake(place)[run]["hidden_state"]
    np.testing.assert_allclose(stored["length"], abs(states).sum("hidden", skipna=False).mean("example"), rtol=1e-5)
    assert stored.attrs["n_example"] == 5
    refused = lake(installed, "analyze", "lengths", str(place), run, "--power", "much")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


MISTAKES = {
    "an error in it": (
        'states = source.data["hidden_state"]',
        "states = nothing",
        "failed, line 17 of .*command.py: NameE",
    ),
    "nothing returned": ("return length.mean", "length.mean", "made NoneType, .* must return an xarray.Dataset"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_another_package_is_told_in_a_line_that_names_it(
    mistake: str, installed: Path, place: Path
) -> None:
    right, wrong, told = MISTAKES[mistake]
    change(installed, "command.py", right, wrong)
    done = lake(installed, "analyze", "lengths", str(place), "--limit", "2")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert re.search(f"^lake: .*lengths {told}", done.stderr), done.stderr


def test_what_fails_of_another_package_does_not_cost_the_page(installed: Path, place: Path, tmp_path: Path) -> None:
    lake(installed, "analyze", "lengths", str(place))
    change(installed, "section.py", "float(", "nothing(")
    points = installed / "lake_lengths-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text() + "lost = lake_lost\n")
    done = lake(installed, "report", str(place), "--out", str(tmp_path / "out"), "--problems", "0")
    assert done.returncode == 0
    assert "read: lengths: activation_lake.analyses: lengths failed, line 7 of section.py: NameError" in done.stdout
    assert "lost has no section on the page: importing lake_lost: No module named" in done.stderr
    assert all(line.startswith("lake: ") for line in done.stderr.splitlines())


def test_a_package_that_cannot_be_imported_is_named_and_left_out(installed: Path) -> None:
    (installed / "lake_lengths" / "command.py").write_text("import nothing_of_the_kind")
    done = lake(installed, "analyze", "--help")
    assert done.returncode == 0
    assert "heads" in done.stdout
    assert "lengths is left out" in done.stderr
    assert "nothing_of_the_kind" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_kind_of_result_has_one_command_that_makes_it() -> None:
    kinds = [kind for command in commands() for kind in getattr(command, "results", ())]
    assert len(kinds) == len(set(kinds)) == len(by_kind())
    assert line("heads") == "lake analyze heads PATH RUNS"
    assert line("no such kind") == ""


def test_functions_that_are_imported_later_are_there() -> None:
    names = [command.run.__qualname__ for command in commands() if ":" in command.run.__qualname__]
    assert len(names) > 10
    assert all(callable(pkgutil.resolve_name(name)) for name in names)


def test_help_takes_little_time_as_nothing_heavy_is_imported() -> None:
    code = "import sys, lake; from schemas.registry import commands; commands(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout))
    assert not loaded & {"numpy", "xarray", "torch", "zarr", "dask", "matplotlib", "transformers"}


def test_every_command_checks_its_smallest_numbers_and_the_largest_of_what_is_drawn() -> None:
    for command in commands():
        known = flags(command.settings)
        needed = {flag.name: ("x",) if flag.many else flag.kind("x") for flag in known if flag.required}
        needed |= {"name": "small-gpt2"} if command.name == "train" else {}
        for name in {flag.name for flag in known} & MOST.keys():
            with pytest.raises(UsageError, match="must be at most"):
                command.settings(**needed | {name: 10**9})
        for flag in (flag for flag in known if flag.least is not None):
            below = flag.kind(flag.least - 1)
            with pytest.raises(UsageError, match="at least"):
                command.settings(**needed | {flag.name: (below,) if flag.many else below})


def test_settings_check_and_read_what_they_are_given() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Some(Part):
        way: Literal["up", "down"] = setting("up", "Which way.")
        sizes: tuple[float, ...] = setting((1.0,), "Sizes.", least=0)

    assert [flag.name for flag in flags(Some)] == ["way", "sizes", "limit", "layers", "positions"]
    assert Some(sizes=[2, 3]).spec() == {"way": "up", "sizes": [2, 3]}
    assert Some.of_spec({"way": "down", "unknown": 1, "layers": [0]}) == Some(way="down", layers=(0,))
    with pytest.raises(UsageError, match="--way dwn is not one of up, down; did you mean 'down'"):
        Some(way="dwn")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--sizes is -1; it must be at least 0"):
        Some(sizes=(1, -1))
    with pytest.raises(UsageError, match="--limit is 0"):
        Some(limit=0)
    with pytest.raises(UsageError, match="--sizes names 2.0 twice"):
        flags(Some)[1].entries("2,3,2.0")
    assert isinstance(Some(), Settings)


def test_no_command_takes_a_seed_below_0() -> None:
    seeds = [flag for command in commands() for flag in flags(command.settings) if flag.name == "seed"]
    assert len(seeds) > 20
    assert {flag.least for flag in seeds} == {0}
