"""The shell: finds the commands that packages declare, parses, calls, stores and prints."""

import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from lake import completion, flags, printing, running, stopping
from lake.running import Terminal
from schemas import FORMAT_VERSION, LakeError, LeftOutWarning, UsageError
from schemas.command import Analysis, Command, Experiment
from schemas.errors import OTHER_DISK
from schemas.registry import commands, foreign_failure, own_commands
from schemas.whole_files import check_folder

UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.EFBIG)
"""Errors of a disk that can no longer be written to."""
NO_PLACE = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""Errors of a path at which nothing can be made, such as one below a file."""
ANOTHER_PLACE = "; name another place"
SCARCE = ("can't start new thread", "failed to map segment", "annot allocate memory", "size calculation overflowed")
"""Parts of the messages of a system that has no memory left for a thread or a library."""


class Stopped(Exception):
    """A command was interrupted from the keyboard; the text says what it leaves behind."""


class Declared(click.Command):
    """The click command of a declared one."""

    def __init__(self, declared: Command) -> None:
        self.declared = declared
        self.settings = [declared.settings]
        if isinstance(declared, Experiment):
            from extract.reenter.settings import TargetSettings

            self.settings.append(TargetSettings)
        parameters = flags.parameters(self.settings)
        if isinstance(declared, Analysis | Experiment):
            plan = [flags.PLAN] if isinstance(declared, Experiment) or declared.cost is not None else []
            parameters = [flags.LAKE, flags.RUNS, *parameters, *plan, flags.JSON, flags.CSV]
        if isinstance(declared, Analysis):
            parameters += [flags.SCHEDULER, flags.WORKERS]
        whole = declared.help  # click cuts it in lists of commands, unless it is given as the short one, too
        super().__init__(declared.name, params=parameters, help=whole, short_help=whole, context_settings=HELP)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, and what every command takes; what is said beside the results is no setting of theirs."""
        return [*super().get_params(ctx), flags.QUIET, flags.VERBOSE]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; of a flag that takes one value and is given twice the first would be lost, so that is refused."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        flags.check_once(ctx, given)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> None:
        """Run it."""
        with (
            printing.level(ctx.params.pop("quiet"), ctx.params.pop("verbose")),
            printing.measured(ctx.command_path),
        ):
            self.run(ctx)

    def run(self, ctx: click.Context) -> None:
        """Run it with its settings, and say what it leaves behind where it is stopped."""
        declared, terminal = self.declared, Terminal(self.declared, ctx)
        try:
            settings, *target = [flags.read(kind, ctx.params) for kind in self.settings]
            if ctx.params.get("plan") and ctx.params.get("csv"):
                raise UsageError("--csv does nothing with --plan, which computes no tables; leave one of them out")
            if isinstance(declared, Analysis | Experiment) and ctx.params["csv"] is not None:
                check_folder(ctx.params["csv"])
            if isinstance(declared, Analysis):
                running.run_analysis(declared, settings, ctx.params, terminal)
            elif isinstance(declared, Experiment):
                running.run_experiment(declared, settings, target[0], ctx.params, terminal)
            else:
                running.run_command(declared, settings, terminal)
        except (KeyboardInterrupt, click.Abort, Stopped) as error:
            left = declared.stopped
            raise Stopped(f"stopped; {left(ctx.params) if callable(left) else left}") from error


class Questions(click.Group):
    """A group of the declared commands that name it, looked for when one is asked for; alone it prints its help."""

    def __init__(self, name: str, help: str) -> None:
        super().__init__(
            name, help=help, short_help=help, callback=help_alone, invoke_without_command=True, context_settings=HELP
        )
        self.complete = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order in which they were found."""
        if not self.complete:
            with warnings.catch_warnings(record=True, action="always") as warned:
                declared = own_commands() if self is app else commands()
            for warning in warned:
                printing.note(str(warning.message))
            group = "" if self is app else self.name
            self.commands.update({named.name: Declared(named) for named in declared if named.group == group})
            self.complete = True
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name."""
        self.list_commands(ctx)
        return super().get_command(ctx, cmd_name)


