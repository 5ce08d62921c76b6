"""Read a checkpoint: which protocol it follows, PEFT names merged into the base, projection, extra rows, tied head."""

import ctypes
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from extract.model.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture_from_keys,
    architecture_of,
    default_base,
)
from extract.model.bases import PACKAGED, packaged_base
from extract.model.capture import ATTENTION
from extract.model.checkpoint import (
    ADAPTER_CONFIG,
    ARGUMENTS,
    BUFFER,
    HUB_ID,
    SETTINGS,
    SHIPPED,
    TOKENIZER_FILES,
    check_plain,
    find_checkpoint,
    read_arguments,
    read_json,
    read_weights,
    some,
)
from extract.model.device import find_device, first_line
from extract.model.protocols import COCONUT, CODI, PEFT, PREFIXES, Protocol, named_protocol, recognise, stated_protocol
from extract.model.reasoner import Constant, Projection, Reasoner
from schemas import N_LATENT, UsageError, fingerprint, nearest
from schemas.checks import check_number

__all__ = ["SHIPPED", "ComputeDtype", "load_reasoner", "new_reasoner"]

ComputeDtype = Literal["float32", "float16", "bfloat16"]
LORA_ALPHA = 32.0
"""Of the released checkpoints, which have no adapter config."""
ROWS = ".extra_rows"
"""End of the names of the extra rows in a checkpoint that holds only what was trained, without its base."""

MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8  # of mallopt(3)

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
    protocol: str | None = None,
    thoughts: int | None = None,
) -> Reasoner:
    """Load the checkpoint of a latent reasoner, ready to think.

    Parameters
    ----------
    checkpoint
        Folder, file or hub id (``OWNER/NAME``, or ``OWNER/NAME:FILE``) with the weights (``model.safetensors``,
        ``pytorch_model.bin``, either in shards with its index, PEFT's ``adapter_model``, or the one other file that
        holds weights, read as weights only), or the name of a model shipped with this project. A ``codi.json`` beside
        them may give ``protocol``, ``n_latent``, ``answer_prefix`` and ``base``, an ``adapter_config.json`` as PEFT
        writes it the scale of the low-rank updates, an ``args.yaml`` what a Coconut model was trained with.
    base
        Folder or hub id of the base model, or ``smollm2-135m``: its config and tokenizer are read, its weights only
        where the checkpoint holds no more than what was trained (adapters, projection, extra rows). Default: the
        checkpoint's own folder if it has both, what the files beside it name, or the public base of its sizes.
    device
        Where it runs: ``cpu``, ``cuda``, ``cuda:1`` ...; see :func:`extract.model.device.find_device`.
    dtype
        Type it computes in. Low-rank updates are merged in float32 first.
    lora_alpha
        Numerator of the scale of the low-rank updates, whose rank is read from the shapes; by default the adapter
        config's or, without one, 32.
    protocol
        How it is asked and fed, one of :data:`extract.model.protocols.PROTOCOLS`, where the checkpoint does not say.
    thoughts
        Number of thoughts, instead of what the checkpoint or its protocol says.

    Returns
    -------
    Reasoner

    Raises
    ------
    UsageError
        If anything is missing, unexpected, of another shape, type or architecture, holds two adapters or one of a kind
        that is not merged rightly here, could be of several protocols, or if ``lora_alpha`` or ``protocol`` is not what
        the checkpoint says; the text lists what.
    """
    target = find_device(device)
    _keep_freed_memory()
    _full_float32()
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UsageError(
            f"compute dtype {dtype!r} is not one of float32, float16, bfloat16"
            + nearest(dtype, ("float32", "float16", "bfloat16"))
        )
    source = str(checkpoint)
    name, files, folder = find_checkpoint(source)
    raw = read_weights(files)
    settings = read_json(folder / SETTINGS, "settings of the checkpoint", missing={})
    arguments = read_arguments(folder)
    adapter = read_json(folder / ADAPTER_CONFIG, "config of the adapter", missing={})
    prefix = _prefix_of(raw, source)
    weights = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
    trained_only = _trained_only(weights)
    stated = settings.get("base") or arguments.get("model_id") or adapter.get("base_model_name_or_path")
    base_folder = _find_base(base, folder, weights, stated, trained_only=trained_only)
    base = str(base or base_folder)
    config_json = read_json(base_folder / "config.json", "config of the base model")
    architecture = architecture_of(str(config_json.get("model_type")), f"base {base}")
    if "quantization_config" in config_json:
        raise UsageError(f"base {base} is quantised (quantization_config); pass the plain one")
    config = _config(base_folder, architecture, base)
    tokenizer = _tokenizer(base_folder, int(config.vocab_size))
    rule = _find_protocol(
        protocol, settings.get("protocol"), prefix, raw, _n_extra(weights, architecture, int(config.vocab_size)),
        markers=set(COCONUT.rows) <= tokenizer.get_vocab().keys(), arguments=arguments, source=source,
    )  # fmt: skip
    n_latent = _n_latent(rule, thoughts, settings, arguments, folder, source)
    answer_prefix = settings.get("answer_prefix", rule.answer_prefix)
    if not isinstance(answer_prefix, str):
        raise UsageError(f"{folder / SETTINGS}: answer_prefix is {answer_prefix!r}; it must be a text")
    rule = replace(rule, answer_prefix=answer_prefix)
    _check_adapter_config(adapter, str(folder / ADAPTER_CONFIG), saved=prefix == PEFT)
    scale = {
        "lora_alpha": _one_alpha(
            {
                "the argument": lora_alpha,
                str(folder / SETTINGS): settings.get("lora_alpha"),
                str(folder / ADAPTER_CONFIG): adapter.get("lora_alpha"),
            }
        )
    } | ({"use_rslora": True} if adapter.get("use_rslora") else {})

    weights, projection = _split(raw, rule, prefix, source)
    # GPT-NeoX's head was called so before transformers 5.
    weights = {re.sub(r"^embed_out\.", "lm_head.", name): value for name, value in weights.items()}
    if trained_only:
        weights, raw = _complete(weights, raw, base_folder, source)
    vocabulary, extra = _rows(rule, tokenizer, int(config.vocab_size), weights, architecture)
    model = _build(config, vocabulary + len(extra), architecture, base)
    _check_base(weights, model, architecture, vocabulary, len(extra), source, base)
    merged = _merge(weights, model, adapter, scale, source)
    _load(model, merged, source)
    feeding = _feeding(rule, projection, int(model.config.hidden_size), source)
    for module in (model, feeding):
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            # Parameters only: rotary frequencies stay float32, rounding them moves far positions.
            parameter.data = parameter.data.to(device=target, dtype=getattr(torch, dtype))
        module.to(target)
    model_config = {key: value for key, value in config_json.items() if key not in _NOT_MODEL}
    decides = {"config": model_config, "n_latent": n_latent, **scale}
    if (described := rule.to_json()) != CODI.to_json():  # models known before there were protocols keep their digest
        decides["protocol"] = described | {"answer_prefix": answer_prefix}
    return Reasoner(
        name=name,
        model=model,
        projection=feeding,
        tokenizer=tokenizer,
        architecture=architecture,
        vocabulary=vocabulary,
        n_latent=n_latent,
        answer_prefix=answer_prefix,
        protocol=rule,
        extra_rows=extra,
        fingerprint={
            "weights": _fingerprint_weights(raw, decides),
            **_fingerprint_tokenizer(base_folder, tokenizer),
        },
    )


