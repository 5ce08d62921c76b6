"""Section on rotations between the states of two models."""

from analyze.drawing import heat_map
from analyze.page import Page, Section
from analyze.tables import Frame


def rotations(page: Page) -> None:
    """How far a rotation turns the thoughts of one model into those of another."""
    for result in page.joint("procrustes", where=lambda one: len(one.runs) == 2, word="to"):
        last = result.data.isel(layer=-1, other_layer=-1)
        ax = page.panel("rotations", result, height=1.2 + 0.29 * last.sizes["position"])
        heat_map(ax, last["r2"].values, last["position"].values, last["other_position"].values)
        rows: Frame = last[["r2", "r2_low", "r2_high", "p"]].astype("float64").to_dataframe().reset_index()
        rows = rows[rows["position"] == rows["other_position"]].rename(columns={"r2_low": "low", "r2_high": "high"})
        page.add("rotations", result, rows[["position", "r2", "low", "high", "p"]])
        if len(rows):
            page.say(result, "same", mean=rows["r2"].mean(), null=float(result.data["r2_null"]))
    page.need("rotations")


SECTIONS = (
    Section(slug="rotations", write=rotations, chapter="comparison", order=40, needs=("procrustes",), of="several"),
)
