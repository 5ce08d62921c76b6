"""``lake analyze sae``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from analyze.sae.spec import LEARNING, REPORT_LAYERS, REPORT_POSITIONS, USUAL, SAESpec, Scope
from schemas.command import Analysis, Cost, Made, Part, Printed, Sampled, Settings, Table, setting
from schemas.errors import UsageError

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class SAESettings(SAESpec, Part, Sampled):
    """What dictionary is learned, and from which states."""

    usual: ClassVar[Mapping[str, Any]] = USUAL | {"sparsity": 0.0}
    part: ClassVar[tuple[str, ...]] = ("limit",)  # layers may be one past the last block, positions of latents

    scope: Scope = setting("pool", "pool: one dictionary; cell: one for each cell; crosscoder: one for all runs named.")
    variable: Literal["hidden_state", "final_state", "latent_embedding", "all_states"] = setting(
        "hidden_state",
        "What the dictionary is learned from; all_states: hidden and final states, the final state as one more layer.",
    )
    positions: tuple[str, ...] | None = setting(
        None, "Only these positions; by default bot and all thoughts.", metavar="bot,ct0.."
    )
    top: int = setting(10, "Top-activating problems kept for each feature.", least=0)
    load: Path | None = setting(
        None,
        "Measure an existing dictionary instead of learning one: a folder of SAELens, sparsify,"
        " dictionary_learning or Gemma Scope.",
        metavar="DIR",
        stored=False,
    )
    save: Path | None = setting(
        None,
        "Also save in the layout that SAELens loads, each run in a folder of its own; a crosscoder in DIR itself.",
        metavar="DIR",
        stored=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Settings.check_needs(self)
        if self.load is None:
            return
        usual = SAESpec()
        given = [name for name in LEARNING if getattr(self, name) != getattr(usual, name)]
        given += ["scope"] if self.scope != "pool" else []
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{flags}: says how a dictionary is learned, and --load takes one that is; leave it out")

    def cells(self) -> tuple[list[int] | None, list[str] | None]:
        """Layers and positions: those given, or the preset's."""
        layers, positions = self.layers, self.positions
        if self.preset is not None:
            layers = layers or REPORT_LAYERS.get(self.preset)
            positions = positions or REPORT_POSITIONS
        return layers and list(layers), positions and list(positions)  # type: ignore[return-value]


def run(source: "Source | Sequence[Source]", settings: SAESettings) -> list[Made]:
    """The dictionary of a run, or of all runs together."""
    from analyze.sae.files import save_sae

    sources = source if isinstance(source, Sequence) else [source]
    layers, positions = settings.cells()
    chosen = {name: labels for name, labels in (("layers", layers), ("positions", positions)) if labels}
    if settings.load is not None:
        from analyze.sae.elsewhere import load_and_measure

        dictionary, stored = load_and_measure(sources[0], settings)
        chosen |= stored
    else:
        dictionary = learn(sources, settings)
    tell_infinite(sources, dictionary)
    if settings.save is not None:
        label = " + ".join(source.run for source in sources)
        joint = settings.scope == "crosscoder"
        folder = settings.save if joint else settings.save / label.replace("/", ".")
        save_sae(dictionary, folder, metadata={"model_name": label})
    return [Made("sae", dictionary, chosen)]


def learn(sources: "Sequence[Source]", settings: SAESettings) -> "xr.Dataset":
    """Learn a dictionary from a run, or a crosscoder from several."""
    from analyze.sae.dictionary import select_cells, train_sae

    layers, positions = settings.cells()
    states = {
        source.run: select_cells(source.data, settings.variable, layers=layers, positions=positions)
        for source in sources
    }
    by_model = {run.partition("/")[0]: activation for run, activation in states.items()}
    with sources[0].shell.progress(" + ".join(states), "batches") as report:
        return train_sae(
            by_model if settings.scope == "crosscoder" else states[sources[0].run],
            settings,
            scope=settings.scope,
            n_top=settings.top,
            progress=report,
        )


def tell_infinite(sources: "Sequence[Source]", dictionary: "xr.Dataset") -> None:
    """Say how many rows were left out because a number in them is infinite."""
    if n_infinite := int(dictionary["n_infinite"]):
        runs = " + ".join(source.run for source in sources)
        sources[0].shell.note(
            f"{runs}: {n_infinite} rows hold infinite numbers and are left out; --dtype float32 would have stored them"
        )


