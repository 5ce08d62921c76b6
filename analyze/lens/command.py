"""``lake analyze lens``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas import UsageError
from schemas.command import Analysis, Cost, Made, Part, Printed, Sampled, Table, kept_beside, setting
from schemas.naming import layer_name
from schemas.wording import or_dash, range_text

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class LensSettings(Part, Sampled):
    """What states are read out with, and what is kept of it."""

    lens: tuple[Literal["logit", "tuned", "jacobian"], ...] = setting(
        ("logit",),
        "logit: the model's own read-out; tuned: an affine map for each layer before it, fitted on the run; jacobian:"
        " through the Jacobians of lake reenter jacobian, beside both others on the same held-out problems.",
    )
    read_as: str | None = setting(
        None,
        "What the Jacobian lens reads a state as: before (the default), the state that its thought was made from;"
        " or a later state to which Jacobians are stored.",
        metavar="before|next|eot|..",
    )
    top: int = setting(5, "Number of best tokens kept for each state.", least=1)
    seed: int = setting(0, "Seed of the problems that a tuned lens is fitted on.", least=0)
    by: Literal["state", "fed"] = setting(
        "state",
        "Name a position by its state, or by where the vector made from that state is fed, one position later.",
        stored=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.read_as is not None and "jacobian" not in self.lens:
            raise UsageError("--read-as says what the Jacobian lens reads; ask for that one with --lens jacobian")


def is_plain(spec: Mapping[str, Any]) -> bool:
    """Whether stored results of the lens are of states read through the model's own final norm, not a tuned lens."""
    return bool(spec.get("lens", "plain") == "plain")


def run(source: "Source", settings: LensSettings) -> list[Made]:
    """Every lens asked for: its summary and tests, and how well a fitted one does."""
    from analyze.lens.tuned import fit_tuned_lens

    if "jacobian" in settings.lens:
        source.result("jacobian")  # that there is none is said before minutes are spent on the others
    made: list[Made] = []
    for lens in settings.lens:
        if lens == "logit":
            made += read_out(source, settings, None)
            continue
        if lens == "jacobian":
            comparison = compare(source, settings)
            made += [Made("lens_comparison", comparison, {"lens": "jacobian"}), *beside_edits(source, comparison)]
            continue
        with source.progress("tuned lens", "layers") as report:
            fitted = fit_tuned_lens(
                source.data, source.model, positions=chosen_positions(source, settings), seed=settings.seed,
                progress=report,
            )  # fmt: skip
        made += [*read_out(source, settings, fitted), Made("tuned_lens", fitted, {"lens": "tuned"})]
        made += by_thought(source, settings)
    return [
        result._replace(data=result.data.assign_attrs(by=settings.by)) if result.kind == "lens" else result
        for result in made
    ]


def chosen_positions(source: "Source", settings: LensSettings) -> list[str] | None:
    """Positions asked for, in the run's order; none: every one from ``bot`` on."""
    return None if settings.positions is None else source.data["position"].values.tolist()


def read_out(source: "Source", settings: LensSettings, tuned: "xr.Dataset | None") -> list[Made]:
    """One lens over a run: its summary, and the tests that compare thoughts where there are several."""
    from analyze.blocks import computed_blocks
    from analyze.labels import thought_labels
    from analyze.lens.logit import logit_lens
    from analyze.lens.summary import lens_tests, summary_of_blocks
    from analyze.lens.tokens import results_in_one_token

    lens = logit_lens(
        source.data, source.model, positions=chosen_positions(source, settings), top=settings.top, tuned=tuned,
        folder=source.folder,
    )  # fmt: skip
    with source.progress(unit="examples") as report:
        problem = lens["problem"].values if "problem" in lens.coords else None
        summary, is_number = summary_of_blocks(computed_blocks(lens, report), problem)
    summary = summary.assign_attrs(results_in_one_token(source.data, source.model))
    spec = {"lens": summary.attrs["lens"]}
    made = [Made("lens", summary, spec)]
    if len(thought_labels(is_number)) > 1:
        made.append(Made("lens_tests", lens_tests(is_number), spec))
    return made


def compare(source: "Source", settings: LensSettings) -> "xr.Dataset":
    """All lenses on the same held-out problems, of a run whose Jacobians are in the lake."""
    from analyze.lens.jacobian import compare_lenses

    run = source.whole
    jacobian = source.lake.open_result(source.result("jacobian"))
    with source.progress("jacobian lens", "lenses"):
        return compare_lenses(
            run, source.model, jacobian, target=settings.read_as or "before", positions=settings.positions,
            layers=settings.layers, top=settings.top, seed=settings.seed,
        )  # fmt: skip


