"""Rules on generated text, against worked cases and the stored labels of the reports."""

import json

import pytest

from schemas import classify_outcome, extract_answer, is_number_token


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


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("The answer is: 8", "clean_answer"),
        ("The answer is: 10", "corrupted_answer"),
        ("The answer is: 9", "other"),
        ("many words and no number", "other"),
        ("is is", "gibberish"),
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


def test_number_rule_agrees_with_the_stored_cells(shared_data):
    data = json.loads((shared_data / "number_decoding" / "llama.json").read_text())
    cells = [cell for sample in data["samples"] for cell in sample["decoded_positions"]]
    assert len(cells) == 2544
    assert all(is_number_token(cell["token_text"]) == cell["is_number"] for cell in cells)
    for statistics in data["position_statistics"]:
        here = [cell["is_number"] for cell in cells if cell["position"] == statistics["position"]]
        assert round(100 * sum(here) / len(here), 1) == statistics["pct_number"]
