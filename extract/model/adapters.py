"""Low-rank adapters: what a checkpoint says of them, and merging them into the base's weights."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from extract.model.checkpoint import ADAPTER_CONFIG, SETTINGS, some
from schemas import UsageError
from schemas.checks import check_number, check_whole

LORA_ALPHA = 32.0
"""Of the released checkpoints, which have no adapter config."""
ASSUMED = (
    f"no file beside {{}} says the scale of its low-rank updates: that of the released CODI checkpoints is taken, alpha"
    f" {LORA_ALPHA:g}; --lora-alpha says another"
)
"""What is said where it is taken for granted."""
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
"""End of the names of rows that PEFT trained by themselves."""
# Fields of PEFT's LoraConfig that are used here, or change nothing in what trained and merged weights compute.
_ADAPTER_FIELDS = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "target_modules", "exclude_modules", "task_type",
    "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "lora_dropout",
    "fan_in_fan_out", "bias", "init_lora_weights", "layers_to_transform", "layers_pattern", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
}  # fmt: skip


_ON_BASE = (None, True, False, "gaussian", "eva")
"""Ways to begin low-rank updates that leave the base's weights as they are; PiSSA, OLoRA and others take a part out."""


def one_alpha(config: Mapping[str, Any]) -> float | None:
    """Numerator of the low-rank updates' scale, from whoever says one; they must not contradict each other."""
    known = {source: value for source, value in config.items() if value is not None}
    for source, value in known.items():
        check_number(f"lora_alpha of {source}", value, above=0)
    if len({float(value) for value in known.values()}) > 1:
        raise UsageError("lora_alpha is " + ", but ".join(f"{value:g} in {source}" for source, value in known.items()))
    return next(map(float, known.values()), None)


