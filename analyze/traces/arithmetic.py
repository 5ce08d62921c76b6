"""Numbers read at thoughts, chained by valid arithmetic to trees that end at the model's answer.

A number read at a thought is a node. It is explained by a step, two operands and one of ``+ - * /`` whose result it is;
an operand is a number of the question, or one read at an earlier thought that is explained itself. A tree explains the
answer so. Steps of three operands are tried where the run's written steps have as many, and only at nodes that no step
of two explains. A number that is read at one thought after another is kept, not computed again.

Of all trees those are best that use the most numbers of the question, then use the fewest of them more often than the
question tells them, then explain the most of the numbers read. Several may be equally good.

Steps between neighbouring thoughts, operands from thoughts and question, a tree that ends at the predicted answer: as
Dilgren and Wiegreffe, *Are Latent Reasoning Models Easily Interpretable?*, 2026 (experiments/forward_chaining), do.
There each thought keeps its best step and the first tree is taken; here all trees are compared.
"""

import ast
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from schemas import number_text
from schemas.numbers import as_float, find_numbers, plain, value_of

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TREES = 256
"""Ways to explain a node that are kept."""
TOLERANCE = 1e-6

_WORDS = {
    word: float(value)
    for value, words in (
        (2, "two half halves halved twice double doubles doubled both pair couple"),
        (3, "three third thirds thrice triple triples tripled"),
        (4, "four quarter quarters fourth"), (5, "five fifth"), (6, "six sixth"), (7, "seven"), (8, "eight eighth"),
        (9, "nine"), (10, "ten tenth"), (11, "eleven"), (12, "twelve dozen dozens"), (13, "thirteen"), (14, "fourteen"),
        (15, "fifteen"), (16, "sixteen"), (17, "seventeen"), (18, "eighteen"), (19, "nineteen"), (20, "twenty"),
        (30, "thirty"), (40, "forty"), (50, "fifty"), (60, "sixty"), (70, "seventy"), (80, "eighty"), (90, "ninety"),
        (100, "hundred"), (1000, "thousand"),
    )
    for word in words.split()
}  # fmt: skip
_UNITS = (
    (r"%|\bper ?cent", (100.0,)), (r"\bcents?\b|\bmeters?\b|\bmetres?\b", (100.0,)), (r"\bdays?\b", (7.0, 24.0, 30.0)),
    (r"\bhours?\b|\bminutes?\b|\bseconds?\b", (60.0, 24.0)), (r"\bweek", (7.0, 52.0, 4.0)),
    (r"\bmonth|\byear|\bannual", (12.0, 52.0, 365.0)), (r"\bone\b|\beach\b", (1.0,)),
)  # fmt: skip
"""Numbers that a question does not tell but may mean by its units."""
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


class Step(NamedTuple):
    """A step as steps are compared: operands and operators are sorted, because the order of a sum is its writer's."""

    operands: tuple[float, ...]
    operators: str
    result: float


class Derivation(NamedTuple):
    """Steps that explain a number, the numbers of the question they use, and the thoughts whose numbers they use."""

    steps: frozenset[Step]
    told: tuple[float, ...]
    thoughts: frozenset[int]
    texts: tuple[str, ...]
    """Each step as it is shown, with the place it is read at."""


class Trees(NamedTuple):
    """The best trees of a problem."""

    best: list[Derivation]
    found: bool
    """Whether one of them uses a number read at a thought."""


same_number = lru_cache(maxsize=4096)(float)
"""One object for a number that many problems tell: the numbers of all problems are kept."""


