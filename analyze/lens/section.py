"""Sections read from hidden states through the lens: number decoding, results of the written chain."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.report import figures as draw
from analyze.report.content import (
    Column,
    Context,
    Illustration,
    Panel,
    Section,
    Table,
    listed,
    p_text,
    share,
)

CONVENTION = (
    "Position names are those of the lake: ct0 to ct5 are where the six projected thoughts are fed in, bot "
    "is where the first "
    "of them is computed. The reports' “position k” is bot for k = 0 and ct(k−1) after that."
)


def lens_positions(data: xr.Dataset, answer: int = 0) -> list[str]:
    """From ``bot`` to ``eot``, and the first few answer positions."""
    labels = [str(x) for x in data["position"].values]
    return [x for x in labels if not x.startswith(("q-", "a"))] + [f"a{i}" for i in range(answer) if f"a{i}" in labels]


def number_decoding(context: Context) -> Section | None:
    """How often each position reads out as a number."""
    found = context.find("lens", lambda spec: spec.get("lens", "plain") == "plain")
    if not found:
        return None
    panels, parts = [], []
    rows: list[Any] = []
    combined = []
    for each in found:
        positions = lens_positions(each.data)
        lens = each.data.sel(position=positions)
        final = lens.isel(layer=-1)
        values = final["number_share"].values
        combined.append((each.look, values, final["number_share_low"].values, final["number_share_high"].values))
        made, ax = draw.figure(4.6, 0.9 + 0.27 * lens.sizes["layer"])
        draw.heat_map(
            ax,
            100 * lens["number_share"].transpose("layer", "position").values,
            [f"layer {x}" for x in lens["layer"].values],
            positions,
            high=100,
            text="{:.0f}",
        )
        ax.set_title(each.look.label)
        panels.append(Panel(name=f"number_decoding_{each.run}", figure=made))
        thoughts = [x for x in positions if x.startswith("ct")]
        often = [x for x in thoughts if float(final["number_share"].sel(position=x)) >= 0.5]
        never = [x for x in thoughts if float(final["number_share"].sel(position=x)) <= 0.05]
        parts.append(
            (
                each.look.label,
                f"{listed(often) or 'no thought'} in most problems"
                + (f", {listed(never)} almost never" if never else ""),
            )
        )
        for position in positions:
            cell = final.sel(position=position)
            rows.append(
                {
                    "run": each.look.label,
                    "position": position,
                    "layer": int(cell["layer"]),
                    **{
                        name: float(cell[name])
                        for name in (
                            "n",
                            "number_share",
                            "number_share_low",
                            "number_share_high",
                            "result_share",
                            "control_share",
                            "gold_first_share",
                        )
                    },
                }
            )
    made, ax = draw.figure(9.2, 3.0)
    longest = max((lens_positions(each.data) for each in found), key=len)
    draw.bars(ax, longest, [item for item in combined if len(item[1]) == len(longest)])
    ax.set_ylim(0, 1.02)
    draw.as_percent(ax)
    ax.set_ylabel("decodes to a number")
    draw.legend_above(ax, 4)
    tests = context.find("lens_tests", lambda spec: spec.get("lens", "plain") == "plain")
    caveats = [CONVENTION]
    if tests:
        lines = [
            f"{t.look.label} Q = {float(t.data['q'][-1]):.0f}, corrected p {p_text(float(t.data['q_p_adjusted'][-1]))}"
            for t in tests
        ]
        caveats.append(
            "That positions differ is tested on the same problems (Cochran's Q over the thoughts at the "
            "last layer), not as "
            "independent counts: " + "; ".join(lines) + "."
        )
    caveats.append(
        "What the lens reads need not be what the model uses: see the ablations and the decodable twins. "
        "Report 000 read one "
        "block too early for GPT-2 and left the final norm out."
    )
    return Section(
        headline="Thoughts that read out as numbers at the last layer.",
        lines=parts,
        method="The state at each position goes through the stored final norm and unembedding; the best "
        "token counts as a number "
        "if it holds a digit. Bars are the last layer, with 95% Wilson intervals; the maps show every layer.",
        illustrations=[
            Illustration(
                name="position_number_frequency",
                caption="Share of problems in which the most likely token at a position is a number, at the "
                "last layer. "
                "Thin lines are 95% intervals.",
                panels=[Panel(name="position_number_frequency", figure=made, wide=True)],
            ),
            Illustration(
                name="position_number_heatmap",
                caption="The same share in percent, for every layer (rows) and position (columns). A column "
                "that darkens "
                "towards the bottom becomes a number on the way up through the layers.",
                panels=panels,
            ),
        ],
        tables=[
            Table(
                name="number_decoding",
                caption="Number decoding by position at the last layer. “Chain result”: the best token is "
                "one of the problem's own "
                "intermediate results; “other chain”: the same with another problem's results, which is "
                "what chance gives.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Position", key="position", kind="text"),
                    Column(label="n", key="n", kind="count"),
                    Column(
                        label="Number",
                        key="number_share",
                        kind="share",
                        low="number_share_low",
                        high="number_share_high",
                    ),
                    Column(label="Chain result", key="result_share", kind="share"),
                    Column(label="Other chain", key="control_share", kind="share"),
                    Column(label="The answer", key="gold_first_share", kind="share"),
                ],
            )
        ],
        caveats=caveats,
        sources=[each.result for each in [*found, *tests]],
    )


def chain_results(context: Context) -> Section | None:
    """Which position holds which step of the chain."""
    found = [
        f for f in context.find("lens", lambda spec: spec.get("lens", "plain") == "plain") if f.data.sizes.get("step")
    ]
    if not found:
        return None
    panels, parts = [], []
    rows: list[Any] = []
    for each in found:
        lens = each.data.sel(position=lens_positions(each.data)).isel(layer=-1)
        inner = "inner_share" in lens
        which, count = ("inner_share", "n_inner") if inner else ("step_share", "n_step")
        counts = lens[count].max("position").values if count in lens else lens["n_step"].max("position").values
        shown = [i for i in range(lens.sizes["step"]) if counts[i] >= 10]
        if not shown:
            continue
        lens = lens.isel(step=shown)
        values = lens[which].transpose("step", "position").values
        made, ax = draw.figure(4.6, 1.0 + 0.32 * len(shown))
        draw.heat_map(
            ax, 100 * values, [f"step {s + 1}" for s in shown], lens["position"].values, high=100, text="{:.0f}"
        )
        ax.set_title(each.look.label)
        panels.append(Panel(name=f"chain_results_{each.run}", figure=made))
        best = np.nanargmax(np.where(np.isfinite(values), values, -1), axis=1)
        best_cells = [
            f"step {s + 1} at {lens['position'].values[b]} ({share(values[i, b], 0)})"
            for i, (s, b) in enumerate(zip(shown, best, strict=True))
        ]
        parts.append((each.look.label, ", ".join(best_cells)))
        for i, s in enumerate(shown):
            for p in lens["position"].values:
                cell = lens.isel(step=i).sel(position=p)
                rows.append(
                    {
                        "run": each.look.label,
                        "step": s + 1,
                        "position": str(p),
                        "n": int(cell[count] if count in cell else cell["n_step"]),
                        "share": float(cell[which]),
                        "low": float(cell[f"{which}_low"]),
                        "high": float(cell[f"{which}_high"]),
                        "control": float(cell["inner_control_share" if inner else "step_control_share"]),
                        "operator": float(cell["operator_share"]),
                    }
                )
    if not panels:
        return None
    frame = pd.DataFrame(rows)
    best_rows = frame.loc[frame.groupby(["run", "step"], sort=False)["share"].idxmax().dropna()]
    return Section(
        headline="Where each intermediate result reads out best.",
        lines=parts,
        method="At the last layer, the share of problems in which the most likely token at a position is "
        "the result of step k of the "
        "problem's written chain, among the problems in which step k is not the last: the last is the "
        "answer, which is worked out after the thoughts.",
        illustrations=[
            Illustration(
                name="chain_results",
                caption="Rows are the steps of the written chain, columns the positions; a number is the "
                "percentage of the problems "
                "with a step after it in which the state there decodes to exactly that step's result.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="chain_results",
                caption="Best position of each step. The CSV holds every position.",
                frame=best_rows.reset_index(drop=True),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Step", key="step", kind="count"),
                    Column(label="Best position", key="position", kind="text"),
                    Column(label="n", key="n", kind="count"),
                    Column(label="Result decoded", key="share", kind="share", low="low", high="high"),
                    Column(label="Another chain's", key="control", kind="share"),
                    Column(label="Its operator", key="operator", kind="share"),
                ],
            )
        ],
        caveats=[
            "A result that is no single token of the vocabulary can never be found by this lens. The column "
            "“another chain's” says how "
            "often the result of another problem would have matched."
        ],
        sources=[each.result for each in found],
    )
