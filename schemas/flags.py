"""Fields of a command's settings as flags: their types, the values they allow, and how they are read from text."""

import dataclasses
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from schemas.errors import UsageError
from schemas.spelling import nearest

MOST = {
    "resamples": 100_000,
    **dict.fromkeys(("permutations", "shuffles", "null_draws"), 1_000_000),
    **dict.fromkeys(("controls", "draws", "random", "beyond"), 1_000),
    **dict.fromkeys(("stories", "largest"), 1_000_000),
    **dict.fromkeys(("pairs", "das_steps", "das_rows"), 100_000),
    "top": 10_000,
}
"""Most of what is drawn, wherever a setting is called so: more fills memory, and tells nothing. So many resamples give
the ends of an interval to a hundredth of its width, shuffles p to a millionth; controls and the like are a pass or a
fit each; a million stories take a gigabyte; nobody reads so many rows of a table.
"""


def check_most(name: str, what: str, value: int) -> None:
    """Raise :class:`UsageError` where more is to be drawn than :data:`MOST` allows."""
    if value > MOST.get(name, value):
        raise UsageError(
            f"{what} is {value:,}; it must be at most {MOST[name]:,}: more fills memory and tells nothing new"
        )


def number(kind: type, text: str) -> Any:
    """A number from its text; ``ValueError`` also for ``1_0``, which Python reads as ten."""
    if "_" in text:
        raise ValueError(text)
    return kind(text)


@dataclass(frozen=True, slots=True)
class Flag:
    """A field of settings, resolved."""

    name: str
    kind: type
    """Type of the value, or of an entry of a tuple."""
    words: tuple[str, ...]
    """Words allowed; none: any."""
    optional: bool
    many: bool
    placed: bool
    """Of a tuple: whether it has so many places, so that two of its entries may be the same."""
    default: Any
    help: str
    metavar: str | None
    stored: bool
    least: float | None
    most: int | None
    argument: bool
    repeat: bool
    needs: str
    """Setting without which it does nothing, as :func:`schemas.command.setting` has it."""

    @property
    def option(self) -> str:
        """As it is typed."""
        return "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING

    def is_met(self, values: Mapping[str, Any]) -> bool:
        """Whether the setting that this one needs has a value with which this one does something."""
        name, _, words = self.needs.partition("=")
        value = values.get(name)
        if not words:
            return not name or bool(value)
        return not set(words.split("|")).isdisjoint(value if isinstance(value, (tuple, list)) else [value])

    def needed(self, among: Iterable["Flag"]) -> str:
        """The setting that this one needs, as it is typed."""
        name, _, words = self.needs.partition("=")
        (other,) = (flag for flag in among if flag.name == name)
        if other.argument:
            return (other.metavar or name).strip("[].")
        return f"{other.option} {words.replace('|', ' or ')}".strip()

    def typed(self, value: Any) -> str:
        """A value as it is typed."""
        return ",".join(map(str, value)) if self.many else str(value)

    def check(self, value: Any) -> None:
        """Raise :class:`UsageError` unless a value is allowed."""
        if value is None and self.optional:
            return
        what = self.name.upper() if self.argument else self.option
        if self.words and value not in self.words:
            raise UsageError(
                f"{what} {value} is not one of {', '.join(self.words)}{nearest(str(value), list(self.words))}"
            )
        if self.least is not None and not (value >= self.least and math.isfinite(value)):
            raise UsageError(f"{what} is {value}; it must be at least {self.least:g}")
        if self.most is not None and value > self.most:
            raise UsageError(f"{what} is {value:,}; it must be at most {self.most:,}: more tells nothing new")
        if self.kind is int and not self.many:
            check_most(self.name, what, value)
            if value >= 2**63:
                raise UsageError(f"{what} is {value}; it must be below 2^63")
            if self.name == "resamples" and value == 1:
                raise UsageError(f"{what} is 1; an interval lies between two at least")
        if self.kind is float and not math.isfinite(value):
            raise UsageError(f"{what} is {value}; it must be a number that is not infinite")

    def read(self, text: str) -> Any:
        """An entry from its text.

        Raises
        ------
        UsageError
            If the text is not a number where one is wanted.
        """
        if self.kind not in (int, float):
            return text
        try:
            return number(self.kind, text)
        except ValueError:
            kind = "whole numbers" if self.kind is int else "numbers"
            raise UsageError(f"{self.option} takes {kind} between commas, as 0,5,11; found {text!r}") from None

    def entries(self, text: str) -> tuple[Any, ...]:
        """Entries of a tuple from text with commas between them.

        Raises
        ------
        UsageError
            If there is none where by default there are some, one is no number where numbers are wanted, or one is
            named twice.
        """
        entries_read = tuple(self.read(word.strip()) for word in text.split(",") if word.strip())
        if not self.placed and (
            twice := [entry for index, entry in enumerate(entries_read) if entry in entries_read[:index]]
        ):
            raise UsageError(f"{self.option} names {twice[0]} twice")
        if not entries_read and self.default != ():
            raise UsageError(f"{self.option} names nothing; leave it out for the default")
        return entries_read


def flags(settings: type[Any]) -> tuple[Flag, ...]:
    """Fields of settings in the order in which help shows them: required ones, a class's own, those it inherits."""
    return _flags(settings)  # type: ignore[arg-type]  # mypy takes the class for one of its instances


@cache
def _flags(settings: type) -> tuple[Flag, ...]:
    hints = get_type_hints(settings)
    inherited = {field.name for base in settings.__mro__[1:] for field in _fields(base)}
    own = [field for field in _fields(settings) if field.name not in inherited]
    rest = [field for field in _fields(settings) if field.name in inherited]
    resolved = [_flag(field, hints[field.name]) for field in (*own, *rest)]
    return tuple(sorted(resolved, key=lambda flag: not flag.required))


def _fields(cls: type) -> Iterator["dataclasses.Field[Any]"]:
    if dataclasses.is_dataclass(cls):
        yield from dataclasses.fields(cls)


def _flag(field: "dataclasses.Field[Any]", hint: Any) -> Flag:
    """Resolve the type of a field."""
    optional = many = placed = False
    if get_origin(hint) in (Union, types.UnionType):
        optional = True
        (hint,) = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is tuple:
        many, placed, hint = True, ... not in get_args(hint), get_args(hint)[0]
    words: tuple[str, ...] = ()
    if get_origin(hint) is Literal:
        words, hint = get_args(hint), str
    return Flag(
        name=field.name,
        kind=hint,
        words=words,
        optional=optional,
        many=many,
        placed=placed,
        default=field.default,
        **field.metadata,
    )
