"""Problems of a data set: questions, gold answers of one kind, steps, and columns."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from extract.run.chains import (
    CHAIN_FIELDS,
    GRAPH_FIELDS,
    distractors,
    has_graph,
    last_word,
    parse_chain,
    read_chain,
    word_steps,
)
from extract.run.columns import Columns, extra_columns
from extract.run.files import HUB, Row, mapping, read_rows
from extract.run.forms import Read, check_answer, form_of, read_golds
from schemas import MODEL_VARIABLES, AnswerKind, UsageError, fingerprint, number_text
from schemas.asked import asked
from schemas.checks import check_whole
from schemas.json_values import json_value
from schemas.names import check_name
from store import CLAIM

__all__ = ["Problems", "number_text", "parse_chain", "read_problems"]

_EITHER = re.compile(r"\b(\w+) or (?:an? )?(\w+)\?\s*$")
"""How a question asks between two words."""
_OFTEN_ASKED = {"passage", "context", "premise", "choices", "options", "Body"}
"""Fields without which a question may make no sense."""
_OPPOSITE = {"True": "False", "true": "false", "Yes": "No", "yes": "no", "TRUE": "FALSE", "YES": "NO"}
_OPPOSITE |= {value: key for key, value in _OPPOSITE.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problems:
    """Problems of one data file, in its order."""

    name: str
    """Data set's name: the second half of a run's name."""
    question: list[str]
    gold_answer: list[str]
    """Gold answers as the model is to write them: numbers plain, without thousands commas."""
    answer_kind: AnswerKind = "number"
    """Kind of them all."""
    columns: dict[str, tuple[tuple[str, ...], Any]]
    """Dims and values of every labelled column a run takes over from the data."""
    fingerprint: str
    """SHA-256 of all of this."""
    source: str
    """Name of the file without its folder, or the hub's id."""
    notes: tuple[str, ...] = ()
    """What its user should know: columns renamed or left out, no chain to be read."""

    def __len__(self) -> int:
        """Number of problems."""
        return len(self.question)

    def take(self, keep: Sequence[int]) -> "Problems":
        """Only these problems; their labels along ``example`` stay the line numbers of the file."""
        columns = {
            name: (dims, np.asarray(values, dtype=object if isinstance(values, list) else None)[list(keep)])
            for name, (dims, values) in self.columns.items()
        }
        return Problems(
            name=self.name,
            question=[self.question[index] for index in keep],
            gold_answer=[self.gold_answer[index] for index in keep],
            answer_kind=self.answer_kind,
            columns=columns,
            fingerprint=fingerprint([self.fingerprint, list(keep)]),
            source=self.source,
            notes=self.notes,
        )


def read_problems(
    data: str,
    limit: int | None = None,
    *,
    answer: AnswerKind | Literal["auto"] = "auto",
    question_field: str | None = None,
    answer_field: str | None = None,
) -> Problems:
    """Read a data file.

    Parameters
    ----------
    data
        ``FILE``, ``NAME=FILE``, or ``NAME=hf:ID[:CONFIG]:SPLIT`` for a data set of the hub (needs the ``hub`` extra).
        A file is JSON Lines, a JSON list, CSV, Parquet (needs the ``query`` extra) or GSM8K-Aug's lines
        ``question||chain #### answer``. Its rows have ``question`` and ``answer``, or the fields of one of
        :data:`extract.run.forms.FORMS`; or they are pairs ``{clean: {question, answer}, corrupted: {...}}``, or flat
        rows with ``pair_id`` and ``variant``. Steps come from the answer, ``full_answer``, ``cot``, ``steps`` (a text
        or a list of texts) or the like (:func:`extract.run.chains.read_chain`); a list of steps in words becomes
        ``step_text`` and ``intermediate_text``, ProsQA's graph ``root``, ``target``, ``neg_target``, ``edges``,
        ``distractor`` and ``other_answer``. Other fields of which every row has a number, a text or a bool become
        columns, under another name where the run has an array of that name.
    limit
        Number of problems taken from the start; a pair counts as two.
    answer
        Kind of the answers (see :func:`schemas.read_gold`); ``auto``: as their form shows.
    question_field, answer_field
        Fields that hold question and answer, where none of the known forms does.

    Raises
    ------
    UsageError
        If the file is missing or empty, a line is not JSON or not text, a problem lacks a question or an answer that
        is surely one of its kind, or the kind is not plain.
    """
    if limit is not None:
        check_whole("limit", limit, 1)
    name, _, source = data.partition("=") if "=" in data and not Path(data).exists() else ("", "", data)
    if not name:
        name = source.split(":")[1].replace("/", "-") if source.startswith(HUB) else Path(source).expanduser().stem
    rows = read_rows(source)
    check_name(name, "data set", {*MODEL_VARIABLES, CLAIM, "zarr.json"}, "; name it with --data NAME=FILE")
    problems = _flatten(rows)
    problems = problems if limit is None else problems[:limit]
    form = form_of(problems[0].row, problems[0].where, question_field, answer_field)
    questions = [_question(_read(form.question, problem), problem.where) for problem in problems]
    answers = [check_answer(_read(form.answer, problem), problem.where) for problem in problems]
    kind, golds = read_golds(answers, [problem.where for problem in problems], answer)
    columns, notes = _columns(problems, questions, golds, kind)
    consumed = {*form.needs, "full_answer", "clean", "corrupted", *(GRAPH_FIELDS if "distractor" in columns else ())}
    extra, more = extra_columns([problem.row for problem in problems], consumed, CHAIN_FIELDS, columns)
    columns |= extra
    unasked = {key for problem in problems for key in problem.row}.difference(consumed)
    if beside := sorted(key for key in _OFTEN_ASKED & unasked if not _stands_in(key, form.needs, problems)):
        more.append(f"fields that are not asked, though a question may need them: {', '.join(beside)}")
    content = {key: json_value(np.asarray(values, dtype=object)) for key, (_, values) in columns.items()}
    return Problems(
        name=name,
        question=questions,
        gold_answer=golds,
        answer_kind=kind,
        columns=columns,
        fingerprint=fingerprint(content),
        source=source if source.startswith(HUB) else Path(source).name,
        notes=(*more, *notes),
    )


