"""Thoughts of rightly answered problems in wrongly answered ones: donors, closed forms, bad requests."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reentry_lake
import xarray as xr
from called import run_lake
from reentry_lake import story_lake

from analyze.context import Context
from analyze.page import write_section
from analyze.report.sections import commands, sections
from extract.reenter import CrossSettings, Target, cross
from extract.reenter.crossing.command import tables
from extract.reenter.crossing.experiment import TWIN, with_crossed
from extract.reenter.sweep import Condition
from extract.reenter.values import StoredValues
from schemas import Intervention, UsageError
from schemas.statistics import mcnemar_exact
from store import open_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped model over hard problems, of which it answers some wrongly, and over a few pairs."""
    return story_lake(tmp_path_factory.mktemp("cross"), ["small-gpt2"], hard=40, pairs=10)


def target(lake: Path, data: str = "hard") -> Target:
    return reentry_lake.target(lake, "small-gpt2", data)


def test_donors_are_other_problems_of_the_outcome_and_give_what_the_lake_has(lake: Path) -> None:
    hard = target(lake)
    correct = hard.data["correct"].values
    settings = CrossSettings(sites=("latent_embedding",), positions=("ct1", "ct3"), seed=4)
    result = cross(hard, settings)
    assert result["n_receiver"].values.tolist() == [correct.sum(), (~correct).sum()]
    directions, conditions = {}, []
    for giver, donor in (("right", "correct"), ("wrong", "wrong")):
        rows = hard.values.donors(np.arange(40), donor, 4)
        assert (correct[rows] == (giver == "right")).all()
        assert (rows != np.arange(40)).all()
        for position in ("ct1", "ct3"):  # what the same thoughts do where they are written in by hand
            given = hard.data["latent_embedding"].sel(latent=position).values[rows]
            coords = {"example": hard.data["example"].values}
            name = f"{giver} {position} latent_embedding -1"
            directions[name] = xr.DataArray(given, dims=("example", "hidden"), coords=coords)
            write = Intervention(site="latent_embedding", operation="write", direction=name, positions=(position,))
            conditions.append(Condition(name=name, interventions=(write,)))
            answers = hard.data["predicted_answer"].values[rows]
            follows = result["predicted_answer"].sel(condition=name).values == answers
            np.testing.assert_array_equal(result["follows"].sel(condition=name), follows)
    by_hand = replace(hard, values=StoredValues(hard.data, hard.reasoner, directions=directions)).sweep(conditions)
    names = list(directions)
    written = by_hand["generated_text"].sel(condition=names)
    np.testing.assert_array_equal(result["generated_text"].sel(condition=names), written)
    for receiver, use in (("right", correct), ("wrong", ~correct)):
        cell = result.sel(receiver=receiver).isel(place=0)
        names = [f"{giver} ct1 latent_embedding -1" for giver in ("right", "wrong")]
        right, wrong = result["correct"].sel(condition=names).values[:, use]
        np.testing.assert_allclose(cell["crossed"], [right.mean(), wrong.mean()])
        np.testing.assert_allclose(cell["crossed_difference"], right.mean() - wrong.mean())
        np.testing.assert_allclose(cell["crossed_p"], mcnemar_exact(wrong, right, np.arange(use.sum())).p)
    own = result["control"].values == "self (stored)"
    assert float(result["kl"].values[own].max()) < 1e-5
    assert "right with those of right 95%" in tables(result, {})[0].columns


def test_twins_of_the_other_outcome_give_where_there_are_some(lake: Path) -> None:
    pairs = target(lake, "pairs")
    correct = pairs.data["correct"].values.copy()
    correct[[0, 3, 4]] = False  # as though the model had answered these halves wrongly
    pairs.data = pairs.data.assign(correct=("example", correct))
    pairs.values = StoredValues(pairs.data, pairs.reasoner)
    result = cross(pairs, CrossSettings(sites=("latent_embedding",), positions=("ct1",)))
    twin = result.isel(condition=result["donor"].values == TWIN)
    number = pairs.data["pair"].values
    mixed = np.array([correct[number == each].sum() == 1 for each in number])
    np.testing.assert_array_equal(twin["counted"].values, mixed[None])
    assert (twin["kl"].values[0, ~mixed] < 1e-6).all()


def test_the_page_tells_what_goes_over_how_many_can_go_and_patches_back(lake: Path) -> None:
    fed = ["--sites", "latent_embedding"]
    for words in (
        ["cross", "small-gpt2/hard", "--positions", "ct1,ct2"],
        ["ablate", "small-gpt2/pairs", "--sets", "counts", "--operations", "mean"],
        ["patch", "small-gpt2/pairs", "--into", "clean", "--subsets", "none"],
    ):
        assert run_lake("reenter", words[0], lake, *words[1:], *fed) == 0
    context = Context(open_lake(lake), ["small-gpt2/hard", "small-gpt2/pairs"])
    told = {}
    for section in sections():
        if section.slug in ("crossing", "thoughts-spared", "patching-back"):
            told[section.slug] = write_section(section, context).lines[0][1]
            assert commands(section, context)[0].split()[:3] == ["lake", "reenter", section.needs[0].split()[0]]
    assert re.search(
        r"of \d+ answered wrongly, none of 3 places shows a difference between the two donors",
        told["crossing"],
    )
    assert re.search(
        r"\d of the first, \d of the .* can go before accuracy is shown to fall from 100.0%",
        told["thoughts-spared"],
    )
    assert re.search(
        r"whether the corrupted answer wins is open .* in .*% of resamples of the pairs at no N", told["patching-back"]
    )
    assert re.search(r"first differ: step 1 \(n \d\) from N = 2", told["patching-back"])


def test_crossing_has_its_closed_form() -> None:
    correct = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1], [0, 0, 0, 1, 0]], dtype=bool)
    labels = {"site": "s", "layer": 0, "group": "ct1", "control": ""}
    coords = {name: ("condition", np.array([value] * 3, dtype=object)) for name, value in labels.items()}
    coords["donor"] = ("condition", np.array(["", "right", "wrong"], dtype=object))
    dims = ("condition", "example")
    result = with_crossed(xr.Dataset({"correct": (dims, correct), "follows": (dims, correct)}, coords=coords), 0)
    np.testing.assert_allclose(result["crossed"][0], [[2 / 3, 0], [1, 1 / 2]])
    np.testing.assert_allclose(result["crossed_difference"][0], [2 / 3, 1 / 2])
    np.testing.assert_allclose(result["crossed_p"][0], [0.5, 1.0])


def test_bad_requests_are_one_line(lake: Path) -> None:
    with pytest.raises(UsageError, match="at least two of each are needed"):
        cross(target(lake, "pairs"))
    with pytest.raises(UsageError, match="ct9"):
        cross(target(lake), CrossSettings(positions=("ct9",)))
    with pytest.raises(UsageError, match="is fed below all layers"):
        cross(target(lake), CrossSettings(sites=("latent_embedding",), layers=(0,)))