@lru_cache(maxsize=8192)
def question_numbers(question: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numbers that a question gives, in digits or words, each as often as it gives it; and what its units may mean.

    >>> question_numbers("Half of 24 eggs in 3 weeks")
    ((2.0, 3.0, 24.0), (4.0, 7.0, 52.0))
    """
    text = plain(question)
    values = [as_float(value_of(text, match)) for match in find_numbers(text)]
    told = [value for value in values if value is not None]
    told += [_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS]
    meant = {value for pattern, values in _UNITS if re.search(pattern, text.lower()) for value in values}
    return tuple(map(same_number, sorted(told))), tuple(sorted(meant - set(told)))


@lru_cache(maxsize=8192)
def written_step(expression: str, result: float) -> Step | None:
    """A step of the written chain; ``None`` where its expression is anything but ``+ - * /`` of numbers.

    >>> written_step("16-3-4", 9.0)
    Step(operands=(3.0, 4.0, 16.0), operators='--', result=9.0)
    """
    operands, operators = [], []
    try:
        tree = ast.parse(re.sub(r"[$,\s]", "", plain(expression)).replace("x", "*"), mode="eval")
        for node in ast.walk(tree.body):
            if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
                operands.append(float(node.value))
            elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
                operators.append(_OPERATORS[type(node.op)])
            elif not isinstance(node, ast.operator):
                return None
    except (SyntaxError, ValueError, OverflowError):  # the last of numbers beyond float64
        return None
    whole = len(operators) == len(operands) - 1 > 0 and np.isfinite(result)
    return Step(tuple(sorted(operands)), "".join(sorted(operators)), float(result)) if whole else None


def trees(question: str, read: Sequence[float], places: Sequence[str], answer: float, n_operand: int = 2) -> Trees:
    """The best trees of a problem.

    ``read`` is the number read at each thought in their order (NaN: none), ``places`` are the thoughts' names,
    ``answer`` is the model's (NaN: none, and there is no tree). A step has ``n_operand`` operands at most, 2 or 3.
    """
    if not np.isfinite(answer):
        return Trees([], False)
    told, meant = question_numbers(question)
    search = _Search(told, meant, [*read, answer], [*places, "answer"], n_operand)
    ways = search.explain(len(read))
    if not ways:
        return Trees([], False)
    told_counts = Counter(told)

    def merit(way: Derivation) -> tuple[int, int, int]:
        used = Counter(way.told)
        covered = sum(min(count, told_counts[value]) for value, count in used.items())
        return (-covered, sum(used.values()) - covered, -len({read[node] for node in way.thoughts}))

    least = min(map(merit, ways))
    best: dict[frozenset[Step], Derivation] = {}
    for way in ways:
        if merit(way) == least:
            best.setdefault(way.steps, way)
    ordered = sorted(best.values(), key=lambda way: way.texts)
    return Trees(ordered, any(way.thoughts for way in ordered))


class _Search:
    """Ways to explain each number read, from what comes before it."""

    def __init__(
        self, told: Sequence[float], meant: Sequence[float], values: Sequence[float], places: Sequence[str],
        n_operand: int,
    ) -> None:  # fmt: skip
        self.leaves = [*dict.fromkeys(told), *meant]
        self.told = set(told)
        self.values, self.places, self.n_operand = values, places, n_operand
        self._known: dict[int, list[Derivation]] = {}

    def explain(self, node: int) -> list[Derivation]:
        """Derivations of the number read at a node."""
        if node not in self._known:
            last = next((index for index in reversed(range(node)) if np.isfinite(self.values[index])), None)
            stays = last is not None and self.values[node] == self.values[last] and node < len(self.values) - 1
            # A number that stays is kept, not computed again; only a step from itself to itself (0 * 2) may.
            kept = last if stays else None
            ways = [] if kept is None else list(self.explain(kept))
            ways += self._derive(node, self._earlier(node) if kept is None else [kept], must=kept)
            best: dict[tuple[Any, ...], Derivation] = {}
            for way in ways:
                best.setdefault((way.steps, way.told), way)
            self._known[node] = list(best.values())[:MAX_TREES]
        return self._known[node]

    def _earlier(self, node: int) -> list[int]:
        """Of each number read before a node, the last place it is read at."""
        last = {self.values[index]: index for index in range(node) if np.isfinite(self.values[index])}
        return sorted(last.values())

    def _derive(self, node: int, sources: list[int], must: int | None) -> list[Derivation]:
        value = self.values[node]
        if not np.isfinite(value):
            return []
        numbers = np.array(self.leaves + [self.values[index] for index in sources])
        n_leaf = len(self.leaves)
        derivations = []
        for rows, signs in equations(numbers, value, self.n_operand):
            nodes = [sources[row - n_leaf] for row in rows if row >= n_leaf]
            if must is not None and must not in nodes:
                continue
            operands = tuple(float(numbers[row]) for row in rows)
            plain_signs = signs.replace("~", "-").replace("\\", "/")
            step = Step(tuple(sorted(operands)), "".join(sorted(plain_signs)), float(value))
            leaves = tuple(float(numbers[row]) for row in rows if row < n_leaf and numbers[row] in self.told)
            text = f"{_written(operands, signs)}={number_text(value)} ({self.places[node]})"
            for parts in product(*(self.explain(index) for index in dict.fromkeys(nodes))):
                if any(step in part.steps for part in parts):
                    continue
                steps = frozenset({step}.union(*(part.steps for part in parts)))
                told = tuple(sorted(leaves + tuple(x for part in parts for x in part.told)))
                thoughts = frozenset(nodes).union(*(part.thoughts for part in parts))
                texts = tuple(dict.fromkeys([text for part in parts for text in part.texts] + [text]))
                derivations.append(Derivation(steps, told, thoughts, texts))
                if len(derivations) >= MAX_TREES:
                    return derivations
        return derivations


def equations(numbers: Array, value: float, n_operand: int = 2) -> list[tuple[tuple[int, ...], str]]:
    r"""Rows of numbers and the operators between them, from the left, whose result is a value.

    ``~`` and ``\`` stand for a difference and a quotient the other way round: ``a-b~c`` is ``c-(a-b)``.
    """
    rows, signs, results = _pairs(numbers)
    hits = np.flatnonzero(np.abs(results - value) < TOLERANCE)
    found: list[tuple[tuple[int, ...], str]] = [(tuple(rows[hit].tolist()), str(signs[hit])) for hit in hits]
    if found or n_operand < 3:
        return found
    left, right = results[:, None], numbers[None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for sign, outcome in (
            ("+", left + right), ("-", left - right), ("~", right - left), ("*", left * right), ("/", left / right),
            ("\\", right / left),
        ):  # fmt: skip
            for pair, row in np.argwhere(np.abs(outcome - value) < TOLERANCE):
                found.append(((*rows[pair].tolist(), int(row)), str(signs[pair]) + sign))
    return found


def _pairs(numbers: Array) -> tuple[Array, Array, Array]:
    """Every two of the numbers (a number with itself, too) under every operator.

    Returns
    -------
    rows (pair, 2), operators (pair,) and results (pair,), NaN: a division by zero
    """
    rows, signs, ends = _rows(len(numbers))
    plus, minus, times, by = np.split(numbers[rows], ends)
    divisor = np.where(by[:, 1] == 0, np.nan, by[:, 1])
    with np.errstate(over="ignore"):  # what is infinite is no number that is read
        results = [plus.sum(-1), minus[:, 0] - minus[:, 1], times.prod(-1), by[:, 0] / divisor]
    return rows, signs, np.concatenate(results)


@lru_cache
def _rows(n: int) -> tuple[Array, Array, Array]:
    """Rows of :func:`_pairs` for so many numbers, their operators, and where those of the next operator begin."""
    i, j = np.indices((n, n)).reshape(2, -1)
    once, every = i <= j, np.full(n * n, True)  # a sum or product counts once, whichever operand comes first
    kept = {"+": once, "-": every, "*": once, "/": every}
    count = [mask.sum() for mask in kept.values()]
    pair = np.stack([i, j], -1)
    rows = np.concatenate([pair[mask] for mask in kept.values()])
    return rows, np.repeat(np.array(list(kept)), count), np.cumsum(count)[:-1]


def _written(operands: Sequence[float], signs: str) -> str:
    """A step as it is read: from the left, in brackets where the last operand comes first."""
    text = number_text(operands[0])
    for number, (operand, sign) in enumerate(zip(operands[1:], signs, strict=True)):
        other = number_text(operand)
        inner = f"({text})" if number else text
        text = f"{other}{'-' if sign == '~' else '/'}{inner}" if sign in "~\\" else f"{inner}{sign}{other}"
    return text
