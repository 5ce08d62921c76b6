"""What a training leaves on disk to go on from, and what its checkpoint says of itself."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from extract.model.checkpoint import SETTINGS
from extract.training.command import TrainSettings
from schemas import Control, UsageError, fingerprint
from schemas.controls import settings_of

STATE, WEIGHTS = "training.pt", "model.safetensors"


def mark_of(settings: TrainSettings, *, decodable: bool = False) -> str:
    """Digest of what must be the same for a training to go on; recording changes only how fast it goes."""
    return fingerprint(asdict(settings) | {"graphs": False, "decodable": decodable})


def progress_of(settings: TrainSettings, step: int, seconds: float) -> float:
    """Share of a training that is done after so many steps and seconds."""
    return step / settings.steps if settings.steps is not None else seconds / (60 * (settings.minutes or 1))


def read_state(path: Path) -> dict[str, Any]:
    """Read back what :meth:`Training.save_state` wrote.

    Raises
    ------
    UsageError
        If it is not there or broken.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many types
        raise UsageError(f"training state {path} cannot be read ({error}); remove it to begin anew") from error
    return content


def state_control(folder: Path, control: Control | None) -> None:
    """Write beside the weights whose control they are, and of which kind."""
    if control is not None:
        file = folder / SETTINGS
        notes = json.loads(file.read_text(encoding="utf-8")) | settings_of(control)
        file.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
