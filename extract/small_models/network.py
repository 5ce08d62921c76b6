"""Tokenizer, configurations and file layout of the small CODI models."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from extract.small_models.problems import LARGEST_NUMBER, PEOPLE, SENTENCES, THINGS

N_LATENT = 6
ANSWER_PREFIX = "The answer is:"
HIDDEN = 64
ARCHITECTURES = ("gpt2", "llama")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: words, marks and the numbers 0..30, one token each."""
    text = " ".join(
        [*PEOPLE, "has", *THINGS, *(sentence for group in SENTENCES.values() for sentence in group), *PEOPLE.values()]
    )
    text = re.sub(r"\{\w+\}", " ", text) + f" How many does have ? . {ANSWER_PREFIX}"
    words = list(dict.fromkeys(re.findall(r"\w+|[^\w\s]+", text)))
    numbers = [str(n) for n in range(LARGEST_NUMBER + 1)]
    tokens = ["<eos>", "<unk>", *numbers, "+", "-", "*", "/", "=", "<<", ">>", *words]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def base_config(architecture: str, n_word: int) -> GPT2Config | LlamaConfig:
    """Return the configuration of the base model, before the pad, bot and eot rows are added."""
    if architecture == "gpt2":
        return GPT2Config(
            vocab_size=n_word,
            n_positions=128,
            n_embd=HIDDEN,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            architectures=["GPT2LMHeadModel"],
        )
    return LlamaConfig(
        vocab_size=n_word,
        max_position_embeddings=128,
        hidden_size=HIDDEN,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["LlamaForCausalLM"],
    )


class SmallCodi(nn.Module):
    """A plain language model with three more words (pad, bot, eot) and CODI's projection.

    The names of its weights are those of the official checkpoints: ``codi.*`` and ``prj.*``.
    """

    def __init__(self, architecture: str, n_word: int) -> None:
        super().__init__()
        config = base_config(architecture, n_word)
        self.architecture = architecture
        self.pad_id, self.bot_id, self.eot_id = n_word, n_word + 1, n_word + 2
        config.vocab_size = n_word + 3
        self.codi = GPT2LMHeadModel(config) if architecture == "gpt2" else LlamaForCausalLM(config)
        self.prj = nn.Sequential(nn.Dropout(0.0), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
        norm = nn.LayerNorm(HIDDEN)
        nn.init.constant_(norm.weight, 0.02)  # the scale of the word embeddings
        self.prj.add_module("ln", norm)

    @property
    def body(self) -> Any:
        """The model without its head: its output is the final state."""
        return self.codi.transformer if self.architecture == "gpt2" else self.codi.model

    @property
    def embedding(self) -> torch.Tensor:
        """Embedding and, being tied, unembedding: (vocabulary, hidden)."""
        weight: torch.Tensor = self.codi.get_input_embeddings().weight
        return weight


def save_checkpoint(model: SmallCodi, folder: Path) -> None:
    """Write weights (float16), configuration and tokenizer in the official layout, and what is ours in codi.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "codi.lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base_config(model.architecture, model.pad_id).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    settings = {"n_latent": N_LATENT, "answer_prefix": ANSWER_PREFIX}
    (folder / "codi.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path) -> SmallCodi:
    """Read a model written by `save_checkpoint`, for training and its own evaluation only."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = SmallCodi(config["model_type"], config["vocab_size"])
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    model.load_state_dict({**weights, "codi.lm_head.weight": weights[_embedding_name(config["model_type"])]})
    return model.eval()


def _embedding_name(architecture: str) -> str:
    return "codi.transformer.wte.weight" if architecture == "gpt2" else "codi.model.embed_tokens.weight"
