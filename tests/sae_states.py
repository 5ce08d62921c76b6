"""Planted states, and a small run and settings, that tests of dictionaries share."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from synthetic import make_run

CELLS = {"layer": [0, 1], "position": ["bot", "ct0", "ct1"]}
SMALL = {"features": 12, "epochs": 2, "batch_size": 64, "k": 3}


def python_with(*packages: str) -> str:
    """Interpreter that has these packages: that of ``make peers``, or the one LAKE_PEERS_PYTHON names; else skip."""
    peers = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
    python = os.environ.get("LAKE_PEERS_PYTHON") or (str(peers) if peers.is_file() else sys.executable)
    probe = "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"
    if subprocess.run([python, "-c", probe, *packages], check=False).returncode:
        pytest.skip(f"{' and '.join(packages)} not installed; make peers installs them apart")
    return python


def dictionary(n_true: int, hidden: int, seed: int = 0) -> np.ndarray:
    directions = np.random.default_rng([seed, 9]).normal(size=(n_true, hidden))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def plant(run: xr.Dataset, directions: np.ndarray, code: np.ndarray, seed: int = 0) -> xr.Dataset:
    """The run with hidden states that are a sparse sum of directions, off centre and not of unit norm."""
    rng = np.random.default_rng([seed, 8])
    shape = run["hidden_state"].shape
    state = 7 * (code @ directions + 0.01 * rng.normal(size=shape) + 3 * rng.normal(size=shape[-1]))
    state[np.isnan(run["hidden_state"].values)] = np.nan
    return run.assign(hidden_state=(run["hidden_state"].dims, state.astype("float32")))


def sparse_code(
    shape: tuple[int, ...], n_true: int, active: float = 3, rng: np.random.Generator | None = None
) -> np.ndarray:
    rng = rng or np.random.default_rng(7)
    return (rng.random((*shape, n_true)) < active / n_true) * rng.uniform(0.5, 1.5, (*shape, n_true))


def made_rows(n_row: int = 1000) -> xr.DataArray:
    rng = np.random.default_rng(0)
    directions = dictionary(64, 32)
    state = ((rng.random((n_row, 64)) < 0.06) * rng.exponential(1, (n_row, 64))) @ directions
    state = (state + 0.05 * rng.normal(size=state.shape)).astype("f4")
    return xr.DataArray(state, {"example": np.arange(n_row)}, ("example", "hidden"), name="hidden_state")


def small_run() -> xr.Dataset:
    return make_run(n_example=90, n_layer=2, hidden=6, n_question=2, n_answer=2, n_head=1, twins=True)
