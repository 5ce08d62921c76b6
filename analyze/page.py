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
gives a caveat for each of its texts. Figures and tables stand on the page in the order of the texts. Columns are:
label, key in the frame, kind and digits (``"number.3"``), and the keys of the ends of an interval. One whose key the
frame does not have is left out. ``controls`` is the kind of the numbers that are set beside those of controls (a share
unless it is said); ``ordered = true`` says that two runs mean something else the other way round.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd

from analyze import drawing
from analyze.beside import Finding, Pair, beside, beside_pairs, control_table
from analyze.contents import Column as Column
from analyze.contents import Illustration as Illustration
from analyze.contents import NothingStored as NothingStored
from analyze.contents import Panel as Panel
from analyze.contents import Section as Section
from analyze.contents import Table as Table
from analyze.contents import labels_of
from analyze.context import Context, Key, StoredResult, Where
from analyze.saying import COMMON, Sentence
from analyze.saying import listed as listed
from analyze.saying import points as points
from analyze.saying import share as share
from schemas import SchemaError, nearest
from store.results import Result

Rows = Any
"""A pandas frame, or a list of records; the stubs do not know what a cell holds."""


class Page:
    """What a section has written so far."""

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
        self._findings: list[tuple[Any, Sequence[Finding]]] = []

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

    def joint(self, kind: str, key: Key | None = None, **choice: Any) -> list[StoredResult]:
        """Results over several runs, see :meth:`analyze.context.Context.joint`; they become sources of the section.

        Raises
        ------
        NothingStored
            If there are none: the section is left out.
        """
        results = self.context.joint(kind, key, **choice)
        if not results:
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
            return Sentence().format(text, **COMMON | known)
        except KeyError as error:
            raise SchemaError(
                f"section {self._slug}: the text {text!r} asks for {error}; given are {', '.join(known) or 'no values'}"
            ) from None

    def set(self, **values: Any) -> None:
        """Values of headline, method, caveats and captions."""
        self.values |= values

    def join(self, name: str, text: str) -> None:
        """Add to a value of several texts with a semicolon between them; an empty one adds nothing."""
        self.values[name] = "; ".join(filter(None, (self.values.get(name, ""), text)))

    def text(self, name: str, /, **values: Any) -> str:
        """A text of the section's ``lines`` with values put in."""
        return self._filled(str(self._text_of("lines", name)), values)

    def texts(self, name: str, rows: Rows) -> list[str]:
        """A text of ``lines`` for each row, with its values put in."""
        records: list[Any] = pd.DataFrame(rows).to_dict("records")
        return [self.text(name, **record) for record in records]

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

    def find(self, what: StoredResult | Pair, *findings: Finding | None) -> None:
        """Name what was found of a run, or of two: it is set beside what controls show, once the section is written.

        Of a control, or where nothing was found, name it without findings (or ``None``): it was measured.
        """
        self._findings.append((what, [finding for finding in findings if finding is not None]))

    def set_beside(self) -> None:
        """Tell of all findings what controls show."""
        if self._findings and isinstance(self._findings[0][0], Pair):
            ordered = bool(self._texts.get("ordered", False))
            beside_pairs(self, self._findings, form=self._texts.get("controls", "share"), ordered=ordered)
        elif self._findings:
            beside(self, self._findings, self._texts.get("controls", "share"))

    def lay(self, name: str, form: str) -> str:
        """Make room for a table of findings beside controls; gives its name, which no other section's table has."""
        name = f"{self._slug}_{name}"
        laid = control_table(str(self._texts["title"]), form)
        self._texts = {**self._texts, "tables": {**self._texts.get("tables", {}), name: laid}}
        return name

    def panel(
        self,
        name: str,
        result: StoredResult | str | None = None,
        *,
        wide: bool = False,
        title: str = "",
        **arguments: Any,
    ) -> Any:
        """Axes of a new drawing of the figure that the texts call ``name``, made by :func:`analyze.drawing.figure`.

        ``result`` is the run, or another word, that distinguishes the drawing from others of the figure; its label is
        the title, with ``title`` behind it. A ``wide`` one has the width of the page.
        """
        self._text_of("figures", name)
        suffix = result.run if isinstance(result, StoredResult) else result
        figure, axes = drawing.figure(**({"width": 9.2 if wide else 4.6} | arguments))
        if isinstance(result, StoredResult) and not isinstance(axes, np.ndarray):
            axes.set_title(", ".join(filter(None, (result.label, title))))
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

    def map(
        self, name: str, result: StoredResult, values: Any, rows: Any = None, columns: Any = None, *, title: str = "",
        **arguments: Any,
    ) -> Any:  # fmt: skip
        """Draw a heat map of a run; ``arguments`` go to :func:`analyze.drawing.heat_map`.

        Rows and columns of a labelled array of two dims, or of a frame, are called as their labels say.
        """
        rows, columns = (
            labels_of(values, axis) if given is None else given for axis, given in enumerate((rows, columns))
        )
        ax = self.panel(name, result, title=title, height=0.9 + 0.29 * len(rows))
        drawing.heat_map(ax, values, rows, columns, **arguments)
        return ax

    def percent_map(self, name: str, result: StoredResult, values: Any, *axes: Any, **more: Any) -> Any:
        """Draw a heat map of shares in percent."""
        drawn: dict[str, Any] = {"high": 100.0, "text": "{:.0f}"} | more
        return self.map(name, result, 100 * values.astype("float64"), *axes, **drawn)

    @contextmanager
    def shares(
        self, name: str, result: StoredResult, along: str = "", *, base: Any = None, low: float = -0.02,
        legend: float = 0.2, **arguments: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """Axes of shares along something, finished once all is drawn: in percent, with a grid and a legend below.

        ``along`` names what they are shown along; ``base``, the share without the change, is a dashed line; ``low`` is
        where the axis begins, ``legend`` how far below the legend is. The others as for :meth:`panel`.
        """
        ax = self.panel(name, result, **({"height": 2.8} | arguments))
        yield ax
        if base is not None:
            drawing.reference(ax, float(base))
        ax.set_ylim(low, 1.03)
        drawing.as_percent(ax)
        drawing.faint_grid(ax)
        ax.set_xlabel(along)
        drawing.legend_below(ax, legend)

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
            values = [(COMMON | self.values).get(name) for name in names]
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
        columns = [Column.of(*item) for group in groups for item in group if item[1] in frame]
        if "run" in frame and all(column.key != "run" for column in columns):
            columns.insert(0, Column.of("Run", "run", "text"))
        return Table(name=name, caption=texts["caption"], frame=frame, shown=shown, columns=columns)


def write_section(section: Section, context: Context) -> Page | None:
    """A section's page, or ``None`` where the lake does not have what it shows."""
    page = Page(section, context)
    try:
        section.write(page)
    except NothingStored:
        return None
    page.set_beside()
    return page
