"""Read a CODI checkpoint: PEFT names merged into the base, projection, three extra rows, tied head."""

import ctypes
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from extract.architectures import Architecture, architecture_from_keys, architecture_of
from extract.bases import PACKAGED, packaged_base
from extract.capture import ATTENTION
from extract.device import find_device, first_line
from extract.reasoner import Projection, Reasoner
from schemas import N_LATENT, UsageError, fingerprint, nearest
from schemas.checks import check_number, check_whole

ComputeDtype = Literal["float32", "float16", "bfloat16"]
SHIPPED = Path(__file__).parent / "checkpoints"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
LORA_ALPHA = 32.0
"""Of the released checkpoints, which have no adapter config."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""Files that can change which tokens a text has."""
N_EXTRA_ROW = 3
"""Rows after the base vocabulary: pad, beginning and end of thought."""
ANSWER_PREFIX = "The answer is:"
ROWS = ".extra_rows"
"""End of the names of the three extra rows in a checkpoint that holds only what was trained, without its base."""

MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8  # of mallopt(3)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PREFIXES = ("codi.base_model.model.", "codi.")
# Buffers that older versions of transformers saved beside the weights; recomputed from the config.
_BUFFER = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
_TYPES = {"float64", "float32", "float16", "bfloat16", "F64", "F32", "F16", "BF16"}
# Fields of PEFT's LoraConfig that are used here, or change nothing in what trained and merged weights compute.
_ADAPTER_FIELDS = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "target_modules", "exclude_modules", "task_type",
    "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "lora_dropout",
    "fan_in_fan_out", "bias", "init_lora_weights", "layers_to_transform", "layers_pattern", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
}  # fmt: skip
# Fields of config.json that say how a file was written, not what the model is.
_NOT_MODEL = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "architectures", "use_cache"}


