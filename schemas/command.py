"""What a command is, declared beside what it runs: its settings, what it computes, and how its results are printed.

A question is a package (a folder) with a module ``command`` that holds ``COMMAND``, or ``COMMANDS`` where it brings
several. The shell finds it (:mod:`schemas.registry`), turns the fields of its settings into flags, runs it, stores what
it returns and prints the tables it makes of that. A module ``command`` is imported whenever help is printed, so it
imports nothing heavy before it runs.
"""

import os
import pkgutil
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from schemas.errors import LakeError, UsageError
from schemas.flags import flags


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    metavar: str | None = None,
    stored: bool = True,
    least: float | None = None,
    most: int | None = None,
    argument: bool = False,
    repeat: bool = False,
    needs: str = "",
) -> Any:
    """A field of :class:`Settings`.

    Parameters
    ----------
    default
        Value where none is given; without one the flag must be given.
    help
        What the flag means, for ``--help`` and the documentation.
    metavar
        Form of the value in the help, where the type does not say it.
    stored
        Whether a result depends on it, so that it belongs to the stored settings.
    least
        Smallest number allowed.
    most
        Largest number that tells anything; of settings that are called alike, see :data:`schemas.flags.MOST`.
    argument
        Given by its place on the command line instead of a flag.
    repeat
        Of a tuple: the flag is repeated for each entry, instead of commas between entries.
    needs
        Setting without which this one does nothing, and the words of it with which it does, as ``sample`` or
        ``activation=topk|abs_topk``; another value than the default is refused without it.
    """
    metadata = {
        "help": help, "metavar": metavar, "stored": stored, "least": least, "most": most, "argument": argument,
        "repeat": repeat, "needs": needs,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a command: its flags, the argument of the function it runs, and what is stored with the result.

    A field is made by :func:`setting`. Its type is ``int``, ``float``, ``str``, ``bool``, ``Path``, a ``Literal`` of
    words, a tuple of one of these, or one of these or ``None``.

    Raises
    ------
    UsageError
        If a value is none of its words, or below the smallest number allowed, or does nothing beside the others.
    """

    usual: ClassVar[Mapping[str, Any]] = {}
    """What holds where a field that is ``None`` by default is not given."""
    part: ClassVar[tuple[str, ...]] = ("layers", "positions", "limit")
    """Which of its settings say what part of a run an analysis is handed."""

    def __post_init__(self) -> None:
        for flag in flags(type(self)):
            value = getattr(self, flag.name)
            if flag.many and value is not None and not isinstance(value, tuple):
                value = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, flag.name, value)
            for entry in value if flag.many and value is not None else [value]:
                flag.check(entry)
        self.check_needs()

    def check_needs(self) -> None:
        """Raise :class:`UsageError` where a setting is given that has no effect with the others as they are."""
        known = flags(type(self))
        for flag in known:
            usual = (flag.default, self.usual.get(flag.name))
            if not flag.is_met(vars(self)) and getattr(self, flag.name) not in usual:
                needed = flag.needed(known)
                raise UsageError(f"{flag.option} does nothing without {needed}; leave it out, or give that too")

    def decide(self, by: str, **values: Any) -> None:
        """Set what another setting decides, such as ``--reports``.

        Raises
        ------
        UsageError
            If one of them is given otherwise.
        """
        for flag in flags(type(self)):
            if flag.name not in values:
                continue
            given, decided = getattr(self, flag.name), values[flag.name]
            if given not in (flag.default, decided):
                raise UsageError(
                    f"{flag.option} is {flag.typed(given)}, and {by} says {flag.typed(decided)}; leave one of them out"
                )
            object.__setattr__(self, flag.name, decided)

    def runs_to_open(self, named: Sequence[str]) -> list[str]:
        """Runs to open, from those named on the command line; empty: every run of the lake."""
        return list(named)

    def spec(self) -> dict[str, Any]:
        """What a result depends on, as JSON holds it; what is ``None`` is left out."""
        values = {flag.name: getattr(self, flag.name) for flag in flags(type(self)) if flag.stored}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Settings from what is stored with a result; what other versions stored besides is passed over.

        They are not judged: a result is read that was made when more was allowed.
        """
        settings = object.__new__(cls)
        for flag in flags(cls):
            value = spec.get(flag.name, flag.default)
            value = tuple(value) if flag.many and isinstance(value, list) else value
            object.__setattr__(settings, flag.name, value)
        return settings


@dataclass(frozen=True, kw_only=True)
class Limited(Settings):
    """Settings of what reads examples."""

    limit: int | None = setting(None, "Only the first N examples.", metavar="N", least=1)


@dataclass(frozen=True, kw_only=True)
class Part(Limited):
    """Settings of what reads some layers and positions of some examples."""

    layers: tuple[int, ...] | None = setting(None, "Only these layers.", metavar="0,1..")
    positions: tuple[str, ...] | None = setting(None, "Only these positions.", metavar="bot,ct0..")


@dataclass(frozen=True, kw_only=True)
class Sampled(Settings):
    """Settings of what reads every example, and of a large run takes a sample."""

    sample: int | None = setting(
        None,
        "Take N examples, of problems drawn at random with the run's share of right answers; 0 takes all. By"
        " default all, or in a run that would take long as many as are quick.",
        metavar="N",
        least=0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table to be printed."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str | None = None
    labels: int = 0
    """How many columns say what a row is of; tables of several runs with such columns are printed side by side."""


def side_by_side(title: str, tables: Mapping[str, Table]) -> Table:
    """One table of several with the same columns, the run's name over its measures where there are several."""
    first = next(iter(tables.values()))
    n, measures = first.labels, list(first.columns[first.labels :])
    cells: dict[tuple[str, ...], dict[str, Sequence[Any]]] = {}
    for run, table in tables.items():
        for row in table.rows:
            cells.setdefault(tuple(map(str, row[:n])), {})[run] = row[n:]
    names = [
        f"{run if number == 0 and len(tables) > 1 else ''}\n{measure}"
        for run in tables
        for number, measure in enumerate(measures)
    ]
    blank = ["-"] * len(measures)
    rows = [[*key, *(cell for run in tables for cell in by_run.get(run, blank))] for key, by_run in cells.items()]
    columns = [*first.columns[:n], *names]
    return Table(title=title, columns=columns, rows=rows, caption=first.caption, labels=n)


Printed = Table | str
"""A table, or a line."""
Tables = Callable[[Any, Mapping[str, Any]], Sequence[Printed]]
"""What is printed of a stored result: from its dataset and its stored settings."""


NOTHING_KEPT = (
    "results of the runs before the one at work are in the lake, nothing of that one is kept, and the same command"
    " begins again"
)
"""What is left of an interrupted command over several runs that keeps no pieces of a result."""
BATCHES_KEPT = (
    "results of the runs before the one at work are in the lake, finished batches of that one beside it, and the same"
    " command takes them up"
)


def batches_kept(values: Mapping[str, Any]) -> str:
    """What is left of an interrupted experiment: batches are kept beside a lake on disk only."""
    return NOTHING_KEPT if "://" in values["path"] else BATCHES_KEPT


def kept_beside(name: str) -> Callable[[Mapping[str, Any]], str]:
    """What is left of an interrupted analysis of that name that keeps pieces beside a lake on disk."""

    def stopped(values: Mapping[str, Any]) -> str:
        place = f"{str(values['path']).rstrip('/')}.{name}"
        if "://" in place or not os.access(Path(place).parent, os.W_OK):
            return NOTHING_KEPT
        return (
            f"results of the runs before the one at work are in the lake, finished pieces of that one in {place}, and"
            " the same command takes them up"
        )

    return stopped


class Shell(Protocol):
    """What a command may ask of the shell that runs it."""

    def note(self, text: str) -> None:
        """Say something on standard error."""

    def progress(self, label: str, unit: str = "") -> AbstractContextManager[Callable[..., None]]:
        """A bar on standard error; gives ``report(done, total, bytes=0)``."""

    def confirm(self, question: str) -> bool:
        """Ask on the terminal; :class:`UsageError` where there is none."""

    def words(self, runs: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
        """The command at work as it would be typed again, ``PATH`` for the lake: for these runs."""


class Made(NamedTuple):
    """One of several results that an analysis returns."""

    kind: str
    data: Any
    """Dataset."""
    spec: Mapping[str, Any] = types.MappingProxyType({})
    """Settings in which it differs from the command's."""
    runs: Sequence[str] = ()
    """Runs it is of, where it is not of all that were analysed together."""


class Reading(NamedTuple):
    """A part of a run that an analysis reads."""

    part: Any
    """Lazy array, as the run hands it out: every chunk of the store that it touches is read."""
    times: float = 1.0
    """How often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What an analysis will take, declared before it reads anything large."""

    states: int = 0
    """Vectors, or rows of attention, that are worked on."""
    reads: Sequence[Reading] = ()
    operations: float
    """Multiplications and additions of the products that the formulas need."""
    memory: float
    """Bytes held at once, beside the program and what it always needs."""
    readouts: Sequence[str] = ()
    """Models whose unembedding is read."""
    small: Any = None
    """Settings of a small run; with a larger one it gives the time of a run. None: steps or operations do."""
    larger: Any = None
    steps: Sequence[tuple[float, Callable[[], object]]] = ()
    """Of what takes longer than as many operations of a product, and trials do not tell: how often a step of it is
    done, and the step, which is timed and takes a moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What a command has to say."""

    printed: Sequence[Printed] = ()
    document: Any = None
    """What ``--json`` prints instead."""
    failure: LakeError | None = None
    """Raised once everything is printed."""
    code: int = 0
    """Exit status where there is no failure."""


def later(name: str) -> Callable[..., Any]:
    """The function ``module:function``, imported when it is first called: what is heavy waits until then."""

    def call(*arguments: Any) -> Any:
        return pkgutil.resolve_name(name)(*arguments)

    call.__qualname__ = name
    return call


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of ``lake`` itself: ``run(settings, shell) -> Output | None``."""

    name: str
    help: str
    settings: type[Settings]
    run: Callable[..., Any]
    stopped: str | Callable[[Mapping[str, Any]], str] = "nothing was changed"
    """What is left when it is interrupted; or how to say it, from the values given."""
    group: str = field(default="", init=False)


@dataclass(frozen=True, kw_only=True)
class Analysis(Command):
    """A command ``lake analyze NAME PATH RUN..``, which reads stored runs.

    ``run(source, settings)`` is called for each run (:class:`analyze.source.Source`) and returns a dataset, or where it
    makes several results a list of :class:`Made`; with ``together`` it is called once, with all sources.
    """

    results: Mapping[str, Tables]
    """Kinds of results, the first the main one, and what is printed of each."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """Options that make a kind of result, where the bare command does not."""
    together: bool | Callable[[Any], bool] = False
    """Whether one result is made of all runs; it may depend on the settings."""
    frames: Callable[[str, Any], Mapping[str, Any]] | None = None
    """Tidy tables of a kind of result for ``--json`` and ``--csv``; by default one for each set of dims."""
    block: int | None = None
    """Examples of a run that are read together at most, where as many as a block of bytes holds would be too many."""
    cost: Callable[[Any, Any], Cost] | None = None
    """``cost(source, settings)``, as ``run``: what a run takes, for ``--plan`` and for what is said of a long one."""
    stopped: str | Callable[[Mapping[str, Any]], str] = NOTHING_KEPT
    group: str = field(default="analyze", init=False)

    def takes_all(self, settings: Any) -> bool:
        """Whether one call takes all runs."""
        return bool(self.together(settings) if callable(self.together) else self.together)


@dataclass(frozen=True, kw_only=True)
class Experiment(Command):
    """A command ``lake reenter NAME PATH RUN..``, which goes back into the model.

    ``run(target, settings)`` is called for each run (:class:`extract.reenter.target.Target`) and returns a dataset.
    """

    results: Mapping[str, Tables]
    """The kind of its result, and what is printed of it."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    plan: Callable[[Any, Any], tuple[str, Mapping[str, Any]]] | None = None
    """``plan(target, settings)``, as ``run``: what a run takes, in words and figures. None: told by its first batches.
    """
    stopped: str | Callable[[Mapping[str, Any]], str] = batches_kept
    group: str = field(default="reenter", init=False)
