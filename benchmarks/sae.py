"""Sparse autoencoders: time to the same loss beside SAELens, dictionary_learning and sparsify; memory.

    python benchmarks/sae.py [--quick]

The libraries run in an interpreter of their own, that of ``make peers`` or the one LAKE_PEERS_PYTHON names;
without it only this project is measured. Everybody gets the same rows (unit mean norm, in memory), the same order of
batches, one thread, as many steps, and the better of two learning rates of Adam. Every few steps the objective on
held-out rows (squared error, and the penalty where there is one) is noted, off the clock; times are of the process,
so that other work on the machine does not count. Two are compared by their times to the worse of their final losses.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results import keep

CASES = {
    "GPT-2, TopK": {"activation": "topk", "d": 768, "n": 4096, "k": 32, "steps": 200, "sparsity": 0.0},
    "GPT-2, ReLU + L1": {"activation": "relu", "d": 768, "n": 4096, "k": 32, "steps": 200, "sparsity": 0.1},
    "small, TopK": {"activation": "topk", "d": 64, "n": 512, "k": 16, "steps": 1500, "sparsity": 0.0},
    "small, ReLU + L1": {"activation": "relu", "d": 64, "n": 512, "k": 16, "steps": 1500, "sparsity": 0.1},
}
BATCH, RATES, N_CHECK, N_HELD = 256, (1e-3, 3e-3), 20, 1024


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


def batches(train: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(1)
    for _ in range(steps):
        yield train[rng.integers(0, len(train), BATCH)]


def timed(step: Callable[[Any], None], loss: Callable[[], float], train: np.ndarray, steps: int) -> dict[str, Any]:
    """CPU seconds at each check and the held-out loss there."""
    curve, spent, wall = [], 0.0, 0.0
    for number, batch in enumerate(batches(train, steps), 1):
        start, clock = time.process_time(), time.perf_counter()
        step(batch)
        spent, wall = spent + time.process_time() - start, wall + time.perf_counter() - clock
        if number % max(1, steps // N_CHECK) == 0:
            curve.append((spent, loss()))
    return {"curve": curve, "cpu": spent, "wall": wall}


def run_ours(case: dict[str, Any], train: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from analyze.sae.spec import SAESpec
    from analyze.sae.train import Trainer

    spec = SAESpec(
        activation=case["activation"],
        k=case["k"],
        sparsity=case["sparsity"],
        learning_rate=case["rate"],
        schedule=False,
    )
    trainer = Trainer(1, case["d"], case["n"], spec, case["steps"])

    def loss() -> float:
        w = {name: value[0] for name, value in trainer.weights().items()}
        code = np.maximum((held - w["b_dec"]) @ w["w_enc"].T + w["b_enc"], 0)
        return float(trainer.loss(held[None])[0][0]) + case["sparsity"] * float(code.sum(-1).mean())

    found = timed(lambda x: trainer.step(x[None]) and None, loss, train, case["steps"])
    return found | {"l0": float(trainer.loss(held[None])[1][0])}


def run_sae_lens(case: dict[str, Any], train: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    import torch
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    common = {"d_in": case["d"], "d_sae": case["n"]}
    sae: Any
    if case["activation"] == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**common, k=case["k"]))
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(**common, l1_coefficient=case["sparsity"]))
    config = SAETrainerConfig(case["steps"] * BATCH, BATCH, lr=case["rate"], lr_end=case["rate"])
    trainer = SAETrainer(config, sae, iter(()))
    rows = torch.from_numpy(held)

    def step(batch: np.ndarray) -> None:
        trainer.step(torch.from_numpy(batch))
        trainer.n_training_steps += 1

    @torch.no_grad()
    def loss() -> float:
        price = (sae.encode(rows) * sae.W_dec.norm(dim=1)).sum(-1) if case["sparsity"] else torch.zeros(())
        return float((sae(rows) - rows).square().sum(-1).mean() + case["sparsity"] * price.mean())

    found = timed(step, loss, train, case["steps"])
    with torch.no_grad():
        return found | {"l0": float((sae.encode(rows) != 0).sum(-1).float().mean())}


def run_dictionary_learning(case: dict[str, Any], train: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    import torch
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {"steps": case["steps"], "activation_dim": case["d"], "dict_size": case["n"], "layer": 0, "lm_name": "-"}
    common |= {"lr": case["rate"], "warmup_steps": 1, "device": "cpu", "seed": 0}
    trainer: Any
    if case["activation"] == "topk":
        trainer = TopKTrainer(**common, k=case["k"])
    else:
        trainer = StandardTrainer(**common, l1_penalty=case["sparsity"], sparsity_warmup_steps=None)
    rows = torch.from_numpy(held)
    number = iter(range(case["steps"]))

    @torch.no_grad()
    def loss() -> float:
        price = trainer.ae.encode(rows).sum(-1) if case["sparsity"] else torch.zeros(())
        return float((trainer.ae(rows) - rows).square().sum(-1).mean() + case["sparsity"] * price.mean())

    found = timed(lambda x: trainer.update(next(number), torch.from_numpy(x)), loss, train, case["steps"])
    with torch.no_grad():
        return found | {"l0": float((trainer.ae.encode(rows) != 0).sum(-1).float().mean())}


def run_sparsify(case: dict[str, Any], train: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    """Train its coder by the steps of its trainer, which itself wants a language model to draw activations from."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    coder = SparseCoder(case["d"], SparseCoderConfig(num_latents=case["n"], k=case["k"]), dtype=torch.float32)
    optimizer = torch.optim.Adam(coder.parameters(), lr=case["rate"])
    rows = torch.from_numpy(held)

    def step(batch: np.ndarray) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(torch.from_numpy(batch)).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def loss() -> float:
        return float((coder(rows).sae_out - rows).square().sum(-1).mean())

    with torch.no_grad():
        coder.b_dec.data = torch.from_numpy(train[:BATCH]).mean(0)
    found = timed(step, loss, train, case["steps"])
    with torch.no_grad():
        return found | {"l0": float((coder.encode(rows).top_acts > 0).sum(-1).float().mean())}


