"""Data sets in the forms they come in: fields, kinds of answers, chains from formulas and in words, graphs."""

import json

import duckdb
import numpy as np
import pytest

from extract.run.chains import formula_steps
from extract.run.data import read_problems
from schemas import UsageError


def written(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


CHOICES = {"label": list("ABCDE"), "text": ["bank", "library", "mall", "market", "town"]}
ASKED = "Where is a door that turns?\nChoices:\nA: bank\nB: library\nC: mall\nD: market\nE: town"
FORMS = {
    "svamp": ({"Body": "A pack costs 76 dollars.", "Question": "What are 2?", "Equation": "( 76.0 * 2.0 )",
               "Answer": 152.0, "Type": "Multiplication"},
              "A pack costs 76 dollars. What are 2?", "152", "number", [("76*2", "*", 152.0)]),
    "svamp of the hub": ({"question_concat": "One? Two?", "Answer": "3.0", "Equation": "( 1.0 + 2.0 )"},
                         "One? Two?", "3", "number", [("1+2", "+", 3.0)]),
    "mawps": ({"Question": "number1 of number0 g ?", "Numbers": "28.3 5.0", "Equation": "* number0 number1",
               "Answer": 141.5}, "5 of 28.3 g ?", "141.5", "number", [("28.3*5", "*", 141.5)]),
    "multiarith as published": ({"sQuestion": "How many?", "lSolutions": [39.0],
                                 "lEquations": ["X=((32.0+42.0)-35.0)"]},
                                "How many?", "39", "number", [("32+42", "+", 74.0), ("74-35", "-", 39.0)]),
    "multiarith of the hub": ({"question": "How many?", "final_ans": "39"}, "How many?", "39", "number", []),
    "gsm-hard": ({"input": "How many?", "code": "...", "target": -9867630.0}, "How many?", "-9867630", "number", []),
    "strategyqa": ({"qid": "1", "question": "Can fish sing?", "answer": False, "facts": ["Fish are mute."]},
                   "Can fish sing?", "False", "boolean", []),
    "commonsenseqa of the hub": ({"question": "Where is a door that turns?", "choices": CHOICES, "answerKey": "A"},
                                 ASKED, "A", "choice", []),
    "commonsenseqa": ({"answerKey": "A", "question": {
        "stem": "Where is a door that turns?",
        "choices": [{"label": a, "text": b} for a, b in zip(*CHOICES.values(), strict=True)]}},
        ASKED, "A", "choice", []),
    **{f"mmlu, answered by {answer!r}": (
        {"question": "Where is a door that turns?", where: CHOICES["text"], "answer": answer}, ASKED, "B", "choice", [])
        for where, answer in [("choices", 1), ("options", "B"), ("choices", "library")]},
    "math": ({"problem": "Half?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 1"},
             "Half?", "0.5", "number", []),
    "math, a text": ({"problem": "Which?", "solution": r"So \boxed{\text{odd}}."}, "Which?", r"\text{odd}", "text", []),
    "prontoqa, as generated": ({"question": "All cats are red. Tom is a cat.", "query": "True or false: Tom is red.",
                                "chain_of_thought": ["Tom is a cat.", "Tom is red."], "answer": "True"},
                               "All cats are red. Tom is a cat. True or false: Tom is red.", "True", "boolean", []),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_published_data_sets(tmp_path, name):
    row, question, answer, kind, steps = FORMS[name]
    problems = read_problems(written(tmp_path / "d.json", [row, row]))
    assert (problems.question[0], problems.gold_answer, problems.answer_kind) == (question, [answer] * 2, kind)
    found = zip(
        *(problems.columns[key][1][0] for key in ("expression", "operation", "intermediate_result")), strict=True
    )
    assert [step for step in found if step[0]] == steps


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"choices": {"label": ["A", "B"], "text": ["x"]}, "answerKey": "A"}, "not as many letters as texts"),
        ({"choices": {"label": ["A", "B"], "text": ["x", None]}, "answerKey": "A"}, "not as many letters as texts"),
        ({"choices": {"label": ["A", "A"], "text": ["x", "y"]}, "answerKey": "A"}, "called A, A; each needs a letter"),
        ({"choices": [{"text": "x"}, {"text": "y"}], "answerKey": "A"}, "not as many letters as texts"),
        ({"options": list("uvwxyz"), "answer": "F"}, "more than A to E"),
        ({"choices": ["x", "y"], "answerKey": "C"}, "'C', which is none of its choices A, B"),
        ({"choices": ["B", "A"], "answer": "A"}, "'A', which is none of its choices A, B, or two"),
        ({"Question": "number0 and number2?", "Numbers": "3 4", "Answer": 7}, "'3 4' without number2"),
    ],
)
def test_questions_that_would_be_asked_without_a_part_are_refused(tmp_path, row, told):
    with pytest.raises(UsageError, match=f"d.json entry 1 has .*{told}"):
        read_problems(written(tmp_path / "d.json", [{"question": "Where?", **row}]))


