"""Rules on generated text, against worked cases, numbers written in every way, and the stored labels of the reports."""

import itertools
import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from schemas import answers_match, classify_outcome, equal_answers, extract_answer, is_number_token, read_gold_answer


@pytest.mark.parametrize(
    ("text", "default", "reports"),
    [
        ("The answer is: 18", 18, 18),
        ("12 eggs, then #### 1,234", 1234, 1),
        ("The answer is: $1,234.50 for 3", 3, 1),
        ("total 5, then 7", 7, 5),
        ("10-2=8", 8, 8),
        ("10-2", 2, -2),
        ("a loss of -4", -4, -4),
        ("costs .5", 0.5, 5),
        ("no number at all", None, None),
    ],
)
def test_answer_of_a_text(text, default, reports):
    assert extract_answer(text) == default
    assert extract_answer(text, "reports") == reports


MINUS_SIGNS = "-\u2212\u2013\u2010\u2011\u2012\uff0d\ufe63\u207b\u2796"
SPACES = " \u00a0\u2009\u202f\u2007"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *((f"{sign}{way}", -5) for sign in MINUS_SIGNS for way in ("5", " 5", "$5", " $5", "$ 5", "US$5", "\u20ac5")),
        *((f"{money}{sign}5", -5) for sign in MINUS_SIGNS for money in ("$", "$ ", "\u00a3", "US$", "USD ")),
        *((text, -5) for text in ("minus 5", "negative $5", "-5 \u20ac", "(-5)", "**-5**", "\u200e-5", "-5%")),
        *((f"1{space}234{space}567.5", 1234567.5) for space in SPACES),
        *((text, 1234567) for text in ("1,234,567", "1'234'567", "1\u2019234\u2019567", "1_234_567", "12,34,567")),
        *(
            (text, 1500)
            for text in ("1.5e3", "1.5E+03", "1.5\u00d710^3", "1.5 x 10^3", "1.5*10**3", "1.5\u00b710\u00b3")
        ),
        *((text, 0.0015) for text in ("1.5e-3", "1.5e\u22123", "1.5 \u00d7 10^{-3}", "1.5\u00d710\u207b\u00b3")),
        ("1e6", 1000000),
        ("10^6", 1000000),
        *((text, 0.75) for text in ("3/4", "3 / 4", "\u00be", "3\u20444", r"\frac{3}{4}", ".75", "0.75", "75e-2")),
        *((text, 1.5) for text in ("1 1/2", "1\u00bd", "1 \u00bd", "1 and 1/2", r"1\frac{1}{2}", "3/2")),
        ("-1 1/2", -1.5),
        *((text, 0.5) for text in (r"\frac12", r"\dfrac{1}2", r"\frac1{2}", r"\text{$\frac12$}")),
        *((text, 10000) for text in (r"10,\!000", r"10\;000", r"10\ 000", r"\$10,\!000", r"\mathbf{10{,}000}")),
        *((text, 90) for text in (r"90^\circ", r"90^{\circ}", r"90\degree", r"\boxed{90}", r"\Rightarrow 90\text{ m}")),
        ("50%", 50),
        ("5 m\u00b2", 5),
        ("5 m2", 5),
        ("2.5 million", 2500000),
        ("\u0663", 3),
        ("\uff15", 5),
        ("9007199254740992", 2**53),
        ("18446744073709551616", 2**64),
    ],
)
def test_every_way_to_write_a_number(written, value):
    assert extract_answer(f"The answer is: {written}") == value
    for text in (written, f"#### {written}", f"3 + 4 = 7, then\n#### {written}.", f"The answer is {written}"):
        assert read_gold_answer(text) == value == extract_answer(text), text


@pytest.mark.parametrize(
    "written",
    ["1,5", "0,5", "3,14", "1.234,56", "1.234.567", "12,34", "0,123", "(5)", "($1,234.50)", "-(5)", "5-", "--5",
     "\u00b15", "-**5**", "5k", "$1.5M", "5\u4e07", "5:30", "1/2/2024", "3/0", "1-1/2", "2 and a half", "2^5", "2**5",
     "1e6kg", "5 tenths", "$5m", "5\u2030", "1.5 e6",
     "0x10", "1.2.3", "1e400", "-1e309", "1e-400", "1e999999999999", "9007199254740993",
     "12345678901234567890", "1e23", "9" * 500, "nan", "inf", "five", "",
     r"\sqrt{2}", r"\sqrt 2", r"2\pi", r"\frac{\pi}{2}", r"\frac{x}{2}", r"\log_2 8", r"\pm 5", r"2\sqrt{3}",
     r"\sqrt[3]{8}", r"\binom{4}{2}", "(3+4)/2", "x/2",
     "\u221a5", "-\u221b(8)", "2\u221a3", "2\u03c0", "log 5", "|-5|", "&#53;", "0.3\u0305"],
)  # fmt: skip
def test_what_could_be_two_numbers_or_fits_no_float_is_none(written):
    assert extract_answer(f"The answer is: {written}") is None
    with pytest.raises(ValueError, match=r"^which "):
        read_gold_answer(f"#### {written}")


