"""Lenses: the model's own logits, a slow oracle, planted numbers, the published cells, laziness, messages."""

import itertools
import pickle

import dask.base
import numpy as np
import pytest
import xarray as xr
from lens_runs import planted_run
from synthetic import make_model, make_run, no_compute, normalise, write_run

from analyze import fit_tuned_lens, lens_summary, lens_tests, lens_tokens, logit_lens, logits
from analyze.blocks import computed_blocks
from analyze.depth.ranks import readout_depth
from analyze.lens.readout import ReadOut
from analyze.lens.streams import distinct
from analyze.lens.summary import summary_of_blocks
from analyze.lens.tokens import in_a_line, results_in_one_token, visible
from schemas import SchemaError, UsageError, is_number_token
from store import open_lake


def test_results_of_several_tokens_are_counted() -> None:
    results = np.array([[5, 12], [0.5, np.nan], [5, -3]])
    run = xr.Dataset({"intermediate_result": (("example", "step"), results)})
    model = xr.Dataset({"token_string": ("vocabulary", np.array(["1", "2", "5", " -3", "0.5"], dtype=object))})
    assert results_in_one_token(run, model) == {"n_result": 5, "n_result_token": 4}
    assert results_in_one_token(run.assign_attrs(answer_kind="text"), model) == {}


@pytest.mark.parametrize("final_norm", ["layer_norm", "rms_norm"])
def test_last_layer_gives_the_models_own_logits(final_norm):
    model = make_model(final_norm=final_norm)
    run = make_run(model=model)
    offline = logits(run["hidden_state"].isel(layer=-1), model)
    own = xr.dot(run["final_state"], model["unembedding"], dim="hidden").transpose(*offline.dims)
    np.testing.assert_allclose(offline, own, atol=1e-4)
    np.testing.assert_allclose(logits(run["final_state"], model, normed=True), own, atol=1e-4)
    # the state itself, which older scripts read out, does not
    assert np.nanmax(np.abs(logits(run["hidden_state"].isel(layer=-1), model, normed=True) - own)) > 0.1


def test_blocks_read_before_it_was_stopped_are_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr("analyze.lens.logit.ROW_BLOCK", 5)
    model = make_model()
    run = make_run(model=model).chunk(example=4)
    for reads, outputs in ((logit_lens, "top_probability"), (readout_depth, "probability")):
        folder = tmp_path / outputs

        def kept(folder=folder):
            return {path: path.stat().st_mtime_ns for path in folder.rglob("output.pkl")}

        whole = reads(run, model).compute()
        reads(run, model, folder=folder)[outputs].isel(example=slice(0, 8)).compute()
        first = kept()
        assert len(first) == 2
        xr.testing.assert_identical(reads(run, model, folder=folder).compute(), whole)
        assert len(kept()) == 3
        assert first.items() <= kept().items()  # not read again
        moved = run.assign(hidden_state=run["hidden_state"] + 1)
        xr.testing.assert_identical(reads(moved, model, folder=folder).compute(), reads(moved, model).compute())


def test_agrees_with_a_slow_oracle(monkeypatch):
    monkeypatch.setattr("analyze.lens.readout.VOCABULARY_BLOCK", 7)
    monkeypatch.setattr("analyze.lens.logit.ROW_BLOCK", 5)
    model = make_model()
    run = make_run(model=model)
    lens = logit_lens(run, model, top=4)
    strings = model["token_string"].values
    for i, layer, p in np.ndindex(12, 3, 3):
        place = {"example": i, "layer": layer, "position": 3 * p}
        state = run["hidden_state"].isel(place).values
        if np.isnan(state).any():
            assert (lens["top_token"].isel(place) == -1).all()
            continue
        logit = normalise(state, model) @ model["unembedding"].values.T
        chance = np.exp(logit) / np.exp(logit).sum()
        order = np.argsort(-chance)
        assert lens["top_token"].isel(place).values.tolist() == order[:4].tolist()
        np.testing.assert_allclose(lens["top_probability"].isel(place), chance[order[:4]], rtol=1e-4)
        assert lens["is_number"].isel(place) == is_number_token(strings[order[0]])
        gold = strings.tolist().index(" " + run["gold_answer"].values[i])
        assert lens["gold_rank"].isel(place) == 1 + order.tolist().index(gold)
        np.testing.assert_allclose(lens["gold_probability"].isel(place), chance[gold], rtol=1e-4)
        for step in range(3):
            value = run["intermediate_result"].values[i, step]
            ranks = [r for r, token in enumerate(order[:4], 1) if strings[token].strip() == f"{value:g}"]
            assert lens["result_rank"].isel(**place, step=step) == (ranks[0] if ranks else 0)


