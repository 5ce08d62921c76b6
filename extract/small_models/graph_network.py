"""Tokenizer, network and file layout of the small Coconut models and their controls."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, normalizers, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from extract.model.protocols import COCONUT, named_protocol
from extract.small_models.graph_problems import DEPTH, KINDS, PEOPLE
from extract.small_models.network import CONTEXT, HIDDEN, N_HEAD, gpt2_config, word_tokenizer
from schemas.controls import control_by_name, settings_of
from schemas.whole_files import write_json

Kind = Literal["coconut", "pause", "direct"]
WORDS = ("<eos>", "<unk>", "Is", "is a", "a", "or", "?", "\n", COCONUT.answer_prefix)
FIRST_KIND, FIRST_PERSON = len(WORDS), len(WORDS) + len(KINDS)
N_WORD = len(WORDS) + len(KINDS) + len(PEOPLE)
NEWLINE, ANSWER = WORDS.index("\n"), WORDS.index(COCONUT.answer_prefix)
START, END = N_WORD, N_WORD + 1
"""Ids of ``<|start-latent|>`` and ``<|end-latent|>``; ``<|latent|>`` comes after them and is never fed."""
EMBEDDING, HEAD = "base_causallm.transformer.wte.weight", "base_causallm.lm_head.weight"
PAUSE = named_protocol("pause").vector
BACK = 2
"""Tokens from the object of a sentence back to its subject: ``gerpus``, ``is a``, ``wumpus``."""


def make_graph_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer; ``is a`` is one token, ``Every`` and full stops, which tell nothing, are none."""
    split = pre_tokenizers.Split(Regex(r"\bis a\b|\w+|\?|\n|###"), behavior="removed", invert=True)
    return word_tokenizer([*WORDS, *KINDS, *PEOPLE], split, normalizers.Replace(Regex(r"Every |\."), ""))


def graph_config() -> GPT2Config:
    """Return the configuration of the base model, before the markers' rows are added."""
    config = gpt2_config(N_WORD)
    config.initializer_range = 0.1  # GPT-2's 0.02 is for its width
    return config


class SmallCoconut(nn.Module):
    """GPT-2 with Coconut's three markers; the names of its weights are those of Coconut's checkpoints.

    Weights begin so that search can be learned in minutes, with the look-up of one step. Positions are sinusoids; a
    head of the first block looks `BACK` tokens back, from the object of a sentence to its subject, and one of the
    second looks for the word that is fed among these subjects and passes on a part of the object. All are trained.
    """

    def __init__(self) -> None:
        super().__init__()
        config = graph_config()
        config.vocab_size = N_WORD + len(COCONUT.rows)
        self.base_causallm = GPT2LMHeadModel(config)
        self.pause_embedding = nn.Parameter(torch.randn(HIDDEN) * 0.1)
        nn.init.normal_(self.embedding, std=0.1)
        nn.init.constant_(self.body.ln_f.weight, 0.3)  # states are fed as they are: about as large as embeddings
        with torch.no_grad():
            self._begin_with_a_look_up()

    def _begin_with_a_look_up(self) -> None:
        """Write sinusoids, the head that looks back, and the one that looks for what this one has copied."""
        half, width = HIDDEN // 2, HIDDEN // N_HEAD
        query, key, value = (slice(start, start + width) for start in (0, HIDDEN, 2 * HIDDEN))
        first, second = (block.attn for block in self.body.h)
        frequency = torch.linspace(0.1, 3.0, half // 2)
        angle = torch.arange(CONTEXT)[:, None] * frequency
        self.body.wpe.weight.zero_()
        self.body.wpe.weight[:, :half] = 0.2 * torch.cat([angle.sin(), angle.cos()], 1)
        # The first head turns positions back by BACK: half of the frequencies, two columns for each.
        weight = first.c_attn.weight  # (hidden, 3 x hidden): queries, keys, values
        weight[:, query], weight[:, key] = 0.0, 0.0
        for pair, sine in enumerate(range(0, half // 2, half // 2 // (width // 2))):
            cosine, turn = half // 2 + sine, frequency[sine] * BACK
            weight[sine, HIDDEN + 2 * pair] = weight[cosine, HIDDEN + 2 * pair + 1] = 2.2
            weight[sine, 2 * pair] = weight[cosine, 2 * pair + 1] = 2.2 * turn.cos()
            weight[cosine, 2 * pair], weight[sine, 2 * pair + 1] = -2.2 * turn.sin(), 2.2 * turn.sin()
        # It copies a part of the embedding elsewhere; the second block's first head looks for this part.
        part = torch.linalg.qr(torch.randn(half, width))[0]
        elsewhere = torch.linalg.qr(torch.randn(HIDDEN, width))[0]
        weight[:, value] = 0.0
        weight[half:, value] = part
        first.c_proj.weight[:width] = 0.5 * elsewhere.T
        weight = second.c_attn.weight
        weight[:, query] = 0.0
        weight[half:, query] = 2.0 * part
        weight[:, key] = 2.0 * elsewhere
        weight[:, value] = 0.0  # and passes on a part of the word that it finds there
        weight[half:, value] = part
        second.c_proj.weight[:width] = 0.0
        second.c_proj.weight[:width, half:] = part.T
        for block in self.body.h:
            block.mlp.c_proj.weight *= 0.2

    @property
    def body(self) -> Any:
        """The model without its head: its output is the final state."""
        return self.base_causallm.transformer

    @property
    def embedding(self) -> torch.Tensor:
        """Embedding and, being tied, unembedding: (vocabulary, hidden)."""
        weight: torch.Tensor = self.base_causallm.get_input_embeddings().weight
        return weight


def save_graph_checkpoint(model: SmallCoconut, kind: Kind, folder: Path) -> None:
    """Write weights (float32), configuration and tokenizer, and protocol and number of thoughts in codi.json."""
    folder.mkdir(parents=True, exist_ok=True)
    left_out = {HEAD} | ({PAUSE} if kind != "pause" else set())
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items() if name not in left_out
    }
    if kind == "direct":  # it has no markers
        weights[EMBEDDING] = weights[EMBEDDING][:N_WORD].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    graph_config().save_pretrained(folder)
    make_graph_tokenizer().save_pretrained(folder)
    settings = {
        "protocol": kind,
        "n_latent": 0 if kind == "direct" else DEPTH,
        **settings_of(control_by_name(folder.name)),
    }
    write_json(folder / "codi.json", settings)


def load_graph_checkpoint(folder: Path) -> tuple[SmallCoconut, Kind]:
    """Read a model written by `save_graph_checkpoint`, for training and its own evaluation only."""
    kind: Kind = json.loads((folder / "codi.json").read_text(encoding="utf-8"))["protocol"]
    model = SmallCoconut()
    weights = load_file(folder / "model.safetensors")
    weights.setdefault(PAUSE, model.pause_embedding.detach())
    embedding = model.embedding.detach().clone()
    embedding[: len(weights[EMBEDDING])] = weights[EMBEDDING]
    model.load_state_dict({**weights, EMBEDDING: embedding, HEAD: embedding})
    return model.eval(), kind
