"""Re-entry: known truth on the shipped small models, controls, statistics, bad requests."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from called import run_lake
from reentry_lake import figure, target

from extract.reenter import (
    AblateHeadsSettings,
    AblateSettings,
    CorruptSettings,
    CutEdgesSettings,
    GradientSettings,
    PatchSettings,
    SteerSettings,
    SweepSettings,
    ablate,
    ablate_heads,
    corrupt,
    cut_edges,
    integrated_gradients,
    patch,
    steer,
    sweep_grid,
)
from schemas import UsageError
from schemas.statistics import share_interval
from store import open_lake


@pytest.fixture(scope="module")
def folder(reentry_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared lake, to be written into."""
    return Path(shutil.copytree(reentry_lake.parent, tmp_path_factory.mktemp("reenter"), dirs_exist_ok=True)) / "a.lake"


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
            assert figure(result, "drop", **labels) == 0
            assert figure(result, "kl_mean", **labels) == pytest.approx(0, abs=1e-5)
    assert figure(used, "importance", group="numbers", **place) > 0.8
    assert figure(used, "importance", group="others", **place) < 0.5
    assert figure(used, "p_holm", group="numbers", **place) < 1e-6
    assert figure(only_read, "importance", group="numbers", **place) < 0.2
    random = figure(
        used, "importance", group="random like numbers", control="random positions", **{"operation": "mean"}
    )
    assert random > figure(used, "importance", group="others", **place)


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
        place: figure(clean, "share", kind="one", positions=place, **labels) for place in ("ct0", "ct1", "ct2", "ct5")
    }
    assert min(share["ct1"], share["ct5"]) > 0.2
    assert max(share["ct0"], share["ct2"]) < 0.1
    numbers = figure(clean, "share", kind="carrying", positions="numbers", **labels)
    assert numbers > 0.5 > 0.1 > figure(clean, "share", kind="carrying", positions="others", **labels)
    assert numbers == figure(clean, "share", kind="first", n=6, **labels)
    assert figure(result, "recovery", kind="carrying", positions="numbers", **labels) > 0.4
    first = {"kind": "first", "n": 6, **labels}
    assert figure(clean, "share", **first, control="self (stored)") == 0
    assert figure(clean, "share", **first, control="random donor") < numbers / 2
    np.testing.assert_allclose(result["share"].sum("outcome_kind"), 1)
    # 62 proper subsets besides the six alone: 6 first, 56 - 4 others of two to five, and no set twice.
    family = result["positions"].values[(result["control"] == "") & (result["kind"] != "carrying")]
    assert len(set(family)) == 63
    assert figure(twin.sel(outcome_kind="clean_answer"), "share", **first) < 0.2
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
    assert figure(given, "share", **labels) > 0.5
    assert figure(given, "share", **labels, control="self (stored)") == 0
    assert figure(to_clean, "recovery", **labels) > 0.4
    assert float(to_clean["n_that_wins"][0]) in (4, 6)
    # N against N + 1 of the first, five pairs: ct1 and ct3 carry numbers, ct2 and ct4 do not.
    assert list(to_clean["n_second"].values) == [2, 3, 4, 5, 6]
    added = dict(zip(to_clean["n_second"].values.tolist(), to_clean["n_difference"].values.tolist(), strict=True))
    assert min(added[2], added[4]) > max(added[3], added[5], 0.1)
    with pytest.raises(UsageError, match="--into both is not one of corrupted, clean"):
        PatchSettings(into="both")  # type: ignore[arg-type]


def test_both_halves_of_a_pair_are_one_problem_of_an_ablation(folder: Path) -> None:
    pairs = target(folder, "small-gpt2", "pairs")
    result = ablate(pairs, AblateSettings(sites=("latent_embedding",), operations=("mean",), draws=0))
    problem = pairs.data["problem"].values
    assert len(np.unique(problem)) < len(problem)
    overall = result.sel(stratum="all")
    low, high = share_interval(result["correct"].values, np.ones_like(result["correct"].values), problem)
    np.testing.assert_array_equal(overall["accuracy_low"], low)
    np.testing.assert_array_equal(overall["accuracy_high"], high)


def test_counts_of_thoughts_and_layers_are_compared_in_pairs(folder: Path) -> None:
    found = target(folder, "small-gpt2")
    result = ablate(
        found, AblateSettings(sites=("latent_embedding", "hidden_state"), operations=("mean",), sets=("counts",))
    )
    labels = {"site": "latent_embedding", "group": "first", "operation": "mean"}
    # ct0 carries nothing that is used, ct1 does: one thought can go, the second costs most answers.
    assert figure(result, "n_spared", n_thought=3, **labels) == 1
    assert figure(result, "n_spared", n_thought=1, **{**labels, "group": "last"}) == 0
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


