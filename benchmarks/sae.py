"""Sparse autoencoders: time to the same loss beside SAELens, dictionary_learning and sparsify; memory.

    python benchmarks/sae.py [--quick] [--only PART] [--case NAME] [--seeds N]

The libraries run in an environment of their own, that of ``make peers`` or the one whose interpreter LAKE_PEERS_PYTHON
names. Everybody gets the same rows (unit mean norm, in memory), the same order of batches, one thread, as many steps,
and the better of two learning rates of Adam, or of the other ways that its authors name (beside/dictionaries.py). All
take turns, some steps each, and then note the objective on held-out rows (squared error, and the penalty where there is
one), off the clock; times are of processors, of the steps alone. At the end losses lie on a plateau: two are compared
by their times to 1.02 of the worse of their final losses, interpolated between what was noted, seed by seed.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from beside.dictionaries import WHO, ways
from beside.sides import Side, peers_python, versions
from results import keep

CASES = {
    "GPT-2, TopK": {"activation": "topk", "d": 768, "n": 4096, "k": 32, "steps": 200, "sparsity": 0.0},
    "GPT-2, ReLU + L1": {"activation": "relu", "d": 768, "n": 4096, "k": 32, "steps": 200, "sparsity": 0.1},
    "small, TopK": {"activation": "topk", "d": 64, "n": 512, "k": 16, "steps": 1500, "sparsity": 0.0},
    "small, ReLU + L1": {"activation": "relu", "d": 64, "n": 512, "k": 16, "steps": 1500, "sparsity": 0.1},
}
RATES, N_CHECK, N_HELD = (1e-3, 3e-3), 40, 1024
NEAR = 1.02
"""Of the worse of two final losses: what both have to reach."""
OURS = "this project"


def made_up_rows(d: int, n_row: int = 16_384, seed: int = 0) -> np.ndarray:
    """Rows of unit mean norm: about 20 of 4d directions each, some far more often than others, and noise."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(4 * d, d)).astype("float32")
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    share = 1 / np.arange(1, 4 * d + 1) ** 0.7
    share *= min(20, d / 4) / share.sum()
    rows = np.empty((n_row, d), dtype="float32")
    for part in np.split(np.arange(n_row), 16):
        code = (rng.random((len(part), 4 * d)) < share) * rng.exponential(size=(len(part), 4 * d))
        rows[part] = code.astype("float32") @ directions + 0.02 * rng.normal(size=(len(part), d))
    rows -= rows.mean(0)
    return rows / np.linalg.norm(rows, axis=1).mean()


