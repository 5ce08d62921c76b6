"""What stored results of each kind measured of single thoughts, as shares whose interval can be had at any level."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr
from scipy import stats

from analyze.effects.conditions import conditions
from analyze.verdict.rules import ALL, READABLE, ROUTE, USED, Measure, Triple
from schemas import segment_of
from schemas.naming import state_of
from schemas.problem_sums import problem_of, trials_of
from schemas.statistics import difference_interval, share_interval, trials_of_interval, wilson_interval

LEAST_N = 10
"""Problems that must have a step for it to be measured."""
STORED_LEVEL = 0.95
"""Of intervals that results hold."""
CORRUPTIONS = {"mean": "mean", "resample": "resample", "zero": "zero", "shuffle": "shuffle", "noise 1": "noise"}
"""Corruptions that are measured, and the methods they are."""
LOST = "right answers that turn wrong, less wrong ones that turn right"
Reader = Callable[[xr.Dataset, str, xr.Dataset], Iterator[Measure]]
"""Measures of a stored result, its name, and the run it is of."""


def of_share(value: float, n: float) -> Callable[[float], Triple]:
    """A share of ``n`` and its Wilson interval."""

    def interval(level: float) -> Triple:
        low, high = wilson_interval(value * n, n, level)
        return value, float(low), float(high)

    return interval


def of_examples(yes: np.ndarray, counted: np.ndarray, problem: np.ndarray) -> Callable[[float], Triple]:
    """Share of counted examples that say yes, and its interval over problems."""

    def interval(level: float) -> Triple:
        low, high = share_interval(yes, counted, problem, level)
        n = int(counted.sum())
        return float((yes & counted).sum() / n) if n else float("nan"), float(low), float(high)

    return interval


def less(one: Callable[[float], Triple], other: Callable[[float], Triple]) -> Callable[[float], Triple]:
    """A share less that of a control."""

    def interval(level: float) -> Triple:
        value, low, high = difference_interval(one(level), other(level))
        return float(value), float(low), float(high)

    return interval


def lost(
    right: np.ndarray, now: np.ndarray, counted: np.ndarray, problem: np.ndarray
) -> tuple[int, Callable[[float], Triple]]:
    """Trials and interval of right answers that turn wrong, less wrong ones that turn right: a share of the right ones.

    Answers near a tie turn either way, whatever is put in a thought's place, and of a weak model as many turn right as
    wrong: its thoughts bring nothing. Nor is a thought unused by which so many turn: the upper end is that of all that
    turn wrong. The lower end is that of w - g (1 - a) / a, of the shares that turn wrong, that turn right, and that
    were right, whose own ends are combined (MOVER, :func:`schemas.statistics.difference_interval`).
    """
    was_right, was_wrong = right & counted, ~right & counted
    turned_wrong = of_examples(~now, was_right, problem)
    turned_right = of_examples(now, was_wrong, problem)
    before = of_examples(right, counted, problem)

    def interval(level: float) -> Triple:
        wrong, low_wrong, high_wrong = turned_wrong(level)
        if not (was_right.any() and was_wrong.any()):
            return wrong, low_wrong, high_wrong
        gained, _, most_gained = turned_right(level)
        odds, most_odds = (1 / share - 1 for share in before(level)[:2])
        less_sure = math.hypot(wrong - low_wrong, odds * (most_gained - gained), gained * (most_odds - odds))
        return wrong - gained * odds, wrong - gained * odds - less_sure, high_wrong

    return _n(~now, was_right, problem), interval


def widened(value: float, low: float, high: float, level_of: float = STORED_LEVEL) -> Callable[[float], Triple]:
    """A figure whose interval was stored at one level; at others each side is as much longer as a normal one's is."""

    def interval(level: float) -> Triple:
        longer = stats.norm.ppf(0.5 + level / 2) / stats.norm.ppf(0.5 + level_of / 2)
        return value, value - (value - low) * longer, value + (high - value) * longer

    return interval


def _n(yes: np.ndarray, counted: np.ndarray, problem: np.ndarray) -> int:
    """Trials of a share of counted examples: of problems with several, the effective number."""
    return round(float(np.nan_to_num(trials_of(yes & counted, counted, problem))))