def load_reasoner(
    checkpoint: str | Path,
    base: str | Path | None = None,
    device: str = "cpu",
    dtype: ComputeDtype = "float32",
    *,
    lora_alpha: float | None = None,
) -> Reasoner:
    """Load a CODI checkpoint in the official layout, ready to think.

    Parameters
    ----------
    checkpoint
        Folder or hub id with ``model.safetensors`` or ``pytorch_model.bin`` (read as weights only), or the name of a
        model shipped with this project. An optional ``codi.json`` in it gives ``n_latent`` (6) and ``answer_prefix``
        ("The answer is:"), an ``adapter_config.json`` as PEFT writes it the scale of the low-rank updates.
    base
        Folder or hub id of the base model, or ``smollm2-135m``: its config and tokenizer are read, its weights only
        where the checkpoint holds no more than what was trained (adapters, projection, extra rows). Default: the
        checkpoint's own folder if it has both, what its ``codi.json`` names, or the public base of its architecture.
    device
        Where it runs: ``cpu``, ``cuda``, ``cuda:1`` ...; see :func:`extract.device.find_device`.
    dtype
        Type it computes in. Low-rank updates are merged in float32 first.
    lora_alpha
        Numerator of the scale of the low-rank updates, whose rank is read from the shapes; by default the adapter
        config's or, without one, 32.

    Returns
    -------
    Reasoner

    Raises
    ------
    UsageError
        If anything is missing, unexpected, of another shape, type or architecture, holds two adapters or one of a kind
        that is not merged rightly here, or if ``lora_alpha`` is not the adapter config's; the text lists what.
    """
    target = find_device(device)
    _keep_freed_memory()
    _full_float32()
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UsageError(
            f"compute dtype {dtype!r} is not one of float32, float16, bfloat16"
            + nearest(dtype, ("float32", "float16", "bfloat16"))
        )
    name, weights_file, extra_folder = _find_checkpoint(str(checkpoint))
    raw = _read_weights(weights_file)
    weights, projection = _split(raw, str(checkpoint))
    architecture = architecture_from_keys(list(weights), str(checkpoint))
    settings = _read_json(extra_folder / "codi.json", "settings of the checkpoint", missing={})
    base = base or settings.get("base")
    trained_only = any(name.endswith(ROWS) for name in weights)
    base_folder = _find_base(base, extra_folder, architecture, weights=trained_only)
    config_json = _read_json(base_folder / "config.json", "config of the base model")
    architecture = architecture_of(str(config_json.get("model_type")), f"base {base or base_folder}")
    if "quantization_config" in config_json:
        raise UsageError(f"base {base or base_folder} is quantised (quantization_config); pass the plain one")
    n_latent, answer_prefix = settings.get("n_latent", N_LATENT), settings.get("answer_prefix", ANSWER_PREFIX)
    check_whole(f"{extra_folder / 'codi.json'}: n_latent", n_latent, 1)
    if not isinstance(answer_prefix, str):
        raise UsageError(f"{extra_folder / 'codi.json'}: answer_prefix is {answer_prefix!r}; it must be a text")
    adapter = _read_json(extra_folder / ADAPTER_CONFIG, "config of the adapter", missing={})
    _check_adapter_config(adapter, str(extra_folder / ADAPTER_CONFIG))
    scale = {
        "lora_alpha": _one_alpha(
            {
                "the argument": lora_alpha,
                str(extra_folder / "codi.json"): settings.get("lora_alpha"),
                str(extra_folder / ADAPTER_CONFIG): adapter.get("lora_alpha"),
            }
        )
    } | ({"use_rslora": True} if adapter.get("use_rslora") else {})

    model, vocabulary = _build(base_folder, config_json, architecture, str(base or base_folder))
    if trained_only:
        weights, raw = _complete(weights, raw, base_folder, str(checkpoint))
    _check_base(weights, model, architecture, vocabulary, str(checkpoint), str(base or base_folder))
    merged = _merge(weights, model, adapter, scale, str(checkpoint))
    _load(model, merged, str(checkpoint))
    hidden = int(model.config.hidden_size)
    prj = _projection(projection, hidden, str(checkpoint))
    for module in (model, prj):
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            # Parameters only: rotary frequencies stay float32, rounding them moves far positions.
            parameter.data = parameter.data.to(device=target, dtype=getattr(torch, dtype))
        module.to(target)
    tokenizer = _tokenizer(base_folder, vocabulary)
    model_config = {key: value for key, value in config_json.items() if key not in _NOT_MODEL}
    return Reasoner(
        name=name,
        model=model,
        projection=prj,
        tokenizer=tokenizer,
        architecture=architecture,
        vocabulary=vocabulary,
        n_latent=n_latent,
        answer_prefix=answer_prefix,
        fingerprint={
            "weights": _fingerprint_weights(raw, {"config": model_config, "n_latent": n_latent, **scale}),
            **_fingerprint_tokenizer(base_folder, tokenizer),
        },
    )


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed activations for the next, whichever thread asks.

    It would give each back to the system and have every page faulted in again: a tenth of the time of a capture.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in ((MMAP_THRESHOLD, 2**30), (TRIM_THRESHOLD, 2**31 - 1), (ARENA_MAX, 1)):
            libc.mallopt(parameter, value)


