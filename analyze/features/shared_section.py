"""Section on the features of a crosscoder that two models share."""

from analyze.features.figures import plot_shared
from analyze.page import Page, Section


def shared(page: Page) -> None:
    """How many features of a crosscoder two models share."""
    for result in page.joint("shared_features", lambda result: result.stored.runs):
        plot_shared(result.data, result.look.colour, page.panel("shared", result.run, wide=True, height=3.2))
        numbers = {str(name): float(values) for name, values in result.data.data_vars.items() if not values.dims}
        page.add("shared", result, [numbers])
        page.say(result, "shared" if numbers["n_alive"] >= 1 else "silent", **numbers)


SECTIONS = (
    Section(
        slug="shared-features", write=shared, chapter="report-001", order=34,
        needs=("sae --scope crosscoder", "shared_features"), of="several",
    ),
)  # fmt: skip
