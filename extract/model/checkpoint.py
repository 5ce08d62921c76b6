"""Files of a checkpoint, wherever and in however many pieces they lie, and the tensors in them."""

import hashlib
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor

from extract.model.bases import PACKAGED, packaged_base
from extract.model.device import first_line
from schemas import UsageError, fingerprint, nearest
from schemas.json_values import LFS_POINTER, NOT_FETCHED, read_json

SHIPPED = Path(__file__).parents[1] / "checkpoints"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
INDEX = ".index.json"
"""End of the name of the file that says which weight lies in which shard."""
ADAPTER_CONFIG = "adapter_config.json"
SETTINGS = "codi.json"
PCCOT_ARGUMENTS = "pccot_args.json"
"""Arguments of PCCoT's training beside its checkpoints; the number of rounds is in their ``config.json``."""
ARGUMENTS = "args.yaml"
"""Arguments of Coconut's training, where they were put beside its checkpoint."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""Files that can change which tokens a text has."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Buffers that older versions of transformers saved beside the weights; recomputed from the config.
BUFFER = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
_TYPES = {"float64", "float32", "float16", "bfloat16", "F64", "F32", "F16", "BF16"}
_PICKLED = (b"PK\x03\x04", b"\x80\x02")
"""How a file of ``torch.save`` begins, in its new and its old format."""
ROWS = ".extra_rows"
"""End of the names of the extra rows in a checkpoint that holds only what was trained, without its base."""


BASE = "base."
"""Before the names of weights that are its base model's, whose digest is that of float32."""


def find_checkpoint(checkpoint: str) -> tuple[str, Path, Path]:
    """Name, weight file (or index of shards) and folder of a checkpoint: shipped, local, or on the hub.

    A hub id is ``OWNER/NAME``, or ``OWNER/NAME:FILE``.

    Raises
    ------
    UsageError
        Saying what was looked for, and where.
    """
    shipped = SHIPPED / checkpoint
    folder = Path(checkpoint)
    if "/" not in checkpoint and not folder.exists() and shipped.is_dir():
        folder = shipped
    if checkpoint in PACKAGED and not folder.exists():
        folder = packaged_base(checkpoint)
    if folder.is_file():
        return folder.resolve().parent.name, folder, folder.parent
    if folder.is_dir():
        return folder.resolve().name, _weight_file(folder), folder
    repository, _, file = checkpoint.partition(":")
    if not HUB_ID.fullmatch(repository) or "/" not in repository:
        known = ", ".join(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())) if SHIPPED.is_dir() else ""
        raise UsageError(
            f"checkpoint {checkpoint} is no folder, no hub id (OWNER/NAME) and no shipped model ({known or 'none'})"
            + nearest(checkpoint, known.split(", "))
        )
    return _from_hub(repository, file)


def _weight_file(folder: Path) -> Path:
    """File of a folder that holds its weights, or the index that names the files that do."""
    for file in (*WEIGHT_FILES, *ADAPTER_FILES):
        if (folder / file).is_file():
            return folder / file
        if (folder / f"{file}{INDEX}").is_file():
            return folder / f"{file}{INDEX}"
    others = [path for path in sorted(folder.iterdir()) if path.is_file() and _holds_weights(path)]
    if len(others) == 1:
        return others[0]
    instead = f"several others ({some(path.name for path in others)}): name the one that is meant" if others else "none"
    raise UsageError(
        f"checkpoint {folder} has neither {' nor '.join(WEIGHT_FILES)}, whole or in shards, and of other weight files"
        f" {instead}"
    )


