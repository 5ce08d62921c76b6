"""What the sections of re-entries share."""

from collections.abc import Sequence
from typing import Any

from analyze.context import StoredResult, Where
from analyze.effects.conditions import UNTOUCHED, Frame, conditions, self_control, untouched, with_place
from analyze.page import NothingStored, Page

ENDS = ("", "_low", "_high")


def reentries(page: Page, kind: str, where: Where | None = None) -> list[tuple[StoredResult, Frame, Any]]:
    """Results of a re-entry, each with its changed conditions as rows and the row of the untouched run.

    The control in which each value replaces itself goes to the texts as ``control``.
    """
    results = [result for result in page.results(kind, where) if "condition" in result.data.dims]
    if not results:
        raise NothingStored
    frames = [with_place(conditions(result.data)) for result in results]
    page.set(control=control_note(results, frames))
    return [
        (result, frame[frame["condition"].astype(str) != UNTOUCHED].copy(), untouched(frame))
        for result, frame in zip(results, frames, strict=True)
    ]


def control_note(results: Sequence[StoredResult], frames: Sequence[Frame]) -> str:
    """What the control in which each value replaces itself came to, for every run."""
    notes = [(result.label, self_control(frame)) for result, frame in zip(results, frames, strict=True)]
    notes = [(label, note) for label, note in notes if note]
    if not notes:
        return ""
    return "Control, each value replaced by itself: " + "; ".join(f"{label} {note}" for label, note in notes) + "."


def triple(rows: Frame, name: str) -> list[Any]:
    """A figure of each row, and the ends of its interval."""
    return [rows[f"{name}{end}"].to_numpy(dtype=float) for end in ENDS]
