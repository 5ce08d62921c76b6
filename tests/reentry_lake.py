"""A lake of the shipped models over a few problems and pairs, and how its results are read."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter import Target, open_target
from extract.run.extract import extract, prepare
from extract.small_models.problems import make_pairs, make_splits, write_pairs, write_problems
from schemas import RunSpec
from store import open_lake

MODELS = ("small-gpt2", "small-llama", "small-gpt2-decodable", "small-llama-decodable")


def make_lake(root: Path) -> None:
    """Write the lake, in float32, and its data beside it."""
    write_problems(make_splits(3, {"test": {2: 16, 3: 16, 4: 16}})["test"], root / "test.jsonl")
    write_pairs(make_pairs(16, 3), root / "pairs.json")
    spec = RunSpec(dtype="float32", batch_size=48, max_new_tokens=10)
    for model in MODELS:
        for data in ("test.jsonl", "pairs.json"):
            extract(prepare(model, str(root / data), root / "a.lake", spec), root / "a.lake")


def target(folder: Path, model: str, data: str = "test", **options: Any) -> Target:
    """A model to go back into."""
    return open_target(open_lake(folder), f"{model}/{data}", **options)


def figure(result: xr.Dataset, variable: str, **labels: Any) -> float:
    """One figure, by the coordinates of its condition."""
    found = np.ones(result.sizes["condition"], dtype=bool)
    for name, value in {"control": "", **labels}.items():
        found &= result[name].values == value
    assert found.sum() == 1, labels
    part = result[variable]
    part = part.sel(stratum="all") if "stratum" in part.dims else part
    return float(part.values[found][0])