def _full_float32() -> None:
    """Have float32 products computed in float32, not in TF32 or bfloat16, whatever the environment asks for.

    NVIDIA's containers set ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1``, which only moves torch's default.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _find_checkpoint(checkpoint: str) -> tuple[str, Path, Path]:
    """Name, weights file and folder of a checkpoint: shipped, local, or on the hub."""
    shipped = SHIPPED / checkpoint
    folder = Path(checkpoint)
    if "/" not in checkpoint and not folder.exists() and shipped.is_dir():
        folder = shipped
    if folder.is_file():
        return folder.parent.name, folder, folder.parent
    if folder.is_dir():
        for file in WEIGHT_FILES:
            if (folder / file).is_file():
                return folder.resolve().name, folder / file, folder
        raise UsageError(f"checkpoint {folder} has neither {' nor '.join(WEIGHT_FILES)}")
    if not _HUB_ID.fullmatch(checkpoint) or "/" not in checkpoint:
        known = ", ".join(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())) if SHIPPED.is_dir() else ""
        raise UsageError(
            f"checkpoint {checkpoint} is no folder, no hub id (OWNER/NAME) and no shipped model ({known or 'none'})"
            + nearest(checkpoint, known.split(", "))
        )
    problems: list[str] = []
    for file in WEIGHT_FILES:
        try:
            path = Path(hf_hub_download(checkpoint, file, etag_timeout=10))
        except Exception as error:  # the hub client raises many unrelated types
            problems.append(f"{file}: {first_line(error)}")
            continue
        for extra in ("codi.json", ADAPTER_CONFIG, "config.json", *TOKENIZER_FILES):
            try:
                hf_hub_download(checkpoint, extra, etag_timeout=10)
            except Exception:  # noqa: BLE001 -- optional files
                continue
        return checkpoint.rsplit("/", 1)[-1], path, path.parent
    raise UsageError(f"checkpoint {checkpoint} is no folder here and was not found on the hub: {'; '.join(problems)}")


def _find_base(
    base: str | Path | None, folder: Path, architecture: Architecture | None, *, weights: bool = False
) -> Path:
    """Folder with config and tokenizer of the base model, and with its weights where they are asked for."""
    if base is None:
        own = _read_json(folder / "config.json", "config of the checkpoint", missing={})
        if own.get("model_type") and (folder / "tokenizer.json").is_file():
            return folder
        base = architecture.default_base if architecture else ""
    local = Path(base)
    if str(base) in PACKAGED and not local.exists():
        return packaged_base(str(base))
    if local.is_dir():
        missing = [file for file in ("config.json", "tokenizer.json") if not (local / file).is_file()]
        if missing and not ("config.json" not in missing and list(local.glob("tokenizer*"))):
            raise UsageError(f"base {base} lacks {', '.join(missing)}")
        return local
    if not _HUB_ID.fullmatch(str(base)):
        raise UsageError(f"base {base} is no folder and no hub id; pass the base model's folder with --base")
    try:
        patterns = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(str(base), allow_patterns=patterns, etag_timeout=10))
    except Exception as error:
        raise UsageError(
            f"base {base} is no folder here and was not found on the hub ({first_line(error)});"
            " pass the base model's folder with --base"
        ) from error


def _read_json(path: Path, what: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if missing is not None and not path.is_file():
        return missing
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{what} cannot be read from {path}: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{what} in {path} is no JSON object")
    return value


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            raw = load_file(path)
        else:
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and parsing raise many types
        raise UsageError(f"weights cannot be read from {path}: {first_line(error)}; is the file complete?") from error
    if not isinstance(raw, Mapping) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise UsageError(f"{path} holds no state dict (names to tensors)")
    weights = {str(key): value for key, value in raw.items()}
    kinds = {key: str(value.dtype).removeprefix("torch.") for key, value in weights.items()}
    strange = {key: value.layout for key, value in weights.items() if value.layout != torch.strided}
    _check_plain(kinds | {key: str(layout).removeprefix("torch.") for key, layout in strange.items()}, str(path))
    return weights


def _check_plain(kinds: Mapping[str, str], source: str) -> None:
    """Refuse weights (type by name) that are no plain floating-point numbers: without a scale they mean nothing."""
    strange = [f"{key} ({kind})" for key, kind in kinds.items() if kind not in _TYPES and not _BUFFER.search(key)]
    if strange:
        raise UsageError(
            f"weights of {source} are quantised or otherwise no plain floating-point numbers: {_some(strange)}; "
            "write them in float32, float16 or bfloat16"
        )


def _split(raw: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the language model, without their prefix, and of the projection."""
    weights: dict[str, Tensor] = {}
    projection: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, value in raw.items():
        if key.startswith("prj."):
            projection[key.removeprefix("prj.")] = value
            continue
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            unexpected.append(key)
        elif not _BUFFER.search(key):
            weights[key.removeprefix(prefix)] = value
    if not weights:
        raise UsageError(
            f"{source} is no CODI checkpoint: no weight begins with {' or '.join(_PREFIXES)} ({_some(unexpected)})"
        )
    if unexpected:
        raise UsageError(f"{source} has unexpected weights: {_some(unexpected)}")
    return weights, projection


