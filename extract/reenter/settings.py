"""Settings that every experiment shares: where the model is, and how it goes on from the run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from schemas.command import Limited, Settings, setting
from schemas.errors import UsageError

if TYPE_CHECKING:
    from extract.reenter.draws import Draws


@dataclass(frozen=True, kw_only=True)
class TargetSettings(Limited):
    """Where a run's model is, and how it runs."""

    checkpoint: tuple[str, ...] = setting(
        (),
        "Where a run's model is; by default where the lake remembers it.",
        metavar="[NAME=]CHECKPOINT",
        stored=False,
        repeat=True,
    )
    base: tuple[str, ...] = setting(
        (), "The checkpoint's base model, as in lake extract.", metavar="[NAME=]PATH_OR_ID", stored=False, repeat=True
    )
    device: str = setting(
        "cpu", "Where the model runs: cpu, cuda, cuda:1, mps.", metavar="cpu|cuda|cuda:N|mps", stored=False
    )
    compute_dtype: Literal["float32", "float16", "bfloat16"] | None = setting(
        None, "Type in which the model runs; by default that of the run's extraction.", stored=False
    )
    lora_alpha: float | None = setting(
        None, "Scale of the checkpoint's low-rank adapter; by default its config's, or 32.", stored=False
    )
    batch_rows: int | None = setting(
        None,
        "Examples times conditions in one batch; by default what fits into a gigabyte, or into a quarter of a"
        " GPU's free memory.",
        stored=False,
        least=1,
    )
    rule: Literal["default", "reports", "coconut", "lrms", "codi"] = setting(
        "default", "How the answer in a text is read: by this project's rule, or by a published one."
    )


MOST_ANSWERS = 1_000
"""Answers drawn for each problem."""
MOST_POINTS = 10_000
"""Of an integral along a way."""


@dataclass(frozen=True, kw_only=True)
class DrawnSettings(Settings):
    """Answers drawn under every condition, beside the likeliest one."""

    sample: int = setting(
        0, "Answers drawn at random for each problem under every condition, beside the likeliest one.", least=0
    )
    temperature: float = setting(0.7, "Temperature of the draws.", least=1e-6, needs="sample")

    def __post_init__(self) -> None:
        """Refuse so many answers that their table would not fit into memory."""
        super().__post_init__()
        if self.sample > MOST_ANSWERS:
            raise UsageError(f"--sample is {self.sample:,}; it must be at most {MOST_ANSWERS:,} answers a problem")

    def drawing(self, seed: int) -> "Draws | None":
        """What is drawn in a sweep, if anything is."""
        from extract.reenter.draws import Draws

        return Draws(n_sample=self.sample, temperature=self.temperature, seed=seed) if self.sample else None


Preset = Literal["reports"] | None
PRESET = "reports: the settings of the published reports, without their errors."
