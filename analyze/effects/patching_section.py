"""Sections of clean thoughts put into corrupted problems."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.effects.conditions import TESTED, Frame, conditions, place_name, places_of, re_entries, with_place
from analyze.report import figures as draw
from analyze.report.content import Column, Context, Found, Illustration, Panel, Section, Table, share


def outcome_share(data: xr.Dataset, frame: Frame, outcome: str) -> Frame:
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


def patched(context: Context) -> list[tuple[Found, Frame]]:
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
    Column(label="p (Holm)", key="p_holm", kind="p"),
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
    panels, lines, tables = [], [], []
    winners: list[dict[str, Any]] = []
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
