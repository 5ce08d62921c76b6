"""Sections of thoughts taken out or changed: position ablation, token ablation, steering, integrated gradients."""

from typing import Any

import numpy as np
import pandas as pd

from analyze.effects.conditions import (
    TESTED,
    UNTOUCHED,
    Frame,
    accuracy_columns,
    conditions,
    control_note,
    places_of,
    re_entries,
    untouched,
    with_place,
)
from analyze.report import figures as draw
from analyze.report.content import Column, Context, Found, Illustration, Panel, Section, Table, listed, share
from schemas.commands import STEERING_UNIT

GROUP_LOOKS: dict[str, dict[str, str]] = {
    "numbers": {"label": "thoughts that read as numbers", "colour": draw.HEAT, "hatch": ""},
    "others": {"label": "the other thoughts", "colour": draw.HEAT_NEGATIVE, "hatch": "////"},
    "random like numbers": {"label": "as many at random", "colour": draw.MUTED, "hatch": "...."},
    "all": {"label": "all thoughts", "colour": draw.INK, "hatch": "xxxx"},
}


def group_look(group: str) -> draw.Look:
    """How a group of thoughts is drawn."""
    look = GROUP_LOOKS[group]
    return draw.Look(label=look["label"], colour=look["colour"], marker="o", dashed=False, hatch=look["hatch"])


def ablation_panel(each: Found, part: Frame, base: float, operation: str) -> Panel:
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
    panels, lines, tables = [], [], []
    series: list[Any] = []
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


def steering(context: Context) -> Section | None:
    """Accuracy along a direction, beside random ones."""
    found = re_entries(context, "steer")
    if not found:
        return None
    panels, lines, tables = [], [], []
    pushed: list[str] = []
    for each in found:
        frame = conditions(each.data)
        base = untouched(frame)
        kept = frame[(frame["condition"].astype(str) != UNTOUCHED) & ~frame["control"].str.startswith("self")].copy()
        kept["strength"] = kept["strength"].astype(float)
        names = list(dict.fromkeys(kept["direction"].astype(str)))
        real = [n for n in names if not n.startswith("random")]
        pushed += [n for n in real if n not in pushed]
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
            none = {"strength": 0.0, **{f"accuracy{end}": base[f"accuracy{end}"] for end in ("", "_low", "_high")}}
            line = pd.concat([line, pd.DataFrame([none])], ignore_index=True).sort_values("strength")
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
        ax.set_xlabel(f"strength, in {each.data['strength'].attrs.get('units', STEERING_UNIT)}")
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
    along = listed([f"“{name}”".replace("correct-wrong", "correct minus wrong") for name in pushed])
    return Section(
        headline=f"Pushing the thoughts along {along}, beside random directions.",
        lines=lines,
        method="A direction is added to every thought, at several strengths on both sides, on problems that "
        "had no part in finding it.",
        illustrations=[
            Illustration(
                name="steering",
                caption="Accuracy (y) by strength (x), with 95% Wilson intervals; random directions of the "
                "same norm in grey. Strength 0 and dashed: untouched.",
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
    lines = []
    rows: list[dict[str, Any]] = []
    series: list[Any] = []
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