def _prefix_of(raw: Mapping[str, Tensor], source: str) -> str:
    """What stands before the language model's own names of weights."""
    blocks = tuple(dict.fromkeys(entry.block_prefix for entry in ARCHITECTURES.values()))
    for prefix in PREFIXES:
        inside = (key.removeprefix(prefix) for key in raw if key.startswith(prefix))
        if any(key.startswith(blocks) or (prefix and key.endswith(ROWS)) for key in inside):
            return prefix
    raise UsageError(
        f"{source} is no CODI checkpoint, nor of another protocol that is known: no weight begins with"
        f" {' or '.join(blocks)}, by itself or after {' or '.join(PREFIXES[:-1])} ({some(raw)})"
    )


def _trained_only(weights: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint holds only what was trained: extra rows by themselves, or adapters without blocks."""
    blocks = tuple(entry.block_prefix for entry in ARCHITECTURES.values())
    return any(key.endswith(ROWS) for key in weights) or all(
        ".lora_" in key for key in weights if key.startswith(blocks)
    )


def _embedding(weights: Mapping[str, Tensor], architecture: Architecture) -> Tensor | None:
    """Rows of the token embedding, or of the head, whichever of them there are."""
    named = (weights.get(f"{name}.weight") for name in architecture.vocabulary_modules)
    return next((rows for rows in named if rows is not None and rows.ndim == 2), None)


def _n_extra(weights: Mapping[str, Tensor], architecture: Architecture, vocabulary: int) -> int:
    """Rows of a checkpoint after the base vocabulary."""
    for key, value in weights.items():
        if key.endswith(ROWS):
            return len(value)
    embedding = _embedding(weights, architecture)
    return 0 if embedding is None else len(embedding) - vocabulary


def _find_protocol(
    named: str | None, said: Any, prefix: str, raw: Mapping[str, Tensor], n_extra: int, *, markers: bool,
    arguments: Mapping[str, Any], source: str,
) -> Protocol:  # fmt: skip
    """Protocol that the user names, that a file beside the checkpoint states, or that the weights show."""
    stated = stated_protocol(said, f"{source}, {SETTINGS}")
    if named is not None and stated is not None and named != stated.name:
        raise UsageError(f"protocol is {named} in the argument, but {stated.name} in {SETTINGS} of {source}")
    if stated is None and named is not None:
        stated = named_protocol(named)
    if stated is None:
        return recognise(prefix, raw, n_extra, markers=markers, arguments=arguments, source=source)
    if prefix not in stated.prefixes:
        wanted, found = (
            " or ".join(f"{x}*" if x else "plainly" for x in those) for those in (stated.prefixes, [prefix])
        )
        raise UsageError(f"weights of protocol {stated.name} are named {wanted}, those of {source} {found}")
    return stated


def _n_latent(
    rule: Protocol, thoughts: int | None, settings: Mapping[str, Any], arguments: Mapping[str, Any], folder: Path,
    source: str,
) -> int:  # fmt: skip
    """Number of thoughts, from whoever says it first: the user, the files beside the checkpoint, the protocol."""
    trained = None
    if rule.fed in ("state", "vector") and {"c_thought", "max_latent_stage"} <= arguments.keys():
        if thoughts is None and not arguments.get("pad_latent_to_max", True):
            raise UsageError(
                f"{folder / ARGUMENTS}: pad_latent_to_max is false, so questions have different numbers of thoughts;"
                " choose one with --thoughts N"
            )
        trained = arguments["c_thought"] * arguments["max_latent_stage"]
    for value, place in (
        (thoughts, "--thoughts"),
        (settings.get("n_latent"), f"{folder / SETTINGS}: n_latent"),
        (trained, f"{folder / ARGUMENTS}: c_thought x max_latent_stage"),
        (rule.n_latent, f"protocol {rule.name}: n_latent"),
    ):
        if value is not None:
            return rule.check_thoughts(value, place)
    raise UsageError(f"{source} (protocol {rule.name}) does not say how many thoughts it has; pass --thoughts N")


def _rows(
    rule: Protocol, tokenizer: Any, vocabulary: int, weights: Mapping[str, Tensor], architecture: Architecture
) -> tuple[int, tuple[str, ...]]:
    """Rows before the protocol's own, and the tokens of these, unless the tokenizer knows them all."""
    if rule.rows and not set(rule.rows) <= tokenizer.get_vocab().keys():
        return (vocabulary if rule.rows_after == "vocabulary" else len(tokenizer)), rule.rows
    embedding = _embedding(weights, architecture)
    as_tokenizer = embedding is not None and len(embedding) == len(tokenizer)
    return (len(tokenizer) if as_tokenizer else vocabulary), ()


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


def _find_base(
    base: str | Path | None, folder: Path, weights: Mapping[str, Tensor], stated: Any = None, *, trained_only: bool
) -> Path:
    """Folder with config and tokenizer of the base model, and with its weights where the checkpoint has not all.

    Where it is not named, what the checkpoint says (``stated``) or a public model of its sizes.
    """
    if base is None:
        own = read_json(folder / "config.json", "config of the checkpoint", missing={})
        if own.get("model_type") and (folder / "tokenizer.json").is_file():
            return folder
        base = str(stated) if stated else default_base({key: tuple(value.shape) for key, value in weights.items()})
    if base is None:
        raise UsageError(
            f"{folder} does not say what its base model is, and none is known of its sizes; pass the base model's"
            " folder with --base"
        )
    local = Path(base)
    if str(base) in PACKAGED and not local.exists():
        return packaged_base(str(base))
    if local.is_dir():
        missing = [file for file in ("config.json", "tokenizer.json") if not (local / file).is_file()]
        if missing and not ("config.json" not in missing and list(local.glob("tokenizer*"))):
            raise UsageError(f"base {base} lacks {', '.join(missing)}")
        return local
    if not HUB_ID.fullmatch(str(base)):
        raise UsageError(f"base {base} is no folder and no hub id; pass the base model's folder with --base")
    try:
        patterns = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if trained_only else [])]
        return Path(snapshot_download(str(base), allow_patterns=patterns, etag_timeout=10))
    except Exception as error:
        raise UsageError(
            f"base {base} is no folder here and was not found on the hub ({first_line(error)});"
            " pass the base model's folder with --base"
        ) from error