def _holds_weights(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(4).startswith(_PICKLED) and path.suffix not in (".npz", ".zip")


def _from_hub(repository: str, file: str) -> tuple[str, Path, Path]:
    """A checkpoint of the hub, with whatever small files say how it is to be read."""
    problems: list[str] = []
    for name_there in (
        [file] if file else [name + end for end in ("", INDEX) for name in (*WEIGHT_FILES, *ADAPTER_FILES)]
    ):
        try:
            path = Path(hf_hub_download(repository, name_there, etag_timeout=10))
            if name_there.endswith(INDEX):
                for shard in sorted(set(read_index(path).values())):
                    hf_hub_download(repository, shard, etag_timeout=10)
        except UsageError:
            raise
        except Exception as error:  # the hub client raises many unrelated types
            problems.append(f"{name_there}: {first_line(error)}")
            continue
        for extra in (SETTINGS, ARGUMENTS, PCCOT_ARGUMENTS, ADAPTER_CONFIG, "config.json", *TOKENIZER_FILES):
            try:
                hf_hub_download(repository, extra, etag_timeout=10)
            except Exception:  # noqa: BLE001 -- optional files
                continue
        return repository.rsplit("/", 1)[-1], path, path.parent
    raise UsageError(
        f"checkpoint {repository} is no folder here and was not found on the hub: {'; '.join(problems)};"
        f" a file of another name is {repository}:FILE"
    )


def read_index(index: Path) -> dict[str, str]:
    """Name of the shard that an index gives for each weight."""
    placed = read_json(index, "index of the shards").get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise UsageError(f"{index} names no shards (weight_map)")
    return placed


def config_beside(folder: Path) -> dict[str, Any]:
    """The ``config.json`` beside a checkpoint; empty where there is none, or of no bytes, as SIM-CoT's on the hub."""
    file = folder / "config.json"
    return read_json(file, "config of the checkpoint") if file.is_file() and file.stat().st_size else {}


def shards_of(index: Path, placed: Mapping[str, str]) -> list[str]:
    """Names of the files that an index names; each is there, or the ones that are not are named."""
    shards = sorted(set(placed.values()))
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise UsageError(f"{index} names {some(missing)}, which {'is' if len(missing) == 1 else 'are'} not there")
    return shards


def check_index(index: Path, placed: Mapping[str, str], parts: Mapping[str, Iterable[str]]) -> None:
    """Refuse an index that does not give every weight the one shard that has it: a file is old, or of another model.

    ``placed`` is the shard of each weight as the index has it, ``parts`` are the weights that each shard has.
    """
    held: dict[str, str] = {}
    for shard, names in parts.items():
        if twice := held.keys() & set(names):
            raise UsageError(f"{index.parent / shard} holds weights that another shard has too: {some(twice)}")
        held |= dict.fromkeys(names, shard)
    if lacking := [f"{name} in {file}" for name, file in placed.items() if held.get(name) != file]:
        raise UsageError(f"{index} names weights that are not there: {some(lacking)}")
    if unnamed := [f"{name} in {file}" for name, file in held.items() if name not in placed]:
        raise UsageError(f"{index} does not name weights that are there: {some(unnamed)}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of one file, or of all shards that an index names, by name; plain floating-point numbers all.

    Raises
    ------
    UsageError
        Naming the file that is broken or missing, or the weights that are something else, there twice or not there.
    """
    if not path.name.endswith(INDEX):
        return _read_file(path)
    placed = read_index(path)
    parts = {shard: _read_file(path.parent / shard) for shard in shards_of(path, placed)}
    check_index(path, placed, parts)
    return {name: value for part in parts.values() for name, value in part.items()}


def read_checkpoint(source: str, path: Path) -> dict[str, Tensor]:
    """Weights of a checkpoint in the file that :func:`find_checkpoint` found for it.

    Raises
    ------
    UsageError
        As :func:`read_weights`; and if another file beside it, of which nobody would know, has other weights.
    """
    weights = read_weights(path)
    if Path(source) != path and path.name.startswith(WEIGHT_FILES):  # the user has not said which
        for other in weight_files(path.parent, (*WEIGHT_FILES, *ADAPTER_FILES)):
            _check_same(path, weights, other, "name the file that is meant, or remove the other")
    return weights


def weight_files(folder: Path, names: Iterable[str] = WEIGHT_FILES) -> list[Path]:
    """All files of these names that hold a folder's weights, in the order in which the first of them is taken."""
    files = (folder / f"{file}{end}" for file in names for end in ("", INDEX))
    return [file for file in files if file.is_file()]


def check_base_files(folder: Path) -> None:
    """Read a base's weights where a library would take them for what they are not: the first of several, or no floats.

    Raises
    ------
    UsageError
        If files have weights that the first has not, or one that is not of safetensors holds quantised ones.
    """
    files = weight_files(folder)
    if len(files) > 1 or (files and files[0].name.startswith(WEIGHT_FILES[1])):
        first = read_weights(files[0])
        for other in files[1:]:
            _check_same(files[0], first, other, "remove the one that is not meant")


def _check_same(path: Path, weights: Mapping[str, Tensor], other: Path, instead: str) -> None:
    """Refuse a file that holds what the one that is taken does not: a tied head may have a name of its own there."""
    others = read_weights(other) if other != path else {}
    both = f"{path.parent} has both {path.name} and {other.name}"
    if differ := [key for key, value in others.items() if key in weights and not same(value, weights[key])]:
        raise UsageError(f"{both}, whose weights differ: {some(differ)}; {instead}")
    beyond = [key for key in others if key not in weights and not BUFFER.search(key)]
    if lost := [key for key in beyond if not any(same(others[key], value) for value in weights.values())]:
        raise UsageError(f"{both}, and the first lacks weights of the second: {some(lost)}; {instead}")


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one shape and hold the same numbers, however wide."""
    return one.shape == other.shape and torch.equal(one.float(), other.float())


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER.encode():
                raise UsageError(f"{path} holds no weights: {NOT_FETCHED}")
        raw = load_file(path) if path.suffix == ".safetensors" else _read_pickled(path)
    except UsageError:
        raise
    except Exception as error:  # unpickling and parsing raise many types
        raise UsageError(f"weights cannot be read from {path}: {first_line(error)}; is the file complete?") from error
    if not _is_state_dict(raw):
        raise UsageError(f"{path} holds no state dict (names to tensors), by itself or as one part of several")
    weights = {str(key): value for key, value in raw.items()}
    kinds = {key: str(value.dtype).removeprefix("torch.") for key, value in weights.items()}
    strange = {key: value.layout for key, value in weights.items() if value.layout != torch.strided}
    check_plain(kinds | {key: str(layout).removeprefix("torch.") for key, layout in strange.items()}, str(path))
    return weights


def _read_pickled(path: Path) -> Any:
    """Content of a file of ``torch.save``; what will be widened anyway stays in the file until then."""
    with path.open("rb") as file:
        start = file.read(40)
    if start and not start.startswith(_PICKLED):
        raise UsageError(f"{path} holds no weights: it is of neither safetensors nor torch.save, beginning {start!r}")
    mapped = start.startswith(_PICKLED[0])
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path} holds Python objects besides tensors; save the state dict alone") from error
    inside = _state_dict_in(raw)
    if not mapped or not isinstance(inside, Mapping):
        return inside
    # Float32 would be used as it lies there, and the file may be written anew while the model is at work.
    return {
        key: value.clone() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
        for key, value in inside.items()
    }


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(item, Tensor) for item in value.values())


def _state_dict_in(raw: Any) -> Any:
    """The state dict inside what a trainer saved: Lightning's, or the one part that is one; else the whole."""
    if not isinstance(raw, Mapping) or _is_state_dict(raw):
        return raw
    parts = [value for value in raw.values() if _is_state_dict(value) and value]
    return raw.get("state_dict", parts[0] if len(parts) == 1 else raw)


def check_plain(kinds: Mapping[str, str], source: str) -> None:
    """Refuse weights (type by name) that are no plain floating-point numbers: without a scale they mean nothing."""
    strange = [f"{key} ({kind})" for key, kind in kinds.items() if kind not in _TYPES and not BUFFER.search(key)]
    if strange:
        raise UsageError(
            f"weights of {source} are quantised or otherwise no plain floating-point numbers: {some(strange)}; "
            "write them in float32, float16 or bfloat16"
        )


def check_rotary(config: Mapping[str, Any], source: str) -> None:
    """Refuse a config that names its rotary positions twice, as older and newer releases write them, and otherwise.

    The library takes one of each field and says nothing: the newer ``rope_theta``, the older scaling.
    """
    newer, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    if not isinstance(newer, Mapping):
        return
    older = {"rope_theta": config.get("rope_theta")} | dict(scaling if isinstance(scaling, Mapping) else {})
    if "type" in older:
        older.setdefault("rope_type", older.pop("type"))
    for name, value in older.items():
        if value is not None and newer.get(name, value) != value:
            raise UsageError(
                f"{source}: {name} is {value!r}, and {newer[name]!r} in rope_parameters; both cannot be right, keep one"
            )


def some(names: Iterable[str], shown: int = 6) -> str:
    """Names in a message, the first of them where there are many."""
    listed = sorted(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def misfits(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of weights that are missing, unexpected or of other shapes than these: a text for each kind."""
    wrong = {
        "missing": shapes.keys() - weights.keys(),
        "unexpected": weights.keys() - shapes.keys(),
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {shapes[name]}"
            for name in shapes.keys() & weights.keys()
            if tuple(weights[name].shape) != shapes[name]
        ],
    }
    return [f"{what} {some(names)}" for what, names in wrong.items() if names]


def fingerprint_weights(raw: Mapping[str, Tensor], settings: dict[str, Any]) -> str:
    """Digest of weights, of any order, and of what else decides what a model computes."""
    digest = hashlib.sha256(fingerprint(settings).encode())
    for name in sorted(raw):
        value = (raw[name].float() if name.startswith(BASE) else raw[name]).contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_tokenizer(folder: Path, tokenizer: Any) -> dict[str, str]:
    """Digests of ``tokenizer.json``, all that lakes made earlier know, and of every file that can change tokens."""
    file = folder / "tokenizer.json"
    content = file.read_bytes() if file.is_file() else tokenizer.backend_tokenizer.to_str().encode()
    digest = hashlib.sha256()
    for name in sorted({*TOKENIZER_FILES, *getattr(tokenizer, "vocab_files_names", {}).values()}):
        if (folder / name).is_file():
            content_of = (folder / name).read_bytes()
            digest.update(f"{name} {len(content_of)}\n".encode() + content_of)
    return {"tokenizer": hashlib.sha256(content).hexdigest(), "tokenizer_files": digest.hexdigest()}
