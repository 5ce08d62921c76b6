"""Shares of attention: closed forms, a slow oracle, sums, laziness, messages."""

import numpy as np
import pytest
import xarray as xr
from synthetic import make_run, no_compute, thought_attention

from analyze import attention_shares, attention_summary
from schemas import SchemaError


def test_even_attention_gives_each_segment_its_number_of_keys():
    run = make_run(n_question=4, n_answer=2, n_example=2)
    keys = run.sizes["key_position"]
    place = np.arange(keys)
    causal = (place <= place[:, None]) / (place[:, None] + 1)  # question of four tokens, no padding
    even = xr.zeros_like(run["attention"]) + causal[4:]
    shares = attention_shares(even).isel(example=0, layer=0, head=0)
    eot = dict(zip(shares["target"].values, (shares.sel(query="eot") * 12).values, strict=True))
    assert eot == pytest.approx({"question": 4, "bot": 1, **{f"ct{i}": 1 for i in range(6)}, "eot": 1, "answer": 0})
    assert shares.sel(query="ct1", target="ct1") == pytest.approx(1 / 7)  # itself included
    assert shares.sel(query="answer", target="answer") == pytest.approx((1 / 13 + 2 / 14) / 2)


def test_agrees_with_a_slow_oracle():
    run = make_run()
    shares = attention_shares(run["attention"])
    for i in range(run.sizes["example"]):
        for query in shares["query"].values:
            rows = [
                run["attention"].sel(position=p).isel(example=i, layer=1, head=0)
                for p in run["position"].values
                if p == query or (query == "answer" and p.startswith("a"))
            ]
            rows = [row for row in rows if row.sum() > 0]
            for target in shares["target"].values:
                first = {"question": "q", "answer": "a"}.get(target, target)
                keys = [k for k in run["key_position"].values if k.startswith(first)]
                wanted = [sum(float(row.sel(key_position=k)) for k in keys) for row in rows]
                found = shares.isel(example=i, layer=1, head=0).sel(query=query, target=target)
                assert float(found) == pytest.approx(np.mean(wanted), abs=1e-6)


def test_sums_to_one_and_summary_is_the_mean():
    run = make_run(n_example=30, twins=True)
    attention = run["attention"]
    shares = attention_shares(attention)
    np.testing.assert_allclose(shares.sum("target").where(shares.notnull().all("target")).fillna(1), 1, atol=1e-6)
    result = attention_summary(attention, n_resample=100)
    np.testing.assert_allclose(result["share"], shares.mean("example"), atol=1e-6)
    np.testing.assert_allclose(result["thought_share"].sum("thought").sel(query="eot"), 1, atol=1e-6)
    assert (result["layer_share_low"] <= result["layer_share"] + 1e-6).all()
    assert (result["layer_share_high"] >= result["layer_share"] - 1e-6).all()


def test_queries_that_do_not_exist_are_left_out():
    run = make_run(n_answer=4, n_example=6)
    attention = run["attention"].copy()
    attention[2, :, :, run["position"].values.tolist().index("a0") :] = 0.0
    result = attention_summary(attention, n_resample=5)
    assert result["n"].sel(query="answer") == 5
    assert result["n"].sel(query="eot") == 6
    assert attention_shares(attention).sel(query="answer").isel(example=2).isnull().all()


@pytest.mark.parametrize("capture", ["latent", "full"])
@pytest.mark.parametrize("chunks", [{"example": 5, "layer": 1, "key_position": 7}, {"position": 3}, {}])
def test_stays_lazy_and_ignores_chunks(chunks, capture):
    run = make_run(capture=capture)
    with no_compute():
        lazy = attention_summary(run.chunk(chunks)["attention"], n_resample=10)
    xr.testing.assert_allclose(lazy.compute(), attention_summary(run["attention"], n_resample=10), atol=1e-6)


def test_of_few_examples_a_resample_may_hold_none(recwarn):
    run = make_run(n_example=2).chunk(example=1)
    summary = attention_summary(run["attention"], n_resample=40).compute()
    assert summary["share"].notnull().any()
    assert not recwarn.list


def test_works_without_answers_and_without_examples():
    shares = attention_shares(thought_attention({(0, 0): np.eye(6)}))
    assert shares["query"].values.tolist() == ["bot", *(f"ct{i}" for i in range(6))]
    assert shares.sel(query="ct3", target="ct3") == 1


def test_messages():
    run = make_run()
    with pytest.raises(SchemaError, match="lacks key_position"):
        attention_shares(run["attention"].isel(key_position=0, drop=True))
    with pytest.raises(SchemaError, match="need queries from bot on"):
        attention_shares(make_run(capture="full")["attention"].sel(position=["q-2", "q-1"]))
