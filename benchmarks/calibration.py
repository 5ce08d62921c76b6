"""How often intervals hold what they should, and tests call what is not there, on problems drawn from a known law.

    python benchmarks/calibration.py [--draws N] [--only means,picked..]

Every draw is a new set of problems, of which the functions behind the commands make 95% intervals and p-values. Held:
how often the true value lies inside. Called: how often p is below .05 where there is nothing to find. What is true
follows from the law. Problems are told twice where it says so: both examples of one have most in common, so that
intervals over examples would be too narrow.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import xarray as xr
from laws import (
    HEADS,
    LAYERS,
    READ,
    carried_runs,
    drawn_attention,
    drawn_run,
    head_law,
    labelled,
    model,
    other_share,
    profiles,
    true_heads,
)
from results import keep
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from analyze.correlate.correlation import attention_importance
from analyze.errors.prediction import judge
from analyze.features.probe import area_and_trials
from analyze.geometry.shape import geometry
from analyze.heads.analysis import head_analysis
from analyze.similarity.cka import similarity
from analyze.stability.between import stability
from analyze.statistics import bootstrap_weights
from analyze.traces.traces import traces
from analyze.transfer.command import TransferSettings
from analyze.transfer.linear import transfer_probes
from analyze.verdict.measures import lost
from schemas.picked import Pick, of_picked
from schemas.resampling import mean_interval, percentiles
from schemas.statistics import adjust, difference_interval, mcnemar_exact, mean_share, share_interval, wilson_interval

Array = np.ndarray[Any, np.dtype[Any]]
Found = Iterator[tuple[str, int, bool]]
"""What is judged, of how many problems, and whether the interval held or the test called; tests begin with ``p ``."""


def means(rng: np.random.Generator, draw: int) -> Found:
    """Means of values as they come: of a normal law, of one with a tail as divergences have, of problems told twice."""
    for n in (5, 8, 12, 30, 100):
        problem = np.repeat(np.arange(n), 2)
        own = np.repeat(rng.standard_normal(n), 2)
        laws = {
            "mean, normal": (rng.standard_normal(n), None, 0.0),
            "mean, exponential": (rng.exponential(size=n), None, 1.0),
            "mean, lognormal": (np.exp(rng.standard_normal(n)), None, np.exp(0.5)),
            "mean, problems told twice": (own + 0.3 * rng.standard_normal(2 * n), problem, 0.0),
        }
        for name, (values, of, true) in laws.items():
            _, low, high = mean_interval(values, draw, of)
            yield name, n, bool(low <= true <= high)


def shares(rng: np.random.Generator, draw: int) -> Found:
    """Shares of yes and no, of problems told twice or twenty times, of drawn answers; the difference of two."""
    for n in (5, 12, 30, 100):
        for p in (0.1, 0.5):
            chance = rng.beta(p, 1 - p, n)  # how sure a model is of a problem
            twice = rng.random((2, n)) < chance
            low, high = share_interval(twice[0], np.ones(n))
            yield f"share of {p}", n, bool(low <= p <= high)
            low, high = share_interval(twice.T.ravel(), np.ones(2 * n), np.repeat(np.arange(n), 2))
            yield f"share of {p}, problems told twice", n, bool(low <= p <= high)
            often = rng.random((20, n)) < rng.beta(5 * p, 5 * (1 - p), n)
            low, high = share_interval(often.T.ravel(), np.ones(20 * n), np.repeat(np.arange(n), 20))
            yield f"share of {p}, problems told twenty times", n, bool(low <= p <= high)
            _, low, high = mean_share(rng.binomial(5, chance) / 5)
            yield f"share of {p}, five answers drawn", n, bool(low <= p <= high)
        sides = [(rng.random(n) < p, p) for p in (0.3, 0.6)]
        ends = [(yes.mean(), *share_interval(yes, np.ones(n))) for yes, _ in sides]
        _, low, high = difference_interval(*ends)
        yield "difference of shares", n, bool(low <= -0.3 <= high)


def paired(rng: np.random.Generator, draw: int) -> Found:
    """McNemar's test of answers that turn either way alike, of problems told twice; the least of twelve by Holm."""
    for n in (12, 30, 100):
        chance = np.repeat(rng.random((12, 1, n)), 2, axis=2)
        first, second = rng.random((2, 12, 2 * n)) < chance[:, 0]
        problem = np.repeat(np.arange(n), 2)
        p = [mcnemar_exact(*pair, problem).p for pair in zip(first, second, strict=True)]
        yield "p of McNemar, problems told twice", n, p[0] < 0.05
        yield "p of McNemar, the least of twelve by Holm", n, bool((adjust(p) < 0.05).any())


