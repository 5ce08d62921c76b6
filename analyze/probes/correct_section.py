"""Section of whether the answer is right, read off the states by linear probes."""

from typing import Any

from analyze.beside import number
from analyze.context import StoredResult
from analyze.labels import up_to_eot
from analyze.page import Page, Section, share
from analyze.probes.command import as_they_come
from analyze.probes.linear import summarise_probes
from schemas.picked import Pick


def probe_results(page: Page, target: str, *, optional: bool = False) -> list[StoredResult]:
    """Grids of probes for a target, over all examples rather than as many of each class."""
    return page.results("probes", lambda spec: spec.get("target") == target and as_they_come(spec), optional=optional)


def linear_probes(page: Page) -> None:
    """Is it correct: read off the states, held out."""
    few = []
    results = probe_results(page, "correct")
    for result in results:
        data = up_to_eot(result.data)
        page.map("probe_heatmap", result, data["auroc"].transpose("layer", "position"), low=0.5, title="AUROC")
        summary, accuracy = summarise_probes(data, "auroc").iloc[0], summarise_probes(data).iloc[0]
        best: dict[str, Any] = dict(summary) | {name: int(summary[name]) for name in ("found", "n_cell")}
        page.say(result, "best", **best | {"accuracy": accuracy["mean"], "baseline": accuracy["baseline"]})
        page.add("linear_probes", result, probe_rows(data))
        place = {"layer": best["best_layer"], "position": best["best_position"]}
        what = f"layer {best['best_layer']}, {best['best_position']}"
        page.find(result, number(what, "auroc", nothing=0.5, read=up_to_eot, pick=Pick(best["n_cell"]), **place))
        wrong = 1 - float(data["majority_accuracy"].mean())
        few += [page.text("few", label=result.label, wrong=wrong)] if wrong < 0.03 else []
    trained = page.frame("linear_probes").groupby("run", sort=False)["refit_training_accuracy"].mean()
    trained = "; ".join(f"{run} {share(value)}" for run, value in trained.items())
    page.set(note=str(results[0].data.attrs.get("note", "")), few=few, trained=trained)


def probe_rows(data: Any) -> Any:
    """Every figure of each probe."""
    names = [name for name in data.data_vars if set(data[name].dims) <= {"step", "layer", "position"}]
    return data[names].to_dataframe().reset_index()


SECTIONS = (
    Section(
        slug="linear-probes", write=linear_probes, chapter="report-001", order=10, needs=("probes --target correct",)
    ),
)
