"""Sections of experiments that went back into the model: ablation, corruption, patching, heads, edges, steering."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.report import figures as draw
from analyze.report.content import Column, Context, Found, Illustration, Panel, Section, Table, listed, share

UNTOUCHED = "untouched"
GROUP_LOOKS: dict[str, dict[str, str]] = {
    "numbers": {"label": "thoughts that read as numbers", "colour": draw.HEAT, "hatch": ""},
    "others": {"label": "the other thoughts", "colour": draw.HEAT_NEGATIVE, "hatch": "////"},
    "random like numbers": {"label": "as many at random", "colour": draw.MUTED, "hatch": "...."},
    "all": {"label": "all thoughts", "colour": draw.INK, "hatch": "xxxx"},
}
TESTED = (
    "p-values are exact McNemar tests against the untouched run on the same problems, Holm-corrected over the sweep."
)


def conditions(data: xr.Dataset) -> pd.DataFrame:
    """One row for each condition: its coordinates, and every figure of all problems together."""
    part = data.sel(stratum="all") if "stratum" in data.dims else data
    names = [name for name, variable in part.variables.items() if variable.dims == ("condition",)]
    frame = pd.DataFrame({str(name): part[name].values for name in names})
    frame.index = pd.RangeIndex(len(frame))
    if "control" not in frame:
        frame["control"] = ""
    frame["control"] = frame["control"].fillna("").astype(str)
    if "layer" in frame:
        frame["layer"] = pd.to_numeric(frame["layer"], errors="coerce").fillna(-1).astype(int)
    return frame


def re_entries(context: Context, *kinds: str) -> list[Found]:
    """Results of a re-entry, whose conditions lie along one dim, under any of its names."""
    for kind in kinds:
        found = [each for each in context.find(kind) if "condition" in each.data.dims]
        if found:
            return found
    return []


def place_name(site: Any, layer: Any) -> str:
    """Where an intervention was made, in a few words."""
    if str(site) == "latent_embedding":
        return "fed vector"
    return "all layers" if int(layer) < 0 else f"layer {int(layer)}"


def with_place(frame: pd.DataFrame) -> pd.DataFrame:
    """A column that names site and layer; nothing where the conditions have none."""
    frame = frame.copy()
    if "site" in frame:
        frame["place"] = [place_name(s, layer) for s, layer in zip(frame["site"], frame["layer"], strict=True)]
    return frame


def untouched(frame: pd.DataFrame) -> pd.Series:
    """The row of the run as it was."""
    named = frame[frame["condition"].astype(str) == UNTOUCHED]
    return named.iloc[0] if len(named) else frame.iloc[0]


def places_of(frame: pd.DataFrame) -> list[str]:
    """Places in order: the fed vectors, each layer, all layers."""
    names = list(dict.fromkeys(frame["place"]))
    return sorted(
        names, key=lambda n: (n != "fed vector", n == "all layers", int(n.split()[1]) if n.startswith("layer") else 0)
    )


def self_control(frame: pd.DataFrame) -> str:
    """Whether putting a value in its own place changed anything."""
    own = frame[frame["control"].str.startswith("self")]
    if not len(own) or "kl_mean" not in own:
        return ""
    worst = float(own["kl_mean"].abs().max())
    changed = int((own["broken"] + own["mended"]).sum()) if {"broken", "mended"} <= set(own) else 0
    return f"{changed} changed answers, largest mean KL {worst:.1g} nats"


def accuracy_columns(extra: Sequence[Column]) -> list[Column]:
    """Columns that every table of ablations ends with."""
    return [
        Column(label="Run", key="run", kind="text"),
        *extra,
        Column(label="n", key="n", kind="count"),
        Column(label="Correct", key="accuracy", kind="share", low="accuracy_low", high="accuracy_high"),
        Column(label="Untouched", key="untouched_accuracy", kind="share"),
        Column(
            label="Right that turn wrong", key="importance", kind="share", low="importance_low", high="importance_high"
        ),
        Column(label="p", key="p_holm", kind="p"),
    ]


def control_note(found: Iterable[Found]) -> list[str]:
    """The control in which each value replaces itself, for every run."""
    notes = [(each.look.label, self_control(conditions(each.data))) for each in found]
    notes = [(label, note) for label, note in notes if note]
    if not notes:
        return []
    return ["Control, each value replaced by itself: " + "; ".join(f"{label} {note}" for label, note in notes) + "."]


def group_look(group: str) -> draw.Look:
    """How a group of thoughts is drawn."""
    look = GROUP_LOOKS[group]
    return draw.Look(label=look["label"], colour=look["colour"], marker="o", dashed=False, hatch=look["hatch"])


def ablation_panel(each: Found, part: pd.DataFrame, base: float, operation: str) -> Panel:
    """Accuracy by place for each group of thoughts."""
    places = places_of(part)
    made, ax = draw.figure(4.6, 3.1)
    groups = [g for g in GROUP_LOOKS if (part["group"] == g).any()]
    width = 0.84 / max(1, len(groups))
    for index, group in enumerate(groups):
        line = part[part["group"] == group].drop_duplicates("place").set_index("place").reindex(places)
        look = group_look(group)
        x = np.arange(len(places)) + (index - (len(groups) - 1) / 2) * width
        ax.bar(
            x,
            line["accuracy"],
            width * 0.92,
            facecolor=look.colour if not look.hatch else draw.PAPER,
            edgecolor=look.colour,
            hatch=look.hatch,
            linewidth=1,
            label=look.label,
        )
        draw.whiskers(ax, x, line["accuracy"], line["accuracy_low"], line["accuracy_high"])
    ax.axhline(base, color=draw.INK, linewidth=1, linestyle=(0, (2, 2)))
    ax.set_xticks(np.arange(len(places)), places)
    if len(places) > 6:
        ax.tick_params(axis="x", labelrotation=60, labelsize=7.5)
    ax.set_ylim(0, 1.03)
    draw.as_percent(ax)
    draw.faint_grid(ax)
    ax.set_title(f"{each.look.label}, {operation}")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1 if len(places) <= 6 else -0.25), ncols=2, fontsize=7.5)
    return Panel(name=f"position_ablation_{operation}_{each.run}", figure=made)


def position_ablation(context: Context) -> Section | None:
    """Number-carrying thoughts against the others."""
    found = re_entries(context, "ablate")
    if not found:
        return None
    drawn: dict[str, list[Panel]] = {"mean": [], "zero": []}
    lines, tables, not_counted = [], [], []
    for each in found:
        frame = with_place(conditions(each.data))
        base = untouched(frame)
        kept = frame[
            frame["group"].isin(GROUP_LOOKS) & ((frame["control"] == "") | frame["group"].str.startswith("random"))
        ]
        kept = kept[kept["condition"].astype(str) != UNTOUCHED]
        tables.append(kept.assign(run=each.look.label))
        operations = [o for o in drawn if (kept["operation"] == o).any()]
        for operation in operations:
            part = kept[kept["operation"] == operation]
            drawn[operation].append(ablation_panel(each, part, float(base["accuracy"]), operation))
        part = kept[kept["operation"] == operations[0]]
        place = places_of(part)[0]
        at = part[part["place"] == place].drop_duplicates("group").set_index("group")["accuracy"]
        said = [
            f"{words} {share(float(at[group]))}"
            for group, words in (
                ("numbers", "without the thoughts that read as numbers"),
                ("others", "without the others"),
                ("random like numbers", "without as many at random"),
            )
            if group in at
        ]
        how = "set to their mean" if operations[0] == "mean" else "zeroed"
        lines.append(
            (each.look.label, f"untouched {share(float(base['accuracy']))}; {', '.join(said)} ({how} at the {place}s)")
        )
        if "share_not_counted" in each.data:
            worst = float(np.nanmax(each.data["share_not_counted"].values))
            if worst > 0:
                not_counted.append(f"{each.look.label} up to {share(worst)}")
    frame = pd.concat(tables, ignore_index=True)
    caveats = [
        "Each row is compared with the untouched run on the same problems: those that have such thoughts."
        + (f" Left out for having none: {'; '.join(not_counted)}." if not_counted else ""),
        TESTED,
        *control_note(found),
        "Report 000 found a collapse to 0–4% in every condition. For GPT-2 its hook rewrote every generated "
        "token as well; for LLaMA "
        "labels and questions came from different problems.",
    ]
    return Section(
        headline="What is left when the thoughts that read as numbers are taken out, and when the others are.",
        lines=lines,
        method="In each problem the thoughts whose state reads as a number are replaced (by zero, or by the "
        "position's mean); nothing else is "
        "touched, and what follows is computed from the changed state. Beside it, as many thoughts drawn at random.",
        illustrations=[
            Illustration(
                name=f"position_ablation_{operation}",
                caption=f"Accuracy after {words}, by where it is done: at the vectors fed in, at one "
                f"layer's output, or at all layers at once. "
                "Dashed line: untouched. Thin lines are 95% Wilson intervals." + note,
                panels=drawn[operation],
            )
            for operation, words, note in (
                ("mean", "setting thoughts to their mean over the run", ""),
                (
                    "zero",
                    "zeroing thoughts",
                    " A zero vector is far from anything the model ever sees, so this breaks more than the "
                    "thought's content.",
                ),
            )
            if drawn[operation]
        ],
        tables=[
            Table(
                name="position_ablation",
                caption="Accuracy under each ablation.",
                frame=frame,
                columns=accuracy_columns(
                    [
                        Column(label="Where", key="place", kind="text"),
                        Column(label="How", key="operation", kind="text"),
                        Column(label="Which", key="group", kind="text"),
                    ]
                ),
                limit=16,
            )
        ],
        caveats=caveats,
        sources=[each.result for each in found],
    )


def token_ablation(context: Context) -> Section | None:
    """Importance of each thought under every corruption."""
    found = re_entries(context, "corrupt")
    if not found:
        return None
    panels, lines, tables, series = [], [], [], []
    thoughts: list[str] = []
    for each in found:
        frame = with_place(conditions(each.data))
        kept = frame[(frame["control"] == "") & (frame["condition"].astype(str) != UNTOUCHED)]
        thoughts = [g for g in dict.fromkeys(kept["group"].astype(str)) if g.startswith("ct") or g == "bot"]
        corruptions = [c for c in dict.fromkeys(kept["corruption"].astype(str)) if c not in ("shuffle", "replace")]
        columns = [*thoughts, *(["all"] if (kept["group"] == "all").any() else [])]
        grid = kept.pivot_table(index="corruption", columns="group", values="importance", sort=False).reindex(
            index=corruptions, columns=columns
        )
        made, ax = draw.figure(4.6, 0.9 + 0.29 * len(corruptions))
        draw.heat_map(ax, 100 * grid.to_numpy(), corruptions, columns, high=100, text="{:.0f}")
        ax.set_title(each.look.label)
        panels.append(Panel(name=f"corruption_{each.run}", figure=made))
        shown_as = "mean" if "mean" in grid.index else corruptions[0]
        zero = kept[(kept["corruption"] == shown_as)].drop_duplicates("group").set_index("group").reindex(thoughts)
        series.append(
            (each.look, *(zero[c].to_numpy(dtype=float) for c in ("importance", "importance_low", "importance_high")))
        )
        order = grid.loc["mean" if "mean" in grid.index else corruptions[0], thoughts].sort_values(ascending=False)
        high = [f"{name} {share(value, 0)}" for name, value in order.items() if value >= 0.1]
        low = [str(name) for name, value in order.items() if value < 0.1]
        lines.append(
            (
                each.look.label,
                (", ".join(high) if high else "no thought alone turns a tenth of the answers wrong")
                + (f"; under 10%: {listed(low)}" if high and low else ""),
            )
        )
        tables.append(kept.assign(run=each.look.label))
    made, ax = draw.figure(9.2, 2.9)
    draw.bars(ax, thoughts, [item for item in series if len(item[1]) == len(thoughts)])
    ax.set_ylim(0, 1.03)
    draw.as_percent(ax)
    ax.set_ylabel("right answers that turn wrong")
    draw.legend_above(ax, 4)
    return Section(
        headline="Share of right answers that turn wrong when one thought is replaced by its mean over the run.",
        lines=lines,
        method="One thought at a time is zeroed, set to its mean, drowned in noise of its own spread, or "
        "exchanged for another problem's; the later "
        "ones follow from what that leaves. Importance is P(wrong after | right before).",
        illustrations=[
            Illustration(
                name="importance_by_position",
                caption="Importance of each thought when it is set to its mean over the run, with 95% "
                "Wilson intervals.",
                panels=[Panel(name="importance_by_position", figure=made, wide=True)],
            ),
            Illustration(
                name="corruption",
                caption="Importance in percent for every way of corrupting (rows) each thought, and all at "
                "once (columns). “noise s”: Gaussian with s "
                "times the position's own standard deviation.",
                panels=panels,
            ),
        ],
        tables=[
            Table(
                name="token_ablation",
                caption="Each thought under each corruption.",
                frame=pd.concat(tables, ignore_index=True),
                columns=accuracy_columns(
                    [
                        Column(label="Corruption", key="corruption", kind="text"),
                        Column(label="Thought", key="group", kind="text"),
                    ]
                ),
                limit=14,
            )
        ],
        caveats=[
            TESTED,
            *control_note(found),
            "Accuracy may fall less than importance says, as some wrong answers turn right. Reports 001 and "
            "003 quoted the two interchangeably.",
        ],
        sources=[each.result for each in found],
    )


def outcome_share(data: xr.Dataset, frame: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """Rows with the share of one outcome and its interval."""
    kind = "outcome_kind" if "outcome_kind" in data.dims else "outcome"
    part = data.sel({kind: outcome})
    short = outcome.removesuffix("_answer")
    return frame.assign(
        **{
            short: part["share"].values,
            f"{short}_low": part["share_low"].values,
            f"{short}_high": part["share_high"].values,
        }
    )


def patched(context: Context) -> list[tuple[Found, pd.DataFrame]]:
    """Results of patching with the shares of their outcomes."""
    ready = []
    for each in re_entries(context, "patch"):
        frame = with_place(conditions(each.data))
        for outcome in ("clean_answer", "corrupted_answer", "other", "gibberish"):
            frame = outcome_share(each.data, frame, outcome)
        ready.append((each, frame))
    return ready


def pairs_note(found: Iterable[Found]) -> str:
    """How many pairs count, and why others do not."""
    parts = []
    for each in found:
        a = each.data.attrs
        if "n_pair" in a:
            parts.append(
                f"{each.look.label}: {a.get('n_counted')} of {a['n_pair']} pairs count "
                f"({a.get('n_same_answer', 0)} have the same answer twice, "
                f"{a.get('n_not_both_right', 0)} are not both answered rightly)"
            )
    return "; ".join(parts) + "." if parts else ""


OUTCOME_COLUMNS = [
    Column(label="Clean answer", key="clean", kind="share", low="clean_low", high="clean_high"),
    Column(label="Corrupted answer", key="corrupted", kind="share", low="corrupted_low", high="corrupted_high"),
    Column(label="Other", key="other", kind="share"),
    Column(label="Gibberish", key="gibberish", kind="share"),
    Column(label="Recovery", key="recovery", low="recovery_low", high="recovery_high"),
    Column(label="p", key="p_holm", kind="p"),
]


def single_patching(context: Context) -> Section | None:
    """One position at a time."""
    ready = patched(context)
    if not ready:
        return None
    panels, lines, tables = [], [], []
    for each, frame in ready:
        one = frame[(frame["kind"] == "one") & (frame["control"] == "")]
        if one.empty:
            continue
        grid = one.pivot_table(index="place", columns="positions", values="clean", sort=False)
        columns = [c for c in ("bot", *(f"ct{i}" for i in range(32)), "eot") if c in grid.columns]
        grid = grid.reindex(index=places_of(one), columns=columns)
        made, ax = draw.figure(4.6, 0.9 + 0.3 * len(grid))
        draw.heat_map(ax, 100 * grid.to_numpy(), list(grid.index), columns, high=100, text="{:.0f}")
        ax.set_title(each.look.label)
        panels.append(Panel(name=f"single_patching_{each.run}", figure=made))
        best = one.loc[one["clean"].idxmax()]
        lines.append(
            (
                each.look.label,
                f"at most {share(float(best['clean']))} [{share(float(best['clean_low']))}, "
                f"{share(float(best['clean_high']))}] give the clean "
                f"answer, with {best['positions']} patched at {best['place']}",
            )
        )
        tables.append(one.assign(run=each.look.label))
    if not tables:
        return None
    found = [each for each, _ in ready]
    return Section(
        headline="How often one clean thought, put into the corrupted problem, brings the clean answer.",
        lines=lines,
        method="For pairs of problems that differ in one number, and of which the model answers both "
        "rightly, the state of one position in the clean "
        "problem replaces that of the corrupted one; everything after is computed anew.",
        illustrations=[
            Illustration(
                name="single_patching",
                caption="Percentage of pairs answered as the clean problem after patching one position "
                "(columns) at one place (rows).",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="single_patching",
                caption="Outcomes after patching one position. Recovery: 0 as untouched, 1 as the clean "
                "problem itself (logit difference).",
                frame=pd.concat(tables, ignore_index=True),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Where", key="place", kind="text"),
                    Column(label="Position", key="positions", kind="text"),
                    *OUTCOME_COLUMNS,
                ],
                limit=14,
            )
        ],
        caveats=[
            pairs_note(found),
            "Report 002's single-token patching was of the position bot, and of the last question token "
            "with it; its activations were read one block "
            "earlier than they were written. " + TESTED,
        ],
        sources=[each.result for each in found],
    )


def several_patching(context: Context) -> Section | None:
    """The first N thoughts, and the N at which the donor wins."""
    ready = patched(context)
    if not ready:
        return None
    panels, lines, tables, winners = [], [], [], []
    for each, frame in ready:
        first = frame[frame["kind"] == "first"]
        own = first[first["control"] == ""]
        if own.empty:
            continue
        places = places_of(own)
        place = places[0]
        made, ax = draw.figure(4.6, 2.9)
        line = own[own["place"] == place].sort_values("n")
        n = line["n"].to_numpy(dtype=float)
        for name, label, style in (("clean", "clean answer", "-"), ("corrupted", "corrupted answer", (0, (4, 2)))):
            colour = draw.HEAT if name == "clean" else draw.HEAT_NEGATIVE
            ax.plot(n, line[name], color=colour, linestyle=style, marker="o" if name == "clean" else "s", label=label)
            ax.fill_between(
                n,
                line[f"{name}_low"].astype(float),
                line[f"{name}_high"].astype(float),
                color=colour,
                alpha=0.13,
                linewidth=0,
            )
        random = first[(first["control"] == "random donor") & (first["place"] == place)].sort_values("n")
        if len(random):
            ax.plot(
                random["n"],
                random["clean"],
                color=draw.MUTED,
                linestyle=":",
                marker="^",
                label="clean answer, random donor",
            )
        ax.set_ylim(-0.02, 1.03)
        ax.set_xlim(0.7, max(n) + 0.3)
        draw.as_percent(ax)
        draw.faint_grid(ax)
        ax.set_xlabel("first thoughts patched")
        ax.set_title(f"{each.look.label}, {place}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7.5)
        panels.append(Panel(name=f"several_patching_{each.run}", figure=made))
        data = each.data
        if "n_that_wins" in data:
            named = [
                place_name(s, layer)
                for s, layer in zip(data["series_site"].values, data["series_layer"].values, strict=True)
            ]
            for i, where in enumerate(named):
                winners.append(
                    {
                        "run": each.look.label,
                        "place": where,
                        "n": float(data["n_that_wins"].values[i]),
                        "low": float(data["n_that_wins_low"].values[i]),
                        "high": float(data["n_that_wins_high"].values[i]),
                        "never": float(data["never_wins"].values[i]),
                    }
                )
            at = winners[-len(named) + named.index(place)] if place in named else winners[-1]
            wins = (
                f"the donor wins from N = {at['n']:.0f} [{at['low']:.0f}, {at['high']:.0f}]"
                if np.isfinite(at["n"])
                else "the donor never wins"
            )
        else:
            wins = ""
        last = line.iloc[-1]
        lines.append(
            (
                each.look.label,
                f"{wins}; with all {last['n']:.0f}, {share(float(last['clean']))} clean and "
                f"{share(float(last['corrupted']))} corrupted answers ({place})",
            )
        )
        tables.append(own.assign(run=each.look.label))
    if not tables:
        return None
    found = [each for each, _ in ready]
    shown = [
        Table(
            name="several_patching",
            caption="Outcomes after patching the first N thoughts.",
            frame=pd.concat(tables, ignore_index=True),
            columns=[
                Column(label="Run", key="run", kind="text"),
                Column(label="Where", key="place", kind="text"),
                Column(label="N", key="n", kind="count"),
                *OUTCOME_COLUMNS,
            ],
            limit=12,
        )
    ]
    if winners:
        shown.insert(
            0,
            Table(
                name="n_that_wins",
                caption="The smallest N from which on the clean answer is more frequent than the corrupted "
                "one, with its bootstrap interval over pairs "
                "(among the resamples in which it wins), and the share of resamples in which it never does.",
                frame=pd.DataFrame(winners),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Where", key="place", kind="text"),
                    Column(label="N", key="n", kind="count", low="low", high="high"),
                    Column(label="Never wins", key="never", kind="share"),
                ],
            ),
        )
    return Section(
        headline="How many of the first thoughts it takes until the donor's answer wins.",
        lines=lines,
        method="As before, with the first N thoughts of the clean problem at once. Beside it the same with "
        "thoughts of a random other problem.",
        illustrations=[
            Illustration(
                name="several_patching",
                caption="Share of pairs answered as the clean and as the corrupted problem (y), by the "
                "number of first thoughts patched (x). Shades are 95% "
                "Wilson intervals; dotted, the clean answer with a random donor's thoughts.",
                panels=panels,
            )
        ],
        tables=shown,
        caveats=[
            pairs_note(found),
            "Report 002's “GPT-2 breaks at 6 of 6” was its hook overwriting the end-of-thought token and "
            "every generated one.",
        ],
        sources=[each.result for each in found],
    )


SET_NAMES = {
    "numbers": "those that read as numbers",
    "others": "those that do not",
    "random like numbers": "as many at random",
}


def set_name(positions: Any) -> str:
    """A set of thoughts in words."""
    return SET_NAMES.get(str(positions), str(positions).replace("+", " "))


def subset_patching(context: Context) -> Section | None:
    """Chosen subsets of thoughts, and those that carry numbers."""
    ready = patched(context)
    tables, lines = [], []
    for each, frame in ready:
        part = frame[
            frame["kind"].isin(["named", "subset", "carrying"]) & frame["control"].isin(["", "random positions"])
        ]
        if part.empty:
            continue
        place = places_of(part)[0]
        at = part[part["place"] == place]
        best = at.loc[at["clean"].idxmax()]
        lines.append(
            (
                each.look.label,
                f"best: {set_name(best['positions'])}, with {share(float(best['clean']))} clean answers ({place})",
            )
        )
        tables.append(part.assign(run=each.look.label))
    if not tables:
        return None
    found = [each for each, _ in ready]
    panels = []
    for each, frame in ready:
        part = frame[
            frame["kind"].isin(["named", "subset", "carrying"]) & frame["control"].isin(["", "random positions"])
        ]
        if part.empty:
            continue
        part = part[part["place"] == places_of(part)[0]].sort_values("clean", ascending=False).head(14)
        made, ax = draw.figure(4.6, 0.8 + 0.28 * len(part))
        y = np.arange(len(part))
        ax.barh(y, part["clean"], height=0.68, **{k: v for k, v in each.look.bar().items() if k != "label"})
        ax.hlines(y, part["clean_low"].astype(float), part["clean_high"].astype(float), color=draw.INK, linewidth=1)
        ax.set_yticks(y, [set_name(p) for p in part["positions"]])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.03)
        draw.as_percent(ax, "x")
        draw.faint_grid(ax, "x")
        ax.tick_params(axis="y", length=0)
        ax.set_title(each.look.label)
        panels.append(Panel(name=f"subset_patching_{each.run}", figure=made))
    return Section(
        headline="Which sets of thoughts carry the clean answer over.",
        lines=lines,
        method="Chosen subsets of the clean problem's thoughts, and in each pair those that read as "
        "numbers, those that do not, and as many at random.",
        illustrations=[
            Illustration(
                name="subset_patching",
                caption="Share of pairs answered as the clean problem, for each set of thoughts patched at "
                "the vectors fed in, with 95% Wilson intervals.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="subset_patching",
                caption="Outcomes after patching sets of thoughts.",
                frame=pd.concat(tables, ignore_index=True),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Where", key="place", kind="text"),
                    Column(label="Thoughts", key="positions", kind="text"),
                    *OUTCOME_COLUMNS,
                ],
                limit=10,
            )
        ],
        caveats=[pairs_note(found)],
        sources=[each.result for each in found],
    )


def head_ablation(context: Context) -> Section | None:
    """Heads alone, the top together, random ones beside them."""
    found = re_entries(context, "ablate_heads")
    if not found:
        return None
    panels, maps, lines, tables = [], [], [], []
    for each in found:
        frame = conditions(each.data)
        base = untouched(frame)
        frame = frame[frame["condition"].astype(str) != UNTOUCHED].copy()
        group = frame["group"].astype(str)
        # the coordinate n, how many heads, gives way to the number of examples; the group's name has both
        frame["count"] = pd.to_numeric(group.str.extract(r"^(?:top|random) (\d+)")[0], errors="coerce")
        top = (
            frame[group.str.startswith("top") & (frame["control"] == "")].drop_duplicates("count").sort_values("count")
        )
        random = (
            frame[group.str.startswith("random")].groupby("count")["accuracy"].agg(["mean", "min", "max"]).reset_index()
        )
        made, ax = draw.figure(4.6, 2.8)
        n = top["count"].to_numpy(dtype=float)
        ax.plot(n, top["accuracy"], **(each.look.line() | {"label": "highest-ranked heads"}))
        ax.vlines(
            n,
            top["accuracy_low"].astype(float),
            top["accuracy_high"].astype(float),
            color=each.look.colour,
            linewidth=1,
        )
        if len(random):
            x = random["count"].to_numpy(dtype=float)
            ax.plot(x, random["mean"], color=draw.MUTED, linestyle=":", marker="^", label="as many at random (range)")
            ax.fill_between(x, random["min"], random["max"], color=draw.MUTED, alpha=0.18, linewidth=0)
        ax.axhline(float(base["accuracy"]), color=draw.INK, linewidth=1, linestyle=(0, (2, 2)))
        ax.set_ylim(-0.02, 1.03)
        draw.as_percent(ax)
        draw.faint_grid(ax)
        ax.set_xlabel("heads zeroed together")
        ax.set_title(each.look.label)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7.5)
        panels.append(Panel(name=f"head_ablation_{each.run}", figure=made))
        alone = frame[group.str.fullmatch(r"L\d+H\d+") & (frame["control"] == "")]
        if len(alone):
            grid = alone.pivot_table(index="layer", columns="head", values="drop")
            made, ax = draw.figure(4.6, 0.9 + 0.3 * len(grid))
            small = grid.shape[1] <= 12
            draw.heat_map(
                ax, 100 * grid.to_numpy(), [f"layer {x}" for x in grid.index], [f"H{int(x)}" for x in grid.columns],
                high=max(5.0, 100 * float(np.nanmax(np.abs(grid.to_numpy())))), text="{:.0f}" if small else None,
            )  # fmt: skip
            ax.set_title(each.look.label)
            maps.append(Panel(name=f"head_ablation_alone_{each.run}", figure=made))
            worst = alone.loc[alone["drop"].idxmax()]
            text = f"alone, {worst['group']} costs most: {share(float(worst['drop']))} of all answers"
        else:
            text = ""
        if len(top):
            some = top.iloc[min(1, len(top) - 1)]
            same = random[random["count"] == some["count"]]
            text += (
                f"{'; ' if text else ''}without the top {some['count']:.0f}, {share(float(some['accuracy']))} are right"
                + (
                    f" (without {some['count']:.0f} random ones, {share(float(same['mean'].iloc[0]))})"
                    if len(same)
                    else ""
                )
            )
        lines.append((each.look.label, text))
        tables.append(frame[(frame["control"] == "") | group.str.startswith("random")].assign(run=each.look.label))
    illustrations = [
        Illustration(
            name="head_ablation",
            caption="Accuracy after zeroing the highest-ranked heads together (x), with 95% Wilson "
            "intervals, and after zeroing as many drawn at random "
            "(mean and range of the draws). Dashed: untouched.",
            panels=panels,
        )
    ]
    if maps:
        illustrations.append(
            Illustration(
                name="head_ablation_alone",
                caption="Percentage points of accuracy lost when one head is zeroed, by layer and head; a "
                "negative number is a gain.",
                panels=maps,
            )
        )
    return Section(
        headline="Whether the heads that score highest are those the answer needs.",
        lines=lines,
        method="A head is cut where it is one: its own output before the output projection is set to zero, "
        "at bot, the thoughts and eot only.",
        illustrations=illustrations,
        tables=[
            Table(
                name="head_ablation",
                caption="Accuracy without some heads.",
                frame=pd.concat(tables, ignore_index=True),
                columns=accuracy_columns([Column(label="Heads", key="group", kind="text")]),
                limit=12,
            )
        ],
        caveats=[
            TESTED,
            *control_note(found),
            "Report 004's “59% to 0%” came from a harness that could read no number from any answer and "
            "sliced the projection's output, where there are "
            "no heads.",
        ],
        sources=[each.result for each in found],
    )


def edge_ablation(context: Context) -> Section | None:
    """Attention edges cut or forced."""
    found = re_entries(context, "edges", "cut_edges")
    if not found:
        return None
    panels, lines, tables = [], [], []
    for each in found:
        frame = conditions(each.data)
        base = untouched(frame)
        kept = frame[
            (frame["condition"].astype(str) != UNTOUCHED) & frame["control"].isin(["", "random edges"])
        ].drop_duplicates("group")
        single = kept[~kept["group"].astype(str).str.contains("+", regex=False)]
        made, ax = draw.figure(4.6, 0.8 + 0.25 * len(single))
        y = np.arange(len(single))
        ax.barh(y, single["accuracy"], height=0.68, **{k: v for k, v in each.look.bar().items() if k != "label"})
        ax.hlines(
            y, single["accuracy_low"].astype(float), single["accuracy_high"].astype(float), color=draw.INK, linewidth=1
        )
        ax.axvline(float(base["accuracy"]), color=draw.INK, linewidth=1, linestyle=(0, (2, 2)))
        ax.set_yticks(y, [str(g) for g in single["group"]])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.03)
        draw.as_percent(ax, "x")
        draw.faint_grid(ax, "x")
        ax.tick_params(axis="y", length=0)
        ax.set_title(each.look.label)
        panels.append(Panel(name=f"edge_ablation_{each.run}", figure=made))
        by = kept.set_index("group")["accuracy"]
        parts = [
            f"{name} {share(float(by[name]))}"
            for name in ("hub cut", "sequence cut", "thoughts cut from answer", "question cut from answer")
            if name in by
        ]
        lines.append(
            (
                each.look.label,
                f"untouched {share(float(base['accuracy']))}; "
                + ", ".join(parts)
                + (f" (hub: {each.data.attrs['hub']})" if "hub" in each.data.attrs else ""),
            )
        )
        tables.append(kept.assign(run=each.look.label))
    frame = pd.concat(tables, ignore_index=True)
    extra = [Column(label="Edges", key="group", kind="text")]
    columns = accuracy_columns(extra)
    if "additive_drop" in frame:
        columns += [
            Column(label="Drop", key="drop", kind="points"),
            Column(label="Sum of its single cuts", key="additive_drop", kind="points"),
        ]
    return Section(
        headline="What happens to the answer when the hub, the sequence or the thoughts are cut off.",
        lines=lines,
        method="An edge is the attention of one query to one key, in every layer and head; a cut edge's "
        "weight is shared out over the rest of its row. "
        "“hub forced”: later thoughts see nothing but the hub.",
        illustrations=[
            Illustration(
                name="edge_ablation",
                caption="Accuracy with some edges cut, with 95% Wilson intervals. Dashed: untouched. "
                "“random edges”: as many as the hub has, drawn at random.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="edge_ablation",
                caption="Accuracy with edges cut. Drops are percentage points; for sets of thoughts, beside "
                "the sum of the single cuts' drops.",
                frame=frame,
                columns=columns,
                limit=18,
            )
        ],
        caveats=[
            TESTED,
            *control_note(found),
            "Report 004's masks were inverted or one too long: its causal control, which must change "
            "nothing, changed accuracy.",
        ],
        sources=[each.result for each in found],
    )


def steering(context: Context) -> Section | None:
    """Accuracy along a direction, beside random ones."""
    found = re_entries(context, "steer")
    if not found:
        return None
    panels, lines, tables = [], [], []
    for each in found:
        frame = conditions(each.data)
        base = untouched(frame)
        kept = frame[(frame["condition"].astype(str) != UNTOUCHED) & ~frame["control"].str.startswith("self")].copy()
        kept["strength"] = kept["strength"].astype(float)
        names = list(dict.fromkeys(kept["direction"].astype(str)))
        real = [n for n in names if not n.startswith("random")]
        made, ax = draw.figure(4.6, 2.8)
        random = (
            kept[kept["direction"].astype(str).str.startswith("random")]
            .groupby("strength")["accuracy"]
            .agg(["mean", "min", "max"])
            .reset_index()
        )
        if len(random):
            ax.plot(
                random["strength"],
                random["mean"],
                color=draw.MUTED,
                linestyle=":",
                marker="^",
                label="random directions (range)",
            )
            ax.fill_between(random["strength"], random["min"], random["max"], color=draw.MUTED, alpha=0.18, linewidth=0)
        for index, name in enumerate(real):
            line = kept[kept["direction"] == name].groupby("strength", as_index=False).first().sort_values("strength")
            colour = draw.PALETTE[index % len(draw.PALETTE)]
            ax.plot(line["strength"], line["accuracy"], color=colour, marker=draw.MARKERS[index % 4], label=name)
            ax.vlines(
                line["strength"],
                line["accuracy_low"].astype(float),
                line["accuracy_high"].astype(float),
                color=colour,
                linewidth=1,
            )
        ax.axhline(float(base["accuracy"]), color=draw.INK, linewidth=1, linestyle=(0, (2, 2)))
        ax.set_ylim(-0.02, 1.03)
        draw.as_percent(ax)
        draw.faint_grid(ax)
        ax.set_xlabel("strength, in norms of the difference of means" if "correct" in " ".join(real) else "strength")
        ax.set_title(each.look.label)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7.5)
        panels.append(Panel(name=f"steering_{each.run}", figure=made))
        own = kept[kept["direction"].isin(real)]
        best, worst = own.loc[own["accuracy"].idxmax()], own.loc[own["accuracy"].idxmin()]
        lines.append(
            (
                each.look.label,
                f"untouched {share(float(base['accuracy']))}; at best {share(float(best['accuracy']))} "
                f"(strength {best['strength']:+g}), at worst "
                f"{share(float(worst['accuracy']))} (strength {worst['strength']:+g})".replace("-", "\N{MINUS SIGN}"),
            )
        )
        tables.append(kept.assign(run=each.look.label))
    return Section(
        headline="Pushing the thoughts along “correct minus wrong”, beside random directions.",
        lines=lines,
        method="A direction is added to every thought, at several strengths on both sides, on problems that "
        "had no part in finding it.",
        illustrations=[
            Illustration(
                name="steering",
                caption="Accuracy (y) by strength (x), with 95% Wilson intervals; random directions of the "
                "same norm in grey. Dashed: untouched.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="steering",
                caption="Accuracy under steering.",
                frame=pd.concat(tables, ignore_index=True),
                columns=accuracy_columns(
                    [
                        Column(label="Direction", key="direction", kind="text"),
                        Column(label="Strength", key="strength", kind="signed", digits=1),
                    ]
                ),
                limit=10,
            )
        ],
        caveats=[
            TESTED,
            "Where almost every answer is right there is little to gain, and the difference of means rests "
            "on few wrong answers.",
        ],
        sources=[each.result for each in found],
    )


def gradients(context: Context) -> Section | None:
    """Integrated gradients."""
    found = [f for kind in ("gradients", "integrated_gradients") for f in context.find(kind)]
    if not found:
        return None
    rows, series, lines = [], [], []
    thoughts = [str(x) for x in found[0].data["latent"].values]
    for each in found:
        data = each.data
        values = [data[f"magnitude_{k}"].values for k in ("mean", "low", "high")]
        series.append((each.look, *values))
        order = np.argsort(-values[0])
        lines.append(
            (
                each.look.label,
                f"most in {thoughts[order[0]]} and {thoughts[order[1]]}; what the parts lack to the whole is "
                f"{share(float(data.attrs.get('relative_residual', np.nan)))} of it",
            )
        )
        rows.extend(
            {
                "run": each.look.label,
                "latent": t,
                **{
                    f"{m}_{k}": float(data[f"{m}_{k}"].values[i])
                    for m in ("attribution", "magnitude")
                    for k in ("mean", "low", "high")
                },
            }
            for i, t in enumerate(thoughts)
        )
    made, ax = draw.figure(9.2, 2.8)
    draw.bars(ax, thoughts, series)
    ax.set_ylabel("mean size, logits")
    draw.legend_above(ax, 4)
    return Section(
        headline="How much of the answer's logit difference each thought carries, by integrated gradients.",
        lines=lines,
        method="The six vectors are moved together from their mean to what was fed; gradients along the way "
        "are summed for each thought. The difference is "
        "between the right answer and another problem's.",
        illustrations=[
            Illustration(
                name="integrated_gradients",
                caption="Mean absolute attribution of each thought, in logits, with 95% bootstrap intervals "
                "over problems.",
                panels=[Panel(name="integrated_gradients", figure=made, wide=True)],
            )
        ],
        tables=[
            Table(
                name="integrated_gradients",
                caption="Attribution by thought, in logits.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Thought", key="latent", kind="text"),
                    Column(label="Size", key="magnitude_mean", low="magnitude_low", high="magnitude_high"),
                    Column(
                        label="Signed",
                        key="attribution_mean",
                        kind="signed",
                        low="attribution_low",
                        high="attribution_high",
                    ),
                ],
            )
        ],
        caveats=[
            "A gradient follows one straight way from the mean; what a thought could do elsewhere it does "
            "not see. Compare with the corruptions."
        ],
        sources=[each.result for each in found],
    )


def labels_of(row: Mapping[str, Any]) -> str:
    """A condition in words, from its coordinates."""
    parts = []
    for key in ("control", "operation", "corruption", "direction", "group", "positions"):
        value = str(row.get(key, "") or "")
        if value and value != "nan" and value not in parts:
            parts.append(value)
    if "strength" in row and str(row["strength"]) not in ("", "nan"):
        parts.append(f"{float(row['strength']):+g}".replace("-", "\N{MINUS SIGN}"))
    if row.get("site"):
        parts.append(f"at {place_name(row['site'], row.get('layer', -1))}")
    return ", ".join(parts) or str(row.get("condition", ""))
