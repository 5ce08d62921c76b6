"""With TransformerLens: extraction by ``run_with_cache``, only the hook points wanted; patching by ``run_with_hooks``.

python transformer_lens_.py JOB
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from job import Job, Kept, patched_one_by_one, think
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache
from work import serve


class Works:
    """Works of this side."""

    def __init__(self, folder: str) -> None:
        self.job = Job(folder)
        self.bridge: Any = TransformerBridge.boot_transformers(self.job.model, device="cpu")
        layers = range(self.job.sizes["layer"])
        self.states = [f"blocks.{layer}.hook_out" for layer in layers]
        self.patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        self.final = "ln_final.hook_out"
        self.wanted = {*self.states, *self.patterns, self.final}

    def batched(self, out: str) -> int:
        """Everything, in batches; bytes."""
        total = 0
        for number, batch in enumerate(self.job.batches):
            kept = self._batch(batch)
            total += kept.save(Path(out) / f"{number}.npz")
        return total

    def _batch(self, batch: list[int]) -> Kept:
        kept = Kept(self.job, batch)
        memory = DynamicCache(config=self.bridge.original_model.config)

        def feed(column: int, mask: Tensor, position: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
            given = inputs["vectors"] if "vectors" in inputs else inputs["tokens"]
            logits, cache = self.bridge.run_with_cache(
                given, return_cache_object=False, names_filter=lambda name: name in self.wanted, attention_mask=mask,
                position_ids=position, past_key_values=memory, logits_to_keep=1,
            )  # fmt: skip
            kept.add(
                column, [cache[name] for name in self.states], cache[self.final], [cache[n] for n in self.patterns]
            )
            return cache[self.final], logits

        think(self.job, batch, feed, kept)
        return kept

    def patched(self, patches: str) -> list[list[list[int]]]:
        """Answers, by condition and question, where one block's state at one thought is another."""
        return patched_one_by_one(self.job, patches, self._patch)

    def _patch(self, batch: list[int], layer: int, thought: int, values: Tensor) -> list[list[int]]:
        place = max(len(self.job.prompts[index]) for index in batch) + thought
        memory = DynamicCache(config=self.bridge.original_model.config)
        seen: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            seen["final"] = value

        def put(value: Tensor, hook: Any) -> Tensor:
            value[:, -1] = values[batch]
            return value

        def feed(column: int, mask: Tensor, position: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
            given = inputs["vectors"] if "vectors" in inputs else inputs["tokens"]
            hooks = [(self.states[layer], put)] if column == place else []
            logits = self.bridge.run_with_hooks(
                given, fwd_hooks=[*hooks, (self.final, keep)], attention_mask=mask, position_ids=position,
                past_key_values=memory, logits_to_keep=1,
            )  # fmt: skip
            return seen["final"], logits

        answers: list[list[int]] = think(self.job, batch, feed, None, last=False).tolist()
        return answers


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    works = Works(sys.argv[1])
    serve({"batched": works.batched, "patched": works.patched})
