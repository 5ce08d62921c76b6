"""Traces of all problems of a run: what is read, which chains explain it, and how many would by chance."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import xarray as xr

from analyze.blocks import example_blocks
from analyze.cluster import spread
from analyze.labels import inherited, take, thinking_labels
from analyze.lens import readout as readout_module
from analyze.lens.jacobian import with_fed
from analyze.lens.readout import ReadOut, check_model
from analyze.pieces import pieces_in
from analyze.traces.problems import N_OPERAND, NumberProblems, Problems, Solution, WordProblems, problems_of
from analyze.traces.readings import Readings, joined, read_states
from schemas import UsageError
from schemas.naming import FED
from schemas.problem_sums import other_rows, problem_of
from schemas.progress import Progress, silent
from schemas.resampling import mean_interval
from schemas.statistics import share_interval
from schemas.wording import interval_columns

Array = np.ndarray[Any, np.dtype[Any]]
TOLD = ("question", "predicted_answer", "intermediate_result", "intermediate_text", "expression", "root", "edges")
"""What a problem and its written chain are known by."""
LONG_NAMES = {
    "found": "problems in which some tree of steps read at thoughts ends at the answer",
    "recovered": "problems in which the written chain is one of the best trees",
    "in_order": "problems in which all results before the last are read, one thought after another",
}
OUTCOMES = tuple(LONG_NAMES)


def traces(
    run: xr.Dataset,
    model: xr.Dataset,
    *,
    lens: xr.Dataset | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    top: int = 5,
    read: int | None = None,
    permutations: int = 20,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Read the thoughts of every problem, and chain what they read as to solutions that end at the model's answer.

    A number is read where one of the best ``read`` tokens says it, the whole of it: numbers of several tokens (``1250``
    in most vocabularies, ``1.5``) are read nowhere, and problems whose chain passes through one before its last step
    are not counted. The last step may arrive at any number: it ends at the answer that the model wrote. A word is read
    by the longest token that begins it. The null gives every problem the thoughts of another.

    Memory: a block of states at a time, and per example what is returned. Cost: a product with the unembedding for
    each state, and for each problem and shuffle a search over the steps between the numbers read. Under a
    ``dask.distributed`` client its workers do both.

    Parameters
    ----------
    run
        With ``hidden_state``, the written chain (``intermediate_result`` and ``expression``, or ``intermediate_text``
        and, for graph problems, ``root`` and ``edges``) and ``predicted_answer``. Layer -1 are the vectors fed.
    model
        Read-out of the run's model, from ``lake.model``.
    lens
        Maps of a tuned or Jacobian lens, by layer or layer and position; by default final norm and unembedding.
    layers
        Read one by one; by default the last.
    positions
        Places of a trace; by default all between question and answer.
    top
        Rank up to which an operand or result counts as among the best tokens.
    read
        Best tokens among which a trace reads its number (by default 1), or all of which it reads where steps are words
        (by default 2, as a thought may hold several nodes).
    permutations
        Times that thoughts are exchanged between problems.
    folder
        Where readings of each layer's blocks of examples, and solutions of each shuffle, are kept while others are at
        work; the same traces, asked for again after they were stopped, take up what lies there.
    progress
        Called with work done and its amount.

    Returns
    -------
    Dataset
        For each problem, (example, layer): ``found``, ``recovered``, ``in_order``, ``n_tree`` and ``tree``, the best
        tree as text; (example, layer, position): ``read``, ``entropy`` (nat); (example, layer, position, step):
        ``result_rank``, over the whole vocabulary, NaN: no token says it; ``counted`` (example). Over the problems
        counted, (layer): ``.._share`` of the three with ``_low`` and ``_high`` (95%, over problems), ``_null`` (mean
        over shuffles), ``_null_high`` (95% of shuffles) and ``_p``; ``single_share``, of the problems recovered those
        with no other best tree. Over all, (layer, position, step): ``result_share`` and ``result_first_share``
        (rank up to ``top``, and 1), ``operand_share`` (.., operand), and ``control_share``, ``operand_control_share``
        of another problem's chain, the first and ``control_share`` with ``_low`` and ``_high``; ``entropy_mean`` with
        its interval (layer, position). Of graph problems also what :func:`frontier` gives.

    Raises
    ------
    UsageError
        If the run has no written chain, no two problems, or no places between question and answer.
    """
    check_model(model, run)
    positions = _positions(run, positions)
    layers = [int(run["layer"].values.max())] if layers is None else list(layers)
    if FED in layers and FED not in run["layer"].values:
        run = with_fed(run)
    held = run["layer"].values.tolist()
    if unknown := [layer for layer in layers if layer not in held]:
        raise UsageError(f"{run.attrs.get('run')} has no layer {unknown[0]}; it has {', '.join(map(str, held))}")
    state = take(run["hidden_state"], "position", positions, "traces")
    problem = problem_of(run)
    rng = np.random.default_rng(seed)
    if len(np.unique(problem)) < 2:
        raise UsageError(f"{run.attrs.get('run')} has only one problem; traces exchange thoughts between two")
    readout = ReadOut(model)
    n_token = model.sizes["vocabulary"]
    for name, value in (("top", top), ("read", read or 1)):
        if not 1 <= value <= n_token:
            raise UsageError(f"{name} is {value}; it must lie between 1 and the {n_token} tokens there are")
    facts = run[[name for name in TOLD if name in run]].load()
    problems = problems_of(_with_chain(facts, run), readout.tokens, other_rows(problem, rng))
    n_best = read or (1 if isinstance(problems, NumberProblems) else 2)
    results = _results(problems, facts.sizes["step"])
    drawn = (other_rows(problem, rng) for _ in range(permutations))
    # Few problems can be exchanged in few ways: each counts once, or p would be of draws that say the same.
    shuffled = list({rows.tobytes(): rows for rows in drawn}.values())
    memory = pieces_in(folder, __file__, readout_module.__file__)
    read_kept = memory.cache(_read, ignore=["state", "asked", "readout", "lens"])
    maps = None if lens is None else {str(name): array.values for name, array in lens.data_vars.items()}
    whole = [run.attrs.get("fingerprint"), run["example"].values, facts["predicted_answer"].values, positions, maps]
    parts = []

    def report(done: int, total: int = len(problem) * (1 + len(shuffled))) -> None:
        progress(done, total)

    for layer in layers:
        mark = joblib.hash([*whole, layer])
        of_layer = state.sel(layer=layer)
        blocks = (
            (of_layer.isel(example=rows), problems.asked[rows], mark, rows.start)
            for rows in example_blocks(state, len(problem))
        )
        readings = joined(_told(spread(read_kept, blocks, [readout, lens, n_best, top, results]), report, len(problem)),
                          len(problem))  # fmt: skip
        report(0)
        solve = Solver(problems, problems.read(readings.token), positions, memory, mark, n_best)
        parts.append(_layer(solve, readings, problem, shuffled, facts.sizes["step"], report, seed))
    result = xr.concat(parts, xr.Variable("layer", layers), data_vars="all")
    result["counted"] = ("example", problems.counted)
    result = result.assign_coords(
        example=run["example"].values, problem=("example", problem), position=np.array(positions, dtype=object),
        step=np.arange(facts.sizes["step"]),
    )  # fmt: skip
    for name, text in LONG_NAMES.items():
        result[f"{name}_share"].attrs = {"long_name": f"share of {text}", "units": "1"}
    result["entropy"].attrs = {"long_name": "entropy of the read-out", "units": "nat"}
    return result.assign_attrs(
        inherited(run, kind="traces", lens="logit" if lens is None else lens.attrs.get("lens", "tuned"), top=top,
                  read=n_best, n_example=len(problem), n_counted=int(problems.counted.sum()),
                  n_permutation=permutations, steps="numbers" if isinstance(problems, NumberProblems) else "words")
    )  # fmt: skip


