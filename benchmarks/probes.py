"""Linear probes against a loop of scikit-learn's LogisticRegressionCV, cell by cell; their memory; calm on noise.

    python benchmarks/probes.py [speed] [agreement] [memory] [noise] [--quick]

speed      Nested five-fold cross-validation of a 12 x 6 grid at 768 components and a 16 x 6 grid at 2048, six
           penalties, at the reports' 100 examples and at 1,000. Both sides have the same folds, penalties and one BLAS
           thread, and are timed in CPU seconds, turn about. scikit-learn standardises and runs LogisticRegressionCV
           (inner folds: the other outer folds) once for each outer fold. Its default tolerance stops early (at weak
           penalties held-out probabilities are off by tens of percent); "converged" is tol=1e-7. Ours also leaves the
           refit of the reports, and with controls three more label sets; all that is in its time. At 1,000 examples
           the loop runs on a few cells of the grid, ours on all, and the ratio is of their times for one cell.
agreement  Largest difference of held-out probabilities from converged scikit-learn's with a scaler inside every fit
           (GridSearchCV over a pipeline), and outer folds that choose another penalty: of ours at its default and at
           a tight tolerance, and of scikit-learn's own default.
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
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from analyze.probe_solver import nested_logistic
from analyze.probes import PENALTIES, linear_probes

N_FOLD = 5


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


def sklearn_loop(states: Any, label: Any, fold: Any, **options: Any) -> float:
    """CPU seconds of the loop for one cell."""
    start = time.process_time()
    for outer in range(N_FOLD):
        train = fold != outer
        probe = LogisticRegressionCV(
            Cs=list(PENALTIES),
            cv=inner_splits(fold, outer),
            scoring="accuracy",
            l1_ratios=(0,),
            use_legacy_attributes=False,
            **{"max_iter": 1000, **options},
        )
        make_pipeline(StandardScaler(), probe).fit(states[train].astype(np.float64), label[train])
    return time.process_time() - start


def ours(states: Any, label: Any, fold: Any, n_control: int) -> float:
    """CPU seconds of the solver for one cell."""
    rng = np.random.default_rng(0)
    labels = np.stack([label, *(rng.permutation(label) for _ in range(n_control))], axis=1)
    start = time.process_time()
    nested_logistic(states, labels, fold, penalty=PENALTIES, selection="accuracy")
    return time.process_time() - start


def speed(quick: bool) -> None:
    """Print times of both and their ratios."""
    print("CPU seconds of a cell, one thread; ratio to the loop as it comes / converged")
    for n_example in (100, 1000):
        for grid, hidden in (((12, 6), 768), ((16, 6), 2048)):
            n_cell = 12 if quick else grid[0] * grid[1]
            n_loop = n_cell if n_example == 100 else 2 if quick else 8
            cells, label, fold = made_up_cells(n_cell, n_example, hidden)
            times: dict[str, list[float]] = {"plain": [], "controlled": [], "loop": [], "exact": []}
            for number, states in enumerate(cells):
                if not number:
                    ours(states, label, fold, 0)
                times["plain"].append(ours(states, label, fold, 0))
                times["controlled"].append(ours(states, label, fold, 3))
                if number < n_loop:
                    times["loop"].append(sklearn_loop(states, label, fold))
                if number < max(2, n_loop // 4):
                    times["exact"].append(sklearn_loop(states, label, fold, tol=1e-7, max_iter=100_000))
            plain, controlled, loop, exact = (float(np.mean(values)) for values in times.values())
            print(
                f"{n_example:>5} examples, {grid[0]} x {grid[1]}, d={hidden}: ours {plain:.4f} s"
                f" (with 3 controls {controlled:.4f} s), loop {loop:.2f} s, converged {exact:.2f} s;"
                f" ratio {loop / plain:.1f} / {exact / plain:.1f}, with the same 3 controls"
                f" {4 * loop / controlled:.1f} / {4 * exact / controlled:.1f}"
                f"  [cells timed: ours {n_cell}, loop {n_loop}, converged {len(times['exact'])}]",
                flush=True,
            )


def agreement(quick: bool) -> None:
    """Print the largest differences from converged scikit-learn over a grid."""
    for n_example, hidden in ((100, 768), (100, 2048), (400, 64), (500, 450), (1000, 768)):
        n_cell = 4 if quick or n_example == 1000 else 24
        cells, label, fold = made_up_cells(n_cell, n_example, hidden, seed=1)
        worst = {"default": 0.0, "tight": 0.0, "scikit-learn's default": 0.0}
        moved = dict.fromkeys(worst, 0)
        for states in cells:
            fits = {
                "default": nested_logistic(states, label[:, None], fold, penalty=PENALTIES),
                "tight": nested_logistic(states, label[:, None], fold, penalty=PENALTIES, tolerance=1e-6),
            }
            for outer in range(N_FOLD):
                train = fold != outer
                exact, early = (
                    GridSearchCV(
                        make_pipeline(StandardScaler(), LogisticRegression(**options)),
                        {"logisticregression__C": list(PENALTIES)},
                        cv=inner_splits(fold, outer),
                        scoring="neg_log_loss",
                    ).fit(states[train].astype(np.float64), label[train])
                    for options in ({"tol": 1e-9, "max_iter": 100_000}, {"max_iter": 1000})
                )
                chosen = exact.best_params_["logisticregression__C"]
                held_out = states[~train].astype(np.float64)
                there = exact.predict_proba(held_out)
                found = {name: (fit.chosen[outer, 0], fit.score[~train, 0]) for name, fit in fits.items()}
                found["scikit-learn's default"] = (
                    early.best_params_["logisticregression__C"],
                    early.predict_proba(held_out),
                )
                for name, (penalty, here) in found.items():
                    if penalty != chosen:
                        moved[name] += 1
                    else:
                        worst[name] = max(worst[name], float(np.abs(there - here).max()))
        print(
            f"{n_example} examples, d={hidden}, {n_cell} cells: "
            + "; ".join(
                f"{name} differs by {worst[name]:.1e}, another penalty in {moved[name]} of {n_cell * N_FOLD} folds"
                for name in worst
            ),
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
        linear_probes(run, n_control=1)
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
        result = linear_probes(run, n_per_class=50, selection="accuracy", n_control=0, seed=seed)
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
    parser.add_argument("part", nargs="*", choices=[*parts, []], help="all if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer cells")
    asked = parser.parse_args()
    for name in asked.part or parts:
        with threadpool_limits(1):
            parts[name](asked.quick)


if __name__ == "__main__":
    main()