@pytest.mark.parametrize(
    "text", ["#### 3-5", "3 to 5", "x-5", "debt - 5", "A5", "#### 5 #### 6", "#### 18 (9 each)", "12 34", "- 3\n- 4",
             "2x", "3 : 2", "5!", "120 = 5!", "5i", "half of 10", "twice 5", "5+", "$5+",
             "at least 5", "no more than 5", "5 or more", "over 5", "5 at most", "about 5", "~$5", r"\approx 5",
             "5 or so", "5ish", "5 apples (approx)", "5 -", "5 below zero", "not 5", "\u00bd5", "x = 5, y = 3",
             "x=5 or x=3", "0.333..."]
)  # fmt: skip
def test_a_gold_answer_is_one_number(text):
    with pytest.raises(ValueError, match=r"^which "):
        read_gold_answer(text)


@pytest.mark.parametrize(
    "text", ["10 - 2", "5\u20132", "x-2", "covid-2", "the profit - 2", "item minus 2", "$5-$2", "- 2\n- 2"]
)
def test_a_hyphen_that_joins_is_no_sign(text):
    assert extract_answer(text) == 2


def test_random_numbers_in_random_spelling_are_read_exactly():
    rng = np.random.default_rng(0)
    styles = list(
        itertools.product(["", "-", "\u2212", "-$", "$-", "- $"], [",", " ", "'", "_", "\u00a0", ""], ["", ".", "e"])
    )
    for number in rng.integers(0, 10**9, 500).tolist():
        sign, mark, tail = styles[rng.integers(len(styles))]
        value, text = Fraction(number), f"{number:,}".replace(",", mark)
        if tail == ".":
            digits = str(rng.integers(1, 1000))
            value, text = value + Fraction(int(digits), 10 ** len(digits)), f"{text}.{digits}"
        elif tail == "e":
            power = int(rng.integers(-9, 7))
            value, text = value * Fraction(10) ** power, f"{text}e{power}"
        value = -value if sign not in ("", "$") else value
        assert extract_answer(f"#### {sign}{text}") == float(value) == read_gold_answer(f"{sign}{text}"), (sign, text)


@pytest.mark.parametrize(
    "answer", [float("nan"), float("inf"), 2**53 + 1, 10**400, Decimal("1e400"), Decimal("1e-999999999")]
)
def test_a_gold_number_that_no_float_is_is_refused(answer):
    with pytest.raises(ValueError, match="which"):
        read_gold_answer(answer)


def test_small_answers_match_in_proportion():
    for one, other, same in [
        (0.001, 0.009, False), (0.001, 0.001001, True), (0, 0.001, False), (0, 0, True), (-0.005, 0.005, False),
        (18, 18.005, True), (18, 18.02, False), (1 / 3, 0.33, True), (1e-7, 2e-7, False), (1e15, 1e15 + 1, False),
    ]:  # fmt: skip
        assert answers_match(one, other) == answers_match(other, one) == same, (one, other)
    assert answers_match(0.001, 0.009, "reports")
    assert not answers_match(None, 1.0)
    predicted = np.array([[1.0, np.nan, 3.0], [np.inf, 2.0, 3.001]])
    assert equal_answers(predicted, np.array([1.0, 2.0, 3.0])).tolist() == [[True, False, True], [False, True, True]]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("The answer is: 8", "clean_answer"),
        ("The answer is: 10", "corrupted_answer"),
        ("The answer is: 9", "other"),
        ("many words and no number", "other"),
        ("is is", "gibberish"),
        ("5:30", "other"),
        ("..............", "gibberish"),
    ],
)
def test_outcome_of_a_patched_text(text, outcome):
    assert classify_outcome(text, clean=8, corrupted=10) == outcome


def test_outcomes_agree_with_the_stored_labels(shared_data):
    n_text = 0
    for path in sorted((shared_data / "patching_llama").glob("*.json")):
        for row in json.loads(path.read_text())["valid_results"]:
            answers = {side: row[side]["expected"] for side in ("clean", "corrupted")}
            for patched in row["patched"].values():
                wanted = patched["classification"].replace("other_coherent", "other")
                assert classify_outcome(patched["generated"], **answers, rule="reports") == wanted, patched
                n_text += 1
    assert n_text == 483


def test_bytes_of_a_token_are_no_digits():
    assert [is_number_token(text) for text in (" <0xE2><0x80>", "<0xA1>", "<0xC2>5", "x2", "0xE2")] == [0, 0, 1, 1, 1]
    added = ("<|reserved_special_token_17|>", " <extra_id_0>", "[unused12]", "<|1|>")
    assert [is_number_token(text) for text in (*added, "[1]", "<2", "|>3", "a[0]")] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_number_rule_agrees_with_the_stored_cells(shared_data):
    data = json.loads((shared_data / "number_decoding" / "llama.json").read_text())
    cells = [cell for sample in data["samples"] for cell in sample["decoded_positions"]]
    assert len(cells) == 2544
    assert all(is_number_token(cell["token_text"]) == cell["is_number"] for cell in cells)
    for statistics in data["position_statistics"]:
        here = [cell["is_number"] for cell in cells if cell["position"] == statistics["position"]]
        assert round(100 * sum(here) / len(here), 1) == statistics["pct_number"]
