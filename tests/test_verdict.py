"""Verdicts: each honest by its interval, on ties, minorities, nulls and single problems; on a lake of known truth."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analyze.beside import OPEN, SEEN
from analyze.places import both_names
from analyze.verdict import measures
from analyze.verdict.command import COMMAND, VerdictSettings, tables
from analyze.verdict.rules import (
    NO,
    READABLE,
    UNDECIDED,
    UNMEASURED,
    USED,
    YES,
    Measure,
    against_control,
    decide,
    overturned_by,
    together,
    weigh,
)
from analyze.verdict.shown import evidence_rows, misleading, of_all, read_by, thought_rows, told, used_by
from analyze.verdict.verdicts import Found, controls_of, newer, verdict
from analyze.verdict.verdicts import missing as missing_of
from schemas import MissingRunError, UsageError
from schemas.naming import fed_at, relabelled, state_of
from schemas.statistics import difference_interval, interval_of_trials, wilson_interval
from store import open_lake


@pytest.fixture(scope="module")
def lake(report_lake):
    return open_lake(report_lake)


def said(method: str, count: int, n: int, question: str = USED, margin: float = 0.1, level: float = 0.95):
    share = measures.of_share(count / n, n)
    one = Measure(thought="ct1", question=question, method=method, n=n, interval=share, source="results/x", what="w")
    return weigh(one, margin, level)


def test_a_bound_that_touches_the_margin_decides_nothing():
    assert decide(0.1, 0.3, 0.1) == UNDECIDED
    assert decide(0.0, 0.1, 0.1) == UNDECIDED
    assert decide(0.11, 0.3, 0.1) == YES
    assert decide(0.0, 0.09, 0.1) == NO
    assert decide(float("nan"), 1, 0.1) == UNMEASURED


def test_small_numbers_are_not_told_apart_and_no_share_of_one_problem_says_anything():
    assert said("mean", 0, 1).says == UNDECIDED
    assert said("mean", 0, 30).says == UNDECIDED  # the upper bound is 11%
    assert said("mean", 0, 40).says == NO
    assert said("mean", 0, 40, level=0.999).says == UNDECIDED  # the same of many
    for n in (1, 7, 40, 200):
        smallest = said("mean", 0, n).smallest
        above = [k for k in range(n + 1) if wilson_interval(k, n).low > 0.1]
        assert (smallest == above[0] / n) if above else np.isnan(smallest)


def test_use_rests_on_methods_that_take_content_out_and_never_on_zeroing():
    assert together(USED, []) == UNMEASURED
    assert together(USED, [said("zero", 190, 200), said("edges cut", 200, 200)]) == UNMEASURED
    assert together(USED, [said("zero", 190, 200), said("mean", 0, 200)]) == NO
    assert together(USED, [said("mean", 0, 200), said("resample", 20, 200)]) == UNDECIDED  # a tie with the margin
    assert together(USED, [said("mean", 0, 200), said("patch", 100, 200)]) == YES
    assert together(USED, [said("patch", 0, 200)]) == UNDECIDED  # twins may agree in what the thought holds
    assert together(USED, [said("mean", 0, 200), said("patch", 1, 5)]) == NO
    assert together(READABLE, [said("lens", 0, 200, READABLE), said("probe", 1, 5, READABLE)]) == UNDECIDED


def test_what_would_overturn_a_verdict_has_its_numbers():
    no = overturned_by(USED, NO, [said("mean", 0, 200)], ["patch"], 0.1, 0.95)
    high = float(wilson_interval(0, 200).high)
    assert no == f"an effect above 10%; one below {100 * high:.1f}% is not excluded; not measured: patch"
    yes = overturned_by(USED, YES, [said("mean", 150, 200), said("patch", 0, 200)], [], 0.1, 0.95)
    assert yes == "mean below 10% on other problems; patch: no; a control without the content that shows it too"
    tie = overturned_by(USED, UNDECIDED, [said("mean", 20, 200)], [], 0.1, 0.95)
    assert tie == "no number of problems, if mean stays at 10.0%"
    few = overturned_by(USED, UNDECIDED, [said("mean", 0, 5)], [], 0.1, 0.95)
    assert few == "about 35 problems, if mean stays at 0.0%"
    assert wilson_interval(0, 35).high < 0.1 <= wilson_interval(0, 34).high
    assert overturned_by(USED, UNMEASURED, [], ["mean"], 0.1, 0.95) == "any measure; not measured: mean"


def test_controls_are_spoken_of_as_the_intervals_say():
    strong = said("mean", 190, 200)
    assert against_control(strong, None, 0.1) == ""
    assert against_control(said("mean", 0, 200), said("mean", 150, 200), 0.1) == ""
    assert against_control(strong, said("mean", 185, 200), 0.1) == "seen in the control too"
    assert against_control(strong, said("mean", 60, 200), 0.1) == "seen in the control too, though less"
    assert against_control(strong, said("mean", 0, 200), 0.1) == "not in the control"
    assert against_control(said("mean", 40, 200), said("mean", 4, 20), 0.1) == "not distinguishable from the control"


def test_the_state_at_a_thought_is_fed_at_the_next():
    states = ["q-1", "bot", "ct0", "ct5", "eot"]
    assert [fed_at(one) for one in states] == ["q-1", "ct0", "ct1", "ct6", "eot"]
    assert [state_of(fed_at(one)) for one in states] == states
    assert relabelled(["ct0", "ct1"], "fed") == ["ct1", "ct2"]
    assert relabelled(["ct0", "ct1"], "state", read="fed") == ["bot", "ct0"]
    assert relabelled(["ct0", "ct1"], "fed", among=["ct0", "ct1"]) == ["ct1", "-"]
    assert both_names("ct0+ct1", "fed") == {"state": "bot+ct0", "fed": "ct0+ct1"}
    assert both_names("ct5", "state", "ct5") == {"state": "ct5", "fed": "-"}
    assert relabelled(states, "state") == relabelled(states, "fed", read="fed") == states


def test_pairs_that_differ_in_the_last_step_only_can_follow_no_thought():
    run = xr.Dataset(
        {
            "intermediate_result": (("example", "step"), [[1, 2, 3], [1, 2, 4], [1, 2, 3], [5, 2, 3], [1, 2, np.nan],
                                                          [1, 2, 3]]),
            "pair": ("example", [0, 0, 1, 1, 2, 2]),
        },
        coords={"example": [10, 11, 12, 13, 14, 15]},
    )  # fmt: skip
    assert measures.held(run, np.array([11, 13, 15])).tolist() == [False, True, True]
    assert measures.held(run.drop_vars("pair"), np.array([11, 13])).all()


def test_verdicts_on_a_lake_of_known_truth(lake):
    result = verdict(lake, "small-gpt2/test", controls_of(lake, "small-gpt2/test"))
    assert json.loads(result.attrs["controls"]) == ["small-gpt2-decodable/test"]
    answers = {
        (str(thought), str(question)): str(answer)
        for thought, question, answer in zip(
            *(result[name].values for name in ("thought", "question", "verdict")), strict=True
        )
    }
    assert newer(lake, result) == []
    read = [name for name in json.loads(result.attrs["read"]) if "/corrupt/" not in name]
    before = result.where(~result["result"].str.contains("/corrupt/"), drop=True).assign_attrs(
        result.attrs | {"missing": "[]", "read": json.dumps(read)}
    )
    assert [name.partition("~")[0] for name in newer(lake, before)] == [
        "results/corrupt/small-gpt2.test", "results/corrupt/small-gpt2-decodable.test",
    ]  # fmt: skip
    assert [answers[thought, USED] for thought in ("ct1", "ct3", "ct5", "all")] == [YES] * 4
    assert answers["ct0", READABLE] == YES
    assert answers["ct1", READABLE] == UNDECIDED  # an operator: never a number, of too few problems for a no
    assert answers["ct0", "route"] == UNMEASURED
    assert answers["ct4", USED] == UNDECIDED  # 40 problems are too few for a no
    shown = {str(thought): str(control) for thought, control in zip(result["thought"].values, result["control"].values,
                                                                    strict=True) if control}  # fmt: skip
    assert shown["ct1"] == "not in the control"
    missing = {row["method"]: row["command"] for row in json.loads(result.attrs["missing"])}
    assert missing.keys() == {
        "probe", "traces", "resample", "edit", "erase", "graph", "heads", "head attribution"
    }  # fmt: skip
    assert missing["graph"] == f"lake reenter graph {lake.location} small-gpt2/test"
    (table, elsewhere, *lines) = tables(result, {})
    assert len(table.rows) == result.sizes["row"]
    assert elsewhere.startswith("of other runs of its model: results/patch/small-gpt2.pairs~")
    assert len(lines) == len(missing)
    told_nothing = missing_of(lake, Found(run="small-gpt2/test", measures=(), methods=frozenset()))
    of_mean = next(row["command"] for row in told_nothing if row["method"] == "mean")
    assert "(results/corrupt/" in of_mean
    assert "has none: 40 examples, " in of_mean
    older = result.copy(deep=True)
    for name in ("verdict", "says"):
        older[name] = older[name].where(older[name] != UNDECIDED, "not told apart")
    pd.testing.assert_frame_equal(thought_rows(older), thought_rows(result))
    pd.testing.assert_frame_equal(evidence_rows(older), evidence_rows(result))
    assert tables(older, {})[0].rows == tables(result, {})[0].rows
    twin = verdict(lake, "small-gpt2-decodable/test", [])
    used = twin["verdict"].values[twin["question"].values == USED]
    assert YES not in used
    assert set(used) <= {NO, UNDECIDED}
    by_fed = verdict(lake, "small-gpt2/test", [], by="fed")
    read = by_fed["verdict"].values[(by_fed["thought"].values == "ct1") & (by_fed["question"].values == READABLE)]
    assert read.tolist() == [YES]


def stored_shares(n, trials, dims, **names):
    """Shares of ``n`` examples, as sure as so many trials, with intervals as results hold them."""
    data = xr.Dataset()
    for name, count in names.items():
        share = np.asarray(count) / n
        low, high = interval_of_trials(count, n, trials)
        data = data.assign({name: (dims, share), f"{name}_low": (dims, low), f"{name}_high": (dims, high)})
    return data


def test_traces_decoders_heads_and_attribution_are_read():
    dims, labels = ("layer", "position", "step"), {"layer": [-1], "position": ["ct1", "ct2"], "step": [0]}
    n = np.array([[[20.0], [12.0]]])  # 12 problems have the step there
    traces = stored_shares(n, n, dims, result_share=[[[18], [6]]], control_share=[[[2], [6]]]).assign_coords(labels)
    first, second = measures.traces(traces, "r", traces)
    assert [(one.thought, one.n) for one in (first, second)] == [("ct0", 20), ("ct1", 12)]  # fed there, read before
    assert first.interval(0.95)[0] == pytest.approx(0.8)
    assert decide(*second.interval(0.95)[1:], 0.1) == UNDECIDED
    shares = {"result_share": [[18]], "control_share": [[2]], "shuffled_share": [[6]]}
    decode = stored_shares(n[0, :1], n[0, :1], dims[1:], **shares).assign_coords(position=["ct2"], step=[1])
    (one,) = measures.decode(decode, "r", decode)
    assert (one.thought, one.target, one.n) == ("ct1", "1", 20)
    assert one.interval(0.95)[0] == pytest.approx(0.6)  # less the higher control
    correct = np.ones((3, 20), dtype=bool)
    correct[1, :15] = False
    heads = xr.Dataset(
        {"correct": (("condition", "example"), correct)},
        coords={"condition": ["untouched", "a", "b"], "control": ("condition", ["untouched", "", "random heads"]),
                "group": ("condition", ["", "L0H1", "L0H2"])},
    )  # fmt: skip
    (head,) = measures.heads(heads, "r", heads)
    assert (head.thought, head.target, head.n, head.interval(0.95)[0]) == ("all", "L0H1", 20, 0.75)
    assert head.family != head.question
    shares = {
        f"exact_share{end}": ("node", [value, 0.4, 0.1]) for end, value in (("", 0.5), ("_low", 0.4), ("_high", 0.6))
    }
    nodes = xr.Dataset(
        shares,
        coords={"kind": ("node", ["fed", "head", "mlp"]), "layer": ("node", [0, 1, 1]), "head": ("node", [-1, 2, -1]),
                "position": ("node", ["ct3", "ct4", "ct4"])},
        attrs={"all_nodes": 10.0, "n_used": 30},
    )  # fmt: skip
    fed, head = measures.attribute(nodes, "r", nodes)
    assert (fed.thought, fed.counts, fed.interval(0.95)) == ("ct3", False, (0.5, 0.4, 0.6))
    assert (head.target, head.question, head.counts) == ("L1H2 at ct4", "route", True)
    assert not list(measures.attribute(nodes.assign_attrs(all_nodes=0.0), "r", nodes))  # nothing to be a share of


def test_examples_that_share_a_problem_say_no_more_than_one_of_them():
    """Of forty problems, each three times over, lens and traces say what they say of forty, at any level."""
    dims, labels = ("layer", "position", "step"), {"layer": [0], "position": ["ct1"], "step": [0]}
    for names, reader in (
        (("inner_share", "inner_control_share"), measures.lens),
        (("result_share", "control_share"), measures.traces),
    ):
        counts = dict(zip(names, ([[[12]]], [[[4]]]), strict=True))
        n = np.full((1, 1, 1), 40.0)
        once = stored_shares(n, n, dims, **counts).assign_coords(labels)
        three = {name: 3 * np.array(count) for name, count in counts.items()}
        (of_once,) = reader(once, "r", once)
        (of_three,) = reader(stored_shares(3 * n, n, dims, **three).assign_coords(labels), "r", once)
        assert of_once.n == of_three.n == 40
        for level in (0.9, 0.95, 0.999):
            np.testing.assert_allclose(of_three.interval(level), of_once.interval(level))
            low, high = wilson_interval(12, 40, level)
            expected = difference_interval((0.3, low, high), (0.1, *wilson_interval(4, 40, level)))
            np.testing.assert_allclose(of_three.interval(level), np.ravel(expected))
        assert not list(reader(once.drop_vars(f"{names[1]}_low"), "r", once))  # as earlier versions stored it: missing


def test_right_answers_are_lost_only_beyond_those_that_turn_right_by_the_same_change():
    """Forty right and sixty wrong: twenty turn wrong, and none, fifteen or twenty turn right."""
    right, problem = np.arange(100) < 40, np.arange(100)
    low, high = wilson_interval(20, 40)
    for n_back, says in ((0, YES), (15, UNDECIDED), (20, UNDECIDED)):
        now = (np.arange(100) >= 20) & right | (np.arange(100) >= 100 - n_back)
        n, interval = measures.lost(right, now, np.ones(100, dtype=bool), problem)
        value, *ends = interval(0.95)
        assert (n, value) == (40, pytest.approx((20 - n_back) / 40))
        gained, most_gained, most_odds = (
            n_back / 60,
            wilson_interval(n_back, 60).high,
            1 / wilson_interval(40, 100).low - 1,
        )
        apart = np.linalg.norm([0.5 - low, 1.5 * (most_gained - gained), gained * (most_odds - 1.5)])
        assert ends[0] == pytest.approx(value - apart)
        assert ends[1] == high  # of all that turn wrong: as many that turn right do not make a thought unused
        assert decide(*ends, 0.1) == says
    _, interval = measures.lost(right, right, np.ones(100, dtype=bool), problem)
    assert decide(*interval(0.95)[1:], 0.1) == NO
    _, interval = measures.lost(right, right, right, problem)  # nothing wrong is counted
    assert interval(0.95) == (0.0, *wilson_interval(0, 40))


def test_intervals_are_those_of_the_stored_examples(lake):
    result = verdict(lake, "small-gpt2/test", [])
    stored = lake.result("corrupt", "small-gpt2/test")
    (place,) = np.flatnonzero((stored["corruption"].values == "mean") & (stored["group"].values == "ct3"))
    right = stored["correct"].values[0]
    now = stored["correct"].values[place]
    wrong, back = (right & ~now).sum(), (~right & now).sum()
    n_test = json.loads(result.attrs["n_test"])[USED]
    low, high = wilson_interval(wrong, right.sum(), 1 - 0.05 / n_test)
    rows = (result["of_thought"].values == "ct3") & (result["method"].values == "mean")
    assert result["value"].values[rows] == pytest.approx((wrong - back) / right.sum())
    assert result["low"].values[rows][0] <= low
    assert result["high"].values[rows][0] == pytest.approx(high)
    counted = result["counts"].values & (result["of_question"].values == USED)
    assert counted.sum() == n_test
    assert "zero" not in result["method"].values[counted]


def test_what_is_no_verdict_is_said_in_one_line(lake):
    with pytest.raises(UsageError, match="its own control"):
        verdict(lake, "small-gpt2/test", ["small-gpt2/test"])
    source = SimpleNamespace(lake=lake, run="small-gpt2/test")
    with pytest.raises(MissingRunError, match="small-gpt3"):
        COMMAND.run(source, VerdictSettings(control="small-gpt3/test"))
    with pytest.raises(UsageError, match="below 1"):
        VerdictSettings(margin=1.0)


def test_sentences_hold_for_all_none_some_and_one():
    rows = pd.DataFrame({"thought": ["ct0", "ct1", "all"], "used_verdict": [YES, YES, NO]})
    assert told(rows, USED) == "all"
    assert told(rows.assign(used_verdict=NO), USED) == "none"
    assert told(rows.assign(used_verdict=[YES, UNDECIDED, YES]), USED) == "ct0; undecided ct1"
    assert told(rows.iloc[:1].assign(used_verdict=UNMEASURED), USED) == "none measured"
    alike = rows.assign(used_verdict=YES, used_control=["not in the control", SEEN, OPEN])
    assert used_by(alike) == "all (ct1 not distinguishable from a control)"
    assert of_all(alike) == "yes, not distinguishable from a control"
    assert used_by(rows.assign(used_verdict=NO, used_control=SEEN)) == "none"
    evidence = pd.DataFrame(
        {
            "run": "r", "of_thought": ["ct0", "ct1", "ct0", "ct1", "ct1"],
            "method": ["lens", "lens", "mean", "zero", "mean"],
            "of_question": [READABLE, READABLE, USED, USED, USED], "says": [YES, NO, NO, YES, NO],
            "counts": [True, True, True, False, True],
        }
    )  # fmt: skip
    assert read_by(evidence, rows) == "by the lens: ct0"
    none = evidence.assign(says=NO)
    assert read_by(none, rows) == "by the lens: none"
    assert read_by(none.assign(says=[UNDECIDED, *none["says"][1:]]), rows) == "by the lens: none shown"
    assert misleading(evidence)[["of_thought", "method"]].values.tolist() == [["ct1", "zero"]]
    assert misleading(evidence.assign(says=YES)).empty
    assert read_by(evidence.iloc[2:], rows) == UNMEASURED