def test_every_corruption_once(folder: Path) -> None:
    result = corrupt(target(folder, "small-llama"), CorruptSettings(seed=1))
    by = {"site": "latent_embedding"}
    for corruption in ("mean", "resample", "noise 2"):
        number, other = (figure(result, "importance", corruption=corruption, group=g, **by) for g in ("ct3", "ct2"))
        assert number > max(0.5, other + 0.3)
    weak, strong = (figure(result, "kl_mean", corruption=f"noise {s}", group="ct3", **by) for s in (0.1, 2))
    assert strong > 10 * weak
    # Shuffling belongs to no thought: there is one, of all.
    assert list(result["group"].values[result["corruption"] == "shuffle"]) == ["all"]
    held = corrupt(target(folder, "small-llama"), CorruptSettings(corruptions=("mean",), hold=True))
    # What ct1 does to the answer goes through ct3 and ct5, which are held.
    direct = {"corruption": "mean", "group": "ct1"}
    assert figure(held, "importance", **direct) < figure(result, "importance", **direct, **by)


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
    assert figure(edges, "drop", group="hub cut") == figure(edges, "drop", group="cut ct1") > 0.5
    assert figure(edges, "kl_mean", group="hub cut", control="scaled by 1") == pytest.approx(0, abs=1e-5)
    for donor in ("forward", "stored"):
        assert figure(edges, "kl_mean", group="self", control=f"self ({donor})") == pytest.approx(0, abs=1e-5)
    assert figure(edges, "drop", group="force ct1") == figure(edges, "drop", group="hub forced")
    # Where a thought looks matters; forcing it costs log probability as well as answers.
    for group in ("attention of thoughts shuffled", "attention of thoughts even", "force ct0"):
        assert figure(edges, "drop", group=group) > 0.3
        assert figure(edges, "logprob_change_mean", group=group) < -1
    assert float(edges["with_prefix"][0]) == 1
    # What is seen from eot chooses how the answer begins; the number is read from ct5 itself, so its log p stays.
    assert figure(edges, "drop", group="force ct5") > 0.3
    assert figure(edges, "with_prefix", group="force ct5") < 0.7
    assert figure(edges, "logprob_change_mean", group="force ct5") == pytest.approx(0, abs=0.05)
    assert figure(edges, "accuracy_with_prefix", group="force ct5") == 1
    assert "right" not in edges["stratum"]  # all are
    singles = figure(edges, "drop", group="cut ct0") + figure(edges, "drop", group="cut ct2")
    assert figure(edges, "additive_drop", group="cut ct0+ct2") == pytest.approx(singles)
    ranking = [(1, 2), (0, 2), (0, 0)]
    settings = AblateHeadsSettings(counts=(2,), draws=2, sample=1, temperature=1e-6)
    heads = ablate_heads(target(folder, "small-gpt2"), settings, ranking=ranking)
    assert figure(heads, "drop", group="top 2", n_head=2) > 0.3
    np.testing.assert_array_equal(heads["sample_correct"], heads["correct"])
    assert figure(heads, "drop", group="all", control="self (stored)") == 0
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
        layers=(0, 1), positions=("ct0", "ct3"), operations=("zero", "noise", "replace"),
        donors=("stored", "other"), strengths=(0.5, 2.0),
    )  # fmt: skip
    result = sweep_grid(found, settings)
    assert result["drop"].dims == ("layer", "position", "operation", "donor", "strength", "stratum")
    assert result["generated_text"].dims[-1] == "example"
    # Donors do not matter to zero and noise, strengths not to zero and replace: 2 x 2 x (1 + 2 + 2) cells.
    assert result.attrs["n_condition"] == 1 + 20
    others = result["kl"].sel(operation=["zero", "noise"])
    np.testing.assert_array_equal(others.sel(donor="stored"), others.sel(donor="other"))
    alone = sweep_grid(found, SweepSettings(layers=(1,), positions=("ct3",), operations=("noise",), strengths=(2.0,)))
    cell = {"layer": 1, "position": "ct3", "operation": "noise", "donor": "stored", "strength": 2.0}
    np.testing.assert_allclose(alone["kl"].sel(cell), result["kl"].sel(cell), atol=1e-4)


def test_command_keeps_a_result_and_answers_bad_requests_in_one_line(folder: Path, call: Any) -> None:
    code, out, err = call(
        "reenter",
        "patch",
        folder,
        "small-gpt2/pairs",
        "small-llama/pairs",
        "--sites",
        "latent_embedding",
        "--subsets",
        "none",
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
        (("sweep", folder, "small-gpt2/test", "--positions", "a5"), "; a5 would change nothing"),
        (("sweep", folder, "small-gpt2/test", "--operations", "scale"), "scale with a strength of 1 would change"),
        (("sweep", folder, "small-gpt2/test", "--heads", "1"), "hidden_state has no heads; leave --heads out"),
        (("sweep", folder, "small-gpt2/test", "--donors", "other"), "--donors is for replace, replace_in; zero takes"),
        (("ablate", folder, "small-gpt2/test", "--operations", "mean:mode"), "average 'mode' is not one of"),
        (("ablate", folder, "small-gpt2/test", "--checkpoint", "small-llama"), "is not the model that made"),
    ]:
        code, out, err = call("reenter", *words)
        assert code == 2, words
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(("option", "value"), [("--batch-rows", "0"), ("--batch-rows", "-3"), ("--limit", "-2")])
def test_a_size_below_one_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    assert run_lake("reenter", "corrupt", folder, "small-gpt2/test", option, value) == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_a_plan_is_told_by_the_first_batches_and_keeps_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from extract.reenter import planning

    words = ["reenter", "ablate", str(folder), "small-gpt2/test", "--sites", "latent_embedding", "--batch-rows", "24"]
    tried, before = {}, sorted(folder.parent.rglob("*"))
    for trial in (0.0, 1e9):
        monkeypatch.setattr(planning, "TRIAL", trial)
        assert run_lake(*words, "--plan", "--json") == 0
        tried[trial] = json.loads(capsys.readouterr().out)["small-gpt2/test"]
    assert sorted(folder.parent.rglob("*")) == before
    short, whole = tried.values()
    assert short["n_row"] == whole["n_row"] == whole["n_tried"]  # what a trial to the end has done
    assert 0 < short["n_tried"] < whole["n_tried"]
    assert min(short["seconds"], short["memory"]) > 0
