"""The command line ``lake``: finds the commands that packages declare, parses, calls, stores and prints."""

import errno
import logging
import sys
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from lake import flags, printing, running
from lake.running import Terminal
from schemas import FORMAT_VERSION, LakeError, UsageError, nearest
from schemas.command import Analysis, Command, Experiment, Settings
from schemas.registry import commands, own_commands


class Stopped(Exception):
    """A command was interrupted from the keyboard; the text says what it leaves behind."""


class Declared(TyperCommand):
    """A command made of a declared one."""

    declared: Command

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Stopped) as error:
            left = self.declared.stopped
            raise Stopped(f"stopped; {left(ctx.params) if callable(left) else left}") from error


def build(declared: Command) -> Declared:
    """The typer command of a declared one."""
    shared: list[type[Settings]] = []
    where, output = [], []
    if isinstance(declared, Analysis | Experiment):
        where = [flags.LAKE, flags.RUNS]
        output = [flags.PLAN] * (declared.plan is not None) + [flags.JSON, flags.CSV]
    if isinstance(declared, Analysis):
        output = [*output, flags.SCHEDULER, flags.WORKERS]
    if isinstance(declared, Experiment):
        from extract.reenter.settings import TargetSettings

        shared = [TargetSettings]

    def called(values: Mapping[str, Any]) -> None:
        values, terminal = dict(values), Terminal(values["context"])
        settings = flags.read(declared.settings, values)
        if isinstance(declared, Analysis):
            running.run_analysis(declared, settings, values, terminal)
        elif isinstance(declared, Experiment):
            running.run_experiment(declared, settings, flags.read(shared[0], values), values, terminal)
        else:
            running.run_command(declared, settings, terminal)

    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    parameters = [flags.CONTEXT, *where, *flags.parameters([declared.settings, *shared]), *output]
    function = flags.with_signature(called, parameters)
    single.command(declared.name, cls=Declared, help=declared.help, context_settings=HELP)(function)
    command = get_command(single)
    assert isinstance(command, Declared)
    command.declared = declared
    return command


class Questions(TyperGroup):
    """A group whose commands are the declared ones of its name, looked for when one is asked for."""

    group_name = ""
    _own: dict[str, Any]
    _built: dict[str, Any]

    @property
    def commands(self) -> MutableMapping[str, Any]:
        """Every command by its name."""
        if not self._built:
            with warnings.catch_warnings(record=True, action="always") as said:
                every = commands() if self.group_name else own_commands()
            for warning in said:
                printing.note(str(warning.message))
            self._built = {each.name: build(each) for each in every if each.group == self.group_name}
        return {**self._own, **self._built}

    @commands.setter
    def commands(self, own: Mapping[str, Any]) -> None:
        self._own, self._built = dict(own), {}


class Analyses(Questions):
    """``lake analyze``."""

    group_name = "analyze"


class Experiments(Questions):
    """``lake reenter``."""

    group_name = "reenter"


HELP = {"help_option_names": ["-h", "--help"]}
GROUP: dict[str, Any] = {
    "invoke_without_command": True,
    "rich_markup_mode": None,
    "context_settings": HELP,
    "add_completion": False,
}
app = typer.Typer(
    cls=Questions, help="Extract a latent-reasoning model's activations once; analyse them offline.",
    pretty_exceptions_enable=False, **GROUP,
)  # fmt: skip
analyze = typer.Typer(cls=Analyses, help="Analyses of stored runs: no model, no GPU.", **GROUP)
reenter = typer.Typer(cls=Experiments, help="Back into the model, with stored activations.", **GROUP)
app.add_typer(analyze, name="analyze")
app.add_typer(reenter, name="reenter")


@analyze.callback()
@reenter.callback()
def help_alone(context: typer.Context) -> None:
    """Without a command: print what commands there are."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.callback()
def begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version of lake and of its format.")] = False,
) -> None:
    """Without a command: print the version if asked, else what commands there are."""
    if version:
        from importlib import metadata  # a tenth of a second that help need not wait for

        typer.echo(f"activation-lake {metadata.version('activation-lake')}, lake format {FORMAT_VERSION}")
        raise typer.Exit()
    help_alone(context)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit 2 for a user's mistake, 1 for a run that failed, each with one line on stderr."""
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False, prog_name="lake")
    except TyperException as error:
        fail(usage(error), 2)
    except Stopped as stop:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it laments reads that were cut short
        fail(str(stop), 130)
    except (typer.Abort, KeyboardInterrupt):
        fail("stopped", 130)
    except LakeError as error:
        fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        kept = "the disk is full; what is committed stays, free some space and run the same command again"
        fail(kept if full else str(error), 1)
    except (RuntimeError, MemoryError) as error:
        from extract.model.device import device_failure

        line = device_failure(error)
        if line is None:
            raise
        fail(f"{line}; what is committed stays, and the same command goes on from there", 1)
    if code == 130:
        fail("stopped before anything was begun", 130)
    sys.exit(code if isinstance(code, int) else 0)


def usage(error: TyperException) -> str:
    """What is wrong with a command as it was typed, and where to look."""
    context = getattr(error, "ctx", None)
    if unknown := getattr(error, "option_name", ""):
        known = [name for parameter in context.command.params for name in parameter.opts] if context else []
        message = f"No such option: {unknown}{nearest(unknown, known)}"
    else:
        message = error.format_message().removesuffix(".")
    return message + (f"; see {context.command_path} --help" if context else "")


def fail(message: str, code: int) -> None:
    """Say what went wrong in one line and leave."""
    sys.stderr.write("lake: " + " ".join(message.split()) + "\n")
    sys.exit(code)
