"""The commands there are: those of the packages here, found by their folders, and those that other packages bring.

Another package brings a question by an entry point of the group ``activation_lake.analyses`` or
``activation_lake.experiments`` whose value names a package with a module ``command``, and where it has one ``section``.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from schemas.command import Analysis, Command, Experiment
from schemas.errors import LeftOutWarning, line_of

PACKAGES = ("lake", "store", "extract", "analyze")
ENTRY_POINTS = ("activation_lake.analyses", "activation_lake.experiments")


@cache
def modules(name: str) -> tuple[str, ...]:
    """Modules of our packages called so, or ending in ``_NAME``: ``command``, ``section``."""
    modules = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            root = Path(folder)
            for path in sorted({*root.rglob(f"{name}.py"), *root.rglob(f"*_{name}.py")}):
                modules.append(".".join((package, *path.relative_to(root).with_suffix("").parts)))
    return tuple(modules)


@cache
def foreign() -> dict[str, str]:
    """Packages of others that bring a question: the package, and the distribution it comes from."""
    from importlib.metadata import entry_points  # a tenth of a second that the help of lake itself need not wait for

    points = [point for group in ENTRY_POINTS for point in entry_points(group=group)]
    return {point.value: f"{point.group}: {point.name}" for point in points}


@cache
def own_commands() -> tuple[Command, ...]:
    """The commands of our packages, each group by name."""
    declared = [command for module in modules("command") for command in _commands_of(module)]
    return tuple(sorted(declared, key=lambda command: (command.group, command.name)))


@cache
def commands() -> tuple[Command, ...]:
    """Every command, ours before those of others, each group by name.

    A package of others that cannot be imported, or whose command there is already, is left out with a warning: what it
    brings must not cost what there is.
    """
    every = list(own_commands())
    for package, origin in foreign().items():
        try:
            brought = _commands_of(f"{package}.command")
        except Exception as error:  # whatever another package may raise
            why = f"{origin} is left out: importing {package}.command: {error}"
            warnings.warn(why, LeftOutWarning, stacklevel=2)
            continue
        for command in brought:
            if any((command.group, command.name) == (other.group, other.name) for other in every):
                why = f"{origin} is left out: there is a command {command.name} already"
                warnings.warn(why, LeftOutWarning, stacklevel=2)
            else:
                every.append(command)
    return tuple(sorted(every, key=lambda command: (command.group, command.name)))


def _commands_of(module: str) -> list[Command]:
    loaded = importlib.import_module(module)
    several: Iterable[Command] = getattr(loaded, "COMMANDS", ())
    return [*several, *([loaded.COMMAND] if hasattr(loaded, "COMMAND") else [])]


@cache
def by_kind() -> dict[str, Analysis | Experiment]:
    """The command that makes each kind of stored result."""
    return {
        kind: command
        for command in commands()
        if isinstance(command, Analysis | Experiment)
        for kind in command.results
    }


def foreign_failure(error: BaseException) -> str | None:
    """One line about code of another package in which something failed; ``None`` if none of it was at work."""
    for package, origin in foreign().items():
        if place := line_of(error, package):
            return f"{origin} failed, {place}: {type(error).__name__}: {error}"
    return None


def line(kind: str, options: str = "") -> str:
    """The command that makes a kind of result, ``PATH`` for the lake and ``RUNS`` for its runs; ``""``: none known."""
    command = by_kind().get(kind)
    if command is None:
        return ""
    made_by = command.made_by.get(kind, "")
    words = ["lake", command.group, command.name, "PATH", "RUNS", made_by if made_by not in options else "", options]
    return " ".join(word for word in words if word)
