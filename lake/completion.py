"""Completion of commands, flags, their choices, lakes and runs by the shell."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from schemas import UsageError

if TYPE_CHECKING:
    from store import Lake

PLACES = {
    "bash": ".local/share/bash-completion/completions/lake",
    "fish": ".config/fish/completions/lake.fish",
    "zsh": ".zfunc/_lake",
}
"""Where a shell looks for completions of a command, below the home folder."""
ZSH = "; say `fpath+=~/.zfunc; autoload -Uz compinit; compinit` in ~/.zshrc"


def install_completion(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Write the completion of the shell at work where it looks for it.

    Raises
    ------
    UsageError
        If the shell is none of those that can be completed.
    """
    if not wanted or context.resilient_parsing:
        return
    shell = Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell)
    if shell not in PLACES or kind is None:
        raise UsageError(f"SHELL is {shell or 'not set'}; completion is there for {', '.join(PLACES)}")
    place = Path.home() / PLACES[shell]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(kind(context.command, {}, "lake", "_LAKE_COMPLETE").source(), encoding="utf-8")
    click.echo(f"completion for {shell} is in {place}{ZSH if shell == 'zsh' else ''}; open a new shell")
    context.exit()


def folders(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders, as the shell finds them."""
    return [CompletionItem(incomplete, type="dir")]


def runs(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Runs of the lake that was named before."""
    return _named(context, incomplete, lambda lake: lake.runs())


def results(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kinds of stored results, their runs and their names, of the lake that was named before."""
    return _named(context, incomplete, _words_of_results)


def runs_and_results(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever of the lake that was named before has a name."""
    return _named(context, incomplete, lambda lake: [*lake.runs(), *_words_of_results(lake)])


def _words_of_results(lake: "Lake") -> list[str]:
    stored = lake.results()
    return [word for result in stored for word in (result.kind, *result.runs)] + [result.name for result in stored]


def _named(
    context: click.Context, incomplete: str, names_of: Callable[["Lake"], Sequence[str]]
) -> list[CompletionItem]:
    from schemas import LakeError
    from store import open_lake

    path = next((context.params[name] for name in ("path", "lake", "first") if context.params.get(name)), None)
    try:
        names = names_of(open_lake(path)) if path else ()
    except (LakeError, OSError):
        return []  # a shell that completes has no place for errors
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]


def choices(words: Sequence[Any]) -> Any:
    """Completion by the values that a flag may have."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(before + comma + str(word)) for word in words if str(word).startswith(last)]

    return complete
