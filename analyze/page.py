"""What sections of the report are written with.

A section is a function that is given a :class:`Page` and adds to it: sentences of each run, drawings, rows of tables.
What is said lies beside it in ``texts.toml``, or where it is short in ``TEXTS`` of its module, under the section's
name::

    [hubs]
    title = "Hub positions"
    headline = "The thought that later thoughts seek most, over all heads."
    method = "For each thought, the attention that all later thoughts pay it."
    caveats = ["An even spread would give {even:share}."]
    [hubs.lines]
    sought = "{hub}, {ratio:.2f} times an even spread"
    [hubs.figures]
    hubs = "Attention received from later thoughts."
    [hubs.tables.hubs]
    caption = "Hub scores by thought."
    columns = [["Thought", "thought", "text"], ["Ratio", "ratio", "number", "ratio_low", "ratio_high"]]

Values stand in braces; a caveat is left out where one of its values is missing or empty, and a value that is a list
gives a caveat for each of its texts. Figures and tables stand on the
page in the order of the texts. Columns are: label, key in the frame, kind and digits (``"number.3"``), and the keys of
the ends of an interval. One whose key the frame does not have is left out.
"""

import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyze import drawing
from analyze.beside import control_table
from analyze.context import Context, StoredResult, Where
from analyze.saying import MINUS as MINUS
from analyze.saying import Sentence
from analyze.saying import listed as listed
from analyze.saying import p_text as p_text
from analyze.saying import points as points
from analyze.saying import share as share
from schemas import SchemaError, nearest
from store.results import Result

Rows = Any
"""A pandas frame, or a list of records; the stubs do not know what a cell holds."""


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
    """Runs that command takes: each model's, those over clean/corrupted pairs, at least two together, those that hold
    what each block adds (where there are none, no command makes it), all of the first model's width, the first with
    another model's over the same data in the place of ``DONOR``, or those with right and with wrong answers."""
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


