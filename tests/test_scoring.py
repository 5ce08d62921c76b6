"""Answers of every kind: the official rules' own verdicts, the default rules, and the forms of gold answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from schemas import KINDS, Scoring, UsageError, classify_outcome, extract_answer, read_gold

CASES = [
    json.loads(line) for line in (Path(__file__).parent / "data/text_answers/scoring_60.jsonl").read_text().splitlines()
]
"""60 texts and what the published code itself says of each; ``null`` where it stops with an error."""
KIND_OF_DATA = {"prosqa": "text", "prontoqa": "boolean", "gsm8k": "number"}


@pytest.mark.parametrize("rule", ["coconut", "lrms", "codi"])
def test_published_rules_give_the_verdicts_of_their_code(rule):
    for case in CASES:
        kind = KIND_OF_DATA[case["data"]] if rule == "codi" else "text"  # the others compare texts, whatever they say
        scoring = Scoring(kind, rule)
        gold = scoring.gold(case["gold"].replace(",", "") if kind == "number" else case["gold"])
        assert scoring.match(scoring.answer(case["generated_text"]), gold) == bool(case[rule]), case


def test_default_rule_of_a_text_is_coconuts_where_there_is_a_mark_and_lrms_where_there_is_none():
    checked = 0
    for case in (case for case in CASES if case["data"] == "prosqa"):
        scoring = Scoring("text")
        right = scoring.match(scoring.answer(case["generated_text"]), case["gold"])
        assert right == case["coconut" if "#" in case["generated_text"] else "lrms"], case
        checked += 1
    assert checked == 22


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("text", "so it is\n### Bob is a sterpus. ", "Bob is a sterpus."),
        ("text", "Bob is a sterpus.", None),
        ("text", "### ", None),
        ("choice", "The answer is: B", "B"),
        ("choice", "(C) enforce", "C"),
        ("choice", "### D.", "D"),
        ("choice", "The answer is: Because", None),
        ("choice", "The answer is: F", None),
        ("choice", "A's", None),
        ("boolean", "The answer is: False.", "False"),
        ("boolean", "### TRUE", "True"),
        ("boolean", "Yes, they are", "yes"),
        ("boolean", "nothing", None),
        ("boolean", "truely", None),
    ],
)
def test_default_rules_of_other_kinds(kind, text, answer):
    assert extract_answer(text, kind=kind) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\frac12", r"\dfrac{1}{2}", True), ("1/2", r"\frac{1}{2}", True), (".5", "0.5", True), ("0.5", "1/2", True),
        (r"\frac1{72}", r"\frac{1}{72}", True), (r"2\sqrt3", r"2\sqrt{3}", True), ("k = 7", "7", True),
        (r"\left(1, 2\right)", "(1,2)", True), (r"90^\circ", "90", True), (r"50\%", "50", True),
        (r"5\text{ cm}", "5", True), (r"1\!000", "1000", True), ("x + 1", "x+1", True), ("a/b", r"\frac{a}{b}", False),
        ("(1,2)", "(12)", False), ("1,000", "1000", False), (r"\frac{1}{2}", r"\frac{2}{1}", False),
        (r"\text{odd}", "odd", False), ("x", "X", False),
    ],
)  # fmt: skip
def test_notation_is_compared_as_is_equiv_of_math_compares_it(one, other, same):
    scoring = Scoring("text")
    assert scoring.match(scoring.answer(f"The answer is: {one}"), other) == same
    assert scoring.match(other, one) == same


def test_the_models_own_prefix_is_a_mark_and_without_one_the_whole_text_is_the_answer():
    assert Scoring("text", prefix="Final:").answer("steps. Final: red") == "red"
    assert Scoring("text", prefix="###").answer("red") is None
    assert Scoring("text", prefix="").answer(" red ") == "red"


def test_equal_answers_of_a_column():
    boolean = Scoring("boolean")
    predicted = np.array([["yes", "", "False"], ["true", "no", "no"]], dtype=object)
    gold = np.array(["True", "False", "yes"], dtype=object)
    assert boolean.equal(predicted, gold).tolist() == [[True, False, False], [True, True, False]]
    assert boolean.column(["yes", None]).tolist() == ["yes", ""]
    assert np.isnan(Scoring().column([1.0, None])[1])


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("### Bob is a sterpus.", "clean_answer"),
        ("### Bob is a hilpus.", "corrupted_answer"),
        ("### Bob is a lorpus.", "other"),
        ("Bob is a sterpus, I think", "other"),
        ("### ..", "gibberish"),
        ("is is", "gibberish"),
    ],
)
def test_outcome_of_a_patched_text_answer(text, outcome):
    assert classify_outcome(text, clean="Bob is a sterpus.", corrupted="Bob is a hilpus.", kind="text") == outcome


@pytest.mark.parametrize(
    ("kind", "answer", "stored"),
    [
        ("number", "so 3 * 6 = 18\n#### 18", "18"),
        ("text", "because #### red ", "red"),
        ("text", 7, "7"),
        ("choice", "(b)", "B"),
        ("boolean", True, "True"),
        ("boolean", "No.", "No"),
    ],
)
def test_gold_answers_as_they_are_stored(kind, answer, stored):
    assert read_gold(answer, kind) == stored


@pytest.mark.parametrize(
    ("kind", "answer"),
    [("number", True), ("text", "#### "), ("text", "room #5"), ("choice", "F"), ("boolean", "maybe")],
)
def test_a_gold_answer_of_another_kind_is_refused(kind, answer):
    with pytest.raises(ValueError, match=r"^which "):
        read_gold(answer, kind)


def test_a_rule_reads_the_kinds_it_was_made_for():
    with pytest.raises(UsageError, match="does not read answers of the kind text"):
        Scoring("text", "reports")
    with pytest.raises(UsageError, match="did you mean 'boolean'"):
        Scoring("bolean")  # type: ignore[arg-type]
    assert all(Scoring(kind).kind == kind for kind in KINDS)
