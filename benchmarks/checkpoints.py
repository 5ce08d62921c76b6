"""Checkpoints of the released models' sizes with random weights, in the official layout; nothing is fetched."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast

GPT2 = dict(vocab=50257, hidden=768, inner=3072, layers=12, heads=12, key_heads=12)
LLAMA = dict(vocab=128256, hidden=2048, inner=8192, layers=16, heads=32, key_heads=8)
TINY = dict(vocab=9000, hidden=128, inner=256, layers=4, heads=8)
RANK = 128


def write_checkpoint(
    folder: Path, name: str, sizes: dict[str, int], data: Path, device: str = "cpu"
) -> tuple[Path, Path]:
    """PEFT's names, adapters of rank 128, bfloat16, the head written twice.

    Parameters
    ----------
    folder
        Where checkpoint and base are made, unless they are there.
    name
        ``gpt2`` or ``llama``.
    sizes
        As :data:`GPT2` has them.
    data
        Questions, from which a tokenizer of 8,000 tokens is made.
    device
        Where weights are drawn.

    Returns
    -------
    tuple
        Folders of the checkpoint and of its base.
    """
    base, checkpoint = folder / f"base-{name}", folder / name
    if not checkpoint.exists():
        base.mkdir()
        checkpoint.mkdir()
        write_tokenizer(base, data)
        write_config(base, name, sizes)
        torch.save(official_state(name, sizes, device), checkpoint / "pytorch_model.bin")
    return checkpoint, base


def write_tokenizer(base: Path, data: Path) -> None:
    """A byte-level tokenizer of questions and answers: a gold answer is some six tokens, as of GPT-2's own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    texts = [text for line in lines for text in (line["question"], f"The answer is: {line['answer']}")]
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(base)


def write_config(base: Path, name: str, sizes: dict[str, int]) -> None:
    """Configuration of the base."""
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if name == "llama":
        LlamaConfig(
            vocab_size=sizes["vocab"], hidden_size=sizes["hidden"], intermediate_size=sizes["inner"],
            num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["key_heads"], head_dim=sizes["hidden"] // sizes["heads"],
            max_position_embeddings=131072, rope_theta=500000.0, tie_word_embeddings=True, **ends,
        ).save_pretrained(base)  # fmt: skip
    else:
        GPT2Config(
            vocab_size=sizes["vocab"], n_embd=sizes["hidden"], n_inner=None, n_layer=sizes["layers"],
            n_head=sizes["heads"], **ends,
        ).save_pretrained(base)  # fmt: skip


def linear_shapes(name: str, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of each linear layer of a block."""
    hidden, inner = sizes["hidden"], sizes["inner"]
    keys = sizes["key_heads"] * (hidden // sizes["heads"])
    if name == "llama":
        return {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
    return {
        "attn.c_attn": (3 * hidden, hidden), "attn.c_proj": (hidden, hidden), "mlp.c_fc": (4 * hidden, hidden),
        "mlp.c_proj": (hidden, 4 * hidden),
    }  # fmt: skip


def official_state(name: str, sizes: dict[str, int], device: str) -> dict[str, torch.Tensor]:
    """All weights by the names of the official training script."""
    generator = torch.Generator(device=device).manual_seed(0)
    hidden = sizes["hidden"]
    gpt2 = name == "gpt2"

    def draw(*shape: int, scale: float = 0.02) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * scale).bfloat16().cpu()

    top = "codi.base_model.model."
    embedding, blocks, norm, norms = (
        ("transformer.wte", "transformer.h", "transformer.ln_f", ("ln_1", "ln_2"))
        if gpt2
        else ("model.embed_tokens", "model.layers", "model.norm", ("input_layernorm", "post_attention_layernorm"))
    )
    places = [f"{blocks}.{layer}.{key}" for layer in range(sizes["layers"]) for key in norms]
    state = {f"{top}{place}.weight": torch.ones(hidden).bfloat16() for place in [norm, *places]}
    if gpt2:
        state |= {f"{top}{place}.bias": torch.zeros(hidden).bfloat16() for place in [norm, *places]}
        state[f"{top}transformer.wpe.weight"] = draw(1024, hidden)
    state[f"{top}{embedding}.weight"] = state[f"{top}lm_head.weight"] = draw(sizes["vocab"] + 3, hidden)
    for layer in range(sizes["layers"]):
        for key, (n_out, n_in) in linear_shapes(name, sizes).items():
            place = f"{top}{blocks}.{layer}.{key}"
            # GPT-2 keeps weights the other way round.
            state[f"{place}.base_layer.weight"] = draw(*((n_in, n_out) if gpt2 else (n_out, n_in)))
            if gpt2:
                state[f"{place}.base_layer.bias"] = torch.zeros(n_out).bfloat16()
            state[f"{place}.lora_A.default.weight"] = draw(RANK, n_in)
            state[f"{place}.lora_B.default.weight"] = draw(n_out, RANK, scale=0.002)
    for key in ("1", "3"):
        state[f"prj.{key}.weight"], state[f"prj.{key}.bias"] = draw(hidden, hidden), torch.zeros(hidden).bfloat16()
    state["prj.ln.weight"], state["prj.ln.bias"] = (
        torch.full((hidden,), 0.02).bfloat16(),
        torch.zeros(hidden).bfloat16(),
    )
    return state
