"""``lake batch``: several extractions from one plan file."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from schemas import LakeError
from schemas.command import Command, Output, Printed, Settings, Shell, setting


@dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """Which runs are extracted."""

    plan: str = setting(
        help="TOML file: settings of lake extract for all runs, and tables [[run]] with those of each.",
        metavar="PLAN.toml",
        argument=True,
    )
    json: bool = setting(False, "Print the result as JSON.")


@dataclass(frozen=True, slots=True)
class _OneRun:
    """The shell as one of the runs sees it: it is as if ``lake extract`` had been typed for that one."""

    shell: Shell
    typed: list[str]

    def note(self, text: str) -> None:
        self.shell.note(text)

    def progress(self, label: str, unit: str = "") -> AbstractContextManager[Callable[..., None]]:
        return self.shell.progress(label, unit)

    def confirm(self, question: str) -> bool:
        return self.shell.confirm(question)

    def words(self, runs: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
        return self.typed


def extract_batch(settings: BatchSettings, shell: Shell) -> Output:
    """Extract every run of a plan, one after the other; what is there already is kept."""
    from extract.run.batch import check_data, read_plan, words_of
    from extract.run.command import extract_run

    runs = read_plan(settings.plan)
    check_data(runs)
    printed: list[Printed] = []
    documents: list[Any] = []
    for run in runs:
        try:
            done = extract_run(run, _OneRun(shell, words_of(run)))
        except LakeError as error:
            return Output(printed=printed, document=documents, failure=error)
        printed += done.printed[:1]
        documents.append(done.document)
    return Output(printed=printed, document=documents)


COMMAND = Command(
    name="batch",
    help="Run several models over several data sets, as a TOML file says.",
    settings=BatchSettings,
    run=extract_batch,
    stopped="runs and shards that are committed stay, and the same command goes on after them",
)
