"""Rows of a data source, each with the place it is at: JSON, JSON Lines, CSV, Parquet, GSM8K-Aug's lines, the hub."""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from extract.run.forms import FORMS
from schemas import UsageError

HUB = "hf:"
AUG_MARK = "||"
"""Between question and chain in GSM8K-Aug's own files: ``question||chain #### answer``."""
Row = tuple[str, Mapping[str, Any]]
"""Place, as errors name it, and fields."""

_WHOLE, _DECIMAL = re.compile(r"0|-?[1-9]\d*"), re.compile(r"-?\d+\.\d+|0|-?[1-9]\d*")


def read_rows(source: str) -> list[Row]:
    """Rows of a file or of a data set of the hub (``hf:ID[:CONFIG]:SPLIT``).

    Raises
    ------
    UsageError
        If it cannot be read, is empty, or is not what its name or first character says.
    """
    if source.startswith(HUB):
        return _read_hub(source)
    path = Path(source).expanduser()
    read = {".parquet": _read_parquet, ".csv": _read_csv, ".tsv": _read_csv}.get(path.suffix.lower(), _read_text)
    return [(where, mapping(row, where)) for where, row in read(path)]


def _text_of(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"data file {path} cannot be read: {reason}") from error
    if not text.strip():
        raise UsageError(f"data file {path} is empty; it needs one JSON object per line with question and answer")
    return text


