"""Sections read from stored attention and hidden states: number decoding, attention, critical heads."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.heads import head_table, summary_of_analysis
from analyze.report import figures as draw
from analyze.report.content import (
    Column,
    Context,
    Found,
    Illustration,
    Panel,
    Section,
    Table,
    listed,
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


def p_text(p: float) -> str:
    """A p-value for a sentence."""
    if np.isnan(p):
        return "n/a"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


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


def critical_heads(context: Context) -> Section | None:
    """Ranked heads, with the maps of the best."""
    found = context.find("heads", lambda spec: spec.get("convention", "thoughts") == "thoughts")
    if not found:
        return None
    reports = {f.run: f for f in context.find("heads", lambda spec: spec.get("convention") == "reports")}
    illustrations, parts = [], []
    rows: list[Any] = []
    for each in found:
        table = head_table(each.data)
        rows.append(head_rows(each, table))
        best = table.iloc[0]
        parts.append(
            (
                each.look.label,
                f"L{best['layer']}H{best['head']}, {SHORT_TYPES.get(str(best['type']), str(best['type']))}, composite "
                f"{best['composite']:.2f} [{best['composite_low']:.2f}, {best['composite_high']:.2f}]",
            )
        )
        top = table.head(6)
        shown = [each.data["pattern"].sel(layer=h["layer"], head=h["head"]) for _, h in top.iterrows()]
        strongest = max(float(np.nanmax(np.tril(one.values))) for one in shown)
        made, axes = draw.figure(9.2, 2.2, ncols=6)
        for ax, (_, head) in zip(np.ravel(axes), top.iterrows(), strict=False):
            pattern = (
                each.data["pattern"].sel(layer=head["layer"], head=head["head"]).transpose("position", "key_position")
            )
            thought_map(ax, pattern, text=False, high=strongest)
            ax.set_title(f"L{head['layer']}H{head['head']}  {head['composite']:.2f}", fontsize=8.5)
            ax.set_xlabel(SHORT_TYPES.get(str(head["type"]), str(head["type"])), fontsize=8)
        for ax in np.ravel(axes)[len(top) :]:
            ax.set_visible(False)
        illustrations.append(
            Illustration(
                name=f"critical_heads_{each.run}",
                caption=f"{each.look.label}: the {len(top)} heads with the highest composite score. Rows "
                "are the thought that looks, columns the thought looked at, colour the mean attention (full "
                f"strength at {strongest:.2f}); below each its type.",
                panels=[Panel(name=f"critical_heads_{each.run}", figure=made, wide=True)],
            )
        )
    frame = pd.concat(rows, ignore_index=True)
    caveats = [
        "Rank and composite carry a bootstrap over problems; “in the top 20” is how often the head stays "
        "there. A high score says what "
        "a head does with its attention, not that the model needs it: see head ablation."
    ]
    constant = {e.look.label: constant_metrics(e.data) for e in found}
    flat = [f"{label}: {names}" for label, names in constant.items() if names]
    if flat:
        caveats.append("Constant over all heads, so that its weight went to the others: " + "; ".join(flat) + ".")
    if reports:
        lines = []
        for run, other in reports.items():
            first = head_table(other.data).iloc[0]
            lines.append(
                f"{context.relabel([run])[run].label} L{first['layer']}H{first['head']} (composite "
                f"{first['composite']:.2f} of at most 0.60)"
            )
        caveats.append(
            "By report 004's own convention (columns shifted by one, flow 1 by construction) the first would be "
            + "; ".join(lines)
            + "."
        )
    return Section(
        headline="The highest-scoring head of each model.",
        lines=parts,
        method="Flow is the share of a head's attention among thoughts that goes to earlier ones; hub, what "
        "its most sought thought gets beyond "
        "an even causal spread; skip, the mean attention of the last thought to the first half. The "
        "composite scales each to 0–1 over "
        "the model's heads and adds 0.4 flow + 0.4 hub + 0.2 skip.",
        illustrations=illustrations,
        tables=[
            Table(
                name="ranked_heads",
                caption="The first ten heads of each model; the CSV ranks every head.",
                frame=frame,
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Rank", key="rank", kind="count"),
                    Column(label="Head", key="name", kind="code"),
                    Column(label="Type", key="type", kind="text"),
                    Column(label="Band", key="band", kind="text"),
                    Column(label="Composite", key="composite", low="composite_low", high="composite_high"),
                    Column(label="Flow", key="flow"),
                    Column(label="Hub", key="hub"),
                    Column(label="at", key="hub_position", kind="text"),
                    Column(label="Skip", key="skip", digits=3),
                    Column(label="Largest", key="max_attention"),
                    Column(label="In the top 20", key="top_share", kind="share", digits=0),
                ],
                limit=10,
            )
        ],
        caveats=caveats,
        sources=[each.result for each in [*found, *reports.values()]],
    )


SHORT_TYPES = {
    "Forward Flow": "forward flow",
    "Hub Aggregator": "hub",
    "Skip Connection": "skip",
    "Multi-Purpose": "multi-purpose",
    "": "no type",
}


def constant_metrics(data: xr.Dataset) -> str:
    """Metrics that gave their weight away."""
    return listed(
        [m for m in ("flow", "hub", "skip") if f"{m}_weight" in data and float(data[f"{m}_weight"].max()) == 0]
    )


def head_rows(each: Found, table: pd.DataFrame) -> pd.DataFrame:
    """Ranked heads with the run and a name in front."""
    named = table.copy()
    named.insert(0, "run", each.look.label)
    named.insert(2, "name", [f"L{layer}H{head}" for layer, head in zip(table["layer"], table["head"], strict=True)])
    return named


def thought_map(ax: Any, pattern: xr.DataArray, *, text: bool = True, high: float = 1.0) -> None:
    """Map of one head, empty above the diagonal."""
    values = np.array(pattern.values, dtype="float64")
    rows, columns = ([str(x) for x in pattern[dim].values] for dim in ("position", "key_position"))
    order = {label: index for index, label in enumerate(["bot", *(f"ct{i}" for i in range(64)), "eot"])}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if order.get(column, 0) > order.get(row, 0):
                values[i, j] = np.nan
    labels = None if text else np.full(values.shape, "", dtype=object)
    draw.heat_map(ax, values, rows, columns, labels=labels, size=7, high=high)
    if not text:
        for drawn in list(ax.texts):
            if drawn.get_text() == "·":
                drawn.remove()
    ax.set_aspect("equal")
    ax.tick_params(labelsize=6.5)
    ax.tick_params(axis="x", labelrotation=90)


def head_summaries(context: Context) -> list[Found]:
    """Summary over heads, of every run whose heads were scored."""
    found = context.find("heads", lambda spec: spec.get("convention", "thoughts") == "thoughts")
    return [replace(each, data=summary_of_analysis(each.data)) for each in found]


def hubs(context: Context) -> Section | None:
    """Which thought the others look at."""
    found = head_summaries(context)
    if not found:
        return None
    panels, parts = [], []
    rows: list[Any] = []
    for each in found:
        data = each.data
        keys = [str(x) for x in data["key_position"].values]
        highest = 1.05 * max(float(f.data[name].max()) for f in found for name in ("incoming", "expected"))
        incoming, expected = data["incoming"].values, data["expected"].values
        made, ax = draw.figure(4.6, 2.5)
        draw.bars(ax, keys, [(each.look, incoming, None, None)])
        ax.set_ylim(0, highest)
        ax.hlines(expected, np.arange(len(keys)) - 0.45, np.arange(len(keys)) + 0.45, color=draw.INK, linewidth=1.6)
        ax.set_title(each.look.label)
        ax.set_ylabel("attention received")
        panels.append(Panel(name=f"hubs_{each.run}", figure=made))
        hub = str(data["hub_position"].item())
        ratio = float(data["ratio"].sel(key_position=hub)) if hub in keys else float("nan")
        parts.append(
            (
                each.look.label,
                f"{hub}, {ratio:.2f} times an even spread" if ratio > 1 else "no thought exceeds an even spread",
            )
        )
        rows.extend(
            {
                "run": each.look.label,
                "thought": key,
                "incoming": float(incoming[i]),
                "expected": float(expected[i]),
                "ratio": float(data["ratio"].values[i]),
                "hub_heads": int(data["hub_count"].sel(key_position=key)) if "hub_count" in data else None,
            }
            for i, key in enumerate(keys)
        )
    return Section(
        headline="The thought that later thoughts seek most, over all heads.",
        lines=parts,
        method="For each thought, the attention that all later thoughts pay it, mean over heads. Early "
        "thoughts have more thoughts after them, so "
        "the comparison is with what each would get if every row spread the same attention evenly over "
        "itself and all before it.",
        illustrations=[
            Illustration(
                name="hub_analysis",
                caption="Attention received from later thoughts (bars), and what an even causal spread "
                "would give (thin line across). Above the line: "
                "sought after.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="hubs",
                caption="Hub scores by thought. “Hub heads”: how many of the top 20 heads have their hub there.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Thought", key="thought", kind="text"),
                    Column(label="Received", key="incoming", digits=3),
                    Column(label="Even spread", key="expected", digits=3),
                    Column(label="Ratio", key="ratio"),
                    Column(label="Hub heads", key="hub_heads", kind="count"),
                ],
            )
        ],
        caveats=[
            "Report 004 compared column sums with 1/6, which an even spread does not give: ct0 is seen by "
            "five later thoughts, ct4 by one. Its columns were "
            "also shifted by one, so that its “hub CT0/CT1” included each step's attention to itself."
        ],
        sources=[each.result for each in found],
    )


def flow_and_skip(context: Context) -> Section | None:
    """Step to step, and across."""
    found = head_summaries(context)
    if not found:
        return None
    made, axes = draw.figure(9.2, 2.8, ncols=2)
    parts = []
    rows: list[Any] = []
    for each in found:
        sequential, skip = each.data["sequential"], each.data["skip"].dropna("key_position")
        x = np.arange(sequential.size)
        axes[0].plot(x, sequential.values, **each.look.line())
        axes[1].plot(np.arange(skip.size), skip.values, **each.look.line())
        step, across = float(sequential.mean()), float(skip.mean())
        parts.append(
            (
                each.look.label,
                f"{share(step)} to the thought before, {share(across)} from the last thought to each of the first half",
            )
        )
        labels = [str(v) for v in sequential[sequential.dims[0]].values]
        rows.extend(
            {"run": each.look.label, "kind": "sequential", "position": label, "attention": float(v)}
            for label, v in zip(labels, sequential.values, strict=True)
        )
        labels = [str(v) for v in skip[skip.dims[0]].values]
        rows.extend(
            {"run": each.look.label, "kind": "skip", "position": label, "attention": float(v)}
            for label, v in zip(labels, skip.values, strict=True)
        )
    sequential, skip = found[0].data["sequential"], found[0].data["skip"].dropna("key_position")
    axes[0].set_xticks(np.arange(sequential.size), [str(v) for v in sequential[sequential.dims[0]].values])
    axes[1].set_xticks(np.arange(skip.size), [str(v) for v in skip[skip.dims[0]].values])
    axes[0].set_title("to the thought before")
    axes[1].set_title("from the last thought")
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(0, top)
        draw.as_percent(ax)
        draw.faint_grid(ax)
    axes[0].set_ylabel("attention, mean over heads")
    axes[0].legend(loc="best")
    return Section(
        headline="Attention step to step and across, mean over all heads.",
        lines=parts,
        method="Sequential: what each thought pays the one before it. Skip: what the last thought pays the "
        "first half of them.",
        illustrations=[
            Illustration(
                name="flow_and_skip",
                caption="Left, attention of each thought (x) to its predecessor; right, attention of the "
                "last thought to early ones (x). Both on one "
                "scale, means over heads and problems.",
                panels=[Panel(name="flow_and_skip", figure=made, wide=True)],
            )
        ],
        tables=[
            Table(
                name="flow_and_skip",
                caption="Sequential and skip attention.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Kind", key="kind", kind="text"),
                    Column(label="Thought", key="position", kind="text"),
                    Column(label="Attention", key="attention", kind="share"),
                ],
            )
        ],
        caveats=[
            "What report 004 called sequential flow was, by its index, each step's attention to itself; "
            "here it is to the thought before."
        ],
        sources=[each.result for each in found],
    )


def types_and_layers(context: Context) -> Section | None:
    """What the best heads do and where they lie."""
    found = head_summaries(context)
    if not found:
        return None
    panels, parts = [], []
    rows: list[Any] = []
    for dim, variable, title in (("type", "type_count", "what they do"), ("band", "band_count", "where they lie")):
        if any(variable not in each.data for each in found):
            continue
        groups = [str(x) for x in found[0].data[dim].values]
        made, ax = draw.figure(4.6, 2.6)
        draw.bars(
            ax,
            [SHORT_TYPES.get(g, g) for g in groups],
            [(each.look, each.data[variable].values.astype(float), None, None) for each in found],
        )
        ax.set_title(f"Top heads: {title}")
        ax.set_ylabel("heads")
        ax.yaxis.get_major_locator().set_params(integer=True)
        if dim == "type":
            ax.legend(loc="best")
        panels.append(Panel(name=f"top_heads_{dim}", figure=made))
        rows.extend(
            {"run": each.look.label, "group": dim, "value": group, "heads": int(each.data[variable].sel({dim: group}))}
            for each in found
            for group in groups
        )
    for each in found:
        kind = str(each.data["type"].values[int(np.argmax(each.data["type_count"].values))])
        place = str(each.data["band"].values[int(np.argmax(each.data["band_count"].values))])
        parts.append(
            (
                each.look.label,
                f"most are {SHORT_TYPES.get(kind, kind)} heads; most lie in the {place} third of the layers",
            )
        )
    return Section(
        headline="What the top heads do and where they lie.",
        lines=parts,
        method="Types by the highest scaled metric (multi-purpose: the two best both above 0.7). Bands are "
        "thirds of the model's depth.",
        illustrations=[
            Illustration(
                name="types_and_layers",
                caption="Number of the top 20 heads (or of all, where a model has fewer) of each type and "
                "in each third of the depth.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="types_and_layers",
                caption="Counts among the top heads.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="By", key="group", kind="text"),
                    Column(label="Value", key="value", kind="text"),
                    Column(label="Heads", key="heads", kind="count"),
                ],
            )
        ],
        caveats=["Counts of a ranking inherit its uncertainty; models with fewer than 20 heads count all of them."],
        sources=[each.result for each in found],
    )
