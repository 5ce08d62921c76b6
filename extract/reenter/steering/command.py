"""``lake reenter steer``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extract.reenter.settings import DrawnSettings
from extract.reenter.sites import ThoughtSite
from extract.reenter.tables import accuracy_table
from schemas import UsageError
from schemas.command import Experiment, Printed, later, setting
from schemas.intervention import STEERING_UNIT

CORRECT_MINUS_WRONG = "correct-wrong"


@dataclass(frozen=True, kw_only=True)
class SteerSettings(DrawnSettings):
    """Which directions are added, where and how strongly."""

    directions: tuple[str, ...] = setting(
        (CORRECT_MINUS_WRONG,),
        "correct-wrong, or KIND:VARIABLE[:DIM=LABEL] of a result in the lake; several between spaces.",
        metavar="DIRECTION",
        repeat=True,
    )
    strengths: tuple[float, ...] = setting(
        (-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0), f"In {STEERING_UNIT}.", metavar="-1,0.5.."
    )
    site: ThoughtSite = setting("hidden_state", "What is changed: a layer's output, or the vector fed to the model.")
    layers: tuple[int, ...] | None = setting(
        None, "Layers, as 0,5,11, one at a time; by default the middle one.", metavar="0,1.."
    )
    positions: tuple[str, ...] | None = setting(
        None, "Positions, all at once; by default the thoughts.", metavar="bot,ct0.."
    )
    draws: int = setting(3, "Random directions beside them.", least=0)
    seed: int = setting(0, "Seed of the split and of the random directions.", least=0)

    def __post_init__(self) -> None:
        """Check the values; a name of a direction may have commas but no spaces."""
        super().__post_init__()
        object.__setattr__(self, "directions", tuple(word for text in self.directions for word in text.split()))
        if not self.directions:
            raise UsageError(f"--directions names none; {CORRECT_MINUS_WRONG} can be, or KIND:VARIABLE of a result")


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Accuracy under each direction and strength."""
    return [accuracy_table(result, ("layer", "direction", "strength", "control"))]


COMMAND = Experiment(
    name="steer",
    help="Add directions to the thoughts, with either sign, beside random directions.",
    settings=SteerSettings,
    run=later("extract.reenter.steering.experiment:steer"),
    results={"steer": tables},
)
