"""``lake analyze traces``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from schemas.command import Analysis, Cost, Part, Printed, Sampled, Table, kept_beside, setting
from schemas.naming import FED, layer_name
from schemas.wording import range_text

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source

SHOWN = 5
"""Problems whose tree is printed."""


@dataclass(frozen=True, kw_only=True)
class TraceSettings(Part, Sampled):
    """What thoughts are read with, and what counts as read."""

    part: ClassVar[tuple[str, ...]] = ("limit",)  # the lens of thoughts as they are fed reads layer -1

    layers: tuple[int, ...] | None = setting(
        None,
        "Layers read one by one; by default the last, with the Jacobian lens the vectors fed (-1).",
        metavar="0,1..",
    )
    positions: tuple[str, ...] | None = setting(
        None, "Places of a trace; by default all between question and answer.", metavar="bot,ct0.."
    )
    lens: Literal["logit", "tuned", "jacobian"] = setting(
        "logit", "As in lake analyze lens; a fitted lens reads only problems that it was not fitted on."
    )
    top: int = setting(5, "Rank up to which an operand or result counts as among the best tokens.", least=1)
    read: int | None = setting(
        None,
        "Number of best tokens in which a trace looks for its number, by default 1; where steps are words, all of"
        " these are read, by default 2.",
        metavar="N",
        least=1,
    )
    permutations: int = setting(20, "Times that thoughts are exchanged between problems.", least=1)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(source: "Source", settings: TraceSettings) -> "xr.Dataset":
    """Traces of a run."""
    from analyze.traces.traces import traces

    data, lens, layers = read_with(source, settings)
    with source.progress("traces", "problems") as report:
        return traces(
            data, source.model, lens=lens, layers=layers, positions=settings.positions, top=settings.top,
            read=settings.read, permutations=settings.permutations, seed=settings.seed, folder=source.folder,
            progress=report,
        )  # fmt: skip


def read_with(
    source: "Source", settings: TraceSettings
) -> "tuple[xr.Dataset, xr.Dataset | None, tuple[int, ...] | None]":
    """Problems to be read, maps of the lens, and layers."""
    from analyze.labels import labels_along, up_to_eot
    from analyze.lens.jacobian import held_out_lenses

    if settings.lens == "logit":
        return source.data, None, settings.layers
    jacobian = source.lake.open_result(source.result("jacobian")) if settings.lens == "jacobian" else None
    layers = settings.layers or ((FED,) if jacobian is not None else (int(source.data["layer"].values[-1]),))
    positions = settings.positions or (
        labels_along(up_to_eot(source.data), "position") if jacobian is None else labels_along(jacobian, "position")
    )
    with source.progress(f"{settings.lens} lens"):
        maps, test = held_out_lenses(
            source.data, source.model, jacobian, lenses=(settings.lens,), positions=positions, layers=layers,
            seed=settings.seed,
        )  # fmt: skip
    return test, maps[settings.lens], layers


def cost(source: "Source", settings: TraceSettings) -> Cost:
    """A product of every state with the unembedding; the search for trees is not counted."""
    from analyze.cost import limits, places, reading, states_at

    run, model = source.data, source.lazy_model
    states = states_at(run, places(run, settings.positions, answers=False)).isel(layer=[-1])
    n_layer = len(settings.layers or (0,))
    n_state = n_layer * states.size // states.sizes["hidden"]
    return Cost(
        states=n_state, reads=[reading(states, n_layer)],
        operations=2.0 * n_state * states.sizes["hidden"] * model.sizes["vocabulary"],
        memory=float(model["unembedding"].nbytes + 2**26 + 4096 * run.sizes["example"]),
        readouts=[source.run.partition("/")[0]], **limits(settings, run.sizes["example"], 16),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """What share of the problems is explained; where results and operands are read; some trees."""
    return [outcome_table(result), *(rank_table(result.sel(layer=layer)) for layer in result["layer"].values),
            *frontier_tables(result), tree_table(result)]  # fmt: skip


OUTCOMES = {
    "found": "a tree ends at the answer", "recovered": "the written chain among the best",
    "in_order": "results read in order",
}  # fmt: skip
"""In which way a problem is explained."""


def outcome_rows(layer: Any) -> list[dict[str, Any]]:
    """Shares of the problems explained at a layer, their intervals, what shuffles give, and p, where there are any."""
    names = {"share": "share", "low": "share_low", "high": "share_high"}
    names |= {name: name for name in ("null", "null_high", "p")}
    rows = [
        {"outcome": outcome} | {short: float(layer[f"{outcome}_{name}"]) for short, name in names.items()}
        for outcome in OUTCOMES
    ]
    return [row | {"n": layer.attrs["n_counted"]} for row in rows if row["share"] == row["share"]]


def outcome_table(result: Any) -> Table:
    """Problems whose thoughts are explained, and those that would be by chance."""
    rows = [
        [layer_name(layer), OUTCOMES[row["outcome"]], row["share"], range_text(row["low"], row["high"], ".3f")]
        + [row["null"], row["null_high"], row["p"]]
        for layer in result["layer"].values
        for row in outcome_rows(result.sel(layer=layer))
    ]
    counted = f"{result.attrs['n_counted']} of {result.attrs['n_example']} problems"
    return Table(
        title=f"{result.attrs['run']}: traces, {result.attrs['lens']} lens, {counted}",
        columns=["layer", "problems in which", "share", "95%", "shuffled", "95% of shuffles", "p"],
        rows=rows,
        labels=2,
        caption=f"counted: two steps or more, all results before the last single tokens; shuffled: thoughts of another"
        f" problem, {result.attrs['n_permutation']} times",
    )


def rank_table(one: Any) -> Table:
    """Results and operands among the best tokens of each place."""
    top = one.attrs["top"]
    operands = "operand_share" in one
    steps = [int(step) for step in one["step"].values]
    columns = ["position", "entropy", *(f"step {step}" for step in steps), "of another"]
    rows = []
    for position in one["position"].values:
        place = one.sel(position=position)
        cells = [*map(float, place["result_share"].values), float(place["control_share"].mean())]
        if operands:
            cells += [float(place["operand_share"].mean()), float(place["operand_control_share"].mean())]
        rows.append([str(position), float(place["entropy_mean"]), *cells])
    return Table(
        title=f"layer {layer_name(one['layer'].item())}: share of problems whose step's result is among the {top} best",
        columns=[*columns, *(["operands", "of another"] if operands else [])],
        rows=rows,
        labels=1,
        caption="entropy in nat; of another: results, or operands, of another problem, mean over steps",
    )


def frontier_tables(result: Any) -> list[Table]:
    """How far the search has come, of graph problems."""
    if "frontier_share" not in result:
        return []
    one = result.isel(layer=-1)
    distances = [int(distance) for distance in one["distance"].values]
    rows = []
    for position in one["position"].values:
        places = [one.sel(position=position, distance=distance) for distance in distances]
        shares = [float(place[name]) for place in places for name in ("frontier_share", "frontier_null")]
        rows.append([str(position), *shares])
    return [
        Table(
            title=f"layer {layer_name(one['layer'].item())}: nodes by their distance from the root",
            columns=["position", *(text for d in distances for text in (f"{d} away", "shuffled"))],
            rows=rows,
            labels=1,
            caption="share of the nodes at that distance that are read at the thought; with the thoughts of another"
            " problem",
        )
    ]


def tree_table(result: Any) -> Table:
    """Best trees of the first problems."""
    one = result.isel(layer=-1)
    rows = [
        [int(example), str(one["tree"].values[row]) or "none", int(one["n_tree"].values[row]),
         "yes" if bool(one["recovered"].values[row]) else "no"]
        for row, example in enumerate(one["example"].values[:SHOWN])
    ]  # fmt: skip
    return Table(
        title=f"layer {layer_name(one['layer'].item())}: trees of the first problems",
        columns=["example", "tree", "as good", "as written"],
        rows=rows,
        labels=1,
    )


COMMAND = Analysis(
    name="traces",
    help="Chain what each problem's thoughts read as to a solution that ends at the model's answer, against chance.",
    settings=TraceSettings,
    run=run,
    results={"traces": tables},
    cost=cost,
    stopped=kept_beside("traces"),
    block=256,
)
