"""What problems of a run are searched and filtered by."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.effects.outcomes import answer_of
from analyze.explorer.problems import operations_of

BLOCK = 5000
"""Problems that are listed at once."""


def listed_problems(run: xr.Dataset, start: int = 0) -> dict[str, Any]:
    """A block of a run's problems, in the order of the run.

    Returns
    -------
    dict
        ``total`` and ``items``: of each problem id, question, right or wrong, answer, number of steps, operations.
    """
    part = run.isel(example=slice(max(0, start), max(0, start) + BLOCK))
    names = ("question", "predicted_answer", "correct", "operation", "intermediate_result", "step_text")
    part = part[[name for name in names if name in part]].load()
    steps = chain_lengths(part)
    operations = part["operation"].values if "operation" in part else np.full((part.sizes["example"], 0), "")
    columns = (part[name].values for name in ("example", "question", "correct", "predicted_answer"))
    items = [
        {
            "id": int(label),
            "question": str(question),
            "correct": bool(correct),
            "predicted": answer_of(predicted),
            "steps": int(n),
            "operations": operations_of(operation),
        }
        for label, question, correct, predicted, n, operation in zip(*columns, steps, operations, strict=True)
    ]
    return {"total": run.sizes["example"], "items": items}


def chain_lengths(run: xr.Dataset) -> np.ndarray:
    """Number of steps of each problem's written chain, equations or words."""
    lengths = np.zeros(run.sizes["example"], dtype=int)
    if "intermediate_result" in run:
        lengths += np.isfinite(run["intermediate_result"].values).sum(1)
    if "step_text" in run:
        lengths += (run["step_text"].values != "").sum(1)
    return lengths
