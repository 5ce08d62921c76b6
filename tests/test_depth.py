"""Answers after any number of thoughts: against a slow reference, and on models that need a known number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from reentry_lake import oracle_target, states_of, story_lake
from small_runs import prepared_run

from extract import Reasoner
from extract.reenter import open_target
from extract.reenter.depth.command import DepthSettings
from extract.reenter.depth.experiment import pause_vector, think_to_depth
from extract.reenter.depth.gains import right_from, with_gains
from extract.reenter.depth.routes import Route
from extract.reenter.depth.samples import with_samples
from extract.reenter.target import Target
from extract.run.extract import extract
from schemas import Scoring, UsageError
from store import open_lake

QUESTIONS = [("Ann had 12 pens and lost 4 of them.", "8"), ("Why 4 of 7?", "3"), ("Tom eats 3 of 5 apples, or 7.", "2")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of a shipped model over a few problems, and of a random one over a few questions."""
    root = tmp_path_factory.mktemp("depth")
    lake = story_lake(root, ["small-gpt2"], {2: 12, 3: 12, 4: 12})
    lines = [f'{{"question": "{question}", "answer": "#### {answer}"}}' for question, answer in QUESTIONS]
    (root / "few.jsonl").write_text("\n".join(lines))
    extract(prepared_run(lake, root / "few.jsonl", architecture="llama", name="oracle", dtype="float32"), lake)
    return lake


def few(folder: Path) -> Target:
    """The random model's run."""
    return oracle_target(folder, "few", "llama")


