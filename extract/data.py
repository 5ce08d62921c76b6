"""Question files: JSON Lines of problems, JSON lists of clean/corrupted pairs, hub data sets."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas import RUN_VARIABLES, UsageError, extract_answer, fingerprint

_STEP = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_HUB = "hf:"
_RESERVED = {*RUN_VARIABLES, "example", "problem", "variant", "pair", "answer", "clean", "corrupted", "full_answer"}


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
        )


def parse_chain(text: str) -> list[tuple[str, str, float]]:
    """Steps of a written chain ``<<12*4=48>>``: expression, operator and result of each.

    The operator is one of ``+ - * /``; ``mixed`` where an expression has several.
    """
    steps = []
    for expression, result in _STEP.findall(text):
        value = extract_answer(result)
        operators = set(re.findall(r"(?<=[\d).%])\s*([-+*/])", expression))
        operator = operators.pop() if len(operators) == 1 else "mixed" if operators else ""
        steps.append((expression.strip(), operator, math.nan if value is None else value))
    return steps


def number_text(value: float) -> str:
    """Plain decimal text of a number: ``18``, not ``18.0``."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def read_problems(data: str, limit: int | None = None) -> Problems:
    """Read a data file.

    Parameters
    ----------
    data
        ``FILE``, ``NAME=FILE``, or ``NAME=hf:ID[:CONFIG]:SPLIT`` for a data set of the hub (needs the ``hub`` extra).
        A file is JSON Lines with ``question`` and ``answer``, or a JSON list of pairs ``{clean: {question, answer},
        corrupted: {...}}`` or of flat rows with ``pair_id`` and ``variant``. Other scalar fields become columns.
    limit
        Number of problems taken from the start; a pair counts as two.

    Raises
    ------
    UsageError
        If the file is missing or empty, a line is not JSON, or a problem lacks a question or a numeric answer.
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
    problems = _flatten(rows, source)
    return _collect(name, problems if limit is None else problems[:limit], source)


def _read_file(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"data file {path} cannot be read: {reason}") from error
    if not text.strip():
        raise UsageError(f"data file {path} is empty; it needs one JSON object per line with question and answer")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise UsageError(f"data file {path} begins a JSON list but is not JSON: {error}") from error
        if not rows:
            raise UsageError(f"data file {path} is an empty list; it needs problems or clean/corrupted pairs")
        return [
            (f"{path} entry {index + 1}", _mapping(row, f"{path} entry {index + 1}")) for index, row in enumerate(rows)
        ]
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{path} line {number}"
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{where} is not JSON: {error}") from error
            found.append((where, _mapping(row, where)))
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
    return row


def _flatten(rows: Sequence[tuple[str, Mapping[str, Any]]], source: str) -> list[tuple[str, dict[str, Any]]]:
    """One row per problem; pairs become two, with ``variant`` and a ``pair`` number."""
    flat: list[tuple[str, dict[str, Any]]] = []
    for index, (where, row) in enumerate(rows):
        if "clean" in row or "corrupted" in row:
            shared = {key: value for key, value in row.items() if key not in ("clean", "corrupted")}
            for variant in ("clean", "corrupted"):
                side = _mapping(row.get(variant), f"{where}, {variant} side,")
                flat.append((f"{where}, {variant} side,", {**shared, **side, "variant": variant, "pair": index}))
        else:
            flat.append((where, dict(row)))
    waiting: dict[Any, tuple[str, int]] = {}
    n_pair = 0
    for _, row in flat:
        if "pair" not in row and "pair_id" in row and row.get("variant") in ("clean", "corrupted"):
            key = str(row["pair_id"])
            if key in waiting and waiting[key][0] != row["variant"]:
                row["pair"] = waiting.pop(key)[1]
            else:
                row["pair"], waiting[key], n_pair = n_pair, (row["variant"], n_pair), n_pair + 1
    return flat


def _collect(name: str, rows: Sequence[tuple[str, dict[str, Any]]], source: str) -> Problems:
    questions, golds, groups, chains = [], [], [], []
    seen: dict[str, int] = {}
    for where, row in rows:
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise UsageError(
                f"{where} has no question"
                if question is None
                else f"{where} has an empty question or none that is text"
            )
        answer = row.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, int | float | str):
            raise UsageError(f"{where} has no answer that is a number or a text with one")
        gold = float(answer) if isinstance(answer, int | float) else extract_answer(answer)
        if gold is None or not math.isfinite(gold):
            raise UsageError(f"{where} has the answer {str(answer)[-40:]!r}, which is no number")
        questions.append(question)
        golds.append(number_text(gold))
        group = (
            f"pair {row['pair_id']}" if "pair_id" in row else f"pair row {row['pair']}" if "pair" in row else question
        )
        groups.append(seen.setdefault(group, len(seen)))
        written = row.get("full_answer", answer)
        chains.append(parse_chain(written) if isinstance(written, str) else [])
    n_step = max(1, *(len(chain) for chain in chains)) if chains else 1
    result = np.full((len(rows), n_step), np.nan)
    operation = np.full((len(rows), n_step), "", dtype=object)
    expression = np.full((len(rows), n_step), "", dtype=object)
    for index, chain in enumerate(chains):
        for step, (text, operator, value) in enumerate(chain):
            expression[index, step], operation[index, step], result[index, step] = text, operator, value
    columns: dict[str, tuple[tuple[str, ...], Any]] = {
        "example": (("example",), np.arange(len(rows))),
        "problem": (("example",), np.array(groups, dtype=np.int64)),
        "variant": (("example",), [str(row.get("variant", "")) for _, row in rows]),
        "pair": (("example",), np.array([row.get("pair", -1) for _, row in rows], dtype=np.int64)),
        "question": (("example",), questions),
        "gold_answer": (("example",), golds),
        "intermediate_result": (("example", "step"), result),
        "operation": (("example", "step"), operation),
        "expression": (("example", "step"), expression),
    }
    columns |= _extra_columns([row for _, row in rows])
    plain = {key: np.asarray(values, dtype=object).tolist() for key, (_, values) in columns.items()}
    content = json.loads(json.dumps(plain).replace("NaN", "null"))
    return Problems(
        name=name,
        question=questions,
        gold_answer=golds,
        columns=columns,
        fingerprint=fingerprint(content),
        source=source if source.startswith(_HUB) else Path(source).name,
    )


def _extra_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Scalar fields that every row has, of one type."""
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    shared = set.intersection(*(set(row) for row in rows)) if rows else set()
    for key in sorted(shared - _RESERVED):
        values = [row[key] for row in rows]
        kinds = {type(value) for value in values}
        if key.isidentifier() and (kinds <= {int, float} or kinds in ({str}, {bool})):
            found[key] = (("example",), values if kinds == {str} else np.array(values))
    return found
