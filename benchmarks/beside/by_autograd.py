"""Integrated gradients by captum, and Jacobians and attribution patching by torch.autograd, over Hugging Face's model.

    python by_autograd.py FOLDER

FOLDER has the job, and what this_gradients.py wrote of what is asked. The latent loop is written by hand.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from job import Job
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from work import serve

FED = -1


class ByAutograd:
    """A model loaded as Hugging Face's examples do, its weights without gradients."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.job = Job(str(self.folder / "job"))
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.job.model).eval().requires_grad_(False)
        self.projection = self.job.projection.requires_grad_(False)
        self.asked = json.loads((self.folder / "asked.json").read_text())
        self.blocks = list(self.model.transformer.h)
        self.offset = 0
        """From ``bot``, of what is being fed."""

    def _feed(self, cache: Any, mask: Tensor, position: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(
            **inputs, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
            output_hidden_states=True,
        )  # fmt: skip
        return found.hidden_states[-1], found.logits

    def _thought(self, prompts: list[list[int]], rest: list[list[int]]) -> dict[str, Any]:
        """Question, thoughts and what closes them, differentiably; states after the norm, logits, vectors fed."""
        self.job.prompts, n = prompts, len(prompts)
        tokens, _, _ = self.job.laid_out(list(range(n)))
        column = tokens.shape[1]
        mask = torch.ones(n, column + self.job.n_latent + len(rest[0]), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            mask[row, : column - len(prompt)] = 0
        position = (mask.cumsum(1) - 1).clamp_min(0)
        cache, self.offset = DynamicCache(config=self.model.config), 0
        final, _ = self._feed(cache, mask[:, :column], position[:, :column], input_ids=tokens)
        states, fed = [final[:, -1:]], []
        for _ in range(self.job.n_latent):
            self.offset += 1
            fed.append(self.change(self.projection(states[-1][:, -1])))
            here = slice(column, column + 1)
            final, _ = self._feed(cache, mask[:, : column + 1], position[:, here], inputs_embeds=fed[-1][:, None])
            states.append(final)
            column += 1
        self.offset += 1
        final, logits = self._feed(cache, mask, position[:, column:], input_ids=torch.tensor(rest))
        return {"states": torch.cat([*states, final], 1), "logits": logits, "fed": fed}

    def change(self, vector: Tensor) -> Tensor:
        """What is fed; other works put something else in its place."""
        return vector

    def integrated(self, steps: int, at_once: int | None) -> str:
        """Attribution of each thought: (example, latent), by captum."""
        from captum.attr import IntegratedGradients

        way = np.load(self.folder / "way.npz")
        start, fed = (torch.from_numpy(way[name].astype("float32")) for name in ("start", "fed"))
        attribution = np.empty(fed.shape[:2])
        for batch in self.job.batches:
            forward = self._difference(batch)
            found, _ = IntegratedGradients(forward).attribute(
                fed[batch], baselines=start[batch], n_steps=steps, method="riemann_middle",
                internal_batch_size=at_once, return_convergence_delta=True,
            )  # fmt: skip
            attribution[batch] = found.sum(-1).numpy()
        return self._kept("integrated-captum", attribution)

    def _difference(self, batch: list[int]) -> Any:
        """Logit difference of thoughts (row, thought, hidden), the rows of a batch once or several times over."""
        tokens, mask, position = self.job.laid_out(batch)
        column, n_latent, n_closing = tokens.shape[1], self.job.n_latent, len(self.job.closing)
        begin, apart, place = (
            torch.tensor([self.asked[name][i] for i in batch]) for name in ("tokens", "apart", "place")
        )
        closing = torch.tensor([self.job.closing] * len(batch))
        after = self.model.get_input_embeddings()(torch.cat([closing, begin.view(len(batch), -1)], 1).long())
        width = n_latent + after.shape[1]
        with torch.no_grad():
            known = DynamicCache(config=self.model.config)
            self._feed(known, mask[:, :column], position[:, :column], input_ids=tokens)
        question = [(layer.keys, layer.values) for layer in known.layers]

        def forward(thoughts: Tensor) -> Tensor:
            # Captum puts steps one after the other, each with all rows.
            n = len(thoughts) // len(batch)
            cache = DynamicCache(config=self.model.config)
            for layer, (keys, values) in enumerate(question):
                cache.update(keys.repeat(n, 1, 1, 1), values.repeat(n, 1, 1, 1), layer)
            found = self.model(
                inputs_embeds=torch.cat([thoughts, after.repeat(n, 1, 1)], 1), past_key_values=cache,
                attention_mask=mask[:, : column + width].repeat(n, 1), use_cache=True,
                position_ids=position[:, column : column + width].repeat(n, 1),
            )  # fmt: skip
            rows = torch.arange(len(thoughts))
            logits = found.logits[rows, (n_latent + n_closing - 1 + place).repeat(n)]
            return logits[rows, apart[:, 0].repeat(n)] - logits[rows, apart[:, 1].repeat(n)]

        return forward

    def jacobians(self, questions: int, together: bool) -> str:
        """Sum over questions of the Jacobian of the state that the answer begins from: (place, to, from).

        A gradient for each component; ``together``, of all questions in one batch.
        """
        hidden = self.job.sizes["hidden"]
        places = [tuple(place) for place in self.asked["places"]]
        sums = np.zeros((len(places), hidden, hidden), dtype="float32")
        prompts = self.job.prompts[:questions]
        for part in [prompts] if together else [[prompt] for prompt in prompts]:
            zeros = {place: torch.zeros(hidden, requires_grad=True) for place in places}
            state = self._with_zeros(part, zeros).sum(0)
            for component in range(hidden):
                gradients = torch.autograd.grad(state[component], list(zeros.values()), retain_graph=True)
                for number, gradient in enumerate(gradients):
                    sums[number, component] += gradient.numpy()
        return self._kept("jacobians-autograd", sums)

    def _with_zeros(self, prompts: list[list[int]], zeros: dict[tuple[int, ...], Tensor]) -> Tensor:
        """The state (row, hidden) after the last of what closes the thoughts, with zeros added at places."""
        kept = self.job.prompts

        def hook_of(layer: int) -> Any:
            def hook(_: Any, __: Any, output: Any) -> Any:
                value = output[0] if isinstance(output, tuple) else output
                zero = zeros.get((layer, self.offset))
                if zero is None:
                    return None
                changed = torch.cat([value[:, :-1], value[:, -1:] + zero], 1) if value.shape[1] > 1 else value + zero
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            return hook

        handles = [block.register_forward_hook(hook_of(layer)) for layer, block in enumerate(self.blocks)]
        self.change = lambda vector: vector + zeros[FED, self.offset]  # type: ignore[method-assign]
        try:
            return self._thought(prompts, [self.job.closing] * len(prompts))["states"][:, -1]
        finally:
            for handle in handles:
                handle.remove()
            del self.change
            self.job.prompts = kept

    def attributed(self) -> str:
        """Scores of vectors fed, heads and MLPs: (pair, node), a pair after the other."""
        n_place, kept = self.asked["n_place"], self.job.prompts
        rows = []
        for pair in self.asked["pairs"]:
            begin = [*pair["begin"], *[self.job.eos] * (n_place - len(pair["begin"]))]
            with torch.no_grad():
                clean, _ = self._parts(pair["clean"], begin)
            corrupted, logits = self._parts(pair["corrupted"], begin)
            at = len(self.job.closing) - 1 + len(pair["begin"])
            one, other = pair["apart"]
            difference = logits[0, at, one] - logits[0, at, other]
            gradients = torch.autograd.grad(difference, corrupted, allow_unused=True, materialize_grads=True)
            moved = [(new - old) * slope for new, old, slope in zip(clean, corrupted, gradients, strict=True)]
            rows.append(np.concatenate([each.detach().numpy().ravel() for each in self._summed(moved)]))
        self.job.prompts = kept
        return self._kept("attributed-autograd", np.stack(rows))

    def _summed(self, moved: list[Tensor]) -> list[Tensor]:
        """Products by vector fed, by (layer, position, head) and by (layer, position)."""
        n_layer, n_fed, n_head = self.job.sizes["layer"], self.job.n_latent, self.job.sizes["head"]
        steps = len(moved[n_fed:]) // (2 * n_layer)
        # Passes one after the other, in each heads and MLP of every layer; of the question its last place alone.
        heads, mlps = [], []
        for layer in range(n_layer):
            of_layer = [moved[n_fed + 2 * (step * n_layer + layer) :][:2] for step in range(steps)]
            wide = torch.cat([pair[0] for pair in of_layer], 1)
            heads.append(wide.view(wide.shape[1], n_head, -1).sum(-1))
            mlps.append(torch.cat([pair[1] for pair in of_layer], 1)[0].sum(-1))
        return [torch.stack([each.sum() for each in moved[:n_fed]]), torch.stack(heads), torch.stack(mlps)]

    def _parts(self, prompt: list[int], begin: list[int]) -> tuple[list[Tensor], Tensor]:
        """Vectors fed, then heads and MLPs pass by pass, from ``bot`` on; logits."""
        parts: list[Tensor] = []

        def last(value: Tensor) -> tuple[Tensor, Tensor]:
            # Of the question only bot counts: a leaf of its own for it, if gradients are wanted.
            n = 1 if value.shape[1] == len(prompt) else value.shape[1]
            own = value[:, -n:].clone()
            own = own if own.requires_grad or not torch.is_grad_enabled() else own.requires_grad_()
            parts.append(own)
            return own, torch.cat([value[:, :-n], own], 1)

        def heads(_: Any, arguments: tuple[Any, ...]) -> Any:
            return (last(arguments[0])[1], *arguments[1:])

        def mlp(_: Any, __: Any, output: Any) -> Any:
            return last(output)[1]

        handles = [block.attn.c_proj.register_forward_pre_hook(heads) for block in self.blocks]
        handles += [block.mlp.register_forward_hook(mlp) for block in self.blocks]
        fed: list[Tensor] = []
        self.change = lambda vector: fed.append(vector) or vector  # type: ignore[method-assign]
        try:
            found = self._thought([prompt], [[*self.job.closing, *begin]])
        finally:
            for handle in handles:
                handle.remove()
            del self.change
        return [*fed, *parts], found["logits"]

    def _kept(self, name: str, values: Any) -> str:
        path = str(self.folder / f"{name}.npy")
        np.save(path, values)
        return path


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    works = ByAutograd(sys.argv[1])
    serve({name: getattr(works, name) for name in ("integrated", "jacobians", "attributed")})
