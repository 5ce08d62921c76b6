"""What is changed when a model thinks again: site, where, what, and whose value goes in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from schemas.errors import UsageError
from schemas.spelling import nearest
from schemas.vocabulary import USUAL, Places, segment_of

Site = Literal["latent_embedding", "hidden_state", "head_output", "attention"]
Operation = Literal["zero", "mean", "resample", "noise", "scale", "replace", "add", "shuffle", "force"]
Donor = Literal["forward", "stored", "twin", "other"]
"""Whose value replaces: the same forward pass's own, the example's own stored one, that of the pair's other half, or
that of another problem."""
Average = Literal["position", "run", "correct", "wrong"]
"""Over what a mean goes: the position's examples, all thoughts of all examples, the rightly or the wrongly answered."""

OPERATIONS: dict[str, tuple[str, ...]] = {
    "latent_embedding": ("zero", "mean", "resample", "noise", "scale", "replace", "add", "shuffle"),
    "hidden_state": ("zero", "mean", "resample", "noise", "scale", "replace", "add", "shuffle"),
    "head_output": ("zero", "mean", "resample", "noise", "scale", "replace"),
    "attention": ("zero", "mean", "resample", "scale", "replace", "force"),
}
"""What can be done at each site."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """One change, armed at the positions named and nowhere else; what follows is computed from the changed state."""

    site: Site
    operation: Operation
    positions: tuple[str, ...]
    """Where, by name; for attention the queries."""
    layers: tuple[int, ...] = ()
    """Which blocks; none for ``latent_embedding``."""
    heads: tuple[int, ...] = ()
    """Which heads, for ``head_output`` and ``attention``; empty: all."""
    keys: tuple[str, ...] = ()
    """Key positions of the edges, for ``attention``."""
    strength: float = 1.0
    """Factor of ``scale`` and ``add``; for ``noise`` in standard deviations of the position's component."""
    donor: Donor = "stored"
    """Whose value ``replace`` puts in."""
    average: Average = "position"
    """Over what ``mean`` goes."""
    direction: str = ""
    """Name of the direction that ``add`` adds."""
    seed: int = 0
    """Of everything drawn at random."""
    as_noise: bool = False
    """Control: instead of the change itself, noise of the same norm."""

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.site not in OPERATIONS:
            raise UsageError(
                f"site {self.site!r} is not one of {', '.join(OPERATIONS)}{nearest(self.site, OPERATIONS)}"
            )
        if self.operation not in OPERATIONS[self.site]:
            raise UsageError(
                f"{self.operation!r} cannot be done at {self.site}; {', '.join(OPERATIONS[self.site])} can"
                + nearest(self.operation, OPERATIONS[self.site])
            )
        if not self.positions:
            raise UsageError(f"an intervention at {self.site} names no position")
        if (self.site == "latent_embedding") == bool(self.layers):
            raise UsageError(
                "latent_embedding is fed below all layers and takes none"
                if self.layers
                else f"an intervention at {self.site} names no layer"
            )
        if self.heads and self.site not in ("head_output", "attention"):
            raise UsageError(f"{self.site} has no heads; head_output and attention have")
        if (self.site == "attention") != bool(self.keys):
            raise UsageError(
                f"{self.site} has no keys; attention has" if self.keys else "an intervention on attention names no keys"
            )
        if self.operation == "replace" and self.donor not in get_args(Donor):
            raise UsageError(
                f"donor {self.donor!r} is not one of {', '.join(get_args(Donor))}{nearest(self.donor, get_args(Donor))}"
            )
        if self.operation == "mean" and self.average not in get_args(Average):
            allowed = get_args(Average)
            raise UsageError(
                f"average {self.average!r} is not one of {', '.join(allowed)}{nearest(self.average, allowed)}"
            )
        if self.operation == "add" and not self.direction:
            raise UsageError("add names no direction")
        if self.operation == "shuffle" and len(self.positions) < 2:
            raise UsageError("shuffle exchanges the values of several positions; one is named")
        if self.as_noise and self.site == "attention":
            raise UsageError("attention is a distribution; noise of the norm of a change is none")

    def check(self, *, n_layer: int, n_head: int, places: Places = USUAL) -> None:
        """Check against a model's size, and that every edge runs back in time.

        Raises
        ------
        UsageError
            Naming the layer, head or position that is not there.
        """
        for layer in self.layers:
            if not 0 <= layer < n_layer:
                raise UsageError(
                    f"layer {layer} is not there; the model has layers 0 to {n_layer - 1}"
                    + nearest(layer, range(n_layer))
                )
        for head in self.heads:
            if not 0 <= head < n_head:
                raise UsageError(
                    f"head {head} is not there; the model has heads 0 to {n_head - 1}{nearest(head, range(n_head))}"
                )
        offsets = check_positions(self.positions, places)
        if self.site == "latent_embedding" and any(segment_of(label) != "latent" for label in self.positions):
            raise UsageError(
                f"latent_embedding is fed at the thoughts only, not at {', '.join(self.positions)};"
                f" positions are {places}"
            )
        if self.keys and max(check_positions(self.keys, places)) > min(offsets):
            raise UsageError(
                f"attention from {', '.join(self.positions)} to {', '.join(self.keys)}: a query sees no later position"
            )


def check_positions(labels: Sequence[str], places: Places = USUAL) -> list[int]:
    """Offsets of positions from ``bot``.

    Raises
    ------
    UsageError
        If no position has such a name.
    """
    offsets = []
    for label in labels:
        try:
            offsets.append(places.offset(label))
        except ValueError as error:
            raise UsageError(f"{error}{nearest(label, places.labels(9, 9))}") from error
    return offsets