def _read_text(path: Path) -> list[tuple[str, Any]]:
    text = _text_of(path)
    if text.lstrip().startswith("["):
        rows = parse(text, f"data file {path} begins a JSON list but")
        if not rows:
            raise UsageError(f"data file {path} is an empty list; it needs problems or clean/corrupted pairs")
        return _entries(path, rows)
    # Lines end in \n and nothing else: a JSON text may hold every other line separator.
    lines = [(f"{path} line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not text.lstrip("\ufeff \t\r\n").startswith("{") and AUG_MARK in lines[0][1]:
        return [(where, _aug_row(line, where)) for where, line in lines]
    whole = _whole_object(path, text, lines)
    if whole is not None:
        return _entries(path, whole)
    return [(where, parse(line.removeprefix("\ufeff"), where)) for where, line in lines]


def _entries(path: Path, rows: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"{path} entry {index}", row) for index, row in enumerate(rows, 1)]


def _whole_object(path: Path, text: str, lines: Sequence[tuple[str, str]]) -> list[Any] | None:
    """Problems of a file that is one JSON object: a list in it, by name, or it alone; ``None`` if lines hold them."""
    try:
        if len(lines) > 1:
            _loads(lines[0][1])
            return None
    except (ValueError, RecursionError):
        pass
    try:
        whole = _loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(whole, dict):
        return None
    lists = [key for key, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    is_problem = any(set(form.needs) <= whole.keys() for form in FORMS) or {"clean", "corrupted"} <= whole.keys()
    if lists and not is_problem and not {"question", "choices"} & whole.keys():
        if len(lists) > 1:
            raise UsageError(f"data file {path} holds several lists, {', '.join(lists)}; write the one meant by itself")
        return list(whole[lists[0]])
    # PrOntoQA's generator: {"example1": {"test_example": {...}}, ...}
    tested = [value.get("test_example") if isinstance(value, dict) else None for value in whole.values()]
    if tested and all(isinstance(record, dict) for record in tested):
        return tested
    if len(lines) == 1:
        return None
    if not is_problem:
        raise UsageError(
            f"data file {path} is one JSON object, of {', '.join(map(str, whole)) or 'nothing'}; it needs a list of"
            " problems, or one object per line with question and answer"
        )
    return [whole]


def _aug_row(line: str, where: str) -> dict[str, str]:
    question, mark, answer = line.partition(AUG_MARK)
    if not mark:
        raise UsageError(f"{where} has no {AUG_MARK}; the lines before are of the form question||chain #### answer")
    return {"question": question, "answer": answer}


def _read_csv(path: Path) -> list[tuple[str, Any]]:
    text = _text_of(path)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        names = list(reader.fieldnames or ())
        for row in reader:
            where = f"{path} line {reader.line_num}"
            if None in row or None in row.values():
                raise UsageError(f"{where} has other columns than the {len(names)} of the first line")
            rows.append((where, dict(row)))
    except csv.Error as error:
        raise UsageError(f"{path} line {reader.line_num} is not CSV: {error}") from error
    if len(set(names)) < len(names):
        raise UsageError(f"{path} has a column twice among {', '.join(names)}"[:200])
    if not rows:
        raise UsageError(f"data file {path} has no row below its first line")
    for name in names:
        values = [row[name] for _, row in rows]
        as_number: Callable[[str], Any] | None = None
        if all(map(_WHOLE.fullmatch, values)):
            as_number = int
        elif all(map(_DECIMAL.fullmatch, values)):
            as_number = Decimal
        for _, row in rows if as_number else ():
            row[name] = as_number(row[name])  # type: ignore[misc]
    return list(rows)


def _read_parquet(path: Path) -> list[tuple[str, Any]]:
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise UsageError(f"{path} needs duckdb to be read; pip install 'activation-lake[query]'") from error
    if not path.is_file():
        raise UsageError(f"data file {path} cannot be read: there is no such file")
    try:
        with duckdb.connect() as connection:
            table = connection.execute("select * from read_parquet(?)", [str(path)])
            names = [column[0] for column in table.description]
            short = [place for place, column in enumerate(table.description) if "FLOAT" in str(column[1])]
            rows = [list(row) for row in table.fetchall()]
    except duckdb.Error as error:
        raise UsageError(f"data file {path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    if not rows:
        raise UsageError(f"data file {path} has no rows")
    for row in rows:
        for place in short:
            row[place] = _shortened(row[place])
    return [(f"{path} row {index}", dict(zip(names, row, strict=True))) for index, row in enumerate(rows, 1)]


def _shortened(value: Any) -> Any:
    """Numbers of 32 bits, in lists and structs, too, as they are written: 0.1, not 64 bits' 0.10000000149011612."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value]
    with np.errstate(over="ignore"):
        return float(str(np.float32(value))) if isinstance(value, float) and np.float32(value) == value else value


def _read_hub(source: str) -> list[Row]:
    parts = source.removeprefix(HUB).split(":")
    if len(parts) not in (2, 3):
        raise UsageError(f"{source} does not name a hub data set; write hf:ID:SPLIT or hf:ID:CONFIG:SPLIT")
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise UsageError(f"{source} needs the datasets library; pip install 'activation-lake[hub]'") from error
    try:
        rows = load_dataset(*parts[:-1], split=parts[-1])
    except Exception as error:
        raise UsageError(f"{source} cannot be loaded from the hub: {error}") from error
    return [(f"{source} row {index}", dict(row)) for index, row in enumerate(rows)]


def parse(text: str, where: str) -> Any:
    """JSON, with decimal numbers kept as they are written.

    Raises
    ------
    UsageError
        If it is not JSON, naming the place.
    """
    try:
        return _loads(text)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply") from error


def _loads(text: str) -> Any:
    return json.loads(text, parse_float=_decimal, parse_int=_whole, object_pairs_hook=_object)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:  # thousands of digits, which Python has a setting of its own for
        raise ValueError(f"{text[:40]}.. is a number of {len(text):,} digits") from error


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError as error:
        raise ValueError(f"{text[:40]} is beyond every number") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"an object has a field twice among {', '.join(repr(key) for key, _ in pairs)}"[:200])
    return values


def mapping(row: Any, where: str) -> Mapping[str, Any]:
    """A row that is an object whose texts can be stored.

    Raises
    ------
    UsageError
        If it is none, naming the place.
    """
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
