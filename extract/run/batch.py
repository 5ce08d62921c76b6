"""Several runs from one plan file: the settings of ``lake extract`` in TOML, models times data sets."""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from extract.run.command import ExtractSettings
from extract.run.data import read_problems
from extract.run.prepare import split_name
from schemas import UsageError, nearest
from schemas.flags import Flag, flags
from schemas.words import PATH

SEVERAL = ("model", "data")
"""Settings that may be lists: every model is run over every data set."""


def read_plan(path: str) -> list[ExtractSettings]:
    """Settings of every run of a plan file.

    The file's own keys are settings of all runs, those of a table ``[[run]]`` of that one (or, where ``model`` or
    ``data`` is a list, of each of those); names are those of the flags, with ``_`` for ``-``.

    Raises
    ------
    UsageError
        If the file cannot be read, a name is not known, a value is of another type or not allowed, one that is needed
        is not there, or two runs have one name; the run is named.
    """
    try:
        content = tomllib.loads(Path(path).expanduser().read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"plan {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"plan {path} is not TOML: {error}") from error
    tables = content.pop("run", [{}])
    if not (isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)):
        raise UsageError(f"plan {path}: run is no table; write [[run]] above the settings of each run")
    runs = []
    for number, table in enumerate(tables, 1):
        where = f"plan {path}, run {number}" if len(tables) > 1 else f"plan {path}"
        runs += _settings({**content, **table}, where)
    names = [_run_name(run) for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"plan {path} has two runs called {name}; name them with NAME=CHECKPOINT and NAME=FILE")
    return runs


def check_data(runs: Sequence[ExtractSettings]) -> None:
    """Read every data file, so that what is wrong with one is said before a model is loaded."""
    for run in runs:
        read_problems(
            run.data,
            run.limit,
            answer=run.answer,
            question_field=run.question_field,
            answer_field=run.answer_field,
        )


def words_of(settings: ExtractSettings) -> list[str]:
    """The command that makes one run alone, ``PATH`` for the lake."""
    words = ["lake", "extract"]
    for flag in flags(ExtractSettings):
        value = getattr(settings, flag.name)
        if flag.name in ("shard", "rebuild", "json") or value == flag.default or value is None:
            continue
        words += [flag.option] if flag.kind is bool else [flag.option, PATH if flag.name == "lake" else str(value)]
    return words


def _settings(values: Mapping[str, Any], where: str) -> list[ExtractSettings]:
    known = {flag.name: flag for flag in flags(ExtractSettings) if flag.name != "json"}
    for name in values:
        if name not in known:
            raise UsageError(f"{where}: there is no setting {name!r}{nearest(name, known)}")
    lists = {name: values[name] for name in SEVERAL if isinstance(values.get(name), list)}
    every = []
    for chosen in itertools.product(*lists.values()):
        one = {**values, **dict(zip(lists, chosen, strict=True))}
        for name, flag in known.items():
            if flag.default is MISSING and name not in one:
                raise UsageError(f"{where}: {name} is missing")
        try:
            every.append(ExtractSettings(**{name: _value(known[name], value) for name, value in one.items()}))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    if not every:
        raise UsageError(f"{where}: {' and '.join(name for name in lists if not lists[name])} is an empty list")
    return every


def _value(flag: Flag, value: Any) -> Any:
    if flag.kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, flag.kind) or isinstance(value, bool) != (flag.kind is bool):
        kind = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[flag.kind]
        raise UsageError(f"{flag.name} is {value!r}; it must be {kind}")
    return value


def _run_name(settings: ExtractSettings) -> str:
    model = settings.model if "=" in settings.model else f"{settings.model}={settings.model}"
    data, sign, _ = settings.data.partition("=")
    return f"{split_name(model, 'model')[0]}/{data if sign else Path(settings.data).stem}"
