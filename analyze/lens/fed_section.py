"""Section on what the vectors fed at the thoughts carry, by three lenses on the same held-out problems."""

import numpy as np

from analyze.beside import NOTHING, number
from analyze.lens.fed import best_steps, edit_rows, fed, steps_pick
from analyze.page import Page, Section, listed, share

MARKERS = {"jacobian": "o", "logit": "s", "tuned": "^", "jacobian, rotated": "x"}


def fed_thoughts(page: Page) -> None:
    """Every run whose lenses were compared."""
    controls: list[float] = []
    for result in page.results("lens_comparison"):
        rows = best_steps(result.data)
        if rows.empty:
            continue
        with page.shares("fed_thoughts", result) as ax:
            for lens, part in rows.groupby("lens", sort=False):
                style = {"color": "0.55", "linestyle": ":", "linewidth": 1.0}
                style = {"color": result.look.colour} if lens == "jacobian" else style
                marker = MARKERS.get(str(lens), "o")
                ax.plot(part["position"], part["share"], marker=marker, label=f"{lens} lens", **style)
        page.add("fed_thoughts", result, rows)
        own, plain, control = (rows[rows["lens"] == lens] for lens in ("jacobian", "logit", "jacobian, rotated"))
        named = own[own["share"] > 0.1]
        controls += control.loc[control["position"].isin(named["position"]), "share"].tolist()
        texts = page.texts("one", named)
        logit = [share(value, 0) for value in plain.set_index("position")["share"].reindex(named["position"])]
        page.say(result, "named" if texts else "none", thoughts=listed(texts), logit=listed(logit))
        sure = own[own["low"] > NOTHING]
        page.find(result, *[
            number(f"step {row.step} fed at {row.position}", "inner_share", read=fed, pick=steps_pick(result.data),
                   position=row.position, step=row.step - 1, lens="jacobian") for row in sure.itertuples()
        ])  # fmt: skip
    for result in page.results("lens_edits", optional=True):
        page.add("lens_edits", result, edit_rows(result.data))
    page.need("fed_thoughts")
    page.set(control=float(np.mean(controls)) if controls else None)


SECTIONS = (
    Section(
        slug="fed-thoughts", write=fed_thoughts, chapter="report-000", order=30,
        needs=("jacobian", "lens_comparison --lens jacobian"),
    ),
)  # fmt: skip
