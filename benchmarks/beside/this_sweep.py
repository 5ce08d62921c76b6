"""Patching by this project: every condition of a sweep at once.

    python this_sweep.py MODEL BASE DATA SETTINGS LAKE [LAYER ..]

As this_project.py; LAKE is where the run lies or is made, LAYER what is patched, by default all.
"""

import os
import sys
from typing import Any

import numpy as np
import torch
from this_project import Works
from work import serve

from extract.reenter.intervene import _change
from extract.reenter.sweep import Condition, sweep
from extract.reenter.values import StoredValues
from extract.run.extract import extract
from schemas import Intervention
from store import open_lake


class Sweep(Works):
    """Works of this side."""

    def __init__(self, model: str, base: str, data: str, settings: str, lake: str, *layers: str) -> None:
        super().__init__(model, base, data, settings)
        extract(self.prepared, lake)
        self.run = open_lake(lake)[self.prepared.run].load()
        self.values = StoredValues(self.run, self.prepared.reasoner)
        self.thoughts = [f"ct{index}" for index in range(self.prepared.reasoner.n_latent)]
        self.layers = list(map(int, layers)) or list(range(self.prepared.reasoner.n_layer))
        self.places = [(layer, thought) for layer in self.layers for thought in self.thoughts]
        self.conditions = [
            Condition(name=f"{layer} {thought}", interventions=(self._at(layer, thought),))
            for layer, thought in self.places
        ]

    @staticmethod
    def _at(layer: int, thought: str) -> Intervention:
        return Intervention(
            site="hidden_state", operation="replace", donor="other", layers=(layer,), positions=(thought,)
        )

    def patches(self, out: str) -> None:
        """Write what goes in: layers, and values (layer, thought, example, hidden)."""
        rows = np.arange(self.run.sizes["example"])
        changes = [_change(self._at(*place), self.values, rows, *place).value for place in self.places]
        grid = np.array([np.asarray(value) for value in changes], dtype="float32")
        np.savez(out, layers=self.layers, values=grid.reshape(-1, len(self.thoughts), *grid.shape[1:]))

    def patched(self) -> list[list[str]]:
        """Answers by condition and question."""
        reasoner, gold = self.prepared.reasoner, [str(text) for text in self.run["gold_answer"].values]
        found: Any = sweep(
            reasoner, self.run, self.conditions, answers={"gold": gold}, values=self.values,
            max_new_tokens=self.prepared.spec.max_new_tokens,
        )  # fmt: skip
        texts: list[list[str]] = found["generated_text"].values[1:].tolist()
        return texts

    def decode(self, tokens: list[list[list[int]]]) -> list[list[str]]:
        """Texts of what another side wrote, in the order of the questions."""
        order = np.argsort([index for batch in self.batches for index in batch])
        texts = [[self.prepared.reasoner.decode(row) for row in each] for each in tokens]
        return [[each[place] for place in order] for each in texts]


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    works = Sweep(*sys.argv[1:])
    serve({name: getattr(works, name) for name in ("job", "patches", "patched", "decode")})