class _Problem(NamedTuple):
    where: str
    row: Mapping[str, Any]
    variant: str
    pair: int


def _flatten(rows: Sequence[Row]) -> list[_Problem]:
    """One problem per row; pairs become two, with ``variant`` and the pair's number."""
    flat = []
    for index, (where, row) in enumerate(rows):
        if "clean" not in row and "corrupted" not in row:
            variant = row.get("variant")
            flat.append(_Problem(where, row, variant if isinstance(variant, str) else "", -1))
            continue
        shared = {key: value for key, value in row.items() if key not in ("clean", "corrupted")}
        for variant in ("clean", "corrupted"):
            place = f"{where}, {variant} side,"
            flat.append(_Problem(place, {**shared, **mapping(row.get(variant), place)}, variant, index))
    waiting: dict[str, tuple[str, int]] = {}
    n_pair = 0
    for number, (where, row, variant, pair) in enumerate(flat):
        key = _pair_key(row)
        if pair < 0 and key and variant in ("clean", "corrupted"):
            if key in waiting and waiting[key][0] != variant:
                pair = waiting.pop(key)[1]
            else:
                pair = n_pair
                waiting[key] = (variant, pair)
                n_pair += 1
            flat[number] = _Problem(where, row, variant, pair)
    return flat


def _pair_key(row: Mapping[str, Any]) -> str:
    """A row's ``pair_id`` as text, the same for 7, 7.0 and "7"; empty where it has none."""
    value = row.get("pair_id")
    if value is None or value != value:
        return ""
    whole = isinstance(value, float | Decimal) and value == value // 1
    return str(int(value) if whole else value).strip()


def _read(read: Read, problem: _Problem) -> Any:
    try:
        return read(problem.row)
    except ValueError as error:
        raise UsageError(f"{problem.where} has {error}") from error


def _stands_in(key: str, needs: Iterable[str], problems: Sequence[_Problem]) -> bool:
    """Whether a field's text is part of what is asked in every problem, as MAWPS's ``Body`` is of its ``Question``."""
    for row in (problem.row for problem in problems if key in problem.row):
        text = str(row[key]).strip(" ,.")
        if not text or not any(text in str(row.get(need, "")) for need in needs):
            return False
    return True


def _question(question: Any, where: str) -> str:
    if isinstance(question, str) and any(unicodedata.category(sign)[0] not in "ZC" for sign in question):
        return question
    raise UsageError(
        f"{where} has no question" if question is None else f"{where} has an empty question or none that is text"
    )


def _same_problem(problems: Sequence[_Problem], words: Sequence[str]) -> np.ndarray:
    """Number of the problem ``(example,)`` that each belongs to, as they come first: all that share words or a pair."""
    keys: dict[tuple[str, Any], int] = {}
    parent: list[int] = []

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for text, (_, row, _, pair) in zip(words, problems, strict=True):
        key = _pair_key(row)
        own = {("pair", key) if key else ("row", pair), ("asked", text)} - {("row", -1)}
        known = sorted({root(keys[key]) for key in own if key in keys}) or [len(parent)]
        parent += known if known[0] == len(parent) else []
        for node in known:
            parent[node] = known[0]
        keys |= dict.fromkeys(own, known[0])
    number: dict[int, int] = {}
    roots = [root(keys["asked", text]) for text in words]
    return np.array([number.setdefault(node, len(number)) for node in roots], dtype=np.int64)


