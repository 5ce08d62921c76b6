"""A story being written: its words, people, sentences and steps."""

import random
from dataclasses import dataclass, field

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
        persons: dict[str, Person] = {}
        while len(persons) < count:
            woman = self.rng.random() < 0.5
            name = self.rng.choice(WOMEN if woman else MEN)
            persons[name] = Person(name, *(("she", "her", "her") if woman else ("he", "him", "his")))
        return list(persons.values())


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
