"""``lake analyze attention``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.command import Analysis, Cost, Limited, Printed, Sampled, Table, setting

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(Limited, Sampled):
    """Of which layers shares of attention are taken, and how sure they are."""

    layers: tuple[int, ...] | None = setting(None, "Only these layers.", metavar="0,1..")
    resamples: int = setting(300, "Resamples of the bootstrap over problems.", least=2)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(source: "Source", settings: AttentionSettings) -> "xr.Dataset":
    """Shares of the attention of the answer and of each thought."""
    from analyze.attention.shares import attention_summary, writing_position

    writes = writing_position(source.data)
    lazy = attention_summary(source.data["attention"], n_resample=settings.resamples, seed=settings.seed, also=[writes])
    return source.compute(lazy).assign_attrs(writes=writes)


def cost(source: "Source", settings: AttentionSettings) -> Cost:
    """Sums of every row over the targets, and the resamples of their means over heads."""
    from analyze.cost import limits, places, reading

    rows = source.data["attention"].sel(position=places(source.data))
    n_target = len(places(source.data, answers=False)) + 2
    n_row = rows.size // rows.sizes["key_position"]
    shares = n_row * n_target // rows.sizes["head"]
    block = max(rows.chunksizes["example"]) / rows.sizes["example"]
    return Cost(
        states=n_row, reads=[reading(rows)], operations=2.0 * rows.size * n_target + 4.0 * shares * settings.resamples,
        memory=4.0 * rows.size / rows.sizes["layer"] * block, **limits(settings, rows.sizes["example"], 128),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Shares of the attention of ``eot``, of where the answer's own part is written, and of the answer, by layer."""
    queries = dict.fromkeys(["eot", result.attrs.get("writes", "eot"), "answer"])
    return [shares_table(result, query) for query in queries if query in result["query"]]


def shares_table(result: Any, query: str) -> Table:
    """Shares of one query's attention, by layer."""
    attention = result.sel(query=query)
    shares = attention["layer_share"].transpose("layer", "target")
    totals = attention["layer_thought_total"].values
    return Table(
        title=f"{result.attrs['run']}: attention of {query}, mean over heads, {int(attention['n'])} examples",
        columns=["layer", *shares["target"].values, "all thoughts"],
        rows=[
            [layer, *map(float, row), float(total)]
            for layer, row, total in zip(shares["layer"].values, shares.values, totals, strict=True)
        ],
    )


COMMAND = Analysis(
    name="attention",
    help="Say where the answer looks, and where each thought looks: shares of attention that sum to 1.",
    settings=AttentionSettings,
    run=run,
    results={"attention": tables},
    cost=cost,
    block=512,
)
