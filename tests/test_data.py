"""Question files: what is read, and what is refused."""

import json

import numpy as np
import pytest

from extract.data import parse_chain, read_problems
from schemas import UsageError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_chain_of_a_gsm8k_answer():
    text = "16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n9 * 2 = $<<9*2=18>>18.\n<<3+4*2=11>> #### 18"
    assert parse_chain(text) == [("16-3-4", "-", 9.0), ("9*2", "*", 18.0), ("3+4*2", "mixed", 11.0)]


def test_lines_become_problems_and_columns(tmp_path):
    rows = [
        {"question": "One?", "answer": "<<1+1=2>> #### 2", "level": 3, "ok": True, "note": "x"},
        {"question": "Two?", "answer": 1234.5, "level": 4, "ok": False, "note": "y"},
        {"question": "One?", "answer": "#### 1,000", "level": 5, "ok": False, "note": "z"},
    ]
    problems = read_problems("tiny=" + write(tmp_path / "a.jsonl", rows))
    assert problems.name == "tiny"
    assert problems.gold_answer == ["2", "1234.5", "1000"]
    columns = {name: values for name, (_, values) in problems.columns.items()}
    assert columns["problem"].tolist() == [0, 1, 0]  # equal questions are one problem
    assert columns["level"].tolist() == [3, 4, 5]
    assert columns["note"] == ["x", "y", "z"]
    np.testing.assert_array_equal(columns["intermediate_result"][:, 0], [2, np.nan, np.nan])


@pytest.mark.parametrize("flat", [False, True])
def test_pairs_become_twins_of_one_problem(tmp_path, flat):
    pairs = [({"question": f"c{i}?", "answer": i}, {"question": f"d{i}?", "answer": str(i + 1)}) for i in range(3)]
    if flat:
        rows = [
            {"pair_id": 7 + i, "variant": variant, **side}
            for i, pair in enumerate(pairs)
            for variant, side in zip(("clean", "corrupted"), pair, strict=True)
        ]
    else:
        rows = [
            {"pair_id": 7 + i, "clean": clean, "corrupted": corrupted} for i, (clean, corrupted) in enumerate(pairs)
        ]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows))
    columns = {name: values for name, (_, values) in read_problems(str(path)).columns.items()}
    assert columns["pair"].tolist() == [0, 0, 1, 1, 2, 2]
    assert columns["problem"].tolist() == [0, 0, 1, 1, 2, 2]
    assert list(columns["variant"]) == ["clean", "corrupted"] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[]", "empty list"),
        ('{"question": "a?", "answer": "#### 1"}\n{oops', "line 2 is not JSON"),
        ("[1, 2]", "JSON int"),
        ('{"answer": "#### 1"}', "line 1 has no question"),
        ('{"question": "  ", "answer": "#### 1"}', "empty question"),
        ('{"question": "a?"}', "no answer"),
        ('{"question": "a?", "answer": "none"}', "is no number"),
        ('[{"clean": {"question": "a?", "answer": 1}}]', "corrupted side"),
    ],
)
def test_bad_data_is_named_by_its_place(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_problems(str(path))


def test_same_content_has_the_same_fingerprint_whatever_the_file(tmp_path):
    row = {"question": "a?", "answer": "#### 1"}
    assert (
        read_problems("n=" + write(tmp_path / "a.jsonl", [row])).fingerprint
        == read_problems("n=" + write(tmp_path / "b.jsonl", [{**row}])).fingerprint
    )
    assert (
        read_problems("n=" + write(tmp_path / "c.jsonl", [row, row])).fingerprint
        != read_problems("n=" + str(tmp_path / "a.jsonl")).fingerprint
    )
