"""Extraction by this project, and its answering without capture.

    python this_project.py MODEL=CHECKPOINT BASE DATA SETTINGS

SETTINGS is JSON: those of a ``RunSpec``, and ``protocol`` where the checkpoint does not say.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from work import serve

from extract.run.extract import _create, extract, prepare, provenance
from extract.run.prepare import batches, begin
from schemas import RunSpec
from store import open_lake


class Works:
    """Works of this side."""

    def __init__(self, model: str, base: str, data: str, settings: str) -> None:
        options = json.loads(settings)
        protocol = options.pop("protocol", None)
        spec, lake = RunSpec(**options), str(Path(data).with_name("none.lake"))
        self.prepared = prepare(model, data, lake, spec, base=base or None, protocol=protocol)
        layout = self.prepared.layout
        self.batches = [batch for shard in range(layout.n_shard) for batch in batches(self.prepared, shard)]

    def job(self, out: str, n_answer: int) -> dict[str, Any]:
        """Write the folder of :class:`job.Job`; its sizes."""
        reasoner, folder = self.prepared.reasoner, Path(out)
        model: Any = reasoner.model
        model.save_pretrained(folder / "model")
        reasoner.tokenizer.save_pretrained(folder / "model")
        if reasoner.n_latent:
            parts = reasoner.projection._modules
            torch.save(nn.Sequential(parts["1"], nn.GELU(), parts["3"], parts["ln"]), folder / "projection.pt")
        sizes = {"layer": reasoner.n_layer, "head": reasoner.n_head, "hidden": reasoner.hidden}
        stated = {
            "prompts": self.prepared.prompts,
            "batches": self.batches,
            "n_latent": reasoner.n_latent,
            "closing": list(reasoner.closing_ids),
            "n_answer": n_answer,
            "n_written": len(model.get_output_embeddings().weight) - reasoner.protocol.n_unwritten,
            "eos": reasoner.eos_id,
            "sizes": sizes,
        }
        (folder / "job.json").write_text(json.dumps(stated))
        return sizes

    def answering(self, scored: bool = False) -> None:
        """Answer the same batches without capture; ``scored``, with the log probability of the gold answer, too."""
        gold = self.prepared.problems.gold_answer
        for batch in self.batches:
            self._think(batch, [gold[index] for index in batch] if scored else None)

    def capturing(self) -> None:
        """Answer and score the same batches, and capture all of it, but write nothing."""
        for batch in self.batches:
            begin(self.prepared, batch)()

    def _think(self, batch: list[int], gold: Sequence[str] | None) -> None:
        prompts = [self.prepared.prompts[index] for index in batch]
        self.prepared.reasoner.think(prompts, capture=None, max_new_tokens=self.prepared.spec.max_new_tokens, gold=gold)

    def start(self, out: str) -> None:
        """What a run begins with, whatever its length: some questions alone and together, the model's read-out."""
        _create(self.prepared, out, provenance(self.prepared), rebuild_static=False, command=())

    def extraction(self, out: str) -> int:
        """Everything into a lake; bytes. Whatever the length of a run, :meth:`start` is part of it."""
        return extract(self.prepared, out).bytes_written

    def compare(self, lake: str, npz: str, number: int, n_column: int) -> dict[str, float]:
        """Largest differences between a lake and one batch that another side has kept, over the first columns.

        Of states relative to the root mean square of the state; ``token``: how many differ.
        """
        run = open_lake(lake).open(self.prepared.run).load()
        batch, kept = self.batches[number], np.load(npz)
        n_before = max(len(self.prepared.prompts[index]) for index in batch) - 1
        shift = self.prepared.layout.n_question - n_before
        found = {"hidden_state": 0.0, "final_state": 0.0, "attention": 0.0, "token": 0.0}
        for row, index in enumerate(batch):
            first = n_before + 1 - len(self.prepared.prompts[index])
            here, there = slice(first, n_column), slice(first + shift, n_column + shift)
            mine = run.isel(example=index, position=there, key_position=there)
            exists = mine["token"].values >= 0
            exists |= np.isfinite(mine["final_state"].values[:, 0])
            pairs = {
                "hidden_state": (mine["hidden_state"].values, kept["hidden_state"][row, :, here]),
                "final_state": (mine["final_state"].values, kept["final_state"][row, here]),
                "attention": (mine["attention"].values, kept["attention"][row, :, :, here, here]),
            }
            for name, (own, other) in pairs.items():
                axis = {"hidden_state": 1, "final_state": 0, "attention": 2}[name]
                own, other = (np.compress(exists, each.astype("float32"), axis) for each in (own, other))
                scale = 1.0 if name == "attention" else np.sqrt((own**2).mean(-1, keepdims=True))
                found[name] = max(found[name], float((np.abs(own - other) / scale).max()))
            found["token"] += int((mine["token"].values != kept["token"][row, here]).sum())
        return found


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    works = Works(*sys.argv[1:])
    serve({name: getattr(works, name) for name in ("job", "answering", "capturing", "start", "extraction", "compare")})
