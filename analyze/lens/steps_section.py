"""Section of which position reads out as which step of the written chain."""

import pandas as pd

from analyze.beside import NOTHING, number
from analyze.labels import up_to_eot
from analyze.lens.command import is_plain
from analyze.lens.steps import best_of, of_steps, pick_of, step_rows
from analyze.page import Page, Section
from analyze.tables import Frame


def chain_results(page: Page) -> None:
    """Which position holds which step of the chain."""
    for result in page.results("lens", is_plain):
        rows: Frame = step_rows(up_to_eot(result.data)) if result.data.sizes.get("step") else pd.DataFrame()
        if rows.empty:
            continue
        steps, positions = [f"step {step}" for step in rows["step"].unique()], rows["position"].unique()
        page.percent_map("chain_results", result, rows["share"].to_numpy().reshape(len(steps), -1), steps, positions)
        best = best_of(rows)
        cells = [page.text("cell" if row["low"] > NOTHING else "nowhere", **row) for row in best.to_dict("records")]
        page.say_of(result.label, ", ".join(cells))
        page.add("chain_results", result, rows)
        told = best[best["low"] > NOTHING][["step", "position"]].values
        page.find(result, *[
            number(f"step {step}", "share", read=of_steps, pick=pick_of(rows), position=position, step=step - 1)
            for step, position in told
        ])  # fmt: skip
    page.need("chain_results")
    page.show("chain_results", lambda rows: pd.concat([best_of(one) for _, one in rows.groupby("run", sort=False)]))


SECTIONS = (
    Section(slug="chain-results", write=chain_results, chapter="report-000", order=20, needs=("lens",), key=True),
)
