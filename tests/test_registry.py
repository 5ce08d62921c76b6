"""Commands are found where they are declared: in the folders of our packages, and in packages of others."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from schemas import UsageError
from schemas.command import Part, Settings, setting
from schemas.flags import MOST, flags
from schemas.registry import by_kind, commands, line
from tests.synthetic import make_model, make_run, write_run

FOREIGN = {
    "norms/__init__.py": "",
    "norms/command.py": '''
from dataclasses import dataclass

from schemas.command import Analysis, Part, Table, setting


@dataclass(frozen=True, kw_only=True)
class NormSettings(Part):
    """How long the states are."""

    power: float = setting(2.0, "Of the norm.")


def run(source, settings):
    states = source.data["hidden_state"]
    return (abs(states) ** settings.power).sum("hidden").mean("example").to_dataset(name="norm").compute()


def tables(result, spec):
    rows = [[layer, *map(float, result["norm"].sel(layer=layer))] for layer in result["layer"].values]
    title = f"{result.attrs['run']}: norms, power {spec['power']:g}"
    return [Table(title=title, columns=["layer", *result["position"].values], rows=rows)]


HELP = "How long the states are."
COMMAND = Analysis(name="norms", help=HELP, settings=NormSettings, run=run, results={"norms": tables})
''',
    "norms-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: norms\nVersion: 1.0\n",
    "norms-1.0.dist-info/entry_points.txt": "[activation_lake.analyses]\nnorms = norms\n",
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


def test_another_package_brings_a_command_and_its_stored_result(installed: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.lake"
    run = write_run(place, make_run(), make_model())
    assert "norms" in lake(installed, "analyze", "--help").stdout
    assert "--power" in lake(installed, "analyze", "norms", "--help").stdout
    made = lake(installed, "analyze", "norms", str(place), run, "--power", "1", "--json")
    assert made.returncode == 0, made.stderr
    name = json.loads(made.stdout)[run]["result"]
    shown = lake(installed, "show", str(place), name)
    assert "norms, power 1" in shown.stdout, shown.stderr
    refused = lake(installed, "analyze", "norms", str(place), run, "--power", "much")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


def test_a_package_that_cannot_be_imported_is_named_and_left_out(installed: Path) -> None:
    (installed / "norms" / "command.py").write_text("import nothing_of_the_kind")
    done = lake(installed, "analyze", "--help")
    assert done.returncode == 0
    assert "heads" in done.stdout
    assert "norms is left out" in done.stderr
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
