"""``lake analyze heads``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas.command import Analysis, Cost, Limited, Printed, Sampled, Table, setting
from schemas.wording import range_text

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class HeadSettings(Limited, Sampled):
    """How heads are scored."""

    convention: Literal["thoughts", "reports"] = setting("thoughts", "thoughts, or reports: as report 004 computed it.")
    top: int = setting(20, "Number of heads that count as the best.", least=1)
    resamples: int = setting(300, "Resamples of the bootstrap over problems.", least=2)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def by_thoughts(spec: Mapping[str, Any]) -> bool:
    """Whether stored heads were scored by the lake's own convention, not by that of the reports."""
    return HeadSettings.of_spec(spec).convention == "thoughts"


def run(source: "Source", settings: HeadSettings) -> "xr.Dataset":
    """Scores of every head."""
    from analyze.heads.analysis import head_analysis

    lazy = head_analysis(
        source.data["attention"],
        settings.convention,
        top=settings.top,
        n_resample=settings.resamples,
        seed=settings.seed,
    )
    return source.compute(lazy)


def cost(source: "Source", settings: HeadSettings) -> Cost:
    """The resampled sums of the block of thoughts of every head."""
    from analyze.cost import limits, reading
    from analyze.heads.scores import thought_block

    block = thought_block(source.data["attention"], settings.convention)[0]
    per_example = block.size // block.sizes["example"]
    return Cost(
        states=block.size // block.sizes["key_position"], reads=[reading(block)],
        operations=2.0 * block.size * settings.resamples, memory=8.0 * 6 * settings.resamples * per_example + 2.0**26,
        **limits(settings, block.sizes["example"], 128),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """The best heads, a line each, and what each thought receives."""
    from analyze.heads.summary import head_summary, head_table

    settings = HeadSettings.of_spec(spec)
    best = head_table(result).head(settings.top)
    constant = [name for name in ("flow", "hub", "skip") if float(result[f"{name}_weight"]) == 0]
    constant += ["flow"] if settings.convention == "reports" else []
    n_head = result.sizes["layer"] * result.sizes["head"]
    run = result.attrs["run"]
    summary = head_summary(result, settings.top)
    return [
        Table(
            title=f"{run}: {n_head} heads, {result.attrs['n_example']} examples, convention {settings.convention}",
            columns=["rank", "head", "type", "band", "composite", "95%", "rank 95%"]
            + ["flow", "hub", "at", "skip", "max"],
            rows=[
                [
                    head.rank,
                    f"L{head.layer}H{head.head}",
                    head.type or "-",
                    head.band,
                    head.composite,
                    range_text(head.composite_low, head.composite_high),
                    range_text(head.rank_low, head.rank_high, ".0f"),
                    head.flow,
                    head.hub,
                    head.hub_position or "-",
                    head.skip,
                    head.max_attention,
                ]
                for head in best.itertuples()
            ],
            caption="intervals are of one head alone"
            + (f"; constant over the heads: {', '.join(constant)}" if constant else ""),
        ),
        Table(
            title=f"{run}: attention received, mean over heads (hub {summary['hub_position'].item()}; sequential "
            f"{float(summary['mean_sequential']):.3f}, skip {float(summary['mean_skip']):.3f})",
            columns=["thought", "received", "spread evenly", "ratio"],
            rows=summary[["incoming", "expected", "ratio"]].to_dataframe().reset_index().values.tolist(),
        ),
    ]


COMMAND = Analysis(
    name="heads",
    help="Score every head: flow, hub, skip, composite, type, and how stable its rank is.",
    settings=HeadSettings,
    run=run,
    results={"heads": tables},
    cost=cost,
)