def _some(names: Iterable[str], shown: int = 6) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def _build(folder: Path, config_json: dict[str, Any], architecture: Architecture, source: str) -> tuple[Any, int]:
    """Model of the base's config with the extra rows, weights unset, and the size of the base vocabulary."""
    try:
        config = AutoConfig.from_pretrained(folder)
        vocabulary = int(config.vocab_size)
        config.vocab_size = vocabulary + N_EXTRA_ROW
        if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
            config.pad_token_id = None
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
    except Exception as error:  # whatever a config of wrong fields raises inside transformers
        what = f"no {architecture.model_type} model can be built from {source}"
        raise UsageError(f"{what}: {first_line(error)}") from error
    return model, vocabulary


@contextmanager
def _no_bar() -> Iterator[None]:
    """The library's own progress bars off; the command line has its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _base_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a base model by the names of its architecture, in float32; a tied head is left out."""
    try:
        for file in sorted(folder.glob("*.safetensors")):  # a library reads other numbers at face value
            with safe_open(file, framework="pt") as weights:
                _check_plain({key: weights.get_slice(key).get_dtype() for key in weights.keys()}, str(file))  # noqa: SIM118
        with _no_bar():
            model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except UsageError:
        raise
    except Exception as error:  # whatever missing or broken weights raise inside transformers
        raise UsageError(f"weights of base {folder} cannot be read: {first_line(error)}") from error
    if missing := report["missing_keys"]:  # the library would draw them at random
        raise UsageError(f"weights of base {folder} lack {_some(missing)}")
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    return {name: value for name, value in model.state_dict().items() if name not in tied}


