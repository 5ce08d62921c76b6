"""Question files: JSON Lines of problems, JSON lists of clean/corrupted pairs, hub data sets."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from schemas import DIMS, MODEL_VARIABLES, RUN_VARIABLES, UsageError, extract_answer, fingerprint, read_gold_answer
from schemas.numbers import plain
from store import RECORD

_STEP = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_OPERAND = r"\(*[-\u2212]?\$?\.?\d[\d.,]*%?\)*"
# An equation is read whole or not at all: not the "3 - 1 = 2" of "5 apples + 3 - 1 = 2".
_EQUATION = re.compile(
    rf"(?<![\w.,$%()+*/\u2212-])(?<![-+*/x\u2212] )({_OPERAND}(?:\s?[-+*/x\u2212]\s?{_OPERAND})+)\s?=\s?"
    r"(?=([-\u2212]?\$?[-\u2212]?\.?\d(?:[\d.,]*\d)?(?:/\d+)?))"
)
_CHAIN_FIELDS = (
    "full_answer", "cot", "steps", "chain", "chain_of_thought", "reasoning", "rationale", "solution", "answer",
)  # fmt: skip
_HUB = "hf:"
_CONSUMED = {"question", "answer", "full_answer", "clean", "corrupted"}
_RESERVED = {*RUN_VARIABLES, *DIMS, *_CONSUMED, RECORD, "problem", "variant", "segment", "offset"}
"""Names of a run's own arrays and of its record, which no column of the data may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problems:
    """Problems of one data file, in its order."""

    name: str
    """Data set's name: the second half of a run's name."""
    question: list[str]
    gold_answer: list[str]
    """Gold answers as plain numbers, without thousands commas."""
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
            columns=columns,
            fingerprint=fingerprint([self.fingerprint, list(keep)]),
            source=self.source,
            notes=self.notes,
        )


def parse_chain(text: str) -> list[tuple[str, str, float]]:
    """Steps of a written chain: expression, operator and result of each.

    A step is ``<<12*4=48>>``; in a text without such marks, an equation ``12 * 4 = 48``. The operator is one of
    ``+ - * /``; ``mixed`` where an expression has several.
    """
    steps = []
    for expression, result in _STEP.findall(text) if "<<" in text else _EQUATION.findall(plain(text)):
        value = extract_answer(result)
        signs = plain(expression).replace("\u2212", "-").replace("x", "*")
        operators = set(re.findall(r"(?<=[\d).%])\s*([-+*/])", signs))
        operator = operators.pop() if len(operators) == 1 else "mixed" if operators else ""
        steps.append((expression.strip(), operator, math.nan if value is None else value))
    return steps


def number_text(value: float) -> str:
    """Plain decimal text of a number: ``18``, not ``18.0``; ``0.0000012``, not ``1.2e-06``."""
    return str(int(value)) if float(value).is_integer() else format(Decimal(repr(float(value))), "f")


def read_problems(data: str, limit: int | None = None) -> Problems:
    """Read a data file.

    Parameters
    ----------
    data
        ``FILE``, ``NAME=FILE``, or ``NAME=hf:ID[:CONFIG]:SPLIT`` for a data set of the hub (needs the ``hub`` extra).
        A file is JSON Lines with ``question`` and ``answer``, or a JSON list of pairs ``{clean: {question, answer},
        corrupted: {...}}`` or of flat rows with ``pair_id`` and ``variant``. An answer is a number or a text with one
        (:func:`schemas.read_gold_answer`). Steps come from the answer, ``full_answer``, ``cot``, ``steps`` (a text or
        a list of texts) or the like (:func:`parse_chain`). Other fields of which every row has a number, a text or a
        bool become columns, under another name where the run has an array of that name.
    limit
        Number of problems taken from the start; a pair counts as two.

    Raises
    ------
    UsageError
        If the file is missing or empty, a line is not JSON or not text, or a problem lacks a question or an answer that
        is surely one number.
    """
    name, _, source = data.rpartition("=") if "=" in data and not Path(data).exists() else ("", "", data)
    if source.startswith(_HUB):
        name = name or source.split(":")[1].replace("/", "-")
        rows = _read_hub(source)
    else:
        path = Path(source).expanduser()
        name = name or path.stem
        rows = _read_file(path)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"data set name {name!r} is not a plain word; name it with --data NAME=FILE")
    if name in MODEL_VARIABLES or name == "zarr.json":
        raise UsageError(f"data set name {name!r} is that of a model's own array or document; use --data NAME=FILE")
    problems = _flatten(rows)
    return _collect(name, problems if limit is None else problems[:limit], source)