def _stored(cell: xr.Dataset, name: str) -> tuple[int, Callable[[float], Triple]]:
    """Trials and intervals of a share that a result holds with its own."""
    value, low, high = (float(cell[f"{name}{end}"]) for end in ("", "_low", "_high"))
    n = trials_of_interval(value, low, high) if np.isfinite([value, low, high]).all() else 0.0
    return round(n), of_share(value, n)


def _thoughts(data: xr.Dataset, dim: str = "position") -> list[str]:
    """Positions whose state is, or is fed as, a thought."""
    return [str(label) for label in data[dim].values if segment_of(str(label)) in ("bot", "latent")]


def lens(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """How often the last layer's best token is the result of a step, less that of another problem's chain."""
    if not data.sizes.get("step") or "inner_control_share_low" not in data:  # as earlier versions stored it
        return
    last = data.isel(layer=-1)
    for position in _thoughts(data):
        for step in last["step"].values:
            cell = last.sel(position=position, step=step)
            (n, own), (n_other, other) = (_stored(cell, name) for name in ("inner_share", "inner_control_share"))
            if min(n, n_other) >= LEAST_N:
                yield Measure(
                    thought=position, question=READABLE, method="lens", n=n, interval=less(own, other),
                    source=source, what=f"result of step {int(step) + 1}, less another chain's", target=str(int(step)),
                )  # fmt: skip


def probes(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """How well a probe on the last layer tells a step's result on held-out problems, less what its controls do."""
    score, controls = ("r2", ("baseline_r2", "control_r2"))
    if "r2" not in data:
        score, controls = "accuracy", ("majority_accuracy", "control_accuracy")
    last = data.isel(layer=-1)
    for position in _thoughts(data):
        for step in last["step"].values if "step" in last.dims else [0]:
            cell = last.sel({"position": position} | ({"step": step} if "step" in last.dims else {}))
            n, value = int(cell["n_example"]), float(cell[score])
            if n >= LEAST_N and np.isfinite(value):
                reference = max(0.0, *(np.nan_to_num(float(cell[name])) for name in controls))
                low, high = (float(cell[f"{score}_{end}"]) - reference for end in ("low", "high"))
                yield Measure(
                    thought=position, question=READABLE, method="probe", n=n,
                    interval=widened(value - reference, low, high, float(data.attrs.get("level", 0.95))), source=source,
                    what=f"held-out {score} of step {int(step) + 1}, less its controls", target=str(int(step)),
                )  # fmt: skip


def corrupt(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """Right answers that are lost when one thought, or all, is replaced at the vectors fed."""
    frame = conditions(data)
    right, problem = data["correct"].values[0].astype(bool), problem_of(data)
    of_fed = (frame["site"] == "latent_embedding") & (frame["control"] == "")
    for index, row in frame[of_fed & frame["corruption"].isin(list(CORRUPTIONS))].iterrows():
        now, counted = (data[name].values[index].astype(bool) for name in ("correct", "counted"))
        n, interval = lost(right, now, counted, problem)
        yield Measure(
            thought=str(row["group"]), question=USED, method=CORRUPTIONS[row["corruption"]], n=n, interval=interval,
            source=source, what=LOST,
        )  # fmt: skip


def held(run: xr.Dataset, examples: np.ndarray) -> np.ndarray:
    """Which of the halves of pairs differ from their twins in a step whose result is not yet the answer.

    Where the only step that differs is the last of a chain of numbers, whose result is the answer, no thought need hold
    what differs, and that no answer follows a donor says nothing of use. True where no chain is known.
    """
    if not {"pair", "intermediate_result"} <= set(run.variables):
        return np.ones(len(examples), dtype=bool)
    place = {int(name): index for index, name in enumerate(run["example"].values)}
    chain, pair = np.asarray(run["intermediate_result"].values), np.asarray(run["pair"].values)
    halves: dict[int, list[int]] = {}
    for index, number in enumerate(pair.tolist()):
        halves.setdefault(number, []).append(index)
    out = np.ones(len(examples), dtype=bool)
    for number, example in enumerate(examples.tolist()):
        steps = [chain[row][np.isfinite(chain[row])] for row in halves[int(pair[place[int(example)]])]]
        if len(steps) == 2 and len(steps[0]) == len(steps[1]) > 0:
            out[number] = bool((steps[0][:-1] != steps[1][:-1]).any())
    return out


def patch(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """Pairs that give the donor's answer with one thought, or all, of the twin, less those with a stranger's."""
    if data.attrs.get("into", "corrupted") != "corrupted":
        return
    frame, problem = conditions(data), problem_of(data)
    clean = data["outcome"].values == "clean_answer"
    able = held(run, data["example"].values)
    fed = frame[frame["site"] == "latent_embedding"]
    first = fed[fed["kind"] == "first"]
    most = first[first["n"] == first["n"].max()]
    random = most[most["control"] == "random donor"]
    own = fed[(fed["control"] == "") & (fed["kind"] == "one")].assign(thought=lambda rows: rows["positions"])
    every = most[most["control"] == ""].assign(thought=ALL)
    for rows in (own, every):
        for index, row in rows.iterrows():
            interval = of_examples(clean[index], able, problem)
            if len(random):
                interval = less(interval, of_examples(clean[random.index[0]], able, problem))
            yield Measure(
                thought=str(row["thought"]), question=USED, method="patch", n=_n(clean[index], able, problem),
                interval=interval, source=source,
                what="pairs that differ in a thought's step and follow the donor, less a stranger's",
            )  # fmt: skip


def edit(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """Answers that go where a value written into a thought leads, less those with noise of the same norm."""
    frame, problem = conditions(data), problem_of(data)
    fed = frame[(frame["site"] == "latent_embedding") & (frame["also"] == "")]
    own = fed[fed["control"] == ""].assign(away=lambda rows: (rows["dose"].astype(float) - 1).abs())
    noise = fed[fed["control"] == "noise of the same norm"]
    order = {"donor": 0, "means": 1, "regression": 2, "probe": 3}
    own = own.assign(order=own["method"].map(order).fillna(9)).sort_values(["away", "order"], kind="stable")
    for thought, rows in own.groupby("changed", sort=False):
        best = rows.iloc[0]
        beside = noise[(noise["changed"] == thought) & (noise["method"] == best["method"])]
        counted = data["counted"].values[best.name].astype(bool)
        hit = data["hit"].values[best.name].astype(bool)
        interval = of_examples(hit, counted, problem)
        if len(beside):
            interval = less(interval, of_examples(data["hit"].values[beside.index[0]].astype(bool), counted, problem))
        yield Measure(
            thought=str(thought), question=USED, method="edit", n=_n(hit, counted, problem), interval=interval,
            source=source, what=f"answers that follow a written value ({best['method']}), less noise of its norm",
        )  # fmt: skip


def subspace(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """Right answers that are lost when what holds a step's result is erased from a thought."""
    frame, problem = conditions(data), problem_of(data)
    fed = frame[(frame["site"] == "latent_embedding") & (frame["change"] == "erase")]
    own = fed[(fed["control"] == "") & fed["subspace"].isin(["leace", "means", "probe", "das", "pca"])]
    order = {"leace": 0, "means": 1}
    own = own.assign(order=own["subspace"].map(order).fillna(9))
    for thought, rows in own.groupby("changed", sort=False):
        best = rows.sort_values(["order", "rank"], ascending=[True, False], kind="stable").iloc[0]
        now, counted = (data[name].values[best.name].astype(bool) for name in ("correct", "counted"))
        n, interval = lost(data["correct"].values[0].astype(bool), now, counted, problem)
        yield Measure(
            thought=str(thought), question=USED, method="erase", n=n, interval=interval, source=source,
            what=f"{LOST} without {best['rank']} dimensions of {best['subspace']}",
        )  # fmt: skip


def lost_without(data: xr.Dataset, groups: str) -> Iterator[tuple[str, int, Callable[[float], Triple]]]:
    """Right answers that are lost without each group whose name matches a pattern: name, n, interval of the share."""
    frame, problem = conditions(data), problem_of(data)
    correct = data["correct"].values.astype(bool)
    for index, row in frame[(frame["control"] == "") & frame["group"].str.fullmatch(groups)].iterrows():
        yield str(row["group"]), *lost(correct[0], correct[index], np.ones_like(correct[0]), problem)


def edges(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """Right answers that are lost when nothing may attend to a thought."""
    for group, n, interval in lost_without(data, r"cut ct\d+"):
        yield Measure(
            thought=group.removeprefix("cut "), question=USED, method="edges cut", n=n, interval=interval,
            source=source, what=f"{LOST} with its edges cut",
        )  # fmt: skip


def graph(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """Problems in which a later thought, or the answer, reads otherwise when one thought alone is changed."""
    operations = [name for name in ("resample", "mean") if name in data["operation"].values]
    if not operations or float(data.attrs.get("layer", -1)) != -1:
        return
    flips = data["state_flip_mean"].sel(operation=operations[0], effect="direct", stratum=ALL)
    n = int(data["n"].sel(stratum=ALL))
    for place in flips.stack(edge=("source", "target")).transpose("edge"):
        value = float(place)
        if np.isfinite(value):
            thought, target = place["edge"].item()
            yield Measure(
                thought=str(thought), question=ROUTE, method="graph", n=n, interval=of_share(value, n), source=source,
                what=f"{target} reads otherwise, what lies between held ({operations[0]})", target=str(target),
            )  # fmt: skip


def traces(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """How often a step's result is among what is read, less another problem's.

    What is read of a vector that is fed is named by the state that it is made of.
    """
    last = data.isel(layer=-1)
    if "control_share_low" not in last:  # as earlier versions stored it
        return
    fed = int(last["layer"]) == -1
    for position in _thoughts(data):
        for step in last["step"].values:
            cell = last.sel(position=position, step=step)
            (n, own), (n_other, other) = (_stored(cell, name) for name in ("result_share", "control_share"))
            if min(n, n_other) >= LEAST_N:
                yield Measure(
                    thought=state_of(position) if fed else position, question=READABLE, method="traces", n=n,
                    interval=less(own, other), source=source, target=str(int(step)),
                    what=f"result of step {int(step) + 1} among what is read, less another problem's",
                )  # fmt: skip


def decode(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """How often a decoder writes a step's result of the vector fed, less the higher of its controls.

    What is read of a vector that is fed is named by the state that it is made of.
    """
    controls = [name for name in ("control_share", "shuffled_share") if name in data]
    for position in _thoughts(data):
        for step in data["step"].values:
            cell = data.sel(position=position, step=step)
            n, own = _stored(cell, "result_share")
            others = [other for n_other, other in (_stored(cell, name) for name in controls) if n_other >= LEAST_N]
            if n >= LEAST_N and others:
                highest = max(others, key=lambda other: other(STORED_LEVEL))
                yield Measure(
                    thought=state_of(position), question=READABLE, method="decoder", n=n, interval=less(own, highest),
                    source=source, target=str(int(step)),
                    what=f"result of step {int(step) + 1} in what is written, less its controls",
                )  # fmt: skip


def heads(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """Right answers that are lost without one head from ``bot`` to ``eot``: where what the answer takes passes."""
    for group, n, interval in lost_without(data, r"L\d+H\d+"):
        yield Measure(
            thought=ALL, question=ROUTE, method="heads", n=n, source=source, target=group, interval=interval,
            what=f"{LOST} without this head at the thoughts",
        )  # fmt: skip


def attribute(data: xr.Dataset, source: str, run: xr.Dataset) -> Iterator[Measure]:
    """What patching a fed vector, or a head at one position, does alone, as a share of what all nodes do together."""
    if not data.attrs.get("all_nodes", 0) > 0 or "exact_share" not in data:  # as earlier versions stored it
        return
    for place in range(data.sizes["node"]):
        node = data.isel(node=place)
        value, low, high = (float(node[f"exact_share{end}"]) for end in ("", "_low", "_high"))
        kind, position = str(node["kind"].item()), str(node["position"].item())
        if not np.isfinite([value, low, high]).all() or kind not in ("fed", "head"):
            continue
        interval, n = widened(value, low, high), int(data.attrs["n_used"])
        if kind == "fed":
            what = "of the logit difference that all parts carry over, what this vector does alone"
            yield Measure(
                thought=position, question=USED, method="attribution", n=n, interval=interval, source=source, what=what
            )
        else:
            yield Measure(
                thought=ALL, question=ROUTE, method="head attribution", n=n, interval=interval, source=source,
                what="of the logit difference that all parts carry over, what this head does alone at this position",
                target=f"L{int(node['layer'])}H{int(node['head'])} at {position}",
            )  # fmt: skip


READERS: dict[str, Reader] = {
    "lens": lens,
    "probes": probes,
    "corrupt": corrupt,
    "patch": patch,
    "edit": edit,
    "subspace": subspace,
    "edges": edges,
    "graph": graph,
    "traces": traces,
    "decode": decode,
    "ablate_heads": heads,
    "attribute": attribute,
}
"""How stored results of each kind are read."""
