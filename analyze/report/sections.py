"""Sections of the page, found in the folders of the questions, and the commands that make what they show.

A section module is ``section.py`` or ``*_section.py`` in a question's folder or package; its ``SECTIONS`` are
:class:`analyze.page.Section`. Packages of other distributions are found by their entry points.
"""

import pkgutil
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from analyze.context import Context, without_folders
from analyze.page import Section
from analyze.typed import typed
from schemas import LeftOutWarning
from schemas.registry import foreign, line, modules


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    """Sections under one title."""

    slug: str
    title: str
    lead: str
    sections: tuple[Section, ...]


def section_modules() -> Iterator[ModuleType]:
    """Modules that hold sections: ours, and those of other packages; what of those cannot be imported is left out."""
    yield from map(import_module, modules("section"))
    for package, origin in foreign().items():
        try:
            paths = getattr(import_module(package), "__path__", [])
            names = [module.name for module in pkgutil.iter_modules(paths)]
            yield from [
                import_module(f"{package}.{name}") for name in names if name == "section" or name.endswith("_section")
            ]
        except Exception as error:  # whatever another package may raise
            why = f"{origin} has no section on the page: importing {package}: {error}"
            warnings.warn(why, LeftOutWarning, stacklevel=2)


@cache
def chapters() -> tuple[Chapter, ...]:
    """Every section there is, by chapter, each in its place; of two with the same name the second is left out."""
    titles: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("chapters.toml").read_text(encoding="utf-8"))
    known: dict[str, Section] = {}
    for module in section_modules():
        for section in getattr(module, "SECTIONS", ()):
            other = known.setdefault(section.slug, section)
            if other is not section:
                warnings.warn(
                    f"section {section.slug!r} of {module.__name__} is left out, as {other.write.__module__} has one of"
                    " that name; give one of them another",
                    LeftOutWarning,
                    stacklevel=2,
                )
    last = list(titles)[-1]
    in_order = sorted(known.values(), key=lambda section: (section.order, section.slug))
    return tuple(
        Chapter(
            slug=slug,
            title=text["title"],
            lead=text["lead"],
            sections=tuple(one for one in in_order if (one.chapter if one.chapter in titles else last) == slug),
        )
        for slug, text in titles.items()
    )


def sections() -> tuple[Section, ...]:
    """Every section in the order of the page."""
    return tuple(section for chapter in chapters() for section in chapter.sections)


def commands(section: Section, context: Context) -> list[str]:
    """Commands that make what a section shows, for the lake and the runs of this page."""
    runs, donor = context.main_runs(), ""
    if section.of == "pairs":
        runs = [run for run in context.runs if context.weight(run)[0]] or ["MODEL/PAIRS"]
    elif section.of == "parts":
        runs = [run for run in runs if "mlp_output" in context.run(run)]
        if not runs:
            return []
    elif section.of == "width":
        alone = [run for run in context.runs if not context.weight(run)[0]] or context.runs
        runs = [run for run in alone if context.run(run).sizes["hidden"] == context.run(alone[0]).sizes["hidden"]]
    elif section.of == "mixed":
        alone = [run for run in context.runs if not context.weight(run)[0]]
        runs = [run for run in alone if _answers_both_ways(context, run)] or ["MODEL/DATASET"]
    elif section.of == "donor":
        same = [run for run in runs if run.partition("/")[2] == runs[0].partition("/")[2]]
        runs, donor = same[:1], next(iter(same[1:]), "MODEL/DATASET")
    elif section.of == "several" and len(runs) < 2:
        runs = context.runs if len(context.runs) > 1 else [*context.runs, "MODEL/DATASET"]
    needs = (need.partition(" ") for need in section.needs)
    lines = [line(kind, options.replace("DONOR", donor)) for kind, _, options in needs]
    wanted = [typed(context.lake, words, context.shown_location, runs) for words in lines if words]
    return [without_folders(words) for words in wanted if words]


def _answers_both_ways(context: Context, run: str) -> bool:
    """Whether at least two problems are answered rightly, and two wrongly."""
    correct = context.run(run)["correct"].values
    return bool(min(correct.sum(), (~correct).sum()) >= 2)
