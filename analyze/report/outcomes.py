"""What re-entries did to single problems."""

from typing import Any

from analyze.report.content import Context


def outcome_rows(context: Context, run: str, examples: list[int]) -> dict[int, list[Any]]:
    """For each example, one row for each condition of each re-entry that has it."""
    return {}