def test_steps_in_words_are_found_by_the_token_that_begins_them():
    model = make_model()
    run = make_run(model=model).assign_attrs(answer_kind="text")
    strings = model["token_string"].values.tolist()
    rng = np.random.default_rng(1)
    words = np.array(
        [[strings[token].strip() for token in line] for line in rng.integers(0, 30, (12, 2))], dtype=object
    )
    words[::3, 1] = ""
    run = run.drop_dims("step").assign(intermediate_text=(("example", "step"), words))
    run["gold_answer"] = ("example", np.array([f"It is a {line[0]}." for line in words], dtype=object))
    lens = logit_lens(run, model, top=6)
    assert lens["n_step"].values.tolist() == [1 if i % 3 == 0 else 2 for i in range(12)]
    asked = {text for word in {*words.ravel()} - {""} for text in (word, f" {word}")}
    found = 0
    for i, layer, p in np.ndindex(12, 3, 4):
        place = {"example": i, "layer": layer, "position": 2 * p}
        top = lens["top_token"].isel(place).values.tolist()
        if top[0] >= 0:
            assert lens["is_number"].isel(place) == (strings[top[0]] in asked)
        for step, word in enumerate(words[i]):
            begins = {index for index, text in enumerate(strings) if word and text in (word, f" {word}")}
            ranks = [rank for rank, token in enumerate(top, 1) if token in begins]
            assert lens["result_rank"].isel(**place, step=step) == (ranks[0] if ranks else 0)
            found += len(ranks)
    assert found > 10
    lazy = logit_lens(run.chunk(example=5), model, top=6)
    xr.testing.assert_identical(lazy.compute(), lens)
    bare = logit_lens(make_run(model=model).assign_attrs(answer_kind="text"), model)  # equations, and no steps in words
    assert bare.sizes["step"] == 0


@pytest.mark.parametrize(("n_vocabulary", "top"), [(40, 40), (97, 3), (1000, 60)])
def test_blocks_of_the_vocabulary_change_nothing(monkeypatch, n_vocabulary, top):
    """Ragged blocks, more tokens kept than a block has groups, best tokens in the last block, equals by token."""
    model = make_model(n_vocabulary=n_vocabulary)
    rng = np.random.default_rng(0)
    unembedding = np.sort(rng.integers(-3, 4, (n_vocabulary, 8)), axis=0)  # products are exact
    unembedding = unembedding.astype("float32")
    model["unembedding"] = (("vocabulary", "hidden"), unembedding)
    final = rng.integers(-2, 3, (50, 8)).astype("float32")
    final[0] = 0  # all tokens are equal
    gold = rng.integers(-1, n_vocabulary, (50, 2))
    logit = final.astype("float64") @ unembedding.T
    log_p = logit - np.log(np.exp(logit).sum(-1, keepdims=True))
    order = np.lexsort((np.broadcast_to(np.arange(n_vocabulary), logit.shape), -logit))[:, :top]
    own = np.where(gold >= 0, np.take_along_axis(logit, np.maximum(gold, 0), -1), -np.inf)
    known = (gold >= 0).any(-1)
    rank = np.where(known, 1 + (logit > own.max(-1, keepdims=True)).sum(-1), np.nan)
    chance = np.exp(own - logit[:, :1] + log_p[:, :1]).sum(-1)
    for block in (32, 64, 2048):
        monkeypatch.setattr("analyze.lens.readout.VOCABULARY_BLOCK", block)
        token, probability, found_rank, found_chance = ReadOut(model).read(final, top, gold)
        np.testing.assert_array_equal(token, order)
        np.testing.assert_allclose(probability, np.exp(np.take_along_axis(log_p, order, -1)), rtol=1e-5)
        np.testing.assert_array_equal(found_rank, rank)
        np.testing.assert_allclose(found_chance[known], chance[known], rtol=1e-5)
        other = rng.integers(-2, 3, (50, 8)).astype("float32")
        log_q = other.astype("float64") @ unembedding.T
        log_q = log_q - np.log(np.exp(log_q).sum(-1, keepdims=True))
        (divergence, agreement), (nothing, always) = ReadOut(model).compare(final, other, final)
        assert divergence == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-5)
        assert agreement == (log_p.argmax(-1) == log_q.argmax(-1)).mean()
        assert (nothing, always) == (pytest.approx(0, abs=1e-5), 1)