def _complete(
    weights: dict[str, Tensor], raw: dict[str, Tensor], base: Path, source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and file content of a checkpoint that holds only what was trained, with those of its base."""
    full = _base_weights(base)
    raw = {**raw, **{f"base.{name}": value for name, value in full.items()}}
    for name, value in weights.items():
        target = name.removesuffix(ROWS) + ".weight"
        if not name.endswith(ROWS):
            full[name] = value
        elif target not in full or full[target].shape[1:] != value.shape[1:]:
            raise UsageError(f"{source} has extra rows for {target}, which do not fit base {base}")
        else:
            full[target] = torch.cat([full[target], value.float()])
    return full, raw


def new_reasoner(base: str | Path, device: str = "cpu", *, n_latent: int = N_LATENT) -> Reasoner:
    """A base model with three new rows and a new projection, ready to be trained; nothing of it can think yet.

    Random numbers come from torch's generator. The projection ends at the scale of the word embeddings.
    """
    target = find_device(device)
    folder = _find_base(base, Path(base), None, weights=True)
    config_json = _read_json(folder / "config.json", "config of the base model")
    architecture = architecture_of(str(config_json.get("model_type")), f"base {base}")
    model, vocabulary = _build(folder, config_json, architecture, str(base))
    weights = _base_weights(folder)
    digest = _fingerprint_weights(weights, {})
    hidden = int(model.config.hidden_size)
    for name in sorted({f"{architecture.body}.{architecture.embedding}.weight", "lm_head.weight"} & weights.keys()):
        rows = weights[name]
        new = rows.mean(0) + rows.std(0) * torch.randn(N_EXTRA_ROW, hidden)
        weights[name] = torch.cat([rows[:vocabulary], new])
    embedding = weights[f"{architecture.body}.{architecture.embedding}.weight"]
    _load(model, weights, str(base))
    projection = Projection(hidden, hidden, with_norm=True)
    norm: Any = projection.get_submodule("ln")
    nn.init.constant_(norm.weight, float(embedding[:vocabulary].square().mean().sqrt()))
    tokenizer = _tokenizer(folder, vocabulary)
    return Reasoner(
        name=str(base), model=model.to(target).eval(), projection=projection.to(target), tokenizer=tokenizer,
        architecture=architecture, vocabulary=vocabulary, n_latent=n_latent, answer_prefix=ANSWER_PREFIX,
        fingerprint={"weights": digest, **_fingerprint_tokenizer(folder, tokenizer)},
    )  # fmt: skip


def _check_base(
    weights: Mapping[str, Tensor], model: Any, architecture: Architecture, vocabulary: int, source: str, base: str
) -> None:
    """Name what differs between a checkpoint and its base, before the long list of shapes."""
    if not any(key.startswith(architecture.block_prefix) for key in weights):
        found = architecture_from_keys(list(weights), source).model_type
        raise UsageError(f"{source} is a {found} checkpoint, base {base} is of type {architecture.model_type}")
    differences: list[str] = []
    embedding = weights.get(f"{architecture.body}.{architecture.embedding}.weight")
    if embedding is None:
        embedding = weights.get("lm_head.weight")
    config = model.config
    if embedding is not None and embedding.ndim == 2:
        rows, hidden = embedding.shape
        if rows != vocabulary + N_EXTRA_ROW:
            differences.append(f"{rows} embedding rows, base has a vocabulary of {vocabulary} (+ {N_EXTRA_ROW})")
        if hidden != config.hidden_size:
            differences.append(f"hidden size {hidden}, base has {config.hidden_size}")
    start = len(architecture.block_prefix)
    blocks = {key[start:].split(".")[0] for key in weights if key.startswith(architecture.block_prefix)}
    if len(blocks) != config.num_hidden_layers:
        differences.append(f"{len(blocks)} blocks, base has {config.num_hidden_layers}")
    if not differences:
        name = f"{architecture.block_prefix}0.self_attn.q_proj"
        query = weights.get(f"{name}.base_layer.weight", weights.get(f"{name}.weight"))
        own = dict(model.named_parameters()).get(f"{name}.weight")
        if query is not None and own is not None and query.shape[0] != own.shape[0]:
            differences.append(
                f"queries of size {query.shape[0]}, base has {config.num_attention_heads} heads of size"
                f" {own.shape[0] // config.num_attention_heads}"
            )
    if differences:
        raise UsageError(f"{source} does not belong to base {base}: checkpoint has {'; '.join(differences)}")


def _one_alpha(said: Mapping[str, Any]) -> float:
    """Numerator of the low-rank updates' scale, from whoever says one; they must not contradict each other."""
    known = {source: value for source, value in said.items() if value is not None}
    for source, value in known.items():
        check_number(f"lora_alpha of {source}", value, above=0)
    if len({float(value) for value in known.values()}) > 1:
        raise UsageError("lora_alpha is " + ", but ".join(f"{value:g} in {source}" for source, value in known.items()))
    return float(next(iter(known.values()), LORA_ALPHA))


def _check_adapter_config(adapter: Mapping[str, Any], source: str) -> None:
    """Refuse whatever an adapter's config, if there is one, asks for that changes what it computes."""
    if adapter and adapter.get("peft_type") != "LORA":
        raise UsageError(f"{source} is of peft_type {adapter.get('peft_type')!r}; only 'LORA' is merged")
    if adapter and adapter.get("lora_alpha") is None:
        raise UsageError(f"{source} names no lora_alpha, so the updates' scale is not known")
    if unknown := [f"{key}={value!r}" for key, value in adapter.items() if value and key not in _ADAPTER_FIELDS]:
        raise UsageError(f"{source} asks for what is not merged rightly here: {_some(unknown)}")


def _check_adapter(adapter: Mapping[str, Any], ranks: Mapping[str, int], source: str) -> None:
    """Refuse low-rank updates (rank of each module) that are not those an adapter's config speaks of."""
    if not ranks:
        raise UsageError(
            f"{source} has an {ADAPTER_CONFIG} but no low-rank update in its weights; take the file away if they are"
            " merged already"
        )
    rank = adapter.get("r")
    if not adapter.get("rank_pattern") and (other := [name for name, found in ranks.items() if found != rank]):
        raise UsageError(f"{source}: {ADAPTER_CONFIG} says r={rank}, {other[0]} has rank {ranks[other[0]]}")
    targets = adapter.get("target_modules")
    if isinstance(targets, str):
        strays = [] if targets == "all-linear" else [name for name in ranks if not re.fullmatch(targets, name)]
        unmet: list[str] = []
    else:
        ends = {target: [n for n in ranks if n == target or n.endswith(f".{target}")] for target in targets or ()}
        strays = sorted(ranks.keys() - {name for names in ends.values() for name in names})
        unmet = [target for target, names in ends.items() if not names]
    if strays or unmet:
        found = f"updates of {_some(strays)} that it does not name" if strays else f"no update of {_some(unmet)}"
        raise UsageError(f"{source}: {ADAPTER_CONFIG} has target_modules {targets}, the weights have {found}")


def _merge(
    weights: Mapping[str, Tensor], model: Any, adapter: Mapping[str, Any], scale: Mapping[str, Any], source: str
) -> dict[str, Tensor]:
    """Fold low-rank updates into the weights they belong to: ``W + alpha / r * B A`` (transposed for Conv1D).

    With ``use_rslora`` it is ``alpha / sqrt(r)`` (Kalajdzievski, *Rank-stabilized LoRA*, 2023).
    """
    merged: dict[str, Tensor] = {}
    updates: dict[str, dict[str, Tensor]] = {}
    adapters: set[str] = set()
    for key, value in weights.items():
        if match := re.fullmatch(r"(.+)\.lora_([AB])(?:\.([^.]+))?\.weight", key):
            updates.setdefault(match.group(1), {})[match.group(2)] = value
            adapters.add(match.group(3) or "default")
        else:
            merged[key.replace(".base_layer.", ".")] = value.float()
    if len(adapters) > 1:
        raise UsageError(f"{source} has {len(adapters)} adapters, {_some(adapters)}; keep the one that is meant")
    if adapter:
        _check_adapter(adapter, {name: len(pair["A"]) for name, pair in updates.items() if "A" in pair}, source)
    modules = dict(model.named_modules())
    for module, pair in updates.items():
        key = f"{module}.weight"
        if pair.keys() != {"A", "B"}:
            raise UsageError(f"{source} has only half of a low-rank update: {module}.lora_{next(iter(pair))}")
        if key not in merged or module not in modules:
            raise UsageError(f"{source} has a low-rank update of {module}, which the model lacks")
        down, up = pair["A"].float(), pair["B"].float()
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0] or not len(down):
            raise UsageError(
                f"{source}: shapes of {module}.lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} do not fit"
            )
        rank = len(down) ** 0.5 if scale.get("use_rslora") else len(down)
        update = (scale["lora_alpha"] / rank) * (up @ down)
        if isinstance(modules[module], Conv1D):
            update = update.T
        if update.shape != merged[key].shape:
            raise UsageError(
                f"{source}: low-rank update of {module} is {tuple(update.shape)}, its weight {tuple(merged[key].shape)}"
            )
        merged[key] = merged[key] + update
    return merged