def _read(
    state: xr.DataArray, asked: Array, mark: str, start: int, readout: ReadOut, lens: xr.Dataset | None, best: int,
    top: int, results: slice,
) -> Readings:  # fmt: skip
    """Readings of examples of one layer; ``mark`` and the first example distinguish them from those of other states."""
    return read_states(state, readout, asked, results=results, lens=lens, best=best, top=top)


def _told(parts: Iterable[Readings], report: Progress, n: int) -> Iterator[Readings]:
    """Hand the parts on, and report how many of the n examples are read."""
    done = 0
    for part in parts:
        done += len(part.token)
        report(done, n)
        yield part


def _results(problems: Problems, n_step: int) -> slice:
    """Columns of ``problems.asked`` with the results of the own chain: in its first half, alone or before operands."""
    half = problems.asked.shape[1] // 2
    return slice(0, half, half // n_step)


def _solved(rows: Array, chosen: Array, shares: bool, problems: Problems, read: Array,
            positions: Sequence[str], mark: str, best: int) -> list[Solution] | Array:  # fmt: skip
    """Solutions of the problems chosen (row,) from what the thoughts of others (row of each) read as, or their shares.

    Shares (outcome,) are of the problems with each of :data:`OUTCOMES`; NaN: none is chosen.
    """
    solutions = [problems.solve(row, read[rows[row]].tolist(), positions) for row in chosen.tolist()]
    if not shares:
        return solutions
    told = np.array([[getattr(solution, name) for name in OUTCOMES] for solution in solutions], dtype="float64")
    return np.asarray(told.mean(0)) if solutions else np.full(len(OUTCOMES), np.nan)


@dataclass(frozen=True, slots=True)
class Solver:
    """Solutions at one layer, kept where they are found."""

    problems: Problems
    read: Array
    """What the thoughts of each example read as, (example, position, ..)."""
    positions: Sequence[str]
    memory: joblib.Memory
    mark: str
    """Tells the readings from those of other layers, runs and lenses."""
    best: int

    def __call__(self, calls: Iterable[tuple[Array, Array, bool]]) -> Iterator[Any]:
        """What :func:`_solved` gives of each call."""
        solve = self.memory.cache(_solved, ignore=["problems", "read"])
        return spread(solve, calls, [self.problems, self.read, list(self.positions), self.mark, self.best])


def _positions(run: xr.Dataset, positions: Sequence[str] | None) -> list[str]:
    chosen = thinking_labels(run) if positions is None else positions
    if not chosen:
        raise UsageError(f"{run.attrs.get('run')} has no place between question and answer, so there is no trace")
    return list(chosen)


def _with_chain(facts: xr.Dataset, run: xr.Dataset) -> xr.Dataset:
    """Facts of the examples, which must have a chain."""
    name = "intermediate_result" if run.attrs.get("answer_kind", "number") == "number" else "intermediate_text"
    if name not in facts:
        raise UsageError(
            f"{run.attrs.get('run')} has no written chain to set traces against ({name} is missing); extract it from"
            " data with a chain of steps, as <<3*4=12>> in its answers"
        )
    return facts.assign_attrs(run.attrs)


def _layer(
    solve: Solver, readings: Readings, problem: Array, shuffled: Sequence[Array], n_step: int,
    report: Callable[[int], None], seed: int,
) -> xr.Dataset:  # fmt: skip
    """Everything of one layer."""
    problems, read, n = solve.problems, solve.read, len(problem)
    every, counted = np.arange(n), np.flatnonzero(problems.counted)
    solved = solve([(every, every, False), *((rows, counted, True) for rows in shuffled)])
    own: list[Solution] = next(solved)
    outcomes = {name: np.array([getattr(solution, name) for solution in own]) for name in OUTCOMES}
    report(n)
    # Meanwhile workers solve the shuffles.
    data = _per_example(problems, own, read, n) | {name: ("example", values) for name, values in outcomes.items()}
    n_tree = data["n_tree"][1]
    del own  # trees of every problem, whose texts are kept
    rank_shares = _rank_shares(problems, readings, n_step, problem)
    entropy = interval_columns("entropy", mean_interval(readings.entropy.T, seed, problem), "_mean")
    null = np.full((len(shuffled), len(OUTCOMES)), np.nan)
    for index, drawn in enumerate(solved):
        null[index] = drawn
        report((2 + index) * n)
    data |= _shares(outcomes, null, problems.counted, problem)
    single = outcomes["recovered"] & problems.counted
    data["single_share"] = ((), np.mean(n_tree[single] == 1) if single.any() else np.nan)
    data |= rank_shares
    data |= {name: ("position", values) for name, values in entropy.items()}
    data["entropy"] = (("example", "position"), readings.entropy.astype("float32"))
    if isinstance(problems, WordProblems) and problems.graphs is not None:
        from analyze.traces.frontier import frontier

        data |= frontier(problems.graphs, problems, read, shuffled, problem)
    return xr.Dataset(data)


def _per_example(problems: Problems, own: Sequence[Solution], read: Array, n: int) -> dict[str, Any]:
    texts = np.array([problems.texts(row, read[row].tolist()) for row in range(n)], dtype=object)
    return {
        "tree": ("example", np.array(["; ".join(solution.texts) for solution in own], dtype=object)),
        "n_tree": ("example", np.array([solution.n_tree for solution in own])),
        "read": (("example", "position"), texts),
    }


def _shares(outcomes: dict[str, Array], null: Array, counted: Array, problem: Array) -> dict[str, Any]:
    """Shares over the problems counted, with intervals, null and p."""
    data: dict[str, Any] = {}
    for index, (name, values) in enumerate(outcomes.items()):
        value = float(values[counted].mean()) if counted.any() else np.nan
        drawn = null[:, index]
        data |= interval_columns(f"{name}_share", (value, *share_interval(values, counted, problem)))
        data |= {
            f"{name}_null": np.mean(drawn) if len(drawn) else np.nan,
            f"{name}_null_high": np.quantile(drawn, 0.95) if len(drawn) else np.nan,
            f"{name}_p": (1 + (drawn >= value).sum()) / (1 + len(drawn)) if counted.any() else np.nan,
        }
    return data


def _rank_shares(problems: Problems, readings: Readings, n_step: int, problem: Array) -> dict[str, Any]:
    """How often results and operands are among the best tokens, and those of another problem."""
    known: Array = np.any(problems.asked >= 0, axis=-1)  # (example, what)
    state: Array = np.isfinite(readings.entropy)
    there = known[:, None] & state[..., None]
    place: Array = readings.place
    half = problems.asked.shape[1] // 2
    width = half // n_step  # 1 with results alone, else results and operands

    def share(least: int, what: slice) -> Array:
        hit: Array = np.greater_equal(place[..., what], least) & there[..., what]
        with np.errstate(invalid="ignore"):  # NaN where no problem has such a step
            return np.asarray(hit.sum(0) / there[..., what].sum(0)).reshape(place.shape[1], n_step, width)

    def ends(what: slice) -> Array:  # of results alone
        hit: Array = np.greater(place[..., what], 0)
        return np.asarray(share_interval(np.moveaxis(hit, 0, -1), np.moveaxis(there[..., what], 0, -1), problem))

    own, first, other = share(1, slice(half)), share(2, slice(half)), share(1, slice(half, None))
    dims = ("position", "step")
    data: dict[str, Any] = {
        "result_rank": (("example", *dims), readings.rank),
        "result_share": (dims, own[..., 0]),
        "result_first_share": (dims, first[..., 0]),
        "control_share": (dims, other[..., 0]),
    }
    for name, what in (("result_share", slice(0, half, width)), ("control_share", slice(half, None, width))):
        data[f"{name}_low"], data[f"{name}_high"] = ((dims, end) for end in ends(what))
    if width == 1 + N_OPERAND:
        data |= {
            "operand_share": ((*dims, "operand"), own[..., 1:]),
            "operand_control_share": ((*dims, "operand"), other[..., 1:]),
        }
    return data
