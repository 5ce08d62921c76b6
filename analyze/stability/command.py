"""``lake analyze stability``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from schemas.command import Analysis, Cost, Limited, Printed, Table, setting
from schemas.wording import range_text

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class StabilitySettings(Limited):
    """How sure it is what runs have in common."""

    layers: tuple[int, ...] | None = setting(
        None, "Only these layers; what thoughts read as is taken at the last of them.", metavar="0,1.."
    )
    max_examples: int = setting(
        2000, "Most examples used of each run, whole problems drawn by the seed; 0 takes all.", metavar="N", least=0
    )
    resamples: int = setting(300, "Resamples of problems behind each interval.", least=2)
    shuffles: int = setting(2000, "Shuffles of heads, and of thoughts, behind each null.", least=1)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(sources: "Sequence[Source]", settings: StabilitySettings) -> "xr.Dataset":
    """All runs against each other."""
    from analyze.stability.between import stability

    runs = {source.run: source.data for source in sources}
    by_run = {source.run: source for source in sources}
    with sources[0].shell.progress("heads and thoughts", "runs") as report:
        return stability(
            runs, lambda run: by_run[run].model, max_examples=settings.max_examples, resamples=settings.resamples,
            shuffles=settings.shuffles, seed=settings.seed, progress=report,
        )  # fmt: skip


def cost(sources: "Sequence[Source]", settings: StabilitySettings) -> Cost:
    """Resampled sums of the block of thoughts, and the last layer's thoughts read out."""
    from functools import partial

    import numpy as np

    from analyze.cost import places, reading, states_at
    from analyze.heads.scores import thought_block
    from analyze.probes.tasks import draw_examples
    from analyze.stability.between import one_pair
    from store import bytes_to_read
    from store.read import MODELS_KEPT

    reads, operations, memory, n_state, readouts = [], 0.0, 0.0, 0, dict[str, float]()
    steps: list[tuple[float, Callable[[], object]]] = []
    for source in sources:
        rows = draw_examples(np.asarray(source.data["problem"].values), settings.max_examples, settings.seed)
        run = source.data.isel(example=rows)
        block = thought_block(run["attention"], "thoughts")[0]
        states = states_at(run, places(run, answers=False)[:-1]).isel(layer=[-1])
        reads += [reading(block), reading(states)]
        n_state += states.size // states.sizes["hidden"]
        operations += 2.0 * (block.size * settings.resamples + states.size * source.lazy_model.sizes["vocabulary"])
        near = thought_block(source.data.isel(example=slice(0, len(rows)))["attention"], "thoughts")[0]
        # Where some are drawn, each may lie in a chunk of its own, as those of trials do not.
        own, side_by_side, first = (bytes_to_read(source.lake, source.run, part) for part in (block, near, near[:1]))
        if own > side_by_side:
            steps.append(((own - side_by_side) / first, partial(np.asarray, near[:1])))
        memory = max(memory, 8.0 * 3 * settings.resamples * block.size / block.sizes["example"])
        readouts[source.run.partition("/")[0]] = float(source.lazy_model["unembedding"].nbytes)
        n_head = block.sizes["layer"] * block.sizes["head"]
    memory += 2.0**28  # blocks of attention that are added up, and of logits
    memory += max(max(readouts.values()), min(sum(readouts.values()), MODELS_KEPT))
    # No trial: each would read the read-outs again, of which two of a gigabyte are not kept.
    pair = partial(one_pair, n_head, settings.resamples, settings.shuffles)
    steps.append((len(sources) * (len(sources) + 1) / 2, pair))
    return Cost(
        states=n_state, reads=reads, operations=operations, memory=memory,
        readouts=list(readouts), steps=steps,
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """What every two runs have in common, and what each thought reads out as."""
    rows = pair_rows(result)
    names = [str(score) for score in result["score"].values]
    return [
        Table(
            title="heads of two runs: rank correlation of scores, and share of heads alike",
            columns=["run", "other", *names, "95% of composite", "same type", "shuffled", "same hub", "shuffled"],
            rows=[
                [row["run"], row["other"], *(row[name] for name in names), range_text(row["low"], row["high"])]
                + [row["same_type"], row["same_type_null"], row["same_hub"], row["same_hub_null"]]
                for row in rows
            ],
            labels=2,
            caption="a run with itself: halves of its problems, what noise alone leaves; shuffled: mean over shuffles"
            " of heads; nan: models of other shapes",
        ),
        Table(
            title="what thoughts read out as: overlap of two runs",
            columns=["run", "other", "overlap", "95%", "thoughts shuffled", "p", "same role"],
            rows=[
                [row["run"], row["other"], row["overlap"], range_text(row["overlap_low"], row["overlap_high"])]
                + [row["overlap_null"], row["overlap_p"], row["same_role"]]
                for row in rows
            ],
            labels=2,
            caption="1: at every thought the same shares of examples read out as the same; p corrected, together with"
            " those of heads",
        ),
        Table(
            title=f"what most examples read out as at layer {result.attrs['layer']}, and in what share",
            columns=["position", *result["run"].values],
            rows=[
                [str(position), *(role_text(result.sel(run=name, position=position)) for name in result["run"].values)]
                for position in result["position"].values
            ],
            labels=1,
        ),
    ]


def role_text(thought: Any) -> str:
    """What a thought of a run reads out as most often, and how often."""
    role = thought["role"].item()
    return f"{role} {float(thought['role_share'].max('reads')):.2f}" if role else "-"


def pair_rows(result: Any) -> list[dict[str, Any]]:
    """Every run with itself and every two runs, in a row each."""
    names = [str(name) for name in result["run"].values]
    rows = []
    for first, second in [*((name, name) for name in names), *combinations(names, 2)]:
        pair = result.sel(run=first, other=second)
        row: dict[str, Any] = {"run": first, "other": second}
        row |= {str(score): float(pair["correlation"].sel(score=score)) for score in pair["score"].values}
        composite = pair.sel(score="composite")
        row |= {"low": float(composite["correlation_low"]), "high": float(composite["correlation_high"])}
        row |= {"p": float(composite["correlation_p_corrected"])}
        for name in ("same_type", "same_hub", "overlap"):
            row |= {f"{name}{end}": float(pair[f"{name}{end}"]) for end in ("", "_low", "_high", "_null")}
            row[f"{name}_p"] = float(pair[f"{name}_p_corrected"])
        rows.append(row | {"same_role": float(pair["same_role"])})
    return rows


COMMAND = Analysis(
    name="stability",
    help="Compare several runs: do heads score and attend alike, and do thoughts read out alike, beside shuffled ones?",
    settings=StabilitySettings,
    run=run,
    results={"stability": tables},
    cost=cost,
    together=True,
)
