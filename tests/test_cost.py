"""What analyses say that they take: each of them, the bytes they read, and the sample of a large run."""

import json
from typing import Any

import numpy as np
import pytest
from called import run_lake
from synthetic import make_model, make_run, write_run

from analyze import cost as costs
from analyze.probes.command import ProbeSettings
from analyze.source import Source
from lake import app
from schemas.command import Analysis
from schemas.registry import own_commands
from store import open_lake
from store.shards import ShardedArray

RUN = "made-up/problems"
ANALYSES = [command for command in own_commands() if isinstance(command, Analysis)]
READING: list[tuple[str, tuple[str, ...]]] = [
    ("heads", ()),
    ("attention", ("--layers", "0,2")),
    ("lens", ("--positions", "ct0,ct3")),
    ("lens", ("--sample", "50")),
    ("depth", ("--layers", "1")),
    ("depth", ("--sample", "60")),
    ("correlate", ("--query", "eot")),
    ("similarity", ("--resamples", "2", "--permutations", "2")),
    ("stability", ("--resamples", "2", "--shuffles", "2", "--max-examples", "40")),
]
"""Analyses that need nothing else in the lake, and some options, by which examples are drawn from every shard, too."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A lake of one run, in several shards."""
    place = tmp_path_factory.mktemp("lakes") / "made.lake"
    model = make_model()
    write_run(place, make_run(n_example=90, twins=True, model=model), model, shard_examples=32)
    return place


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    code = run_lake(*words)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


@pytest.mark.parametrize("command", ANALYSES, ids=lambda command: command.name)
def test_every_analysis_says_what_it_takes(command: Analysis) -> None:
    assert command.cost is not None
    flags = [parameter.opts[0] for parameter in app.commands["analyze"].get_command(None, command.name).params]
    assert "--plan" in flags


@pytest.mark.parametrize(("name", "options"), READING)
def test_bytes_are_those_that_are_read(
    path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, options: tuple[str, ...]
) -> None:
    read = [0]
    decode = ShardedArray._decode

    def counted(self: ShardedArray, file: int, offset: int, length: int, chunk: np.ndarray) -> int | None:
        read[0] += length
        return decode(self, file, offset, length, chunk)

    out, err = called(capsys, "analyze", name, path, *options, "--plan", "--json")
    (plan,) = json.loads(out).values()
    monkeypatch.setattr(ShardedArray, "_decode", counted)
    called(capsys, "analyze", name, path, *options)
    arrays = [each for each in (path / "made-up").iterdir() if each.is_dir() and each.name != "problems"]
    model = sum(each.stat().st_size for array in arrays for each in array.rglob("*") if each.is_file())
    readout = plan["n_byte"] - model if name in ("lens", "depth", "stability") else plan["n_byte"]
    assert readout == read[0]
    assert min(plan["seconds"], plan["memory"], plan["n_state"]) > 0


def test_a_trial_is_of_one_cell_and_of_two_wherever_there_are_two() -> None:
    for layers, positions in (([0, 1, 2], ["bot", "ct0", "ct1"]), ([0, 1, 2], ["ct1"]), ([2], ["bot", "ct0"])):
        trial = costs.cells(ProbeSettings(), layers, positions)
        size = {name: len(one.layers) * len(one.positions) for name, one in trial.items()}
        assert size == {"small": 1, "larger": 2}


def test_a_large_run_is_sampled_by_problem_and_outcome(
    path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_lake(path)[RUN]
    rows = costs.drawn(run, 40, seed=0)
    assert np.array_equal(rows, costs.drawn(run, 40, seed=0))
    assert 34 <= len(rows) <= 42
    problem, right = run["problem"].values, run["correct"].values.astype(bool)
    assert not set(problem[rows]) & set(np.delete(problem, rows))
    assert abs(right[rows].mean() - right.mean()) < 0.1
    monkeypatch.setattr(costs, "FIRST_LOOK", 1e5)
    out, err = called(capsys, "analyze", "lens", path, "--layers", "0")
    assert "of 90 examples 50 are taken" in err
    assert "--sample 0 takes all" in err
    out, err = called(capsys, "analyze", "lens", path, "--layers", "0", "--sample", "0")
    assert "are taken" not in err
    specs = [result.spec for result in open_lake(path).results("lens") if result.spec.get("layers") == [0]]
    assert {spec.get("sample") for spec in specs} == {0, 50}
    lens = next(command for command in ANALYSES if command.name == "lens")
    few = Source(lake=open_lake(path), run=RUN, data=run.isel(example=slice(0, 50)), shell=costs.Quiet())
    assert costs.sampled(lens, few, lens.settings()) is few  # a sample is of no fewer than 50, which all are
