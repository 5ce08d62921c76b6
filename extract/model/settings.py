"""What the small files beside a checkpoint's weights say of how it is asked."""

import os
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from extract.model.architectures import WRAPPED
from extract.model.checkpoint import ARGUMENTS, PCCOT_ARGUMENTS, SETTINGS, config_beside
from extract.model.device import first_line
from extract.model.wording import Wording
from schemas import UsageError, nearest
from schemas.json_values import read_json

_MARKS = {"bot_token_id": "bot_id", "eot_token_id": "eot_id", "latent_token_id": "placeholder_id"}
"""Tokens that PCCoT's config names by their ids, and what has them of a model's wording."""
_FIELDS = ("protocol", "n_latent", "answer_prefix", "base", "lora_alpha", "lora_rank", "control_of", "control")


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``codi.json`` beside a checkpoint says; empty if there is none. A field that nothing reads is an error."""
    settings = read_json(folder / SETTINGS, "settings of the checkpoint", missing={})
    if unknown := sorted(settings.keys() - set(_FIELDS)):
        raise UsageError(
            f"{folder / SETTINGS} has no field {unknown[0]!r}; it may have {', '.join(_FIELDS)}"
            + nearest(unknown[0], _FIELDS)
        )
    return settings


def read_arguments(folder: Path) -> dict[str, Any]:
    """Arguments of Coconut's training beside a checkpoint; empty if there are none."""
    path = folder / ARGUMENTS
    if not os.path.lexists(path):
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"arguments cannot be read from {path}: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no arguments by name")
    return value


def check_marks(folder: Path, wording: Wording) -> None:
    """Raise ``UsageError`` if PCCoT's config names other tokens for its marks than the tokenizer has."""
    if not os.path.lexists(folder / PCCOT_ARGUMENTS):
        return
    config = config_beside(folder)
    for field, name in _MARKS.items():
        here = getattr(wording, name)
        if (there := config.get(field, here)) != here:
            raise UsageError(
                f"{folder / 'config.json'}: {field} is {there}, with this tokenizer it is {here}; the tokenizer is"
                " another checkpoint's, or tokens were added to it since"
            )


def pccot_settings(folder: Path) -> dict[str, Any]:
    """What the files beside a checkpoint of PCCoT say, in the words of ``codi.json``; nothing without them.

    Raises
    ------
    UsageError
        If a file or a field is not there or of another type: PCCoT's trainer writes them all, and each decides what is
        computed.
    """
    path, config = folder / PCCOT_ARGUMENTS, folder / "config.json"
    if not os.path.lexists(path):
        if str(config_beside(folder).get("model_type")).startswith(WRAPPED):
            raise UsageError(f"{config} is PCCoT's, but {PCCOT_ARGUMENTS}, which its trainer writes, is not beside it")
        return {}
    said: dict[str, Any] = {}
    for file, what, kinds in (
        (path, "arguments of PCCoT", {"num_latent_tokens": int, "answer_prompt": str}),
        (config, "config of the checkpoint", {"num_iterations": int, "use_projection": bool}),
    ):
        read = read_json(file, what)
        for name, kind in kinds.items():
            if name not in read:
                raise UsageError(f"{file} has no {name}, which PCCoT's trainer writes; is it another checkpoint's?")
            said[name] = read[name]
            if type(said[name]) is not kind or (kind is int and said[name] < 1):
                wanted = {int: "a whole number of at least 1", str: "a text", bool: "true or false"}[kind]
                raise UsageError(f"{file}: {name} is {said[name]!r}; it must be {wanted}")
    return {
        "n_latent": said["num_latent_tokens"],
        "answer_prefix": said["answer_prompt"],
        "protocol": {
            "name": "pccot",
            "fed": "projection" if said["use_projection"] else "state",
            "n_round": said["num_iterations"],
        },
    }
