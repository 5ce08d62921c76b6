"""Sites at which thoughts are changed: their layers, and the control in which every value replaces itself."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from schemas import Intervention, UsageError, nearest

if TYPE_CHECKING:
    from extract.reenter.sweep import Condition
    from extract.reenter.target import Target

ThoughtSite = Literal["hidden_state", "latent_embedding"]
EVERY = -1
"""Label of "all layers at once" along ``layer``; with ``latent_embedding``, "below all layers"."""


NOISE = "noise of the same norm"
"""Control in which noise as long as the change is added instead of it."""


def alone_and_together(positions: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Names and positions of groups: each position alone and, of several, ``all`` of them together."""
    alone = [(position, (position,)) for position in positions]
    return [*alone, ("all", tuple(positions))] if len(positions) > 1 else [*alone]


def check_layers(target: "Target", layers: Sequence[int]) -> None:
    """Raise :class:`UsageError` for a layer that the model does not have."""
    n_layer = target.reasoner.n_layer
    for layer in layers:
        if not 0 <= layer < n_layer:
            raise UsageError(
                f"layer {layer} is not there; {target.run} has layers 0 to {n_layer - 1}"
                + nearest(layer, range(n_layer))
            )


def site_layers(target: "Target", site: str, layers: Sequence[int] | None, *, together: bool = True) -> list[int]:
    """Layers of a site to go through: those asked for (all by default), and all of them at once."""
    if site == "latent_embedding":
        return [EVERY]
    chosen = target.layers if layers is None else list(layers)
    check_layers(target, chosen)
    return [*chosen, EVERY] if together and layers is None and len(chosen) > 1 else chosen


def refuse_layers(sites: Sequence[str], layers: Sequence[int] | None) -> None:
    """Raise :class:`UsageError` where layers are named and everything that is changed is fed below them."""
    if layers and set(sites) == {"latent_embedding"}:
        raise UsageError("latent_embedding is fed below all layers; leave --layers out, or change the hidden_state")


def report_layers(target: "Target") -> list[int]:
    """Early, middle and late layer of the reports (outputs of blocks 2, 5, 10 of 12 and 3, 7, 13 of 16)."""
    n_layer = target.reasoner.n_layer
    return sorted({max(0, round(depth * n_layer) - 1) for depth in (0.25, 0.5, 0.9)})


def where_of(target: "Target", site: str, layer: int) -> dict[str, Any]:
    """Site and layers of an intervention, all layers for ``EVERY``."""
    if site == "latent_embedding":
        return {"site": site, "layers": ()}
    return {"site": site, "layers": tuple(target.layers) if layer == EVERY else (layer,)}


def self_controls(
    target: "Target", site: str, layer: int, positions: Sequence[str], labels: Mapping[str, Any]
) -> list["Condition"]:
    """Each value replaced by itself: from the same forward pass, and from the lake. Must change nothing."""
    from extract.reenter.sweep import Condition

    place = where_of(target, site, layer)
    return [
        Condition(
            name=f"self {donor} {site} {layer}",
            interventions=(Intervention(operation="replace", donor=donor, positions=tuple(positions), **place),),
            labels={"site": site, "layer": layer, **labels, "control": f"self ({donor})"},
        )
        for donor in ("forward", "stored")
    ]