def test_tokens_that_are_wanted_twice_are_ranked_once():
    model, rng = make_model(n_vocabulary=97), np.random.default_rng(0)
    model["unembedding"] = (model["unembedding"] * 4).round()  # products are exact
    final = rng.integers(-2, 3, (50, 8)).astype("float32")
    wanted = rng.integers(-1, 97, (50, 9, 2))[:, [0, 1, 2, 3, 0, 1, 2, 2, 0]]
    wanted[:, 3:5], wanted[0] = -1, -1
    fewer, place = distinct(wanted)
    assert fewer.shape == (50, 3, 2)
    known = (wanted >= 0).any(-1)
    np.testing.assert_array_equal(np.take_along_axis(fewer, place[..., None], 1)[known], wanted[known])
    logit = final @ model["unembedding"].values.T
    own = np.where(wanted >= 0, np.take_along_axis(logit[:, None], np.maximum(wanted, 0), -1), -np.inf)
    rank = np.where(known, 1 + (logit[:, None] > own.max(-1, keepdims=True)).sum(-1), np.nan)
    np.testing.assert_array_equal(ReadOut(model).told(final, 1, wanted)[1], rank)
    chance = np.exp(own).sum(-1) / np.exp(logit).sum(-1)[:, None]
    _, ranks, found = ReadOut(model).ranks(final, wanted)
    np.testing.assert_array_equal(ranks, rank)
    np.testing.assert_allclose(found, np.where(known, chance, np.nan), rtol=1e-5)
    assert ReadOut(model).told(final, 1, wanted[:, :0])[1].shape == (50, 0)
    assert ReadOut(model).best(final[:0]).shape == (0,)  # a block of positions that no answer of its examples reaches


def test_small_chunks_are_read_out_together():
    """Else each of them would read the whole unembedding from memory."""
    model = make_model()
    run = make_run(n_example=40, model=model)
    parts = logit_lens(run.chunk(example=8, layer=1, position=1), model)
    n_state = [a * b * c for a, b, c in itertools.product(*parts["gold_rank"].chunks)]
    assert sum(n_state) == 40 * 3 * 11
    assert len(n_state) <= 1 + sum(n_state) // 256
    xr.testing.assert_allclose(parts, logit_lens(run, model))


def test_planted_results_are_found_with_their_step():
    run, model = planted_run()
    summary = lens_summary(logit_lens(run, model)).isel(layer=-1)
    assert summary["step_share"].sel(position="ct0", step=0) == 1
    assert summary["operator_share"].sel(position="ct1", step=0) == 1
    assert summary["number_share"].sel(position="ct1") == 0
    assert summary["number_share"].sel(position="ct0") == 1
    assert summary["number_share_low"].sel(position="ct0") == pytest.approx(0.839, abs=0.001)  # Wilson, 20 of 20
    assert summary["step_control_share"].sel(position="ct0", step=0) < 0.5
    one_step = run["intermediate_result"].notnull().sum("step") == 1
    assert summary["n_step"].sel(position="ct0").values[1] == (~one_step).sum()


def test_intervals_of_shares_are_over_problems():
    """Examples three times over, of the same problems, tell no more than they do once."""
    run, model = planted_run()
    n = run.sizes["example"]
    once = run.assign_coords(problem=("example", np.arange(n)))
    three = once.isel(example=np.tile(np.arange(n), 3)).assign_coords(example=np.arange(3 * n))
    expected = lens_summary(logit_lens(once, model))
    again, _ = summary_of_blocks(computed_blocks(logit_lens(three.chunk(example=7), model)), three["problem"].values)
    for found in (lens_summary(logit_lens(three, model)), again):
        for name in ("number_share", "step_share", "step_control_share", "inner_share", "inner_control_share"):
            for end in ("", "_low", "_high"):
                xr.testing.assert_allclose(found[name + end], expected[name + end])


def test_shares_of_steps_are_of_results_that_a_token_says():
    """A digit is read where the result is 1250: that is no miss, as no read-out could be it."""
    run, model = planted_run()
    results = run["intermediate_result"].copy(deep=True)
    results[:5, 0] = 1250
    summary = lens_summary(logit_lens(run.assign(intermediate_result=results), model)).isel(layer=-1)
    first = summary.sel(position="ct0", step=0)
    assert first["n"] == run.sizes["example"]
    assert first["n_step"] == first["n_step_control"] == run.sizes["example"] - 5
    assert first["step_share"] == 1
    nothing = lens_summary(logit_lens(run.assign(intermediate_result=results * np.nan), model)).isel(layer=-1)
    assert np.isnan(nothing[["result_share", "control_share", "last_share"]].sel(position="ct0").to_array()).all()
    several = results.notnull().sum("step") > 1
    assert first["n_inner"] == several[5:].sum()


