"""Question files: what is read, and what is refused."""

import json
import tracemalloc

import numpy as np
import pytest

from extract.run.data import number_text, parse_chain, read_problems
from schemas import RUN_VARIABLES, SchemaError, UsageError
from store import RunLayout, create_run, open_lake


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_chain_of_a_gsm8k_answer():
    text = "16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n9 * 2 = $<<9*2=18>>18.\n<<3+4*2=11>> #### 18"
    assert parse_chain(text) == [("16-3-4", "-", 9.0), ("9*2", "*", 18.0), ("3+4*2", "mixed", 11.0)]


def test_chain_without_marks_is_its_equations():
    text = (
        "He has 3 \u00d7 4 = 12 pens. 5 apples + 3 - 1 = 2 pears, so $2.50 * 4 = $10; 12 + 8 = 20 \u00f7 4 = 5, x = 5."
    )
    wanted = [("3 * 4", "*", 12.0), ("$2.50 * 4", "*", 10.0), ("12 + 8", "+", 20.0), ("20 / 4", "/", 5.0)]
    assert parse_chain(text) == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"cot": "<<3+4=7>> <<7*2=14>>"},
        {"steps": ["<<3+4=7>>", "<<7*2=14>>"]},
        {"steps": ["3+4=7", "so 7*2=14 pens"], "cot": "no equation"},
        {"full_answer": "3 + 4 = 7, 7 * 2 = 14"},
        {"answer": "<<3+4=7>>7 <<7*2=14>>14 #### 14"},
    ],
)
def test_chain_in_a_field_of_its_own(tmp_path, fields):
    problems = read_problems(write(tmp_path / "a.jsonl", [{"question": "a?", "answer": 14, **fields}]))
    assert problems.columns["intermediate_result"][1].tolist() == [[7, 14]]
    assert problems.columns["operation"][1].tolist() == [["+", "*"]]
    assert problems.notes == ()


def test_no_chain_is_said(tmp_path):
    problems = read_problems(write(tmp_path / "a.jsonl", [{"question": "a?", "answer": 14, "steps": 2}]))
    assert ["no chain of steps can be read" in note for note in problems.notes] == [True]


def test_gold_answers_are_plain_decimals():
    assert [number_text(value) for value in (18.0, -0.0, 2.5, 2.0107e-06, 1e22, -1e-7)] == [
        "18", "0", "2.5", "0.0000020107", "1" + "0" * 22, "-0.0000001",
    ]  # fmt: skip


