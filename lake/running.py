"""How the shell runs a declared command: settings in, results into the lake, tables out."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lake import printing
from schemas import UsageError
from schemas.command import Analysis, Command, Experiment, Output, Printed, Settings
from schemas.csv_files import write_csv
from schemas.words import OUTPUT, PATH

if TYPE_CHECKING:
    from store.keeping import Kept


class Terminal:
    """What a command may ask of the shell, see :class:`schemas.command.Shell`."""

    def __init__(self, declared: Command, context: click.Context) -> None:
        self.declared, self.context = declared, context
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """Say something on standard error, once."""
        line = " ".join(text.split())
        if line not in self._noted:
            self._noted.add(line)
            printing.note(line)

    progress = staticmethod(printing.progress)

    def confirm(self, question: str) -> bool:
        """Ask on the terminal."""
        if sys.stdin is None or not sys.stdin.isatty():  # none: closed before Python began
            raise UsageError(f"{question} Without a terminal, say --yes")
        return click.confirm(question, err=True)

    def words(self, runs: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
        """The command at work for these runs, with every option that is not at its default."""
        words = [word for word in ("lake", self.declared.group, self.declared.name) if word]
        for parameter in self.context.command.params:
            value = self.context.params.get(parameter.name or "")
            if parameter.param_type_name == "argument":
                words += [PATH] if parameter.name == "path" else runs
            elif parameter.opts[0] in (*OUTPUT, *without) or value in (parameter.default, None, ()):
                continue
            elif isinstance(parameter, click.Option) and parameter.is_flag:
                words.append((parameter.opts if value else parameter.secondary_opts)[0])
            else:
                for entry in value if isinstance(value, tuple) else [value]:
                    words += [parameter.opts[0], PATH if parameter.name == "lake" else str(entry)]
        return words


def run_command(command: Command, settings: Settings, terminal: Terminal) -> None:
    """Run a command of ``lake`` itself."""
    output = command.run(settings, terminal) or Output()
    printing.show(output.printed, output.document, getattr(settings, "json", False))
    if output.failure is not None:
        raise output.failure
    if output.code:
        raise click.exceptions.Exit(output.code)


def open_runs(path: str, names: Sequence[str] | None) -> tuple[Any, list[str]]:
    """Open a lake, and the runs named or all it has."""
    from store import open_lake

    lake = open_lake(path)
    runs = list(names or lake.runs())
    if not runs:
        raise UsageError(f"{path} has no runs yet; make one with lake extract")
    if twice := [run for number, run in enumerate(runs) if run in runs[:number]]:
        raise UsageError(f"run {twice[0]} is named twice")
    for run in runs:
        lake.attributes(run)
    return lake, runs


def run_analysis(command: Analysis, settings: Settings, values: Mapping[str, Any], terminal: Terminal) -> None:
    """Run an analysis over each run or over all together, and say what it made."""
    from analyze.cluster import compute_on
    from analyze.running import analyse, groups_of, plans_of
    from analyze.tables import result_tables

    named = settings.runs_to_open(values["runs"] or [])
    groups = groups_of(command, *open_runs(values["path"], named), settings, terminal)
    labels = [" + ".join(source.run for source in group) for group in groups]
    if values.get("plan"):
        plans = dict(zip(labels, plans_of(command, groups, settings, always=True), strict=True))
        show_plans({label: (plan.text(), plan.document()) for label, plan in plans.items() if plan}, values["json"])
        return

    parts = [f"--{name}" for name in ("sample", "limit", "layers", "positions") if hasattr(settings, name)]
    shorter = f"; {', '.join(parts)} take a part of it" if parts else ""

    def tell_long() -> None:
        for label, plan in zip(labels, plans_of(command, groups, settings, always=False), strict=True):
            if plan is not None and (plan.seconds or 0) > 60:
                terminal.note(f"{label}: {plan.text()}{shorter}")

    document: dict[str, Any] = {}
    lost = False
    with compute_on(values["scheduler"], values["workers"], tell_long):
        for label, kept in zip(labels, analyse(command, groups, settings), strict=True):
            kinds = [result.kind for result in kept]
            lost |= any(result.lost for result in kept)
            for number, result in enumerate(kept):
                name = result.data.attrs["run"]
                if values["json"] or values["csv"]:
                    again = f"-{number}" if result.kind in kinds[:number] else ""
                    frames = command.frames(result.kind, result.data) if command.frames else result_tables(result.data)
                    tables = document_of(result, frames, f"{name}-{result.kind}{again}", values["csv"])
                    document.setdefault(label, {}).update(tables if number == 0 else {result.kind + again: tables})
                if not values["json"]:
                    printing.show([*command.results[result.kind](result.data, result.spec), f"{name}: {place(result)}"])
    if values["json"]:
        printing.show((), document, as_json=True)
    fail_if(lost)


def run_experiment(
    command: Experiment, settings: Settings, where: Any, values: Mapping[str, Any], terminal: Terminal
) -> None:
    """Run an experiment on every run, and say what it made, side by side."""
    lake, runs = open_runs(values["path"], values["runs"])  # before seconds are spent on importing torch
    from analyze.cluster import compute_on
    from analyze.tables import fed, result_tables, without_long
    from extract.reenter.planning import trial_plan
    from extract.reenter.running import check_named, reenter, target_of

    check_named(lake, where.checkpoint, "checkpoint")  # what is written wrongly is said before a model is loaded
    check_named(lake, where.base, "base")
    document: dict[str, Any] = {}
    printed: dict[str, list[Printed]] = {}
    plans = {}
    lost = False
    for run in runs:
        target = target_of(command, lake, run, where, terminal)
        if values["plan"]:
            with compute_on():
                plans[run] = command.plan(target, settings) if command.plan else trial_plan(command, target, settings)
            continue
        with compute_on():
            kept = reenter(command, lake, target, settings, where, terminal)
        lost |= kept.lost
        if values["json"] or values["csv"]:
            tables = document_of(kept, result_tables(without_long(kept.data)), f"{run}-{kept.kind}", values["csv"])
            document[run] = {"attrs": dict(kept.data.attrs)} | tables
        printed[run] = [*command.results[kept.kind](kept.data, kept.spec), *fed(kept.data), place(kept)]
    if plans:
        show_plans(plans, values["json"])
    elif values["json"]:
        printing.show((), document, as_json=True)
    else:
        printing.show_by_run(command.name, printed)
    fail_if(lost)


def fail_if(lost: bool) -> None:
    """Have the command fail, once all is printed, where a result should be in the lake and is not, as was said."""
    if lost:
        raise click.exceptions.Exit(1)


def show_plans(plans: Mapping[str, tuple[str, Any]], as_json: bool) -> None:
    """What each run would cost."""
    lines = [f"{label}: {text}" for label, (text, _) in plans.items()]
    printing.show(lines, {label: document for label, (_, document) in plans.items()}, as_json)


def document_of(kept: "Kept", frames: Mapping[str, Any], label: str, folder: Path | None) -> dict[str, Any]:
    """A result for ``--json``; each of its tables also goes as CSV into the folder."""
    from analyze.tables import short_tables

    if folder is not None:
        for name, table in frames.items():
            write_csv(table, folder / f"{label.replace('/', '.').replace(' ', '')}-{name}.csv")
    return {"result": kept.name} | short_tables(frames)


def place(kept: "Kept") -> str:
    """Where a result is."""
    return f"kept as {kept.name}" if kept.name else "not kept"