def test_spellings_of_the_answer_count_as_one():
    model = make_model()
    strings = model["token_string"].values.copy()
    strings[35], strings[36] = "7", " 71"
    model["token_string"] = ("vocabulary", strings)
    run = make_run(model=model, gold_answer=np.array(["7"] * 6 + ["715"] * 5 + ["x"], dtype=object))
    lens = logit_lens(run, model, positions=["ct0"]).isel(layer=0, position=0)
    chance = np.exp(logits(run["hidden_state"].sel(position="ct0").isel(layer=0), model))
    chance = chance / chance.sum("vocabulary")
    np.testing.assert_allclose(lens["gold_probability"][0], chance[0, 7] + chance[0, 35], rtol=1e-4)  # " 7" and "7"
    np.testing.assert_allclose(lens["gold_probability"][7], chance[7, 36] + chance[7, 35], rtol=1e-4)  # " 71", "7"
    assert lens["gold_rank"][11].isnull()


@pytest.mark.parametrize("chunks", [{"example": 5, "layer": 1, "position": 1}, {"example": 4, "hidden": 3}, {}])
def test_stays_lazy_and_ignores_chunks(chunks):
    model = make_model()
    run = make_run(model=model, twins=True)
    tuned = xr.Dataset(
        {"weight": (("layer", "hidden", "to"), np.stack([np.eye(8)] * 3)), "bias": (("layer", "to"), np.ones((3, 8)))},
        coords={"layer": [0, 1, 2]},
    )
    with no_compute():
        lazy = lens_summary(logit_lens(run.chunk(chunks), model.chunk()))
        lazy_tuned = logit_lens(run.chunk(chunks), model, tuned=tuned)
    whole = lens_summary(logit_lens(run, model))
    xr.testing.assert_allclose(lazy.compute(), whole)
    lens = logit_lens(run.chunk(chunks), model)
    summary, is_number = summary_of_blocks(computed_blocks(lens), lens["problem"].values)
    xr.testing.assert_allclose(summary, whole)
    assert summary.attrs == whole.attrs
    xr.testing.assert_identical(is_number, logit_lens(run, model)["is_number"])
    xr.testing.assert_allclose(lazy_tuned.compute(), logit_lens(run, model, tuned=tuned), atol=1e-6)


def test_tuned_lens_learns_an_affine_map_and_is_judged_on_other_problems():
    model = make_model(hidden=6)
    rng = np.random.default_rng(0)
    run = make_run(n_example=120, n_layer=3, hidden=6, model=model, twins=True)
    final = run["final_state"].values
    turned = final @ rng.normal(size=(6, 6)) + 3
    noise = rng.normal(size=final.shape)
    state = np.stack([noise, turned, run["hidden_state"].values[:, -1]], axis=1)
    run["hidden_state"] = run["hidden_state"].copy(data=np.where(np.isnan(final)[:, None], np.nan, state))
    seen = []
    tuned = fit_tuned_lens(run.chunk(example=50), model, progress=lambda done, total: seen.append((done, total)))
    assert tuned["r2"][1] > 0.999
    assert tuned["agreement"][1] > 0.95
    assert tuned["kl"][1] < 0.01 < tuned["kl_plain"][1]
    assert abs(tuned["r2"][0]) < 0.1
    assert tuned["agreement_plain"][2] == 1
    assert seen[-1] == (3, 3)
    lens = logit_lens(run, model, tuned=tuned)
    own = logit_lens(run, model).isel(layer=2)["top_token"].isel(rank=0)
    assert (lens["top_token"].isel(layer=1, rank=0) == own).mean() > 0.95


