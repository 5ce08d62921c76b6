"""Commands as they are typed for runs of a lake."""

import shlex
from collections.abc import Iterator, Sequence

from schemas import filled
from store import Lake

OWN = "own"
"""Protocol of models that only code of one's own runs."""


def typed(lake: Lake, command: str, location: object, runs: Sequence[str]) -> str:
    """A command with the lake and the runs put in, and where their models lie if it goes back into them.

    A lake remembers only the name of a model's folder; where it lay when the run was made is in the run's own command.
    ``command`` has ``PATH`` and ``RUNS`` for the ``location`` and the ``runs``. Empty if only code of one's own runs
    their models: ``reenter`` cannot.
    """
    if not command.startswith("lake reenter "):
        return filled(command, location, runs)
    kept = [run for run in runs if _protocol(lake, run) != OWN]
    if not kept:
        return ""
    for option in ("checkpoint", "base"):
        for place in dict.fromkeys(place for run in kept for place in _places(lake, run, option)):
            command += f" --{option} {shlex.quote(place)}"
    return filled(command, location, kept)


def _protocol(lake: Lake, run: str) -> str:
    """Of a run's model; of a name that stands for any run, the one that all models have."""
    models = lake.models()
    named = run.partition("/")[0]
    models = [named] if named in models else models
    found = {str(lake.model_attributes(model).get("protocol", "")) for model in models}
    return found.pop() if len(found) == 1 else ""


def _places(lake: Lake, run: str, option: str) -> Iterator[str]:
    """``MODEL=PLACE`` where the model's own attribute is not what was typed."""
    model = run.partition("/")[0]
    if run not in lake.runs():
        return
    words = lake.attributes(run).get("provenance", {}).get("command", [])
    given = dict(zip(words, words[1:], strict=False))
    place = str(given.get("--model", "") if option == "checkpoint" else given.get("--base", ""))
    place = place.removeprefix(f"{model}=")
    if place and place != str(lake.model_attributes(model).get(option, place)):
        yield f"{model}={place}"
