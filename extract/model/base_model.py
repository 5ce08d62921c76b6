"""The base model of a checkpoint: where it lies, its configuration, tokenizer and weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from extract.model.architectures import Architecture, architecture_from_keys, architecture_of, default_base
from extract.model.bases import PACKAGED, no_bar, packaged_base
from extract.model.capture import ATTENTION, attend
from extract.model.checkpoint import (
    BASE,
    BUFFER,
    HUB_ID,
    INDEX,
    ROWS,
    TOKENIZER_FILES,
    WEIGHT_FILES,
    check_base_files,
    check_index,
    check_plain,
    check_rotary,
    config_beside,
    read_index,
    shards_of,
    some,
)
from extract.model.device import first_line
from schemas import UsageError
from schemas.json_values import read_json


def find_base(
    base: str | Path | None, folder: Path, weights: Mapping[str, Tensor], stated: Any = None, *, trained_only: bool
) -> Path:
    """Folder with config and tokenizer of the base model, and with its weights where the checkpoint has not all.

    Where it is not named, what the checkpoint says (``stated``) or a public model of its sizes.
    """
    if base is None:
        if _complete(folder):
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


NOT_MODEL = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "architectures", "use_cache"}
"""Fields of config.json that say how a file was written, not what the model is."""
_FREE = ("vocab_size", "token_id", "drop", "initializer", "auto_map", "task_specific")
"""Parts of names of those in which a model may differ from its base, or that change nothing in what it computes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A base model's files, read but for its weights."""

    name: str
    folder: Path
    """Of config and tokenizer."""
    weights: Path
    """Folder of its weights, where the checkpoint has not all."""
    config_json: dict[str, Any]
    config: Any
    architecture: Architecture
    tokenizer: Any
    notes: tuple[str, ...] = ()
    """What is to be said of it."""

    @property
    def n_word(self) -> int:
        """Rows of its vocabulary."""
        return int(self.config.vocab_size)


def open_base(
    base: str | Path | None, folder: Path, weights: Mapping[str, Tensor], stated: Any = None, *, trained_only: bool
) -> Base:
    """Read config and tokenizer of a checkpoint's base model; see :func:`find_base`.

    A checkpoint of what was trained only may bring its own config and tokenizer, with the tokens that it added.
    """
    place = find_base(base, folder, weights, stated, trained_only=trained_only)
    own = _complete(folder) and trained_only
    if own and place == folder:
        if stated is None:
            raise UsageError(f"{folder} does not say what its base model is; pass the base model's folder with --base")
        place = find_base(str(stated), folder, weights, stated, trained_only=True)
    name = str(base or place)
    described = folder if own else place
    config_json = read_json(described / "config.json", "config of the base model")
    architecture = architecture_of(str(config_json.get("model_type")), f"base {name}")
    if "quantization_config" in config_json:
        raise UsageError(f"base {name} is quantised (quantization_config); pass the plain one")
    check_rotary(config_json, str(described / "config.json"))
    config = base_config(described, architecture, name)
    return Base(
        name=name, folder=described, weights=place, config_json=config_json, config=config, architecture=architecture,
        tokenizer=base_tokenizer(described, int(config.vocab_size)),
        notes=config_notes(described, place if own else folder, architecture),
    )  # fmt: skip


def config_notes(taken: Path, other: Path, architecture: Architecture) -> tuple[str, ...]:
    """What a checkpoint's config.json and its base's say of the model otherwise: both cannot be right."""
    said = [config_beside(folder) for folder in (taken, other)]
    if taken == other or said[0].get("model_type") != said[1].get("model_type"):
        return ()
    one, two = (base_config(folder, architecture, str(folder)).to_dict() for folder in (taken, other))
    named = {*said[0], *said[1], "rope_parameters"} - NOT_MODEL  # that one is made of several
    decisive = [name for name in sorted(named & one.keys() & two.keys()) if not any(part in name for part in _FREE)]
    differ = [f"{name} ({one[name]!r}, there {two[name]!r})" for name in decisive if one[name] != two[name]]
    if not differ:
        return ()
    return (f"{taken / 'config.json'} is taken, which {other / 'config.json'} contradicts: {some(differ)}",)


def _complete(folder: Path) -> bool:
    """Whether a folder has a config and a tokenizer of its own."""
    file = folder / "config.json"
    if file.is_file() and not file.stat().st_size:  # on a hub an empty one has downloads counted
        return False
    own = read_json(file, "config of the checkpoint", missing={})
    return bool(own.get("model_type")) and (folder / "tokenizer.json").is_file()


