"""Commands that make results, as the page, ``lake verify`` and errors print them: by the kind of result, said once."""

import shlex
from collections.abc import Iterable, Sequence

PATH, RUNS = "PATH", "RUNS"
"""Words of a stored or printed command that stand for the lake, wherever it lies, and for the runs."""

COMMANDS: dict[str, str] = {
    "heads": "lake analyze heads PATH RUNS",
    "head_summary": "lake analyze heads PATH RUNS",
    "attention": "lake analyze attention PATH RUNS",
    "lens": "lake analyze lens PATH RUNS",
    "lens_tests": "lake analyze lens PATH RUNS",
    "tuned_lens": "lake analyze lens PATH RUNS --tuned",
    "correlate": "lake analyze correlate PATH RUNS --importance corrupt:failure",
    "probes": "lake analyze probes PATH RUNS",
    "sae": "lake analyze sae PATH RUNS",
    "errors": "lake analyze errors PATH RUNS",
    "compare": "lake analyze compare PATH RUNS",
    "ablate": "lake reenter ablate PATH RUNS",
    "corrupt": "lake reenter corrupt PATH RUNS",
    "patch": "lake reenter patch PATH RUNS",
    "ablate_heads": "lake reenter heads PATH RUNS",
    "edges": "lake reenter edges PATH RUNS",
    "steer": "lake reenter steer PATH RUNS",
    "gradients": "lake reenter gradients PATH RUNS",
    "sweep": "lake reenter sweep PATH RUNS",
}
"""Command that makes each kind of result with its default settings."""

STEERING_UNIT = "standard deviations of the states"
"""Unit of a steering strength, which scales every direction to one of them at its layer and position."""

OUTPUT = ("--json", "--csv", "--save", "--scheduler", "--workers")
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
    return shlex.join(each for word in words for each in places.get(word, [word]))


def n_option(command: Sequence[str]) -> int:
    """Options of a command that are not at their default and decide what comes out."""
    return sum(word.startswith("--") and word not in WHERE for word in command)
