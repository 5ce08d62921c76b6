"""Section on tuned lenses of single thoughts, and how each reads the others."""

from analyze.labels import labels_along
from analyze.lens.thoughts import ALL, shown_layer, transfer_rows
from analyze.page import Page, Section


def thought_lenses(page: Page) -> None:
    """Every run whose thoughts have lenses of their own."""
    for result in page.results("thought_lenses"):
        one = result.data.isel(layer=shown_layer(result.data))
        page.percent_map("thought_lenses", result, one["agreement"].transpose("fit", "position"))
        agreement, positions = one["agreement"].transpose("fit", "position").to_pandas(), labels_along(one, "position")
        page.add("thought_lenses", result, transfer_rows(result.data))
        own = agreement.loc[positions].to_numpy()
        n = len(positions)
        other = (own.sum() - own.trace()) / (n * (n - 1))
        values = {"own": own.trace() / n, "other": other, "all": agreement.loc[ALL].mean()}
        page.say(result, "own", layer=int(one["layer"]), **values)


SECTIONS = (
    Section(
        slug="thought-lenses", write=thought_lenses, chapter="report-000", order=34,
        needs=("thought_lenses --lens tuned",),
    ),
)  # fmt: skip