def beside_edits(source: "Source", comparison: "xr.Dataset") -> list[Made]:
    """What the lenses read beside what edits of the same thoughts did, where the lake has edits of the run."""
    from analyze.lens.edits import edit_agreement

    if not any(source.run in result.runs for result in source.lake.results("edit")):
        return []
    agreement = edit_agreement(comparison, source.lake.open_result(source.result("edit")))
    if not agreement.sizes.get("edit"):
        source.note("no edit of the lake is of a place and of problems that the lenses read here")
        return []
    return [Made("lens_edits", agreement, {"lens": "jacobian"})]


def by_thought(source: "Source", settings: LensSettings) -> list[Made]:
    """Tuned lenses of single thoughts, odd and even ones and all, each on every thought; where there are several."""
    from analyze.labels import thought_labels
    from analyze.lens.thoughts import thought_lenses

    if len(thought_labels(source.data["hidden_state"])) < 2:
        return []
    with source.progress("lenses of thoughts", "layers") as report:
        result = thought_lenses(source.data, source.model, seed=settings.seed, progress=report)
    return [Made("thought_lenses", result, {"lens": "tuned"})]


def cost(source: "Source", settings: LensSettings) -> Cost:
    """A product of every state with the unembedding for each lens; the fit of a tuned one takes as long as three."""
    from analyze.cost import limits, places, present, reading, states_at

    run, model = source.data, source.lazy_model
    chosen = places(run, chosen_positions(source, settings))
    states = states_at(run, chosen)
    n_state = present(run, chosen) * states.sizes["layer"]
    product = 2.0 * n_state * states.sizes["hidden"] * model.sizes["vocabulary"]
    times = sum({"logit": 1.0, "tuned": 4.0, "jacobian": 4.0}[lens] for lens in settings.lens)
    return Cost(
        states=n_state, reads=[reading(states, times)], operations=times * product,
        memory=float(model["unembedding"].nbytes + 3 * 2**25), readouts=[source.run.partition("/")[0]],
        **limits(settings, run.sizes["example"], 4 if settings.lens == ("logit",) else 32),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """What the last layer reads out, by position."""
    from schemas.naming import relabelled

    by = result.attrs.get("by", "state")
    last = result.isel(layer=-1)
    decoded = result.attrs.get("decoded", "number")
    meant = "a number" if decoded == "number" else "a word of steps or answers"
    steps = [f"step {step}" for step in last["step"].values[:-1]]
    most = [*map(str, last["n_inner"].max("position").values[: len(steps)])] if "n_inner" in last else []
    of_most = f" (n up to {', '.join(most)})" if most else ""
    positions = [last.sel(position=position) for position in last["position"].values]
    return [
        Table(
            title=f"{result.attrs['run']}: {result.attrs['lens']} lens, layer {int(last['layer'])},"
            f" {result.attrs['n_example']} examples",
            columns=[
                "fed at" if by == "fed" else "position",
                "n",
                decoded,
                "95%",
                "result",
                "of another",
                *steps,
                "last",
                "p(answer)",
            ],
            rows=[
                [
                    *relabelled([place["position"].item()], by, among=last["position"].values.tolist()),
                    int(place["n"]),
                    float(place["number_share"]),
                    range_text(place["number_share_low"], place["number_share_high"], ".3f"),
                    float(place["result_share"]),
                    float(place["control_share"]),
                    *map(float, place["inner_share"].values[: len(steps)]),
                    float(place["last_share"]),
                    float(place["gold_probability"]),
                ]
                for place in positions
                if int(place["n"]) > 0
            ],
            caption=f"shares of examples whose best token is {meant}; a result of the chain, or of another problem's; "
            f"of a step that is not the last, where its result is one token{of_most}; of the last step; probability of"
            " the answer's first token" + _not_found(result.attrs),
        )
    ]


def _not_found(attrs: Mapping[str, Any]) -> str:
    """How many results no state can read as; nothing where all can, or an older result does not say."""
    n, n_token = int(attrs.get("n_result", 0)), int(attrs.get("n_result_token", 0))
    return f"; of {n} results {n_token} are one token, the others are never found" if n_token < n else ""


def tuned_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How well a tuned lens does by layer."""
    names = ["r2", "r2_plain", "kl", "kl_plain", "agreement", "agreement_plain"]
    return [
        Table(
            title=f"{result.attrs['run']}: tuned lens, on problems it was not fitted on",
            columns=["layer", *names],
            rows=result[names].to_dataframe().reset_index().values.tolist(),
        )
    ]


def comparison_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """The lenses side by side where thoughts are fed, and at the layer that the Jacobian lens reads best."""
    names = [str(lens) for lens in result["lens"].values]
    best = result["result_share"].sel(lens="jacobian").mean("position").fillna(0).isel(layer=slice(1, None))
    layers = [-1, *([int(best["layer"].values[best.values.argmax()])] if best.sizes["layer"] else [])]
    steps = [f"step {step}" for step in result["step"].values[:-1]]
    rows = []
    for layer in layers:
        for position in result["position"].values:
            place = result.sel(layer=layer, position=position)
            for lens in [lens for lens in names if float(place["n"].sel(lens=lens).fillna(0)) > 0]:
                read = place.sel(lens=lens)
                figures = [read["inner_share"].values[: len(steps)], read["inner_reciprocal_rank"].values[: len(steps)]]
                rows.append([
                    layer_name(layer), str(position), lens, int(read["n"]), *map(float, figures[0]),
                    *map(float, figures[1]), float(read["calibration_error"]),
                ])  # fmt: skip
    return [
        Table(
            title=f"{result.attrs['run']}: lenses, states read as {result.attrs['target']},"
            f" {result.attrs['n_example']} problems held out",
            columns=["layer", "position", "lens", "n", *steps, *(f"1/rank {step}" for step in steps), "calibration"],
            rows=rows,
            caption="shares of examples whose best token is the result of a step that is not the last; mean of 1 / rank"
            " of that result; how far the best token's probability is from how often it is a result. jacobian, rotated:"
            " the control, Jacobians of the same size in other directions",
        )
    ]


def edit_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Of each thought that was edited, by the method whose edits are followed most: readings and edits together."""
    rows = []
    for index in best_methods(result):
        for lens in result["lens"].values:
            one = result.isel(edit=index).sel(lens=lens)
            shares = [float(one[name]) for name in ("read_share", "follow_share", "agreement")]
            bounds = range_text(one["agreement_low"], one["agreement_high"], ".3f")
            rows.append([
                layer_name(one["layer"]), str(one["position"].item()),
                int(one["step"]), str(one["method"].item()), str(lens), int(one["n"]), *shares, bounds,
                float(one["chance"]), or_dash(one["difference"], "+.3f"),
            ])  # fmt: skip
    return [
        Table(
            title=f"{result.attrs['run']}: lenses beside edits, {result.attrs['n_example']} problems that both have",
            columns=["layer", "position", "step", "edited by", "lens", "n", "named", "edit followed", "agree", "95%",
                     "by chance", "followed more where named"],
            rows=rows,
            caption="named: the best token is the result of the step; edit followed: the answer is what the rest of the"
            " chain makes of the value written; agree: both or neither, problem by problem, and what such shares give"
            " by chance",
        )
    ]  # fmt: skip


def best_methods(result: Any) -> list[int]:
    """Of each place and step the edit that is followed most often, by its number."""
    followed = result["follow_share"].isel(lens=0).fillna(-1).values
    best: dict[tuple[Any, ...], int] = {}
    for index in sorted(range(result.sizes["edit"]), key=lambda method: followed[method]):
        best[tuple(result[name].values[index] for name in ("layer", "position", "step"))] = index
    return sorted(best.values())


def thought_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How far each lens is from the model's own distribution at each thought, beside the thought's own lens."""
    from analyze.lens.thoughts import shown_layer

    one = result.isel(layer=shown_layer(result))
    positions = [str(position) for position in one["position"].values]
    return [
        Table(
            title=f"{result.attrs['run']}: tuned lenses of thoughts, layer {int(one['layer'])},"
            f" {result.attrs['n_example']} problems held out: {text}",
            columns=["fitted on", *(f"read at {position}" for position in positions)],
            rows=[[str(fit), *map(float, one[name].sel(fit=fit).values)] for fit in one["fit"].values],
            caption=caption,
            labels=1,
        )
        for name, text, caption in (
            ("kl", "divergence (nat)", "from the model's own distribution; --json has intervals and other layers"),
            ("agreement", "same best token", "share of problems in which lens and model have the same best token"),
        )
    ]


def nothing(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Tests are for the figures and for Python; the command prints no table of them."""
    return []


def frames(kind: str, result: Any) -> dict[str, Any]:
    """Tidy tables, without the maps of a tuned lens."""
    from analyze.tables import result_tables

    return result_tables(result.drop_dims("hidden", errors="ignore"))


COMMAND = Analysis(
    name="lens",
    help="Read every state out: numbers, results of the written chain, the answer, by layer and position.",
    settings=LensSettings,
    run=run,
    results={
        "lens": tables,
        "lens_tests": nothing,
        "tuned_lens": tuned_tables,
        "thought_lenses": thought_tables,
        "lens_comparison": comparison_tables,
        "lens_edits": edit_tables,
    },
    made_by={
        "tuned_lens": "--lens tuned",
        "thought_lenses": "--lens tuned",
        "lens_comparison": "--lens jacobian",
        "lens_edits": "--lens jacobian",
    },
    frames=frames,
    cost=cost,
    block=512,
    stopped=kept_beside("lens"),
)
