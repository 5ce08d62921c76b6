"""What the heads of a model do together."""

import numpy as np
import pandas as pd
import xarray as xr

from analyze.heads.scores import (
    BANDS,
    HEAD_TYPES,
    N_REPORT_STEP,
    incoming_attention,
    report_steps,
)
from analyze.labels import inherited


def head_summary(analysis: xr.Dataset, top: int = 20) -> xr.Dataset:
    """What the heads of a model do together, from the finished result of :func:`analyze.heads.analysis.head_analysis`.

    ``incoming`` : (key_position), attention that later thoughts pay to each, mean over heads (report convention: its
    shifted column sums, itself included); ``expected`` what an even causal spread of the same attention gives it
    (report convention: 1/6); ``ratio`` of the two; ``hub_position`` the thought furthest beyond ``expected`` (report
    convention: the largest). ``sequential`` : (position), attention to the thought before, and ``skip`` :
    (key_position), attention of the last thought to those of the first half, means over heads. ``hub_count`` :
    (key_position), ``type_count`` : (type) and ``band_count`` : (band), of the ``top`` best heads.
    """
    reports = analysis.attrs["convention"] == "reports"
    pattern = analysis["pattern"].transpose("layer", "head", "position", "key_position")
    labels = [str(label) for label in pattern["position"].values[reports:]]
    matrix = pattern.values[..., 1:, :-1] if reports else pattern.values  # (layer, head, i, j)
    matrix = matrix[np.isfinite(matrix).all((-2, -1))]  # (heads that are there, i, j)
    n = len(labels)
    if not reports:
        incoming, expected = (x.mean(0) for x in incoming_attention(matrix))
        keys, queries = labels, labels[1:]
        hub = int((incoming - expected)[:-1].argmax())
        before = np.diagonal(matrix, offset=-1, axis1=-2, axis2=-1).mean(0)
        far = matrix[:, n - 1, : n // 2].mean(0)
    else:
        shifted = report_steps(matrix).mean(0)
        incoming, expected = shifted.sum(0), np.full(N_REPORT_STEP, 1 / N_REPORT_STEP)
        keys, queries = [*labels, "eot"], labels
        hub = int(incoming.argmax())
        before = np.diagonal(shifted, offset=-1)
        far = shifted[-1, :3]
    skip = np.full(len(keys), np.nan)
    skip[: len(far)] = far
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
            "mean_skip": ((), float(far.mean())),
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
    for end in ("low", "high"):
        if f"ratio_{end}" in analysis:
            summary[f"ratio_{end}"] = analysis[f"ratio_{end}"]
    if reports:
        summary["incoming"].attrs["long_name"] = "shifted column sums, mean over heads"
        summary["sequential"].attrs["long_name"] = "attention of each step to itself, mean over heads"
    return summary.assign_attrs(inherited(analysis, kind="head_summary"))


def head_table(scores: xr.Dataset) -> pd.DataFrame:
    """Heads as rows, best first; ties by layer, then head.

    Parameters
    ----------
    scores
        From :func:`head_scores` or :func:`head_analysis`.
    """
    columns = [name for name, variable in scores.data_vars.items() if set(variable.dims) == {"layer", "head"}]
    table = scores[columns].to_dataframe(dim_order=["layer", "head"]).reset_index()
    table = table.sort_values(["composite", "layer", "head"], ascending=[False, True, True], ignore_index=True)
    if "rank" not in table:
        table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table[["rank", *(name for name in table.columns if name != "rank")]]
