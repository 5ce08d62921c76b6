"""Section of what a SIM-CoT decoder writes of each thought."""

import numpy as np

from analyze.page import Page, Section
from analyze.tables import ENDS

SHARES = ("result_share", "control_share", "expression_share")


def decoded(page: Page) -> None:
    """How often the decoder writes the step that a thought was trained to hold, beside another problem's."""
    for result in page.results("decode"):
        data = result.data
        grid = data["result_share"].where(data["n_step"] > 0)
        page.percent_map("decoded", result, grid.transpose("step", "position"))
        rows = data[["n_step", *(f"{name}{end}" for name in SHARES for end in ENDS)]].to_dataframe().reset_index()
        rows = rows[rows["n_step"] > 0].assign(step=lambda rows: rows["step"] + 1)
        page.add("decoded", result, rows)
        places = {int(position.removeprefix("ct")): position for position in map(str, data["position"].values)}
        told = []
        for step in data["step"].values.tolist():
            if step in places and int(data["n_step"].sel(position=places[step], step=step)):
                cell = data.sel(position=places[step], step=step)
                share, low, high = (float(cell[f"result_share{end}"]) for end in ENDS)
                other = np.nan_to_num(float(cell["control_share"]))
                told.append(
                    page.text("one", step=step + 1, position=places[step], share=share, low=low, high=high, other=other)
                )
        page.say(result, "steps" if told else "none", steps="; ".join(told))
        texts = data["text"].isel(example=slice(0, 3))
        page.add(
            "decoded_texts", result,
            [
                {"example": int(example), "position": str(position), "text": repr(str(texts.values[row, column]))}
                for row, example in enumerate(texts["example"].values)
                for column, position in enumerate(texts["position"].values)
            ],
        )  # fmt: skip


SECTIONS = (Section(slug="decoded-thoughts", write=decoded, order=45, needs=("decode",), of="none"),)