def test_lines_end_in_newlines_only(tmp_path):
    path = tmp_path / "a.jsonl"
    question = "3 apples.\u2028And\u2029two\x85more?"
    line = json.dumps({"question": question, "answer": 5}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{line}\r\n\r\n\ufeff{line.replace(', ', ',' + chr(13))}\n".encode())
    assert read_problems(str(path)).question == [question, question]
    path.write_text(f"\ufeff[{line}]", encoding="utf-8")
    assert read_problems(str(path)).question == [question]


LAYOUT = RunLayout(
    n_example=2,
    n_layer=1,
    n_head=1,
    hidden=4,
    n_latent=6,
    longest_question=3,
    n_answer=2,
    capture="latent",
    dtype="float16",
)


def test_columns_take_no_name_of_the_run(tmp_path):
    """Whatever the run's folder holds: no column of the data is written there, and none is lost."""
    rows = [{"question": "a?", "answer": 1}, {"question": "b?", "answer": 2}]
    create_run(tmp_path / "a.lake", "m/d", LAYOUT, identity={"spec": {}}, columns=read_problems(
        "d=" + write(tmp_path / "a.jsonl", rows)).columns)  # fmt: skip
    own = {path.name for path in (tmp_path / "a.lake" / "m" / "d").iterdir()} | {*RUN_VARIABLES, "hidden", "claim"}
    assert {"record", "zarr.json", "layer", "segment", "problem"} <= own
    names = [
        *sorted(own - {"variant", "question"}),
        "Record",
        "LAYER",
        "data_layer",
        "a/b",
        "a.b",
        "",
        "..",
        "__x",
        "1a",
        "x" * 300,
        "\0",
    ]
    rows = [row | {name: number for number, name in enumerate(names)} for row in rows]
    problems = read_problems("d=" + write(tmp_path / "b.jsonl", rows))
    columns = {name: values for name, (_, values) in problems.columns.items()}
    extra = columns.keys() - read_problems("d=" + str(tmp_path / "a.jsonl")).columns.keys()
    assert len({name.casefold() for name in extra}) == len(names)
    assert extra.isdisjoint(own)
    assert sorted(columns[name][0] for name in extra) == list(range(len(names)))
    assert "'layer' as data_" in problems.notes[0]
    create_run(tmp_path / "b.lake", "m/d", LAYOUT, identity={"spec": {}}, columns=problems.columns)
    assert (
        open_lake(tmp_path / "b.lake").open("m/d", uncommitted=True)["zarr_json"].values.tolist()
        == [names.index("zarr.json")] * 2
    )
    for name in ("record", "layer"):
        with pytest.raises(SchemaError, match=name):
            create_run(tmp_path / "c.lake", "m/d", LAYOUT, identity={"spec": {}},
                       columns={**problems.columns, name: (("example",), [1, 2])})  # fmt: skip
    assert not (tmp_path / "c.lake").exists()


def test_values_of_columns_are_kept_exactly_or_named(tmp_path):
    rows = [
        {"question": f"{i}?", "answer": 1, "unsigned": 2**64 - 1 - i, "large": 2**70 + i, "both": [-1, 2**63][i],
         "rounded": [0.5, 2**53 + 1][i], "nan": [0.5, float("nan")][i],
         "nul": "x\0", "null": [1, None][i], "mixed": [1, "a"][i], "nested": {"a": 1}, "flag": bool(i), "some": 1}
        for i in range(2)
    ]  # fmt: skip
    del rows[1]["some"]
    problems = read_problems("d=" + write(tmp_path / "a.jsonl", rows))
    columns = {name: values for name, (_, values) in problems.columns.items()}
    assert columns["unsigned"].tolist() == [2**64 - 1, 2**64 - 2]
    assert columns["large"] == [str(2**70), str(2**70 + 1)]
    assert columns["both"] == ["-1", str(2**63)]
    assert columns["rounded"] == ["0.5", str(2**53 + 1)]
    assert columns["flag"].dtype == bool
    notes = " ".join(problems.notes)
    assert "mixed, nested, null, some" in notes
    assert "both, large, rounded" in notes
    create_run(tmp_path / "a.lake", "m/d", LAYOUT, identity={"spec": {}}, columns=problems.columns)
    run = open_lake(tmp_path / "a.lake").open("m/d", uncommitted=True)
    assert run["unsigned"].values.tolist() == [2**64 - 1, 2**64 - 2]
    np.testing.assert_array_equal(run["nan"].values, [0.5, np.nan])
    assert run["nul"].values.tolist() == ["x\0", "x\0"]


def test_one_long_text_costs_its_own_length(tmp_path):
    long = "x" * 100_000
    rows = [{"question": f"{i}?", "answer": 1, "note": long if i == 7 else "short"} for i in range(2000)]
    path = write(tmp_path / "a.jsonl", rows)
    layout = RunLayout(n_example=2000, n_layer=1, n_head=1, hidden=4, n_latent=6, longest_question=3, n_answer=2,
                       capture="latent", dtype="float16")  # fmt: skip
    tracemalloc.start()
    try:
        create_run(
            tmp_path / "a.lake", "m/d", layout, identity={"spec": {}}, columns=read_problems("d=" + path).columns
        )
        run = open_lake(tmp_path / "a.lake").open("m/d", uncommitted=True)
        assert run["note"].values[7] == long
        assert tracemalloc.get_traced_memory()[1] < 30e6  # 2,000 times as long in four bytes a character are 800 MB
    finally:
        tracemalloc.stop()


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


def test_a_problem_is_all_that_shares_words_or_a_pair(tmp_path):
    asked = ["Why?", "caf\u00e9?", "c?", "why? ", "cafe\u0301?", "d?", "C?", "e?"]
    rows = [{"question": text, "answer": 3} for text in asked]
    for row, pair in ((5, 1), (6, 1), (7, 2), (0, 2)):
        rows[row]["pair_id"] = pair
    rows[3]["answer"] = 4
    problems = read_problems(write(tmp_path / "a.jsonl", rows))
    # Why, why and e (its pair); both ways to write an accent; c, C and d (its pair).
    assert problems.columns["problem"][1].tolist() == [0, 1, 2, 0, 1, 2, 2, 0]
    told = " ".join(problems.notes)
    assert f"again with another answer: 1, as that of {tmp_path}/a.jsonl line 4 (4; 3 before)" in told


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
        ('{\n "n": 1,\n "found": []\n}', "is one JSON object, of n, found; it needs a list of problems"),
        ('{"train": [{"question": "a?"}], "test": [{"question": "b?"}]}', "holds several lists, train, test; write"),
        ('{"answer": "#### 1"}', "line 1 has no question"),
        ('{"question": " \\u200b", "answer": "#### 1"}', "empty question"),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", "is a number of 5,000 digits"),
        ('{"question": "a?"}', "no answer"),
        (
            '{"question": "a?", "answer": "#### 1"}\n{"question": "a?", "answer": "none"}',
            "line 2 .* is no number; .* --answer",
        ),
        ('[{"clean": {"question": "a?", "answer": 1}}]', "corrupted side"),
        ('{"question": "a?", "answer": 1}\n{"question": "a?", "answer": "#### 1,5"}', "line 2 .* more than one way"),
        ('{"question": "a?", "answer": "from 3 to 5"}', "line 1 .* several numbers"),
        ('{"question": "a?", "answer": 9007199254740993}', "line 1 .* float64 does not hold"),
        ('{"question": "a?", "answer": 1e400}', "line 1 .* float64 does not hold"),
        ('{"question": "a?", "answer": 1e9999999999999999999}', "line 1 is not JSON"),
        ('{"question": "a?", "answer": NaN}', "line 1 .* no number"),
        ('{"question": "a?", "answer": 1, "id": %s}' % ("1" * 5000), "line 1 is not JSON"),
        ('{"question": "a?", "answer": 1, "answer": 2}', "line 1 .* twice"),
        ('{"question": "a\\ud83d?", "answer": 1}', "line 1 has half a character"),
        ('{"question": "a?", "answer": 1, "x": {"\\udc00": 1}}', "line 1 has half a character"),
        ('{"question": "a?", "answer": 1, "x": %s}' % ("[" * 10**5), "line 1 is nested too deeply"),
    ],
)
def test_bad_data_is_named_by_its_place(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_problems(str(path))


def test_fractions_in_one_character_are_numbers_and_no_problem_is_no_data(tmp_path):
    path = tmp_path / "half.jsonl"
    path.write_text('{"question": "a?", "answer": "\u00bd"}\n{"question": "b?", "answer": "3\u00be"}')
    problems = read_problems(str(path))
    assert (problems.answer_kind, problems.gold_answer) == ("number", ["0.5", "3.75"])
    with pytest.raises(UsageError, match="limit is 0; it must be a whole number of at least 1"):
        read_problems(str(path), limit=0)


@pytest.mark.parametrize("name", ["unembedding", "token_string", "zarr.json", "claim"])
def test_a_data_set_is_not_called_like_an_array_of_the_model(tmp_path, name):
    path = write(tmp_path / "a.jsonl", [{"question": "a?", "answer": 1}])
    with pytest.raises(UsageError, match="NAME=FILE"):
        read_problems(f"{name}={path}")
    with pytest.raises(UsageError, match="data file a=c.jsonl cannot be read"):
        read_problems("a=a=c.jsonl")


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


def test_published_answers_read_as_a_plain_reader_reads_them(tmp_path, shared_data):
    """GSM8K, GSM-Hard, MAWPS and SVAMP: every answer is one of few plain forms there, so ``float`` will do."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().split("\n")
    found = {row["question"]: row["answer"] for row in map(json.loads, filter(None, lines))}
    wanted = {question: float(answer.split("#### ")[1].replace(",", "")) for question, answer in found.items()}
    words = shared_data / "word_problems"
    for path in [words / "gsm_hard" / "gsmhardv2.jsonl", *(words / "mawps").glob("*.jsonl")]:
        for row in map(json.loads, path.read_text().splitlines()):
            found[f"{path.stem}: {row['input']}"] = str(row["target"])
            wanted[f"{path.stem}: {row['input']}"] = row["target"]
    for row in json.loads((words / "svamp" / "SVAMP.json").read_text()):
        found[row["ID"]], wanted[row["ID"]] = row["Answer"], row["Answer"]
    assert len(found) > 5000
    rows = [{"question": question, "answer": answer} for question, answer in found.items()]
    problems = read_problems(write(tmp_path / "all.jsonl", rows))
    assert dict(zip(problems.question, map(float, problems.gold_answer), strict=True)) == wanted


def test_what_is_no_pair_id_joins_nothing_and_halves_alone_are_told(tmp_path):
    ids = [None, None, "", "", 7, 7.0, 8, 8, 9]
    variants = ["clean", "corrupted"] * 3 + ["clean", "clean", "corrupted"]
    rows = [{"question": f"q{i}?", "answer": i, "pair_id": key, "variant": variant}
            for i, (key, variant) in enumerate(zip(ids, variants, strict=True))]  # fmt: skip
    problems = read_problems(write(tmp_path / "a.jsonl", rows))
    assert problems.columns["problem"][1].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6]
    assert problems.columns["pair"][1].tolist() == [-1, -1, -1, -1, 0, 0, 1, 2, 3]
    assert f"other half is not there: 3, as that of {tmp_path}/a.jsonl line 7" in " ".join(problems.notes)
    assert "become no pair" not in " ".join(problems.notes)
    rows[4]["variant"] = "Clean"
    problems = read_problems(write(tmp_path / "a.jsonl", rows))
    assert "neither clean nor corrupted: 1, as 'Clean' of" in " ".join(problems.notes)


def test_one_problem_with_parts_is_that_problem(tmp_path):
    parts = [{"question": f"part {i}?", "answer": i} for i in range(3)]
    problems = read_problems(write(tmp_path / "a.jsonl", [{"problem": "Why?", "answer": 7, "parts": parts}]))
    assert (problems.question, problems.gold_answer) == (["Why?"], ["7"])