def speed(quick: bool, chosen: str, n_seed: int) -> None:
    """Every case: all libraries in turns, and the table."""
    for name, case in CASES.items():
        if chosen not in name:
            continue
        case = case | {"steps": case["steps"] // 5 if quick else case["steps"]}
        with tempfile.TemporaryDirectory() as folder:
            rows = made_up_rows(case["d"])
            np.save(Path(folder, "train.npy"), rows[:-N_HELD])
            np.save(Path(folder, "held.npy"), rows[-N_HELD:])
            curves = train(case, folder, n_seed)
        text = (
            f"{case['d']} components, {case['n']:,} features, batches of 256, {case['steps']} steps, {n_seed} seed(s),"
            f" one thread. {SAYING}{WHY.get(name, '')}"
        )
        file = f"sae-{name.lower().replace(', ', '-').replace(' + ', '-')}"
        peers = versions(peers_python("sae"), "sae-lens", "dictionary-learning", "eai-sparsify", "torch")
        peers = {"torch of peers": peers.pop("torch"), **peers}
        keep(file, f"Sparse autoencoders: {name}", table(curves, case["steps"]), text=text, versions=peers)


SAYING = (
    "Everybody gets the same rows in the same order and the better of two learning rates of Adam, or of another way"
    " that its authors name; all take turns, some steps each. Seconds are of processors, of the steps alone. Time to"
    f" the same loss: to {NEAR} of the worse of both final held-out losses, seed by seed."
)
WHY = {
    "small, ReLU + L1": " Half of this project's step is five products of the batch with weights, of which BLAS makes"
    " some 80 GFLOP/s; the rest is passes over codes and weights."
}
"""What it is that keeps this project from more."""
Curve = list[dict[str, float]]


def train(case: dict[str, Any], folder: str, n_seed: int) -> dict[tuple[str, str], list[Curve]]:
    """What everybody noted, by library and way: for each seed, the seconds, losses and codes at each check.

    After the first seed only the better way of each goes on.
    """
    curves: dict[tuple[str, str], list[Curve]] = {}
    sides = {}
    for who in WHO:
        if ways(who, case["activation"]):
            python = {} if who == OURS else {"python": peers_python("sae"), "path": ""}
            sides[who] = Side("dictionaries.py", who, folder, json.dumps(case), **python)
            for way in ways(who, case["activation"]):
                curves |= {(who, f"{way}, {rate:g}"): [] for rate in (RATES if way != "signum" else RATES[:1])}
    for seed in range(n_seed):
        for who, how in curves:
            way, rate = how.rsplit(", ", 1)
            sides[who]("begin", name=how, way=way, rate=float(rate), seed=seed)
            curves[who, how].append([])
        for check in range(N_CHECK):
            order = list(curves)
            for who, how in order[check % len(order) :] + order[: check % len(order)]:
                steps = case["steps"] * (check + 1) // N_CHECK - case["steps"] * check // N_CHECK
                noted = sides[who]("go_on", name=how, steps=steps)["value"]
                before = curves[who, how][-1][-1]["seconds"] if check else 0.0
                curves[who, how][-1].append(noted | {"seconds": before + noted["seconds"]})
        for who, how in curves:
            sides[who]("end", name=how)
        best = {who: min((key for key in curves if key[0] == who), key=lambda key: worth(curves, key)) for who in sides}
        curves = {key: value for key, value in curves.items() if key in best.values()}
    for side in sides.values():
        side.end()
    return curves


def worth(curves: dict[tuple[str, str], list[Curve]], key: tuple[str, str]) -> float:
    """Time to near the best final loss of any way of the same library, in the first seed."""
    final = min(other[0][-1]["loss"] for (who, _), other in curves.items() if who == key[0])
    return seconds_to(NEAR * final, curves[key][0])


def seconds_to(goal: float, curve: Curve) -> float:
    """Seconds until the loss is no more than ``goal``, straight from check to check; infinite if it never is."""
    before = {"seconds": 0.0, "loss": np.inf}
    for noted in curve:
        if noted["loss"] <= goal:
            if not np.isfinite(before["loss"]):
                return noted["seconds"]
            share = (before["loss"] - goal) / (before["loss"] - noted["loss"])
            return float(before["seconds"] + share * (noted["seconds"] - before["seconds"]))
        before = noted
    return float("inf")


def table(curves: dict[tuple[str, str], list[Curve]], steps: int) -> list[dict[str, Any]]:
    """A row for each library."""
    rows, (ours,) = [], (value for (who, _), value in curves.items() if who == OURS)
    for (who, how), theirs in curves.items():
        row: dict[str, Any] = {
            "who": who,
            "how, rate": "signum, its own" if how.startswith("signum") else how,
            "ms a step": [1000 * curve[-1]["seconds"] / steps for curve in theirs],
            "held-out loss": [curve[-1]["loss"] for curve in theirs],
            "L0": [curve[-1]["l0"] for curve in theirs],
        }
        if who != OURS:
            goals = [NEAR * max(a[-1]["loss"], b[-1]["loss"]) for a, b in zip(theirs, ours, strict=True)]
            row["s to the same loss"] = [seconds_to(goal, curve) for goal, curve in zip(goals, theirs, strict=True)]
            row["ours, s"] = [seconds_to(goal, curve) for goal, curve in zip(goals, ours, strict=True)]
            row["times ours"] = [a / b for a, b in zip(row["s to the same loss"], row["ours, s"], strict=True)]
        rows.append(row)
    return rows


def memory() -> None:
    """Peak memory of training, measuring and predicting errors on a lake-like store of 2,000 and 16,000 examples."""
    peaks = {}
    for n_example in (2_000, 16_000):
        done = subprocess.run(
            [sys.executable, __file__, "--memory", str(n_example)], capture_output=True, text=True, check=True
        )
        peaks[n_example], seconds = map(float, done.stdout.split())
        print(f"{n_example:6d} examples x 14 cells x 256: peak {peaks[n_example]:.0f} MiB, {seconds:.0f} s")
    print(f"growth {100 * (peaks[16_000] / peaks[2_000] - 1):+.1f}%")


def memory_of(n_example: int) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import dask
    import torch
    import xarray as xr

    from analyze.errors.prediction import predict_errors
    from analyze.errors.spec import ErrorSpec
    from analyze.sae.dictionary import SAESpec, train_sae

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), n_example)
        with dask.config.set(scheduler="threads", num_workers=2):
            run = xr.open_zarr(folder, consolidated=False)
            start = time.perf_counter()
            sae = train_sae(run["hidden_state"], SAESpec(features=512, epochs=max(1, 16_000 // n_example)))
            predict_errors(run, sae, spec=ErrorSpec(resamples=200, penalties=(1e-3, 1e-2), max_iterations=30))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(peak, time.perf_counter() - start)


def write_store(folder: Path, n_example: int) -> None:
    """Activations in chunks of 250 examples and one cell, written piece by piece so that writing takes no memory."""
    import dask.array as da
    import xarray as xr

    def piece(block_info: Any = None) -> np.ndarray:
        where = block_info[None]["array-location"]
        rng = np.random.default_rng([low for low, _ in where])
        return rng.normal(size=[high - low for low, high in where]).astype("float16")

    chunks = ((250,) * (n_example // 250), (1,) * 2, (1,) * 7, (256,))
    state = da.map_blocks(piece, chunks=chunks, dtype="float16", meta=np.empty((0,) * 4, "float16"))
    rng = np.random.default_rng(0)
    run = xr.Dataset(
        {
            "hidden_state": (("example", "layer", "position", "hidden"), state),
            "correct": ("example", rng.random(n_example) < 0.5),
        },
        coords={
            "example": np.arange(n_example),
            "problem": ("example", np.arange(n_example) // 2),
            "layer": np.arange(2),
            "position": np.arange(7),
        },
    )
    run.to_zarr(folder, mode="w", consolidated=False, zarr_format=3)


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        memory_of(int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps")
    parser.add_argument("--only", choices=("speed", "memory"), help="one part")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    parser.add_argument("--seeds", type=int, help="by default 3, or 1 with --quick")
    arguments = parser.parse_args()
    if arguments.only != "memory":
        speed(arguments.quick, arguments.case, arguments.seeds or (1 if arguments.quick else 3))
    if arguments.only != "speed":
        memory()


if __name__ == "__main__":
    main()
