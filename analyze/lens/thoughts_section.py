"""Section on tuned lenses of single thoughts, and how each reads the others."""

from analyze.labels import labels_along
from analyze.lens.thoughts import ALL, shown_layer, transfer_rows
from analyze.page import Page, Section

TEXTS = r'''
[thought-lenses]
title = "One lens for all thoughts, or one for each"
headline = "Tuned lenses fitted on single thoughts, on odd and even ones and on all, each reading every thought."
method = """\
    An affine map from the state at a layer to the final state is fitted on each thought, on those of odd and of even \
    number, and on all of them; its penalty is chosen on other problems, and every thought is read through each on \
    problems left out. Shown: how often lens and model have the same best token."""
caveats = ["A lens that reads another thought's states badly may only miss where their mean lies."]
[thought-lenses.lines]
own = """\
    at layer {layer} the thought's own lens has the model's best token in {own:share0} of the problems on average, that \
    of all thoughts in {all:share0}, those of other thoughts in {other:share0}"""
[thought-lenses.figures]
thought_lenses = """\
    Rows: what a lens was fitted on. Columns: the thought it reads. Percent of held-out problems in which its best token \
    is the model's."""
[thought-lenses.tables.thought_lenses]
caption = """\
    Divergence from the model's own distribution, in nat, and how much larger it is than that of the thought's own lens; \
    intervals over problems."""
limit = 30
columns = [
    ["Fitted on", "fit", "text"],
    ["Read at", "position", "text"],
    ["Layer", "layer", "count"],
    ["Divergence", "kl", "number", "kl_low", "kl_high"],
    ["More than own", "excess", "number", "excess_low", "excess_high"],
    ["Same best token", "agreement", "share", "agreement_low", "agreement_high"],
]
'''  # noqa: E501


def thought_lenses(page: Page) -> None:
    """Every run whose thoughts have lenses of their own."""
    for result in page.results("thought_lenses"):
        one = result.data.isel(layer=shown_layer(result.data))
        agreement = one["agreement"].transpose("fit", "position").to_pandas()
        positions = labels_along(one, "position")
        page.percent_map("thought_lenses", result, agreement.to_numpy(), list(agreement.index), positions)
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