def _read_file(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"data file {path} cannot be read: {reason}") from error
    if not text.strip():
        raise UsageError(f"data file {path} is empty; it needs one JSON object per line with question and answer")
    if text.lstrip().startswith("["):
        rows = _parse(text, f"data file {path} begins a JSON list but")
        if not rows:
            raise UsageError(f"data file {path} is an empty list; it needs problems or clean/corrupted pairs")
        places = [f"{path} entry {index + 1}" for index in range(len(rows))]
    else:
        # Lines end in \n and nothing else: a JSON text may hold every other line separator.
        lines = [(f"{path} line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        places = [where for where, _ in lines]
        rows = [_parse(line.removeprefix("\ufeff"), where) for where, line in lines]
    return [(where, _mapping(row, where)) for where, row in zip(places, rows, strict=True)]


def _parse(text: str, where: str) -> Any:
    """JSON, with decimal numbers kept as they are written."""
    try:
        return json.loads(text, parse_float=_decimal, object_pairs_hook=_object)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply") from error


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError as error:
        raise ValueError(f"{text[:40]} is beyond every number") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has a field twice among {', '.join(repr(key) for key, _ in pairs)}"[:200])
    return found


def _read_hub(source: str) -> list[tuple[str, Mapping[str, Any]]]:
    parts = source.removeprefix(_HUB).split(":")
    if len(parts) not in (2, 3):
        raise UsageError(f"{source} does not name a hub data set; write hf:ID:SPLIT or hf:ID:CONFIG:SPLIT")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError(f"{source} needs the datasets library; pip install 'activation-lake[hub]'") from error
    try:
        rows = load_dataset(*parts[:-1], split=parts[-1])
    except Exception as error:
        raise UsageError(f"{source} cannot be loaded from the hub: {error}") from error
    return [(f"{source} row {index}", dict(row)) for index, row in enumerate(rows)]


def _mapping(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise UsageError(f"{where} is a JSON {type(row).__name__}; expected an object with question and answer")
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        broken = error.object[error.start]
        raise UsageError(
            f"{where} has half a character ({broken!a}, a lone surrogate), which no text can hold"
        ) from error
    return row


class _Problem(NamedTuple):
    where: str
    row: Mapping[str, Any]
    variant: str
    pair: int


def _flatten(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[_Problem]:
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
            flat.append(_Problem(place, {**shared, **_mapping(row.get(variant), place)}, variant, index))
    waiting: dict[str, tuple[str, int]] = {}
    n_pair = 0
    for number, (where, row, variant, pair) in enumerate(flat):
        if pair < 0 and "pair_id" in row and variant in ("clean", "corrupted"):
            key = str(row["pair_id"])
            if key in waiting and waiting[key][0] != variant:
                pair = waiting.pop(key)[1]
            else:
                pair = n_pair
                waiting[key] = (variant, pair)
                n_pair += 1
            flat[number] = _Problem(where, row, variant, pair)
    return flat


def _collect(name: str, problems: Sequence[_Problem], source: str) -> Problems:
    questions, golds, groups = [], [], []
    seen: dict[str, int] = {}
    for where, row, _, pair in problems:
        questions.append(_question(row, where))
        golds.append(number_text(_gold(row, where)))
        group = f"pair {row['pair_id']}" if "pair_id" in row else f"pair row {pair}" if pair >= 0 else questions[-1]
        groups.append(seen.setdefault(group, len(seen)))
    chains = [_chain(row) for _, row, _, _ in problems]
    n_step = max((1, *map(len, chains)))
    result = np.full((len(chains), n_step), np.nan)
    operation = np.full((len(chains), n_step), "", dtype=object)
    expression = np.full((len(chains), n_step), "", dtype=object)
    for index, chain in enumerate(chains):
        for step, (text, operator, value) in enumerate(chain):
            expression[index, step], operation[index, step], result[index, step] = text, operator, value
    columns: dict[str, tuple[tuple[str, ...], Any]] = {
        "example": (("example",), np.arange(len(problems))),
        "problem": (("example",), np.array(groups, dtype=np.int64)),
        "variant": (("example",), [each.variant for each in problems]),
        "pair": (("example",), np.array([each.pair for each in problems], dtype=np.int64)),
        "question": (("example",), questions),
        "gold_answer": (("example",), golds),
        "intermediate_result": (("example", "step"), result),
        "operation": (("example", "step"), operation),
        "expression": (("example", "step"), expression),
    }
    extra, notes = _extra_columns(problems)
    columns |= extra
    if not any(chains):
        notes.append(
            "no chain of steps can be read, as <<3*4=12>> or 3 * 4 = 12 in answer, full_answer, cot or steps;"
            " what looks at steps has nothing to look at"
        )
    content = {key: _hashable(np.asarray(values, dtype=object).tolist()) for key, (_, values) in columns.items()}
    return Problems(
        name=name,
        question=questions,
        gold_answer=golds,
        columns=columns,
        fingerprint=fingerprint(content),
        source=source if source.startswith(_HUB) else Path(source).name,
        notes=tuple(notes),
    )


def _question(row: Mapping[str, Any], where: str) -> str:
    question = row.get("question")
    if isinstance(question, str) and question.strip():
        return question
    raise UsageError(
        f"{where} has no question" if question is None else f"{where} has an empty question or none that is text"
    )


def _gold(row: Mapping[str, Any], where: str) -> float:
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, int | float | Decimal | str):
        raise UsageError(f"{where} has no answer that is a number or a text with one")
    try:
        return read_gold_answer(answer)
    except ValueError as error:
        raise UsageError(f"{where} has the answer {str(answer)[-40:]!r}, {error}") from error


def _chain(row: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Steps of the first field that has any."""
    for field in _CHAIN_FIELDS:
        written = row.get(field)
        texts = written if isinstance(written, list) else [written]
        chain = [step for text in texts if isinstance(text, str) for step in parse_chain(text)]
        if chain:
            return chain
    return []


def _hashable(value: Any) -> Any:
    """JSON values, with ``None`` for NaN and a text for what is infinite."""
    if isinstance(value, list):
        return [_hashable(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _extra_columns(problems: Sequence[_Problem]) -> tuple[dict[str, tuple[tuple[str, ...], Any]], list[str]]:
    """Fields of which every row has one plain value of one type, and what is to be said of the others."""
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    left_out, renamed, as_text = [], [], []
    variants = {row.get("variant") for _, row, _, _ in problems if isinstance(row.get("variant", ""), str)}
    taken = {name.casefold() for name in _RESERVED}  # a disk may not tell A from a
    for key in sorted({key for _, row, _, _ in problems for key in row} - _CONSUMED):
        if key == "variant" and variants:
            continue
        values = _column([row.get(key) for _, row, _, _ in problems])
        if values is None:
            left_out += [key] if key not in _CHAIN_FIELDS else []
            continue
        name = re.sub(r"\W", "_", key)[:60].lstrip("_") or "column"
        while name.casefold() in taken or not name.isidentifier():
            name = f"data_{name}"
        taken.add(name.casefold())
        found[name] = (("example",), values)
        if name != key:
            renamed.append(f"{key!r} as {name}")
        if isinstance(values, list) and not isinstance(problems[0].row[key], str):
            as_text.append(name)
    notes = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("columns stored under another name:", renamed),
            ("columns stored as text, as their numbers need more than 64 bits:", as_text),
            ("fields left out, as not every row has a number, a text or a bool there:", left_out),
        )
        if names
    ]
    return found, notes


def _column(values: list[Any]) -> Any:
    """Values as they are stored: texts as a list, numbers and bools as an array; ``None`` if they are of many kinds."""
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return values
    if kinds == {bool}:
        return np.array(values)
    if kinds == {int}:
        for dtype in (np.int64, np.uint64):
            limits = np.iinfo(dtype)
            if limits.min <= min(values) and max(values) <= limits.max:
                return np.array(values, dtype=dtype)
    elif not kinds or not kinds <= {int, float, Decimal}:
        return None
    elif not any(_overflows(value) for value in values):
        return np.array([float(value) for value in values])
    return [str(value) for value in values]


def _overflows(value: int | float | Decimal) -> bool:
    """Whether float64 would not hold an integer exactly, or a decimal at all."""
    if isinstance(value, int):
        return abs(value) > 2**53
    return isinstance(value, Decimal) and math.isinf(float(value))
