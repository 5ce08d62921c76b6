"""What an analysis would take: what it says itself, what the store knows of its files, and a short trial of it here.

An analysis declares how much it does (``cost`` in its ``command.py``, see :class:`schemas.command.Cost`). How fast
this machine is at it is found out by running the very analysis twice on a little of the run:

    seconds = t_first + (work - work_small) * (t_larger - t_small) / (work_larger - work_small)

where the first small trial also loads and reads what a run of any size does, as the model's read-out, and the others
find it there. Steps that are not matrix products, such as eigenvalues, or that so small trials do not have are timed
by themselves. Starting the program is not counted.

Times are of the processor, of all threads together: by the clock a run takes as long where it has one thread, less
where several share it, and more where the machine is at something else or waits for a disk.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from analyze.cluster import compute_on
from analyze.labels import labels_along, up_to_eot
from analyze.source import Source
from schemas import LakeError, segment_of
from schemas.command import Analysis, Cost, Reading, Settings
from schemas.problem_sums import problem_of
from schemas.wording import duration_text, size_text
from store import bytes_to_read, model_bytes

LONG = 2e12
"""Operations from which on an analysis may take over a minute, so that it is worth a trial."""
FIRST_LOOK = 2.5e13
"""Operations that an analysis of every example is held to where nothing is said: some ten minutes of one core.
A number of operations and not of seconds, so that the same examples are taken on every machine."""
PROGRAM = 250e6
"""Bytes of the program and its libraries."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run of an analysis takes."""

    n_example: int
    n_state: int
    """Vectors, or rows of attention, that are read."""
    operations: float
    n_byte: int
    """Read, as they are stored."""
    memory: float
    """Bytes held at once, the program included."""
    seconds: float | None
    """Of the processor here, of all threads together; ``None``: a trial was refused."""
    refused: str = ""
    """Why a trial could not be made: too little of a run for it, or what the run would refuse, too."""

    def text(self) -> str:
        """In one line."""
        took = "" if self.seconds is None else f", about {duration_text(self.seconds)} of processor time"
        took += " on this machine" if took else ""
        took += f"; a trial on a little of it was refused: {self.refused}" if self.refused else ""
        return (
            f"{self.n_example:,} examples, {self.n_state:,} states or rows; {size_text(self.n_byte)} to read,"
            f" {self.operations:.1e} operations, {size_text(self.memory)} of memory{took}"
        )

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