def base_config(folder: Path, architecture: Architecture, source: str) -> Any:
    """Config of the base model as transformers reads it."""
    try:
        settings = read_json(folder / "config.json", "config of the base model")
        with _silent():
            if settings["model_type"] == architecture.model_type:
                config = AutoConfig.from_pretrained(folder)
            else:
                config = AutoConfig.for_model(architecture.model_type).from_dict(settings)
        int(config.vocab_size)
    except Exception as error:  # whatever a config of wrong fields raises inside transformers
        raise _no_model(architecture, source, error) from error
    return config


@contextmanager
def _silent() -> Iterator[None]:
    """The library's own warnings off: what is wrong is said in one line, by an error."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _no_model(architecture: Architecture, source: str, error: Exception) -> UsageError:
    return UsageError(f"no {architecture.model_type} model can be built from {source}: {first_line(error)}")


def build_model(config: Any, n_row: int, architecture: Architecture, source: str) -> Any:
    """Model of the base's config with so many rows in its embedding, weights unset."""
    from transformers import (
        AttentionInterface,  # loads the library's modelling, seconds that no earlier error waits for
    )

    for flag in ("use_bidirectional_attention", "add_cross_attention"):
        if getattr(config, flag, None):
            raise UsageError(f"{source} has {flag} in its config; only models that look at the past alone are run here")
    AttentionInterface.register(ATTENTION, attend)
    try:
        config.vocab_size = n_row
        if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
            config.pad_token_id = None
        config.return_dict = True
        with _silent(), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
    except Exception as error:  # whatever a config of wrong fields raises inside transformers
        raise _no_model(architecture, source, error) from error
    _fuse_gelu(model)
    return model


def _fuse_gelu(model: nn.Module) -> None:
    """Put torch's one kernel in the place of GPT-2's activation written out in eight: a third of its time."""
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


_SAMPLE = "The answer is: 12 + 3 = 15.\nHow many?  Two."
"""What tokenizers of other classes cut otherwise: spaces, digits, signs, a new line."""
_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


def base_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a base model by the names of its architecture; a tied head is left out.

    They are of the type that all of them are stored in, if it is a half as wide as float32; otherwise float32.
    """
    try:
        dtype = _stored_type(folder)
        check_base_files(folder)
        with no_bar(), _silent():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except UsageError:
        raise
    except Exception as error:  # whatever broken weights raise inside transformers
        raise UsageError(f"weights of base {folder} cannot be read: {first_line(error)}") from error
    if missing := report["missing_keys"]:  # the library would draw them at random
        raise UsageError(f"weights of base {folder} lack {some(missing)}")
    if shapes := [f"{name} {tuple(there)} instead of {tuple(own)}" for name, there, own in report["mismatched_keys"]]:
        raise UsageError(f"weights of base {folder} are of another shape than its config.json says: {some(shapes)}")
    if beyond := [name for name in report["unexpected_keys"] if not BUFFER.search(name)]:
        raise UsageError(f"weights of base {folder} have what no model of its config.json has: {some(beyond)}")
    weights: dict[str, Tensor] = dict(model.state_dict())
    for head, embedding in tied_names(model).items():
        if not torch.equal(weights.pop(head), weights[embedding]):
            raise UsageError(
                f"base {folder}: {head} and {embedding} differ, but its config.json ties them (tie_word_embeddings)"
            )
    return weights


def tied_names(model: Any) -> dict[str, str]:
    """Weights that are others by the model's config: name of the head, and of the embedding that it is."""
    return dict(getattr(model, "_tied_weights_keys", None) or {}) if model.config.tie_word_embeddings else {}


def _stored_type(folder: Path) -> torch.dtype:
    """Type that a base's weights are read in: the one they are all stored in, or float32."""
    types: set[str] = set()
    parts: dict[str, dict[str, str]] = {}
    for file in sorted(folder.glob("*.safetensors")):  # a library reads other numbers at face value
        with safe_open(file, framework="pt") as weights:
            kinds = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        check_plain(kinds, str(file))
        types |= set(kinds.values())
        parts[file.name] = kinds
    index = folder / f"{WEIGHT_FILES[0]}{INDEX}"
    if index.is_file() and not (folder / WEIGHT_FILES[0]).is_file():  # a library passes over what is not there
        placed = read_index(index)
        check_index(index, placed, {shard: parts.get(shard, {}) for shard in shards_of(index, placed)})
    return _HALVES.get("".join(types), torch.float32)


