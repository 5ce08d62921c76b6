"""Arithmetic stories in plain English, drawn without end: people, things, one to four steps, numbers to a thousand.

Each kind of story is a function that draws its numbers, writes its sentences in one of several ways, and gives the
steps that lead to the answer. Nothing is taken from a data set.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from extract.training.data import Example, normalised

LARGEST = 1000
WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
WOMEN = (
    "Mia Anna Sofia Emma Olivia Grace Lily Nora Zoe Ella Clara Ruth Maya Leah Amy Julia Hannah Sara Ivy Rosa Priya Mei"
    " Fatima Elena Carmen Naomi Wendy Tina Diane Kate Laura Megan Alice Jenny Susan Paula Yuki Amara Ingrid Bella"
).split()
MEN = (
    "Tom Ben Sam Leo Max Jack Noah Liam Omar Ali Ravi Wei Juan Carlos Pedro Ivan Felix Oscar Hugo Adam Paul Mark Luke"
    " John Peter David Eric Kevin Brian Frank George Henry Ryan Kofi Tariq Diego Anton Bruno Marco Yusuf"
).split()
NAMES = frozenset((*WOMEN, *MEN))
THINGS = (
    "apple orange marble sticker book pencil coin card stamp shell button toy cookie cupcake muffin balloon flower rose"
    " crayon marker notebook magazine photo postcard bead ribbon stone egg peach pear lemon banana plum carrot potato"
    " tomato onion candle cup plate spoon brick tile nail screw ticket badge poster puzzle comic pen eraser doll block"
    " seed tulip pumpkin melon sandwich donut bracelet key bottle can jar"
).split()
FRUIT_OF_WORK = "letter page report cake shirt chair table lamp sign card box photo model toy bowl basket".split()
CONTAINERS = "box bag jar basket crate packet drawer shelf tray bucket carton".split()
SHOP = (
    "notebook pen shirt hat scarf toy book ticket cup plate lamp bag puzzle ball game cake pie pizza sandwich plant"
    " candle poster cap belt mug kite"
).split()
PLACES = (
    "at the park|in the garden|at school|in the attic|at the market|on the beach|in the kitchen|at the fair"
    "|in the garage|at the library"
).split("|")
TIMES = "the next day|on Monday|on Tuesday|later that week|the following week|in the afternoon|last month".split("|")
FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
MULTIPLES = {2: ("twice", "doubles"), 3: ("three times", "triples"), 4: ("four times", "quadruples")}
IRREGULAR = {"box": "boxes", "potato": "potatoes", "tomato": "tomatoes", "shelf": "shelves", "sandwich": "sandwiches",
             "cherry": "cherries", "peach": "peaches", "bus": "buses", "brush": "brushes"}  # fmt: skip


@dataclass
class Draft:
    """A story being written."""

    rng: random.Random
    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    value: int = 0

    def one(self, *ways: str) -> str:
        """Draw one of several wordings."""
        return ways[int(self.rng.random() * len(ways))]

    def say(self, *ways: str) -> None:
        """Add a sentence in one of several wordings."""
        self.sentences.append(self.one(*ways))

    def number(self, low: int, high: int) -> int:
        """Draw a number; small ones are as likely as large ones of ten times the size."""
        if high <= low:
            return low
        top = high if self.rng.random() < 0.5 else min(high, max(low + 1, low * 2 + 18))
        return self.rng.randint(low, top)

    def write(self, number: int) -> str:
        """Write a number in digits, small ones sometimes as a word."""
        return WORDS[number] if number < len(WORDS) and self.rng.random() < 0.15 else str(number)

    def step(self, left: int, operator: str, right: int) -> int:
        """Note a step; its result."""
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // max(right, 1)}[operator]
        self.steps.append(f"<<{left}{operator}{right}={result}>>")
        return result

    def people(self, count: int) -> list["Person"]:
        """Draw people of different names."""
        found: dict[str, Person] = {}
        while len(found) < count:
            woman = self.rng.random() < 0.5
            name = self.rng.choice(WOMEN if woman else MEN)
            found[name] = Person(name, *(("she", "her", "her") if woman else ("he", "him", "his")))
        return list(found.values())


@dataclass(frozen=True)
class Person:
    """A name and its pronouns."""

    name: str
    they: str
    them: str
    their: str


def capital(text: str) -> str:
    """Text with a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


def plural(noun: str) -> str:
    """Plural of one of the nouns above."""
    return IRREGULAR.get(noun, noun + "s")


