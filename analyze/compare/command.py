"""``lake analyze compare``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.command import Analysis, Cost, Made, Printed, Settings, Table, setting
from schemas.wording import range_text
from schemas.words import PATH, filled

if TYPE_CHECKING:
    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Settings):
    """How sure differences between runs are."""

    resamples: int = setting(500, "Resamples of the bootstrap over problems.", least=2)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(sources: "Sequence[Source]", settings: CompareSettings) -> list[Made]:
    """All runs beside each other."""
    from analyze.compare.differences import compare

    lake = sources[0].lake
    result = compare(lake, [source.run for source in sources], n_resample=settings.resamples, seed=settings.seed)
    result.encoding["source"] = str(lake.location)  # where it lies is no part of a result
    return [Made("compare", result)]


def cost(sources: "Sequence[Source]", settings: CompareSettings) -> Cost:
    """Resamples of what stored results keep of each example: no activation is read."""
    from analyze.cost import fewer

    n, runs = sum(source.data.sizes["example"] for source in sources), {source.run for source in sources}
    lake = sources[0].lake
    read = [result.name for result in lake.results() if runs.issuperset(result.runs)]
    return Cost(
        operations=2.0 * n * settings.resamples * 100,
        memory=8.0 * n * settings.resamples + sum(lake.open_result(name, load=False).nbytes for name in read),
        **fewer(settings, resamples=(2, 100)),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Runs side by side, the largest differences, and what is missing."""
    from analyze.compare.differences import comparison_table, difference_table

    models = comparison_table(result).set_index("model")
    differences = difference_table(result).query("low > 0 or high < 0")
    largest = differences["difference"].abs().sort_values(ascending=False, kind="stable").index[:20]
    missing = (line.partition("; ") for line in json.loads(result.attrs["missing"]))
    return [
        Table(
            title="Side by side",
            columns=["", *models.index],
            rows=[[column, *models[column]] for column in models.columns],
        ),
        Table(
            title=f"Largest differences whose 95% interval leaves out 0 ({result.attrs['note']})",
            columns=["what", "where", "first", "second", "difference", "95%", "paired"],
            rows=[
                [row.what, row.where, row.first_of, row.second_of, f"{row.difference:+.3f}"]
                + [range_text(row.low, row.high, "+.3f"), "yes" if row.paired else "no"]
                for row in differences.loc[largest].itertuples()
            ],
        ),
        *(f"missing: {what}; {filled(command, result.encoding.get('source', PATH))}" for what, _, command in missing),
    ]


def frames(kind: str, result: Any) -> dict[str, Any]:
    """Runs, their differences, what is missing and which command makes it, and what is to be kept in mind."""
    import pandas as pd

    from analyze.compare.differences import comparison_table, difference_table

    missing = [line.partition("; ")[::2] for line in json.loads(result.attrs["missing"])]
    return {
        "models": comparison_table(result),
        "differences": difference_table(result),
        "missing": pd.DataFrame(missing, columns=["what", "command"]),
        "note": pd.DataFrame({"note": [result.attrs["note"]]}),
    }


COMMAND = Analysis(
    name="compare",
    help="Lay two or more runs beside each other: everything the lake knows, and differences with intervals.",
    settings=CompareSettings,
    run=run,
    results={"compare": tables},
    together=True,
    cost=cost,
    frames=frames,
)
