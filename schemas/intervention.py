"""What is changed when a model thinks again: site, where, what, and whose value goes in."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal, get_args

from schemas.checks import check_whole
from schemas.errors import UsageError
from schemas.spelling import nearest
from schemas.vocabulary import USUAL, Places, segment_of

Site = Literal[
    "latent_embedding", "hidden_state", "mlp_output", "attention_output", "head_output", "key", "value", "attention"
]
OperationName = Literal[
    "zero", "mean", "resample", "noise", "scale", "replace", "add", "shuffle", "force", "even", "project_out",
    "replace_in", "write",
]  # fmt: skip
Donor = Literal["forward", "stored", "twin", "other", "alike", "correct", "wrong"]
"""Whose value replaces: the same forward pass's own, the example's own stored one, that of the pair's other half, or
that of another problem: any, one of the same operators as far as there is one, one that the run answers rightly, or one
that it answers wrongly."""
Average = Literal["position", "run", "correct", "wrong"]
"""Over what a mean goes: the position's examples, all thoughts of all examples, the rightly or the wrongly answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteKind:
    """What an intervention at a site has to name."""

    what: str
    layers: bool = True
    heads: bool = False
    keys: bool = False


SITES: dict[str, SiteKind] = {
    "latent_embedding": SiteKind(what="vector fed at a thought", layers=False),
    "hidden_state": SiteKind(what="residual stream after a block"),
    "mlp_output": SiteKind(what="what a block's MLP adds to the residual stream"),
    "attention_output": SiteKind(what="what a block's attention adds to the residual stream"),
    "head_output": SiteKind(what="one head's input to the output projection of attention", heads=True),
    "key": SiteKind(what="key in the cache, rotated to its place where the model does so", heads=True),
    "value": SiteKind(what="value in the cache", heads=True),
    "attention": SiteKind(what="probabilities from a query to keys", heads=True, keys=True),
}
STREAM_SITES = ("latent_embedding", "hidden_state", "mlp_output", "attention_output")
"""Sites whose values are as wide as the residual stream."""
VECTOR_SITES = (*STREAM_SITES, "head_output", "key", "value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """Where something can be done, and which fields of an :class:`Intervention` say how."""

    what: str
    sites: tuple[str, ...] = VECTOR_SITES
    takes: tuple[str, ...] = ()
    """Fields that say how."""
    needs: tuple[str, ...] = ()
    """Those among them that have no default."""


OPERATIONS: dict[str, Operation] = {
    "zero": Operation(what="0 is put in; what is left of attention sums to 1", sites=tuple(SITES)),
    "mean": Operation(what="a mean over the examples at work is put in", sites=tuple(SITES), takes=("average",)),
    "resample": Operation(what="the value of another problem is put in", sites=tuple(SITES), takes=("seed",)),
    "scale": Operation(what="multiplied by the strength", sites=tuple(SITES), takes=("strength",)),
    "replace": Operation(what="a donor's value is put in", sites=tuple(SITES), takes=("donor", "seed")),
    "noise": Operation(what="noise in standard deviations of each component is added", takes=("strength", "seed")),
    "add": Operation(
        what="a direction is added", sites=STREAM_SITES, takes=("strength", "direction"), needs=("direction",)
    ),
    "shuffle": Operation(
        what="the positions, of attention the keys that get any, exchange their values",
        sites=(*STREAM_SITES, "attention"), takes=("seed",),
    ),
    "force": Operation(what="all attention goes to the keys, evenly", sites=("attention",)),
    "even": Operation(what="what the keys get is the same for all of them that get any", sites=("attention",)),
    "project_out": Operation(
        what="the part inside a subspace becomes its mean", sites=STREAM_SITES,
        takes=("strength", "subspace"), needs=("subspace",),
    ),
    "replace_in": Operation(
        what="the part inside a subspace becomes a donor's", sites=STREAM_SITES,
        takes=("strength", "subspace", "donor", "seed"), needs=("subspace",),
    ),
    "write": Operation(
        what="the state, or its part inside a subspace, becomes a named value", sites=STREAM_SITES,
        takes=("strength", "subspace", "direction"), needs=("direction",),
    ),
}  # fmt: skip
"""What can be done. A new operation is an entry here, its values in ``extract/reenter/intervene.py``, and, if it is
neither set, scaled and shifted, nor moved inside a subspace, its formula in ``extract/reenter/armed.py``."""

STEERING_UNIT = "standard deviations of the states"
"""Unit of a steering strength, which scales every direction to one of them at its layer and position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """One change, armed at the positions named and nowhere else; what follows is computed from the changed state."""

    site: Site
    operation: OperationName
    positions: tuple[str, ...]
    """Where, by name; for attention the queries."""
    layers: tuple[int, ...] = ()
    """Which blocks; none for ``latent_embedding``."""
    heads: tuple[int, ...] = ()
    """Which heads, for the sites that have some (of ``key`` and ``value`` those of the cache); empty: all."""
    keys: tuple[str, ...] = ()
    """Key positions of the edges, for ``attention``."""
    strength: float = 1.0
    """Factor of ``scale`` and ``add``; for ``noise`` in standard deviations of the position's component; for what is
    done inside a subspace the share of the way there (1: all of it)."""
    donor: Donor = "stored"
    """Whose value ``replace`` and ``replace_in`` put in."""
    average: Average = "position"
    """Over what ``mean`` goes."""
    direction: str = ""
    """Name of the vector that ``add`` adds, or of the value that ``write`` writes."""
    subspace: str = ""
    """Name of the subspace in which ``project_out``, ``replace_in`` and ``write`` work."""
    seed: int = 0
    """Of everything drawn at random."""
    as_noise: bool = False
    """Control: instead of the change itself, noise of the same norm."""

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        _one_of("site", self.site, SITES)
        _one_of("operation", self.operation, OPERATIONS)
        if self.site not in OPERATIONS[self.operation].sites:
            able = [name for name, entry in OPERATIONS.items() if self.site in entry.sites]
            raise UsageError(
                f"{self.operation!r} cannot be done at {self.site}; {', '.join(able)} can"
                + nearest(self.operation, able)
            )
        site, takes = SITES[self.site], OPERATIONS[self.operation].takes
        if not self.positions:
            raise UsageError(f"an intervention at {self.site} names no position")
        for name in ("positions", "layers", "heads", "keys"):  # each would be changed twice
            if twice := [str(label) for label, count in Counter(getattr(self, name)).items() if count > 1]:
                raise UsageError(f"an intervention at {self.site} names {', '.join(twice)} twice among its {name}")
        for name in ("layers", "heads"):
            for number in getattr(self, name):
                if isinstance(number, bool) or not isinstance(number, Integral):
                    raise UsageError(f"{name[:-1]} {number!r} of an intervention is no whole number")
        for name, plain in (("strength", 1.0), ("donor", "stored"), ("direction", ""), ("subspace", "")):
            if name not in takes and getattr(self, name) != plain:
                raise UsageError(f"{self.operation} takes no {name}; {getattr(self, name)!r} would change nothing")
        check_whole("seed of an intervention", self.seed, 0)
        if site.layers != bool(self.layers):
            raise UsageError(
                f"{self.site} is fed below all layers and takes none"
                if self.layers
                else f"an intervention at {self.site} names no layer"
            )
        if self.heads and not site.heads:
            raise UsageError(f"{self.site} has no heads; {', '.join(name for name in SITES if SITES[name].heads)} have")
        if site.keys != bool(self.keys):
            raise UsageError(
                f"{self.site} has no keys; attention has" if self.keys else "an intervention on attention names no keys"
            )
        if "donor" in takes:
            _one_of("donor", self.donor, get_args(Donor))
        if "average" in takes:
            _one_of("average", self.average, get_args(Average))
        for name in OPERATIONS[self.operation].needs:
            if not getattr(self, name):
                raise UsageError(f"{self.operation} names no {name}")
        exchanged = "keys" if site.keys else "positions"
        if self.operation == "shuffle" and len(getattr(self, exchanged)) < 2:
            raise UsageError(f"shuffle exchanges the values of several {exchanged}; one is named")
        if not math.isfinite(self.strength):
            raise UsageError(f"strength is {self.strength}; it must be a number that is not infinite")
        if not self.strength and self.operation != "scale":
            raise UsageError(f"{self.operation} with a strength of 0 would change nothing")
        if self.as_noise and self.site == "attention":
            raise UsageError("attention is a distribution; noise of the norm of a change is none")

    def check(self, *, n_layer: int, n_head: int, n_cache_head: int | None = None, places: Places = USUAL) -> None:
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
        if self.site in ("key", "value") and n_cache_head is not None:
            n_head = n_cache_head
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


def _one_of(what: str, value: str, allowed: Collection[str]) -> None:
    """Refuse a word that is none of those allowed."""
    if value not in allowed:
        raise UsageError(f"{what} {value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}")


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


def read_interventions(text: str) -> tuple[Intervention, ...]:
    """Read interventions as they are written on a command line, separated by ``;``.

    Each is an operation, positions joined by ``+``, and fields as ``NAME=VALUE`` with values joined by ``+``. The site
    is ``hidden_state`` where layers are named and ``latent_embedding`` otherwise, unless ``site=`` says another.

    Raises
    ------
    UsageError
        If a word is none of these.

    Examples
    --------
    >>> [each.operation for each in read_interventions("noise ct5 strength=2; scale ct1+ct2 strength=1.5 layers=0")]
    ['noise', 'scale']
    """
    return tuple(_read_intervention(part) for part in text.split(";") if part.strip())


def _read_intervention(text: str) -> Intervention:
    words = text.split()
    given = dict(word.split("=", 1) for word in words[2:] if "=" in word)
    known = {field.name: field for field in fields(Intervention) if field.name not in ("operation", "positions")}
    if len(words) < 2 or len(given) < len(words) - 2 or "=" in words[0] + words[1]:
        raise UsageError(
            f"{text.strip()!r} is no intervention; write OPERATION POSITION[+POSITION] [FIELD=VALUE ..], as"
            " 'noise ct5 strength=2'"
        )
    if unknown := [name for name in given if name not in known]:
        raise UsageError(
            f"{unknown[0]!r} in {text.strip()!r} is not one of {', '.join(known)}{nearest(unknown[0], known)}"
        )
    values: dict[str, Any] = {name: _read_field(name, value, known[name].default) for name, value in given.items()}
    site = "hidden_state" if "layers" in values else "latent_embedding"
    return Intervention(**{"site": site, "operation": words[0], "positions": tuple(words[1].split("+")), **values})


def _read_field(name: str, text: str, default: Any) -> Any:
    """Value of a field from its text, of the type of its default."""
    try:
        match default:
            case tuple():
                return tuple(int(word) if name in ("layers", "heads") else word for word in text.split("+"))
            case bool():
                return {"true": True, "false": False}[text.lower()]
            case int() | float():
                return type(default)(text)
    except (ValueError, KeyError):
        raise UsageError(f"{name}={text!r} is no {type(default).__name__}") from None
    return text