def test_what_a_question_may_need_and_does_not_ask_is_told(tmp_path):
    problems = read_problems(written(tmp_path / "d.json", [{"question": "Is it?", "passage": "..", "answer": True}]))
    assert "fields that are not asked, though a question may need them: passage" in problems.notes
    row = {
        "Question": "He has number0 books . How many ?",
        "Numbers": "3",
        "Answer": 3,
        "Body": "He has number0 books ,",
    }
    assert not [note for note in read_problems(written(tmp_path / "m.json", [row])).notes if "Body" in note]


def test_the_same_rows_from_every_kind_of_file(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    rows = [{"question": 'A "b", c?', "answer": "12", "level": 3, "share": 0.5}, {"question": "D\ne?", "answer": "7",
            "level": 4, "share": 1.5}]  # fmt: skip
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.json").write_text(json.dumps({"version": 1, "data": rows}, indent=1))
    (tmp_path / "d.csv").write_text('question,answer,level,share\r\n"A ""b"", c?",12,3,0.5\r\n"D\ne?",7,4,1.5\r\n')
    (tmp_path / "d.tsv").write_text('question\tanswer\tlevel\tshare\n"A ""b"", c?"\t12\t3\t0.5\n"D\ne?"\t7\t4\t1.5\n')
    duckdb.sql(f"copy (select * from read_json('{tmp_path}/d.jsonl')) to '{tmp_path}/d.parquet'")
    read = {path.suffix: read_problems(f"d={path}") for path in tmp_path.iterdir()}
    assert len(read) == 5
    assert {problems.fingerprint for problems in read.values()} == {read[".json"].fingerprint}
    assert read[".csv"].columns["level"][1].tolist() == [3, 4]
    duckdb.sql(f"copy (select 'a?' question, 0.1::float answer, 0.1::float x) to '{tmp_path}/f.parquet'")
    short = read_problems(f"d={tmp_path}/f.parquet")
    assert (short.gold_answer, short.columns["x"][1].tolist()) == (["0.1"], [0.1])


def test_lines_of_gsm8k_aug(tmp_path):
    path = tmp_path / "test.txt"
    path.write_text("How many?||<<16-3-4=9>> <<9*2=18>> #### 18\nA robe?||<<2/2=1>> #### 1,000\n")
    problems = read_problems(str(path))
    assert (problems.question, problems.gold_answer) == (["How many?", "A robe?"], ["18", "1000"])
    assert problems.columns["intermediate_result"][1][0].tolist() == [9, 18]
    path.write_text("How many?||<<16-3-4=9>> #### 18\nA robe?")
    with pytest.raises(UsageError, match=r"line 2 has no \|\|"):
        read_problems(str(path))


GRAPH = {
    "question": "Tom is a a. Is Tom a d or f?", "answer": "Tom is a d.",
    "steps": ["Tom is a a.", "Every a is a c.", "Every c is a d."],
    "idx_to_symbol": ["Tom", "Eve", "a", "b", "c", "d", "e", "f"],
    "edges": [[0, 2], [0, 3], [2, 4], [3, 6], [4, 5], [1, 7], [3, 4]], "root": 0, "target": 5, "neg_target": 7,
}  # fmt: skip


def test_prosqa_comes_with_its_graph(tmp_path):
    problems = read_problems(written(tmp_path / "d.json", [GRAPH, GRAPH]))
    columns = {name: values[0] for name, (_, values) in problems.columns.items()}
    assert problems.answer_kind == "text"
    assert columns["intermediate_text"].tolist() == ["a", "c", "d"]
    assert columns["step_text"].tolist() == GRAPH["steps"]
    assert (columns["root"], columns["target"], columns["neg_target"]) == ("Tom", "d", "f")
    assert columns["distractor"].tolist() == ["", "e", ""]  # b leads to the target, too, and f is not reached
    assert columns["edges"].split()[:2] == ["Tom>a", "Tom>b"]
    assert columns["other_answer"] == "Tom is a f."
    assert np.isnan(columns["intermediate_result"]).all()
    assert problems.notes == ()


def test_the_published_files_themselves(shared_data):
    folder = shared_data / "text_answers" / "full"
    for name, kind, n in [("prosqa_test", "text", 500), ("prontoqa_test", "boolean", 800)]:
        problems = read_problems(str(folder / f"{name}.json"))
        rows = json.loads((folder / f"{name}.json").read_text())
        assert (problems.answer_kind, len(problems)) == (kind, n)
        assert problems.gold_answer == [row["answer"] for row in rows]
        steps = problems.columns["step_text"][1]
        assert [[text for text in line if text] for line in steps] == [row["steps"] for row in rows]
        if kind == "text":
            last = [[text for text in line if text][-1] for line in problems.columns["intermediate_text"][1]]
            assert last == problems.columns["target"][1]
    words = shared_data / "word_problems"
    for path, n in [("svamp/SVAMP.json", 1000), ("mawps/mawps_fold0_train.csv", 1537)]:
        problems = read_problems(str(words / path))
        last = [line[np.isfinite(line)][-1:] for line in problems.columns["intermediate_result"][1]]
        ends = [(end[0], float(gold)) for end, gold in zip(last, problems.gold_answer, strict=True) if len(end)]
        worked = [abs(end - gold) < 0.01 * max(1, abs(end)) for end, gold in ends]
        assert len(problems) == n
        assert sum(worked) > 0.97 * n  # what a formula comes to is the answer


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"q": "a?", "a": 1}], {}, r"has no question and answer, but q, a; name them with --question-field"),
        ([{"q": "a?", "a": 1}], {"question_field": "q", "answer_field": "b"}, "no field 'b'"),
        ([{"question": "a?", "answer": 1}, {"question": "b?", "answer": "x"}], {}, "entry 2 .* no number; .* --answer"),
        ([{"question": "a?", "answer": "it is room 12 there"}], {}, "a number or a text; say with --answer"),
        ([{"question": "a?", "answer": "red"}], {"answer": "number"}, "no number"),
        ([{"question": "a?", "answer": "red"}], {"answer": "boolean"}, "none of true, false, yes and no"),
        ([{"question": "a?", "answer": "G"}], {"answer": "choice"}, "no letter from A to E"),
        ([{"question": "a?", "answer": " "}], {}, "no answer"),
        ([{"question": "a?", "answer": ["x"]}], {}, "no answer"),
    ],
)
def test_what_is_not_plain_is_asked_for_in_one_line(tmp_path, rows, options, message):
    with pytest.raises(UsageError, match=message) as raised:
        read_problems(written(tmp_path / "d.json", rows), **options)
    assert "\n" not in str(raised.value)


