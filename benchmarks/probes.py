"""Linear probes against a loop of scikit-learn's LogisticRegressionCV, cell by cell; their memory; calm on noise.

    python benchmarks/probes.py [speed] [agreement] [memory] [noise] [--quick]

speed      Nested five-fold cross-validation of a 12 x 6 grid at 768 components and a 16 x 6 grid at 2048, six
           penalties, at the reports' 100 examples and at 1,000. Both sides have the same folds, penalties and one BLAS
           thread, choose by log loss, and are timed in CPU seconds, turn about. scikit-learn standardises and runs
           LogisticRegressionCV (inner folds: the other outer folds) once for each outer fold. Its default tolerance
           stops early (at weak penalties held-out probabilities are off by tens of percent); "converged" is tol=1e-7,
           and must find what this project does. Ours also leaves the refit of the reports, and with controls three
           more label sets; all that is in its time. At 1,000 examples the loop runs on a few cells of the grid, ours on
           all, and the ratio is of their times for one cell.
agreement  Over 200 random problems (2 to 5 classes, 40 to 2,000 rows, 8 to 768 components; noise, weak, separable,
           imbalanced, correlated) largest difference of held-out probabilities from converged scikit-learn's with a
           scaler inside every fit (GridSearchCV over a pipeline), and outer folds that choose another penalty.
memory     Peak resident memory of a fresh process that probes 2,000 and 16,000 lazy examples.
noise      Share of p-values below 0.05 and coverage of the intervals where there is nothing to find.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from results import keep
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from analyze.probes.command import ProbeSettings
from analyze.probes.linear import linear_probes
from analyze.probes.nested import nested_logistic, training_sets
from analyze.probes.tasks import PENALTIES

N_FOLD = 5
CLOSE = 5e-3
"""How far held-out probabilities may be from converged scikit-learn's."""


