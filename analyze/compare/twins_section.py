"""Section of a model beside its controls: read alike, used or not."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.beside import number_at
from analyze.compare.section import comparison
from analyze.drawing import MUTED, RULE, Look, faint_grid
from analyze.labels import thought_labels
from analyze.page import Page, Section
from schemas.controls import CONTROLS
from schemas.naming import fed_at
from schemas.statistics import difference_interval

Measure = tuple[str, str, str, dict[str, Any]]
"""Whether it is of what can be read or used, its name, its variable, and where that is taken."""
ANSWERS, READ, USED = "answers", "can be read", "is used"
WRONG = "wrong under ablation"
"""One less the accuracy under ablation, so that among what is used more is always to the right."""


def twins(page: Page) -> None:
    """Each model and its controls."""
    data, looks = comparison(page)
    controls = page.context.controls
    kinds = set()
    for run in looks:
        others = [name for name in looks if name.partition("/")[0] in page.context.controls_of(run.partition("/")[0])]
        parts = []
        for other in others:
            one, twin = (data.sel(model=name, drop=True) for name in (run, other))
            rows: Any = pd.DataFrame(measure_rows(one, twin, measures(one)))
            if rows.empty:
                continue
            rows.insert(0, "control", looks[other].label)
            parts.append((other, rows))
            kinds.add(controls[other.partition("/")[0]].kind)
            page.say_of(looks[run].label, sentence(page, rows))
            page.add("twins", looks[run].label, rows)
        if parts:
            draw_twins(page, run, dict(parts), looks)
    page.need("twins")
    page.set(kinds="; ".join(f"{kind}: {CONTROLS[kind]}" for kind in CONTROLS if kind in kinds))


def sentence(page: Page, rows: Any) -> str:
    """How many measures of either kind tell a model from one of its controls, and by which it is told best."""
    values: dict[str, Any] = {"control": rows["control"].iloc[0]}
    apart = (rows["difference_low"] > 0) | (rows["difference_high"] < 0)
    for kind, name in ((READ, "reads"), (USED, "uses")):
        of_kind = rows["kind"] == kind
        values |= {f"n_{name}": int(of_kind.sum()), name: int((of_kind & apart).sum())}
    used = rows[apart & (rows["kind"] == USED)]
    name = "alike" if used.empty else "apart"
    furthest = {} if used.empty else dict(used.loc[used["difference"].abs().idxmax()])
    return page.text(name if values["n_uses"] else "reads", **values | furthest)


def measures(data: xr.Dataset) -> Iterator[Measure]:
    """What can be read from a model's thoughts, at the position where it is read best; then what the answer uses."""
    yield ANSWERS, "accuracy, untouched", "accuracy", {}
    for step in data["step"].values[:3] if "step" in data.dims else []:
        for name, label, where in (
            ("chain_share", "lens: step {} at {}", {"step": step}),
            ("step_probe", "probe: R² of step {} at {}", {"step": step, "depth": float(data["depth"].values[-1])}),
        ):
            by_position = data[name].sel(where) if name in data else xr.DataArray(np.nan)
            if by_position.notnull().any():
                best = str(by_position["position"].values[int(np.nanargmax(by_position.values))])
                yield READ, label.format(int(step) + 1, fed_name(best, data)), name, where | {"position": best}
    for thought in thought_labels(data) if "position" in data.dims else []:
        where = {"corruption": "mean", "position": thought}
        yield USED, f"{thought} averaged: answers lost", "importance", where
    for group in ("all", "numbers"):
        where = {"operation": "mean", "group": group, "place": "fed"}
        yield USED, f"{group} averaged: answers wrong", WRONG, where
    if "n_thought" in data.dims:
        n = int(data["n_thought"].values.max())
        yield USED, f"{n} of another problem: its answer", "patch_clean", {"place": "fed", "n_thought": n}


def fed_name(position: str, data: xr.Dataset) -> str:
    """A position, and where what is made of its state is fed: what is read at the one acts at the other."""
    fed = fed_at(position)
    return f"{position}, fed at {fed}" if fed != position and fed in thought_labels(data) else position


def measured(data: xr.Dataset, name: str, where: Mapping[str, Any]) -> list[float]:
    """A measure and the ends of its interval."""
    if name != WRONG:
        return number_at(data, name, **where)
    value, low, high = number_at(data, "ablation_accuracy", **where)
    return [1 - value, 1 - high, 1 - low]


def measure_rows(one: xr.Dataset, other: xr.Dataset, wanted: Iterator[Measure]) -> Iterator[dict[str, Any]]:
    """Each measure of a model and of its twin, with intervals, where both have it."""
    for kind, what, name, where in wanted:
        values = [measured(data, name, where) for data in (one, other)]
        if all(np.isfinite(value[0]) for value in values):
            columns = {
                f"{of}{end}": value
                for of, ends in zip(("model", "twin"), values, strict=True)
                for end, value in zip(("", "_low", "_high"), ends, strict=True)
            }
            ends = zip(("", "_low", "_high"), difference_interval(*values), strict=True)
            yield {"kind": kind, "what": what} | columns | {f"difference{end}": float(value) for end, value in ends}


def draw_twins(page: Page, run: str, rows_of: Mapping[str, Any], looks: Mapping[str, Look]) -> None:
    """Each measure as a mark of the model and one of each control on a line."""
    longest = max(rows_of.values(), key=len)
    used = (longest["kind"] == USED).to_numpy()
    lines = np.arange(len(longest)) + 1.4 * used  # a gap between what can be read and what is used
    places = dict(zip(longest["what"], lines, strict=True))
    height = 0.9 + 0.23 * (len(places) + 1.4) + 0.2 * (len(rows_of) // 2)
    ax = page.panel("twins", run, height=height)
    for rows in rows_of.values():
        y = rows["what"].map(places).to_numpy(dtype="float64")
        ax.hlines(
            y, rows[["model", "twin"]].min(axis=1), rows[["model", "twin"]].max(axis=1), color=RULE, linewidth=2.5
        )
    draw_marks(ax, lines, longest, "model", looks[run], above=1)
    for other, rows in rows_of.items():
        draw_marks(ax, rows["what"].map(places).to_numpy(dtype="float64"), rows, "twin", looks[other])
    between = (~used).sum() + 0.2
    ax.axhline(between, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    for text, side, points in (("above: what can be read", "bottom", 2), ("below: what is used", "top", -2)):
        ax.annotate(
            text, (0.5, between), (0, points), textcoords="offset points", va=side, ha="center", fontsize=7,
            style="italic", color=MUTED,
        )  # fmt: skip
    ax.set_yticks(lines, longest["what"])
    ax.set_ylim(lines[-1] + 0.6, -0.6)
    ax.set_xlim(-0.03, 1.03)
    ax.tick_params(axis="y", length=0)
    faint_grid(ax, "x")
    ax.set_xlabel("share of problems; of probes R²")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8)


def draw_marks(ax: Any, y: Any, rows: Any, of: str, look: Look, *, above: int = 0) -> None:
    """Values of a model with their intervals, ``above`` those of others."""
    known = (np.isfinite(rows[f"{of}_low"]) & np.isfinite(rows[f"{of}_high"])).to_numpy()
    ends = (rows[f"{of}{end}"][known] for end in ("_low", "_high"))
    ax.hlines(y[known], *ends, color=look.colour, linewidth=1.2, zorder=2)
    ax.plot(rows[of], y, **look.line() | {"linestyle": "none", "markersize": 6, "zorder": 3 + above})


SECTIONS = (Section(slug="twins", write=twins, chapter="verdict", order=-10, needs=("compare",), of="several"),)
