"""Random language models as transformers saves them, and how they answer, the whole sequence anew for every token."""

import json
from pathlib import Path
from typing import Any

import torch
from codi_models import VOCABULARY, copy_tokenizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config

GPT2 = GPT2Config(n_positions=64, n_embd=32, n_head=2, n_layer=2, bos_token_id=0, eos_token_id=0)


def write_questions(file: Path, questions: list[str]) -> Path:
    file.write_text("".join(json.dumps({"question": each, "answer": "7"}) + "\n" for each in questions))
    return file


def plain_model(folder: Path, config: Any = GPT2, vocabulary: int = VOCABULARY) -> Any:
    """A random language model as transformers saves it, with the tokenizer of the others."""
    torch.manual_seed(1)
    config.vocab_size = vocabulary
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    folder.mkdir(parents=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn_like(parameter))
    tied = {"lm_head.weight"}
    save_file({k: v for k, v in model.state_dict().items() if k not in tied}, folder / "model.safetensors")
    config.save_pretrained(folder)
    copy_tokenizer(folder)
    return model


@torch.no_grad()
def answer_slowly(model: Any, vectors: torch.Tensor, n_new: int) -> tuple[list[int], Any]:
    """Greedy tokens after given vectors, the whole sequence anew for each; and all that the last pass gives."""
    embed, tokens = model.get_input_embeddings(), []
    for _ in range(n_new):
        tokens.append(int(model(inputs_embeds=vectors).logits[0, -1].argmax()))
        vectors = torch.cat([vectors, embed(torch.tensor([tokens[-1:]]))], 1)
        if tokens[-1] == 0:
            break
    return tokens, model(inputs_embeds=vectors, output_attentions=True, output_hidden_states=True)


@torch.no_grad()
def think_in_rounds_slowly(model: Any, feed: Any, prompt: list[int], n: int, rounds: int) -> tuple[Any, Any]:
    """Vectors ``(round, thought, hidden)`` of a prompt by itself, as PCCoT's code describes them; all of it anew."""
    embed = model.get_input_embeddings()
    before = embed(torch.tensor([prompt]))
    vectors = embed(torch.full((1, n), VOCABULARY + 2))
    fed = []
    for _ in range(rounds):
        states = model.base_model(inputs_embeds=torch.cat([before, vectors], 1)).last_hidden_state
        vectors = feed(states[:, len(prompt) - 1 : -1])
        fed.append(vectors[0])
    return torch.stack(fed), torch.cat([before, vectors, embed(torch.tensor([[VOCABULARY + 1]]))], 1)
