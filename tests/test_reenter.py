"""Back into the model: known truth on the shipped small models, controls, statistics, bad requests."""

import itertools
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lake as command_line
from extract.reenter import (
    AblateHeadsSettings,
    AblateSettings,
    CorruptSettings,
    CutEdgesSettings,
    GradientSettings,
    PatchSettings,
    SteerSettings,
    SweepSettings,
    Target,
    ablate,
    ablate_heads,
    corrupt,
    cut_edges,
    integrated_gradients,
    open_target,
    patch,
    steer,
    sweep_grid,
)
from extract.reenter.intervene import permutation
from extract.reenter.kept import Kept
from extract.reenter.paired import spared, with_pairs
from extract.reenter.patching.experiment import swap_effects
from extract.reenter.statistics import first_that_wins, with_accuracy
from extract.run.extract import extract, prepare
from extract.small_models.problems import make_pairs, make_splits, write_pairs, write_problems
from schemas import RunSpec, UsageError
from store import open_lake

torch.set_num_threads(1)
MODELS = ("small-gpt2", "small-llama", "small-gpt2-decodable", "small-llama-decodable")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of the shipped models over a few problems and pairs, float32."""
    root = tmp_path_factory.mktemp("reenter")
    sizes = {"train": {}, "validation": {}, "test": {2: 16, 3: 16, 4: 16}}
    write_problems(make_splits(3, sizes)["test"], root / "test.jsonl")
    write_pairs(make_pairs(16, 3), root / "pairs.json")
    spec = RunSpec(dtype="float32", batch_size=48, max_new_tokens=10)
    for model in MODELS:
        for data in ("test.jsonl", "pairs.json"):
            extract(prepare(model, str(root / data), root / "a.lake", spec), root / "a.lake")
    return root / "a.lake"


def target(folder: Path, model: str, data: str = "test", **options: Any) -> Target:
    return open_target(open_lake(folder), f"{model}/{data}", **options)


def figures(result: xr.Dataset, variable: str, **labels: Any) -> float:
    """One figure, by the coordinates of its condition."""
    found = np.ones(result.sizes["condition"], dtype=bool)
    for name, value in {"control": "", **labels}.items():
        found &= result[name].values == value
    assert found.sum() == 1, labels
    part = result[variable]
    part = part.sel(stratum="all") if "stratum" in part.dims else part
    return float(part.values[found][0])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_ablation_tells_used_thoughts_from_thoughts_that_only_read_the_same(folder: Path, architecture: str) -> None:
    settings = AblateSettings(sites=("latent_embedding",), operations=("mean",))
    used = ablate(target(folder, f"small-{architecture}"), settings)
    only_read = ablate(target(folder, f"small-{architecture}-decodable"), settings)
    place = {"site": "latent_embedding", "operation": "mean"}
    for result in (used, only_read):
        # Both read alike: numbers at ct0, ct2, ct4, operators at bot and between.
        np.testing.assert_array_less(0.9, result["number_share"].sel(position=["ct0", "ct2", "ct4"]))
        np.testing.assert_array_less(result["number_share"].sel(position=["bot", "ct1", "ct3", "ct5"]), 0.1)
        for donor in ("forward", "stored"):
            labels = {"site": "latent_embedding", "operation": "replace", "control": f"self ({donor})"}
            assert figures(result, "drop", **labels) == 0
            assert figures(result, "kl_mean", **labels) == pytest.approx(0, abs=1e-5)
    assert figures(used, "importance", group="numbers", **place) > 0.8
    assert figures(used, "importance", group="others", **place) < 0.5
    assert figures(used, "p_holm", group="numbers", **place) < 1e-6
    assert figures(only_read, "importance", group="numbers", **place) < 0.2
    random = figures(
        used, "importance", group="random like numbers", control="random positions", **{"operation": "mean"}
    )
    assert random > figures(used, "importance", group="others", **place)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_patching_finds_the_thoughts_that_carry_the_answer_over(folder: Path, architecture: str) -> None:
    every, none = (PatchSettings(sites=("latent_embedding",), subsets=subsets) for subsets in ("all", "none"))
    result = patch(target(folder, f"small-{architecture}", "pairs"), every)
    twin = patch(target(folder, f"small-{architecture}-decodable", "pairs"), none)
    attrs = result.attrs
    assert attrs["n_counted"] + attrs["n_same_answer"] + attrs["n_not_both_right"] == attrs["n_pair"] == 16
    labels = {"site": "latent_embedding", "layer": -1}
    clean = result.sel(outcome_kind="clean_answer")
    share = {
        place: figures(clean, "share", kind="one", positions=place, **labels) for place in ("ct0", "ct1", "ct2", "ct5")
    }
    assert min(share["ct1"], share["ct5"]) > 0.2
    assert max(share["ct0"], share["ct2"]) < 0.1
    numbers = figures(clean, "share", kind="carrying", positions="numbers", **labels)
    assert numbers > 0.5 > 0.1 > figures(clean, "share", kind="carrying", positions="others", **labels)
    assert numbers == figures(clean, "share", kind="first", n=6, **labels)
    assert figures(result, "recovery", kind="carrying", positions="numbers", **labels) > 0.4
    first = {"kind": "first", "n": 6, **labels}
    assert figures(clean, "share", **first, control="self (stored)") == 0
    assert figures(clean, "share", **first, control="random donor") < numbers / 2
    np.testing.assert_allclose(result["share"].sum("outcome_kind"), 1)
    # 62 proper subsets besides the six alone: 6 first, 56 - 4 others of two to five, and no set twice.
    family = result["positions"].values[(result["control"] == "") & (result["kind"] != "carrying")]
    assert len(set(family)) == 63
    effects = swap_effects(result).sel(site="latent_embedding", layer=-1)
    assert list(effects["position"].values) == ["ct0", "ct1", "ct2", "ct3", "ct4", "ct5"]
    assert figures(twin.sel(outcome_kind="clean_answer"), "share", **first) < 0.2
    assert np.isnan(twin["n_that_wins"]).all()


def test_pairs_follow_from_the_thought_that_holds_the_step_in_which_they_differ(folder: Path) -> None:
    pairs = target(folder, "small-gpt2", "pairs")
    result = patch(pairs, PatchSettings(sites=("latent_embedding",), subsets="none"))
    data, labels = pairs.data, dict(zip(result["example"].values, result["first_step"].values, strict=True))
    chain = data["intermediate_result"].values
    for index, number in enumerate(data["pair"].values):
        if str(data["variant"].values[index]) == "corrupted" and data["example"].values[index] in labels:
            (twin,) = [i for i in np.flatnonzero(data["pair"].values == number) if i != index]
            both = [row[np.isfinite(row)] for row in (chain[index], chain[twin])]
            step = next(k for k, (a, b) in enumerate(zip(*both, strict=True)) if a != b)
            wanted = "the last step" if step == len(both[0]) - 1 else f"step {step + 1}"
            assert labels[data["example"].values[index]] == wanted
    wins = result["n_that_wins_by_step"].isel(series=0).to_series()
    assert wins["step 1"] == 2
    assert np.isnan(wins["the last step"])
    last = result["first_step"].values == "the last step"
    assert result.attrs["ceiling"] == pytest.approx(1 - last.mean())
    shares = (result["share_by_step"] * result["n_by_step"]).sum("differs") / result["n_by_step"].sum()
    np.testing.assert_allclose(shares.transpose(*result["share"].dims), result["share"])


def test_patching_goes_both_ways(folder: Path) -> None:
    found = target(folder, "small-gpt2", "pairs")
    to_clean = patch(found, PatchSettings(sites=("latent_embedding",), subsets="none", into="clean"))
    labels = {"site": "latent_embedding", "layer": -1, "kind": "first", "n": 6}
    given = to_clean.sel(outcome_kind="corrupted_answer")
    assert figures(given, "share", **labels) > 0.5
    assert figures(given, "share", **labels, control="self (stored)") == 0
    assert figures(to_clean, "recovery", **labels) > 0.4
    assert float(to_clean["n_that_wins"][0]) in (4, 6)
    # N against N + 1 of the first, five pairs: ct1 and ct3 carry numbers, ct2 and ct4 do not.
    assert list(to_clean["n_second"].values) == [2, 3, 4, 5, 6]
    added = dict(zip(to_clean["n_second"].values.tolist(), to_clean["n_difference"].values.tolist(), strict=True))
    assert min(added[2], added[4]) > max(added[3], added[5], 0.1)
    with pytest.raises(UsageError, match="--into both is not one of corrupted, clean"):
        PatchSettings(into="both")  # type: ignore[arg-type]


def test_counts_of_thoughts_and_layers_are_compared_in_pairs(folder: Path) -> None:
    found = target(folder, "small-gpt2")
    result = ablate(
        found, AblateSettings(sites=("latent_embedding", "hidden_state"), operations=("mean",), sets=("counts",))
    )
    labels = {"site": "latent_embedding", "group": "first", "operation": "mean"}
    # ct0 carries nothing that is used, ct1 does: one thought can go, the second costs most answers.
    assert figures(result, "n_spared", n_thought=3, **labels) == 1
    assert figures(result, "n_spared", n_thought=1, **{**labels, "group": "last"}) == 0
    pairs = {name: result[name].values for name in ("n_thought_first", "n_thought_difference", "n_thought_p_holm")}
    chosen = (result["n_thought_pair_site"] == labels["site"]) & (result["n_thought_pair_group"] == "first")
    second = chosen.values & (pairs["n_thought_first"] == 1)
    assert pairs["n_thought_difference"][second].item() < -0.5
    assert pairs["n_thought_p_holm"][second].item() < 1e-3
    # Two layers and both at once are three; at once is no layer, so there is one pair of each set.
    assert set(result["layer_first"].values) == {0}
    assert result.sizes["layer_pair"] == 3 * 6
    with pytest.raises(UsageError, match="--sets some is not one of"):
        AblateSettings(sets=("some",))  # type: ignore[arg-type]


def test_paired_tests_have_their_closed_form() -> None:
    outcome = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=bool)
    labels = {"layer": [0, 1, 2, -1], "control": ["", "", "", ""]}
    coords = {"example": range(6), **{name: ("condition", values) for name, values in labels.items()}}
    result = with_pairs(xr.Dataset(coords=coords), outcome, over="layer", within=(), which="all")
    np.testing.assert_array_equal(result["layer_first"], [0, 0, 1])
    np.testing.assert_allclose(result["layer_difference"], [-0.5, -1, -0.5])
    np.testing.assert_allclose(result["layer_p"], [0.25, 2 / 64, 0.25])
    np.testing.assert_allclose(result["layer_p_holm"], [0.5, 6 / 64, 0.5])
    assert spared([1, 0.01, 0.001], [0, 0.2, 0.9], [1, 2, 3]) == 1
    assert spared([1, 1], [0, 0], [1, 2]) == 2


def test_every_corruption_once(folder: Path) -> None:
    result = corrupt(target(folder, "small-llama"), CorruptSettings(seed=1))
    by = {"site": "latent_embedding"}
    for corruption in ("mean", "resample", "noise 2"):
        number, other = (figures(result, "importance", corruption=corruption, group=g, **by) for g in ("ct3", "ct2"))
        assert number > max(0.5, other + 0.3)
    weak, strong = (figures(result, "kl_mean", corruption=f"noise {s}", group="ct3", **by) for s in (0.1, 2))
    assert strong > 10 * weak
    # Shuffling belongs to no thought: there is one, of all.
    assert list(result["group"].values[result["corruption"] == "shuffle"]) == ["all"]
    held = corrupt(target(folder, "small-llama"), CorruptSettings(corruptions=("mean",), hold=True))
    # What ct1 does to the answer goes through ct3 and ct5, which are held.
    direct = {"corruption": "mean", "group": "ct1"}
    assert figures(held, "importance", **direct) < figures(result, "importance", **direct, **by)


def test_strata_add_up(folder: Path) -> None:
    result = corrupt(target(folder, "small-gpt2"), CorruptSettings(corruptions=("zero",)))
    assert list(result["stratum"].values) == ["all", "2", "3", "4"]
    parts = result.sel(stratum=["2", "3", "4"])
    np.testing.assert_array_equal(parts["n"].sum("stratum"), result["n"].sel(stratum="all"))
    np.testing.assert_array_equal(parts["broken"].sum("stratum"), result["broken"].sel(stratum="all"))
    before = float(result["accuracy"].sel(stratum="all")[0])
    drop = result["drop"].sel(stratum="all")
    np.testing.assert_allclose(before - result["accuracy"].sel(stratum="all"), drop, atol=1e-12)


def test_an_answer_is_cut_off_from_the_thoughts_to_its_end_however_short_the_run(folder: Path) -> None:
    whole = target(folder, "small-gpt2")
    short = replace(whole, data=whole.data.assign_attrs(spec='{"max_new_tokens": 2}'))
    texts = [str(text) for text in whole.data["gold_answer"].values]
    longest = max(len(whole.reasoner.answer_tokens(text)) for text in texts)
    assert whole.answer_positions == tuple(f"a{index}" for index in range(10))
    assert short.answer_positions == tuple(f"a{index}" for index in range(longest))


def test_edges_and_heads(folder: Path) -> None:
    edges = cut_edges(target(folder, "small-gpt2"), CutEdgesSettings(hub="ct1"))
    assert figures(edges, "drop", group="hub cut") == figures(edges, "drop", group="cut ct1") > 0.5
    assert figures(edges, "kl_mean", group="hub cut", control="scaled by 1") == pytest.approx(0, abs=1e-5)
    for donor in ("forward", "stored"):
        assert figures(edges, "kl_mean", group="self", control=f"self ({donor})") == pytest.approx(0, abs=1e-5)
    assert figures(edges, "drop", group="force ct1") == figures(edges, "drop", group="hub forced")
    # Where a thought looks matters; forcing it costs log probability as well as answers.
    for group in ("attention of thoughts shuffled", "attention of thoughts even", "force ct0"):
        assert figures(edges, "drop", group=group) > 0.3
        assert figures(edges, "logprob_change_mean", group=group) < -1
    assert float(edges["with_prefix"][0]) == 1
    # What is seen from eot chooses how the answer begins; the number is read from ct5 itself, so its log p stays.
    assert figures(edges, "drop", group="force ct5") > 0.3
    assert figures(edges, "with_prefix", group="force ct5") < 0.7
    assert figures(edges, "logprob_change_mean", group="force ct5") == pytest.approx(0, abs=0.05)
    assert figures(edges, "accuracy_with_prefix", group="force ct5") == 1
    assert "right" not in edges["stratum"]  # all are
    singles = figures(edges, "drop", group="cut ct0") + figures(edges, "drop", group="cut ct2")
    assert figures(edges, "additive_drop", group="cut ct0+ct2") == pytest.approx(singles)
    ranking = [(1, 2), (0, 2), (0, 0)]
    settings = AblateHeadsSettings(counts=(2,), draws=2, sample=1, temperature=1e-6)
    heads = ablate_heads(target(folder, "small-gpt2"), settings, ranking=ranking)
    assert figures(heads, "drop", group="top 2", n_head=2) > 0.3
    np.testing.assert_array_equal(heads["sample_correct"], heads["correct"])
    assert figures(heads, "drop", group="all", control="self (stored)") == 0
    assert sorted(set(heads["control"].values)) == [
        "", "noise of the same norm", "random donor", "random heads", "self (forward)", "self (stored)", "untouched",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="never scored; run lake analyze heads .* small-gpt2/test first"):
        ablate_heads(target(folder, "small-gpt2"))


def test_integrated_gradients_add_up(folder: Path) -> None:
    result = integrated_gradients(target(folder, "small-llama", limit=12), GradientSettings(steps=48))
    gap = result["logit_difference"] - result["baseline_logit_difference"]
    np.testing.assert_allclose(result["attribution"].sum("latent") + result["residual"], gap, atol=1e-9)
    assert result.attrs["relative_residual"] < 0.01
    coarse = integrated_gradients(target(folder, "small-llama", limit=12), GradientSettings(steps=2))
    assert coarse.attrs["relative_residual"] > result.attrs["relative_residual"]
    # The fed values themselves give the difference that a sweep measures.
    found = target(folder, "small-llama")
    assert not any(parameter.grad is not None for parameter in found.reasoner.model.parameters())


def test_steering_uses_the_other_half_and_one_length(folder: Path) -> None:
    found = target(folder, "small-gpt2")
    # Some wrong answers, to have a direction from.
    found.data["correct"] = ("example", np.arange(found.data.sizes["example"]) % 3 > 0)
    result = steer(found, SteerSettings(strengths=(-1.0, 1.0), draws=2, sample=1, temperature=1e-6))
    np.testing.assert_array_equal(result["sample_correct"], result["correct"])
    assert result.sizes["example"] == found.data.sizes["example"] // 2
    assert sorted(set(result["direction"].values)) == ["", "correct-wrong", "random #1", "random #2"]
    lengths = [float(np.linalg.norm(array.sel(layer=1, position="ct2"))) for array in found.values.directions.values()]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
    nothing = result["kl_mean"].sel(stratum="all").values[result["control"].values == "self (forward)"]
    np.testing.assert_allclose(nothing, 0, atol=1e-5)
    for name, message in [
        ("probes", "not of the form"),
        ("probes:weights", "never computed .* lake analyze probes .* first"),
    ]:
        with pytest.raises(UsageError, match=message):
            steer(found, SteerSettings(directions=(name,)))


def test_grid_is_labelled_and_repeats_nothing(folder: Path) -> None:
    found = target(folder, "small-llama")
    settings = SweepSettings(
        layers=(0, 1), positions=("ct0", "ct3"), operations=("zero", "noise"), donors=("stored", "other"),
        strengths=(0.5, 2.0),
    )  # fmt: skip
    result = sweep_grid(found, settings)
    assert result["drop"].dims == ("layer", "position", "operation", "donor", "strength", "stratum")
    assert result["generated_text"].dims[-1] == "example"
    # Donors do not matter to these operations, strengths not to zero: 2 x 2 x (1 + 2) cells.
    assert result.attrs["n_condition"] == 1 + 12
    np.testing.assert_array_equal(result["kl"].sel(donor="stored"), result["kl"].sel(donor="other"))
    alone = sweep_grid(found, SweepSettings(layers=(1,), positions=("ct3",), operations=("noise",), strengths=(2.0,)))
    cell = {"layer": 1, "position": "ct3", "operation": "noise", "donor": "stored", "strength": 2.0}
    np.testing.assert_allclose(alone["kl"].sel(cell), result["kl"].sel(cell), atol=1e-4)


def test_first_that_wins_and_stays() -> None:
    wins = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    found = first_that_wins(wins, ~wins, [1, 2, 3, 4, 5])
    # Wins at 2, but not at 3: from 4 on it stays.
    assert found["n"] == 4
    assert found["n_low"] <= 4 <= found["n_high"]
    never = first_that_wins(np.zeros((2, 3), dtype=bool), np.ones((2, 3), dtype=bool), [1, 2])
    assert np.isnan(never["n"])
    assert never["never"] == 1


def test_rephrasings_of_a_problem_make_no_figure_surer() -> None:
    rng = np.random.default_rng(0)
    answer = np.where(rng.random((2, 30)) < [[0.9], [0.5]], 7.0, 8.0)
    kl = rng.random((2, 30))

    def swept(times: int, problem: bool) -> xr.Dataset:
        dims = ("condition", "example")
        data = xr.Dataset(
            {
                "predicted_answer": (dims, np.repeat(answer, times, 1)),
                "answer_logprob": (("condition", "answer", "example"), np.repeat(kl, times, 1)[:, None]),
                "kl": (dims, np.repeat(kl, times, 1)),
            }
        )
        data = data.assign_coords(problem=("example", np.repeat(np.arange(30), times))) if problem else data
        return with_accuracy(data, np.full(30 * times, 7.0))

    once, grouped, apart = swept(1, problem=False), swept(4, problem=True), swept(4, problem=False)
    for name in ("accuracy", "importance", "kl_mean", "kl", "logprob_change"):
        for end in ("_low", "_high"):
            name_of = name.removesuffix("_mean") + end
            np.testing.assert_allclose(grouped[name_of], once[name_of], err_msg=name_of)
    np.testing.assert_allclose(grouped["p_holm"], once["p_holm"])
    assert apart["p"][0, 1] < once["p"][0, 1]
    assert apart["accuracy_low"][0, 1] > grouped["accuracy_low"][0, 1]


def test_right_and_wrong_answers_are_told_apart() -> None:
    dims = ("condition", "example")
    answer = np.array([[7.0, 7, 7, 1, 1], [7, 1, 1, 7, 1]])
    found = xr.Dataset(
        {
            "predicted_answer": (dims, answer), "kl": (dims, answer * 0),
            "answer_logprob": (("condition", "answer", "example"), answer[:, None] * 0),
        }
    )  # fmt: skip
    result = with_accuracy(found, np.full(5, 7.0), outcomes=True)
    assert result["stratum"].values.tolist() == ["all", "right", "wrong"]
    np.testing.assert_array_equal(result["n"][:, 1], [5, 3, 2])
    np.testing.assert_allclose(result["accuracy"][:, 1], [2 / 5, 1 / 3, 1 / 2])
    np.testing.assert_array_equal(result["mended"][:, 1], [1, 0, 1])


def test_a_shuffle_always_moves_something() -> None:
    for row in range(200):
        order = permutation(0, row, 2)
        assert order.tolist() == [1, 0]


def test_command_keeps_a_result_and_answers_bad_requests_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            command_line.main(["reenter", *map(str, words)])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    code, out, err = call(
        "patch", folder, "small-gpt2/pairs", "small-llama/pairs", "--sites", "latent_embedding", "--subsets", "none"
    )
    assert (code, err) == (0, "")
    assert "the clean answer wins from N" in out
    kept = open_lake(folder).result("patch", "small-gpt2/pairs")
    assert {"share", "outcome", "recovery", "n_that_wins"} <= set(kept.data_vars)
    assert kept.attrs["inputs"]
    assert not [*folder.parent.glob("*.reenter*")]
    for words, message in [
        (("ablate", folder, "small-gpt2/nothing"), "has no run 'small-gpt2/nothing'"),
        (("ablate", folder, "small-gpt2/test", "--layers", "7"), "layer 7 is not there"),
        (("ablate", folder, "small-gpt2/test", "--layers", "x"), "whole numbers"),
        (("corrupt", folder, "small-gpt2/test", "--positions", "ct9"), "position 'ct9' is not there"),
        (("patch", folder, "small-gpt2/test"), "has no clean/corrupted pairs"),
        (("heads", folder, "small-gpt2/test"), f"run lake analyze heads {folder} small-gpt2/test first"),
        (("edges", folder, "small-gpt2/test", "--hub", "ct8"), "hub 'ct8' is not one of"),
        (("steer", folder, "small-gpt2/test", "--directions", "sae:decoder"), "was never computed"),
        (("sweep", folder, "small-gpt2/test", "--site", "head_output", "--heads", "9"), "head 9 is not there"),
        (("sweep", folder, "small-gpt2/test", "--operations", "melt"), "operation 'melt' is not one of"),
        (("ablate", folder, "small-gpt2/test", "--operations", "mean:mode"), "average 'mode' is not one of"),
        (("ablate", folder, "small-gpt2/test", "--checkpoint", "small-llama"), "is not the model that made"),
    ]:
        code, out, err = call(*words)
        assert code == 2, words
        assert message in err
        assert err.count("\n") == 1


ROWS = "--batch-rows"


@pytest.fixture(scope="module")
def killed(folder: Path) -> Path:
    """What a re-entry with ``--batch-rows 48`` left behind when it was killed midway."""
    if (child := os.fork()) == 0:  # a process of its own, which need not load what is loaded here
        save, count = Kept.save, itertools.count(1)

        def save_or_die(*given: Any) -> None:
            save(*given)
            if next(count) == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        Kept.save = save_or_die  # type: ignore[method-assign]
        with Path(os.devnull).open("w") as sys.stdout, suppress(BaseException):
            command_line.main([word.replace("PATH", str(folder)) for word in (*CORRUPT, ROWS, "48")])
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it was done before it was killed"
    return folder.with_name("a.lake.reenter.corrupt").rename(folder.with_name("killed"))


CORRUPT = ["reenter", "corrupt", "PATH", "small-gpt2/test", "--corruptions", "zero,resample"]


def corrupted(folder: Path, *options: str) -> xr.Dataset:
    """A corruption as the command line makes and keeps it."""
    words = [word.replace("PATH", str(folder)) for word in [*CORRUPT, *options]]
    command_line.app(args=[*words, "--json"], standalone_mode=False)
    dtype = options[options.index("--compute-dtype") + 1] if "--compute-dtype" in options else "float32"
    return open_lake(folder).result("corrupt", "small-gpt2/test", compute_dtype=dtype)


@pytest.mark.parametrize("options", [(ROWS, "48"), (ROWS, "20"), (ROWS, "48", "--compute-dtype", "bfloat16")], ids=str)
def test_a_killed_re_entry_goes_on_in_any_batches_and_precision(
    folder: Path, killed: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    shutil.rmtree(folder / "results", ignore_errors=True)
    whole = corrupted(folder, *options)
    name = next(each.name for each in open_lake(folder).results("corrupt"))
    shutil.rmtree(folder / name)
    kept = folder.with_name("a.lake.reenter.corrupt")
    shutil.copytree(killed, kept)
    again = corrupted(folder, *options)
    xr.testing.assert_identical(again.drop_attrs(), whole.drop_attrs())
    # The same batches are taken up, others are not.
    assert (again.attrs["model_calls"] < whole.attrs["model_calls"]) == (options == (ROWS, "48"))
    assert not kept.exists()
    assert ("was computed in float32; the model goes on in bfloat16" in capsys.readouterr().err) == (len(options) > 2)


def test_a_kept_batch_says_what_it_holds_and_is_checked(folder: Path, killed: Path) -> None:
    shutil.rmtree(folder / "results", ignore_errors=True)
    whole = corrupted(folder, ROWS, "48")
    kept = folder.with_name("a.lake.reenter.corrupt")
    shutil.copytree(killed, kept)
    first, second, third, *_ = sorted(kept.rglob("*.json"))
    first.write_text(second.read_text())  # another batch's
    second.write_text(second.read_text()[:-20])  # cut short
    changed = json.loads(third.read_text())
    changed["values"]["kl"][0] = 7.0
    third.write_text(json.dumps(changed))
    again = corrupted(folder, ROWS, "48")
    xr.testing.assert_identical(again.drop_attrs(), whole.drop_attrs())


def test_re_entries_in_two_precisions_stand_beside_each_other(folder: Path) -> None:
    shutil.rmtree(folder / "results", ignore_errors=True)
    exact, reduced = corrupted(folder), corrupted(folder, "--compute-dtype", "bfloat16")
    assert {each.spec["compute_dtype"] for each in open_lake(folder).results("corrupt")} == {"float32", "bfloat16"}
    assert exact.attrs["fingerprint"] != reduced.attrs["fingerprint"]
    assert reduced.attrs["compute_dtype"] == "bfloat16"
    assert float(abs(exact["kl"] - reduced["kl"]).max()) > 0


def test_a_run_is_gone_back_into_in_the_precision_it_was_made_in(tmp_path: Path, folder: Path) -> None:
    lake = tmp_path / "half.lake"
    data = str(folder.with_name("test.jsonl"))
    spec = RunSpec(compute_dtype="bfloat16", limit=4, max_new_tokens=4)
    extract(prepare("small-gpt2", data, lake, spec), lake)
    opened = open_target(open_lake(lake), "small-gpt2/test")
    assert opened.compute_dtype == opened.made_in == "bfloat16"


@pytest.mark.parametrize(("option", "value"), [("--batch-rows", "0"), ("--batch-rows", "-3"), ("--limit", "-2")])
def test_a_size_below_one_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    with pytest.raises(SystemExit) as stop:
        command_line.main(["reenter", "corrupt", str(folder), "small-gpt2/test", option, value])
    assert stop.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err
