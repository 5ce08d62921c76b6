"""What a run is made from: the fields that decide every byte of it, and their fingerprint."""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any, Literal

from schemas.command import Limited, setting
from schemas.vocabulary import PARTS

Capture = Literal["latent", "full", "latent+parts", "full+parts"]
Rows = Literal["latent", "full"]
StoredDtype = Literal["float16", "float32"]
FORMAT_VERSION = 2
"""Version of the layout on disk; a reader opens every version up to its own."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def device_kind(device: str) -> str:
    """Kind of a device: ``cuda`` of ``cuda:1``."""
    return device.partition(":")[0]


def captures_all(capture: str) -> bool:
    """Whether every position is captured, not only those from ``bot`` on."""
    return capture.startswith("full")


def captured_parts(capture: str) -> tuple[str, ...]:
    """Parts of the blocks that are captured."""
    return PARTS if capture.endswith("+parts") else ()


@dataclass(frozen=True, kw_only=True)
class RunSpec(Limited):
    """Settings of one run. Two runs of equal specs over equal data hold the same values."""

    capture: Capture = setting(
        "latent",
        "latent: rows from bot on; full: every row and every hidden state; +parts: what attention and MLP of each block"
        " add, too.",
    )
    dtype: StoredDtype = setting("float16", "Type in which activations are stored.")
    compute_dtype: Literal["float32", "float16", "bfloat16"] = setting(
        "float32",
        "Type in which the model runs: float32; float16 and bfloat16 lose precision (lake plan: how much).",
    )
    max_new_tokens: int = setting(24, "Longest answer in tokens, the end token included.", least=1)
    answer: Literal["auto", "number", "text", "choice", "boolean"] = setting(
        "auto",
        "Kind of the answers: number, text, choice (A to E), boolean (yes, no); auto: what the file plainly shows.",
    )
    batch_size: int = setting(32, "Questions computed together; moves results by rounding only.", least=1)
    device: str = setting("cpu", "Where the model runs: cpu, cuda, cuda:1, mps.", metavar="cpu|cuda|cuda:N|mps")

    @property
    def rows(self) -> Rows:
        """Positions that are captured: from ``bot`` on, or all."""
        return "full" if captures_all(self.capture) else "latent"

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the blocks that are captured."""
        return captured_parts(self.capture)

    def to_json(self) -> dict[str, Any]:
        """Fields as plain JSON values; of ``cuda:1`` only the kind, as several cards of a kind can make one run.

        Without the kind of answers where they are numbers, as in the first lakes.
        """
        values = {field.name: getattr(self, field.name) for field in fields(RunSpec)}
        if self.answer in ("auto", "number"):
            del values["answer"]
        return values | {"device": device_kind(self.device)}
