"""Sections read from stored attention: of the answer, and beside importance."""

from typing import Any

import numpy as np
import pandas as pd

from analyze.report import figures as draw
from analyze.report.content import (
    Column,
    Context,
    Illustration,
    Panel,
    Section,
    Table,
    p_text,
    share,
)

CORRELATIONS = {
    "pooled": "pooled over problems and positions",
    "within": "within problems",
    "partial": "position accounted for",
    "two_way": "within problems, position accounted for",
}


def answer_attention(context: Context) -> Section | None:
    """Where the answer looks."""
    found = context.find("attention")
    if not found:
        return None
    panels, parts, series = [], [], []
    rows: list[Any] = []
    thoughts: list[str] = []
    for each in found:
        queries = [str(x) for x in each.data["query"].values]
        query = "eot" if "eot" in queries else queries[-1]
        at = each.data.sel(query=query)
        targets = [str(x) for x in at["target"].values if query == "answer" or str(x) != "answer"]
        at = at.sel(target=targets)
        values = at["layer_share"].transpose("layer", "target").values
        made, ax = draw.figure(4.6, 0.9 + 0.27 * at.sizes["layer"])
        draw.heat_map(
            ax,
            100 * values,
            [f"layer {x}" for x in at["layer"].values],
            targets,
            high=max(1.0, 100 * np.nanmax(values)),
            text="{:.0f}",
        )
        ax.set_title(f"{each.look.label}, query {query}")
        ax.tick_params(axis="x", labelrotation=40)
        panels.append(Panel(name=f"answer_attention_{each.run}", figure=made))
        thoughts = [x for x in targets if x.startswith("ct")]
        mean = at["layer_share"].mean("layer")
        among = mean.sel(target=thoughts)
        low, high = (at[f"layer_share_{end}"].mean("layer").sel(target=thoughts).values for end in ("low", "high"))
        series.append((each.look, among.values, low, high))
        top = thoughts[int(np.nanargmax(among.values))]
        question = float(mean.sel(target="question"))
        parts.append(
            (
                each.look.label,
                f"{share(float(among.sum()))} to the thoughts together, most to {top} ({share(float(among.max()))}); "
                f"{share(question)} to the question",
            )
        )
        for layer in at["layer"].values:
            cell = at.sel(layer=layer)
            rows.extend(
                {
                    "run": each.look.label,
                    "query": query,
                    "layer": int(layer),
                    "target": target,
                    "share": float(cell["layer_share"].sel(target=target)),
                    "low": float(cell["layer_share_low"].sel(target=target)),
                    "high": float(cell["layer_share_high"].sel(target=target)),
                }
                for target in targets
            )
    made, ax = draw.figure(9.2, 2.9)
    draw.bars(ax, thoughts, [item for item in series if len(item[1]) == len(thoughts)])
    draw.as_percent(ax)
    ax.set_ylabel("share of attention")
    draw.legend_above(ax, 4)
    frame = pd.DataFrame(rows)
    return Section(
        headline="Where eot, which predicts the first answer token, looks (mean over layers and heads).",
        lines=parts,
        method="Every key is counted once: question, bot, each thought, and eot itself, so that a row sums "
        "to 1. The definition is the same "
        "for both architectures.",
        illustrations=[
            Illustration(
                name="attention_by_thought",
                caption="Share of eot's attention that each thought gets, mean over layers and heads. Thin "
                "lines are 95% bootstrap "
                "intervals over problems, averaged over layers.",
                panels=[Panel(name="attention_by_thought", figure=made, wide=True)],
            ),
            Illustration(
                name="attention_by_layer",
                caption="The same by layer (rows), in percent of each row, over everything that can be "
                "attended to (columns). The column "
                "“eot” is the query's attention to itself.",
                panels=panels,
            ),
        ],
        tables=[
            Table(
                name="answer_attention",
                caption="Shares at the last layer; the CSV holds every layer.",
                frame=frame[frame["layer"] == frame.groupby("run")["layer"].transform("max")].reset_index(drop=True),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Layer", key="layer", kind="count"),
                    Column(label="Looks at", key="target", kind="text"),
                    Column(label="Share", key="share", kind="share", low="low", high="high"),
                ],
            )
        ],
        caveats=[
            "Attention is not importance: what is attended to may change nothing when removed (next "
            "sections). Report 003's LLaMA column "
            "“token 5” was eot attending to itself, and its GPT-2 column was one over the row's length."
        ],
        sources=[each.result for each in found],
    )


