"""How the shell runs a declared command: settings in, results into the lake, tables out."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import typer

from lake import printing
from schemas import UsageError
from schemas.command import Analysis, Command, Experiment, Made, Output, Printed, Settings
from schemas.words import OUTPUT, PATH


class Terminal:
    """What a command may ask of the shell, see :class:`schemas.command.Shell`."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def note(self, text: str) -> None:
        """Say something on standard error, once."""
        printing.note(" ".join(text.split()))

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
    """Run an analysis over each run or over all together, keep what it makes, and print it."""
    from analyze.cluster import compute_on
    from analyze.source import Source, remove_folder, working_folder

    lake, runs = open_runs(values["path"], values["runs"])
    parts, spec = parts_of(lake, runs, settings)
    sources = {
        run: Source(
            lake=lake,
            run=run,
            data=parts[run],
            shell=terminal,
            folder=working_folder(lake, command.name, run),
        )
        for run in runs
    }
    together = command.together(settings) if callable(command.together) else command.together
    document: dict[str, Any] = {}
    with compute_on(values["scheduler"], values["workers"]):
        for group in [runs] if together else [[run] for run in runs]:
            chosen = [sources[run] for run in group]
            asked = chosen if together else chosen[0]
            label = " + ".join(group)
            if values.get("plan") and command.plan is not None:
                text, document[label] = command.plan(asked, settings)
                printing.show([] if values["json"] else [f"{label}: {text}"])
                continue
            made = command.run(asked, settings)
            made = made if isinstance(made, list) else [Made(next(iter(command.results)), made)]
            document[label] = _keep(command, lake, group, made, spec, values, terminal)
            for source in chosen:
                remove_folder(source.folder)
    if values["json"]:
        printing.show_json(document)


def parts_of(lake: Any, runs: Sequence[str], settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an analysis reads of each run, all checked before the first is read; and the settings to be stored."""
    from analyze.labels import part_of

    asked = {name: getattr(settings, name, None) for name in settings.part}
    parts = {run: part_of(lake[run], **asked) for run in runs}
    spec = settings.spec()
    first = parts[runs[0]]  # its order: results of the same part have the same settings
    spec |= {f"{dim}s": first[dim].values.tolist() for dim in ("layer", "position") if asked.get(f"{dim}s")}
    return parts, spec


def _keep(
    command: Analysis,
    lake: Any,
    runs: Sequence[str],
    made: Sequence[Made],
    spec: Mapping[str, Any],
    values: Mapping[str, Any],
    terminal: Terminal,
) -> dict[str, Any]:
    """Store results of one run or group, print them, and return them for ``--json``."""
    from analyze.source import keep, short_tables
    from analyze.tables import result_tables

    label = " + ".join(runs)
    document: dict[str, Any] = {}
    for number, result in enumerate(made):
        stored = {**spec, **result.spec}
        dataset = result.data.assign_attrs(run=label)
        name = keep(lake, result.kind, dataset, runs, stored, terminal)
        frames = command.frames(result.kind, dataset) if command.frames else result_tables(dataset)
        suffix = "" if result.kind not in [other.kind for other in made[:number]] else f"-{number}"
        if values["csv"] is not None:
            printing.write_csv(values["csv"], f"{label}-{result.kind}{suffix}", frames)
        told = {"result": name} | short_tables(frames)
        document |= told if number == 0 else {result.kind + suffix: told}
        if not values["json"]:
            printing.show([*command.results[result.kind](dataset, stored), f"{label}: {kept(name)}"])
    return document


def kept(name: str | None) -> str:
    """Where a result is."""
    return f"kept as {name}" if name else "not kept"


def run_experiment(
    command: Experiment, settings: Settings, shared: Any, values: Mapping[str, Any], terminal: Terminal
) -> None:
    """Run an experiment on every run, keep its results, and print them side by side."""
    from analyze.source import fed, keep, remove_folder, short_tables, working_folder
    from analyze.tables import result_tables
    from extract.reenter.target import open_target

    lake, runs = open_runs(values["path"], values["runs"])
    kind = next(iter(command.results))
    for what in ("checkpoint", "base"):
        for run in runs:  # what is written wrongly is said before a model is loaded
            for_model(getattr(shared, what), run, what)
    document: dict[str, Any] = {}
    printed: dict[str, list[Printed]] = {}
    for run in runs:
        target = open_target(
            lake,
            run,
            checkpoint=for_model(shared.checkpoint, run, "checkpoint"),
            base=for_model(shared.base, run, "base"),
            device=shared.device,
            compute_dtype=shared.compute_dtype,
            lora_alpha=shared.lora_alpha,
            limit=shared.limit,
        )
        if target.compute_dtype != target.made_in:
            terminal.note(f"{run} was computed in {target.made_in}; the model goes on in {target.compute_dtype}")
        target.rule, target.batch_rows = shared.rule, shared.batch_rows
        if values.get("plan") and command.plan is not None:
            text, document[run] = command.plan(target, settings)
            printing.show([] if values["json"] else [f"{run}: {text}"])
            continue
        target.folder = working_folder(lake, f"reenter.{kind}", run)
        with printing.progress(f"{command.name} {run}", "rows") as report:
            target.progress = report
            result = command.run(target, settings)
        stored = settings.spec() | shared.spec() | {"compute_dtype": target.compute_dtype}
        result = result.assign_attrs(compute_dtype=target.compute_dtype, device=target.reasoner.device.type)
        name = keep(lake, kind, result, [run], stored, terminal)
        remove_folder(target.folder)
        brief = result.drop_vars([key for key, each in result.variables.items() if "example" in each.dims])
        tables = result_tables(brief)
        if values["csv"] is not None:
            printing.write_csv(values["csv"], f"{run}-{kind}", tables)
        document[run] = {"result": name, "attrs": dict(result.attrs)} | short_tables(tables)
        printed[run] = [*command.results[kind](result, stored), *fed(result), kept(name)]
    if values["json"]:
        printing.show_json(document)
    elif printed:
        printing.show_by_run(command.name, printed)


def for_model(values: Sequence[str], run: str, what: str) -> str | None:
    """The value for a run's model among ``[NAME=]VALUE``."""
    model, chosen = run.partition("/")[0], None
    for value in values:
        name, sign, rest = value.partition("=")
        if sign and not (name and rest):
            raise UsageError(f"--{what} {value!r} is not of the form [NAME=]VALUE")
        if not sign or name == model:
            chosen = rest or value
    return chosen
