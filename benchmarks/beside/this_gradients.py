"""Integrated gradients, Jacobians and attribution patching by this project.

    python this_gradients.py MODEL DATA SETTINGS LAKE

As this_project.py; LAKE is where the run lies or is made. DATA holds pairs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from this_project import Works
from work import serve

from extract.reenter import GradientSettings, integrated_gradients, open_target
from extract.reenter.answers import answers_apart, laid_apart
from extract.reenter.attribute.kernels import score_batch
from extract.reenter.attribute.pairs import nodes_of, pairs_to_score
from extract.reenter.gradients.experiment import _vectors, other_answers
from extract.reenter.jacobian.passes import forward_sums
from extract.run.extract import extract
from schemas.naming import FED
from store import open_lake

CHUNK = 64
Array = np.ndarray[Any, Any]


class Gradients(Works):
    """Works of this side."""

    def __init__(self, model: str, data: str, settings: str, lake: str) -> None:
        super().__init__(model, "", data, settings)
        extract(self.prepared, lake)
        self.target = open_target(open_lake(lake), self.prepared.run)
        self.reasoner = self.target.reasoner
        self.pairs = pairs_to_score(self.target, one_length=False)
        self.nodes = nodes_of(self.target, self.pairs.n_place)
        places = [(layer, offset) for layer in range(self.reasoner.n_layer) for offset in range(self.n_latent + 1)]
        self.places = [(FED, offset) for offset in range(1, self.n_latent + 1)] + places
        self.out = Path(lake).parent

    @property
    def n_latent(self) -> int:
        """Thoughts."""
        return self.reasoner.n_latent

    def asked(self) -> dict[str, Any]:
        """What the others are to be told of questions and answers, beside what the job says; arrays go into files."""
        gold = [str(text) for text in self.target.data["gold_answer"].values]
        pairs = list(zip(gold, other_answers(self.target), strict=True))
        tokens, ids = laid_apart(self.reasoner, answers_apart(self.reasoner, pairs))
        start, fed = _vectors(self.target, "mean")
        np.savez(self.out / "way.npz", start=start, fed=fed)
        halves = [
            {"clean": self.pairs.prompts[clean], "corrupted": self.pairs.prompts[corrupted],
             "begin": answer[0], "apart": answer[1:]}
            for clean, corrupted, answer in zip(self.pairs.clean, self.pairs.corrupted, self.pairs.answers, strict=True)
        ]  # fmt: skip
        found = {"tokens": tokens.tolist(), "apart": ids[:, :2].tolist(), "place": ids[:, 2].tolist(), "pairs": halves}
        (self.out / "asked.json").write_text(json.dumps(found | {"places": self.places, "n_place": self.pairs.n_place}))
        return {"pairs": len(halves), "nodes": len(self.nodes), "places": len(self.places)}

    def integrated(self, steps: int) -> str:
        """Attribution of each thought: (example, latent)."""
        found = integrated_gradients(self.target, GradientSettings(steps=steps))
        return self._kept("integrated", found["attribution"].values)

    def jacobians(self, questions: int) -> str:
        """Sum over questions of the Jacobian of the state that the answer begins from: (place, to, from)."""
        hidden, last = self.reasoner.hidden, self.n_latent + len(self.reasoner.closing_ids)
        sums = np.zeros((len(self.places), hidden, hidden), dtype="float32")
        wanted = {place: [last] for place in self.places}
        with self.reasoner.session():
            prompts = self.prepared.prompts[:questions]
            for _, place, rows, gradient in forward_sums(self.reasoner, prompts, wanted, [], CHUNK):
                sums[self.places.index(place), rows] += gradient.numpy()
        return self._kept("jacobians", sums)

    def attributed(self) -> str:
        """Scores of vectors fed, heads and MLPs: (pair, node)."""
        scores = np.empty((len(self.pairs.clean), len(self.nodes)))
        with self.reasoner.session():
            for part in self.pairs.batches(16):
                halves = self.pairs.halves(part)
                scores[part] = score_batch(self.reasoner, self.nodes, *halves, 1, np.array([], dtype=int))["score"]
        return self._kept("attributed", scores)

    def _kept(self, name: str, values: Array) -> str:
        path = str(self.out / f"{name}.npy")
        np.save(path, values)
        return path


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    works = Gradients(*sys.argv[1:])
    names = ("job", "asked", "integrated", "jacobians", "attributed")
    serve({name: getattr(works, name) for name in names})
