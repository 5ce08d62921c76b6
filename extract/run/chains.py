"""Steps of written solutions: equations in a text, formulas of data sets, steps in words, graphs."""

import ast
import math
import operator
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from schemas import extract_number, number_text
from schemas.numbers import plain

Step = tuple[str, str, float]
"""Expression, operator and result."""

_STEP = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_OPERAND = r"\(*[-\u2212]?\$?\.?\d[\d.,]*%?\)*"
# An equation is read whole or not at all: not the "3 - 1 = 2" of "5 apples + 3 - 1 = 2".
_EQUATION = re.compile(
    rf"(?<![\w.,$%()+*/\u2212-])(?<![-+*/x\u2212] )({_OPERAND}(?:\s?[-+*/x\u2212]\s?{_OPERAND})+)\s?=\s?"
    r"(?=([-\u2212]?\$?[-\u2212]?\.?\d(?:[\d.,]*\d)?(?:/\d+)?))"
)
CHAIN_FIELDS = (
    "full_answer", "cot", "steps", "chain", "chain_of_thought", "reasoning", "rationale", "solution", "answer",
)  # fmt: skip
WORD_FIELDS = ("steps", "chain_of_thought", "cot")
GRAPH_FIELDS = ("idx_to_symbol", "edges", "root", "target", "neg_target")
"""Of ProsQA: names of nodes, edges between their numbers, and where the question begins and ends."""

_OPERATIONS: dict[type[ast.operator], tuple[str, Any]] = {
    ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}  # fmt: skip


def parse_chain(text: str) -> list[Step]:
    """Steps of a written chain: expression, operator and result of each.

    A step is ``<<12*4=48>>``; in a text without such marks, an equation ``12 * 4 = 48``. The operator is one of
    ``+ - * /``; ``mixed`` where an expression has several.
    """
    steps = []
    for expression, result in _STEP.findall(text) if "<<" in text else _EQUATION.findall(plain(text)):
        value = extract_number(result)
        signs = plain(expression).replace("\u2212", "-").replace("x", "*")
        operators = set(re.findall(r"(?<=[\d).%])\s*([-+*/])", signs))
        operator = operators.pop() if len(operators) == 1 else "mixed" if operators else ""
        steps.append((expression.strip(), operator, math.nan if value is None else value))
    return steps


def read_chain(row: Mapping[str, Any]) -> list[Step]:
    """Steps of the first field that has any; else those of the formula in ``Equation`` or ``lEquations``."""
    for field in CHAIN_FIELDS:
        written = row.get(field)
        texts = written if isinstance(written, list) else [written]
        chain = [step for text in texts if isinstance(text, str) for step in parse_chain(text)]
        if chain:
            return chain
    formula = row.get("Equation") or row.get("lEquations")
    formula = formula[0] if isinstance(formula, list) and formula else formula
    numbers = row.get("Numbers")
    if not isinstance(formula, str):
        return []
    return formula_steps(formula, str(numbers).split() if numbers is not None else ())


def formula_steps(formula: str, numbers: Sequence[str] = ()) -> list[Step]:
    """Steps in which a formula is worked out, the innermost first; none if it is anything but ``+ - * /`` of numbers.

    Parameters
    ----------
    formula
        Infix, as ``( 76.0 - 25.0 )`` or ``X=(7.0+8.0)``, or with the operator first, as ``* number0 number1``.
    numbers
        What ``number0``, ``number1`` stand for.

    >>> formula_steps("- * number0 number1 4", ["3.0", "5.0"])
    [('3*5', '*', 15.0), ('15-4', '-', 11.0)]
    """
    for index in reversed(range(len(numbers))):
        formula = formula.replace(f"number{index}", numbers[index])
    words = formula.split()
    if words and words[0] in "+-*/" and len(words) > 2:
        formula = _infix(words)
    steps: list[Step] = []
    try:
        work_out(ast.parse(re.sub(r"^\s*[a-zA-Z]\s*=|=\s*[a-zA-Z]\s*$", "", formula).strip(), mode="eval").body, steps)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return []
    return steps


def _infix(words: list[str]) -> str:
    """Words with operators first as one expression in brackets."""
    stack: list[str] = []
    for word in reversed(words):
        if word in ("+", "-", "*", "/") and len(stack) > 1:
            word = f"({stack.pop()}{word}{stack.pop()})"
        stack.append(word)
    return stack[0] if len(stack) == 1 else ""


def work_out(node: ast.expr, steps: list[Step] | None = None) -> float:
    """Value of an expression of numbers, ``+ - * /`` and brackets; its steps are added to ``steps``.

    Raises
    ------
    ValueError
        If there is anything else in it.
    ArithmeticError
        If it has no value.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -work_out(node.operand, steps)
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATIONS:
        raise ValueError("the formula is no arithmetic of numbers")
    left, right = work_out(node.left, steps), work_out(node.right, steps)
    sign, work = _OPERATIONS[type(node.op)]
    result = float(work(left, right))
    if steps is not None:
        steps.append((f"{number_text(left)}{sign}{number_text(right)}", sign, result))
    return result


def word_steps(row: Mapping[str, Any]) -> list[str]:
    """Steps of a chain in words: a list of texts in one of :data:`WORD_FIELDS`, or none."""
    for field in WORD_FIELDS:
        written = row.get(field)
        if isinstance(written, list) and written and all(isinstance(step, str) and step.strip() for step in written):
            return [step.strip() for step in written]
    return []


def last_word(step: str) -> str:
    """Word that a step arrives at: the last one.

    >>> last_word("Every scrompus is a rempus.")
    'rempus'
    """
    words = re.findall(r"\w+(?:['-]\w+)*", step)
    return words[-1] if words else ""


def has_graph(row: Mapping[str, Any]) -> bool:
    """Whether a row carries a problem's graph, whole, in :data:`GRAPH_FIELDS`."""
    names, edges = row.get("idx_to_symbol"), row.get("edges")
    if not (isinstance(names, list) and isinstance(edges, list) and all(isinstance(name, str) for name in names)):
        return False
    ends = [row.get("root"), row.get("target"), row.get("neg_target")]
    for edge in edges:
        if not (isinstance(edge, list | tuple) and len(edge) == 2):
            return False
        ends += edge
    return all(isinstance(end, int) and not isinstance(end, bool) and 0 <= end < len(names) for end in ends)


def distractors(row: Mapping[str, Any], n_step: int) -> list[list[str]]:
    """For each step, the nodes as far from the root (in edges of the shortest way) that no way to the target visits."""
    names = row["idx_to_symbol"]
    forward, backward = defaultdict(list), defaultdict(list)
    for start, end in row["edges"]:
        forward[start].append(end)
        backward[end].append(start)
    distance = _distances(row["root"], forward)
    leads = _distances(row["target"], backward)
    alternatives: list[list[str]] = [[] for _ in range(n_step)]
    for node in sorted(distance):
        if 1 <= distance[node] <= n_step and node not in leads:
            alternatives[distance[node] - 1].append(names[node])
    return alternatives


def _distances(start: int, edges: Mapping[int, Sequence[int]]) -> dict[int, int]:
    distance, reached = {start: 0}, [start]
    while reached:
        node = reached.pop(0)
        for other in edges.get(node, ()):
            if other not in distance:
                distance[other] = distance[node] + 1
                reached.append(other)
    return distance