@torch.no_grad()
def slowly(reasoner: Reasoner, question: str, answer: str, route: Route, pause: np.ndarray) -> tuple[float, str]:
    """One route for one question, the whole sequence anew for every place."""
    embed = reasoner.model.get_input_embeddings()

    def fed(vectors: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        return torch.cat([vectors, embed(torch.tensor(tokens, dtype=torch.long))])

    prompt = reasoner.encode(question)
    vectors = embed(torch.tensor(prompt if route.marker == "kept" else prompt[:-1]))
    own = route.n_thought if route.series == "own" else min(route.n_thought, reasoner.n_latent)
    for _ in range(own):
        vectors = torch.cat([vectors, reasoner.projection(states_of(reasoner, vectors)[-1])[None]])
    if route.series != "own":
        filler = vectors[-1] if route.series == "repeat" else torch.from_numpy(pause)
        vectors = torch.cat([vectors, *[filler[None]] * (max(route.n_thought, reasoner.n_latent) - own)])
    if route.marker == "kept":
        vectors = fed(vectors, reasoner.closing_ids)
    tokens = reasoner.answer_tokens(answer)
    log_p = reasoner.logits(states_of(reasoner, fed(vectors, tokens[:-1]))[-len(tokens) :]).log_softmax(-1)
    each = log_p.gather(-1, torch.tensor(tokens)[:, None])[reasoner.prefix_length(answer) :]
    written: list[int] = []
    while len(written) < 3 and (not written or written[-1] != reasoner.eos_id):
        written.append(int(reasoner.likeliest(reasoner.logits(states_of(reasoner, fed(vectors, written))[-1]))))
    return float(each.sum()), reasoner.decode(written)


def test_every_route_is_what_a_slow_reference_computes(folder: Path) -> None:
    found = few(folder)
    result = think_to_depth(found, DepthSettings(beyond=1))
    for marker in result["marker"].values:
        for series in result["series"].values:
            for n in (0, 2, 6, 8):
                part = result.sel(series=series, marker=marker, n_thought=n)
                if (series, n) == ("repeat", 0):
                    assert np.isnan(part["answer_logprob"]).all()  # there is nothing to repeat
                    continue
                route = Route(series=series, marker=marker, n_thought=n)
                for row, (question, answer) in enumerate(QUESTIONS[:2]):
                    logprob, text = slowly(found.reasoner, question, answer, route, pause_vector(found))
                    assert float(part["answer_logprob"][row]) == pytest.approx(logprob, abs=2e-4), route
                    assert str(part["generated_text"].values[row]) == text, route


def test_depth_shows_how_many_thoughts_each_number_of_operations_takes(folder: Path) -> None:
    found = open_target(open_lake(folder), "small-gpt2/test")
    settings = DepthSettings(markers=("kept",), series=("own", "repeat"), sample=3, temperature=1e-6)
    result = think_to_depth(found, settings)
    usual = result.sel(series="own", marker="kept", n_thought=6)
    np.testing.assert_allclose(usual["answer_logprob"], found.data["answer_logprob"], atol=1e-4)
    np.testing.assert_array_equal(usual["generated_text"].values, found.data["generated_text"].values)
    np.testing.assert_allclose(usual["kl"], 0, atol=1e-6)
    # Results one to three are fed at ct1, ct3, ct5; the answer is read from what is fed at ct5.
    filled = result.sel(series="repeat", marker="kept")
    assert [float(filled["first_median"].sel(stratum=n)) for n in "234"] == [2, 4, 6]
    for n, thoughts in (("2", 2), ("3", 4), ("4", 6)):
        assert float(filled["accuracy"].sel(stratum=n, n_thought=thoughts)) > 0.5
        assert float(filled["accuracy"].sel(stratum=n, n_thought=thoughts - 1)) < 0.3
    assert float(result["n_enough"].sel(series="own", marker="kept", stratum="all")) == 6
    assert float(result["gain_p_holm"].sel(series="own", marker="kept", stratum="all", n_thought=6)) < 1e-6
    # Cold draws are the likeliest answers.
    likeliest = result["predicted_answer"].sel(series="own", marker="kept")
    drawn = result["sample_answer"].isel(sample=1)
    assert float(((drawn == likeliest) | (drawn.isnull() & likeliest.isnull())).mean()) > 0.99  # ties apart
    small = open_target(open_lake(folder), "small-gpt2/test", limit=12)
    small.batch_rows = 5
    again = think_to_depth(small, settings)
    result = result.sel(example=again["example"])
    for name in ("generated_text", "sample_answer", "first_right"):
        np.testing.assert_array_equal(again[name].values, result[name].values)
    np.testing.assert_allclose(again["answer_logprob"], result["answer_logprob"], atol=1e-4)


def test_draws_follow_the_model_and_no_batch(folder: Path) -> None:
    found = few(folder)
    settings = DepthSettings(beyond=0, series=("own",), markers=("kept",), sample=6, temperature=1.5, seed=1)
    one = think_to_depth(found, settings)
    found.batch_rows = 2
    other = think_to_depth(found, settings)
    np.testing.assert_array_equal(one["sample_answer"].values, other["sample_answer"].values)


def test_first_and_stable_thought_have_their_closed_forms() -> None:
    correct = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=bool).T
    first, stable = right_from(correct)
    np.testing.assert_array_equal(first, [1, np.nan, 0, 0])
    np.testing.assert_array_equal(stable, [3, np.nan, 0, np.nan])
    gold = np.zeros(4)
    dims = ("series", "marker", "n_thought", "example")
    wrong = np.where(correct, 0.0, 1.0)[None, None]
    part = xr.Dataset({name: (dims, wrong) for name in ("predicted_answer", "answer_logprob", "kl")})
    result = with_gains(part, gold, scoring=Scoring(), n_latent=4, strata=None, problem=None, seed=0).isel(
        series=0, marker=0, stratum=0
    )
    np.testing.assert_allclose(result["accuracy"], [0.5, 0.5, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(result["gain"][1:], [0, -0.25, 0.25, 0])
    np.testing.assert_allclose(result["first_share"], [0.5, 0.75, 0.75, 0.75, 0.75])
    np.testing.assert_allclose(result["stable_share"], [0.25, 0.25, 0.25, 0.5, 0.5])
    assert float(result["first_median"]) == 0
    draws = np.array([[[1.0], [1.0], [2.0], [np.nan]]])
    spread = with_samples(xr.Dataset(), draws, np.array([2.0]), scoring=Scoring(), strata=None)
    assert [float(spread[f"sample_{name}"][0, 0]) for name in ("top", "second", "correct", "alive")] == [
        0.5,
        0.25,
        0.25,
        1,
    ]
    assert float(spread["sample_entropy"][0, 0]) == pytest.approx(1.5 * np.log(2))


def test_a_problem_told_twice_counts_once() -> None:
    rng = np.random.default_rng(3)
    dims = ("series", "marker", "n_thought", "example")
    answer, draws = rng.integers(0, 2, (1, 1, 5, 30)).astype(float), rng.integers(0, 3, (5, 4, 30)).astype(float)

    def told(times: int) -> xr.Dataset:
        problem, gold = np.arange(30).repeat(times), np.zeros(30 * times)
        part = xr.Dataset(
            {name: (dims, answer.repeat(times, -1)) for name in ("predicted_answer", "answer_logprob", "kl")}
        )
        over: dict[str, Any] = {"scoring": Scoring(), "strata": None, "problem": problem, "seed": 0}
        spread = with_samples(part, draws.repeat(times, -1), gold, **over)
        return with_gains(spread, gold, n_latent=4, **over).drop_dims("example").drop_vars(["n", "mended", "broken"])

    xr.testing.assert_allclose(told(2), told(1))


def test_commands_keep_and_print_what_they_find(folder: Path, call: Any) -> None:
    words = ["small-gpt2/test", "--limit", "6"]
    code, out, _ = call("reenter", "depth", folder, *words, "--beyond", "0", "--sample", "2")
    assert code == 0
    for text in ("thoughts needed", "drawn answers", "with its 6 thoughts", "positions fed"):
        assert text in out
    assert not Path(f"{folder}.reenter").exists()
    assert "when read-outs stop changing" in call("analyze", "depth", folder, *words)[1]
    stored = open_lake(folder)
    assert {"accuracy", "gain_p_holm", "sample_answer"} <= set(stored.result("depth", "small-gpt2/test").data_vars)
    assert {"log_rank", "settled_position"} <= set(stored.result("depth_readout", "small-gpt2/test").data_vars)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beyond": -1}, "--beyond is -1; it must be at least 0"),
        ({"temperature": 0.0}, "must be at least 1e-06"),
        ({"sample": 2, "markers": ("none",)}, "samples are drawn after"),
        ({"sample": 2000}, "--sample is 2,000; it must be at most 1,000"),
        ({"beyond": 400}, "thoughts fit, so ask for fewer with --beyond"),
    ],
)
def test_bad_requests_are_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        think_to_depth(few(folder), DepthSettings(**change))
    assert "\n" not in str(error.value)
