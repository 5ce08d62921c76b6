"""Arithmetic stories in plain English, drawn without end: people, things, one to four steps, numbers to a thousand.

Each kind of story is a function that draws its numbers, writes its sentences in one of several ways, and gives the
steps that lead to the answer. Nothing is taken from a data set.
"""

import random
from collections.abc import Callable
from pathlib import Path

from extract.training.data import Example, normalised
from extract.training.story_draft import LARGEST, MULTIPLES, NAMES, THINGS, Draft, plural
from extract.training.story_kinds import collection, comparison, groups, rates, shopping
from schemas import UsageError
from schemas.flags import check_most
from schemas.whole_files import write_json_lines


def backwards(d: Draft, n: int) -> str:
    """What was there before, or what is still missing."""
    p, other = d.people(2)
    things = plural(d.rng.choice(THINGS))
    he = p.they
    if n > 1 or d.rng.random() < 0.5:
        d.value = d.number(2, 200)
        parts = [d.value]
        for _ in range(n - 1):
            parts.append(d.number(1, 150))
            d.value = d.step(d.value, "+", parts[-1])
        goal = d.value + d.number(1, 300)
        d.say(
            f"{p.name} wants to collect {goal} {things}.",
            f"{p.name} needs {goal} {things} for a party.",
            f"{p.name}'s goal is {goal} {things}.",
        )
        first, *rest = parts
        d.say(f"{he.capitalize()} already has {first}.", f"So far {he} has {first} {things}.")
        for k in rest:
            d.say(
                f"{other.name} gives {p.them} {d.write(k)} more.",
                f"{he.capitalize()} buys another {k}.",
                f"Then {he} finds {k} more.",
            )
        d.value = d.step(goal, "-", d.value)
        return d.one(
            f"How many more {things} does {he} need?",
            f"How many {things} are still missing?",
            f"How many more {things} must {he} get?",
        )
    gone, left = d.number(1, 400), d.number(1, 500)
    if d.rng.random() < 0.6:
        d.say(f"{p.name} had some {things}.", f"There were some {things} in {p.name}'s bag.")
        d.say(
            f"{he.capitalize()} gave {d.write(gone)} of them to {other.name} and has {left} left.",
            f"After giving {gone} to {other.name}, {he} has {left} {things} left.",
            f"{he.capitalize()} lost {gone} of them. Now {he} has {left}.",
        )
        d.value = d.step(left, "+", gone)
        return d.one(
            f"How many {things} did {p.name} have at first?",
            f"How many {things} were there in the beginning?",
            f"How many {things} did {he} start with?",
        )
    total = gone + left
    d.say(f"{p.name} had {left} {things}.", f"{p.name} started with {left} {things}.")
    d.say(
        f"After {other.name} gave {p.them} some more, {he} has {total}.",
        f"{he.capitalize()} found some more and now has {total}.",
    )
    d.value = d.step(total, "-", left)
    return d.one(f"How many {things} did {he} get?", f"How many {things} were added?")


def distraction(d: Draft, n: int) -> str:
    """Two kinds of things, and a number that does not matter."""
    p, other = d.people(2)
    one, two = (plural(thing) for thing in d.rng.sample(THINGS, 2))
    he = p.they
    a, b = d.number(3, 300), d.number(3, 300)
    d.say(
        f"{p.name} has {a} {one} and {b} {two}.",
        f"There are {a} {one} and {b} {two} in {p.name}'s bag.",
        f"{p.name} bought {a} {one} and {b} {two}.",
    )
    which, value = (one, a) if d.rng.random() < 0.5 else (two, b)
    if n == 1 and a != b and d.rng.random() < 0.5:
        k = d.number(2, 40)
        d.say(
            f"{he.capitalize()} also has {k} cousins.",
            f"{he.capitalize()} is {k} years old.",
            f"{other.name} has {k} of each.",
        )
        if d.rng.random() < 0.5:
            d.value = d.step(a, "+", b)
            return f"How many {one} and {two} does {p.name} have altogether?"
        more, fewer = (one, two) if a > b else (two, one)
        d.value = d.step(max(a, b), "-", min(a, b))
        return d.one(
            f"How many more {more} than {fewer} does {p.name} have?",
            f"How many fewer {fewer} than {more} does {he} have?",
        )
    for _ in range(n):
        if d.rng.random() < 0.5 and value > 2:
            k = d.number(1, value - 1)
            d.say(
                f"{he.capitalize()} gives {d.write(k)} of the {which} to {other.name}.",
                f"{he.capitalize()} uses {k} of the {which}.",
                f"{other.name} takes {k} of the {which}.",
            )
            value = d.step(value, "-", k)
        else:
            k = d.number(2, 200)
            d.say(f"{he.capitalize()} gets {d.write(k)} more {which}.", f"{other.name} brings {k} more {which}.")
            value = d.step(value, "+", k)
    d.value = value
    return d.one(f"How many {which} does {p.name} have now?", f"How many {which} are there now?")


def ages(d: Draft, n: int) -> str:
    """Who is how old, now and then."""
    people = d.people(n + 1)
    value = d.number(4, 40)
    d.say(f"{people[0].name} is {value} years old.")
    for index in range(n):
        a, b = people[index + 1].name, people[index].name
        kind = d.rng.choice("oyt" if value <= 30 else "oy")
        if index == n - 1 and n > 1 and d.rng.random() < 0.4:
            k = d.number(2, 20)
            d.value = d.step(value, "+", k)
            return f"How old will {b} be in {d.write(k)} years?"
        kind = kind if value > 4 else "o"
        k = d.number(2, 20) if kind == "o" else d.number(2, value - 2) if kind == "y" else d.rng.choice([2, 3])
        if kind == "o":
            d.say(f"{a} is {d.write(k)} years older than {b}.", f"{b} is {k} years younger than {a}.")
            value = d.step(value, "+", k)
        elif kind == "y":
            d.say(f"{a} is {d.write(k)} years younger than {b}.", f"{b} is {k} years older than {a}.")
            value = d.step(value, "-", k)
        else:
            d.say(f"{a} is {MULTIPLES[k][0]} as old as {b}.")
            value = d.step(value, "*", k)
    d.value = value
    return f"How old is {people[n].name}?"


