"""What a run is made from: the fields that decide every byte of it, and their fingerprint."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from schemas.errors import UsageError
from schemas.scoring import KINDS, AnswerKind
from schemas.spelling import nearest

Capture = Literal["latent", "full"]
FORMAT_VERSION = 1
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """Settings of one run. Two runs of equal specs over equal data hold the same values."""

    capture: Capture = "latent"
    """``latent``: rows from ``bot`` on, over all keys; ``full``: every row and every hidden state."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type in which activations are stored."""
    compute_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type in which the model runs."""
    max_new_tokens: int = 24
    """Longest answer, in tokens, end token included."""
    answer: AnswerKind | Literal["auto"] = "auto"
    """Kind of the answers: ``number``, ``text``, ``choice`` (A to E) or ``boolean`` (yes and no, true and false);
    ``auto``: as the data file shows plainly."""
    limit: int | None = None
    """Number of examples taken from the start of the data file; ``None``: all."""
    batch_size: int = 32
    """Questions thought through together; moves results by rounding only."""
    device: str = "cpu"
    """Where the model runs; of ``cuda:1`` only the kind, ``cuda``, is the run's, and moves results by rounding only."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("capture", "dtype", "compute_dtype", "answer"):
            allowed = {
                "answer": ("auto", *KINDS),
                "capture": ("latent", "full"),
                "dtype": ("float16", "float32"),
                "compute_dtype": ("float32", "float16", "bfloat16"),
            }[name]
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}"
                    + nearest(getattr(self, name), allowed)
                )
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is {self.limit}; it must be at least 1")

    def to_json(self) -> dict[str, Any]:
        """Fields as plain JSON values; one run can be made by several cards of a kind.

        Without the kind of answers where they are numbers, as in the first lakes.
        """
        fields = asdict(self) | {"device": device_kind(self.device)}
        if self.answer in ("auto", "number"):
            del fields["answer"]
        return fields
