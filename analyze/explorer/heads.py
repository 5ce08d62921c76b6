"""Map and scores of every attention head of a run."""

from typing import Any

import numpy as np

from analyze.context import Context
from analyze.explorer.problems import number_of
from analyze.heads.command import by_thoughts
from analyze.heads.summary import head_table


def heads(context: Context, name: str) -> dict[str, Any] | None:
    """Map and scores of every head of a run."""
    results = [result for result in context.find("heads", by_thoughts) if result.run == name]
    if not results:
        return None
    data = results[0].data
    pattern = data["pattern"].transpose("layer", "head", "position", "key_position")
    table = head_table(data)
    ranked = [
        {
            "layer": int(h["layer"]),
            "head": int(h["head"]),
            "rank": int(h["rank"]),
            "type": str(h["type"]),
            "band": str(h["band"]),
            "hub_position": str(h["hub_position"]),
            **{
                key: number_of(h[key], 4)
                for key in (
                    "composite",
                    "composite_low",
                    "composite_high",
                    "flow",
                    "hub",
                    "skip",
                    "sequential",
                    "max_attention",
                    "top_share",
                    "hub_agreement",
                )
                if key in h
            },
        }
        for _, h in table.iterrows()
    ]
    result: dict[str, Any] = {
        "layers": [int(x) for x in pattern["layer"].values],
        "heads": [int(x) for x in pattern["head"].values],
        "thoughts": [str(x) for x in pattern["position"].values],
        "pattern": _mille(pattern.values),
        "ranked": ranked,
        "mark": results[0].stored.fingerprint[:12],
    }
    shares = [f for f in context.find("attention") if f.run == name]
    if shares:
        share = shares[0].data["share"].transpose("layer", "head", "query", "target")
        result |= {
            "queries": [str(x) for x in share["query"].values],
            "targets": [str(x) for x in share["target"].values],
            "share": _mille(share.values),
        }
    return result


def _mille(values: np.ndarray) -> list[Any]:
    """Thousandths as whole numbers, -1 where there is none."""
    return list(np.where(np.isfinite(values), np.round(1000 * np.nan_to_num(values)), -1).astype(int).tolist())