def journey(d: Draft, n: int) -> str:
    """Distances, pages and weights that add up."""
    p = d.people(1)[0]
    he = p.they
    verb, past, unit = d.rng.choice([("walk", "walked", "miles"), ("drive", "drove", "kilometers"), ("read", "read", "pages"),
                                     ("run", "ran", "laps"), ("cycle", "cycled", "miles"), ("swim", "swam", "meters")])  # fmt: skip
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"][: n + 1]
    values = [d.number(2, 150)]
    d.say(f"On {days[0]} {p.name} {past} {values[0]} {unit}.", f"{p.name} {past} {values[0]} {unit} on {days[0]}.")
    compared = 0
    for day, before in zip(days[1:], days, strict=False):
        v = values[-1]
        if compared + len(values) < n and d.rng.random() < 0.5 and len(values) < 3:
            compared += 1
            kind = d.rng.choice("mtl" if v > 3 and v < 200 else "m")
            k = d.number(2, 60) if kind == "m" else d.rng.choice([2, 3]) if kind == "t" else d.number(2, v - 1)
            d.say({"m": f"On {day} {he} {past} {k} {unit} more than on {before}.", "t": f"On {day} {he} {past} {MULTIPLES[k][0] if kind == 't' else ''} as many {unit} as on {before}.",
                   "l": f"On {day} {he} {past} {k} {unit} fewer than on {before}."}[kind])  # fmt: skip
            values.append(d.step(v, {"m": "+", "t": "*", "l": "-"}[kind], k))
        else:
            if len(values) - 1 + compared >= n:
                break
            k = d.number(2, 150)
            d.say(f"On {day} {he} {past} {k} {unit}.", f"{he.capitalize()} {past} {d.write(k)} {unit} on {day}.")
            values.append(k)
    total = values[0]
    for v in values[1:]:
        total = d.step(total, "+", v)
    if len(d.steps) < n and d.rng.random() < 0.8:
        goal = total + d.number(1, 200)
        d.say(f"{he.capitalize()} wants to {verb} {goal} {unit} this week.", f"{p.name}'s goal is {goal} {unit}.")
        d.value = d.step(goal, "-", total)
        return f"How many {unit} are left?"
    d.value = total
    return d.one(f"How many {unit} did {he} {verb} in total?", f"How many {unit} did {p.name} {verb} altogether?")


KINDS: tuple[tuple[Callable[[Draft, int], str], int], ...] = (
    (collection, 6), (comparison, 4), (shopping, 4), (rates, 3), (groups, 4), (backwards, 3), (distraction, 3),
    (ages, 1), (journey, 2),
)  # fmt: skip
STEPS = (1, 1, 2, 2, 2, 3, 3, 4)
"""Numbers of steps that are drawn; a few stories end up with one more or fewer."""
PATIENCE = 100_000
"""Drawings in turn that may bring no story that is new."""


def draw_story(rng: random.Random, largest: int = 2 * LARGEST) -> Example | None:
    """Draw one story; ``None`` if a result of its steps is 0 or above the largest."""
    (write,) = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])
    draft = Draft(rng)
    question = write(draft, rng.choice(STEPS))
    numbers = [int(step[step.index("=") + 1 : -2]) for step in draft.steps]
    if max(numbers) > largest or min(numbers) < 1 or len(draft.steps) > 4:
        return None
    return Example(join(draft, question), tuple(draft.steps), str(numbers[-1]))


def join(draft: Draft, question: str) -> str:
    """All sentences; now and then the last one becomes a condition of the question."""
    *others, last = draft.sentences
    first = last.partition(" ")[0]
    if others and last.count(".") == 1 and draft.rng.random() < 0.2:
        last = last if first in NAMES or "'" in first else last[:1].lower() + last[1:]
        question = f"If {last[:-1]}, {question[:1].lower()}{question[1:]}"
        return " ".join([*others, question])
    return " ".join([*draft.sentences, question])


def draw_stories(count: int, seed: int = 0, largest: int | None = None) -> list[Example]:
    """Draw different stories; other seeds may draw some of them again.

    Parameters
    ----------
    count
        How many.
    seed
        Of the drawing.
    largest
        Result that a step may have at most; two thousand if not given.

    Raises
    ------
    UsageError
        If too few different stories have numbers as small, or more are asked for than memory is likely to hold.
    """
    check_most("stories", "the number of stories", count)
    check_most("largest", "the largest result of stories", largest or 0)
    largest = 2 * LARGEST if largest is None else largest
    rng = random.Random(f"stories {seed}")
    stories: dict[str, Example] = {}
    new = 0
    while len(stories) < count:
        story = draw_story(rng, largest)
        known = len(stories)
        if story is not None:
            stories.setdefault(normalised(story.question), story)
        new = 0 if len(stories) > known else new + 1
        if new == PATIENCE:
            raise UsageError(
                f"stories: of {count} with results up to {largest} {known} were found; ask for fewer, or larger"
            )
    return list(stories.values())


def write_stories(count: int, seed: int, path: Path, largest: int | None = None) -> None:
    """Write stories as JSON Lines in GSM8K's form."""
    records = (
        {"question": story.question, "answer": f"{' '.join(story.steps)}\n#### {story.answer}"}
        for story in draw_stories(count, seed, largest)
    )
    write_json_lines(path, records)
