"""The page's first table: of each thought whether it is readable, used, and where it leads."""

import json

from analyze.page import Page, Section
from analyze.verdict.shown import evidence_rows, misleading, n_range, of_all, opening, read_by, thought_rows, used_by


def verdicts(page: Page) -> None:
    """One row for each thought of every run that was judged."""
    results = page.results("verdict")
    missing: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for result in results:
        rows, evidence = thought_rows(result.data), evidence_rows(result.data)
        page.add("verdict", result, rows)
        page.say(result, "verdict", readable=read_by(evidence, rows), used=used_by(rows), together=of_all(rows))
        page.set(margin=float(result.data.attrs["margin"]), level=float(result.data.attrs["level"]))
        page.add("verdict_evidence", result, evidence)
        for row in json.loads(result.data.attrs.get("missing", "[]")):
            command = row["command"].replace(str(page.context.lake.location), page.context.shown_location)
            model = result.run.partition("/")[0]
            run = next((word for word in command.split() if word.startswith(f"{model}/")), result.run)
            methods, runs = missing.setdefault((row["question"], command.replace(run, "RUNS")), ({}, {}))
            methods[row["method"]] = runs[run] = None
    controls = {result.label for result in results if result.run.partition("/")[0] in page.context.controls}
    page.show("verdict", lambda rows: rows if set(rows["run"]) <= controls else rows[~rows["run"].isin(controls)])
    page.show("verdict_evidence", misleading)
    n = n_range([result.data for result in results])
    page.size = f"n = {n} by figure"
    lines = [
        f"{', '.join(methods)} (for {question}): {command.replace('RUNS', ' '.join(runs))}"
        for (question, command), (methods, runs) in missing.items()
    ]
    page.set(missing="; ".join(lines), n=n)
    page.opening = opening(page)


SECTIONS = (Section(slug="verdict", write=verdicts, chapter="verdict", order=0, needs=("verdict",), key=True),)
