"""``lake analyze transfer``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from schemas.command import Analysis, Cost, Made, Part, Printed, Table, kept_beside, setting
from schemas.wording import range_text

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source

Kind = Literal["probe", "direction", "sae", "tuned"]
READ = "kind=probe|direction"
"""What reads a target."""


FIT = 60
"""Iterations of a regression, over all its penalties."""
DRAWS = 100
"""Permutations that are timed."""


@dataclass(frozen=True, kw_only=True)
class TransferSettings(Part):
    """What is fitted on which runs and tested on which others."""

    fit: tuple[str, ...] | None = setting(
        None, "Run that is fitted on; may be given several times; by default every run named.", metavar="RUN",
        repeat=True,
    )  # fmt: skip
    test: tuple[str, ...] | None = setting(
        None, "Run that is tested on; may be given several times; by default every run named.", metavar="RUN",
        repeat=True,
    )  # fmt: skip
    kind: tuple[Kind, ...] = setting(
        ("probe", "direction"),
        "probe: a regression, as lake analyze probes fits it; direction: the difference of class means; sae: the stored"
        " dictionary of each run; tuned: a tuned lens, fitted anew.",
    )
    target: str = setting(
        "correct", "What probes and directions read: correct, operation, intermediate_result, or a column of the runs.",
        metavar="NAME", needs=READ,
    )  # fmt: skip
    treat: Literal["auto", "classes", "number"] = setting(
        "auto",
        "classes, by logistic regression; number, by ridge; or auto: text and truth values are classes.",
        needs=READ,
    )
    folds: int = setting(5, "Folds of problems; each is tested by a fit to the others.", least=3, needs=READ)
    penalties: tuple[float, ...] | None = setting(
        None,
        "Values of C, or of ridge's alpha, to choose from; by default those of probes.",
        metavar="C,C..",
        needs="kind=probe",
    )
    selection: Literal["log_loss", "accuracy"] = setting(
        "log_loss", "What chooses the penalty of a probe.", needs="kind=probe"
    )
    controls: int = setting(2, "Times that labels are shuffled among problems and fitted again.", least=0, needs=READ)
    permutations: int | None = setting(
        None,
        "Permutations behind each p-value; by default enough for a corrected p of .025.",
        least=0,
        needs=READ,
    )
    resamples: int = setting(500, "Resamples of problems behind each interval.", least=2)
    level: float = setting(0.95, "Coverage of the intervals.")
    correction: Literal["holm", "bh"] = setting("holm", "Correction for many cells and runs: holm or bh.", needs=READ)
    max_examples: int = setting(
        2000, "Most examples used of each run, whole problems drawn by the seed; 0 takes all.", metavar="N", least=0
    )
    seed: int = setting(0, "Seed of folds, controls, permutations, resamples and draws.", least=0)

    def runs_to_open(self, named: Sequence[str]) -> list[str]:
        """Those named in any way; where ``--fit`` or ``--test`` is left to the runs named and none is: every run."""
        if not named and not (self.fit and self.test):
            return []
        return list(dict.fromkeys([*named, *(self.fit or ()), *(self.test or ())]))

    @property
    def linear_kinds(self) -> list[str]:
        """Kinds that read a target."""
        return [kind for kind in self.kind if kind in ("probe", "direction")]


def run(sources: "Sequence[Source]", settings: TransferSettings) -> list[Made]:
    """A result for probes and directions, and one each for dictionaries and tuned lenses."""
    from analyze.transfer.linear import transfer_probes
    from analyze.transfer.problems import comparable

    named = [source.run for source in sources]
    fit, test = list(settings.fit or named), list(settings.test or named)
    used = list(dict.fromkeys([*fit, *test]))
    by_run = {source.run: source for source in sources}
    parts = comparable({name: by_run[name].data for name in used}, settings.positions)
    shell, made = sources[0].shell, []
    if settings.linear_kinds:
        with shell.progress("probes and directions", "cells") as report:
            result = transfer_probes(parts, fit, test, settings, folder=sources[0].folder, progress=report)
        if result.attrs["left_out"]:
            shell.note(f"{settings.target!r}, left out: {result.attrs['left_out']}")
        made.append(Made("transfer", result, runs=used))
    if "sae" in settings.kind:
        made.append(Made("transfer_sae", read_dictionaries(by_run, parts, fit, test, settings), runs=used))
    if "tuned" in settings.kind:
        from analyze.transfer.tuned import transfer_lenses

        models = {name: by_run[name].model for name in used}
        with shell.progress("tuned lenses", "layers") as report:
            made.append(
                Made("transfer_lens", transfer_lenses(models, parts, fit, test, settings, progress=report), runs=used)
            )
    return made


def cost(sources: "Sequence[Source]", settings: TransferSettings) -> Cost:
    """Fits of every cell on every run and to shuffled labels, each tested on every run."""
    from analyze.cost import cells, places, reading, states_at

    reads, operations, memory, n_state, n_row, n_test = [], 0.0, 0.0, 0, 0, 0
    for source in sources:
        states = states_at(source.data, places(source.data, settings.positions, answers=False))
        n = min(settings.max_examples or states.sizes["example"], states.sizes["example"])
        n_cell = states.sizes["layer"] * states.sizes["position"]
        n_step = source.data[settings.target].sizes.get("step", 1) if settings.target in source.data else 1
        fits = (settings.folds**2 + 1) * n_step * (1 + settings.controls) * len(settings.kind)
        operations += n_cell * fits * n * states.sizes["hidden"] * 4.0 * FIT
        n_state += n_cell * n
        reads.append(reading(states))
        memory = max(memory, 8.0 * 6 * n * (states.sizes["hidden"] + settings.resamples))
        n_row, n_test = max(n_row, n), max(n_test, len(settings.linear_kinds) * n_step * n_cell)
    n_test *= len(settings.fit or sources) * len(settings.test or sources)
    n_permutation = max(1000, 40 * n_test) if settings.permutations is None else settings.permutations
    # Permutations and resamples are drawn once for all cells of two runs.
    few = replace(settings, permutations=0, resamples=2)
    positions = places(sources[0].data, settings.positions, answers=False)
    return Cost(
        states=n_state, reads=reads, operations=operations, memory=memory,
        **cells(few, sources[0].data["layer"].values.tolist(), positions),
        steps=[
            (n_permutation / DRAWS * n_test / n_cell, partial(permuted, n_row, n_cell, settings.folds)),
            (n_test / n_cell, partial(resampled, n_row, settings.resamples)),
        ],
        readouts=[source.run.partition("/")[0] for source in sources] if "tuned" in settings.kind else [],
    )  # fmt: skip


def permuted(n_row: int, n_cell: int, n_fold: int) -> None:
    """P-values of as many cells from made-up predictions and few permutations, to time them."""
    import numpy as np

    from analyze.probes.scores import permutation_p

    row = np.arange(n_row)
    permutation_p(np.ones((1, n_row, n_cell)), row % 2, row % n_fold, row, DRAWS, [0], numbers=False, widening=1.0)


def resampled(n_row: int, n_resample: int) -> None:
    """Resamples of so many problems, to time them."""
    import numpy as np

    from schemas.resampling import draw_counts

    draw_counts(np.arange(n_row), n_resample=n_resample, seed=0)


def read_dictionaries(
    sources: "Mapping[str, Source]", parts: "Mapping[str, xr.Dataset]", fit: Sequence[str], test: Sequence[str],
    settings: TransferSettings,
) -> "xr.Dataset":  # fmt: skip
    """What the stored dictionaries of the runs, of every one fitted on, explain of the runs tested."""
    from analyze.transfer.dictionary import transfer_dictionaries
    from store.results import preferred

    source = next(iter(sources.values()))
    lake, dictionaries = source.lake, {}
    for name in dict.fromkeys([*fit, *test]):
        stored = [
            one for one in lake.results("sae") if one.runs == (name,) and one.spec.get("variable") == "hidden_state"
        ]
        if stored:
            dictionaries[name] = lake.open_result(preferred(stored)[0].name)
            if library := dictionaries[name].attrs.get("library"):
                sources[name].note(
                    f"its dictionary was learned elsewhere ({library}), perhaps from problems it is tested on"
                )
        elif name in fit:
            lake.find("sae", name, variable="hidden_state", scope="pool")  # says how to make it
        else:
            sources[name].note("it has no dictionary of its own to compare the others with")
    wholes = {name: lake[name] for name in parts}
    with source.shell.progress("dictionaries", "cells") as report:
        return transfer_dictionaries(dictionaries, wholes, parts, fit, test, settings, progress=report)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """The matrix of each kind, and every pair of runs in a row."""
    from analyze.transfer.matrix import pairs_of, scores_of

    attrs, rows = result.attrs, list(pairs_of(result))
    main, ranked = scores_of(result)
    labels = [dim for dim in ("kind", "fit", "test", "step") if dim in result.dims]
    matrices = [
        Table(
            title=f"{kind} for {attrs['target']}: {main} on each run (column) of a fit to each run (row)",
            columns=["fit \\ test", *result["test"].values],
            rows=[
                [str(fit), *(float(result[main].sel(kind=kind, fit=fit, test=test).mean()) for test in result["test"])]
                for fit in result["fit"].values
            ]
            + [["own", *(float(result[f"own_{main}"].sel(kind=kind, test=test).mean()) for test in result["test"])]],
            caption="mean over layers and positions, of problems that were not fitted on; own: the test run's own fit",
        )
        for kind in result["kind"].values
    ]
    return [
        *matrices,
        Table(
            title=f"{attrs['target']}: what is fitted on one run, tested on another",
            columns=[*labels, main, ranked, "own", "shuffled", "baseline", "best", "joint 95%", "layer", "position"]
            + ["own - it", "joint 95%", f"p < {1 - attrs['level']:.2f}"],
            rows=[
                [*(row[label] for label in labels), row["score"], row[ranked], row["own"], row["shuffled"]]
                + [row["baseline"], row["best"], range_text(row["low"], row["high"]), row["layer"], row["position"]]
                + [row["gap"], range_text(row["gap_low"], row["gap_high"], "+.2f"), f"{row['carried']}/{row['n_cell']}"]
                for row in rows
            ],
            labels=len(labels),
            caption=f"means over cells; best: the cell with the highest {main}, and how much the run's own fit scores"
            " above it there, with intervals that hold for all cells at once; shuffled: a fit to shuffled labels;"
            " baseline: the commonest class, or the mean; p: cells with p corrected"
            f" ({attrs['correction']}) over {attrs['n_test']}",
        ),
    ]


def sae_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """What each dictionary explains of each run."""
    columns = ["explained variance", "own", "own - it", "units shuffled", "L0", "never fire", "own never fire"]
    caption = "on problems that no dictionary used on the run has seen; never fire: share of features"
    return [pair_table(result, "dictionaries", columns, SAE_MEANS, caption)]


def lens_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How well each lens reads each run."""
    columns = ["KL", "own", "plain", "constant", "agreement", "1/rank", "own 1/rank", "plain 1/rank", "of another"]
    caption = (
        "KL in nat from the model's own distribution, on problems that were not fitted on; plain: the final norm alone;"
        " constant: the mean final state; 1/rank: of the best-ranked right result, and of another's"
    )
    return [pair_table(result, "tuned lenses", columns, LENS_MEANS, caption)]


