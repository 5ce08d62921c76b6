"""``lake reenter transplant``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extract.reenter.settings import DrawnSettings
from extract.reenter.tables import accuracy_table
from schemas import UsageError
from schemas.command import Experiment, Printed, Table, later, setting
from schemas.wording import or_dash

PAIR = re.compile(r"L(\d+)H(\d+)=L(\d+)H(\d+)")


@dataclass(frozen=True, kw_only=True)
class TransplantSettings(DrawnSettings):
    """Whose thoughts and heads go in, and where."""

    source: str = setting(help="Run of the model whose values go in, over the same problems.", metavar="RUN")
    positions: tuple[str, ...] | None = setting(
        None, "Thoughts, each alone and all together; by default all.", metavar="ct0,ct1.."
    )
    heads: tuple[str, ...] = setting((), "Heads, as source=target.", metavar="L0H1=L1H2,..")
    seed: int = setting(0, "Seed of the halves and of everything random.", least=0)

    def pairs(self) -> list[tuple[int, int, int, int]]:
        """Layer and head of the source, layer and head of the target.

        Raises
        ------
        UsageError
            If a pair is not written so, or two go into the same head.
        """
        pairs_by_head: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        for text in self.heads:
            match = PAIR.fullmatch(text)
            if match is None:
                raise UsageError(f"--heads {text} is not of the form L0H1=L1H2 (source=target)")
            layer, head, to_layer, to_head = (int(number) for number in match.groups())
            if (to_layer, to_head) in pairs_by_head:
                raise UsageError(f"--heads puts two heads into L{to_layer}H{to_head}; one at a time can go there")
            pairs_by_head[to_layer, to_head] = layer, head, to_layer, to_head
        return list(pairs_by_head.values())


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Accuracy under each transplant and its controls, and how well the maps do on problems they were not fitted on."""
    rows = [
        [str(place), or_dash(value, ".3f")]
        for place, value in zip(result["place"].values, result["r2"].values, strict=True)
    ]
    return [
        accuracy_table(result, ("group", "values", "control")),
        Table(
            title="maps", columns=["place", "R2"], rows=rows, labels=1,
            caption=f"share of the variance explained on {int(result.attrs['n_held_out'])} problems;"
            f" fitted on {int(result.attrs['n_fitted'])} others",
        ),
        f"values of {result.attrs['source']}",
    ]  # fmt: skip


COMMAND = Experiment(
    name="transplant",
    help="Put thoughts and heads of one model into another, as they are and through a map fitted on other problems.",
    settings=TransplantSettings,
    run=later("extract.reenter.transplant.experiment:transplant"),
    results={"transplant": tables},
)
