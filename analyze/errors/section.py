"""Section of foreseeing wrong answers."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.context import StoredResult
from analyze.drawing import INK, MUTED, faint_grid
from analyze.page import Page, Section, listed

PREDICTORS = {
    "sae_codes": "sparse codes",
    "raw_activation": "raw activations",
    "question_length": "question length",
    "majority": "majority",
}
SCORES = ("accuracy", "balanced_accuracy", "auroc")


def error_prediction(page: Page) -> None:
    """Will the answer be wrong."""
    notes = []
    for result in page.results("errors"):
        rows = predictor_rows(result.data)
        draw_predictors(page, result, rows)
        scores = [
            page.text(
                "score", predictor=row["predictor"], auroc=row["auroc"], low=row["auroc_low"], high=row["auroc_high"]
            )
            for row in rows.to_dict("records")
            if row["predictor"] != PREDICTORS["majority"] and np.isfinite(row["auroc"])
        ]
        if scores:
            told = told_from_chance(page, rows)
            n, gain = int(result.data["n_test"].sum()), gain_over_raw(page, result.data)
            page.say(result, "scores", scores=", ".join(scores), n=n, told=told, gain=gain)
        else:
            page.say(result, "one_outcome")
        page.add("error_prediction", result, rows)
        if note := result.data.attrs.get("note"):
            notes.append(f"{result.label}: {note}")
    page.set(notes=notes)


def told_from_chance(page: Page, rows: Any) -> str:
    """Which predictors order problems better than chance, by their intervals."""
    judged = rows[(rows["predictor"] != PREDICTORS["majority"]) & np.isfinite(rows["auroc"])]
    better = judged.loc[judged["auroc_low"] > 0.5, "predictor"].tolist()
    return page.text("told" if len(better) == len(judged) else "some" if better else "none", better=listed(better))


def gain_over_raw(page: Page, data: xr.Dataset) -> str:
    """Whether sparse codes foresee better than the activations that they are of."""
    raw = data.sel(predictor="raw_activation")
    gain, low, high = (float(raw[f"auroc_gain{end}"]) for end in ("", "_low", "_high"))
    name = "better" if low > 0 else "worse" if high < 0 else "alike"
    return page.text(name, gain=gain, low=low, high=high)


def predictor_rows(data: xr.Dataset) -> Any:
    """Figures of each predictor."""
    rows = pd.DataFrame({"predictor": [PREDICTORS.get(str(x), str(x)) for x in data["predictor"].values]})
    for name in [f"{score}{end}" for score in SCORES for end in ("", "_low", "_high")] + ["train_accuracy"]:
        rows[name] = data[name].values
    for name in ("precision", "recall"):
        for outcome in data["outcome"].values:
            rows[f"{name}_{outcome}"] = data[name].sel(outcome=outcome).values
    return rows


def draw_predictors(page: Page, result: StoredResult, rows: Any) -> None:
    """AUROC of each predictor with its interval."""
    ax, y = page.panel("error_prediction", result, height=2.2), np.arange(len(rows))
    ax.plot(rows["auroc"], y, **result.look.line() | {"linestyle": "none", "label": None})
    ax.hlines(y, rows["auroc_low"], rows["auroc_high"], color=INK, linewidth=1)
    ax.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    ax.set_yticks(y, rows["predictor"])
    ax.set_xlim(0, 1.02)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    faint_grid(ax, "x")
    ax.set_xlabel("AUROC")


SECTIONS = (
    Section(slug="error-prediction", write=error_prediction, chapter="report-001", order=40, needs=("errors",)),
)
