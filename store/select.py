"""One stored result of a lake, by what somebody says of it."""

from collections.abc import Sequence

from schemas import MissingRunError, nearest
from store.files import RESULTS
from store.info import SHORTEST_PREFIX
from store.read import Lake
from store.results import Result

MOST_NAMED = 6
"""Results that are named where several fit."""


def fits(result: Result, word: str) -> bool:
    """Whether a word is a result's name, kind or run, or begins its fingerprint or the digest that ends its name."""
    name = result.name.removeprefix(f"{RESULTS}/")
    if word in (result.name, name, name.rpartition("/")[2], result.kind, *result.runs):
        return True
    digests = (result.fingerprint, name.rpartition("~")[2])
    return len(word) >= SHORTEST_PREFIX and any(digest.startswith(word) for digest in digests)


def select_result(lake: Lake, words: Sequence[str], among: Sequence[Result] | None = None) -> Result:
    """The one result that every word fits.

    A word is the name, or kind and run, or the beginning of a fingerprint. ``among`` are the results to choose from;
    all of the lake by default.

    Raises
    ------
    MissingRunError
        If none fits (the error names those there are), or several (it names each and how it differs).
    """
    results = lake.results() if among is None else among
    fitting = [result for result in results if all(fits(result, word) for word in words)]
    if len(fitting) == 1:
        return fitting[0]
    request = " ".join(words)
    if fitting:
        shown = [f"{one.name} ({one.fingerprint[:12]}: {one.describe(lake.location)})" for one in fitting[:MOST_NAMED]]
        more = [f"and {len(fitting) - MOST_NAMED} more"] if len(fitting) > MOST_NAMED else []
        raise MissingRunError(
            f"{lake.location}: {len(fitting)} results fit {request!r}; name one, as by its fingerprint:"
            f" {'; '.join(shown + more)}"
        )
    known = dict.fromkeys(word for result in results for word in (result.kind, *result.runs, result.name))
    strange = next((word for word in words if not any(fits(result, word) for result in results)), "")
    there = f"it has {', '.join(result.name for result in results) or 'none'}"
    if len(results) > MOST_NAMED:
        kinds = dict.fromkeys(result.kind for result in results)
        there = f"it has results of {', '.join(kinds)}; lake show {lake.location} lists them"
    raise MissingRunError(
        f"{lake.location}: no result fits {request!r}; {there}" + (nearest(strange, known) if strange else "")
    )