class Page:
    """What a section has written so far.

    Parameters
    ----------
    section
        Whose texts are used.
    context
        The lake.
    """

    def __init__(self, section: Section, context: Context) -> None:
        self.context = context
        self._slug = section.slug
        self._texts = section.texts
        self.lines: list[tuple[str, str]] = []
        """Of each run its label, and the rest of the sentence."""
        self.opening = ""
        """What the page says first, in one sentence, where the section has it."""
        self.sources: list[Result] = []
        """Results the numbers come from."""
        self.counted: list[Result] = []
        """Results whose examples the headline counts; those of ``sources`` where there are none."""
        self.size = ""
        """How many examples there are, where ``counted`` does not tell."""
        self.notes: list[str] = []
        """Caveats that are not among the texts."""
        self.values: dict[str, Any] = dict(self._texts["shared"])
        self._drawings: dict[str, dict[str, Illustration]] = {}
        self._frames: dict[str, list[pd.DataFrame]] = {}
        self._pick: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {}

    def results(self, kind: str, where: Where | None = None, *, optional: bool = False) -> list[StoredResult]:
        """Results of a kind, one for each model; they become sources of the section.

        Raises
        ------
        NothingStored
            If there are none and they are not ``optional``: the section is left out.
        """
        results = self.context.find(kind, where)
        if not results and not optional:
            raise NothingStored
        self.sources.extend(result.stored for result in results)
        return results

    def _text_of(self, kind: str, name: str) -> Any:
        """An entry of one of the tables of the texts."""
        entries = self._texts.get(kind, {})
        if name not in entries:
            raise SchemaError(
                f"section {self._slug} uses {name!r} of [{self._slug}.{kind}] in its texts.toml, which has"
                f" {', '.join(entries) or 'no entries'}{nearest(name, list(entries))}"
            )
        return entries[name]

    def _filled(self, text: str, values: Mapping[str, Any]) -> str:
        """A text with values put in: its own, and those set for the whole section."""
        known = {**self.values, **values}
        try:
            return Sentence().format(text, **known)
        except KeyError as error:
            raise SchemaError(
                f"section {self._slug}: the text {text!r} asks for {error}; given are {', '.join(known) or 'no values'}"
            ) from None

    def set(self, **values: Any) -> None:
        """Values of headline, method, caveats and captions."""
        self.values |= values

    def text(self, name: str, /, **values: Any) -> str:
        """A text of the section's ``lines`` with values put in."""
        return self._filled(str(self._text_of("lines", name)), values)

    def say(self, result: StoredResult, name: str, /, **values: Any) -> None:
        """Add a run's sentence: a text of ``lines`` with values put in."""
        self.say_of(result.label, self.text(name, **values))

    def say_of(self, label: str, text: str) -> None:
        """Add a sentence of a run as it is."""
        self.lines.append((label, text))

    def say_more(self, label: str, text: str) -> None:
        """Go on with the last sentence of a run, or begin one."""
        place = next((i for i in reversed(range(len(self.lines))) if self.lines[i][0] == label), None)
        if place is None:
            self.lines.append((label, text))
        else:
            self.lines[place] = (label, f"{self.lines[place][1]}; {text}")

    def lay(self, name: str, form: str) -> str:
        """Make room for a table of findings beside controls; gives its name, which no other section's table has."""
        name = f"{self._slug}_{name}"
        laid = control_table(str(self._texts["title"]), form)
        self._texts = {**self._texts, "tables": {**self._texts.get("tables", {}), name: laid}}
        return name

    def panel(
        self, name: str, result: StoredResult | str | None = None, *, wide: bool = False, **arguments: Any
    ) -> Any:
        """Axes of a new drawing of a figure.

        Parameters
        ----------
        name
            Figure of the texts.
        result
            Run, or other word, that tells the drawing from others of the figure; its label is the title.
        wide
            Whether it has the width of the page.
        arguments
            Of :func:`analyze.drawing.figure`.
        """
        self._text_of("figures", name)
        suffix = result.run if isinstance(result, StoredResult) else result
        figure, axes = drawing.figure(**({"width": 9.2 if wide else 4.6} | arguments))
        if isinstance(result, StoredResult) and not isinstance(axes, np.ndarray):
            axes.set_title(result.label)
        captioned = self._drawings.setdefault(name, {})
        whole = captioned.setdefault("", Illustration(caption=""))
        whole.panels.append(Panel(name=f"{name}_{suffix}" if suffix else name, figure=figure, wide=wide))
        return axes

    def caption(self, name: str, /, **values: Any) -> None:
        """Give what was drawn of a figure so far a caption of its own, with values put in."""
        captioned = self._drawings[name]
        caption = self._filled(str(self._text_of("figures", name)), values)
        captioned[caption] = captioned.pop("")
        captioned[caption].caption = caption

    def map(self, name: str, result: StoredResult, values: Any, rows: Any, columns: Any, **arguments: Any) -> Any:
        """Draw a heat map of a run; ``arguments`` go to :func:`analyze.drawing.heat_map`."""
        ax = self.panel(name, result, height=0.9 + 0.29 * len(rows))
        drawing.heat_map(ax, values, rows, columns, **arguments)
        return ax

    def percent_map(self, name: str, result: StoredResult, values: Any, rows: Any, columns: Any, **more: Any) -> Any:
        """Draw a heat map of shares in percent."""
        values = 100 * np.asarray(values, dtype="float64")
        return self.map(name, result, values, rows, columns, **({"high": 100.0, "text": "{:.0f}"} | more))

    def bars(self, name: str, groups: Any, series: Sequence[drawing.Series], label: str, *, top: float = 0.0) -> Any:
        """Draw bars of all runs over the width of the page; shares where they end at a ``top``."""
        ax = self.panel(name, wide=True, height=2.9)
        drawing.bars(ax, groups, [item for item in series if len(item[1]) == len(groups)])
        if top:
            ax.set_ylim(0, top)
            drawing.as_percent(ax)
        ax.set_ylabel(label)
        drawing.legend_above(ax, 4)
        return ax

    def add(self, name: str, result: StoredResult | str | None, rows: Rows) -> None:
        """Add rows of a run to a table; a column ``run`` with its label stands first."""
        self._text_of("tables", name)
        frame = pd.DataFrame(rows)
        if frame.empty:
            return
        if result is not None:
            frame.insert(0, "run", result.label if isinstance(result, StoredResult) else result)
        self._frames.setdefault(name, []).append(frame)

    def need(self, name: str) -> None:
        """Leave the section out where a table has no rows.

        Raises
        ------
        NothingStored
            If nothing was added to it.
        """
        if name not in self._frames:
            raise NothingStored

    def show(self, name: str, pick: Callable[[Any], Any]) -> None:
        """Show on the page only what ``pick`` takes of a table; the CSV has all of it."""
        self._pick[name] = pick

    def frame(self, name: str) -> Any:
        """All rows of a table so far."""
        return pd.concat(self._frames[name], ignore_index=True)

    @property
    def headline(self) -> str:
        """What was found, in one sentence."""
        return self._filled(self._texts.get("headline", "-"), {})

    @property
    def method(self) -> str:
        """How it was found."""
        return self._filled(self._texts.get("method", ""), {})

    @property
    def caveats(self) -> list[str]:
        """Texts whose values are all there."""
        kept: list[str] = []
        for text in self._texts.get("caveats", []):
            names = [name for _, name, _, _ in Formatter().parse(text) if name]
            values = [self.values.get(name) for name in names]
            if len(values) == 1 and isinstance(values[0], list):
                kept += values[0]
            elif all(values):
                kept.append(self._filled(text, {}))
        return kept

    @property
    def illustrations(self) -> list[Illustration]:
        """Figures in the order of the texts."""
        for name, captioned in self._drawings.items():
            if "" in captioned:
                self.caption(name)
        order = list(self._texts.get("figures", {}))
        drawn = sorted(self._drawings.items(), key=lambda item: order.index(item[0]))
        return [illustration for _, captioned in drawn for illustration in captioned.values()]

    @property
    def tables(self) -> list[Table]:
        """Tables that have rows, in the order of the texts."""
        return [
            self._table(name, texts) for name, texts in self._texts.get("tables", {}).items() if name in self._frames
        ]

    def _table(self, name: str, texts: Mapping[str, Any]) -> Table:
        frame = self.frame(name)
        shown = self._pick[name](frame) if name in self._pick else frame
        limit = texts.get("limit", 40)
        shown = (
            shown.groupby("run", sort=False).head(limit) if "run" in shown and "limit" in texts else shown.head(limit)
        )
        groups = [[item] if not isinstance(item, str) else self.values[item] for item in texts["columns"]]
        columns = [_column(*item) for group in groups for item in group if item[1] in frame]
        if "run" in frame and all(column.key != "run" for column in columns):
            columns.insert(0, _column("Run", "run", "text"))
        return Table(name=name, caption=texts["caption"], frame=frame, shown=shown, columns=columns)


def _column(label: str, key: str, kind: str = "number", low: str = "", high: str = "") -> Column:
    kind, _, digits = kind.partition(".")
    return Column(label=label, key=key, kind=kind, digits=int(digits or 2), low=low, high=high)


def write_section(section: Section, context: Context) -> Page | None:
    """A section's page, or ``None`` where the lake does not have what it shows."""
    page = Page(section, context)
    try:
        section.write(page)
    except NothingStored:
        return None
    return page