def pair_table(result: Any, what: str, columns: Sequence[str], means: Sequence[str], caption: str) -> Table:
    """Means of every pair of runs in a row."""
    return Table(
        title=f"{what} of one run on the states of another, mean over layers and positions",
        columns=["fit", "test", "problems", *columns],
        rows=[
            [str(pair["fit"].item()), str(pair["test"].item()), int(pair["n_problem"])]
            + [float(pair[name].mean()) for name in means]
            for pair in pairs(result)
        ],
        labels=2,
        caption=caption,
    )


SAE_MEANS = ("explained_variance", "own_explained_variance", "gap", "control_explained_variance", "l0", "dead_share",
             "own_dead_share")  # fmt: skip
LENS_MEANS = ("kl", "own_kl", "plain_kl", "mean_kl", "agreement", "reciprocal_rank", "own_reciprocal_rank",
              "plain_reciprocal_rank", "other_reciprocal_rank")  # fmt: skip


def pairs(result: Any) -> list[Any]:
    """The part of a result that is of each pair of runs."""
    return [result.sel(fit=fit, test=test) for fit in result["fit"].values for test in result["test"].values]


COMMAND = Analysis(
    name="transfer",
    help="Test on a run what was fitted on another: probes, directions, dictionaries, tuned lenses.",
    settings=TransferSettings,
    run=run,
    results={"transfer": tables, "transfer_sae": sae_tables, "transfer_lens": lens_tables},
    made_by={"transfer_sae": "--kind sae", "transfer_lens": "--kind tuned"},
    together=True,
    cost=cost,
    stopped=kept_beside("transfer"),
)