class Quiet:
    """A shell that says nothing, for trials."""

    def note(self, text: str) -> None:
        """Nothing."""

    def progress(self, label: str, unit: str = "") -> AbstractContextManager[Callable[..., None]]:
        """Nothing."""
        return nullcontext(lambda *_: None)

    def confirm(self, question: str) -> bool:
        """Nothing is asked of a trial."""
        return False

    def words(self, runs: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
        """None: no result of a trial is stored."""
        return []


Regroup = Callable[[Settings], Sequence[Source]]
"""The sources of one call of an analysis under other settings."""


def plan_of(command: Analysis, sources: Sequence[Source], settings: Settings, regroup: Regroup) -> Plan:
    """What one call of an analysis takes, with the time of two short trials of it."""
    cost = declared(command, sources, settings)
    n_byte = sum(model_bytes(sources[0].lake, name) for name in cost.readouts)
    n_byte += sum(round(stored_bytes(part, sources) * times) for part, times in cost.reads)
    try:
        with compute_on():
            seconds, refused = seconds_of(command, cost, sources, regroup), ""
    except LakeError as error:  # so little of a run may be too little for it
        seconds, refused = None, str(error)
    return Plan(
        n_example=sum(source.data.sizes["example"] for source in sources), n_state=cost.states,
        operations=cost.operations, n_byte=n_byte, memory=PROGRAM + cost.memory, seconds=seconds, refused=refused,
    )  # fmt: skip


def declared(command: Analysis, sources: Sequence[Source], settings: Settings) -> Cost:
    """What the analysis says itself."""
    assert command.cost is not None
    return command.cost(sources if command.takes_all(settings) else sources[0], settings)


def operations_of(command: Analysis, sources: Sequence[Source], settings: Settings) -> float:
    """Operations that an analysis declares; 0 where it does not know them; it says why when it runs.

    So the codes of a dictionary that is learned first are not counted.
    """
    try:
        return 0.0 if command.cost is None else declared(command, sources, settings).operations
    except LakeError:
        return 0.0


def stored_bytes(part: xr.DataArray, sources: Sequence[Source]) -> int:
    """Bytes of the chunks that hold a part of a run."""
    by_run = {source.run: source for source in sources}
    source = by_run.get(str(part.attrs.get("run")), sources[0])
    return bytes_to_read(source.lake, source.run, part)


def seconds_of(command: Analysis, cost: Cost, sources: Sequence[Source], regroup: Regroup) -> float:
    """Time of a run from trials of a small one, done twice as the first also loads what it needs, and a larger one.

    Steps that an analysis names are added. Of an analysis that has no small run, the time of reading, and of as many
    operations of a product of matrices.

    Raises
    ------
    LakeError
        If the analysis refuses a trial.
    """
    steps = sum(times * seconds_of_step(step) for times, step in cost.steps)
    if cost.small is None or cost.larger is None:
        return steps + seconds_of_reading(cost, sources) + cost.operations / product_rate()
    times, work = [], []
    for settings in (cost.small, cost.small, cost.larger):
        tried = [replace(source, shell=Quiet(), folder=None) for source in regroup(settings)]
        work.append(declared(command, tried, settings).operations)
        given = tried if command.takes_all(settings) else tried[0]
        times.append(seconds_taken(partial(command.run, given, settings)))
    rate = max(0.0, times[2] - times[1]) / max(work[2] - work[1], 1.0)
    return float(times[0] + (cost.operations - work[0]) * rate + steps)


def seconds_of_reading(cost: Cost, sources: Sequence[Source]) -> float:
    """Time of all reading, told from the time of the first read-out and of one block of each part.

    The first block is read before, as it also loads what reading needs; the one that is timed is another if there is.
    """
    lake, seconds = sources[0].lake, 0.0
    if cost.readouts:
        one, *_ = names = list(dict.fromkeys(cost.readouts))
        size = {name: model_bytes(lake, name) for name in names}
        seconds = seconds_taken(partial(lake.model, one)) * sum(size.values()) / size[one]
    for part, times in cost.reads:
        first = {dim: slice(0, sizes[0]) for dim, sizes in part.chunksizes.items()}
        other = {dim: slice(-sizes[-1], None) for dim, sizes in part.chunksizes.items() if dim != "example"}
        block = part.isel(first | other)
        np.asarray(part.isel(first))
        share = stored_bytes(block, sources) / max(1, stored_bytes(part, sources))
        seconds += times * seconds_taken(partial(np.asarray, block)) / max(share, 1e-9)
    return seconds


def seconds_of_step(step: Callable[[], object]) -> float:
    """Time of a step; of a short one that of the second time, as the first also loads what it needs."""
    first = seconds_taken(step)
    return first if first > 1 else min(first, seconds_taken(step))


def seconds_taken(step: Callable[[], object]) -> float:
    """Processor time of a step: what else the machine is at in that moment is not counted."""
    start = time.process_time()
    step()
    return time.process_time() - start


def product_rate() -> float:
    """Operations of a product of matrices in a second here."""
    matrix, times = np.ones((1024, 1024), dtype="float32"), []
    for _ in range(3):
        start = time.process_time()
        matrix @ matrix
        times.append(time.process_time() - start)
    return float(2 * 1024**3 / max(min(times), 1e-9))


def sampled(command: Analysis, source: Source, settings: Settings) -> Source:
    """A source with the sample that settings ask for, or that a large run is held to; said where it is so."""
    n, asked = source.data.sizes["example"], getattr(settings, "sample", 0)
    if asked is None and getattr(settings, "limit", None) is None:
        asked = int(n * FIRST_LOOK / max(1.0, operations_of(command, [source], settings)))
        asked = max(50, asked // 50 * 50) if asked < n else n
        if asked < n:
            source.note(
                f"of {n:,} examples {asked:,} are taken, of problems drawn by chance; --sample 0 takes all, in"
                f" {n / asked:.1f} times the time"
            )
    if not asked or asked >= n:
        return source
    data = source.data.isel(example=drawn(source.data, asked, getattr(settings, "seed", 0)))
    return replace(source, data=data, n_sampled=asked)


def drawn(run: xr.Dataset, n: int, seed: int) -> np.ndarray:
    """About n examples of whole problems, (row,): as large a share of those answered right as of the others."""
    problem = problem_of(run)
    right = np.asarray(run["correct"].values, dtype=bool) if "correct" in run else np.zeros(len(problem), bool)
    unique, first, inverse, count = np.unique(problem, return_index=True, return_inverse=True, return_counts=True)
    rng, taken = np.random.default_rng([seed, 2]), np.zeros(len(unique), dtype=bool)
    for stratum in (False, True):
        order = rng.permutation(np.flatnonzero(right[first] == stratum))
        share = n * count[order].sum() / len(problem)
        taken[order[np.cumsum(count[order]) <= share + 0.5]] = True
    return np.flatnonzero(taken[inverse])


# What the costs of several analyses are made of


def places(run: xr.Dataset, positions: Sequence[str] | None = None, *, answers: bool = True) -> list[str]:
    """Positions that an analysis looks at: those given; or from ``bot`` on; or between question and answer."""
    if positions is not None:
        return [str(label) for label in run["position"].values if label in positions]
    labels = labels_along(run if answers else up_to_eot(run), "position")
    return [label for label in labels if segment_of(label) != "question"] if answers else labels


def present(run: xr.Dataset, positions: Sequence[str]) -> int:
    """How many of the positions the examples have, one by one: a token stands there, or a thought is fed."""
    part = run[["token", "segment"]].sel(position=list(positions))
    return int(((part["token"] >= 0) | (part["segment"] == "latent")).sum())


def states_at(run: xr.Dataset, positions: Sequence[str]) -> xr.DataArray:
    """States of a run at positions."""
    return run["hidden_state"].sel(position=list(positions))


def limits(settings: Any, n: int, least: int = 32, most: int | None = None) -> dict[str, Any]:
    """``small`` and ``larger`` settings of a trial on the first examples.

    Where reading takes as long as the work, ``most`` is a whole chunk: a part of one would cost as much.
    """
    whole = min(n, getattr(settings, "limit", None) or n)
    sizes = [min(whole, least), min(whole, most or 4 * least)]
    extra = {"sample": 0} if hasattr(settings, "sample") else {}
    small, larger = (replace(settings, limit=size, **extra) for size in sizes)
    return {"small": small, "larger": larger}


def fewer(settings: Any, **counts: tuple[int, int]) -> dict[str, Any]:
    """``small`` and ``larger`` settings of a trial with fewer draws."""
    chosen: list[Mapping[str, int]] = [
        {name: min(getattr(settings, name), pair[end]) for name, pair in counts.items()} for end in (0, 1)
    ]
    return {"small": replace(settings, **chosen[0]), "larger": replace(settings, **chosen[1])}


def cells(settings: Any, layers: Sequence[int], positions: Sequence[str]) -> dict[str, Any]:
    """``small`` and ``larger`` settings of a trial on one (layer, position) and on two, with all their examples."""
    one = replace(settings, layers=tuple(layers[-1:]), positions=tuple(positions[:1]))
    two = {"positions": tuple(positions[:2])} if len(positions) > 1 else {"layers": tuple(layers[-2:])}
    return {"small": one, "larger": replace(one, **two)}


def reading(part: xr.DataArray, times: float = 1.0) -> Reading:
    """A part that is read so often."""
    return Reading(part, times)