def made_up_cells(n_cell: int, n_example: int, hidden: int, seed: int = 0) -> tuple[Iterator[Any], Any, Any]:
    """Cells whose spectrum falls as a residual stream's, half of them with a faint direction; labels; folds."""
    rng = np.random.default_rng(seed)
    label = np.arange(n_example) % 2
    rotation = np.linalg.qr(rng.standard_normal((hidden, hidden)))[0]
    spread = (1.0 + np.arange(hidden)) ** -0.5
    fold = np.empty(n_example, dtype=int)
    for part, (_, held_out) in enumerate(StratifiedKFold(N_FOLD, shuffle=True, random_state=0).split(label, label)):
        fold[held_out] = part

    def cells() -> Iterator[Any]:
        for index in range(n_cell):
            states = (rng.standard_normal((n_example, hidden)) * spread) @ rotation
            if index % 2:
                states += np.outer(label - 0.5, rotation[hidden // 2]) * 0.3
            yield states.astype(np.float32)

    return cells(), label, fold


def inner_splits(fold: Any, outer: int) -> list[tuple[Any, Any]]:
    """Rows of the inner folds, counted within the outer training set."""
    inner = fold[fold != outer]
    return [(np.flatnonzero(inner != part), np.flatnonzero(inner == part)) for part in range(N_FOLD) if part != outer]


Found = dict[int, tuple[float, Any]]
"""By outer fold: the penalty chosen, and held-out probabilities of class 1."""


def sklearn_loop(states: Any, label: Any, fold: Any, **options: Any) -> tuple[float, Found]:
    """CPU seconds of the loop for one cell, and what it found."""
    start, found = time.process_time(), {}
    for outer in range(N_FOLD):
        train = fold != outer
        probe = LogisticRegressionCV(
            Cs=list(PENALTIES),
            cv=inner_splits(fold, outer),
            scoring="neg_log_loss",
            l1_ratios=(0,),
            use_legacy_attributes=False,
            **{"max_iter": 1000, **options},
        )
        model = make_pipeline(StandardScaler(), probe).fit(states[train].astype(np.float64), label[train])
        found[outer] = float(probe.C_), model.predict_proba(states[~train].astype(np.float64))[:, 1]
    return time.process_time() - start, found


def ours(states: Any, label: Any, fold: Any, n_control: int) -> tuple[float, Found]:
    """CPU seconds of the solver for one cell, and what it found."""
    rng = np.random.default_rng(0)
    labels = np.stack([label, *(rng.permutation(label) for _ in range(n_control))], axis=1)
    start = time.process_time()
    fit = nested_logistic(states, labels, fold, penalty=PENALTIES)
    taken = time.process_time() - start
    return taken, {outer: (float(fit.chosen[outer, 0]), fit.score[fold == outer, 0, 1]) for outer in range(N_FOLD)}


class Apart:
    """How far the held-out probabilities of both are apart, over cells; every regression converged."""

    def __init__(self) -> None:
        self.same, self.folds, self.most = 0, 0, 0.0

    def compare(self, here: Found, there: Found) -> None:
        """Take up a cell. Raises ``SystemExit`` where both chose the same penalty and say something else."""
        for outer, (penalty, probability) in here.items():
            self.folds += 1
            if there[outer][0] == penalty:
                self.same += 1
                self.most = max(self.most, float(np.abs(probability - there[outer][1]).max()))
        if self.most > CLOSE:
            raise SystemExit(f"held-out probabilities differ by {self.most:.2g} from converged scikit-learn's")

    def __str__(self) -> str:
        return (
            f" Both choose the same penalty in {self.same} of {self.folds} outer folds; there held-out probabilities"
            f" differ by {self.most:.1g} at most."
        )


def small_cell() -> dict[str, Any]:
    """Row of a cell of the size of the small models', against scikit-learn's fits one by one."""
    rng = np.random.default_rng(0)
    label = np.arange(300) % 4
    states = rng.standard_normal((300, 64)) + 0.5 * rng.standard_normal((4, 64))[label]
    labels = np.stack([label, *(rng.permutation(label) for _ in range(3))], axis=1)
    fold = np.arange(300) // 4 % N_FOLD
    nested_logistic(states, labels, fold, penalty=PENALTIES)
    start = time.process_time()
    nested_logistic(states, labels, fold, penalty=PENALTIES)
    here = time.process_time() - start
    start, number = time.process_time(), 0
    for left_out in training_sets(N_FOLD)[1::5]:
        train = ~np.isin(fold, left_out)
        rows = make_pipeline(StandardScaler(), PCA(svd_solver="full")).fit_transform(states[train])
        for target in (0, 1):
            probe = LogisticRegression(solver="newton-cholesky", warm_start=True)
            for penalty in PENALTIES:
                probe.set_params(C=penalty).fit(rows, labels[train, target])
                number += 1
    fits = len(training_sets(N_FOLD)) * 4 * len(PENALTIES)
    there = (time.process_time() - start) / number * fits
    return {
        "what": "300 examples, 64 components, 4 classes, with 3 controls",
        "beside": f"{fits} fits of newton-cholesky on rotated states ({number} timed)",
        "ours, s a cell": here,
        "scikit-learn, s a cell": there,
        "times ours": there / here,
    }


def speed(quick: bool) -> None:
    """Keep times of both and their ratios."""
    rows, apart = [small_cell()], Apart()
    for n_example in (100, 1000):
        for grid, hidden in (((12, 6), 768), ((16, 6), 2048)):
            n_cell = 4 if quick else grid[0] * grid[1]
            n_loop = n_cell if n_example == 100 else 2 if quick else 8
            cells, label, fold = made_up_cells(n_cell, n_example, hidden)
            times: dict[str, list[float]] = {"plain": [], "controlled": [], "loop": [], "exact": []}
            for number, states in enumerate(cells):
                if not number:
                    ours(states, label, fold, 0)
                taken, here = ours(states, label, fold, 0)
                times["plain"].append(taken)
                times["controlled"].append(ours(states, label, fold, 3)[0])
                if number < n_loop:
                    times["loop"].append(sklearn_loop(states, label, fold)[0])
                if number < max(2, n_loop // 4):
                    taken, there = sklearn_loop(states, label, fold, tol=1e-7, max_iter=100_000)
                    times["exact"].append(taken)
                    apart.compare(here, there)
            rows += speed_rows(f"{n_example:,} examples, {hidden:,} components, 2 classes", times)
    keep("probes", "Linear probes beside scikit-learn", rows, text=SAYING + str(apart))


SAYING = (
    "Five outer folds, six penalties, inner folds the other outer folds, the penalty by log loss; seconds of"
    " processors, one thread. LogisticRegressionCV standardises once for each outer fold and stops early as it comes;"
    " converged is tol=1e-7. Ours also leaves the refit of the reports, and is converged. Of our time at 1,000 examples"
    " of 768 components four fifths are products of the states with a column for each training set, of which BLAS"
    " makes some 50 GFLOP/s."
)


def speed_rows(what: str, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows of one size: ratios of the means, as the loop runs on some of the cells only."""
    plain, controlled, loop, exact = (float(np.mean(values)) for values in times.values())
    kinds = (("as it comes", "loop", loop), ("converged", "exact", exact))
    return [
        {
            "what": what + (", with 3 controls" if own is controlled else ""),
            "beside": f"LogisticRegressionCV {how}",
            "ours, s a cell": times["controlled" if own is controlled else "plain"],
            "scikit-learn, s a cell": [value * factor for value in times[name]],
            "times ours": factor * theirs / own,
        }
        for own, factor in ((plain, 1), (controlled, 4))
        for how, name, theirs in kinds
    ]


KINDS = ("noise", "weak", "separable", "imbalanced", "correlated")


def random_problem(seed: int, most_example: int = 2000, most_hidden: int = 768) -> tuple[str, Any, Any, Any]:
    """A kind, states, labels and folds: 2 to 5 classes, 40 rows and 8 components or more, every kind in turn."""
    rng = np.random.default_rng(seed)
    kind, n_class = KINDS[seed % len(KINDS)], int(rng.integers(2, 6))
    n_example, hidden = (
        int(np.exp(rng.uniform(np.log(low), np.log(high)))) for low, high in ((40, most_example), (8, most_hidden))
    )
    share = np.full(n_class, 1 / n_class)
    if kind == "imbalanced":
        share = 0.5 ** np.arange(n_class) * np.where(np.arange(n_class) == 0, 3.0, 1.0)
    label = rng.choice(n_class, n_example, p=share / share.sum())
    label[: N_FOLD * n_class] = np.arange(N_FOLD * n_class) % n_class
    states = rng.standard_normal((n_example, hidden))
    signal = {"noise": 0.0, "weak": 0.3, "separable": 3.0, "imbalanced": 0.5, "correlated": 0.5}[kind]
    states += signal * rng.standard_normal((n_class, hidden))[label]
    if kind == "correlated":
        states = (states / (1.0 + np.arange(hidden))) @ rng.standard_normal((hidden, hidden))
    states = states * np.exp(rng.standard_normal(hidden)) + 3.0 * rng.standard_normal(hidden)
    fold = np.empty(n_example, dtype=int)
    splits = StratifiedKFold(N_FOLD, shuffle=True, random_state=seed).split(label, label)
    for part, (_, held_out) in enumerate(splits):
        fold[held_out] = part
    return kind, states.astype(np.float32), label, fold


def converged_search(states: Any, label: Any, fold: Any, outer: int) -> Any:
    """Grid search of one outer training set by scikit-learn, scaling in every fit, every fit to its end.

    A principal axis for each component or row leaves the solution as it is, and Newton's method little to do.
    """
    train = fold != outer
    few = min(states.shape[1], int(train.sum())) * len(np.unique(label)) <= 600
    options = {"solver": "newton-cholesky", "tol": 1e-8} if few else {"tol": 1e-10, "max_iter": 100_000}
    return GridSearchCV(
        make_pipeline(StandardScaler(), PCA(svd_solver="full"), LogisticRegression(**options)),
        {"logisticregression__C": list(PENALTIES)},
        cv=inner_splits(fold, outer),
        scoring="neg_log_loss",
    ).fit(states[train].astype(np.float64), label[train])


def agreement(quick: bool) -> None:
    """Print differences from converged scikit-learn over random problems."""
    n_problem = 20 if quick else 200
    worst, moved, folds = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    seconds = reference = 0.0
    for seed in range(n_problem):
        kind, states, label, fold = random_problem(seed)
        start = time.process_time()
        fit = nested_logistic(states, label[:, None], fold, penalty=PENALTIES)
        seconds += time.process_time() - start
        assert not fit.unsolved
        start = time.process_time()
        for outer in (0, 1):
            search = converged_search(states, label, fold, outer)
            held_out = fold == outer
            there = search.predict_proba(states[held_out].astype(np.float64))
            folds[kind] += 1
            if search.best_params_["logisticregression__C"] != fit.chosen[outer, 0]:
                moved[kind] += 1
                tried = -search.cv_results_["mean_test_score"]
                print(
                    f"problem {seed}, {kind}, {states.shape}, fold {outer}: C {fit.chosen[outer, 0]:g}; scikit-learn's"
                    f" losses by C {', '.join(f'{loss:.6f}' for loss in tried)}"
                )
            else:
                worst[kind] = max(worst[kind], float(np.abs(there - fit.score[held_out, 0]).max()))
        reference += time.process_time() - start
    for kind in KINDS:
        print(
            f"{kind}: another penalty in {moved[kind]} of {folds[kind]} outer folds; held-out probabilities differ by"
            f" {worst[kind]:.1e} at most"
        )
    print(
        f"{n_problem} problems: another penalty in {sum(moved.values())} of {sum(folds.values())} outer folds, largest"
        f" difference {max(worst.values()):.1e}; {seconds:.0f} s, scikit-learn {reference:.0f} s for two folds of five",
        flush=True,
    )


def lazy_run(n_example: int, hidden: int, n_layer: int = 2) -> xr.Dataset:
    """A run whose states are made up block by block when they are read."""

    def block(block_info: Any = None) -> Any:
        where = block_info[None]["chunk-location"]
        shape = block_info[None]["chunk-shape"]
        return np.random.default_rng(where).standard_normal(shape, dtype=np.float32).astype(np.float16)

    chunks = ((250,) * (n_example // 250), (1,) * n_layer, (1,) * 3, (hidden,))
    states = da.map_blocks(block, chunks=chunks, dtype=np.float16, meta=np.empty((0,) * 4, np.float16))
    example = np.arange(n_example)
    return xr.Dataset(
        {
            "hidden_state": (("example", "layer", "position", "hidden"), states),
            "correct": ("example", np.random.default_rng(0).random(n_example) < 0.6),
        },
        coords={"example": example, "problem": ("example", example // 2), "layer": range(n_layer),
                "position": ["bot", "ct0", "ct1"]},
    )  # fmt: skip


def memory(quick: bool) -> None:
    """Print peak memory of fresh processes."""
    for hidden in (64, 768) if quick else (64, 768, 2048):
        peaks = {}
        for n_example in (2000, 16000):
            code = f"from probes import measure; measure({n_example}, {hidden})"
            answer = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
                cwd=__file__.rpartition("/")[0],
            )
            peaks[n_example] = json.loads(answer.stdout)
        small, large = (peaks[n]["peak"] for n in (2000, 16000))
        print(
            f"d={hidden}: peak {small / 1e6:.0f} MB at 2,000 examples, {large / 1e6:.0f} MB at 16,000"
            f" ({large / small:.3f} times); before probing {peaks[2000]['before'] / 1e6:.0f} MB;"
            f" {peaks[2000]['seconds']:.1f} s and {peaks[16000]['seconds']:.1f} s",
            flush=True,
        )


def measure(n_example: int, hidden: int) -> None:
    """Probe a lazy run and print peak memory as JSON; for a process of its own."""
    run = lazy_run(n_example, hidden)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    with threadpool_limits(1):
        linear_probes(run, ProbeSettings(controls=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "before": before, "seconds": time.perf_counter() - start}))


def noise(quick: bool) -> None:
    """Print how often the tests and intervals are wrong on noise."""
    p, single, joint, training = [], [], [], []
    for seed in range(10 if quick else 40):
        run = lazy_run(250, 256)
        rng = np.random.default_rng(seed + 1000)
        states = rng.standard_normal((250, 2, 3, 256)).astype(np.float32)
        run = run.assign(hidden_state=(run["hidden_state"].dims, states), correct=("example", rng.random(250) < 0.5))
        result = linear_probes(run, ProbeSettings(per_class=50, selection="accuracy", controls=0, seed=seed))
        p += list(result["p_value"].values.ravel())
        training += list(result["refit_training_accuracy"].values.ravel())
        single += list(((result["accuracy_low"] <= 0.5) & (result["accuracy_high"] >= 0.5)).values.ravel())
        joint.append(bool(((result["accuracy_low_joint"] <= 0.5) & (result["accuracy_high_joint"] >= 0.5)).all()))
    print(
        f"50 + 50 examples of noise, d=256, {len(p)} cells: p < 0.05 in {np.mean(np.array(p) < 0.05):.3f};"
        f" 95% intervals cover chance in {np.mean(single):.3f} of cells, joint ones all cells of {np.mean(joint):.3f}"
        f" of {len(joint)} grids; accuracy on its own training rows {np.mean(training):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"speed": speed, "agreement": agreement, "memory": memory, "noise": noise}
    parser.add_argument("part", nargs="*", choices=[*parts, []], help="speed if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer cells")
    asked = parser.parse_args()
    for name in asked.part or ["speed"]:
        with threadpool_limits(1):
            parts[name](asked.quick)


if __name__ == "__main__":
    main()