def adapter_scale(
    adapter: Mapping[str, Any], lora_alpha: float | None, settings: Mapping[str, Any], folder: Path,
    weights: Mapping[str, Tensor], *, saved: bool,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """What low-rank updates are multiplied with, by the user or the files beside; whether there are and nobody says."""
    updates = any(".lora_A" in key for key in weights)
    if lora_alpha is not None and not updates:  # it would only give the same weights another digest
        raise UsageError(f"{folder} has no low-rank updates that --lora-alpha {lora_alpha:g} could scale; leave it out")
    check_adapter_config(adapter, str(folder / ADAPTER_CONFIG), saved=saved)
    stated = {"the argument": lora_alpha, str(folder / SETTINGS): settings.get("lora_alpha")}
    alpha = one_alpha(stated | {str(folder / ADAPTER_CONFIG): adapter.get("lora_alpha")})
    scale = {"lora_alpha": LORA_ALPHA if alpha is None else alpha}
    return scale | ({"use_rslora": True} if adapter.get("use_rslora") else {}), updates and alpha is None


def check_adapter_config(adapter: Mapping[str, Any], source: str, *, saved: bool) -> None:
    """Refuse whatever an adapter's config, if there is one, asks for that changes what it computes.

    In a folder that PEFT saved, the modules trained whole are among the weights under their own names.
    """
    if not adapter:
        return
    if adapter.get("peft_type") != "LORA":
        raise UsageError(f"{source} is of peft_type {adapter.get('peft_type')!r}; only 'LORA' is merged")
    if adapter.get("lora_alpha") is None:
        raise UsageError(f"{source} names no lora_alpha, so the updates' scale is not known")
    check_fields(adapter, source)
    if saved and adapter.get("init_lora_weights") not in _ON_BASE:
        raise UsageError(
            f"{source} has init_lora_weights {adapter['init_lora_weights']!r}, which may begin by changing the base"
            " model's weights, so that the updates do not fit them; have PEFT merge them (merge_and_unload)"
        )
    known = _ADAPTER_FIELDS | ({"modules_to_save", "trainable_token_indices"} if saved else set())
    if unknown := [f"{key}={value!r}" for key, value in adapter.items() if value and key not in known]:
        raise UsageError(f"{source} asks for what is not merged rightly here: {some(unknown)}")


def check_fields(adapter: Mapping[str, Any], source: str) -> None:
    """Refuse fields of an adapter's config that are not of the types that PEFT writes."""
    targets, ranks = adapter.get("target_modules"), adapter.get("rank_pattern")
    check_whole(f"{source}: r", adapter.get("r"), 1)
    if isinstance(targets, str):
        _check_pattern(f"{source}: target_modules is {targets!r}", targets)
    elif targets is not None and not _are_names(targets):
        raise UsageError(f"{source}: target_modules is {targets!r}; it must be a list of names, or a pattern")
    if ranks is not None and not isinstance(ranks, Mapping):
        raise UsageError(f"{source}: rank_pattern is {ranks!r}; it must be an object")
    for pattern, rank in (ranks or {}).items():
        check_whole(f"{source}: rank_pattern of {pattern!r}", rank, 1)
        _check_pattern(f"{source}: rank_pattern names {pattern!r}", pattern)
    whole = adapter.get("modules_to_save")
    if whole is not None and not _are_names(whole):
        raise UsageError(f"{source}: modules_to_save is {whole!r}; it must be a list of names")
    blocks = adapter.get("layers_to_transform")
    if blocks is not None and not all(
        type(block) is int for block in (blocks if isinstance(blocks, list) else [blocks])
    ):
        raise UsageError(f"{source}: layers_to_transform is {blocks!r}; it must be a number or a list of numbers")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _check_pattern(where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{where}, which is no pattern: {error}") from error


def token_rows(weights: Mapping[str, Tensor], adapter: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Put the rows that PEFT trained apart (``trainable_token_indices``) into the embeddings that are there.

    PEFT calls them ``trainable_tokens_delta``; they are the rows themselves. The embedding, where it was saved because
    the vocabulary had grown, is ``token_adapter.base_layer``; elsewhere the base model has it.
    """
    placed = dict(weights)
    stated = adapter.get("trainable_token_indices")
    for name in [name for name in weights if name.endswith(TOKEN_ROWS)]:
        module = name.removesuffix(TOKEN_ROWS)
        saved, plain = f"{module}.token_adapter.base_layer.weight", f"{module}.weight"
        embedding = placed.get(saved, placed.get(plain))
        if embedding is None:
            continue
        last = module.rsplit(".", 1)[-1]
        by_module = stated if isinstance(stated, Mapping) else {last: stated}
        tokens = by_module.get(last, next(iter(by_module.values())) if last == "lm_head" else None)
        rows = placed[name]
        if not isinstance(tokens, list) or len(tokens) != len(rows) or max(tokens, default=0) >= len(embedding):
            raise UsageError(
                f"{source}: {ADAPTER_CONFIG} has trainable_token_indices {stated} for {name} {tuple(rows.shape)} of"
                f" {len(embedding)} rows"
            )
        whole = embedding.clone()
        whole[tokens] = rows.to(whole.dtype)
        placed = {key: value for key, value in placed.items() if key not in (name, saved)} | {plain: whole}
    return placed


def _check_adapter(adapter: Mapping[str, Any], ranks: Mapping[str, int], source: str) -> None:
    """Refuse low-rank updates (rank of each module) that are not those an adapter's config speaks of."""
    if not ranks:
        raise UsageError(
            f"{source} has an {ADAPTER_CONFIG} but no low-rank update in its weights; take the file away if they are"
            " merged already"
        )
    for name, rank in ranks.items():
        if rank != (stated := _stated_rank(adapter, name)):
            raise UsageError(f"{source}: {ADAPTER_CONFIG} says r={stated}, {name} has rank {rank}")
    targets = adapter.get("target_modules")
    if isinstance(targets, str):
        strays = [] if targets == "all-linear" else [name for name in ranks if not re.fullmatch(targets, name)]
        unmet: list[str] = []
    else:
        ends = {target: [n for n in ranks if n == target or n.endswith(f".{target}")] for target in targets or ()}
        strays = sorted(ranks.keys() - {name for names in ends.values() for name in names})
        unmet = [target for target, names in ends.items() if not names]
    strays += [name for name in ranks if not _in_blocks(adapter, name)]
    if strays or unmet:
        blocks = adapter.get("layers_to_transform")
        only = "" if blocks is None else f" and layers_to_transform {blocks}"
        problem = f"updates of {some(strays)} that it does not name" if strays else f"no update of {some(unmet)}"
        raise UsageError(f"{source}: {ADAPTER_CONFIG} has target_modules {targets}{only}, the weights have {problem}")


def _stated_rank(adapter: Mapping[str, Any], name: str) -> Any:
    """Rank of a module's update as PEFT reads it from a config."""
    patterns: Mapping[str, Any] = adapter.get("rank_pattern") or {}
    named = (rank for pattern, rank in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(named, adapter.get("r"))


def check_trained_whole(adapter: Mapping[str, Any], own: Collection[str], model: nn.Module, source: str) -> None:
    """Refuse a checkpoint (names of its own weights) without what its adapter's config says was trained beside it.

    The base's would stand in for it: modules trained whole (``modules_to_save``), and biases (``bias``) where the model
    has any.
    """
    lost = [name for name in adapter.get("modules_to_save") or () if not any(f".{name}." in f".{key}" for key in own)]
    biases = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    plain = [f".{key}".replace(".base_layer.", ".") for key in own]
    untrained = [name for name in biases if not any(key.endswith(f".{name}") for key in plain)]
    if adapter.get("bias") == "all" or (adapter.get("bias") == "lora_only" and untrained == biases):
        lost += untrained
    if lost:
        raise UsageError(f"{source} lacks {some(lost)}, which its {ADAPTER_CONFIG} says were trained, too")


def _in_blocks(adapter: Mapping[str, Any], name: str) -> bool:
    """Whether a config's ``layers_to_transform``, if it has any, names the block of a module."""
    blocks = adapter.get("layers_to_transform")
    number = re.search(r"\.(\d+)\.", name)
    return blocks is None or number is None or int(number[1]) in ([blocks] if isinstance(blocks, int) else blocks)


def _check_every_block(updates: Collection[str], model: Any, adapter: Mapping[str, Any], source: str) -> None:
    """Refuse updates that some blocks have and others lack, unless a config says so: a part of them was lost."""
    targets = adapter.get("target_modules")
    if adapter.get("exclude_modules") or (isinstance(targets, str) and targets != "all-linear"):
        return
    kinds = {re.sub(r"\.\d+\.", ".*.", name) for name in updates}
    linear = (name for name, module in model.named_modules() if isinstance(module, Conv1D | nn.Linear))
    if lost := [
        name
        for name in linear
        if re.sub(r"\.\d+\.", ".*.", name) in kinds and name not in updates and _in_blocks(adapter, name)
    ]:
        raise UsageError(f"{source} lacks the low-rank updates of {some(lost)}, which its other blocks have")


def merge_adapters(
    weights: dict[str, Tensor], model: Any, adapter: Mapping[str, Any], scale: Mapping[str, Any], source: str,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:  # fmt: skip
    """Fold low-rank updates into the weights they belong to: ``W + alpha / r * B A`` (transposed for Conv1D).

    With ``use_rslora`` it is ``alpha / sqrt(r)`` (Kalajdzievski, *Rank-stabilized LoRA*, 2023). Each weight is summed
    in float32, then put into ``dtype``, and taken out of ``weights``: of a large model only one is there twice.
    """
    updates: dict[str, dict[str, Tensor]] = {}
    adapters: set[str] = set()
    for key in list(weights):
        if match := re.fullmatch(r"(.+)\.lora_([AB])(?:\.([^.]+))?\.weight", key):
            updates.setdefault(match.group(1), {})[match.group(2)] = weights.pop(key)
            adapters.add(match.group(3) or "default")
    if len(adapters) > 1:
        raise UsageError(f"{source} has {len(adapters)} adapters, {some(adapters)}; keep the one that is meant")
    if adapter:
        _check_adapter(adapter, {name: len(pair["A"]) for name, pair in updates.items() if "A" in pair}, source)
    named = {key.replace(".base_layer.", "."): key for key in weights}
    modules = dict(model.named_modules())
    for module, pair in updates.items():
        if pair.keys() != {"A", "B"}:
            raise UsageError(f"{source} has only half of a low-rank update: {module}.lora_{next(iter(pair))}")
        if f"{module}.weight" not in named or module not in modules:
            raise UsageError(f"{source} has a low-rank update of {module}, which the model lacks")
    if lost := {name for name, key in named.items() if key.endswith(".base_layer.weight")} - {
        f"{module}.weight" for module in updates
    }:
        raise UsageError(f"{source} lacks the low-rank updates of {some(lost)}; without them it is its base model")
    _check_every_block(updates, model, adapter, source)
    merged: dict[str, Tensor] = {}
    for name, key in named.items():
        module = name.removesuffix(".weight")
        weight = weights.pop(key).float()
        if name.endswith(".weight") and module in updates:
            update = _update(updates.pop(module), scale, module, source)
            update = update.T if isinstance(modules[module], Conv1D) else update
            if update.shape != weight.shape:
                raise UsageError(
                    f"{source}: low-rank update of {module} is {tuple(update.shape)}, its weight {tuple(weight.shape)}"
                )
            weight = weight + update
        merged[name] = weight.to(dtype)
    return merged


def _update(pair: Mapping[str, Tensor], scale: Mapping[str, Any], module: str, source: str) -> Tensor:
    """What an adapter adds to the weight of a linear layer ``(out, in)``, in float32."""
    down, up = pair["A"].float(), pair["B"].float()
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0] or not len(down):
        raise UsageError(
            f"{source}: shapes of {module}.lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} do not fit"
        )
    rank = len(down) ** 0.5 if scale.get("use_rslora") else len(down)
    update: Tensor = (scale["lora_alpha"] / rank) * (up @ down)
    return update
