"""Every experiment of the page, in order; each is found by its name and number of report."""

from collections.abc import Sequence

from analyze.report import attention_sections as reading
from analyze.report.content import Experiment

EXPERIMENTS: Sequence[Experiment] = (
    Experiment(
        slug="number-decoding",
        title="Number decoding by position",
        report="000",
        commands=["lake analyze lens PATH"],
        make=reading.number_decoding,
    ),
    Experiment(
        slug="chain-results",
        title="Which position holds which step",
        report="000",
        commands=["lake analyze lens PATH"],
        make=reading.chain_results,
    ),
    Experiment(
        slug="answer-attention",
        title="Attention of the answer to the thoughts",
        report="003",
        commands=["lake analyze attention PATH"],
        make=reading.answer_attention,
    ),
    Experiment(
        slug="critical-heads",
        title="Critical heads",
        report="004",
        commands=["lake analyze heads PATH"],
        make=reading.critical_heads,
    ),
    Experiment(slug="hubs", title="Hub positions", report="004", commands=["lake analyze heads PATH"], make=reading.hubs),
    Experiment(
        slug="flow-and-skip",
        title="Sequential flow and skip connections",
        report="004",
        commands=["lake analyze heads PATH"],
        make=reading.flow_and_skip,
    ),
    Experiment(
        slug="types-and-layers",
        title="Types and layers of the top heads",
        report="004",
        commands=["lake analyze heads PATH"],
        make=reading.types_and_layers,
    ),
)

CHAPTERS: Sequence[tuple[str, str, str, Sequence[str]]] = (
    (
        "report-000",
        "Position decoding and position ablation",
        "Report 000 asked which positions decode to numbers, and whether those are the ones the answer needs.",
        ("number-decoding", "chain-results"),
    ),
    (
        "report-003",
        "Attention and importance",
        "Report 003 asked whether the thoughts that the answer attends to are the ones that matter.",
        ("answer-attention",),
    ),
    (
        "report-004",
        "Critical heads",
        "Report 004 scored every attention head by what it does among the thoughts.",
        ("critical-heads", "hubs", "flow-and-skip", "types-and-layers"),
    ),
)
