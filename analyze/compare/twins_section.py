"""Section of a model beside its controls: read alike, used or not."""

from typing import Any

import pandas as pd

from analyze.compare.figures import plot_twins
from analyze.compare.panels_section import comparison
from analyze.compare.twins import READ, USED, measure_rows
from analyze.page import Page, Section
from analyze.tables import Frame
from schemas.controls import CONTROLS


def twins(page: Page) -> None:
    """Each model and its controls."""
    data, looks = comparison(page)
    controls = page.context.controls
    kinds = set()
    for run, look in looks.items():
        model, _, data_set = run.partition("/")
        others = [f"{control}/{data_set}" for control in page.context.controls_of(model)]
        rows_of: dict[str, Frame] = {}
        for other in (name for name in looks if name in others):
            rows: Frame = pd.DataFrame(measure_rows(*(data.sel(model=name, drop=True) for name in (run, other))))
            if rows.empty:
                continue
            rows.insert(0, "control", looks[other].label)
            rows_of[other] = rows
            kinds.add(controls[other.partition("/")[0]].kind)
            page.say_of(look.label, sentence(page, rows))
            page.add("twins", look.label, rows)
        if rows_of:
            n_line = max(map(len, rows_of.values()))
            height = 0.9 + 0.23 * (n_line + 1.4) + 0.2 * (len(rows_of) // 2)
            plot_twins(rows_of, look, looks, page.panel("twins", run, height=height))
    page.need("twins")
    page.set(kinds="; ".join(f"{kind}: {CONTROLS[kind]}" for kind in CONTROLS if kind in kinds))


def sentence(page: Page, rows: Frame) -> str:
    """How many measures of either kind distinguish a model from one of its controls, and which does best."""
    values: dict[str, Any] = {"control": rows["control"].iloc[0]}
    apart = (rows["difference_low"] > 0) | (rows["difference_high"] < 0)
    for kind, name in ((READ, "reads"), (USED, "uses")):
        of_kind = rows["kind"] == kind
        values |= {f"n_{name}": int(of_kind.sum()), name: int((of_kind & apart).sum())}
    used = rows[apart & (rows["kind"] == USED)]
    furthest = {} if used.empty else dict(used.loc[used["difference"].abs().idxmax()])
    line = "reads" if not values["n_uses"] else "alike" if used.empty else "apart"
    return page.text(line, **values | furthest)


SECTIONS = (Section(slug="twins", write=twins, chapter="verdict", order=-10, needs=("compare",), of="several"),)