def test_pairs_are_tested_as_pairs():
    values = np.zeros((40, 2, 6))
    values[:, 0, [1, 4]] = 1.0
    values[:20, 1, :] = 1.0  # the same everywhere: nothing to tell apart
    numbers = (
        make_run(n_example=40)["token"].isel(position=slice(1, 7)).expand_dims(layer=[0, 1], axis=1).copy(data=values)
    )
    result = lens_tests(numbers)
    assert result["q"].sel(layer=0) == pytest.approx(200)  # every row says yes at two of six
    assert result["q_p"].sel(layer=1) == 1
    assert result["mcnemar_p"].sel(layer=0, position="ct1", other_position="ct0") == pytest.approx(2 * 0.5**40)
    assert result["mcnemar_p_adjusted"].sel(layer=0, position="ct1", other_position="ct4") == 1
    assert result["difference"].sel(layer=0, position="ct1", other_position="ct0") == 1
    numbers = numbers.assign_coords(problem=("example", np.arange(40) // 2))
    assert lens_tests(numbers)["n"] == 20


def test_tokens_as_text():
    run, model = planted_run(4)
    table = lens_tokens(logit_lens(run, model, positions=["ct0"], top=2), model, n_example=3)
    best = table[(table["layer"] == 2) & (table["rank"] == 1)]
    assert best["text"].tolist() == [f" {x:g}" for x in run["intermediate_result"].values[:3, 0]]


def test_messages():
    model = make_model()
    run = make_run(model=model)
    with pytest.raises(SchemaError, match="width 9, the states have 8"):
        logit_lens(run, make_model(hidden=9))
    with pytest.raises(SchemaError, match="lacks token_string"):
        logit_lens(run, model.drop_vars("token_string"))
    with pytest.raises(SchemaError, match="needs ct9 along position"):
        logit_lens(run, model, positions=["ct9"])
    with pytest.raises(UsageError, match="Use a run of more problems"):
        fit_tuned_lens(run.isel(example=[0, 1]), model)


def test_a_token_without_shape_is_seen() -> None:
    tokens = (" the", " ", " " * 8, "\n    ", "\t", "", "\u200b", "a\nb", "\u4e2d")
    assert [visible(token) for token in tokens] == ["the", "␣", "␣×8", "↵␣×4", "⇥", "∅", "U+200B", "a↵b", "中"]
    assert in_a_line([" great", "great", " a", " great", "a b"]) == "␣great great a a b"


def test_a_stored_read_out_is_told_from_others_by_its_checksums(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("store.read.MODELS_KEPT", 0)  # of any size the last is kept
    for name in ("a", "b"):
        write_run(tmp_path / f"{name}.lake", make_run(), make_model(seed=name == "b"))
    write_run(tmp_path / "a.lake", make_run(name="other/problems"), make_model(seed=2))
    first, again, other = (open_lake(tmp_path / f"{name}.lake") for name in "aab")
    model = "made-up"
    token = dask.base.tokenize(ReadOut(first.model(model)))
    assert token == dask.base.tokenize(ReadOut(again.model(model)))
    changed = first.model(model)
    changed["unembedding"] = changed["unembedding"] * 2
    tokens = {dask.base.tokenize(ReadOut(each)) for each in (other.model(model), changed)}
    assert len(tokens | {token}) == 3
    monkeypatch.setattr("dask.hashing.hash_buffer_hex", lambda *_: pytest.fail("its arrays need not be gone through"))
    held = first.model(model)
    first.model("other")
    monkeypatch.setattr(type(first), "lazy_model", lambda *_: pytest.fail("what is held need not be read again"))
    assert dask.base.tokenize(ReadOut(held)) == token
    assert len(pickle.dumps(ReadOut(held))) < 10_000


def test_copies_of_a_read_out_share_what_a_worker_loads() -> None:
    readout = ReadOut(make_model())
    copies = [pickle.loads(pickle.dumps(readout)) for _ in range(2)]
    assert copies[0].unembedding is copies[1].unembedding
    np.testing.assert_array_equal(copies[0].unembedding, readout.unembedding)
    assert pickle.loads(pickle.dumps(ReadOut(make_model()))).unembedding is not copies[0].unembedding


def test_ranks_beyond_what_16_bits_hold_are_told():
    rng = np.random.default_rng(0)
    model = xr.Dataset(
        {
            "unembedding": (("vocabulary", "hidden"), rng.normal(size=(40_000, 4)).astype("float32")),
            "final_norm_weight": ("hidden", np.ones(4, dtype="float32")),
            "final_norm_bias": ("hidden", np.zeros(4, dtype="float32")),
            "token_string": ("vocabulary", np.array([f" {i}" for i in range(40_000)], dtype=object)),
        },
        attrs=make_model().attrs,
    )
    run = make_run(n_example=1, n_layer=1, hidden=4, n_step=1, model=make_model(hidden=4)).sel(position=["ct0"])
    state = run["hidden_state"].values.reshape(-1)
    last = (model["unembedding"].values @ normalise(state, model)).argmin()
    run["intermediate_result"][:] = last
    assert logit_lens(run, model, top=40_000)["result_rank"].item() == 40_000
