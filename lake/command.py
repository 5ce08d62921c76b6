"""``lake demo``: the one command that needs both extraction and analysis."""

import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path

from lake import printing
from schemas import LakeError
from schemas.command import Command, Output, Settings, Shell, setting

KEPT = "{} keeps its shards and results: the same command takes up the extractions"


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Where the demo puts what it makes."""

    out: Path = setting(Path("demo.lake"), "Lake to make.", metavar="PATH")
    report: Path = setting(Path("demo-report"), "Folder of the report.", metavar="DIR")


def demo(settings: DemoSettings, shell: Shell) -> Output:
    """Run each line of ``demo.txt`` as a command of its own: extract once, analyse, re-enter, compare, report.

    The file's paragraphs are what comes first, the long analyses, the experiments, and what needs all of them.
    Analyses and experiments do not wait for each other: a second process runs the experiments meanwhile, and what it
    prints follows when the analyses are done.
    """
    lake = str(settings.out)
    with tempfile.TemporaryDirectory() as data:
        places = {"LAKE": lake, "REPORT": str(settings.report), "DATA": data}
        text = Path(__file__).with_name("demo.txt").read_text(encoding="utf-8")
        first, analyses, experiments, last = (
            [[re.sub("[A-Z]{4,}", lambda name: places[name[0]], word) for word in line.split()] for line in lines]
            for lines in map(str.splitlines, text.split("\n\n"))
        )
        run_in_order(first)
        beside = get_context("spawn").Process(target=run_apart, args=(experiments, data))
        beside.start()
        try:
            run_in_order(analyses)
            beside.join()
        finally:
            beside.kill()
        for words, (out, err) in zip(experiments, files_of(data), strict=False):
            if out.exists():
                show_command(words)
                sys.stdout.write(out.read_text(encoding="utf-8"))
                sys.stderr.write(err.read_text(encoding="utf-8"))
        if beside.exitcode:
            raise LakeError(f"the process of the experiments ended with {beside.exitcode}; {KEPT.format(lake)}")
        run_in_order(last)
    made = f"\nlake:   {lake}\nreport: {settings.report / 'index.html'}"
    return Output(printed=[made, f"open:   xarray.open_zarr({lake!r}, group='small-gpt2/test', consolidated=False)"])


def run_in_order(commands: Sequence[Sequence[str]]) -> None:
    """Print and run commands, one after another."""
    from lake import app

    for words in commands:
        show_command(words)
        app(args=list(words), standalone_mode=False)


def show_command(words: Sequence[str]) -> None:
    """Print a command as it would be typed."""
    printing.console.print(f"\n$ lake {shlex.join(words)}", style="bold")


def run_apart(commands: Sequence[Sequence[str]], folder: str) -> None:
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
    help="Both small models and their decodable twins, end to end: problems, lake, every analysis, report.",
    settings=DemoSettings,
    run=demo,
    stopped=lambda values: KEPT.format(values["out"]),
)
