"""What a page holds: sections and where they stand, tables with their columns, drawings under a caption."""

import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from schemas import SchemaError

if TYPE_CHECKING:
    from analyze.page import Page


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Where a section stands on the page, what it shows and who writes it."""

    slug: str
    """Its name: the anchor on the page, and the table of its texts."""
    write: Callable[["Page"], None]
    chapter: str = "further"
    order: int = 0
    """Place within the chapter."""
    needs: Sequence[str] = ()
    """Kinds of result it shows, each with options of the command that makes it: ``"probes --target correct"``."""
    of: Literal["each", "pairs", "several", "parts", "width", "donor", "mixed"] = "each"
    """Runs that the command takes: ``each`` run; ``pairs``: runs over clean/corrupted pairs; ``several``: two or more
    together; ``parts``: runs that hold what each block adds (else no command makes it); ``width``: runs as wide as the
    first; ``donor``: the first, with another model's over the same data for ``DONOR``; ``mixed``: those with right and
    with wrong answers."""
    key: bool = False
    """Whether its finding stands before the others in the list of findings."""

    @property
    def texts(self) -> Mapping[str, Any]:
        """Its texts."""
        module = sys.modules[self.write.__module__]
        file = Path(str(module.__file__)).with_name("texts.toml")
        texts = tomllib.loads(module.TEXTS) if hasattr(module, "TEXTS") else read_texts(file)
        if self.slug not in texts:
            where = f"TEXTS of {module.__name__}" if hasattr(module, "TEXTS") else file
            raise SchemaError(f"section {self.slug}: {where} has no table [{self.slug}]")
        return {"title": self.slug, "report": "", "shared": texts.get("shared", {}), **texts[self.slug]}


@cache
def read_texts(file: Path) -> Mapping[str, Any]:
    """Texts of the sections of a folder."""
    return tomllib.loads(file.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table as it is shown; the CSV has every column of the frame, unrounded."""

    label: str
    key: str
    kind: str = "number"
    """``text``, ``place`` (a position), ``code``, ``count``, ``share``, ``points``, ``signed``, ``p`` or ``number``."""
    digits: int = 2
    low: str = ""
    high: str = ""
    """Keys of the ends of the interval that is shown beside the value; of a text, ``low`` is that of a note on it."""

    @classmethod
    def of(cls, label: str, key: str, kind: str = "number", low: str = "", high: str = "") -> "Column":
        """A column as texts give it, its kind with digits behind a point."""
        kind, _, digits = kind.partition(".")
        return cls(label=label, key=key, kind=kind, digits=int(digits or 2), low=low, high=high)


@dataclass(kw_only=True, slots=True)
class Table:
    """A table: everything in the CSV, some of it on the page."""

    name: str
    caption: str
    frame: pd.DataFrame
    shown: pd.DataFrame
    columns: Sequence[Column]


@dataclass(kw_only=True, slots=True)
class Panel:
    """One drawing."""

    name: str
    figure: Figure
    wide: bool = False


@dataclass(kw_only=True, slots=True)
class Illustration:
    """Drawings under one caption."""

    caption: str
    panels: list[Panel] = field(default_factory=list)


class NothingStored(Exception):
    """The lake has no result that a section needs; the section is left out."""


def labels_of(values: Any, axis: int) -> list[str]:
    """Names of the rows (0) or columns (1) of a labelled array or a frame, as they stand at a map."""
    if isinstance(values, xr.DataArray):
        dim, labels = values.dims[axis], values[values.dims[axis]].values
    else:
        dim, labels = values.axes[axis].name, values.axes[axis]
    if dim == "step":
        return [f"step {int(step) + 1}" for step in labels]
    form = {"layer": "layer {}", "head": "H{}"}.get(str(dim), "{}")
    return [form.format(label) for label in labels]
