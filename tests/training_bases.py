"""Small random bases, examples and settings that tests of training share."""

import json
from pathlib import Path
from typing import Any

import torch
from codi_models import copy_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig, Olmo2Config

from extract.training.command import TrainSettings
from extract.training.data import Example
from extract.training.loop import Training

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(vocab_size=400, n_positions=128, n_embd=32, n_layer=2, n_head=2, eos_token_id=0),
    "llama": lambda: LlamaConfig(
        vocab_size=400, max_position_embeddings=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=0,
    ),
    "llama-untied": lambda: LlamaConfig(
        vocab_size=400, max_position_embeddings=128, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False, eos_token_id=0,
    ),
    "mistral": lambda: MistralConfig(
        vocab_size=400, max_position_embeddings=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=6, eos_token_id=0,
    ),
    "olmo2": lambda: Olmo2Config(
        vocab_size=400, max_position_embeddings=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=0,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        vocab_size=400, max_position_embeddings=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, eos_token_id=0,
    ),
}  # fmt: skip


QUESTIONS = ("Tom has 3 apples and buys 4 more. How many has he?", "What is 5?", "Ann had 9 and gave 2 to Bo. And now?")


EXAMPLES = [
    Example(QUESTIONS[0], ("<<3+4=7>>",), "7"),
    Example(QUESTIONS[1], (), "5"),
    Example(QUESTIONS[2], ("<<9-2=7>>", "<<7+20=27>>", "<<27+5=32>>"), "32"),
]


def make_base(folder: Path, architecture: str) -> Path:
    """Folder of a small random base."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def write_sums(file: Path) -> Path:
    """A small data file, with one answer that is not whole and one that is negative."""
    rows = [
        {"question": f"Tom has {a} and buys {b}. How many?", "answer": f"<<{a}+{b}={a + b}>> #### {a + b}"}
        for a in range(1, 7) for b in range(1, 7)
    ]  # fmt: skip
    rows += [{"question": "Half of 3?", "answer": "#### 1.5"}, {"question": "2 less than 1?", "answer": "#### -1"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def settings(base: Path, *data: Path | str, **changes: Any) -> TrainSettings:
    fields = {"lora_rank": 4, "steps": 6, "batch_size": 8, "learning_rate": 5e-3} | changes
    return TrainSettings(base=str(base), data=tuple(map(str, data)) or ("stories:20",), **fields)


def stirred(training: Training) -> Training:
    """Trained values moved away from where training begins, where adapters change nothing."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in training.parameters:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return training