def _split(
    raw: Mapping[str, Tensor], rule: Protocol, prefix: str, source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the language model, without their prefix, and of what makes the vectors that are fed."""
    weights: dict[str, Tensor] = {}
    feeding: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, value in raw.items():
        if key == rule.vector or (rule.fed == "projection" and key.startswith(f"{rule.projection[0]}.")):
            feeding[key.removeprefix(f"{rule.projection[0]}.")] = value
        elif key.startswith(rule.unused) or BUFFER.search(key):
            continue
        elif key.startswith(prefix):
            weights[key.removeprefix(prefix)] = value
        else:
            unexpected.append(key)
    if unexpected:
        raise UsageError(f"{source} (protocol {rule.name}) has unexpected weights: {some(unexpected)}")
    return weights, feeding


def _config(folder: Path, architecture: Architecture, source: str) -> Any:
    """Config of the base model as transformers reads it."""
    try:
        config = AutoConfig.from_pretrained(folder)
        int(config.vocab_size)
    except Exception as error:  # whatever a config of wrong fields raises inside transformers
        raise _no_model(architecture, source, error) from error
    return config


def _no_model(architecture: Architecture, source: str, error: Exception) -> UsageError:
    return UsageError(f"no {architecture.model_type} model can be built from {source}: {first_line(error)}")


def _build(config: Any, n_row: int, architecture: Architecture, source: str) -> Any:
    """Model of the base's config with so many rows in its embedding, weights unset."""
    try:
        config.vocab_size = n_row
        if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
            config.pad_token_id = None
        with no_init_weights():
            return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
    except Exception as error:  # whatever a config of wrong fields raises inside transformers
        raise _no_model(architecture, source, error) from error


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
                check_plain({key: weights.get_slice(key).get_dtype() for key in weights.keys()}, str(file))  # noqa: SIM118
        with _no_bar():
            model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except UsageError:
        raise
    except Exception as error:  # whatever missing or broken weights raise inside transformers
        raise UsageError(f"weights of base {folder} cannot be read: {first_line(error)}") from error
    if missing := report["missing_keys"]:  # the library would draw them at random
        raise UsageError(f"weights of base {folder} lack {some(missing)}")
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
    folder = _find_base(base, Path(base), {}, trained_only=True)
    config_json = read_json(folder / "config.json", "config of the base model")
    architecture = architecture_of(str(config_json.get("model_type")), f"base {base}")
    config = _config(folder, architecture, str(base))
    vocabulary = int(config.vocab_size)
    model = _build(config, vocabulary + len(CODI.rows), architecture, str(base))
    weights = _base_weights(folder)
    digest = _fingerprint_weights(weights, {})
    hidden = int(model.config.hidden_size)
    for name in sorted({f"{module}.weight" for module in architecture.vocabulary_modules} & weights.keys()):
        rows = weights[name]
        new = rows.mean(0) + rows.std(0) * torch.randn(len(CODI.rows), hidden)
        weights[name] = torch.cat([rows[:vocabulary], new])
    embedding = weights[f"{architecture.body}.{architecture.embedding}.weight"]
    _load(model, weights, str(base))
    projection = Projection(hidden, hidden, with_norm=True)
    norm: Any = projection.get_submodule("ln")
    nn.init.constant_(norm.weight, float(embedding[:vocabulary].square().mean().sqrt()))
    tokenizer = _tokenizer(folder, vocabulary)
    return Reasoner(
        name=str(base), model=model.to(target).eval(), projection=projection.to(target), tokenizer=tokenizer,
        architecture=architecture, vocabulary=vocabulary, n_latent=n_latent, answer_prefix=CODI.answer_prefix,
        protocol=CODI, extra_rows=CODI.rows,
        fingerprint={"weights": digest, **_fingerprint_tokenizer(folder, tokenizer)},
    )  # fmt: skip


def _check_base(
    weights: Mapping[str, Tensor], model: Any, architecture: Architecture, vocabulary: int, n_extra: int, source: str,
    base: str,
) -> None:  # fmt: skip
    """Name what differs between a checkpoint and its base, before the long list of shapes."""
    if not any(key.startswith(architecture.block_prefix) for key in weights):
        found = architecture_from_keys(list(weights), source).model_type
        raise UsageError(f"{source} is a {found} checkpoint, base {base} is of type {architecture.model_type}")
    differences: list[str] = []
    embedding = _embedding(weights, architecture)
    config = model.config
    if embedding is not None:
        rows, hidden = embedding.shape
        if rows != vocabulary + n_extra:
            differences.append(f"{rows} embedding rows, base has a vocabulary of {vocabulary} (+ {n_extra})")
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


def _check_adapter_config(adapter: Mapping[str, Any], source: str, *, saved: bool) -> None:
    """Refuse whatever an adapter's config, if there is one, asks for that changes what it computes.

    In a folder that PEFT saved, the modules trained whole are among the weights under their own names.
    """
    if adapter and adapter.get("peft_type") != "LORA":
        raise UsageError(f"{source} is of peft_type {adapter.get('peft_type')!r}; only 'LORA' is merged")
    if adapter and adapter.get("lora_alpha") is None:
        raise UsageError(f"{source} names no lora_alpha, so the updates' scale is not known")
    known = _ADAPTER_FIELDS | ({"modules_to_save"} if saved else set())
    if unknown := [f"{key}={value!r}" for key, value in adapter.items() if value and key not in known]:
        raise UsageError(f"{source} asks for what is not merged rightly here: {some(unknown)}")


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
        found = f"updates of {some(strays)} that it does not name" if strays else f"no update of {some(unmet)}"
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
        raise UsageError(f"{source} has {len(adapters)} adapters, {some(adapters)}; keep the one that is meant")
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
        problems.append(f"missing {some(missing)}")
    if unexpected := weights.keys() - own.keys():
        problems.append(f"unexpected {some(unexpected)}")
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {own[name]}"
        for name in own.keys() & weights.keys()
        if tuple(weights[name].shape) != own[name]
    ]
    if shapes:
        problems.append(f"of another shape {some(shapes)}")
    if problems:
        raise UsageError(f"weights of {source} do not fit its base: {'; '.join(problems)}")
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    not_finite = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if not_finite:
        raise UsageError(f"weights of {source} are not finite: {some(not_finite)}")


