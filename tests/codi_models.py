"""Small random CODI checkpoints and a slow reference of how they think, for several test files."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

ORACLE = Path(__file__).parent / "data" / "codi_oracle"
CHECKPOINTS = Path(__file__).parents[1] / "extract" / "checkpoints"
VOCABULARY = 400
TARGETS = ("c_attn", "c_proj", "c_fc", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")


def copy_tokenizer(folder: Path) -> None:
    """The oracle's tokenizer into a model's folder."""
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(ORACLE / "base-gpt2" / file, folder / file)


def write_checkpoint(
    folder: Path,
    config: PreTrainedConfig,
    *,
    rank: int | None = 4,
    alpha: float = 32.0,
    inner: int | None = None,
    norm: bool = True,
    seed: int = 0,
) -> tuple[Path, Path, nn.Module, nn.Module]:
    """Random checkpoint and base folder; also the merged model (plain eager attention) and its projection."""
    torch.manual_seed(seed)
    base, checkpoint = folder / "base", folder / "codi"
    base.mkdir(parents=True)
    checkpoint.mkdir()
    config.vocab_size = VOCABULARY
    config.save_pretrained(base)
    copy_tokenizer(base)
    config.vocab_size = VOCABULARY + 3
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn_like(parameter))
    state: dict[str, Tensor] = {}
    prefix = "codi." if rank is None else "codi.base_model.model."
    with torch.no_grad():
        for name, module in model.named_modules():
            if rank is None or name.rsplit(".", 1)[-1] not in TARGETS:
                continue
            down = torch.randn(rank, module.weight.shape[0 if isinstance(module, Conv1D) else 1]) * 0.05
            up = torch.randn(module.weight.shape[1 if isinstance(module, Conv1D) else 0], rank) * 0.05
            state[f"{prefix}{name}.base_layer.weight"] = module.weight.clone()
            if module.bias is not None:
                state[f"{prefix}{name}.base_layer.bias"] = module.bias.clone()
            state[f"{prefix}{name}.lora_A.default.weight"] = down
            state[f"{prefix}{name}.lora_B.default.weight"] = up
            update = alpha / rank * up @ down
            module.weight.add_(update.T if isinstance(module, Conv1D) else update)
    done = {key.replace(".base_layer.", ".") for key in state}
    for key, value in model.state_dict().items():
        if prefix + key not in done:
            state[prefix + key] = value.clone()
    hidden = config.hidden_size
    layers: dict[str, nn.Module] = {
        "0": nn.Dropout(0.1),
        "1": nn.Linear(hidden, inner or hidden),
        "2": nn.GELU(),
        "3": nn.Linear(inner or hidden, hidden),
    }
    if norm:
        layers["ln"] = nn.LayerNorm(hidden)
    projection = nn.Sequential()
    for name, layer in layers.items():
        projection.add_module(name, layer)
    projection.eval()
    state.update({f"prj.{key}": value for key, value in projection.state_dict().items()})
    torch.save(state, checkpoint / "pytorch_model.bin")
    (checkpoint / "codi.json").write_text(json.dumps({"n_latent": 6}))
    return checkpoint, base, model, projection


@torch.no_grad()
def think_slowly(model: Any, projection: nn.Module, prompt: list[int], n_answer: int) -> dict[str, Any]:
    """One question by itself, the whole sequence anew for every position, without a cache."""
    embed = model.get_input_embeddings()
    vectors = embed(torch.tensor([prompt]))
    latents = []
    for _ in range(6):
        latents.append(projection(model.base_model(inputs_embeds=vectors).last_hidden_state[:, -1:]))
        vectors = torch.cat([vectors, latents[-1]], dim=1)
    vectors = torch.cat([vectors, embed(torch.tensor([[VOCABULARY + 2]]))], dim=1)
    tokens: list[int] = []
    first_logits = None
    for _ in range(n_answer):
        logits = model(inputs_embeds=vectors).logits[0, -1]
        first_logits = logits if first_logits is None else first_logits
        tokens.append(int(logits[:-1].argmax()))
        vectors = torch.cat([vectors, embed(torch.tensor([tokens[-1:]]))], dim=1)
        if tokens[-1] == 0:
            break
    out = model(inputs_embeds=vectors, output_attentions=True, output_hidden_states=True)
    return {
        "latents": torch.cat(latents, dim=1)[0],
        "first_logits": first_logits,
        "tokens": tokens,
        "attention": torch.stack(out.attentions)[:, 0],
        "hidden": torch.stack(out.hidden_states)[:, 0],
        "vectors": vectors,
    }


def written_chain_model(folder: Path) -> Path:
    """The shipped small-gpt2 as its own teacher: it writes its chain, without thoughts, and answers."""
    shutil.copytree(CHECKPOINTS / "small-gpt2", folder)
    protocol = {
        "name": "cot", "after_question": " <<", "answer_prefix": "The answer is:", "rows": ["[PAD]", "[BOT]", "[EOT]"],
        "rows_after": "vocabulary", "prefixes": ["codi."], "unused": ["prj."], "n_unwritten": 3,
    }  # fmt: skip
    (folder / "codi.json").write_text(json.dumps({"protocol": protocol}))
    return folder
