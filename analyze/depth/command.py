"""``lake analyze depth``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.command import Analysis, Cost, Part, Printed, Sampled, Table, kept_beside, setting
from schemas.wording import or_dash

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class ReadoutDepthSettings(Part, Sampled):
    """Where read-outs are looked at, and how their means are drawn anew."""

    resamples: int = setting(500, "Bootstrap resamples.", least=2)
    seed: int = setting(0, "Seed of the bootstrap.", least=0)


def run(source: "Source", settings: ReadoutDepthSettings) -> "xr.Dataset":
    """Ranks of the answer and of every result by thought and layer, and when read-outs settle."""
    from analyze.depth.ranks import depth_summary, readout_depth

    positions = None if settings.positions is None else source.data["position"].values.tolist()
    depth = readout_depth(source.data, source.model, positions=positions, folder=source.folder)
    with source.progress(unit="examples") as report:
        return depth_summary(depth, n_resample=settings.resamples, seed=settings.seed, progress=report)


def cost(source: "Source", settings: ReadoutDepthSettings) -> Cost:
    """A product of every state with the unembedding."""
    from analyze.cost import limits, places, present, reading, states_at

    run, model = source.data, source.lazy_model
    chosen = places(run, settings.positions, answers=False)
    states = states_at(run, chosen)
    n_state = present(run, chosen) * states.sizes["layer"]
    return Cost(
        states=n_state, reads=[reading(states)],
        operations=2.0 * n_state * states.sizes["hidden"] * model.sizes["vocabulary"],
        memory=float(model["unembedding"].nbytes + 2**27), readouts=[source.run.partition("/")[0]],
        **limits(settings, run.sizes["example"], 8),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How often each token is the likeliest at the last layer, by position; when read-outs settle, by layer."""
    last = result.sel(stratum="all").isel(layer=-1)
    whats = [str(what) for what in result["what"].values]
    rows = [
        [str(position), *(_shown(last, str(position), what) for what in whats)] for position in last["position"].values
    ]
    layers = result.sel(stratum="all")
    settled = [
        [
            int(layer),
            *(
                or_dash(layers[name].sel(layer=layer))
                for name in ("settled_position", "answer_position", "answer_found")
            ),
        ]
        for layer in layers["layer"].values
    ]
    return [
        Table(
            title=f"{result.attrs['run']}: layer {int(last['layer'])}, {int(last['n'])} examples",
            columns=["position", *whats],
            rows=rows,
            caption="share of likeliest tokens, and the geometric mean of the rank, of the token that begins each;"
            " other: of another problem",
        ),
        Table(
            title="when read-outs stop changing",
            columns=[
                "layer",
                "positions until the last read-out stays",
                "until the answer stays",
                "answer at the last",
            ],
            rows=settled,
        ),
    ]


def _shown(last: Any, position: str, what: str) -> str:
    """Share of first places and mean rank of a token at a position."""
    import math

    place = last.sel(position=position, what=what)
    rank = float(place["log_rank"])
    return "-" if rank != rank else f"{float(place['first_share']):.2f} ({math.exp(rank):.1f})"


COMMAND = Analysis(
    name="depth",
    help="Where the answer and the results on the way to it can be read, by thought and layer, from the lake alone.",
    settings=ReadoutDepthSettings,
    run=run,
    results={"depth_readout": tables},
    cost=cost,
    block=512,
    stopped=kept_beside("depth"),
)
