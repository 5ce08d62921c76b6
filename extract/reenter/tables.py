"""What experiments print of their results: a line for each condition, and figures as words."""

from collections.abc import Sequence
from typing import Any

from schemas.command import Printed, Table
from schemas.wording import interval_text, or_dash

MOST_PAIRS = 60
"""Paired tests that are printed one by one."""
ACCURACY = ("n", "accuracy 95%", "drop", "p", "p Holm", "log p 95%", "KL")
"""Columns of a table of accuracy."""
IN_NATS = (
    "log p: mean change of the gold answer's log probability; KL: from the untouched run's distribution at the first"
    " token of the answer, which of a number written digit by digit is its first digit; both in nats"
)


def accuracy_table(result: Any, labels: Sequence[str]) -> Table:
    """Accuracy under each condition of :func:`extract.reenter.statistics.with_accuracy`, named by some coordinates."""
    overall = result.sel(stratum="all")
    rows = []
    for index in range(overall.sizes["condition"]):
        condition = overall.isel(condition=index)
        row = [label_text(label, condition[label].item()) if label in condition.coords else "" for label in labels]
        rows.append([*row, str(int(condition["n"])), *accuracy_cells(condition)])
    columns = [*labels, *ACCURACY, *drawn_column(overall)]
    return Table(title="", columns=columns, rows=rows, labels=len(labels), caption=IN_NATS)


def drawn_column(result: Any, name: str = "sample_correct", heading: str = "drawn right 95%") -> list[str]:
    """Heading of a share of drawn answers, where some were drawn; by default of those that are right."""
    return [heading] if f"{name}_mean" in result else []


def pair_table(result: Any, over: str, within: Sequence[str], title: str) -> Printed:
    """Paired tests of :func:`extract.reenter.paired.with_pairs`; of many only how many differ."""
    p_holm = result[f"{over}_p_holm"].values
    if len(p_holm) > MOST_PAIRS:
        differ = int((p_holm < 0.05).sum())
        return (
            f"{title}: {differ} of {len(p_holm)} pairs differ significantly (McNemar, Holm); --csv and --json have all"
        )
    rows = []
    for index in range(result.sizes[f"{over}_pair"]):
        pair = result.isel({f"{over}_pair": index})
        labels = [label_text(label, pair[f"{over}_pair_{label}"].item()) for label in within]
        both = f"{pair[f'{over}_first'].item()}, {pair[f'{over}_second'].item()}"
        difference, p = float(pair[f"{over}_difference"]), pair[f"{over}_p"]
        rows.append([*labels, both, or_dash(difference, "+.3f"), p_text(p), p_text(p_holm[index])])
    columns = [*within, over, "difference", "p", "p Holm"]
    return Table(title=title, columns=columns, rows=rows, labels=len(within) + 1)


def accuracy_cells(condition: Any) -> list[str]:
    """Figures of one condition as words: accuracy with its interval, drop, p, p corrected, nats, drawn answers."""
    return [
        interval_text(condition, "accuracy"),
        or_dash(condition["drop"], "+.3f"),
        p_text(condition["p"]),
        p_text(condition["p_holm"]),
        interval_text(condition, "logprob_change", "_mean", "+.2f", "+.2f"),
        or_dash(round(float(condition["kl_mean"]), 6) + 0.0, ".2g"),
        *drawn_cells(condition),
    ]


def drawn_cells(condition: Any, name: str = "sample_correct") -> list[str]:
    """A share of drawn answers with its interval, where some were drawn; a dash where it is of none."""
    if f"{name}_mean" not in condition:
        return []
    return [interval_text(condition, name, "_mean")]


def p_text(p: Any) -> str:
    """A p-value; a dash where there is none, as of a control that is not among the tests corrected for."""
    return or_dash(p, ".1e")


def label_text(label: str, value: Any) -> str:
    """A coordinate as a word."""
    if label == "layer":
        return "all" if value == -1 else str(value)
    if label == "n_thought":
        return "" if value == -1 else str(value)
    if isinstance(value, float):
        return "" if value != value else f"{value:+g}"
    return str(value)


def tables_first(parts: Sequence[Printed]) -> list[Printed]:
    """Tables, then lines, as the shell prints them."""
    return sorted(parts, key=lambda item: isinstance(item, str))