def turned(rng: np.random.Generator, draw: int) -> Found:
    """Right answers lost on balance, as the verdict counts them, of models that guess, are weak or nearly always right.

    Its upper end is that of all that turn wrong, so that it is the lower one that can fail.
    """
    for n in (30, 100):
        for right_share, wrong, gained in ((0.5, 0.5, 0.5), (0.25, 0.5, 0.13), (0.9, 0.3, 0.3)):
            right = rng.random(n) < right_share
            now = rng.random(n) < np.where(right, 1 - wrong, gained)
            low, high = lost(right, now, np.ones(n, dtype=bool), np.arange(n))[1](0.95)[1:]
            true = wrong - gained * (1 - right_share) / right_share
            yield f"answers lost, {true:.2f} of {right_share} right", n, bool(low <= true <= high)


def picked(rng: np.random.Generator, draw: int) -> Found:
    """The largest of several, as it is named: with the interval of one that was picked, and with its own."""
    for n in (30, 100):
        for k in (8, 60):
            u, noise, tail = rng.random((n, k)), rng.standard_normal((n, k)), rng.exponential(size=(n, k))
            common, slope = rng.standard_normal((n, 1)), np.linspace(0, 1, k)
            laws = {
                "shares, all .1": (u < 0.1, np.full(k, 0.1)),
                "shares, .02 to .5": (u < 0.02 + 0.48 * slope, 0.02 + 0.48 * slope),
                "means, alike": (noise, np.zeros(k)),
                "means, alike, correlated by .5": (np.sqrt(0.5) * (noise + common), np.zeros(k)),
                "means, one deviation apart": (noise + slope, slope),
                "means, alike, exponential": (tail, np.ones(k)),
                "means, alike, exponential downwards": (-tail, -np.ones(k)),
                "means, alike, picked by size": (noise, np.zeros(k)),
            }
            for name, (values, true) in laws.items():
                mean, pick = values.mean(0), Pick(k, share=values.dtype == bool)
                if name.endswith("size"):
                    mean, pick = np.abs(mean), Pick(k, by="any")
                most = int(mean.argmax())
                one = values[:, most]
                ends = wilson_interval(one.sum(), n) if pick.share else mean_interval(one, draw)[1:]
                figure = [float(one.mean()), *map(float, ends)]
                for kind, (_, low, high) in (("picked", of_picked(figure, pick)), ("alone", figure)):
                    yield f"{kind} {name}, of {k}", n, low <= true[most] <= high


def correlations(rng: np.random.Generator, draw: int) -> Found:
    """Attention and importance with a correlation of .5, and with none, at one position; problems told twice."""
    for n in (8, 12, 30, 100):
        problem = np.repeat(np.arange(n), 2)
        for true in (0.5, 0.0):
            own = rng.multivariate_normal([0, 0], [[1, true], [true, 1]], (n, 1))
            values = np.repeat(own, 2, axis=0) * np.sqrt(0.9)
            values += np.sqrt(0.1) * rng.multivariate_normal([0, 0], [[1, true], [true, 1]], (2 * n, 1))
            x, y = (labelled(values[..., side], ("example", "position"), problem) for side in range(2))
            found = attention_importance(x, y, n_permutation=199, n_resample=500, seed=draw).isel(position=0)
            yield f"r of {true}", n, bool(found["position_r_low"] <= true <= found["position_r_high"])
            if not true:
                yield "p of r", n, bool(found["position_p"] < 0.05)


