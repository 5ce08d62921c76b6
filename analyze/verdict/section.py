"""The page's first table: of each thought whether it is readable, used, and where it leads."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyze.context import StoredResult
from analyze.page import Page, Section, listed
from analyze.verdict.rules import ALL, NO, READABLE, ROUTE, UNDECIDED, UNMEASURED, USED, YES
from schemas.controls import CONTROLS

MOST = 3
"""Heads that are named."""


def verdicts(page: Page) -> None:
    """One row for each thought of every run that was judged."""
    missing: dict[str, dict[str, None]] = {}
    for result in page.results("verdict"):
        rows = thought_rows(result)
        page.add("verdict", result, rows)
        evidence = evidence_rows(result)
        page.say(result, "verdict", readable=read_by(evidence, rows), used=told(rows, USED), together=of_all(rows))
        page.set(margin=float(result.data.attrs["margin"]), level=float(result.data.attrs["level"]))
        page.add("verdict_evidence", result, evidence)
        for row in left_open(result):
            command = row["command"].replace(str(page.context.lake.location), page.context.shown_location)
            model = result.run.partition("/")[0]
            run = next((word for word in command.split() if word.startswith(f"{model}/")), result.run)
            what = f"{row['method']} (for {row['question']}): {command.replace(run, 'RUNS')}"
            missing.setdefault(what, {})[run] = None
    page.set(missing="; ".join(what.replace("RUNS", " ".join(runs)) for what, runs in missing.items()))
    controls = {result.label for result in page.results("verdict") if is_control(page, result)}
    page.show("verdict", lambda rows: rows if set(rows["run"]) <= controls else rows[~rows["run"].isin(controls)])
    page.size = f"n = {n_range(page.results('verdict'))} by figure"
    page.opening = first_sentences(page)
    page.show("verdict_evidence", misleading)


def is_control(page: Page, result: StoredResult) -> bool:
    """Whether a result is of a model that is another's control."""
    return result.run.partition("/")[0] in page.context.controls


def first_sentences(page: Page) -> str:
    """Lines: what follows, if it does; thoughts read and used of each model and its first control; of what problems."""
    results = page.results("verdict")
    mains = [result for result in results if not is_control(page, result)] or results
    sentences, kinds = [], {}
    for result in mains:
        names = page.context.controls_of(result.run.partition("/")[0])
        twin = next((other for other in results if other.run.partition("/")[0] in names), None)
        values = counted(result)
        if twin is not None:
            kind = page.context.controls[twin.run.partition("/")[0]].kind
            values |= {f"other_{key}": value for key, value in counted(twin).items()}
            values |= {"twin": twin.label}
            kinds[kind] = CONTROLS[kind]
        sentences.append(page.text("alone" if twin is None else "beside", label=result.label, **values))
    shown = {result.run.partition("/")[2]: None for result in results}
    if any(needless(result) for result in results):
        sentences.insert(0, page.text("lesson"))
    size = page.text("size", n=n_range(results), data=listed([*shown]), margin=page.values["margin"])
    by_design = "; ".join(f"{kind}: {what}" for kind, what in kinds.items())
    known = page.text("known", kinds=by_design) if kinds else ""
    return "\n".join([*sentences, " ".join(filter(None, (size, known)))])


def needless(result: StoredResult) -> bool:
    """Whether a thought can be read and is not used."""
    rows = thought_rows(result)
    return bool(((rows["readable_verdict"] == YES) & (rows["used_verdict"] == NO)).any())


def n_range(results: Sequence[StoredResult]) -> str:
    """Over how many problems the figures behind some verdicts are."""
    n_of = [int(n) for one in results for n in evidence_rows(one)["n"]]
    if not n_of:
        return "no problems"
    if min(n_of) == max(n_of):
        return "1 problem" if n_of[0] == 1 else f"{n_of[0]} problems"
    return f"{min(n_of)} to {max(n_of)} problems"


def counted(result: StoredResult) -> dict[str, Any]:
    """How many thoughts got which verdict, in words."""
    rows = thought_rows(result)
    thoughts = rows[rows["thought"].str.fullmatch(r"ct\d+")]
    told_of = {}
    for question in (READABLE, USED):
        verdicts = thoughts[f"{question}_verdict"].value_counts()
        n_yes = int(verdicts.get(YES, 0))
        told_of[question] = "all" if n_yes == len(thoughts) else str(n_yes or "none")
        left = [f"{verdicts[verdict]} {verdict}" for verdict in (UNDECIDED, UNMEASURED) if verdicts.get(verdict, 0)]
        told_of[f"{question}_open"] = f" ({', '.join(left)})" if left else ""
    return {"n_thought": len(thoughts), **told_of}


