"""``lake serve`` and ``lake open``."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.command import Command, Output, Settings, Shell, setting
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Settings):
    """Which lake is shown, and to whom."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    host: str = setting(
        "127.0.0.1", "Address to listen at; by default only this machine can connect.", metavar="ADDRESS"
    )
    port: int = setting(8765, "Port; 0 takes one that is free.", least=0)
    token: str | None = setting(
        None,
        "Word that visitors need; by default one is made up if other machines can connect.",
        metavar="WORD",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]+", self.token):
            raise UsageError(
                "--token is empty or has other signs than A-Z, a-z, 0-9 and . _ ~ -; an address holds these"
            )


def serve(settings: ServeSettings, shell: Shell) -> None:
    """Show a lake until interrupted."""
    import secrets

    try:
        import uvicorn

        from analyze.serve.app import LOOPBACK, application
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette", "h11", "anyio"):
            raise
        raise UsageError(
            f"lake serve needs {error.name}, which is not installed; pip install 'activation-lake[serve]'"
        ) from error
    from analyze.serve.answers import Answers
    from analyze.serve.listen import address_of, listening

    token = settings.token or ("" if settings.host in LOOPBACK else secrets.token_urlsafe(16))
    with shell.progress("opening", ""):
        answers = Answers(settings.path)
    socket = listening(settings.host, settings.port)
    place = address_of(settings.host, socket) + (f"?token={token}" if token else "")
    shell.note(f"{settings.path} is at {place} until Ctrl-C; nothing in it is changed")
    config = uvicorn.Config(
        application(answers, token=token), log_level="error", lifespan="off", server_header=False, ws="none",
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[socket])


@dataclass(frozen=True, kw_only=True)
class OpenSettings(Settings):
    """Which report is shown."""

    path: str = setting(help="Folder of a report, or a lake.", metavar="DIR|LAKE", argument=True)
    json: bool = setting(False, "Print the result as JSON.")


def open_report(settings: OpenSettings, shell: Shell) -> Output:
    """Show a report in the browser; of a lake its report beside it, made where there is none that is up to date."""
    import webbrowser

    from analyze.serve.reports import is_report, page_of_lake

    made = False
    page = Path(settings.path)
    if page.is_dir() and is_report(page / "index.html"):
        page = page / "index.html"
    elif not is_report(page):
        page, made = page_of_lake(settings.path, shell)
    shown = webbrowser.open(page.resolve().as_uri())
    printed = [str(page)] + ([] if shown else ["no browser can be opened from here: open that file in one"])
    return Output(printed=printed, document={"page": str(page), "made": made, "shown": shown})


def stopped(values: Any) -> str:
    """What an interrupted command leaves."""
    return "its report, if it was being made, is not finished: the same command makes it"


COMMANDS = (
    Command(
        name="serve",
        help="Show a whole lake in the browser: every problem, head, feature and result, read when it is asked for.",
        settings=ServeSettings,
        run=serve,
        stopped="the lake was only read",
    ),
    Command(
        name="open",
        help="Show a report in the browser; of a lake its report in LAKE-report beside it, made anew where it is old.",
        settings=OpenSettings,
        run=open_report,
        stopped=stopped,
    ),
)
