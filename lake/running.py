"""How the shell runs a declared command: settings in, results into the lake, tables out."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import typer

from lake import printing
from schemas import UsageError
from schemas.command import Analysis, Command, Experiment, Output, Printed, Settings
from schemas.words import OUTPUT, PATH

if TYPE_CHECKING:
    from store.keeping import Kept


class Terminal:
    """What a command may ask of the shell, see :class:`schemas.command.Shell`."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self._said: set[str] = set()

    def note(self, text: str) -> None:
        """Say something on standard error, once."""
        line = " ".join(text.split())
        if line not in self._said:
            self._said.add(line)
            printing.note(line)

    def progress(self, label: str, unit: str = "") -> AbstractContextManager[Callable[..., None]]:
        """A bar on standard error."""
        return printing.progress(label, unit)

    def confirm(self, question: str) -> bool:
        """Ask on the terminal."""
        if not sys.stdin.isatty():
            raise UsageError(f"{question} Without a terminal, say --yes")
        return typer.confirm(question, err=True)

    def words(self, runs: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
        """The command at work for these runs, with every option that is not at its default."""
        words = ["lake", *names(self.context)]
        for parameter in self.context.command.params:
            value = self.context.params.get(parameter.name or "")
            if parameter.param_type_name == "argument":
                words += [PATH] if parameter.name == "path" else runs
            elif parameter.opts[0] in (*OUTPUT, *without) or value in (parameter.default, None, [], ()):
                continue
            elif getattr(parameter, "is_flag", False):
                words.append((parameter.opts if value else parameter.secondary_opts)[0])
            else:
                for each in value if isinstance(value, list | tuple) else [value]:
                    words += [parameter.opts[0], PATH if parameter.name == "lake" else str(each)]
        return words


def names(context: Any) -> list[str]:
    """Names of a command below ``lake``, as ``reenter``, ``patch``."""
    words: list[str] = []
    while context.parent is not None:
        words, context = [context.info_name, *words], context.parent
    return words


def run_command(command: Command, settings: Settings, terminal: Terminal) -> None:
    """Run a command of ``lake`` itself."""
    output = command.run(settings, terminal) or Output()
    if getattr(settings, "json", False):
        printing.show_json(output.document)
    else:
        printing.show(output.printed)
    if output.failure is not None:
        raise output.failure
    if output.code:
        raise typer.Exit(output.code)


def open_runs(path: str, names: Sequence[str] | None) -> tuple[Any, list[str]]:
    """Open a lake, and the runs named or all it has."""
    from store import open_lake

    lake = open_lake(path)
    runs = list(names or lake.runs())
    if not runs:
        raise UsageError(f"{path} has no runs yet; make one with lake extract")
    for run in runs:
        lake.attributes(run)
    return lake, runs


def run_analysis(command: Analysis, settings: Settings, values: Mapping[str, Any], terminal: Terminal) -> None:
    """Run an analysis over each run or over all together, and say what it made."""
    from analyze.cluster import compute_on
    from analyze.running import analyse, groups_of
    from analyze.tables import result_tables

    named = settings.runs_to_open(values["runs"] or [])
    groups = groups_of(command, *open_runs(values["path"], named), settings, terminal)
    labels = [" + ".join(source.run for source in group) for group in groups]
    if values.get("plan") and command.plan is not None:
        asked = [group if command.takes_all(settings) else group[0] for group in groups]
        say_plans({label: command.plan(each, settings) for label, each in zip(labels, asked, strict=True)}, values)
        return
    document: dict[str, Any] = {}
    with compute_on(values["scheduler"], values["workers"]):
        for label, kept in zip(labels, analyse(command, groups, settings), strict=True):
            kinds = [result.kind for result in kept]
            for number, result in enumerate(kept):
                again = f"-{number}" if result.kind in kinds[:number] else ""
                frames = command.frames(result.kind, result.data) if command.frames else result_tables(result.data)
                name = result.data.attrs["run"]
                told = tell(result, frames, f"{name}-{result.kind}{again}", values)
                document.setdefault(label, {}).update(told if number == 0 else {result.kind + again: told})
                if not values["json"]:
                    printing.show([*command.results[result.kind](result.data, result.spec), f"{name}: {place(result)}"])
    if values["json"]:
        printing.show_json(document)


def run_experiment(
    command: Experiment, settings: Settings, where: Any, values: Mapping[str, Any], terminal: Terminal
) -> None:
    """Run an experiment on every run, and say what it made, side by side."""
    from analyze.tables import fed, result_tables, without_long
    from extract.reenter.running import for_model, reenter, target_of

    lake, runs = open_runs(values["path"], values["runs"])
    for run in runs:  # what is written wrongly is said before a model is loaded
        for_model(where.checkpoint, run, "checkpoint")
        for_model(where.base, run, "base")
    document: dict[str, Any] = {}
    printed: dict[str, list[Printed]] = {}
    plans = {}
    for run in runs:
        target = target_of(command, lake, run, where, terminal)
        if values.get("plan") and command.plan is not None:
            plans[run] = command.plan(target, settings)
            continue
        kept = reenter(command, lake, target, settings, where, terminal)
        told = tell(kept, result_tables(without_long(kept.data)), f"{run}-{kept.kind}", values)
        document[run] = {"attrs": dict(kept.data.attrs)} | told
        printed[run] = [*command.results[kept.kind](kept.data, kept.spec), *fed(kept.data), place(kept)]
    if plans:
        say_plans(plans, values)
    elif values["json"]:
        printing.show_json(document)
    else:
        printing.show_by_run(command.name, printed)


def say_plans(plans: Mapping[str, tuple[str, Any]], values: Mapping[str, Any]) -> None:
    """What each run would cost."""
    if values["json"]:
        printing.show_json({label: document for label, (_, document) in plans.items()})
    else:
        printing.show([f"{label}: {text}" for label, (text, _) in plans.items()])


def tell(kept: "Kept", frames: Mapping[str, Any], label: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A result for ``--json``, its tables written where ``--csv`` says."""
    from analyze.tables import short_tables

    if values["csv"] is not None:
        printing.write_csv(values["csv"], label, frames)
    return {"result": kept.name} | short_tables(frames)


def place(kept: "Kept") -> str:
    """Where a result is."""
    return f"kept as {kept.name}" if kept.name else "not kept"
