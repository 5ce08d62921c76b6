"""Extraction by a script over Hugging Face's model: in batches with eager attention, bare, and one question at a time.

python by_hand.py JOB
"""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from job import Job, Kept, think
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from work import serve


class ByHand:
    """A model loaded as Hugging Face's examples do.

    Parameters
    ----------
    job
        With the model.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model: Any = AutoModelForCausalLM.from_pretrained(job.model, attn_implementation="eager").eval()
        body = self.model.base_model
        self.last_block = (body.h if hasattr(body, "h") else body.layers)[-1]
        self.before_norm: Tensor | None = None
        self.last_block.register_forward_hook(self._keep_last)

    def _keep_last(self, _: Any, __: Any, output: Any) -> None:
        # The library's own last hidden state is that after the final norm.
        self.before_norm = output[0] if isinstance(output, tuple) else output

    def run(self, batch: list[int], kept: Kept | None) -> Tensor:
        """Think and answer; with ``kept`` everything is captured, without nothing is."""
        self.model.set_attn_implementation("eager" if kept is not None else "sdpa")
        cache = DynamicCache(config=self.model.config)

        def feed(column: int, mask: Tensor, position: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
            given = {"inputs_embeds": inputs["vectors"]} if "vectors" in inputs else {"input_ids": inputs["tokens"]}
            found = self.model(
                **given, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
                output_hidden_states=kept is not None or self.job.n_latent > 0, output_attentions=kept is not None,
                logits_to_keep=1,
            )  # fmt: skip
            final = found.hidden_states[-1] if found.hidden_states else None
            if kept is not None:
                kept.add(column, [*found.hidden_states[1:-1], self.before_norm], final, found.attentions)
            return final, found.logits

        return think(self.job, batch, feed, kept)


class ByHandWorks:
    """Works of this side."""

    def __init__(self, folder: str) -> None:
        self.job = Job(folder)
        self.hand = ByHand(self.job)

    def bare(self) -> None:
        """Answers alone: the library's fast attention, nothing kept."""
        for batch in self.job.batches:
            self.hand.run(batch, None)

    def batched(self, out: str) -> int:
        """Everything, in batches; bytes."""
        return self._each(self.job.batches, Path(out))

    def _each(self, batches: list[list[int]], out: Path) -> int:
        total = 0
        for number, batch in enumerate(batches):
            kept = Kept(self.job, batch)
            self.hand.run(batch, kept)
            total += kept.save(out / f"{number}.npz")
        return total

    def one_by_one(self, out: str, questions: list[int]) -> int:
        """Everything, one question at a time, each into a file as JSON."""
        total = 0
        for index in questions:
            path = Path(out) / f"{index}.json"
            path.write_text(json.dumps({name: value.tolist() for name, value in self._alone(index).items()}))
            total += path.stat().st_size
        return total

    def one_by_one_pickled(self, out: str, questions: list[int]) -> int:
        """Everything, one question at a time, each into a file as a pickle of float32 arrays."""
        total = 0
        for index in questions:
            path = Path(out) / f"{index}.pkl"
            path.write_bytes(
                pickle.dumps({name: value.astype("float32") for name, value in self._alone(index).items()})
            )
            total += path.stat().st_size
        return total

    def _alone(self, index: int) -> dict[str, Any]:
        kept = Kept(self.job, [index])
        self.hand.run([index], kept)
        return vars(kept)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    works = ByHandWorks(sys.argv[1])
    serve({name: getattr(works, name) for name in ("bare", "batched", "one_by_one", "one_by_one_pickled")})
