"""A decoder that was trained afterwards: a small language model that is fed one thought, asked for a step, and writes.

Of an equation it writes the result first, ``18=21-3``, and is read as ``<<21-3=18>>``: what is written last is guessed
in the light of what stands before, and a thought may well hold a result without the numbers that it was made of.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config

from extract.model.step_decoder import Written, write
from schemas import UsageError, number_text
from schemas.asked import asked
from schemas.json_values import read_json
from schemas.problem_sums import problem_of
from schemas.whole_files import beside

RECORD, OWN, SHUFFLED = "decoder.json", "model.safetensors", "shuffled.safetensors"
END = 0
"""Token that ends a step; the others are the characters of the alphabet, from 1 on."""
N_LAYER, N_HEAD = 2, 4
LEAST_SPREAD = 1e-3
"""Of all vectors' spread: what a component's own counts as at least, so that no rounding is blown up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a decoder was made of; the same makes the same decoder."""

    run: str
    fingerprint: str
    """Of the run's contents."""
    positions: tuple[str, ...]
    """Thoughts that it knows."""
    n_step: int
    """Steps that it can be asked for."""
    alphabet: str
    hidden: int
    width: int
    steps: int
    """Of the training."""
    seed: int
    n_problem: int
    """Problems that it was trained on or chosen by."""
    questions: tuple[str, ...]
    """Digests of theirs."""


class LearnedDecoder(nn.Module):
    """GPT-2 over characters, begun with a thought and the number of the step that is asked for.

    Each thought has a map of its own from the reasoner's vectors, standardised over the problems, to the decoder's.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, made: Made, longest: int) -> None:
        super().__init__()
        n_thought = len(made.positions)
        config = GPT2Config(
            vocab_size=1 + len(made.alphabet), n_embd=made.width, n_layer=N_LAYER, n_head=N_HEAD,
            n_positions=longest + 2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=END,
            eos_token_id=END,
        )  # fmt: skip
        self.made, self.longest = made, longest
        self.model = AutoModelForCausalLM.from_config(config)
        self.register_buffer("mean", torch.zeros(n_thought, made.hidden))
        self.register_buffer("scale", torch.ones(n_thought, made.hidden))
        self.inward = nn.Parameter(torch.randn(n_thought, made.hidden, made.width) / made.hidden**0.5)
        self.question = nn.Parameter(0.02 * torch.randn(made.n_step, made.width))

    def standardise(self, vectors: Tensor) -> None:
        """Take mean and spread of vectors (problem, thought, hidden), NaN where there is none."""
        known = vectors.isfinite().all(-1, keepdim=True)
        n = known.sum(0).clamp_min(1)
        self.mean = vectors.nan_to_num().where(known, 0).sum(0) / n
        square = (vectors - self.mean).nan_to_num().where(known, 0) ** 2
        spread = (square.sum(0) / n).sqrt()
        least = LEAST_SPREAD * float(vectors[known.expand_as(vectors)].std())
        self.scale = 1 / spread.clamp_min(least if least > 0 else 1.0)

    def begin(self, vectors: Tensor, thought: Tensor, step: Tensor) -> Tensor:
        """What is fed first (row, 2, width): a thought (row, hidden), and which step is asked for (row,)."""
        standard = (vectors - self.mean[thought]) * self.scale[thought]
        inward = torch.einsum("rh,rhw->rw", standard, self.inward[thought])
        return torch.stack([inward, self.question[step]], 1)

    def forward(self, vectors: Tensor, thought: Tensor, step: Tensor, tokens: Tensor) -> Tensor:
        """Mean loss, in nats a character, of steps (row, character), below 0 where they are over."""
        words = self.model.get_input_embeddings()(tokens[:, :-1].clamp_min(0))
        logits = self.model(inputs_embeds=torch.cat([self.begin(vectors, thought, step), words], 1)).logits[:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=-1)

    @torch.inference_mode()
    def write(
        self, vectors: np.ndarray, thought: np.ndarray, step: np.ndarray, max_new_tokens: int | None = None
    ) -> Written:
        """What is written of vectors (row, hidden) of these thoughts, asked for these steps (row,)."""
        device = self.question.device
        rows = [torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (vectors, thought, step)]
        embed = self.model.get_input_embeddings()
        return write(self.model, self.begin(*rows), embed, END, self._text, max_new_tokens or self.longest)

    def _text(self, tokens: list[int]) -> str:
        return in_order("".join(self.made.alphabet[token - 1] for token in tokens))


def in_order(text: str) -> str:
    """A step as solutions have it: ``18=21-3`` becomes ``<<21-3=18>>``."""
    result, sign, expression = text.partition("=")
    return f"<<{expression}={result}>>" if sign else text


def in_words(run: xr.Dataset) -> bool:
    """Whether the steps of a run's problems are sentences."""
    return "step_text" in run and not np.isfinite(run["intermediate_result"]).any()


def result_first(run: xr.Dataset) -> np.ndarray:
    """Steps (example, step) as the decoder writes them, sentences as they stand; empty where there is none."""
    if in_words(run):
        return np.asarray(run["step_text"].values, dtype=object)
    texts = np.full(run["intermediate_result"].shape, "", dtype=object)
    for place, value in np.ndenumerate(run["intermediate_result"].values.astype(float)):
        if np.isfinite(value):
            texts[place] = f"{number_text(value)}={str(run['expression'].values[place]).replace(' ', '')}"
    return texts


def digests(run: xr.Dataset) -> np.ndarray:
    """A digest (example,) of each question, by which it is found again in another run."""
    texts = [asked(str(question)) for question in run["question"].values]
    return np.array([hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in texts], dtype=object)


def held_out(run: xr.Dataset, made: Made) -> np.ndarray:
    """Examples (example,), bool, of problems of which nothing was trained on, twins and rephrasings included."""
    problem = problem_of(run)
    trained_on = np.isin(digests(run), np.array(made.questions, dtype=object))
    return ~np.isin(problem, problem[trained_on])


def save(folder: Path, file: str, decoder: LearnedDecoder) -> None:
    """Write a decoder's weights, whole or not at all."""
    weights = {name: value.contiguous() for name, value in decoder.state_dict().items() if "lm_head" not in name}
    with beside(folder / file) as partial:
        save_file(weights, partial)


def read_made(folder: Path) -> tuple[Made, int]:
    """What the decoder in a folder was made of, and how long its steps may be.

    Raises
    ------
    UsageError
        If the folder has no readable record.
    """
    record: dict[str, Any] = read_json(folder / RECORD, "record of the decoder")
    try:
        values = {field.name: record[field.name] for field in fields(Made)}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return Made(**values), int(record["longest"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / RECORD} is no record of a decoder: {error} is missing or wrong") from error


def load(folder: Path, file: str = OWN) -> LearnedDecoder:
    """A decoder that was trained.

    Raises
    ------
    UsageError
        If the folder has none, or half of one.
    """
    decoder = LearnedDecoder(*read_made(folder))
    try:
        missing, beyond = decoder.load_state_dict(load_file(folder / file), strict=False)
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} has no {file}: its training was stopped; the same lake reenter decode --train goes on with it"
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UsageError(
            f"{folder / file} cannot be read as this decoder's weights: {str(error).splitlines()[0]}"
        ) from error
    if beyond or [name for name in missing if "lm_head" not in name]:
        raise UsageError(f"{folder / file} has other weights than a decoder: {', '.join([*missing, *beyond][:3])}")
    return decoder.eval()