def areas(rng: np.random.Generator, draw: int) -> Found:
    """Area under the ROC curve of scores half a deviation apart, a third of the answers wrong."""
    from scipy.stats import norm, rankdata

    for n in (12, 30, 100):
        wrong = np.arange(n) < n // 3
        score = rng.standard_normal(n) + 0.5 * wrong
        weight = bootstrap_weights(xr.DataArray(np.arange(n), dims="example"), 1000, draw).values
        value = judge(score, wrong, np.concatenate([np.ones((n, 1), dtype="float32"), weight], axis=1))["auroc"]
        low, high = percentiles(value[1:], n)
        true = norm.cdf(0.5 / np.sqrt(2))
        yield "AUROC of errors", n, bool(low <= true <= high)
        area, number = area_and_trials(score[:, None], rankdata(score)[:, None], wrong[:, None])
        low, high = wilson_interval(area * number, number)
        yield "area of a feature", n, bool(low[0] <= true <= high[0])


SCALES = 0.7 ** np.arange(16)


def _states(rng: np.random.Generator, n: int, mix: Array | None = None) -> tuple[Array, Array]:
    """States of two runs on the same problems, at one place: the second's are the first's mixed, and noise."""
    first = rng.standard_normal((n, 16)) * SCALES
    second = rng.standard_normal((n, 16)) * SCALES
    return first, second if mix is None else first @ mix + second


def _run(states: Array, name: str) -> xr.Dataset:
    n = len(states)
    values = labelled(states[:, None, None].astype("float32"), ("example", "layer", "position", "hidden"), np.arange(n))
    run = values.assign_coords(layer=[0]).to_dataset(name="hidden_state")
    texts = np.array([f"question {index}" for index in range(n)], dtype=object)
    run["question"] = "example", texts
    run["token"] = ("example", "position"), np.ones((n, 1), dtype=int)
    return run.assign_coords(segment=("position", ["latent"])).assign_attrs(run=name)


def shapes(rng: np.random.Generator, draw: int) -> Found:
    """Participation ratio of a normal law, and CKA of two runs that share half of what they vary in, or nothing."""
    mix = np.random.default_rng(0).standard_normal((16, 16)) / 4
    ratio = float((SCALES**2).sum() ** 2 / (SCALES**4).sum())
    for n in (12, 30, 100):
        first, second = _states(rng, n, mix)
        found = geometry(_run(first, "a/one"), components=2, resamples=200, shuffles=1, seed=draw).isel(
            layer=0, position=0
        )
        yield (
            "participation ratio",
            n,
            bool(found["participation_ratio_low"] <= ratio <= found["participation_ratio_high"]),
        )
        alike = similarity(_run(first, "a/one"), _run(second, "b/one"), resamples=200, permutations=19, seed=draw)
        yield "CKA", n, bool(alike["cka_low"].item() <= _true_cka(mix) <= alike["cka_high"].item())
        apart = similarity(
            _run(first, "a/one"), _run(_states(rng, n)[1], "b/one"), resamples=19, permutations=99, seed=draw
        )
        yield "p of CKA", n, bool(apart["p"].item() < 0.05)


def _true_cka(mix: Array) -> float:
    """CKA of the laws of :func:`_states`: |C12|^2 / (|C11| |C22|) of their covariances."""
    own = np.diag(SCALES**2)
    cross, other = own @ mix, mix.T @ own @ mix + own
    return float((cross**2).sum() / np.sqrt((own**2).sum() * (other**2).sum()))