def attention_and_importance(context: Context) -> Section | None:
    """Correlation of attention with importance."""
    found = context.find("correlate", lambda spec: ":" in str(spec.get("importance", "")))  # of single positions
    found = found or context.find("correlate")
    if not found:
        return None
    panels, scatter, lines = [], [], []
    rows: list[Any] = []
    for each in found:
        data = each.data
        layers = [int(x) for x in data["layer"].values]
        kinds = [k for k in CORRELATIONS if np.isfinite(data[f"{k}_r"].values).any()]
        made, ax = draw.figure(4.6, 2.7)
        for index, kind in enumerate(kinds):
            x = np.arange(len(layers)) + (index - (len(kinds) - 1) / 2) * 0.12
            r, low, high = (data[f"{kind}_r{end}"].values for end in ("", "_low", "_high"))
            colour = (draw.INK, *draw.PALETTE)[index]
            ax.plot(x, r, linestyle="none", marker="osD^"[index], color=colour, label=CORRELATIONS[kind])
            ax.vlines(x, low, high, color=colour, linewidth=1)
        ax.axhline(0, color=draw.MUTED, linewidth=0.8)
        ax.set_ylim(-1.02, 1.02)
        ax.set_xticks(np.arange(len(layers)), [f"layer {x}" for x in layers] if len(layers) < 7 else layers)
        draw.faint_grid(ax)
        ax.set_ylabel("Pearson's r")
        ax.set_title(each.look.label)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=1, fontsize=7.5)
        panels.append(Panel(name=f"correlation_{each.run}", figure=made))
        made, ax = draw.figure(4.6, 2.7)
        last = data.isel(layer=-1)
        at_x, at_y = (np.asarray(last[name].values, dtype=float) for name in ("mean_attention", "mean_importance"))
        ax.plot(at_x, at_y, marker=each.look.marker, color=each.look.colour, linestyle="none")
        for place, position in enumerate(last["position"].values):
            # names of points close together go to different sides
            close = [
                k
                for k in range(place)
                if abs(at_x[k] - at_x[place]) < 0.12 * np.ptp(at_x) and abs(at_y[k] - at_y[place]) < 0.1 * np.ptp(at_y)
            ]
            offset = ((6, 3), (-22, 3), (6, -10), (-22, -10))[len(close) % 4]
            ax.annotate(
                str(position), (at_x[place], at_y[place]), xytext=offset, textcoords="offset points", fontsize=8
            )
        ax.margins(0.2)
        draw.faint_grid(ax, "both")
        ax.set_xlabel("mean attention of the answer")
        ax.set_ylabel(f"mean importance ({each.result.spec.get('importance', 'of the run')})")
        ax.set_title(f"{each.look.label}, layer {layers[-1]}")
        scatter.append(Panel(name=f"attention_against_importance_{each.run}", figure=made))
        at = int(np.nanargmax(np.abs(np.nan_to_num(data["pooled_r"].values))))
        text = f"pooled r = {float(data['pooled_r'][at]):+.2f} at layer {layers[at]}"
        if "two_way" in kinds:
            text += f", within problems and with position accounted for {float(data['two_way_r'][at]):+.2f} "
            text += f"(p {p_text(float(data['two_way_p_adjusted'][at]))})"
        elif "partial" in kinds:
            text += f", with position accounted for {float(data['partial_r'][at]):+.2f} "
            text += f"(p {p_text(float(data['partial_p_adjusted'][at]))})"
        lines.append((each.look.label, text.replace("-", "\N{MINUS SIGN}")))
        for i, layer in enumerate(layers):
            for kind in kinds:
                rows.append(
                    {
                        "run": each.look.label,
                        "layer": layer,
                        "kind": CORRELATIONS[kind],
                        **{end or "r": float(data[f"{kind}_r{end}"][i]) for end in ("", "_low", "_high")},
                        "p": float(data[f"{kind}_p_adjusted"][i]) if f"{kind}_p_adjusted" in data else np.nan,
                    }
                )
            for j, position in enumerate(data["position"].values):
                rows.append(
                    {
                        "run": each.look.label,
                        "layer": layer,
                        "kind": f"at {position}, over problems",
                        **{end or "r": float(data[f"position_r{end}"][i, j]) for end in ("", "_low", "_high")},
                        "p": float(data["position_p_adjusted"][i, j]),
                    }
                )
    measure = str(found[0].result.spec.get("importance", ""))
    return Section(
        headline="Whether the thoughts that the answer attends to are those that matter.",
        lines=lines,
        method=f"Attention of {found[0].result.spec.get('query', 'eot')} to each thought, mean over heads, "
        f"against importance ({measure}), joined by problem and position. A pooled "
        "correlation mixes differences between positions with differences between problems; the others keep "
        "them apart.",
        illustrations=[
            Illustration(
                name="correlation",
                caption="Pearson's r by layer with 95% bootstrap intervals over problems: pooled, and with "
                "what confounds it taken out.",
                panels=panels,
            ),
            Illustration(
                name="attention_against_importance",
                caption="Means over problems of each thought, at the last layer.",
                panels=scatter,
            ),
        ],
        tables=[
            Table(
                name="attention_importance",
                caption="Every correlation, with p from permutations, corrected for their number.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Layer", key="layer", kind="count"),
                    Column(label="Correlation", key="kind", kind="text"),
                    Column(label="r", key="r", kind="signed", low="_low", high="_high"),
                    Column(label="p (corrected)", key="p", kind="p"),
                ],
                limit=20,
            )
        ],
        caveats=[
            "Report 003's r = +0.22 pooled 600 points that are not independent; it rested on one position, "
            "which was eot attending to itself. Its GPT-2 column "
            "paired attention and importance of different problems."
        ],
        sources=[each.result for each in found],
    )
