"""``lake analyze geometry``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from schemas.command import Analysis, Cost, Made, Part, Printed, Table, kept_beside, setting
from schemas.wording import range_text

if TYPE_CHECKING:
    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class GeometrySettings(Part):
    """How many problems and directions the shape of the states is computed from, and how sure it is."""

    components: int = setting(8, "Principal components reported.", least=1)
    rotated: int = setting(16, "Principal components of each place that are compared by rotation.", least=1)
    max_problems: int = setting(300, "Most problems used, drawn by the seed.", metavar="N", least=8)
    resamples: int = setting(100, "Draws of problems behind each interval.", least=2)
    shuffles: int = setting(20, "Shuffles behind each null.", least=1)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(sources: "Sequence[Source]", settings: GeometrySettings) -> list[Made]:
    """Shape and components of each run; rotations within each run, and between every two."""
    from analyze.geometry.components import principal_components
    from analyze.geometry.procrustes import procrustes
    from analyze.geometry.shape import geometry
    from analyze.labels import up_to_eot_or_as_chosen
    from analyze.pieces import pieces_in, taken_up

    memory = pieces_in(sources[0].folder, __file__)
    data = {source.run: up_to_eot_or_as_chosen(source.data, settings.positions) for source in sources}
    shared: dict[str, Any] = {"max_problems": settings.max_problems, "seed": settings.seed}
    draws = shared | {"resamples": settings.resamples, "shuffles": settings.shuffles}
    made = []
    for source in sources:
        part = data[source.run]
        with source.progress("shape", "layers") as report:
            told = settings.components
            shape = taken_up(memory, geometry, [part], components=told, progress=report, **draws)
        along = taken_up(
            memory, principal_components, [part, source.model], components=told, permutations=5 * settings.shuffles,
            **shared,
        )  # fmt: skip
        made.append(Made("geometry", shape.merge(along, combine_attrs="override", join="outer"), runs=[source.run]))
    for names in [*((name,) for name in data), *combinations(data, 2)]:
        with sources[0].shell.progress(" + ".join(names), "fits") as report:
            parts = [data[name] for name in names]
            fitted = taken_up(memory, procrustes, parts, components=settings.rotated, progress=report, **draws)
        made.append(Made("procrustes", fitted, runs=names))
    return made


def cost(sources: "Sequence[Source]", settings: GeometrySettings) -> Cost:
    """Inner products of the states of each cell, and readings of each layer; eigenvalues and rotations are timed."""
    from analyze.cost import reading
    from analyze.geometry.effort import axes_products, axes_steps, layer_steps, turning_steps
    from analyze.labels import up_to_eot_or_as_chosen
    from analyze.similarity.cka import drawn_problems

    runs = [up_to_eot_or_as_chosen(source.data, settings.positions) for source in sources]
    cells = [run.sizes["position"] * run.sizes["layer"] for run in runs]
    reads, steps, operations, n_state, most = [], [], 0.0, 0, 0
    for i, j in [*((i, i) for i in range(len(runs))), *combinations(range(len(runs)), 2)]:
        parts = drawn_problems(runs[i], runs[j], settings.max_problems, settings.seed)
        reads += [reading(part) for part in parts] if i != j else [reading(parts[0], 3)]
        n, width = parts[0].sizes["example"], parts[0].sizes["hidden"]
        most = max(most, n)
        steps += turning_steps(n, width, cells[i], cells[j] * (i != j), settings)
        if i == j:
            n_state += cells[i] * n
            n_layer, n_token = runs[i].sizes["layer"], sources[i].lazy_model.sizes["vocabulary"]
            operations += cells[i] * 2.0 * n**2 * width
            n_position = runs[i].sizes["position"]
            operations += n_layer * axes_products(n * n_position, width, n_token)
            steps += [*layer_steps(n, width, n_position, n_layer, settings), *axes_steps(width, n_layer, settings)]
    width = max(run.sizes["hidden"] for run in runs)
    unembedding = max(source.lazy_model["unembedding"].nbytes for source in sources)
    return Cost(
        states=n_state, reads=reads, operations=operations, steps=steps,
        memory=8.0 * max(2 * max(cells) ** 2 * most, 10 * width**2) + unembedding,
        readouts=list(dict.fromkeys(source.run.partition("/")[0] for source in sources)),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Dimension and length of every cell; what the first components of the last layer are."""
    last = result.isel(layer=-1)
    cells = [
        result.sel(layer=layer, position=position)
        for layer in result["layer"].values
        for position in result["position"].values
    ]
    return [
        Table(
            title=f"{result.attrs['run']}: shape of the states, {result.attrs['n_example']} problems",
            columns=["layer", "position", "directions", "95%", "shuffled", "intrinsic dimension", "95%", "shuffled"]
            + ["length", "first component"],
            rows=[
                [int(cell["layer"]), cell["position"].item()]
                + [text for name in ("participation_ratio", "two_nn") for text in interval(cell, name)]
                + [float(cell["norm"]), float(cell["explained"].isel(component=0))]
                for cell in cells
            ],
            labels=2,
            caption="directions: participation ratio; intrinsic dimension: by two nearest neighbours; shuffled: every"
            " component over the problems, each for itself; first component: its share of the variance",
        ),
        Table(
            title=f"{result.attrs['run']}: principal components of layer {last['layer'].item()} over all positions",
            columns=["component", "variance", "between positions", "goes most with", "adds to", "takes from"],
            rows=[list(row.values()) for row in component_rows(last)],
            labels=1,
        ),
    ]


def interval(cell: Any, name: str) -> list[Any]:
    """A value, its interval and its null."""
    ends = range_text(cell[f"{name}_low"], cell[f"{name}_high"], ".1f")
    return [float(cell[name]), ends, float(cell[f"{name}_null"])]


def component_rows(layer: Any) -> list[dict[str, Any]]:
    """Principal components of a layer: variance, what they go with more than shuffles do, and what they read as."""
    rows = []
    for component in layer["component"].values:
        one = layer.sel(component=component)
        most, shares = "-", one["carried_share"].where(one["carried_share"] > one["carried_null"])
        if shares.size and shares.notnull().any():
            best = shares.isel(shares.fillna(-1).argmax(...))
            most = f"{best['carried'].item()} at {best['position'].item()} ({float(best):.2f})"
        rows.append(
            {
                "component": int(component),
                "variance": float(one["pooled_explained"]),
                "between": float(one["position_share"]),
                "carried": most,
                "adds": str(one["tokens"].sel(sign="+").item()),
                "takes": str(one["tokens"].sel(sign="-").item()),
            }
        )
    return rows


def rotations(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Held-out fit between positions at the last layers."""
    first, second = (result.attrs[name] for name in ("first", "second"))
    last = result["r2"].isel(layer=-1, other_layer=-1)
    drawn = f"{result.attrs['n_component']} components, {result.attrs['n_example']} problems"
    return [
        Table(
            title=f"{first} (rows) turned into {second} (columns): held-out r2 at the last layers, {drawn}",
            columns=["position", *result["other_position"].values],
            rows=[[label, *map(float, row)] for label, row in zip(result["position"].values, last.values, strict=True)],
            caption=f"95% of shuffles of problems stay below {float(result['r2_null']):.2f} everywhere",
        )
    ]


COMMAND = Analysis(
    name="geometry",
    help="Say what shape the states have: dimension, principal components and what they read, lengths, rotations.",
    settings=GeometrySettings,
    run=run,
    results={"geometry": tables, "procrustes": rotations},
    cost=cost,
    stopped=kept_beside("geometry"),
    together=True,
)