def complete_weights(
    weights: dict[str, Tensor], raw: dict[str, Tensor], base: Path, source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and file content of a checkpoint that holds only what was trained, with those of its base."""
    full = base_weights(base)
    raw = {**raw, **{f"{BASE}{name}": value for name, value in full.items()}}
    for name, value in weights.items():
        target = name.removesuffix(ROWS) + ".weight"
        if not name.endswith(ROWS):
            full[name] = value
        elif target not in full or full[target].shape[1:] != value.shape[1:]:
            raise UsageError(f"{source} has extra rows for {target}, which do not fit base {base}")
        else:
            full[target] = torch.cat([full[target], value.float()])
    return full, raw


def check_base(
    weights: Mapping[str, Tensor], model: Any, architecture: Architecture, vocabulary: int, n_extra: int, source: str,
    base: str,
) -> None:  # fmt: skip
    """Name what differs between a checkpoint and its base, before the long list of shapes."""
    blocks = architecture.blocks_in(weights)
    if not blocks:
        type_there = architecture_from_keys(list(weights), source).model_type
        raise UsageError(f"{source} is a {type_there} checkpoint, base {base} is of type {architecture.model_type}")
    differences: list[str] = []
    embedding = embedding_of(weights, architecture)
    config = model.config
    if embedding is not None:
        rows, hidden = embedding.shape
        if rows != vocabulary + n_extra:
            differences.append(f"{rows} embedding rows, base has a vocabulary of {vocabulary} (+ {n_extra})")
        if hidden != config.hidden_size:
            differences.append(f"hidden size {hidden}, base has {config.hidden_size}")
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


def base_tokenizer(folder: Path, vocabulary: int) -> Any:
    """Tokenizer of the base model, which must name an end token inside its vocabulary."""
    with _silent():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # whatever a broken tokenizer file raises
            for file in TOKENIZER_FILES:
                if file.endswith(".json"):
                    read_json(folder / file, "tokenizer", missing={})  # its error names the file
            raise UsageError(f"no tokenizer can be read from {folder}: {first_line(error)}") from error
    chance = getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None)
    if chance:
        raise UsageError(
            f"the tokenizer of {folder} draws tokens at random (dropout {chance:g} in tokenizer.json), so no two runs"
            " would read a question alike; set it to null there"
        )
    if tokenizer.eos_token_id is None:
        raise UsageError(f"tokenizer of {folder} names no end token (eos_token)")
    if tokenizer.eos_token_id >= vocabulary:
        raise UsageError(
            f"end token {tokenizer.eos_token} ({tokenizer.eos_token_id}) of {folder} lies outside its vocabulary of"
            f" {vocabulary}; is its tokenizer_config.json there?"
        )
    return tokenizer


def tokenizer_notes(folder: Path, tokenizer: Any, source: str, *, chat: bool) -> list[str]:
    """What is to be said of a tokenizer: no template for a chat, or a class by which text is cut by other rules."""
    notes, file = [], folder / "tokenizer.json"
    if chat and not tokenizer.chat_template:
        notes.append(f"the tokenizer of {source} has no chat template, so questions are asked as they stand")
    by_class = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
    plain = Tokenizer.from_file(str(file)) if file.is_file() else None
    if plain is not None:  # trainers leave both in the file; tokenizers that are asked for neither pass over them
        plain.no_truncation()
        plain.no_padding()
    if plain is not None and plain.encode(_SAMPLE, add_special_tokens=False).ids != by_class:
        notes.append(
            f"the tokenizer of {source} is read as {type(tokenizer).__name__}, which cuts text otherwise than its"
            " tokenizer.json; a model that was trained with that file needs another tokenizer_class in"
            " tokenizer_config.json (PreTrainedTokenizerFast takes the file as it is)"
        )
    return notes


def embedding_of(weights: Mapping[str, Tensor], architecture: Architecture) -> Tensor | None:
    """Rows of the token embedding, or of the head, whichever of them there are."""
    named = (weights.get(f"{name}.weight") for name in architecture.vocabulary_modules)
    return next((rows for rows in named if rows is not None and rows.ndim == 2), None)


def check_frequencies(saved: Mapping[str, Tensor], model: nn.Module, source: str, base: str) -> None:
    """Refuse a base whose rotary frequencies, which follow from its config, are not those saved with the weights."""
    own = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    for key, value in ((key, value) for key, value in saved.items() if key.endswith("inv_freq")):
        # Some were saved in bfloat16, which rounds by less than half a percent.
        same = [each for each in own if each.shape == value.shape and torch.allclose(each, value.float(), rtol=0.01)]
        if own and not same:
            raise UsageError(
                f"{source} was trained with other rotary frequencies ({key} ends in {float(value.flatten()[-1]):.3g})"
                f" than base {base} has by its config.json ({float(own[0].flatten()[-1]):.3g}); look at rope_theta and"
                " rope_scaling there"
            )
