"""``lake report``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.command import Command, Output, Settings, Shell, setting


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """What the page is about, and where it goes."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    out: Path = setting(help="Folder for the page, its figures and tables.", metavar="DIR")
    runs: tuple[str, ...] = setting((), "Runs, MODEL/DATASET; all if none is named.", metavar="[RUN]...", argument=True)
    problems: int = setting(40, "Number of problems of each run that can be picked on the page.", least=0)
    seed: int = setting(0, "Seed of what is drawn.", least=0)
    plan: bool = setting(False, "Only say what the command would take, in time and memory.")
    json: bool = setting(False, "Print the result as JSON.")


def write(settings: ReportSettings, shell: Shell) -> Output:
    """Write the page and say what is on it."""
    from analyze.report import build_report

    if settings.plan:
        return plan(settings)
    with shell.progress("report", "sections") as progress:
        made = build_report(
            settings.path, settings.out, runs=settings.runs or None, n_problem=settings.problems, seed=settings.seed,
            progress=progress,
        )  # fmt: skip
    if not settings.json:
        for run, n_problem in made.problems.items():
            if n_problem < settings.problems:
                shell.note(
                    f"{run}: {n_problem} problems can be picked, not {settings.problems}; the runs over this data have"
                    " no more in common"
                )
    lines = [f"{made.page}: {made.page_bytes / 1e6:.1f} MB, {made.n_figure} figures, {made.n_table} tables"]
    if made.missing:
        lines.append(f"not in the lake: {', '.join(made.missing)}; the page says which command makes each")
    lines += [f"could not be read: {slug}: {why}" for slug, why in made.broken.items()]
    return Output(printed=lines, document={key: getattr(made, key) for key in made.__slots__})


def plan(settings: ReportSettings) -> Output:
    """What the page would take."""
    from analyze.report.planning import plan_report
    from schemas import UsageError
    from store import open_lake

    lake = open_lake(settings.path)
    runs = list(settings.runs or lake.runs())
    if not runs:
        raise UsageError(f"{settings.path} has no runs to report on; make one with lake extract")
    made = plan_report(lake, runs, n_problem=settings.problems, seed=settings.seed)
    return Output(printed=[made.text()], document=made.document())


def stopped(values: Mapping[str, Any]) -> str:
    """What an interrupted command leaves."""
    return f"{values['out']} has part of the figures and no new page: the same command makes them all"


COMMAND = Command(
    name="report",
    help="Write one self-contained page of everything the lake knows, with its figures (PNG, SVG) and tables (CSV).",
    settings=ReportSettings,
    run=write,
    stopped=stopped,
)
