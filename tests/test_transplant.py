"""Thoughts and heads of one model in another: closed forms, the model's own, bad requests."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import reentry_lake
from codi_models import ORACLE
from small_runs import prepared_run

from extract.reenter import open_target
from extract.reenter.running import target_of
from extract.reenter.settings import TargetSettings
from extract.reenter.target import Target
from extract.reenter.transplant.command import COMMAND, TransplantSettings
from extract.reenter.transplant.experiment import transplant
from extract.reenter.transplant.maps import fit_map
from extract.run.extract import extract, prepare
from extract.small_models.problems import make_splits, write_problems
from lake.running import Terminal
from schemas import RunSpec, UsageError
from store import open_lake


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("transplant")
    splits = make_splits(3, {"train": {}, "validation": {3: 4}, "test": {2: 10, 3: 10, 4: 10}})
    spec = RunSpec(dtype="float32", batch_size=30, max_new_tokens=10)
    for name in ("test", "validation"):
        write_problems(splits[name], root / f"{name}.jsonl")
        extract(prepare("small-gpt2", str(root / f"{name}.jsonl"), root / "a.lake", spec), root / "a.lake")
    run = prepared_run(root / "a.lake", root / "test.jsonl", name="oracle", dtype="float32", max_new_tokens=2)
    extract(run, root / "a.lake")
    return root / "a.lake"


def target(folder: Path) -> Target:
    return reentry_lake.target(folder, "small-gpt2")


def test_a_map_finds_the_affine_one_that_made_the_values() -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(size=(80, 6))
    made = source @ rng.normal(size=(6, 4)) + 3
    fitted = np.arange(80) % 2 == 0
    mapped = fit_map(source, made, fitted, rng)
    np.testing.assert_allclose(mapped.same, made, atol=1e-3)
    assert mapped.r2 > 0.9999
    assert mapped.raw is None  # other widths
    np.testing.assert_allclose(mapped.constant, np.broadcast_to(made[fitted].mean(0), made.shape))
    # As large as the target's values, and of no use.
    np.testing.assert_allclose(mapped.random.std(0).mean(), made[fitted].std(0).mean(), rtol=1e-6)
    assert ((mapped.random - made)[~fitted] ** 2).mean() > 0.5 * made[~fitted].var(0).mean()
    assert fit_map(source, rng.normal(size=(80, 6)), fitted, rng).r2 < 0.2


def test_a_models_own_values_change_nothing_and_anothers_do(folder: Path) -> None:
    coldest: dict[str, Any] = {"sample": 1, "temperature": 1e-6}
    heads = ("L1H2=L1H2", "L0H1=L0H1")
    settings = TransplantSettings(source="small-gpt2/test", positions=("ct1", "ct2"), heads=heads, **coldest)
    result = transplant(target(folder), settings)
    np.testing.assert_array_equal(result["sample_correct"], result["correct"])
    assert result.attrs["n_fitted"] == result.attrs["n_held_out"] == result.sizes["example"] == 15
    labels = {name: result[name].values for name in ("group", "values", "control")}
    kl, drop = (result[name].sel(stratum="all").values for name in ("kl_mean", "drop"))
    same = np.isin(labels["values"], ["as they are", "its own"])
    assert same.sum() == 2 * (3 + 2)
    np.testing.assert_allclose(kl[same], 0, atol=1e-5)
    # ct1 carries the first result, ct2 nothing that is used; a head of one problem is no use in another.
    for group, least, most in (("ct1", 0.5, 1.0), ("ct2", 0.0, 0.2), ("all", 0.5, 1.0), ("L1H2=L1H2", 0.3, 1.0)):
        other = (labels["group"] == group) & (labels["control"] == "other problem")
        assert least <= drop[other].item() <= most, group
    assert result.sizes["place"] == 2 + 2 * 8


def test_the_other_model_is_where_the_user_says_or_the_lake_remembers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = TargetSettings(checkpoint=(f"oracle={ORACLE / 'codi-gpt2'}",), base=(f"oracle={ORACLE / 'base-gpt2'}",))
    into = target_of(
        COMMAND, open_lake(folder), "small-gpt2/test", where, Terminal(COMMAND, click.Context(click.Command("")))
    )
    settings = TransplantSettings(source="oracle/test", positions=("ct1",))
    result = transplant(into, settings)
    assert result.attrs["n_held_out"] == 15
    with pytest.raises(UsageError, match="is not at hand"):
        transplant(target(folder), settings)
    monkeypatch.chdir(ORACLE)  # a lake keeps the last parts of the folders, checkpoint and base
    assert transplant(target(folder), settings).identical(result)
    found = open_target(open_lake(folder), "oracle/test", checkpoint=str(ORACLE / "codi-gpt2"))  # which names no base
    assert found.reasoner.fingerprint == open_target(open_lake(folder), "oracle/test").reasoner.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": ("L1H2",)}, "--heads L1H2 is not of the form L0H1=L1H2"),
        ({"heads": ("L1H2=L1H2", "L0H0=L1H2")}, "puts two heads into L1H2"),
        ({"heads": ("L7H2=L1H2",)}, "has layers 0 to 1 and heads 0 to 3"),
        ({"positions": ("bot",)}, "bot is no thought of both models"),
        ({"source": "small-gpt2/validation"}, "have 0 questions in common"),
        ({"source": "small-gpt2/nothing"}, "has no run 'small-gpt2/nothing'"),
    ],
)
def test_bad_requests_are_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        transplant(target(folder), TransplantSettings(**({"source": "small-gpt2/test"} | change)))
    assert "\n" not in str(error.value)


def test_a_map_reads_components_of_any_unit() -> None:
    rng = np.random.default_rng(0)
    source, fitted = rng.standard_normal((120, 6)), np.arange(120) < 60
    target = source[:, :3] @ rng.standard_normal((3, 4)) + 0.1 * rng.standard_normal((120, 4))
    plain = fit_map(source, target, fitted, np.random.default_rng(1))
    unit = np.array([1, 1e-6, 1, 25000, 1, 1])
    moved = fit_map(source * unit + [0, 0, 25000, 0, 0, 0], target, fitted, np.random.default_rng(1))
    assert plain.r2 > 0.95
    np.testing.assert_allclose(moved.same, plain.same, atol=1e-6)
