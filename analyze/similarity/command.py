"""``lake analyze similarity``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from schemas.command import Analysis, Cost, Made, Part, Printed, Table, kept_beside, setting

if TYPE_CHECKING:
    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class SimilaritySettings(Part):
    """How the likeness of states is estimated, and how sure it is."""

    estimator: Literal["debiased", "biased"] = setting(
        "debiased", "debiased: 0 on average for states that have nothing in common; biased: as first published."
    )
    max_problems: int = setting(300, "Most problems used, drawn by the seed.", metavar="N", least=8)
    resamples: int = setting(200, "Halves of the problems drawn for each interval.", least=2)
    permutations: int = setting(200, "Times that the problems of one side are shuffled.", least=1)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(sources: "Sequence[Source]", settings: SimilaritySettings) -> list[Made]:
    """Every two of the runs, or a run with itself where it is the only one."""
    from analyze.labels import up_to_eot_or_as_chosen
    from analyze.pieces import pieces_in, taken_up
    from analyze.similarity.cka import similarity

    memory = pieces_in(sources[0].folder, __file__)
    data = {source.run: up_to_eot_or_as_chosen(source.data, settings.positions) for source in sources}
    made = []
    pairs: list[tuple[str, ...]] = [*combinations(data, 2)] or [tuple(data)]
    for names in pairs:
        with sources[0].shell.progress(" + ".join(names), "draws") as report:
            result = taken_up(
                memory,
                similarity,
                [data[name] for name in names],
                estimator=settings.estimator,
                max_problems=settings.max_problems,
                resamples=settings.resamples,
                permutations=settings.permutations,
                seed=settings.seed,
                progress=report,
            )
        made.append(Made("similarity", result, runs=names))
    return made


def cost(sources: "Sequence[Source]", settings: SimilaritySettings) -> Cost:
    """Products of the Gram matrices of every cell of one run with every one of another, for each draw."""
    from analyze.cost import fewer, reading
    from analyze.labels import up_to_eot_or_as_chosen
    from analyze.similarity.cka import drawn_problems

    runs = [up_to_eot_or_as_chosen(source.data, settings.positions) for source in sources]
    cells, reads, operations, n = [run.sizes["position"] * run.sizes["layer"] for run in runs], [], 0.0, 0
    for first, second in [*combinations(range(len(runs)), 2)] or [(0, 0)]:
        parts = drawn_problems(runs[first], runs[second], settings.max_problems, settings.seed)
        reads += [reading(part) for part in (parts if first != second else parts[:1])]
        n = parts[0].sizes["example"]
        operations += 2.0 * n**2 * sum(cells[i] * runs[i].sizes["hidden"] for i in (first, second))
        operations += cells[first] * cells[second] * n**2 * (settings.permutations + settings.resamples / 4)
    return Cost(
        states=sum(cells) * n, reads=reads, operations=operations,
        memory=24.0 * n**2 * 2 * max(cells), **fewer(settings, resamples=(2, 20), permutations=(2, 20)),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Positions against positions, layers against layers, and what each position of the first run is most like."""
    names = f"{result.attrs['first']} (rows) and {result.attrs['second']} (columns)"
    drawn = f"{result.attrs['n_example']} of {result.attrs['n_shared']} shared problems"
    return [
        Table(
            title=f"{names}: {result.attrs['estimator']} CKA, mean over {mean}, {drawn}",
            columns=[dim, *result[f"other_{dim}"].values],
            rows=[
                [label, *map(float, row)]
                for label, row in zip(result[dim].values, result[f"{dim}_cka"].values, strict=True)
            ],
            caption=f"95% of shuffles of problems stay below {float(result[f'{dim}_cka_null']):.2f} everywhere",
        )
        if result[f"{dim}_cka"].notnull().any()
        else f"{names}: no mean over {mean}, as there is none with a figure"
        for dim, mean in (("position", "layers at the same depth"), ("layer", "positions of both"))
    ]


COMMAND = Analysis(
    name="similarity",
    help="Say how alike the states of runs are: CKA between every layer and position of one and of another.",
    settings=SimilaritySettings,
    run=run,
    results={"similarity": tables},
    cost=cost,
    stopped=kept_beside("similarity"),
    together=True,
)
