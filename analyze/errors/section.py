"""Section of foreseeing wrong answers."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.errors.figures import plot_predictors
from analyze.page import Page, Section, listed
from analyze.tables import ENDS, Frame, triple

PREDICTORS = {
    "sae_codes": "sparse codes",
    "raw_activation": "raw activations",
    "question_length": "question length",
    "majority": "majority",
}


def error_prediction(page: Page) -> None:
    """Will the answer be wrong."""
    notes = []
    for result in page.results("errors"):
        rows = predictor_rows(result.data)
        plot_predictors(rows, result.look, page.panel("error_prediction", result, height=2.2))
        judged = rows[(rows["predictor"] != PREDICTORS["majority"]) & np.isfinite(rows["auroc"])]
        if len(judged):
            better = judged.loc[judged["auroc_low"] > 0.5, "predictor"].tolist()
            line = "all" if len(better) == len(judged) else "some" if better else "none"
            beyond = page.text(line, better=listed(better))
            gain, low, high = map(float, triple(result.data.sel(predictor="raw_activation"), "auroc_gain"))
            than = page.text("better" if low > 0 else "worse" if high < 0 else "alike", gain=gain, low=low, high=high)
            n, scores = int(result.data["n_test"].sum()), ", ".join(page.texts("score", judged))
            page.say(result, "scores", scores=scores, n=n, beyond=beyond, gain=than)
        else:
            page.say(result, "one_outcome")
        page.add("error_prediction", result, rows)
        notes += [f"{result.label}: {note}"] if (note := str(result.data["note"].item())) else []
    page.set(notes=notes)


def predictor_rows(data: xr.Dataset) -> Frame:
    """Figures of each predictor."""
    names = [f"{score}{end}" for score in ("accuracy", "balanced_accuracy", "auroc") for end in ENDS]
    columns: dict[str, Any] = {"predictor": [PREDICTORS.get(str(x), str(x)) for x in data["predictor"].values]}
    columns |= {name: data[name].values for name in [*names, "train_accuracy"]}
    for name in ("precision", "recall"):
        columns |= {f"{name}_{outcome}": data[name].sel(outcome=outcome).values for outcome in data["outcome"].values}
    return pd.DataFrame(columns)


SECTIONS = (
    Section(slug="error-prediction", write=error_prediction, chapter="report-001", order=40, needs=("errors",)),
)
