"""How errors are predicted: the settings, and those of the reports as their script ran them."""

from dataclasses import dataclass
from typing import Literal

from schemas.checks import check_number, check_whole
from schemas.command import Settings, setting
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ErrorSpec(Settings):
    """How errors are predicted."""

    pooling: Literal["concatenate", "mean", "max"] = setting(
        "concatenate",
        "concatenate: one feature for each cell and code; or the mean or largest (of codes, by magnitude) over the"
        " cells that an example has.",
    )
    penalties: tuple[float, ...] = setting(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        "Values of C, the inverse strength of the L2 penalty; the one with the smallest log loss on the validation"
        " problems is taken.",
        metavar="C,C..",
    )
    scale: Literal["predictor", "none"] = setting(
        "predictor",
        "predictor: raw activations and lengths to unit deviation, codes by one common factor (so that rare features"
        " are not blown up), from training rows; none: as they are.",
    )
    balanced: bool = setting(
        False, "Weight right and wrong answers equally in the fit, for models that are seldom wrong or seldom right."
    )
    split: Literal["sae", "stratified"] = setting(
        "sae",
        "sae: the dictionary's own split by problem; stratified: a fifth of the examples drawn at random with equal"
        " shares of outcomes, without regard to problems or to what the dictionary saw, as the reports did.",
    )
    resamples: int = setting(1000, "Resamples of problems for the intervals.")
    carriers: int = setting(50, "Features listed as carrying the prediction.")
    max_iterations: int = setting(300, "Iterations of L-BFGS at most, for each penalty.")
    reports: bool = setting(
        False, "As report 001: C of 1, nothing scaled, a random fifth held out, seed 42.", stored=False
    )
    seed: int = setting(0, "Seed of the resamples and of the stratified split.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reports:
            fixed = {"penalties": (1.0,), "scale": "none", "split": "stratified", "balanced": False}
            self.decide("--reports", **fixed, seed=self.seed or 42)
        if not isinstance(self.balanced, bool):
            raise UsageError(f"error prediction: balanced is {self.balanced!r}; it is True or False")
        for name, least in (("resamples", 1), ("carriers", 1), ("max_iterations", 1), ("seed", 0)):
            check_whole(f"error prediction: {name}", getattr(self, name), least)
        if not self.penalties:
            raise UsageError("error prediction: penalties are none; give one or more positive values of C")
        for penalty in self.penalties:
            check_number("error prediction: a penalty", penalty, above=0)
        object.__setattr__(self, "penalties", tuple(sorted(self.penalties)))
