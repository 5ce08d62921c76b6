"""How a stage of training runs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Settings that every stage of training has."""

    steps: int
    rate: float
    batch: int = 64
    warmup: int = 200
    decay: float = 0.01
    clip: float = 1.0


@dataclass(frozen=True)
class Stage(Settings):
    """Settings of one stage of training of a CODI model."""

    # thoughts exchanged in half of the batch: a number the answer follows, or any that it ignores
    exchange: Literal["none", "follow", "ignore"] = "none"
    thoughts: bool = True
    # share of problems with 1, 2, 3, 4 operations
    mixture: tuple[float, ...] = (0.05, 0.15, 0.3, 0.5)
    template_weight: float = 0.2
    number_weight: float = 1.0
    operator_weight: float = 0.3
    teacher_weight: float = 1.0
    distillation_weight: float = 1.0