def cost(source: "Source | Sequence[Source]", settings: SAESettings) -> Cost:
    """Products of every training row with encoder and decoder, forward and back, in every epoch."""
    from analyze.cost import limits, reading
    from analyze.sae.dictionary import CALIBRATION_ROWS, VALIDATION_ROWS, select_cells

    sources = source if isinstance(source, Sequence) else [source]
    if settings.load is not None:
        from analyze.sae.elsewhere import cost_of_measuring

        return cost_of_measuring(sources[0], settings)
    layers, positions = settings.cells()
    states = [select_cells(source.data, settings.variable, layers=layers, positions=positions) for source in sources]
    width = sum(part.sizes["hidden"] for part in states)
    n_row = min(part.size // part.sizes["hidden"] for part in states)
    n_feature = settings.features or settings.expansion * max(part.sizes["hidden"] for part in states)
    share = settings.fractions[0] if settings.split != "none" else 1.0
    size = 4.0 * n_row * width
    # Scale, training and what is measured at the end read everything; training reads it again unless it is held.
    passes = 3.0 + (1 if share * size <= settings.buffer_bytes else settings.epochs)
    held = settings.fractions[1] if settings.split != "none" else 0.0
    drawn = [(VALIDATION_ROWS, held), (CALIBRATION_ROWS, share if settings.activation == "batch_topk" else 0.0)]
    passes += sum(min(1.0, n / (of * n_row)) for n, of in drawn if of)  # both are read beforehand
    n = min(source.data.sizes["example"] for source in sources)
    least = max(8, min(n // 16, round(settings.batch_size * n / (share * n_row))))  # a whole batch, if few examples are
    trial = limits(replace(settings, save=None), n, least, least * 3 // 2)
    # What is measured at the end takes longer for as many operations than a step. Half as many examples more, in a
    # third of the epochs more, are as much more to measure for each step more as in all of it.
    trial["larger"] = replace(trial["larger"], epochs=1 + -(-(settings.epochs - 1) // 3))
    trial["small"] = replace(trial["small"], epochs=1)
    return Cost(
        states=n_row * len(states), reads=[reading(part, passes) for part in states],
        operations=n_row * width * n_feature * (8.0 * share * settings.epochs + 4.0),
        memory=4.0 * (9 * width + 8 * 256) * n_feature + 2.0 * min(size, settings.buffer_bytes) + 2.0**28, **trial,
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Explained variance of every cell as rows and columns, and the rest in one line."""
    split = "test" if int(result["n_row"].sel(split="test").sum()) else "train"
    measured = result.sel(split=split)
    values = measured["explained_variance"].sel(definition="squared_error")
    across = [str(dim) for dim in values.dims if dim in ("position", "latent")]
    over = [str(dim) for dim in values.dims if dim not in across]
    columns = values[across[0]].values.tolist() if across else ["explained variance"]
    grid = values.expand_dims([] if over else ["cells"]).transpose(*(over or ["cells"]), *across)
    rows = grid.values.reshape(-1, len(columns)).tolist()
    keys = grid[over[0]].values.tolist() if len(over) == 1 else range(len(rows))
    total = measured["explained_variance_all"].sel(definition="squared_error").values.reshape(-1)
    return [
        Table(
            title=f"{result.attrs['run']}: {result.attrs['activation']}, {result.sizes['feature']} features,"
            f" explained variance of {split} rows",
            columns=[over[0] if over else "", *columns],
            rows=[[key, *row] for key, row in zip(keys, rows, strict=True)],
            caption=f"all cells {', '.join(f'{value:.3f}' for value in total)}; L0 {float(measured['l0'].mean()):.1f}; "
            f"{100 * float(measured['dead_share'].mean()):.1f}% of features never fire; " + _origin(result.attrs),
        )
    ]


def _origin(attrs: Mapping[str, Any]) -> str:
    """How a dictionary was learned."""
    if library := attrs.get("library"):
        return f"learned elsewhere ({library}), from what is not known: test rows may be among it"
    return f"{attrs['n_step']} steps, {attrs['n_revived']} revivals"


def frames(kind: str, result: Any) -> dict[str, Any]:
    """Tidy tables of metrics and curves, without weights, features and examples."""
    from analyze.sae.dictionary import sae_summary
    from analyze.tables import result_tables

    return result_tables(sae_summary(result))


COMMAND = Analysis(
    name="sae",
    help="Learn sparse dictionaries of a run's activations: reconstruction, sparsity, what each feature fires on.",
    settings=SAESettings,
    run=run,
    results={"sae": tables},
    cost=cost,
    together=lambda settings: settings.scope == "crosscoder",
    frames=frames,
)
