"""``lake merge``."""

from dataclasses import asdict, dataclass

from schemas.command import Command, Output, Settings, Shell, Table, setting


@dataclass(frozen=True, kw_only=True)
class MergeSettings(Settings):
    """Which lakes become one."""

    lakes: tuple[str, ...] = setting(help="Lakes that are copied: folders or URLs.", metavar="PATH...", argument=True)
    into: str = setting(help="Lake that gets everything; made where there is none.", metavar="PATH")
    json: bool = setting(False, "Print the result as JSON.")


def merge_lakes(settings: MergeSettings, shell: Shell) -> Output:
    """Copy what is not there yet."""
    from store import merge, open_lake

    sources = [open_lake(path) for path in settings.lakes]
    with shell.progress("merge", "groups") as report:
        merged = merge(sources, settings.into, report)
    rows = [[run.name, run.source, run.copied, run.there, run.kept or ""] for run in merged]
    columns = ["model, run or result", "of", "copied", "there already", "kept as it was there, other bytes"]
    return Output(
        printed=[Table(title=f"merged into {settings.into} (of runs, shards)", columns=columns, rows=rows)],
        document=[asdict(run) for run in merged],
    )


COMMAND = Command(
    name="merge",
    help="Copy lakes into one, checked: models of one name with other weights, and runs made otherwise, are refused.",
    settings=MergeSettings,
    run=merge_lakes,
    stopped="what was copied is there, and the same command goes on",
)
