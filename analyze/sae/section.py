"""Section of sparse autoencoders."""

from typing import Any

from analyze.drawing import HEAT, bars_across
from analyze.page import Page, Section, listed
from analyze.sae.rows import dictionary_rows, source_name


def sparse_autoencoders(page: Page) -> None:
    """How well few features rebuild the states."""
    context = page.context
    results = page.joint(
        "sae", lambda one: one.stored.name, where=lambda one: "explained_variance_all" in context.open(one)
    )
    results.sort(key=lambda one: (len(one.stored.runs), context.runs.index(one.stored.runs[0])))
    page.sources = [result.stored for result in results]
    for result in results:
        for source, row in dictionary_rows(result.data).items():
            page.add("sparse_autoencoders", source_name(source) or result, [row])
    frame = page.frame("sparse_autoencoders")
    names = [f"{row['run']}, {row['scope'] or 'pool'}, {row['activation']}" for row in frame.to_dict("records")]
    ax = page.panel("sae_variance", wide=True, height=0.9 + 0.34 * len(frame))
    bars_across(ax, names, frame["squared_error"].clip(lower=0), height=0.62, facecolor=HEAT, edgecolor=HEAT)
    ax.set_xlim(0, 1)
    ax.set_xlabel("variance explained on test problems")
    for run, rows in frame[frame["scope"] != "crosscoder"].groupby("run", sort=False):
        page.say_of(str(run), page.text("best", **dict(rows.loc[rows["squared_error"].idxmax()])))
        for library in dict.fromkeys(name for name in rows["library"] if name):
            page.say_more(str(run), page.text("elsewhere", library=library))
    for result in results:
        say_crosscoder(page, dictionary_rows(result.data))
    label_of = {result.stored.runs[0]: result.label for result in results if len(result.stored.runs) == 1}
    for own, label in label_of.items():
        model, _, data_set = own.partition("/")
        for control in [] if model in context.controls else context.controls_of(model):
            rows = frame[frame["run"] == label_of.get(f"{control}/{data_set}")]
            if len(rows):
                name, variance = rows["run"].iloc[0], rows["squared_error"].max()
                page.say_more(label, page.text("control", run=name, variance=variance))


def say_crosscoder(page: Page, rows: dict[str, dict[str, Any]]) -> None:
    """One sentence of a dictionary that several layers share; nothing of any other."""
    spec = next(iter(rows.values()))
    if spec["scope"] != "crosscoder":
        return
    models = list(dict.fromkeys(source.rpartition("/")[0] or source for source in rows))
    parts = [page.text("layer", share=row["squared_error"], source=source_name(name)) for name, row in rows.items()]
    page.say_of(listed(models), page.text("crosscoder", parts=listed(parts), **spec))


SECTIONS = (
    Section(slug="sparse-autoencoders", write=sparse_autoencoders, chapter="report-001", order=30, needs=("sae",)),
)
