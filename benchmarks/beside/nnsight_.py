"""With nnsight, and nnterp on top of it: one trace a pass, in which everything wanted is saved or exchanged.

python nnsight_.py JOB [nnterp]
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from job import Job, Kept, patched_one_by_one, think
from torch import Tensor
from transformers import AutoConfig, DynamicCache
from work import serve


class Plain:
    """nnsight's own model, attention read where its documentation reads it.

    Parameters
    ----------
    job
        With the model.
    """

    def __init__(self, job: Job) -> None:
        from nnsight import TransformersModel

        self.model: Any = TransformersModel(
            job.model, task="text-generation", dispatch=True, attn_implementation="eager"
        )
        body = self.model.transformer if hasattr(self.model, "transformer") else self.model.model
        self.blocks = body.h if hasattr(body, "h") else body.layers
        self.norm = body.ln_f if hasattr(body, "ln_f") else body.norm
        self.attentions = [block.attn if hasattr(block, "attn") else block.self_attn for block in self.blocks]

    def feed(self, **given: Any) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor]:
        """One pass: states after each block, after the final norm, attention, logits."""
        with torch.no_grad(), self.model.trace(**given):
            states, attentions = [].save(), [].save()
            for block, attention in zip(self.blocks, self.attentions, strict=True):
                attentions.append(attention.source.attention_interface_1.output[1])
                states.append(block.output)
            final = self.norm.output.save()
            logits = self.model.output.logits.save()
        return states, final, attentions, logits

    def patch(self, layer: int, value: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """One pass whose last state after a block is another: states after the final norm, logits."""
        with torch.no_grad(), self.model.trace(**given):
            self.blocks[layer].output[:, -1] = value
            final = self.norm.output.save()
            logits = self.model.output.logits.save()
        return final, logits

    def plain(self, **given: Any) -> tuple[Tensor, Tensor]:
        """One pass: states after the final norm, logits."""
        with torch.no_grad(), self.model.trace(**given):
            final = self.norm.output.save()
            logits = self.model.output.logits.save()
        return final, logits


class Standardized:
    """nnterp's accessors.

    Parameters
    ----------
    job
        With the model.
    """

    def __init__(self, job: Job) -> None:
        from nnterp import StandardizedTransformer
        from nnterp.rename_utils import RenameConfig

        # Its own place of GPT-2's probabilities is that of an older transformers.
        config = RenameConfig(attn_prob_source=lambda attention, return_module_source=False: self._source(attention))
        self.model: Any = StandardizedTransformer(
            job.model, enable_attention_probs=True, device_map="cpu", rename_config=config
        )

    @staticmethod
    def _source(attention: Any) -> Any:
        return attention.source.attention_interface_0.source.nn_functional_dropout_0

    def feed(self, **given: Any) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor]:
        """One pass: states after each block, after the final norm, attention, logits."""
        model, vectors = self.model, given.pop("inputs_embeds", None)
        if vectors is not None:
            # It takes tokens only; what they are embedded as is exchanged.
            given["input_ids"] = torch.zeros(vectors.shape[:2], dtype=torch.long)
        with torch.no_grad(), model.trace(**given):
            states, attentions = [].save(), [].save()
            if vectors is not None:
                model.token_embeddings = vectors
            for layer in range(model.num_layers):
                attentions.append(model.attention_probabilities[layer])
                states.append(model.layers_output[layer])
            final = model.ln_final.output.save()
            logits = model.logits.save()
        return states, final, attentions, logits


class Works:
    """Works of this side."""

    def __init__(self, folder: str, kind: str = "nnsight") -> None:
        self.job = Job(folder)
        self.config = AutoConfig.from_pretrained(self.job.model)
        self.side = Standardized(self.job) if kind == "nnterp" else Plain(self.job)

    def batched(self, out: str) -> int:
        """Everything, in batches; bytes."""
        return sum(
            self._batch(batch).save(Path(out) / f"{number}.npz") for number, batch in enumerate(self.job.batches)
        )

    def _batch(self, batch: list[int]) -> Kept:
        kept = Kept(self.job, batch)
        memory = DynamicCache(config=self.config)

        def feed(column: int, mask: Tensor, position: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
            given = {"inputs_embeds": inputs["vectors"]} if "vectors" in inputs else {"input_ids": inputs["tokens"]}
            states, final, attentions, logits = self.side.feed(
                **given, attention_mask=mask, position_ids=position, past_key_values=memory, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            kept.add(column, states, final, attentions)
            return final, logits

        think(self.job, batch, feed, kept)
        return kept

    def patched(self, patches: str) -> list[list[list[int]]]:
        """Answers, by condition and question, where one block's state at one thought is another."""
        return patched_one_by_one(self.job, patches, self._patch)

    def _patch(self, batch: list[int], layer: int, thought: int, values: Tensor) -> list[list[int]]:
        place = max(len(self.job.prompts[index]) for index in batch) + thought
        memory = DynamicCache(config=self.config)

        def feed(column: int, mask: Tensor, position: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
            given: dict[str, Any] = {"inputs_embeds": inputs["vectors"]} if "vectors" in inputs else {}
            given |= {"input_ids": inputs["tokens"]} if "tokens" in inputs else {}
            given |= {"attention_mask": mask, "position_ids": position, "past_key_values": memory, "use_cache": True}
            given |= {"logits_to_keep": 1}
            if column == place:
                return self.side.patch(layer, values[batch], **given)
            return self.side.plain(**given)

        answers: list[list[int]] = think(self.job, batch, feed, None, last=False).tolist()
        return answers


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    works = Works(*sys.argv[1:])
    serve({"batched": works.batched, "patched": works.patched})