@click.pass_context
def help_alone(context: click.Context) -> None:
    """Without a command: print what commands there are."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


HELP = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 160}
app = Questions("lake", "Extract a latent-reasoning model's activations once; analyse them offline.")
app.add_command(Questions("analyze", "Analyses of stored runs: no model, no GPU."))
app.add_command(Questions("reenter", "Experiments: run the model again, with stored activations put in."))
click.version_option(
    package_name="activation-lake",
    message=f"%(package)s %(version)s, lake format {FORMAT_VERSION}",
    help="Print the version of lake and of its format.",
)(app)
app.params.append(
    click.Option(
        ["--install-completion"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=completion.install_completion,
        help="Let this user's shell complete commands, flags, lakes and runs.",
    )
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit 2 for a user's mistake, 1 for a run that failed, each with one line on stderr."""
    if arguments is not None:
        _run(arguments)
    if not _place_is_there():
        fail("the folder in which this was started is not there any more; go to one that is", 2)
    stopping.outlive_terminal()  # the process is this command's alone
    stopping.catch_signals()
    warnings.showwarning = partial(show_warning, warnings.showwarning)
    try:
        _run(None)
    except SystemExit as left:
        stopping.end(left.code)
        raise


def _place_is_there() -> bool:
    """Whether the current folder exists; without it, libraries that look for files from there end the process."""
    try:
        return Path.cwd().is_dir()
    except OSError:
        return False


def show_warning(usual: Callable[..., None], message: Warning | str, *place: Any, **others: Any) -> None:
    """Say in a line what of another package is left out; all else as Python does."""
    if isinstance(message, LeftOutWarning):
        printing.note(str(message))
    else:
        usual(message, *place, **others)


def _run(arguments: Sequence[str] | None) -> NoReturn:
    """Run a command, and leave."""
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False, prog_name="lake")
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        see = f"; see {context.command_path} --help" if context else ""
        fail(error.format_message().removesuffix(".") + see, 2)
    except Stopped as stop:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it laments reads that were cut short
        fail(str(stop), stopping.status())
    except (click.Abort, KeyboardInterrupt):
        fail("stopped before anything was begun", stopping.status())
    except LakeError as error:
        fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except Exception as error:
        from store.location import remote_failure

        line = remote_failure(error, sys.argv if arguments is None else arguments) or machine_failure(error)
        if line is None and (foreign := foreign_failure(error)):
            line = f"{foreign}; -v shows how it came there, results kept before stay"
        if line is None:
            raise
        fail(line, 2 if line.endswith(ANOTHER_PLACE) else 1)
    sys.exit(code if isinstance(code, int) else 0)


def machine_failure(error: Exception) -> str | None:
    """One line about memory, a disk or a device that failed; ``None`` if that is not what happened."""
    without_torch = isinstance(error, MemoryError) and "torch" not in sys.modules  # for which there may be no room
    scarce = isinstance(error, OSError | ImportError | RuntimeError) and any(mark in str(error) for mark in SCARCE)
    if without_torch or scarce:
        said = str(error) or "no more of it"
        return f"memory is too small, or limited (ulimit -v, ulimit -u): {said}; what is committed stays"
    if from_library := re.search(r"\(os error (\d+)\)", str(error)):  # as those in Rust say it, in errors of their own
        error = OSError(int(from_library[1]), os.strerror(int(from_library[1])))
    elif "unexpected pos" in str(error):  # PyTorch's writer
        error = OSError(errno.ENOSPC, str(error))
    elif loop := re.match("Symlink loop from '(.*)'", str(error)):  # pathlib's resolve, before Python 3.13
        error = OSError(errno.ELOOP, os.strerror(errno.ELOOP), loop[1])
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full; what is committed stays, free some space and run the same command again"
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error) or type(error).__name__
        if error.errno == errno.EXDEV:
            return f"{what}: {OTHER_DISK}"
        if error.errno in NO_PLACE:
            return f"{what}{ANOTHER_PLACE}"
        hint = "; what is committed stays, mend that and run the same command again"
        return what + (hint if error.errno in UNUSABLE else "")
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    from extract.model.device import device_failure

    line = device_failure(error)
    return line and f"{line}; what is committed stays, and the same command goes on from there"


SECRET = re.compile(r"(://)[^/@\s]+(?=@)|(://[^\s?]*\?)[^\s;,']+")
"""Credentials in an address: a name and password before its host, and what follows a ``?``."""


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong in one line and leave; what would move the cursor or colour the terminal is written out."""
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(message.split()))
    line = SECRET.sub(lambda found: f"{found[1] or found[2]}***", line)
    sys.stderr.write(f"lake: {line}\n")
    sys.exit(code)
