"""What a lake holds at a moment, in one word: a page of an older state is seen to be one."""

from collections.abc import Sequence

from schemas import LakeError, fingerprint
from store import Lake
from store.results import Result


def readable_runs(lake: Lake) -> tuple[list[str], dict[str, str]]:
    """Runs that open, and of the others why they do not."""
    runs, broken = [], {}
    for run in lake.runs():
        try:
            lake.open(run, chunks=None)
            runs.append(run)
        except LakeError as error:
            broken[run] = str(error)
    return runs, broken


def state_of(lake: Lake, runs: Sequence[str], results: Sequence[Result]) -> str:
    """Digest of what runs hold that are committed, and of the results."""
    held = {run: [lake.attributes(run)["fingerprint"], lake.committed(run).tolist()] for run in runs}
    return fingerprint({"runs": held, "results": sorted(result.fingerprint for result in results)})
