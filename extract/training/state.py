"""What a training leaves on disk to go on from, and what its checkpoint says of itself."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from extract.model.checkpoint import ADAPTER_FILES, SETTINGS, read_weights
from extract.model.device import first_line
from extract.model.settings import read_settings
from extract.training.command import TrainSettings
from extract.training.student import Student
from schemas import Control, UsageError, fingerprint
from schemas.controls import settings_of
from schemas.json_values import read_json
from schemas.whole_files import write_json

STATE, WEIGHTS = "training.pt", "model.safetensors"
KEPT = {"trained", "optimizer", "step", "seconds", "parts", "curve", "settings"}
"""What a training state holds; that of newer versions also ``data`` and ``base``, digests of what it is made from."""
ANEW = "name another --out to begin anew"


def mark_of(settings: TrainSettings, *, decodable: bool = False) -> str:
    """Digest of what must be the same for a training to go on; recording changes only how fast it goes."""
    return fingerprint(asdict(settings) | {"graphs": False, "decodable": decodable})


def progress_of(settings: TrainSettings, step: int, seconds: float) -> float:
    """Share of a training that is done after so many steps and seconds."""
    return step / settings.steps if settings.steps is not None else seconds / (60 * (settings.minutes or 1))


def read_state(path: Path) -> dict[str, Any]:
    """Read back what :meth:`extract.training.loop.Training.save_state` wrote.

    Raises
    ------
    UsageError
        If it is not there or broken.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many types
        raise UsageError(f"training state {path} cannot be read ({first_line(error)}); {ANEW}") from error
    if not isinstance(content, dict) or not content.keys() >= KEPT:
        raise UsageError(f"training state {path} is none that lake train writes; {ANEW}")
    return content


def state_of(out: Path, mark: str, data: str) -> dict[str, Any] | None:
    """State of the training that a folder holds, or ``None`` where one can begin.

    ``mark`` is that of the settings (:func:`mark_of`), ``data`` the digest of what is trained on.

    Raises
    ------
    UsageError
        If the state is broken or of other settings or data, or a model without one would be written over.
    """
    if not (out / STATE).exists():
        theirs = [name for name in (WEIGHTS, SETTINGS, "config.json", *ADAPTER_FILES) if (out / name).exists()]
        if theirs:
            raise UsageError(
                f"{out} holds a model ({theirs[0]}) and no {STATE} to go on from; training would write over it: name"
                " another --out"
            )
        return None
    state = read_state(out / STATE)
    if state["settings"] != mark:
        raise UsageError(f"{out} holds a training with other settings; give the same to go on, or another --out")
    if state.get("data", data) != data:
        raise UsageError(
            f"{out} holds a training on other problems: a file of --data or --validation has changed since; give the"
            " same to go on, or another --out"
        )
    return state


def is_saved(out: Path, step: int) -> bool:
    """Whether the checkpoint is that of a step: the state is written before it, and its record last."""
    record = out / "training.json"
    saved = record.exists() and (out / WEIGHTS).exists()
    return saved and read_json(record, "record of a training").get("step") == step


def begin_with(student: Student, settings: TrainSettings) -> None:
    """Begin with the weights of the checkpoint that the settings name.

    Raises
    ------
    UsageError
        If it is not there, or was trained for another base or with another scale or protocol.
    """
    folder = Path(str(settings.start))
    notes, reasoner = read_settings(folder), student.reasoner
    weights = read_json(folder / "training.json", "record of a training").get("base")
    protocol = notes.get("protocol")
    for what, there, here in (
        ("base", weights, reasoner.fingerprint["weights"]),
        ("lora_alpha", notes.get("lora_alpha"), settings.lora_alpha),
        ("protocol", protocol.get("name") if isinstance(protocol, dict) else protocol, student.rule.name),
    ):
        if there != here:
            raise UsageError(f"--start {folder}: {what} is {there} there, {here} here; begin with one of the same")
    student.begin_with(read_weights(folder / WEIGHTS), str(folder))


def state_control(folder: Path, control: Control | None) -> None:
    """Write beside the weights whose control they are, and of which kind."""
    if control is not None:
        file = folder / SETTINGS
        write_json(file, read_json(file, "settings of the checkpoint") | settings_of(control))
