"""From how many patched thoughts on pairs follow their donor, by the step in which they differ: for docs/claims.md.

python docs/claims.py                       # writes docs/claims.json; then: make docs
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from extract.reenter import PatchSettings, open_target, patch
from extract.run.extract import extract
from extract.run.prepare import prepare
from extract.small_models.problems import make_pairs, write_pairs
from schemas import RunSpec
from store import open_lake

OUT = Path(__file__).parent / "claims.json"
MODELS = ("small-gpt2", "small-llama")
N_PAIR = 90


def by_step(model: str, folder: Path) -> dict[str, Any]:
    """What patching the first N fed vectors does to pairs, by the step in which they first differ."""
    write_pairs(make_pairs(N_PAIR), folder / "pairs.json")
    path = folder / f"{model}.lake"
    extract(prepare(model, str(folder / "pairs.json"), path, RunSpec(max_new_tokens=8, batch_size=64)), path)
    settings = PatchSettings(sites=("latent_embedding",), subsets="none")
    result = patch(open_target(open_lake(path), f"{model}/pairs"), settings).isel(series=0)
    steps = []
    for index, step in enumerate(result["differs"].values):
        wins, low, high = (float(result[f"n_that_wins_by_step{end}"][index]) for end in ("", "_low", "_high"))
        never = np.isnan(wins)
        ends = {"wins": None if never else wins, "low": None if never else low, "high": None if never else high}
        steps.append({"step": str(step), "n": int(result["n_by_step"][index])} | ends)
    overall = {"n": int(result.attrs["n_counted"]), "ceiling": result.attrs["ceiling"]}
    return overall | {"steps": steps, "wins": float(result["n_that_wins"])}


def main() -> None:
    """Measure, and write what was measured beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        chains = {model: by_step(model, Path(folder)) for model in MODELS}
    OUT.write_text(json.dumps(chains, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