def _load(model: Any, weights: dict[str, Tensor], source: str) -> None:
    """Set every weight; anything missing, unexpected or of another shape is an error that lists it."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied: dict[str, str] = dict(getattr(model, "_tied_weights_keys", None) or {})
    tied = tied if model.config.tie_word_embeddings else {}
    for head, embedding in tied.items():
        if head in weights and embedding in weights:
            if not torch.equal(weights[head], weights[embedding]):
                raise UsageError(
                    f"{source}: {head} and {embedding} differ, but the base's config ties them (tie_word_embeddings)"
                )
        elif head in weights:
            weights[embedding] = weights[head]
        elif embedding in weights:
            weights[head] = weights[embedding]
    problems: list[str] = []
    if missing := own.keys() - weights.keys():
        problems.append(f"missing {_some(missing)}")
    if unexpected := weights.keys() - own.keys():
        problems.append(f"unexpected {_some(unexpected)}")
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {own[name]}"
        for name in own.keys() & weights.keys()
        if tuple(weights[name].shape) != own[name]
    ]
    if shapes:
        problems.append(f"of another shape {_some(shapes)}")
    if problems:
        raise UsageError(f"weights of {source} do not fit its base: {'; '.join(problems)}")
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    not_finite = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if not_finite:
        raise UsageError(f"weights of {source} are not finite: {_some(not_finite)}")


def _projection(weights: dict[str, Tensor], hidden: int, source: str) -> Projection:
    with_norm = any(key.startswith("ln.") for key in weights)
    inner = weights["1.weight"].shape[0] if "1.weight" in weights and weights["1.weight"].ndim == 2 else hidden
    projection = Projection(hidden, inner, with_norm=with_norm)
    own = {name: tuple(value.shape) for name, value in projection.state_dict().items()}
    problems: list[str] = []
    if missing := own.keys() - weights.keys():
        problems.append(f"missing {_some('prj.' + name for name in missing)}")
    if unexpected := weights.keys() - own.keys():
        problems.append(f"unexpected {_some('prj.' + name for name in unexpected)}")
    shapes = [
        f"prj.{name} {tuple(weights[name].shape)} instead of {own[name]}"
        for name in own.keys() & weights.keys()
        if tuple(weights[name].shape) != own[name]
    ]
    if shapes:
        problems.append(f"of another shape {_some(shapes)}")
    if not_finite := [f"prj.{name}" for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
        problems.append(f"not finite {_some(not_finite)}")
    if problems:
        raise UsageError(f"projection of {source} does not fit: {'; '.join(problems)}")
    projection.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    return projection


def _tokenizer(folder: Path, vocabulary: int) -> Any:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever a broken tokenizer file raises
        if not (folder / "tokenizer.json").is_file():
            raise UsageError(f"no tokenizer can be read from {folder}: {first_line(error)}") from error
        try:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        except Exception as second:
            raise UsageError(f"no tokenizer can be read from {folder}: {first_line(second)}") from second
    finally:
        transformers_logging.set_verbosity(verbosity)
    if tokenizer.eos_token_id is None:
        raise UsageError(f"tokenizer of {folder} names no end token (eos_token)")
    if tokenizer.eos_token_id >= vocabulary:
        raise UsageError(f"end token {tokenizer.eos_token_id} of {folder} lies outside its vocabulary of {vocabulary}")
    return tokenizer


def _fingerprint_weights(raw: Mapping[str, Tensor], settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(fingerprint(settings).encode())
    for name in sorted(raw):
        value = raw[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fingerprint_tokenizer(folder: Path, tokenizer: Any) -> dict[str, str]:
    """Digests of ``tokenizer.json``, all that lakes made earlier know, and of every file that can change tokens."""
    file = folder / "tokenizer.json"
    content = file.read_bytes() if file.is_file() else tokenizer.backend_tokenizer.to_str().encode()
    digest = hashlib.sha256()
    for name in sorted({*TOKENIZER_FILES, *getattr(tokenizer, "vocab_files_names", {}).values()}):
        if (folder / name).is_file():
            content_of = (folder / name).read_bytes()
            digest.update(f"{name} {len(content_of)}\n".encode() + content_of)
    return {"tokenizer": hashlib.sha256(content).hexdigest(), "tokenizer_files": digest.hexdigest()}