def heads(rng: np.random.Generator, draw: int) -> Found:
    """Composite and rank of twelve heads that differ little from one to the next; of a few problems told twice."""
    true = true_heads(0)
    cell = {"layer": draw % LAYERS, "head": draw // LAYERS % HEADS}
    for n in (12, 30, 100):
        for twice in (False, True):
            problem = np.repeat(np.arange(n), 1 + twice)
            found = head_analysis(drawn_attention(rng, n, head_law(0), problem), seed=draw).compute().sel(cell)
            for name in ("composite", "rank"):
                low, high = (float(found[f"{name}_{end}"]) for end in ("low", "high"))
                what = f"{name} of a head" + ", problems told twice" * twice
                yield what, n, low <= float(true[name].sel(cell)) <= high


def alike(rng: np.random.Generator, draw: int) -> Found:
    """What two runs have in common, of laws that differ and of one law; problems are each run's own."""
    for n in (12, 30, 100):
        for same in (False, True):
            runs = {"a/x": drawn_run(rng, n, "a/x"),
                    "b/x": drawn_run(rng, n, "b/x", heads=1 - same, turn=0.6 * (not same))}  # fmt: skip
            found = stability(runs, lambda _: model(), shuffles=9, seed=draw).sel(run="a/x", other="b/x")
            found = found.sel(score="composite")
            for name, true in (true_likeness() if not same else dict.fromkeys(true_likeness(), 1.0)).items():
                low, high = (float(found[f"{name}_{end}"]) for end in ("low", "high"))
                yield f"stability, {name}" + ", of one law" * same, n, low - 1e-9 <= true <= high + 1e-9


@cache
def true_likeness() -> dict[str, float]:
    """What runs of the two laws have in common."""
    first, second = (true_heads(seed) for seed in range(2))
    rank = spearmanr(first["composite"].values.ravel(), second["composite"].values.ravel()).statistic
    shares = {
        name: float((first[of].values == second[of].values).mean())
        for name, of in (("same_type", "type"), ("same_hub", "hub_position"))
    }
    overlap = float(np.minimum(profiles(), profiles(0.6)).sum(-1).mean())
    return {"correlation": float(rank), **shares, "overlap": overlap}


def read(rng: np.random.Generator, draw: int) -> Found:
    """Shares of what thoughts read, by traces; the test of chains where thoughts have none of them."""
    place = {"position": [*READ][draw % len(READ)], "step": 0}
    true = {"result_share": profiles()[:, 0], "control_share": other_share()}
    for n in (12, 30, 100):
        found = traces(drawn_run(rng, n, "a/x"), model(), top=1, permutations=1, seed=draw).isel(layer=0)
        for name, shares in true.items():
            low, high = (float(found[f"{name}_{end}"].sel(place)) for end in ("low", "high"))
            yield f"traces, {name}", n, low <= shares[draw % len(READ)] <= high
        low, high = (float(found[f"recovered_share_{end}"]) for end in ("low", "high"))
        yield "traces, recovered_share", n, low <= true_recovery() <= high
        nothing = traces(drawn_run(rng, n, "a/x", readable=False), model(), permutations=20, seed=draw)
        yield "p of traces", n, nothing["recovered_p"].item() < 0.05


@cache
def true_recovery() -> float:
    """How often the chain is recovered, of 20,000 problems."""
    run = drawn_run(np.random.default_rng(7), 20_000, "a/x")
    return float(traces(run, model(), top=1, permutations=0)["recovered_share"].item())


CARRIED = ("accuracy", "auroc", "gap")


def carried(rng: np.random.Generator, draw: int) -> Found:
    """Scores of a probe and of a direction fitted on one run, on another; what is true is their mean over draws."""
    for n in (30, 100):
        for shared in (False, True):
            found = carried_once(rng, n, shared, draw)
            for kind in ("probe", "direction"):
                for name in CARRIED:
                    low, high = (float(found[f"{name}_{end}"].sel(kind=kind)) for end in ("low", "high"))
                    what = f"transfer, {name} of a {kind}" + ", problems shared" * shared
                    yield what, n, low <= true_carried(n, shared)[kind, name] <= high


def carried_once(rng: np.random.Generator, n: int, shared: bool, seed: int) -> xr.Dataset:
    """Fits of one run tested on another."""
    settings = TransferSettings(penalties=(0.1,), controls=0, permutations=0, seed=seed)
    runs = carried_runs(rng, n, shared=shared)
    return transfer_probes(runs, ["a/x"], ["b/x"], settings).squeeze(["fit", "test", "layer", "position"])


@cache
def true_carried(n: int, shared: bool) -> dict[tuple[str, str], float]:
    """Expected scores, of 200 other draws."""
    draws = [carried_once(np.random.default_rng([13, draw]), n, shared, draw) for draw in range(200)]
    return {
        (kind, name): float(np.mean([one[name].sel(kind=kind) for one in draws]))
        for kind in ("probe", "direction") for name in CARRIED
    }  # fmt: skip


PARTS: list[tuple[Callable[[np.random.Generator, int], Found], int]] = [
    (means, 4000), (shares, 4000), (paired, 2000), (turned, 4000), (picked, 2000), (correlations, 500), (areas, 2000),
    (shapes, 500), (heads, 500), (alike, 150), (read, 500), (carried, 100),
]  # fmt: skip


TITLES = {
    "intervals": "Calibration of intervals",
    "picked": "Calibration of intervals of the largest of several",
    "tests": "Calibration of tests",
}
TEXT = {
    "intervals": "Every draw is a new set of problems from a known law; held is how often a 95% interval has the true"
    " value inside, in brackets the 95% interval of that share. Bootstraps of fewer than five problems are not made."
    " What has a long tail (exponential, lognormal: divergences are like these) is held less often by any interval that"
    " knows the sample alone; answers drawn several times are held more often, as a problem counts as one trial.",
    "picked": "In every draw the largest of several shares or means of the same problems is picked, as where a sentence"
    " names the best position, head or step. Held, as picked: how often what is true of it lies in the interval that"
    " sentences give it (schemas/picked.py); alone: in its own 95% interval, as if it were the only one.",
    "tests": "Draws in which there is nothing to find; called is how often p is below .05.",
}


def counted(yes: list[bool]) -> str:
    """A share of draws with its interval."""
    low, high = wilson_interval(sum(yes), len(yes))
    return f"{np.mean(yes):.3f} ({low:.3f} to {high:.3f})"


def rows_of(found: dict[tuple[str, int], list[bool]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The table and the row of everything that was judged."""
    for (what, n), yes in sorted(found.items()):
        kind, _, rest = what.partition(" ")
        if kind == "p":
            yield "tests", {"what": rest.removeprefix("of "), "problems": n, "called": counted(yes), "draws": len(yes)}
        elif kind == "picked":
            both = {"held, as picked": counted(yes), "alone": counted(found[f"alone {rest}", n])}
            yield "picked", {"what": rest, "problems": n, **both, "draws": len(yes)}
        elif kind != "alone":
            yield "intervals", {"what": what, "problems": n, "held": counted(yes), "draws": len(yes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, help="sets of problems; by default as many as tell .95 from .93")
    parser.add_argument("--only", help="parts that are measured again, as means,picked; by default all")
    given = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    for judge_of, usual in PARTS:
        if given.only and judge_of.__name__ not in given.only.split(","):
            continue
        found: dict[tuple[str, int], list[bool]] = {}
        for draw in range(given.draws or usual):
            for what, n, yes in judge_of(np.random.default_rng([11, draw]), draw):
                found.setdefault((what, n), []).append(bool(yes))
        for table, row in rows_of(found):
            rows.setdefault(table, []).append(row)
            print(row, flush=True)
    for table, of in rows.items():
        by = ("what", "problems") if given.only else ()
        keep(f"calibration-{table}", TITLES[table], of, text=TEXT[table], by=by)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