WHO = {
    "this project": run_ours,
    "SAELens": run_sae_lens,
    "dictionary_learning": run_dictionary_learning,
    "sparsify": run_sparsify,
}
ONLY_TOPK = ("sparsify",)


def measure(who: str, name: str, folder: Path, steps: int, rate: float) -> dict[str, Any] | None:
    """One run in a fresh interpreter; None where the library is not to be had."""
    peers = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
    other = os.environ.get("LAKE_PEERS_PYTHON") or (str(peers) if peers.is_file() else None)
    python = sys.executable if who == "this project" else other
    if python is None:
        return None
    arguments = [python, __file__, "--one", who, name, str(folder), str(steps), str(rate)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{who} failed: {done.stderr.strip().splitlines()[-1]}\n")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(quick: bool, chosen: str) -> None:
    for name, case in CASES.items():
        if chosen not in name:
            continue
        steps = case["steps"] // 5 if quick else case["steps"]
        with tempfile.TemporaryDirectory() as folder:
            rows = made_up_rows(case["d"])
            np.save(Path(folder, "train.npy"), rows[:-N_HELD])
            np.save(Path(folder, "held.npy"), rows[-N_HELD:])
            found = {who: [measure(who, name, Path(folder), steps, rate) for rate in RATES] for who in able(case)}
        best = {who: min(f, key=lambda one: one["curve"][-1][1]) for who, f in found.items() if None not in f}
        rows = [row_of(who, best, RATES[found[who].index(best[who])], steps) for who in best]
        text = f"{case['d']} components, {case['n']:,} features, batches of {BATCH}, {steps} steps, one thread."
        file = f"sae-{name.lower().replace(', ', '-').replace(' + ', '-')}"
        keep(file, f"Sparse autoencoders: {name}", rows, text=f"{text} {SAYING}")


SAYING = (
    "Everybody gets the same rows in the same order and the better of two learning rates; seconds are of processors, of"
    " the steps alone. Time to the same loss: to the worse of both final held-out losses."
)


def able(case: dict[str, Any]) -> list[str]:
    """Trainers that know a case's activation."""
    return [who for who in WHO if case["activation"] == "topk" or who not in ONLY_TOPK]


def row_of(who: str, best: dict[str, Any], rate: float, steps: int) -> dict[str, Any]:
    """One trainer's row, beside this project's best."""
    one, ours = best[who], best["this project"]
    goal = max(one["curve"][-1][1], ours["curve"][-1][1])
    theirs, mine = (next(s for s, loss in each["curve"] if loss <= goal) for each in (one, ours))
    row = {"who": who, "rate": rate, "ms a step": 1000 * one["cpu"] / steps, "held-out loss": one["curve"][-1][1]}
    row |= {"L0": one["l0"]}
    return row if one is ours else row | {"s to the same loss": theirs, "ours, s": mine, "times ours": theirs / mine}


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
    if sys.argv[1:2] == ["--one"]:
        import torch

        torch.set_num_threads(1)
        _, _, who, name, folder, steps, rate = sys.argv
        train, held = (np.load(Path(folder, f"{part}.npy")) for part in ("train", "held"))
        print(json.dumps(WHO[who](CASES[name] | {"steps": int(steps), "rate": float(rate)}, train, held)))
        return
    if sys.argv[1:2] == ["--memory"]:
        memory_of(int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps")
    parser.add_argument("--only", choices=("speed", "memory"), help="one part")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    arguments = parser.parse_args()
    if arguments.only != "memory":
        speed(arguments.quick, arguments.case)
    if arguments.only != "speed":
        memory()


if __name__ == "__main__":
    main()