def test_fields_and_kind_as_named(tmp_path):
    path = written(tmp_path / "d.json", [{"q": "a?", "a": "room 12", "answer": 3}])
    problems = read_problems(path, question_field="q", answer_field="a", answer="text")
    assert (problems.question, problems.gold_answer, problems.answer_kind) == (["a?"], ["room 12"], "text")
    assert problems.columns["data_answer"][1].tolist() == [3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "no row"),
        ("a,a\n1,2\n", "twice"),
        ("a,b\n1\n", "line 2"),
        ('a,b\n1,"x\n', "CSV|line"),
    ],
)
def test_bad_csv_is_named_by_its_line(tmp_path, content, message):
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_problems(str(tmp_path / "d.csv"))


def test_bad_parquet_is_one_line(tmp_path):
    pytest.importorskip("duckdb")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read_problems(str(tmp_path / "d.parquet"))


@pytest.mark.parametrize("formula", ["", "1/0", "a+b", "f(1)", "2**9", "( 3.0 +", "- 5 number0", "1 if 2 else 3"])
def test_a_formula_that_is_no_arithmetic_has_no_steps(formula):
    assert formula_steps(formula) == []


def test_numbers_of_32_bits_are_read_as_they_are_written_wherever_they_stand(tmp_path):
    path = tmp_path / "a.parquet"
    side = "{'question': '%s' || i, 'answer': (i + 0.1)::float, 'size': [0.3::float]}"
    query = f"select {side % 'c'} as clean, {side % 'd'} as corrupted, 1e-30::double as small from range(2) t(i)"
    with duckdb.connect() as connection:
        connection.execute(f"copy ({query}) to '{path}' (format parquet)")
    problems = read_problems(str(path))
    assert problems.gold_answer == ["0.1", "0.1", "1.1", "1.1"]
    assert problems.columns["small"][1].tolist() == [1e-30] * 4
