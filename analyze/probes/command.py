"""``lake analyze probes``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from schemas.command import Analysis, Cost, Part, Printed, Table, kept_beside, setting

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source

OLD_NAMES = {
    "n_fold": "folds",
    "n_control": "controls",
    "n_permutation": "permutations",
    "n_resample": "resamples",
    "max_example": "max_examples",
    "n_per_class": "per_class",
}
"""Settings as results of version 0.1 store them."""


ITERATIONS = 60
"""Of a fit, over all its penalties."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Part):
    """What is probed for, and how."""

    target: str = setting(
        "correct", "correct, operation, intermediate_result, or a column of the run, with or without steps.",
        metavar="NAME",
    )  # fmt: skip
    treat: Literal["auto", "classes", "number"] = setting(
        "auto", "classes, by logistic regression; number, by ridge; or auto: text and truth values are classes."
    )
    folds: int = setting(
        5, "Number of folds, split by problem; penalties are chosen on the folds that are not held out.", least=3
    )
    penalties: tuple[float, ...] | None = setting(
        None,
        "Values to choose from: of C, or of ridge's alpha where the target is a number; by default six and eight"
        " powers of ten.",
        metavar="C,C..",
    )
    selection: Literal["log_loss", "accuracy"] = setting(
        "log_loss", "What chooses the penalty: log_loss, or accuracy as in the reports."
    )
    controls: int = setting(
        3,
        "Times that labels are shuffled among problems and everything is repeated, the choice of penalties included.",
        least=0,
    )
    permutations: int | None = setting(
        None,
        "Permutations behind each p-value; by default enough for a corrected p of .025.",
        least=0,
    )
    resamples: int = setting(1000, "Resamples of problems behind each interval.", least=2)
    level: float = setting(0.95, "Coverage of the intervals.")
    correction: Literal["holm", "bh"] = setting("holm", "Correction for many cells: holm or bh.")
    max_examples: int = setting(
        2000, "Most examples used, whole problems drawn by the seed; 0 takes all.", metavar="N", least=0
    )
    per_class: int | None = setting(None, "Draw N examples of each class, as the reports did.", metavar="N", least=1)
    metric: str | None = setting(
        None, "Score to print: accuracy, balanced_accuracy, auroc, r2 .. (all of them are kept).", stored=False
    )
    reports: bool = setting(False, "As report 001: 50 of each class, penalty by accuracy, seed 42.", stored=False)
    seed: int = setting(0, "Seed of folds, controls, permutations, resamples and draws.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reports:
            self.decide("--reports", per_class=self.per_class or 50, selection="accuracy", seed=self.seed or 42)

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Settings from what is stored with a result, also where its names are older ones."""
        renamed = {OLD_NAMES.get(name, name): value for name, value in spec.items()}
        if "max_examples" in renamed:
            renamed["max_examples"] = renamed["max_examples"] or 0
        return super().of_spec(renamed)


def as_they_come(spec: Mapping[str, Any]) -> bool:
    """Whether stored probes are of examples as they come, not of so many drawn from each class."""
    return ProbeSettings.of_spec(spec).per_class is None


def run(source: "Source", settings: ProbeSettings) -> "xr.Dataset":
    """Probes of every cell; finished ones are kept beside the lake until all are done."""
    from analyze.probes.linear import linear_probes

    whole = replace(settings, layers=None, positions=None, limit=None)  # the source is that part already
    with source.progress(unit="cells") as report:
        result = linear_probes(source.data, whole, folder=source.folder, progress=report)
    if result.attrs["left_out"]:
        n_step = source.data[settings.target].sizes["step"] - result.sizes.get("step", 0)
        source.note(f"{n_step} steps of {settings.target!r} left out: {result.attrs['left_out']}")
    return result


def cost(source: "Source", settings: ProbeSettings) -> Cost:
    """Iterations of every fit of every cell: folds within folds, penalties, targets and shuffled labels."""
    from analyze.cost import cells, reading
    from analyze.probes.linear import check_probed

    check_probed(source.data, settings.target, settings.level)
    states = source.data["hidden_state"]
    n_cell, n_step = states.sizes["layer"] * states.sizes["position"], source.data[settings.target].sizes.get("step", 1)
    n = min(settings.max_examples or states.sizes["example"], states.sizes["example"])
    fits = (settings.folds * (settings.folds - 1) + settings.folds + 1) * n_step * (1 + settings.controls)
    per_cell = 4.0 * n * states.sizes["hidden"] * fits * ITERATIONS
    return Cost(
        states=n_cell * n, reads=[reading(states)], operations=n_cell * per_cell,
        memory=4.0 * 8 * n * (states.sizes["hidden"] + 2 * settings.resamples),
        **cells(settings, states["layer"].values.tolist(), states["position"].values.tolist()),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """A score by layer and position, and the scores over all cells."""
    from analyze.probes.linear import summarise_probes
    from analyze.probes.scores import steps_of

    attrs = result.attrs
    main = "r2" if "r2" in result else "accuracy"
    constant = main == "accuracy" and bool((abs(result["accuracy"] - result["majority_accuracy"]) < 1e-3).all())
    metric = attrs.get("metric") or ("auroc" if constant else main)
    summary = summarise_probes(result, metric)
    steps = steps_of(result)
    caption = "accuracy is constant: every cell calls everything the commonest class" if constant else None
    extra = {"training": f"training_{main}", "refit": f"refit_training_{main}"}
    return [
        *(grid_table(step, metric, caption) for step in steps),
        Table(
            title=f"{attrs['run']}: {attrs['target']}, {metric} over all cells",
            columns=[*summary.columns, *extra],
            rows=[
                [*row, *(float(step[name].mean()) for name in extra.values())]
                for row, step in zip(summary.values.tolist(), steps, strict=True)
            ],
            caption=f"baseline, control, training and refit: {main}; the last two on the rows the probe was fitted to, "
            f"refit is what report 001 calls accuracy. {attrs['note']}",
        ),
    ]


def grid_table(result: Any, metric: str, caption: str | None) -> Table:
    """One score by layer and position, with a star where its corrected p is small."""
    attrs = result.attrs
    grid = result[metric].transpose("layer", "position")
    sure = result["p_corrected"].transpose("layer", "position") < 1 - attrs["level"]
    step = f", step {result['step'].item()}" if "step" in result.coords else ""

    def cell(value: float, star: bool) -> str:
        return "-" if value != value else f"{value:.2f}{'*' if star else ' '}"

    return Table(
        title=f"{attrs['run']}: {attrs['target']}{step}, held-out {metric}, {int(result['n_example'].max())} examples"
        f" (* p < {1 - attrs['level']:.2f}, {attrs['correction']}, {attrs['n_test']} cells)",
        columns=["layer", *grid["position"].values],
        rows=[
            [layer, *map(cell, row, stars)]
            for layer, row, stars in zip(grid["layer"].values, grid.values, sure.values, strict=True)
        ],
        caption=caption,
    )


def frames(kind: str, result: Any) -> dict[str, Any]:
    """Tidy tables of the scores, without directions, and a summary of each step."""
    from analyze.probes.linear import summarise_probes
    from analyze.tables import result_tables

    return result_tables(result.drop_dims("hidden")) | {"summary": summarise_probes(result)}


COMMAND = Analysis(
    name="probes",
    help="Probe every (layer, position) for a target: held out, with intervals, controls and corrected p-values.",
    settings=ProbeSettings,
    run=run,
    results={"probes": tables},
    cost=cost,
    frames=frames,
    stopped=kept_beside("probes"),
)
