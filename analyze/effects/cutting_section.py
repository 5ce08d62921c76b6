"""Sections of heads zeroed and attention edges cut."""

import numpy as np
import pandas as pd

from analyze.effects.conditions import (
    TESTED,
    UNTOUCHED,
    accuracy_columns,
    conditions,
    control_note,
    re_entries,
    untouched,
)
from analyze.report import figures as draw
from analyze.report.content import Column, Context, Illustration, Panel, Section, Table, listed, share

CUT = {"zero": "zeroed", "mean": "set to the mean", "resample": "exchanged for another problem's"}
"""What was done to heads, in words, by operation."""


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
        ax.set_xlabel(f"heads {CUT[str(each.result.spec.get('operation', 'zero'))]} together")
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
    cut = listed(list(dict.fromkeys(CUT[str(each.result.spec.get("operation", "zero"))] for each in found)))
    illustrations = [
        Illustration(
            name="head_ablation",
            caption=f"Accuracy when the highest-ranked heads are {cut} together (x), with 95% Wilson "
            "intervals, and when as many drawn at random are "
            "(mean and range of the draws). Dashed: untouched.",
            panels=panels,
        )
    ]
    if maps:
        illustrations.append(
            Illustration(
                name="head_ablation_alone",
                caption=f"Percentage points of accuracy lost when one head is {cut}, by layer and head; a "
                "negative number is a gain.",
                panels=maps,
            )
        )
    return Section(
        headline="Whether the heads that score highest are those the answer needs.",
        lines=lines,
        method=f"A head is cut where it is one: its own output before the output projection is {cut}, "
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