def some(count: int, noun: str) -> str:
    """Noun in the number of a count."""
    return noun if count == 1 else plural(noun)


def collection(d: Draft, n: int) -> str:
    """Someone has things; they become more and fewer."""
    p, other = d.people(2)
    thing = d.rng.choice(THINGS)
    things = plural(thing)
    he, him, his = p.they, p.them, p.their
    d.value = d.number(3, LARGEST // 2)
    v = d.value
    d.say(
        f"{p.name} has {v} {things}.", f"{p.name} had {v} {things}.", f"There are {v} {things} in {p.name}'s room.",
        f"{p.name} starts with {v} {things}.", f"{p.name} collected {v} {things} {d.rng.choice(PLACES)}.",
        f"{p.name} bought {v} {things}.",
    )  # fmt: skip
    for index in range(n):
        last = index == n - 1
        fractions = [k for k in FRACTIONS if d.value % k == 0 and d.value >= 2 * k]
        kinds = "aaass" + ("s" if d.value > 20 else "") + ("m" if d.value <= 250 else "") + ("f" if fractions else "")
        sharing = [k for k in range(2, 13) if d.value % k == 0 and d.value // k > 1]
        kind = d.rng.choice(kinds + ("d" if last and n > 1 and sharing else ""))
        when = d.one("", "", "Then ", f"{capital(d.rng.choice(TIMES))} ")
        who, friend = (he if when else d.one(he.capitalize(), p.name)), other.name
        if kind == "a":
            k = d.number(2, LARGEST - d.value if d.value < LARGEST - 2 else 2)
            w = d.write(k)
            d.say(
                f"{when}{who} buys {w} more.", f"{when}{who} finds {w} more {things} {d.rng.choice(PLACES)}.",
                f"{when}{friend} gives {him} {w} more {things}.", f"{when}{who} gets {w} {things} from {friend}.",
                f"{when}{who} picks up {w} more {things}.", f"{when}{who} receives another {w} {things}.",
            )  # fmt: skip
            d.value = d.step(d.value, "+", k)
        elif kind == "s":
            k = d.number(1, d.value - 1)
            w = d.write(k)
            d.say(
                f"{when}{who} gives {w} of them to {friend}.", f"{when}{who} loses {w} {some(k, thing)}.",
                f"{when}{who} sells {w} {some(k, thing)}.", f"{when}{who} uses {w} of the {things}.",
                f"{when}{friend} takes {w} of {his} {things}.", f"{when}{who} throws away {w} {some(k, thing)}.",
            )  # fmt: skip
            d.value = d.step(d.value, "-", k)
        elif kind == "m":
            k = d.rng.choice(list(MULTIPLES))
            times, becomes = MULTIPLES[k]
            d.say(
                f"{when}the number of {things} {he} has {becomes}." if when else f"The number of {things} {he} has {becomes}.",
                f"{when}{who} gets enough {things} to have {times} as many.",
            )  # fmt: skip
            d.value = d.step(d.value, "*", k)
        elif kind == "f":
            k = d.rng.choice(fractions)
            if k == 2 or d.rng.random() < 0.5:
                d.say(
                    f"{when}{who} keeps only {FRACTIONS[k]} of the {things}.",
                    f"{when}{who} finds that only {FRACTIONS[k]} of the {things} are still good and throws the rest away.",
                )
                d.value = d.step(d.value, "/", k)
            else:
                d.say(
                    f"{when}{who} gives {FRACTIONS[k]} of the {things} to {friend}.",
                    f"{when}{who} sells {FRACTIONS[k]} of {his} {things}.",
                )
                given = d.step(d.value, "/", k)
                d.value = d.step(d.value, "-", given)
        else:
            k = d.rng.choice(sharing)
            d.value = d.step(d.value, "/", k)
            place = d.rng.choice(CONTAINERS)
            if d.rng.random() < 0.5:
                d.say(f"{when}{who} puts the {things} into {k} {plural(place)}, the same number in each.")
                return d.one(f"How many {things} are in each {place}?", f"How many {things} does each {place} hold?")
            d.say(f"{when}{who} shares the {things} equally among {d.write(k)} friends.")
            return d.one(f"How many {things} does each friend get?", f"How many {things} will each friend have?")
    return d.one(
        f"How many {things} does {p.name} have now?", f"How many {things} does {p.name} have left?",
        f"How many {things} does {he} have in the end?", f"How many {things} are there now?",
    )  # fmt: skip


def comparison(d: Draft, n: int) -> str:
    """People who have more, fewer, so many times as many as each other."""
    people = d.people(n + 1)
    things = plural(d.rng.choice(THINGS))
    verb, past = d.rng.choice([("has", "have"), ("collected", "collect"), ("made", "make"), ("sold", "sell")])
    do = "does" if verb == "has" else "did"
    values = [d.number(3, 300)]
    d.say(f"{people[0].name} {verb} {values[0]} {things}.")
    total = n > 1 and d.rng.random() < 0.5
    chain = n - 1 if total else n
    for index in range(chain):
        v, a, b = values[-1], people[index + 1].name, people[index].name
        fractions = [k for k in (2, 3, 4) if v % k == 0 and v > k]
        kind = d.rng.choice("mmlt" + ("f" if fractions else "")) if v > 3 else "m"
        if kind == "t" and v > 250:
            kind = "l"
        if kind == "m":
            k = d.number(2, 200)
            d.say(f"{a} {verb} {d.write(k)} more {things} than {b}.", f"{a} {verb} {k} more than {b}.")
            values.append(d.step(v, "+", k))
        elif kind == "l":
            k = d.number(2, v - 1)
            d.say(f"{a} {verb} {d.write(k)} fewer {things} than {b}.", f"{b} {verb} {k} more {things} than {a}.")
            values.append(d.step(v, "-", k))
        elif kind == "t":
            k = d.rng.choice(list(MULTIPLES))
            d.say(f"{a} {verb} {MULTIPLES[k][0]} as many {things} as {b}.", f"{a} {verb} {k} times as many as {b}.")
            values.append(d.step(v, "*", k))
        else:
            k = d.rng.choice(fractions)
            d.say(
                f"{a} {verb} {FRACTIONS[k]} as many {things} as {b}."
                if k == 2
                else f"{a} {verb} {FRACTIONS[k]} of what {b} {verb}."
            )
            values.append(d.step(v, "/", k))
    if not total:
        return d.one(f"How many {things} {do} {people[chain].name} {past}?")
    if len(values) == 2 and max(values) != min(values) and d.rng.random() < 0.3:
        high, low = sorted((0, 1), key=lambda i: -values[i])
        d.value = d.step(values[high], "-", values[low])
        return f"How many more {things} {do} {people[high].name} {past} than {people[low].name}?"
    d.value = values[0]
    for v in values[1:]:
        d.value = d.step(d.value, "+", v)
    names = "they" if len(values) > 2 or d.rng.random() < 0.5 else f"{people[0].name} and {people[1].name}"
    return d.one(f"How many {things} {'do' if do == 'does' else do} {names} {past} altogether?",
                 f"How many {things} {'do' if do == 'does' else do} {names} {past} in total?")  # fmt: skip


def shopping(d: Draft, n: int) -> str:
    """Things at a price; totals, change, what is left."""
    p = d.people(1)[0]
    one, two = d.rng.sample(SHOP, 2)
    count, price = d.number(2, 12), d.number(2, 60)
    who, he = d.one(p.name, p.name), p.they
    d.say(
        f"{who} buys {d.write(count)} {plural(one)} that cost ${price} each.",
        f"{who} bought {count} {plural(one)} for ${price} each.", f"A {one} costs ${price}. {who} buys {d.write(count)} of them.",
        f"{plural(one).capitalize()} cost ${price} each, and {who} buys {count}.",
    )  # fmt: skip
    total = d.step(count, "*", price)
    if n >= 2 and d.rng.random() < 0.6:
        if n >= 3 and d.rng.random() < 0.7:
            other_count, other_price = d.number(2, 9), d.number(2, 40)
            d.say(f"{he.capitalize()} also buys {d.write(other_count)} {plural(two)} for ${other_price} each.",
                  f"{he.capitalize()} also gets {other_count} {plural(two)} at ${other_price} each.")  # fmt: skip
            other = d.step(other_count, "*", other_price)
        else:
            other = d.number(2, 90)
            d.say(f"{he.capitalize()} also buys a {two} for ${other}.", f"{he.capitalize()} also pays ${other} for a {two}.",
                  f"Shipping costs another ${other}.")  # fmt: skip
        total = d.step(total, "+", other)
    elif n >= 2 and total > 6 and d.rng.random() < 0.5:
        off = d.number(1, total // 2)
        d.say(f"{he.capitalize()} has a coupon for ${off} off.", f"The shop takes ${off} off the total.")
        total = d.step(total, "-", off)
    if n > len(d.steps):
        if d.rng.random() < 0.6:
            money = total + d.number(1, 80)
            bill = min((b for b in (10, 20, 50, 100, 200, 500) if b > total), default=money)
            paid = bill if d.rng.random() < 0.5 else money
            d.value = d.step(paid, "-", total)
            d.say(f"{he.capitalize()} pays with ${paid}.", f"{he.capitalize()} gives the cashier ${paid}.")
            return d.one(
                f"How much change does {he} get?",
                "How many dollars of change are there?",
                f"How much money does {he} get back?",
            )
        money = total + d.number(1, 300)
        d.value = d.step(money, "-", total)
        d.sentences.insert(0, d.one(f"{p.name} has ${money}.", f"{p.name} saved ${money}."))
        return d.one(f"How much money does {p.name} have left?", "How many dollars are left?")
    d.value = total
    return d.one(
        f"How much does {he} spend in all?", "What is the total cost, in dollars?", f"How many dollars does {he} pay?"
    )


def rates(d: Draft, n: int) -> str:
    """So many in an hour or a day, for so long."""
    p = d.people(1)[0]
    he = p.they
    unit, longer = d.rng.choice(
        [("hour", "day"), ("day", "week"), ("day", "month"), ("week", "year"), ("minute", "hour")]
    )
    money = d.rng.random() < 0.4
    made = d.rng.choice(FRUIT_OF_WORK)
    each, first = d.number(2, 40), d.number(2, 12)
    sign, noun = ("$", "") if money else ("", " " + plural(made))
    verb, verbs, past = (
        ("earn", "earns", "earned")
        if money
        else d.rng.choice(
            [("make", "makes", "made"), ("finish", "finishes", "finished"), ("paint", "paints", "painted")]
        )
    )
    d.say(
        f"{p.name} {verbs} {sign}{each}{noun} every {unit}.", f"{p.name} {verbs} {sign}{each}{noun} per {unit}.",
        f"Each {unit} {p.name} {verbs} {sign}{each}{noun}.", f"{p.name} can {verb} {sign}{each}{noun} in a {unit}.",
    )  # fmt: skip
    if n >= 3 and first * each <= 200 and d.rng.random() < 0.5:
        times = d.number(2, 7)
        d.say(
            f"{he.capitalize()} works {d.write(first)} {plural(unit)} a {longer}.",
            f"{he.capitalize()} does this for {first} {plural(unit)} every {longer}.",
        )
        total = d.step(each, "*", first)
        d.say(
            f"{he.capitalize()} keeps this up for {d.write(times)} {plural(longer)}.",
            f"{he.capitalize()} works like this for {times} {plural(longer)}.",
        )
        total = d.step(total, "*", times)
    else:
        d.say(f"{he.capitalize()} works for {d.write(first)} {plural(unit)}.", f"{he.capitalize()} keeps going for {first} {plural(unit)}.",
              f"{he.capitalize()} does this for {first} {plural(unit)}.")  # fmt: skip
        total = d.step(each, "*", first)
    while len(d.steps) < n:
        k = d.number(1, max(2, total - 1))
        if d.rng.random() < 0.5 or k >= total:
            d.say(
                f"{he.capitalize()} {'gets a bonus of' if money else 'already had'} {sign}{k}{noun}.",
                f"A friend gives {p.them} {sign}{k}{noun} more.",
            )
            total = d.step(total, "+", k)
        else:
            d.say(
                f"{he.capitalize()} {'spends' if money else 'gives away'} {sign}{k}{noun}.",
                f"{he.capitalize()} {'pays' if money else 'loses'} {sign}{k}{noun}{' for food' if money else ''}.",
            )
            total = d.step(total, "-", k)
    d.value = total
    if n > 1 and not d.steps[-1].count("*"):
        return f"How {'much money' if money else 'many' + noun} does {he} have {d.one('now', 'left', 'in the end')}?"
    return d.one(
        f"How {'much' if money else 'many' + noun} does {he} {verb} in all?",
        f"How {'many dollars' if money else 'many' + noun} has {he} {past}?",
    )


def groups(d: Draft, n: int) -> str:
    """Rows, boxes and packets of the same size; what is in them, how many are needed."""
    p = d.people(1)[0]
    thing, place = d.rng.choice(THINGS), d.rng.choice(CONTAINERS)
    things, places = plural(thing), plural(place)
    he = p.they
    count, each = d.number(2, 25), d.number(2, 40)
    if n == 1 and d.rng.random() < 0.5:
        total = count * each
        d.say(
            f"{p.name} has {total} {things}.",
            f"There are {total} {things}.",
            f"{p.name} needs to pack {total} {things}.",
        )
        if d.rng.random() < 0.5:
            d.say(
                f"Each {place} holds {each} {things}.",
                f"{he.capitalize()} puts {each} {things} in each {place}.",
                f"A {place} has room for {each} of them.",
            )
            d.value = d.step(total, "/", each)
            return d.one(
                f"How many {places} does {he} need?",
                f"How many {places} are needed?",
                f"How many {places} will be filled?",
            )
        d.say(
            f"{he.capitalize()} divides them equally among {d.write(count)} {places}.",
            f"They are in {count} {places} of the same size.",
        )
        d.value = d.step(total, "/", count)
        return f"How many {things} are in each {place}?"
    d.say(
        f"{p.name} has {d.write(count)} {places} of {things} with {each} {things} in each {place}.",
        f"There are {count} {places}. Each {place} holds {each} {things}.", f"{p.name} fills {count} {places} with {each} {things} each.",
        f"Each of {p.name}'s {count} {places} has {each} {things} in it.",
    )  # fmt: skip
    total = d.step(count, "*", each)
    while len(d.steps) < n:
        last = len(d.steps) == n - 1
        sharing = [k for k in range(2, 13) if total % k == 0 and total // k > 1]
        if last and sharing and d.rng.random() < 0.4:
            k = d.rng.choice(sharing)
            d.say(
                f"{he.capitalize()} shares all of them equally among {d.write(k)} people.",
                f"All of them are divided equally among {k} children.",
            )
            d.value = d.step(total, "/", k)
            return d.one(f"How many {things} does each get?", f"How many {things} does each one get?")
        if d.rng.random() < 0.5:
            k = d.number(1, total - 1)
            d.say(
                f"{d.write(k).capitalize()} of the {things} {'is' if k == 1 else 'are'} broken and thrown away.",
                f"{he.capitalize()} gives away {k} {some(k, thing)}.",
                f"{he.capitalize()} takes out {k} {some(k, thing)}.",
            )
            total = d.step(total, "-", k)
        else:
            k = d.number(1, 200)
            d.say(
                f"There {'is' if k == 1 else 'are'} also {k} loose {some(k, thing)}.",
                f"{he.capitalize()} gets {k} more {some(k, thing)}.",
                f"{he.capitalize()} also has {d.write(k)} {some(k, thing)} on the table.",
            )
            total = d.step(total, "+", k)
    d.value = total
    return d.one(
        f"How many {things} are there in all?",
        f"How many {things} does {p.name} have?",
        f"What is the total number of {things}?",
    )


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


def draw_story(rng: random.Random) -> Example | None:
    """Draw one story; ``None`` if its numbers leave the range."""
    (write,) = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])
    draft = Draft(rng)
    question = write(draft, rng.choice(STEPS))
    *before, last = draft.steps
    answer = int(last[last.index("=") + 1 : -2])
    numbers = [int(step[step.index("=") + 1 : -2]) for step in draft.steps]
    if max(numbers) > 2 * LARGEST or min(numbers) < 1 or len(draft.steps) > 4:
        return None
    return Example(join(draft, question), " ".join([*before, last]), str(answer))


def join(draft: Draft, question: str) -> str:
    """All sentences; now and then the last one becomes a condition of the question."""
    *others, last = draft.sentences
    first = last.partition(" ")[0]
    if others and last.count(".") == 1 and draft.rng.random() < 0.2:
        last = last if first in NAMES or "'" in first else last[:1].lower() + last[1:]
        question = f"If {last[:-1]}, {question[:1].lower()}{question[1:]}"
        return " ".join([*others, question])
    return " ".join([*draft.sentences, question])


def draw_stories(count: int, seed: int = 0) -> list[Example]:
    """Draw different stories; other seeds may draw some of them again.

    Parameters
    ----------
    count
        How many.
    seed
        Of the drawing.
    """
    rng = random.Random(f"stories {seed}")
    found: dict[str, Example] = {}
    while len(found) < count:
        story = draw_story(rng)
        if story is not None:
            found.setdefault(normalised(story.question), story)
    return list(found.values())


def write_stories(count: int, seed: int, path: Path) -> None:
    """Write stories as JSON Lines in GSM8K's form."""
    lines = (
        json.dumps({"question": story.question, "answer": f"{story.chain}\n#### {story.answer}"})
        for story in draw_stories(count, seed)
    )
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
