"""Lakes of the shipped models over a few drawn problems, and how results of re-entries are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from codi_models import ORACLE

from extract import Reasoner
from extract.model.capture import KeyValues
from extract.reenter import Target, open_target
from extract.run.extract import extract, prepare
from extract.small_models.problems import make_hard, make_pairs, make_splits, write_pairs, write_problems
from schemas import RunSpec
from store import open_lake

torch.set_num_threads(1)
MODELS = ("small-gpt2", "small-llama", "small-gpt2-decodable", "small-llama-decodable")


def states_of(reasoner: Reasoner, vectors: torch.Tensor) -> torch.Tensor:
    """Final states (place, hidden) of a sequence of vectors, fed whole, without a cache."""
    return reasoner.model.base_model(inputs_embeds=vectors[None]).last_hidden_state[0]


def story_lake(
    root: Path, models: Sequence[str], test: Mapping[int, int] | None = None, *, hard: int = 0, pairs: int = 0,
    **spec: Any,
) -> Path:  # fmt: skip
    """A lake, in float32, of models over ``test``, ``hard`` and ``pairs``, as many of each as are asked for.

    ``test`` is how many problems there are of each number of operations, ``spec`` other settings of the runs.
    """
    if test:
        write_problems(make_splits(3, {"test": dict(test)})["test"], root / "test.jsonl")
    if hard:
        write_problems(make_hard(hard, 5), root / "hard.jsonl")
    if pairs:
        write_pairs(make_pairs(pairs, 3), root / "pairs.json")
    settings = RunSpec(**{"dtype": "float32", "batch_size": 100, "max_new_tokens": 10} | spec)
    for model in models:
        for data in sorted([*root.glob("*.jsonl"), *root.glob("*.json")]):
            extract(prepare(model, str(data), root / "a.lake", settings), root / "a.lake")
    return root / "a.lake"


def make_lake(root: Path) -> None:
    """The lake that several test files share, and its data beside it."""
    story_lake(root, MODELS, {2: 16, 3: 16, 4: 16}, pairs=16)


def target(folder: Path, model: str, data: str = "test", **options: Any) -> Target:
    """A run and its model, opened for re-entry."""
    return open_target(open_lake(folder), f"{model}/{data}", **options)


def oracle_target(folder: Path, data: str, architecture: str) -> Target:
    """The random model's run, opened for re-entry."""
    model, base = (str(ORACLE / f"{kind}-{architecture}") for kind in ("codi", "base"))
    return target(folder, "oracle", data, checkpoint=model, base=base)


def figure(result: xr.Dataset, variable: str, **labels: Any) -> float:
    """One figure, by the coordinates of its condition."""
    found = np.ones(result.sizes["condition"], dtype=bool)
    for name, value in {"control": "", **labels}.items():
        found &= result[name].values == value
    assert found.sum() == 1, labels
    part = result[variable]
    part = part.sel(stratum="all") if "stratum" in part.dims else part
    return float(part.values[found][0])


def lose_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cache of keys and values pass no gradient."""
    update = KeyValues.update

    def detached(self: KeyValues, *arguments: Any, **options: Any) -> Any:
        out = update(self, *arguments, **options)
        self._keys = [each.detach() for each in self._keys]
        self._values = [each.detach() for each in self._values]
        return out

    monkeypatch.setattr(KeyValues, "update", detached)
