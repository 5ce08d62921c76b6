"""``lake demo``: the one command that needs both extraction and analysis."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from lake import printing
from schemas.command import Command, Output, Settings, Shell, setting


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Where the demo puts what it makes."""

    out: Path = setting(Path("demo.lake"), "Lake to make.", metavar="PATH")
    report: Path = setting(Path("demo-report"), "Folder of the report.", metavar="DIR")


def demo(settings: DemoSettings, shell: Shell) -> Output:
    """Run each line of ``demo.txt`` as a command of its own: extract once, analyse, re-enter, compare, report."""
    from lake import app

    lake, report = str(settings.out), str(settings.report)
    steps = Path(__file__).with_name("demo.txt").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as data:
        for step in steps:
            words = [{"LAKE": lake, "REPORT": report}.get(word, word.replace("DATA", data)) for word in step.split()]
            shown = step.replace("LAKE", lake).replace("REPORT", report)
            printing.console.print(f"\n$ lake {shown}", style="bold")
            app(args=words, standalone_mode=False)
    made = f"\nlake:   {lake}\nreport: {settings.report / 'index.html'}"
    return Output(printed=[made, f"open:   xarray.open_zarr({lake!r}, group='small-gpt2/test', consolidated=False)"])


COMMAND = Command(
    name="demo",
    help="Both small models and their decodable twins, end to end: problems, lake, every analysis, report.",
    settings=DemoSettings,
    run=demo,
    stopped=lambda values: f"{values['out']} keeps its shards and results: the same command takes up the extractions",
)
