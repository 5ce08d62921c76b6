"""What the heads of a model do together."""

from itertools import product

import numpy as np
import pandas as pd
import xarray as xr

from analyze.heads.scores import BANDS, HEAD_TYPES, N_REPORT_STEP, Array, incoming_attention, report_steps
from analyze.labels import inherited

TOGETHER = {
    "incoming": ["key_position"], "ratio": ["key_position"], "sequential": ["position"], "skip": ["key_position"],
    "mean_sequential": [], "mean_skip": [],
}  # fmt: skip
"""Quantities of all heads together that have an interval, and their dims."""
BY_THOUGHT = {"sequential": "_by_thought", "skip": "_by_thought"}
"""Added to the names of these intervals, as scores of single heads have the same names."""
SURE = 0.95
"""Share of resamples from which on a head's type counts as sure."""


def head_summary(analysis: xr.Dataset, top: int = 20) -> xr.Dataset:
    """What the heads of a model do together, from the finished result of :func:`analyze.heads.analysis.head_analysis`.

    ``incoming`` : (key_position), attention that later thoughts pay to each, mean over heads (report convention: its
    shifted column sums, itself included); ``expected`` what an even causal spread of the same attention gives it
    (report convention: 1/6); ``ratio`` of the two; ``hub_position`` the thought furthest beyond ``expected`` (report
    convention: the largest). ``sequential`` : (position), attention to the thought before, and ``skip`` :
    (key_position), attention of the last thought to those of the first half, means over heads. ``hub_count`` :
    (key_position), ``type_count`` : (type) and ``band_count`` : (band), of the ``top`` best heads; ``type_sure``, how
    many of these have the same type in 95% of the resamples. Each of the first has its interval, ``.._low`` and
    ``.._high``, where the analysis has one.
    """
    reports = analysis.attrs["convention"] == "reports"
    pattern = analysis["pattern"].transpose("layer", "head", "position", "key_position")
    labels = [str(label) for label in pattern["position"].values[reports:]]
    matrix = pattern.values[..., 1:, :-1] if reports else pattern.values  # (layer, head, i, j)
    matrix = matrix[np.isfinite(matrix).all((-2, -1))]  # (heads that are there, i, j)
    if not reports:
        together = of_all_heads(matrix.mean(0))
        incoming, expected = together["incoming"], together["expected"]
        keys, queries = labels, labels[1:]
        hub = int((incoming - expected)[:-1].argmax())
        before, skip = together["sequential"][1:], together["skip"]
    else:
        shifted = report_steps(matrix).mean(0)
        incoming, expected = shifted.sum(0), np.full(N_REPORT_STEP, 1 / N_REPORT_STEP)
        keys, queries = [*labels, "eot"], labels
        hub = int(incoming.argmax())
        before = np.diagonal(shifted, offset=-1)
        skip = np.full(len(keys), np.nan)
        skip[:3] = shifted[-1, :3]
    best = head_table(analysis).head(top)
    counts = {
        name: best[name].value_counts().reindex(list(order), fill_value=0).to_numpy()
        for name, order in (("type", HEAD_TYPES), ("band", BANDS), ("hub_position", keys))
    }
    named = {name: np.array(values, dtype=object) for name, values in (("key", keys), ("query", queries))}
    summary = xr.Dataset(
        {
            "incoming": ("key_position", incoming, {"long_name": "attention from later thoughts, mean over heads"}),
            "expected": ("key_position", expected, {"long_name": "the same, spread evenly"}),
            "ratio": ("key_position", incoming / np.where(expected > 0, expected, np.nan)),
            "skip": ("key_position", skip, {"long_name": "attention of the last thought, mean over heads"}),
            "sequential": ("position", before, {"long_name": "attention to the thought before, mean over heads"}),
            "hub_count": ("key_position", counts["hub_position"]),
            "type_count": ("type", counts["type"]),
            "band_count": ("band", counts["band"]),
            "hub_position": ((), keys[hub]),
            "mean_sequential": ((), float(before.mean())),
            "mean_skip": ((), float(np.nanmean(skip))),
            "mean_hub": ((), float(analysis["hub"].mean())),
        },
        coords={
            "key_position": named["key"],
            "position": named["query"],
            "type": np.array(HEAD_TYPES, dtype=object),
            "band": np.array(BANDS, dtype=object),
        },
        attrs={"convention": analysis.attrs["convention"], "top": len(best), "n_head": len(matrix)},
    )
    for name, end in product(TOGETHER, ("low", "high")):
        if (kept := f"{name}{BY_THOUGHT.get(name, '')}_{end}") in analysis:
            summary[f"{name}_{end}"] = analysis[kept].sel(position=queries) if name == "sequential" else analysis[kept]
    if "type_share" in best:
        summary["type_sure"] = (), int((best["type_share"] >= SURE).sum())
    if reports:
        summary["incoming"].attrs["long_name"] = "shifted column sums, mean over heads"
        summary["sequential"].attrs["long_name"] = "attention of each step to itself, mean over heads"
    return summary.assign_attrs(inherited(analysis, kind="head_summary"))


def of_all_heads(mean: Array) -> dict[str, Array]:
    """What heads do together, from the mean of their matrices (..., i, j).

    ``incoming``, ``expected`` and ``ratio`` (..., j): attention from later thoughts, that of an even spread, and how
    many times it; ``sequential`` (..., i): attention to the thought before, NaN for the first; ``skip`` (..., j):
    attention of the last thought to those of the first half, NaN beyond; ``mean_sequential`` and ``mean_skip`` (...).
    """
    n = mean.shape[-1]
    incoming, expected = incoming_attention(mean)
    sequential, skip = np.full((2, *incoming.shape), np.nan)
    sequential[..., 1:] = np.diagonal(mean, offset=-1, axis1=-2, axis2=-1)
    skip[..., : n // 2] = mean[..., n - 1, : n // 2]
    return {
        "incoming": incoming, "expected": expected, "ratio": incoming / np.where(expected > 0, expected, np.nan),
        "sequential": sequential, "skip": skip, "mean_sequential": sequential[..., 1:].mean(-1),
        "mean_skip": skip[..., : n // 2].mean(-1),
    }  # fmt: skip


def head_table(scores: xr.Dataset) -> pd.DataFrame:
    """Heads as rows, best first; ties by layer, then head.

    Parameters
    ----------
    scores
        From :func:`analyze.heads.scores.head_scores` or :func:`analyze.heads.analysis.head_analysis`.
    """
    columns = [name for name, variable in scores.data_vars.items() if set(variable.dims) == {"layer", "head"}]
    table = scores[columns].to_dataframe(dim_order=["layer", "head"]).reset_index()
    table = table.sort_values(["composite", "layer", "head"], ascending=[False, True, True], ignore_index=True)
    if "rank" not in table:
        table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table[["rank", *(name for name in table.columns if name != "rank")]]
