"""``lake push``."""

from dataclasses import asdict, dataclass

from schemas.command import Command, Output, Settings, Shell, Table, setting


@dataclass(frozen=True, kw_only=True)
class PushSettings(Settings):
    """Which lake goes where."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    to: str = setting(
        help="Where it goes: s3://.., gs://.., az://.., hf://.. or a folder.", metavar="URL", argument=True
    )
    runs: tuple[str, ...] = setting(
        (),
        "Runs that are copied, with their models and results; all if none is named.",
        metavar="[RUN]...",
        argument=True,
    )
    json: bool = setting(False, "Print the result as JSON.")


def push_lake(settings: PushSettings, shell: Shell) -> Output:
    """Send what is not there yet, and check all that is."""
    from store import open_lake, push

    lake = open_lake(settings.path)
    with shell.progress("push", "files") as report:
        pushed = push(lake, settings.to, settings.runs, report)
    row = [f"{pushed.sent} ({pushed.sent_bytes / 1e6:,.1f} MB)", pushed.there, pushed.checked]
    title = f"{settings.path} is at {settings.to}, every byte checked there"
    return Output(
        printed=[Table(title=title, columns=["files sent", "there already", "checked"], rows=[row])],
        document=asdict(pushed),
    )


COMMAND = Command(
    name="push",
    help="Copy a lake to a bucket, a hub or a folder, and check every byte there; it is a lake only once all is right.",
    settings=PushSettings,
    run=push_lake,
    stopped="what was sent is there, and the same command goes on",
)