def thought_rows(result: StoredResult) -> Any:
    """Verdicts of a run with a row for each thought, and for all thoughts together."""
    data = result.data
    names = ("thought", "question", "verdict", "why", "control", "overturned_by")
    frame: Any = pd.DataFrame({name: data[name].values.astype(str) for name in names})
    rows = []
    for thought in dict.fromkeys(frame["thought"]):
        of_thought = frame[frame["thought"] == thought].set_index("question")
        row = {"thought": thought}
        for question in (READABLE, USED, ROUTE):
            known = of_thought.loc[question] if question in of_thought.index else None
            for name in ("verdict", "why", "control", "overturned_by"):
                row[f"{question}_{name}"] = "" if known is None else str(known[name])
        row["route_verdict"] = to_where(row)
        for question in (READABLE, USED):
            largest, control = row[f"{question}_why"].split("; ")[0], row[f"{question}_control"]
            row[f"{question}_because"] = "; ".join(filter(None, (largest, control)))
        rows.append(row)
    return pd.DataFrame(rows)


def to_where(row: dict[str, str]) -> str:
    """Where a thought leads, instead of a yes."""
    if row["route_verdict"] != YES:
        return row["route_verdict"]
    names = list(dict.fromkeys(part.split(" ")[0] for part in row["route_why"].split("; ")))
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"yes: {'by ' if row['thought'] == ALL else ''}{', '.join(names[:MOST])}{more}"


def told(rows: Any, question: str) -> str:
    """Which thoughts got which verdict, in words; thoughts only, and only verdicts that there are."""
    thoughts = rows[rows["thought"].str.fullmatch(r"ct\d+")]
    words = {
        YES: ("{}", "all"),
        NO: ("not {}", "none"),
        UNDECIDED: ("not told apart {}", "none told apart"),
        UNMEASURED: ("not measured {}", "none measured"),
    }
    parts = []
    for verdict, (some, all_of_them) in words.items():
        names = list(thoughts.loc[thoughts[f"{question}_verdict"] == verdict, "thought"])
        if names:
            parts.append(all_of_them if len(names) == len(thoughts) else some.format(listed(names)))
    return "; ".join(parts)


def read_by(evidence: Any, rows: Any) -> str:
    """Which thoughts each method reads, in words."""
    thoughts = list(rows.loc[rows["thought"].str.fullmatch(r"ct\d+"), "thought"])
    of_question = evidence[evidence["of_question"] == READABLE]
    parts = []
    for method, of_method in of_question.groupby("method", sort=False):
        read = [name for name in thoughts if (of_method.loc[of_method["of_thought"] == name, "says"] == YES).any()]
        parts.append(f"by the {method}: {'all' if len(read) == len(thoughts) else listed(read) or 'none'}")
    return "; ".join(parts) or UNMEASURED


def misleading(evidence: Any) -> Any:
    """Figures that say yes and decide nothing, of thoughts of which the methods that decide say no."""
    if evidence.empty:
        return evidence
    used = evidence[evidence["of_question"] == USED]
    place = ["run", "of_thought"]
    yes = used[used["counts"] & (used["says"] == YES)][place].drop_duplicates().assign(used=True)
    marked = used.merge(yes, on=place, how="left")
    return marked[~marked["counts"] & (marked["says"] == YES) & marked["used"].isna()]


def of_all(rows: Any) -> str:
    """The verdict on the use of all thoughts at once."""
    return str(rows.set_index("thought")["used_verdict"].get(ALL, UNMEASURED))


def evidence_rows(result: StoredResult) -> Any:
    """Every figure behind the verdicts."""
    names = [str(name) for name, variable in result.data.data_vars.items() if variable.dims == ("evidence",)]
    return pd.DataFrame({name: result.data[name].values for name in names})


def left_open(result: StoredResult) -> list[dict[str, str]]:
    """What was not measured of a run, and by which command it is."""
    return list(json.loads(result.data.attrs.get("missing", "[]")))


SECTIONS = (Section(slug="verdict", write=verdicts, chapter="verdict", order=0, needs=("verdict",), key=True),)