def _columns(
    problems: Sequence[_Problem], questions: list[str], golds: list[str], kind: AnswerKind
) -> tuple[Columns, list[str]]:
    """Columns of every run, and what is to be said of questions and chains."""
    texts = [asked(question) for question in questions]
    steps, n_step, notes = _step_columns(problems)
    columns: Columns = {
        "example": (("example",), np.arange(len(problems))),
        "problem": (("example",), _same_problem(problems, texts)),
        "variant": (("example",), [problem.variant for problem in problems]),
        "pair": (("example",), np.array([problem.pair for problem in problems], dtype=np.int64)),
        "question": (("example",), questions),
        "gold_answer": (("example",), golds),
        **steps,
    }
    others = [_other_answer(*question_and_gold, kind) for question_and_gold in zip(questions, golds, strict=True)]
    if all(others):
        columns["other_answer"] = (("example",), others)
    if all(has_graph(problem.row) for problem in problems):
        columns |= _graph_columns([problem.row for problem in problems], n_step)
    return columns, [*_notes_on_questions(problems, texts, golds), *notes]


def _step_columns(problems: Sequence[_Problem]) -> tuple[Columns, int, list[str]]:
    """Steps of the written chains, in numbers or in words; how many the longest has; chains that cannot be read."""
    chains = [read_chain(problem.row) for problem in problems]
    # Steps are counted by their results: where one cannot be read, the chain's steps cannot be counted.
    broken = [index for index, chain in enumerate(chains) if not all(math.isfinite(value) for *_, value in chain)]
    for index in broken:
        chains[index] = []
    words = [[] if chain else word_steps(problem.row) for chain, problem in zip(chains, problems, strict=True)]
    n_step = max(1, *map(len, chains), *map(len, words))
    result = np.full((len(chains), n_step), np.nan)
    operation, expression, step_text, intermediate = (
        np.full((len(chains), n_step), "", dtype=object) for _ in range(4)
    )
    for index, chain in enumerate(chains):
        for step, (text, operator, value) in enumerate(chain):
            expression[index, step], operation[index, step], result[index, step] = text, operator, value
        for step, text in enumerate(words[index]):
            step_text[index, step], intermediate[index, step] = text, last_word(text)
    arrays = {"intermediate_result": result, "operation": operation, "expression": expression}
    if any(words):
        arrays |= {"step_text": step_text, "intermediate_text": intermediate}
    notes = []
    if broken:
        notes.append(
            f"chains left out because a step's result is not a number: {len(broken)}, as that of"
            f" {problems[broken[0]].where}"
        )
    if not any(chains) and not any(words):
        notes.append(
            "no chain of steps can be read, as <<3*4=12>> or 3 * 4 = 12 in answer, full_answer, cot or steps, or as a"
            " list of texts in steps; what looks at steps has nothing to look at"
        )
    return {name: (("example", "step"), array) for name, array in arrays.items()}, n_step, notes


def _notes_on_questions(problems: Sequence[_Problem], texts: list[str], golds: list[str]) -> list[str]:
    """Questions that are asked again with another answer, pairs of which one half is missing, rows of none."""
    notes = []
    first: dict[str, int] = {}
    other = [index for index, text in enumerate(texts) if golds[index] != golds[first.setdefault(text, index)]]
    if other:
        notes.append(
            f"questions asked again with another answer: {len(other)}, as that of {problems[other[0]].where}"
            f" ({golds[other[0]]}; {golds[first[texts[other[0]]]]} before)"
        )
    halves = Counter(problem.pair for problem in problems if problem.pair >= 0)
    if alone := [problem.where for problem in problems if halves[problem.pair] == 1]:
        notes.append(f"halves of pairs whose other half is not there: {len(alone)}, as that of {alone[0]}")
    if apart := [problem for problem in problems if problem.pair < 0 and _pair_key(problem.row)]:
        notes.append(
            f"rows with a pair_id that become no pair, as their variant is neither clean nor corrupted: {len(apart)},"
            f" as {apart[0].variant!r} of {apart[0].where}"
        )
    return notes


def _other_answer(question: str, gold: str, kind: AnswerKind) -> str:
    """The wrong one of the two answers that a question asks about; empty where it is not of that form.

    >>> _other_answer("Bob is a lorpus. Is Bob a hilpus or sterpus?", "Bob is a sterpus.", "text")
    'Bob is a hilpus.'
    """
    if kind == "boolean":
        return _OPPOSITE.get(gold, "")
    found = _EITHER.search(question) if kind == "text" else None
    for right, wrong in (found.groups(), found.groups()[::-1]) if found else ():
        other = re.sub(rf"\b{re.escape(right)}\b", wrong, gold)
        if other != gold and not re.search(rf"\b{re.escape(wrong)}\b", gold):
            return other
    return ""


def _graph_columns(rows: Sequence[Mapping[str, Any]], n_step: int) -> Columns:
    """Names of a graph's ends, its edges, and what else lies at each step's distance."""
    columns: Columns = {}
    for end in ("root", "target", "neg_target"):
        columns[end] = (("example",), [row["idx_to_symbol"][row[end]] for row in rows])
    edges = [" ".join(f"{row['idx_to_symbol'][a]}>{row['idx_to_symbol'][b]}" for a, b in row["edges"]) for row in rows]
    columns["edges"] = (("example",), edges)
    names = [[" ".join(edge) for edge in distractors(row, n_step)] for row in rows]
    columns["distractor"] = (("example", "step"), np.array(names, dtype=object).reshape(len(rows), n_step))
    return columns
