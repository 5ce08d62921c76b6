"""Verdicts and the figures behind them as rows, and in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.beside import OPEN, SEEN
from analyze.page import Page, listed
from analyze.tables import Frame
from analyze.verdict.rules import ALL, NO, READABLE, ROUTE, UNDECIDED, UNMEASURED, USED, YES
from analyze.verdict.verdicts import newer
from schemas import filled
from schemas.controls import CONTROLS
from schemas.registry import line

MOST = 3
"""Heads that are named."""
FORMERLY = {"not told apart": UNDECIDED, "not told apart from the control": OPEN}
"""What verdicts in older lakes say."""


def as_now(data: xr.Dataset) -> xr.Dataset:
    """A stored verdict in the words of now."""
    named = [name for name in ("verdict", "control", "says", "against_control") if name in data]
    return data.assign({
        name: (data[name].dims, np.array([FORMERLY.get(str(word), str(word)) for word in data[name].values], object))
        for name in named
    })  # fmt: skip


def thought_rows(data: xr.Dataset) -> Frame:
    """Verdicts of a run with a row for each thought, and for all thoughts together."""
    names, data = ("verdict", "why", "control", "overturned_by"), as_now(data)
    frame = pd.DataFrame({name: data[name].values.astype(str) for name in ("thought", "question", *names)})
    rows: Frame = frame.pivot(index="thought", columns="question").reindex(list(dict.fromkeys(frame["thought"])))
    rows.columns = [f"{question}_{name}" for name, question in rows.columns]
    rows = rows.reindex(columns=[f"{question}_{name}" for question in (READABLE, USED, ROUTE) for name in names])
    rows = rows.fillna("").reset_index()
    rows["route_verdict"] = [to_where(row) for row in rows.to_dict("records")]
    for question in (READABLE, USED):
        parts = zip(rows[f"{question}_why"].str.split("; ").str[0], rows[f"{question}_control"], strict=True)
        rows[f"{question}_because"] = ["; ".join(filter(None, part)) for part in parts]
    return rows


def evidence_rows(data: xr.Dataset) -> Frame:
    """Every figure behind the verdicts."""
    names = [str(name) for name, variable in data.data_vars.items() if variable.dims == ("evidence",)]
    data = as_now(data)
    return pd.DataFrame({name: data[name].values for name in names})


def thoughts_of(rows: Frame) -> Frame:
    """Rows of single thoughts."""
    return rows[rows["thought"].str.fullmatch(r"ct\d+")]


def needless(data: xr.Dataset) -> bool:
    """Whether a thought can be read and is not used."""
    rows = thought_rows(data)
    return bool(((rows["readable_verdict"] == YES) & (rows["used_verdict"] == NO)).any())


def n_range(results: Sequence[xr.Dataset]) -> str:
    """Over how many problems the figures behind some verdicts are."""
    n_of = [int(n) for data in results for n in evidence_rows(data)["n"]]
    if not n_of:
        return "no problems"
    if min(n_of) == max(n_of):
        return "1 problem" if n_of[0] == 1 else f"{n_of[0]} problems"
    return f"{min(n_of)} to {max(n_of)} problems"


def counted(data: xr.Dataset) -> dict[str, Any]:
    """How many thoughts got which verdict, in words."""
    thoughts = thoughts_of(thought_rows(data))
    told_of: dict[str, Any] = {"n_thought": len(thoughts)}
    for question, verb in ((READABLE, "can be"), (USED, "are")):
        verdicts = thoughts[f"{question}_verdict"].value_counts()
        n_yes = int(verdicts.get(YES, 0))
        count = "all" if n_yes == len(thoughts) else str(n_yes or "none")
        left = [f"{verdicts[verdict]} {verdict}" for verdict in (UNDECIDED, UNMEASURED) if verdicts.get(verdict, 0)]
        # That none is would say more than the intervals.
        none = "none shown to be", "none are shown to be"
        short, whole = none if left and not n_yes else (count, f"{count} {verb}")
        told_of |= {question: short, f"{question}_are": whole}
        told_of[f"{question}_open"] = f" ({', '.join(left)})" if left else ""
    n_alike = len(as_in_control(thoughts))
    told_of["used_alike"] = f", {n_alike} of them not distinguishable from a control" if n_alike else ""
    return told_of


def as_in_control(rows: Frame) -> list[str]:
    """Thoughts that are used, but not told from what a control shows."""
    alike = (rows["used_verdict"] == YES) & rows["used_control"].isin([SEEN, OPEN])
    return list(rows.loc[alike, "thought"])


def to_where(row: dict[str, str]) -> str:
    """Where a thought leads, instead of a yes."""
    if row["route_verdict"] != YES:
        return row["route_verdict"]
    names = list(dict.fromkeys(part.split(" ")[0] for part in row["route_why"].split("; ")))
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"yes: {'by ' if row['thought'] == ALL else ''}{', '.join(names[:MOST])}{more}"


def told(rows: Frame, question: str) -> str:
    """Which thoughts got which verdict, in words; thoughts only, and only verdicts that there are."""
    thoughts = thoughts_of(rows)
    words = {
        YES: ("{}", "all"),
        NO: ("not {}", "none"),
        UNDECIDED: ("undecided {}", "all undecided"),
        UNMEASURED: ("not measured {}", "none measured"),
    }
    parts = []
    for verdict, (some, all_of_them) in words.items():
        names = list(thoughts.loc[thoughts[f"{question}_verdict"] == verdict, "thought"])
        if names:
            parts.append(all_of_them if len(names) == len(thoughts) else some.format(listed(names)))
    return "; ".join(parts)


def read_by(evidence: Frame, rows: Frame) -> str:
    """Which thoughts each method reads, in words."""
    thoughts = list(thoughts_of(rows)["thought"])
    of_question = evidence[evidence["of_question"] == READABLE]
    parts = []
    for method, of_method in of_question.groupby("method", sort=False):
        says = [set(of_method.loc[of_method["of_thought"] == name, "says"]) for name in thoughts]
        read = [name for name, said in zip(thoughts, says, strict=True) if YES in said]
        none = "none" if all(said == {NO} for said in says) else "none shown"
        parts.append(f"by the {method}: {'all' if len(read) == len(thoughts) else listed(read) or none}")
    return "; ".join(parts) or UNMEASURED


def misleading(evidence: Frame) -> Frame:
    """Figures that say yes and decide nothing, of thoughts of which the methods that decide say no."""
    if evidence.empty:
        return evidence
    used = evidence[evidence["of_question"] == USED]
    place = ["run", "of_thought"]
    yes = used[used["counts"] & (used["says"] == YES)][place].drop_duplicates().assign(used=True)
    marked = used.merge(yes, on=place, how="left")
    return marked[~marked["counts"] & (marked["says"] == YES) & marked["used"].isna()]


def used_by(rows: Frame) -> str:
    """Which thoughts are used, in words, and which of these are not distinguishable from a control."""
    alike = as_in_control(thoughts_of(rows))
    return told(rows, USED) + (f" ({listed(alike)} not distinguishable from a control)" if alike else "")


def of_all(rows: Frame) -> str:
    """The verdict on the use of all thoughts at once."""
    verdict = str(rows.set_index("thought")["used_verdict"].get(ALL, UNMEASURED))
    return f"{verdict}, not distinguishable from a control" if ALL in as_in_control(rows) else verdict


def opening(page: Page) -> str:
    """Lines: what follows, if it does; thoughts read and used of each model and its first control; of what problems."""
    results = page.results("verdict")
    context = page.context
    mains = [result for result in results if result.run.partition("/")[0] not in context.controls] or results
    sentences, kinds = [], {}
    for result in mains:
        model, _, data_set = result.run.partition("/")
        names = [f"{name}/{data_set}" for name in context.controls_of(model)]
        twin = next((other for other in results if other.run in names), None)
        values = counted(result.data)
        if twin is not None:
            kind = context.controls[twin.run.partition("/")[0]].kind
            values |= {f"other_{key}": value for key, value in counted(twin.data).items()} | {"twin": twin.label}
            kinds[kind] = CONTROLS[kind]
        sentences.append(page.text("alone" if twin is None else "beside", label=result.label, **values))
    if any(needless(result.data) for result in results):
        sentences.insert(0, page.text("lesson"))
    for result in results:
        if names := newer(context.lake, result.data):
            command = filled(line("verdict"), context.shown_location, [result.run])
            sentences.append(page.text("older", run=result.label, results=listed(names), command=command))
    shown = {result.run.partition("/")[2]: None for result in results}
    size = page.text("size", data=listed([*shown]))
    by_design = "; ".join(f"{kind}: {what}" for kind, what in kinds.items())
    return "\n".join([*sentences, " ".join([size, *[page.text("known", kinds=by_design)] * bool(kinds)])])
