"""``lake analyze correlate``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas import UsageError
from schemas.command import Analysis, Cost, Part, Printed, Sampled, Table, setting

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class CorrelationSettings(Part, Sampled):
    """What attention is correlated with, and how."""

    importance: str = setting(
        "answer_logprob",
        "What matters: a column of the run, or RESULT:MEASURE of a stored re-entry, as corrupt:failure.",
        metavar="NAME",
    )
    where: tuple[str, ...] = setting(
        (), "Conditions of a re-entry result to use, as corruption=mean.", metavar="KEY=VALUE", repeat=True
    )
    query: str = setting(
        "written",
        "Position whose attention is correlated. written: the one that predicts the first answer token that"
        " differs between problems; otherwise eot, answer (the mean over the answer), a thought, or an answer"
        " token.",
    )
    correction: Literal["holm", "bh"] = setting("holm", "Correction for many tests: holm or bh.")
    permutations: int = setting(1000, "Permutations.", least=1)
    resamples: int = setting(500, "Resamples of the bootstrap over problems.")
    seed: int = setting(0, "Seed of what is drawn.", least=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", tuple(sorted(self.where)))  # in whatever order: the same result
        super().__post_init__()


def run(source: "Source", settings: CorrelationSettings) -> "xr.Dataset":
    """Correlations of attention with what matters."""
    from analyze.attention.shares import writing_position
    from analyze.correlate.correlation import attention_importance
    from analyze.correlate.importance import answer_attention
    from analyze.labels import part_of

    # Positions are those looked at; the query, which looks, need not be one of them.
    data = part_of(source.whole, layers=settings.layers)
    importance = importance_for(source, data, settings)
    query = writing_position(data) if settings.query == "written" else settings.query
    looked: Any = answer_attention(data["attention"], query=query)
    attention: Any = part_of(looked, positions=settings.positions)
    for dim in {"example", "position"} & set(importance.dims):
        importance = importance.isel({dim: importance[dim].isin(attention[dim])})
    with source.progress(unit="resamples") as report:
        result = attention_importance(
            attention,
            importance,
            correction=settings.correction,
            n_permutation=settings.permutations,
            n_resample=settings.resamples,
            seed=settings.seed,
            progress=report,
        )
    return result.assign_attrs(query=query)


def cost(source: "Source", settings: CorrelationSettings) -> Cost:
    """Products of the attention of each head with what matters, for every permutation and resample."""
    from analyze.cost import limits, places, reading

    run = source.whole
    query = [label for label in places(run, answers=True) if label in (settings.query, "eot")][-1:]
    rows = run["attention"].sel(layer=source.data["layer"].values, position=query)
    n_value = rows.sizes["example"] * rows.sizes["layer"] * len(places(run, settings.positions, answers=False))
    return Cost(
        states=rows.size // rows.sizes["key_position"], reads=[reading(rows)],
        operations=8.0 * n_value * (settings.permutations + settings.resamples) + 2.0 * rows.size,
        memory=8.0 * 10 * n_value + 2.0**26,
        **limits(settings, rows.sizes["example"], 256),
    )  # fmt: skip


def importance_for(source: "Source", data: "xr.Dataset", settings: CorrelationSettings) -> "xr.DataArray":
    """What matters: a column of the run, or a measure of a stored re-entry."""
    from analyze.correlate.importance import importance_of, reentry_importance

    kind, _, measure = settings.importance.partition(":")
    if not measure and settings.where:
        raise UsageError(
            f"--where chooses conditions of a re-entry, as --importance corrupt:failure; {settings.importance} is a"
            " column of the run"
        )
    if not measure:
        return importance_of(data, settings.importance)
    conditions = dict(pair.partition("=")[::2] for pair in settings.where)
    if len(conditions) < len(settings.where):
        raise UsageError(f"--where names a key twice: {', '.join(settings.where)}; a condition has one value of each")
    return reentry_importance(source.lake.open_result(source.result(kind)), measure, **conditions)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Correlations by layer, in each way of taking them."""
    settings = CorrelationSettings.of_spec(spec)
    layers = [result.sel(layer=layer) for layer in result["layer"].values]
    names, positions = ("pooled", "within", "partial", "two_way"), result["position"].values
    return [
        Table(
            title=f"{result.attrs['run']}: attention of {result.attrs.get('query', settings.query)} against"
            f" {measure_of(spec)}, {int(result['n_example'])} examples",
            columns=["layer", *names, *positions],
            rows=[
                [
                    layer["layer"].item(),
                    *(correlation(layer, name) for name in names),
                    *(correlation(layer.sel(position=position), "position") for position in positions),
                ]
                for layer in layers
            ],
            caption="in brackets corrected p-values; a dash: attention or what it is set against does not vary, as what"
            " a problem has one value of does within the problem",
        )
    ]


def measure_of(spec: Mapping[str, Any]) -> str:
    """What attention is correlated with, and after which corruption."""
    measure, where = str(spec.get("importance", "answer_logprob")), ", ".join(spec.get("where", ()))
    if ":" not in measure:
        return measure
    return f"{measure} ({where or 'mean of all corruptions'})"


def correlation(layer: Any, name: str) -> str:
    """One correlation and its corrected p as text; a dash where one of both does not vary."""
    if not math.isfinite(float(layer[f"{name}_r"])):
        return "-"
    p = f" ({float(layer[f'{name}_p_adjusted']):.2g})" if f"{name}_p_adjusted" in layer else ""
    return f"{float(layer[f'{name}_r']):+.2f}{p}"


COMMAND = Analysis(
    name="correlate",
    help="Correlate attention with importance: pooled, by position, within problems, with position accounted for.",
    settings=CorrelationSettings,
    run=run,
    results={"correlate": tables},
    block=512,
    cost=cost,
    made_by={"correlate": "--importance corrupt:failure --where corruption=mean"},
)
