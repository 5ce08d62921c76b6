"""Tokenizer, configurations and file layout of the small CODI models."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from extract.model.protocols import CODI
from extract.small_models.problems import LARGEST_NUMBER, PEOPLE, SENTENCES, THINGS
from schemas import N_LATENT
from schemas.controls import control_by_name, settings_of
from schemas.whole_files import write_json

ANSWER_PREFIX = CODI.answer_prefix
HIDDEN, N_HEAD, N_LAYER, CONTEXT = 64, 4, 2, 128
ARCHITECTURES = ("gpt2", "llama")
Kind = Literal["codi", "pause", "cot", "direct"]
CONTROLS: tuple[Kind, ...] = ("pause", "cot", "direct")
PROTOCOL = {"pause": "codi-pause", "cot": "cot"}
"""How those of the controls are asked that the project loads; the direct one is trained for its accuracy alone."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: words, marks and the numbers 0..30, one token each."""
    text = " ".join(
        [*PEOPLE, "has", *THINGS, *(sentence for group in SENTENCES.values() for sentence in group), *PEOPLE.values()]
    )
    text = re.sub(r"\{\w+\}", " ", text) + f" How many does have ? . {ANSWER_PREFIX}"
    words = list(dict.fromkeys(re.findall(r"\w+|[^\w\s]+", text)))
    numbers = [str(n) for n in range(LARGEST_NUMBER + 1)]
    tokens = ["<eos>", "<unk>", *numbers, "+", "-", "*", "/", "=", "<<", ">>", *words]
    return word_tokenizer(tokens, pre_tokenizers.Whitespace())


def word_tokenizer(
    tokens: Sequence[str], split: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words, ``<eos>`` and ``<unk>`` among them; ids follow the order of the tokens."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def gpt2_config(n_word: int) -> GPT2Config:
    """Return the configuration of a small GPT-2, before the rows of the protocol are added."""
    return GPT2Config(
        vocab_size=n_word,
        n_positions=CONTEXT,
        n_embd=HIDDEN,
        n_layer=N_LAYER,
        n_head=N_HEAD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["GPT2LMHeadModel"],
    )


def base_config(architecture: str, n_word: int) -> GPT2Config | LlamaConfig:
    """Return the configuration of the base model, before the pad, bot and eot rows are added."""
    if architecture == "gpt2":
        return gpt2_config(n_word)
    return LlamaConfig(
        vocab_size=n_word,
        max_position_embeddings=CONTEXT,
        hidden_size=HIDDEN,
        intermediate_size=176,
        num_hidden_layers=N_LAYER,
        num_attention_heads=N_HEAD,
        num_key_value_heads=N_HEAD,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["LlamaForCausalLM"],
    )


HEAD = "codi.lm_head.weight"


class SmallCodi(nn.Module):
    """A plain language model with three more words (pad, bot, eot) and CODI's projection.

    The names of its weights are those of the official checkpoints: ``codi.*`` and ``prj.*``.
    """

    def __init__(self, architecture: str, n_word: int, kind: Kind = "codi") -> None:
        super().__init__()
        self.kind = kind
        config = base_config(architecture, n_word)
        self.architecture = architecture
        self.pad_id, self.bot_id, self.eot_id = n_word, n_word + 1, n_word + 2
        config.vocab_size = n_word + 3
        self.codi = GPT2LMHeadModel(config) if architecture == "gpt2" else LlamaForCausalLM(config)
        self.prj = nn.Sequential(nn.Dropout(0.0), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
        norm = nn.LayerNorm(HIDDEN)
        nn.init.constant_(norm.weight, 0.02)  # the scale of the word embeddings
        self.prj.add_module("ln", norm)
        if kind == "pause":
            self.pause_embedding = nn.Parameter(torch.randn(HIDDEN) * 0.02)

    @property
    def body(self) -> Any:
        """The model without its head: its output is the final state."""
        return self.codi.transformer if self.architecture == "gpt2" else self.codi.model

    @property
    def embedding_name(self) -> str:
        """Name of the embedding's weight."""
        return "codi.transformer.wte.weight" if self.architecture == "gpt2" else "codi.model.embed_tokens.weight"

    @property
    def embedding(self) -> torch.Tensor:
        """Embedding and, being tied, unembedding: (vocabulary, hidden)."""
        weight: torch.Tensor = self.codi.get_input_embeddings().weight
        return weight

    def fed(self, state: torch.Tensor) -> torch.Tensor:
        """What is fed at a thought after this final state (batch, hidden)."""
        vector: torch.Tensor = self.pause_embedding.expand_as(state) if self.kind == "pause" else self.prj(state)
        return vector


def save_checkpoint(model: SmallCodi, folder: Path) -> None:
    """Write weights (float16), configuration and tokenizer as the protocol has them, and what is ours in codi.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != HEAD and not (name.startswith("prj.") and model.kind in PROTOCOL)
    }
    if model.kind == "cot":  # a plain language model
        weights = {name.removeprefix("codi."): tensor[: model.pad_id] if name == model.embedding_name else tensor
                   for name, tensor in weights.items()}  # fmt: skip
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base_config(model.architecture, model.pad_id).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    settings: dict[str, Any] = {"n_latent": 0 if model.kind == "cot" else N_LATENT, "answer_prefix": ANSWER_PREFIX}
    if model.kind in PROTOCOL:
        settings = {"protocol": PROTOCOL[model.kind], **settings}
    settings |= settings_of(control_by_name(folder.name))
    write_json(folder / "codi.json", settings)


def load_checkpoint(folder: Path) -> SmallCodi:
    """Read a model written by `save_checkpoint`, for training and its own evaluation only."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    protocol = json.loads((folder / "codi.json").read_text(encoding="utf-8")).get("protocol")
    kind: Kind = next((kind for kind in CONTROLS if PROTOCOL.get(kind) == protocol is not None), "codi")
    model = SmallCodi(config["model_type"], config["vocab_size"], kind)
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    if kind == "cot":
        weights = {f"codi.{name}": tensor for name, tensor in weights.items()}
    embedding = model.embedding.detach().clone()
    embedding[: len(weights[model.embedding_name])] = weights[model.embedding_name]
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("prj.")}
    model.load_state_dict({**own, **weights, model.embedding_name: embedding, HEAD: embedding})
    return model.eval()
