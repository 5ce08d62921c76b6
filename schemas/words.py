"""Words of commands as they are stored with results and printed: the lake and the runs put in, options counted."""

import shlex
from collections.abc import Iterable, Sequence

PATH, RUNS = "PATH", "RUNS"
"""Words of a stored or printed command that stand for the lake, wherever it lies, and for the runs."""

OUTPUT = ("--json", "--csv", "--save", "--graph", "--scheduler", "--workers")
"""Options that say where a result is shown or by whom it is computed; a stored command goes without them."""
WHERE = ("--device", "--batch-rows", "--checkpoint", "--base")
"""Options that say where the model is and runs."""


def filled(command: str | Sequence[str], location: object, runs: Iterable[str] = ()) -> str:
    """A command with the lake and the runs put in, as a shell takes it.

    Parameters
    ----------
    command
        Text, or words, with ``PATH`` and ``RUNS``.
    location
        Folder or URL of the lake.
    runs
        Names; none: all of the lake.
    """
    words = shlex.split(command) if isinstance(command, str) else command
    places = {PATH: [str(location)], RUNS: list(runs)}
    return shlex.join(filling for word in words for filling in places.get(word, [word]))


def n_option(command: Sequence[str]) -> int:
    """Options of a command that are not at their default and decide what comes out."""
    return sum(word.startswith("--") and word not in WHERE for word in command)