def _feeding(rule: Protocol, weights: Mapping[str, Tensor], hidden: int, source: str) -> nn.Module:
    """What makes the vector fed at a thought from the state before."""
    if rule.fed in ("state", "nothing"):
        return nn.Identity()
    own: dict[str, tuple[int, ...]] = {}
    if rule.fed == "vector":
        names = {rule.vector: rule.vector}
        feeding: nn.Module = Constant(hidden)
        own = {rule.vector: (hidden,)}
    else:
        what, (first, second, norm) = rule.projection
        inner = weights.get(f"{first}.weight")
        with_norm = any(key.startswith(f"{norm}.") for key in weights)
        feeding = Projection(
            hidden, len(inner) if inner is not None and inner.ndim == 2 else hidden, with_norm=with_norm
        )
        said = {"1": first, "3": second, "ln": norm}
        for name, value in feeding.state_dict().items():
            part, _, kind = name.partition(".")
            own[f"{said[part]}.{kind}"] = tuple(value.shape)
        names = {key: f"{what}.{key}" for key in own.keys() | weights.keys()}
    problems: list[str] = []
    if missing := own.keys() - weights.keys():
        problems.append(f"missing {some(names[key] for key in missing)}")
    if unexpected := weights.keys() - own.keys():
        problems.append(f"unexpected {some(names[key] for key in unexpected)}")
    shapes = [
        f"{names[key]} {tuple(weights[key].shape)} instead of {own[key]}"
        for key in own.keys() & weights.keys()
        if tuple(weights[key].shape) != own[key]
    ]
    if shapes:
        problems.append(f"of another shape {some(shapes)}")
    if not_finite := [names[key] for key, value in weights.items() if not bool(torch.isfinite(value).all())]:
        problems.append(f"not finite {some(not_finite)}")
    if problems:
        kind = "projection" if rule.fed == "projection" else "learned vector"
        raise UsageError(f"{kind} of {source} (protocol {rule.name}) does not fit: {'; '.join(problems)}")
    ordered = zip(feeding.state_dict(), own, strict=True)
    feeding.load_state_dict({name: weights[key].float() for name, key in ordered}, strict=True)
    return feeding


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
