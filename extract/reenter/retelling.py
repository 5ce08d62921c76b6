"""What the rest of a written chain makes of another intermediate result, or of another operator."""

import ast
import re
from collections.abc import Collection, Sequence

import numpy as np
import xarray as xr

from extract.run.chains import work_out
from schemas import UsageError

NUMBER = re.compile(r"\d+(?:\.\d+)?")


def evaluate(expression: str) -> float | None:
    """Value of an expression of numbers, ``+ - * /`` and brackets; ``None`` where it is none or has no value.

    >>> evaluate("(3+4)*2")
    14.0
    """
    try:
        return work_out(ast.parse(expression.replace(" ", ""), mode="eval").body)
    except (ValueError, SyntaxError, ZeroDivisionError, OverflowError):
        return None


def references(expression: str, earlier: Sequence[float], question: str, used: Collection[int] = ()) -> dict[int, int]:
    """Which numbers of an expression are results of earlier steps: their place among its numbers, and the step.

    The latest step whose result is written there is referred to. A further number is a reference only if the question
    does not give it and no expression has used that result before (``used``).

    >>> references("8-6", [6.0, 8.0], "Tom has 2 pens. He loses 6 again.")
    {0: 1}
    """
    numbers = [float(text) for text in NUMBER.findall(expression)]
    given = {float(text) for text in NUMBER.findall(question.replace(",", ""))}
    referred: dict[int, int] = {}
    for step in range(len(earlier) - 1, -1, -1):
        for place, number in enumerate(numbers):
            if (
                place not in referred
                and number == earlier[step]
                and (not referred or (number not in given and step not in used))
            ):
                referred[place] = step
                break
    return referred


def retold(
    expressions: Sequence[str], results: Sequence[float], question: str, step: int, *,
    value: float | None = None, sign: str = "",
) -> list[float]:  # fmt: skip
    """Results of a chain if one step had another result (``value``), or another operator (``sign``).

    Steps before it stay; from where the chain has no value on it is NaN.
    """
    new = [float(result) for result in results]
    if value is None:
        changed = re.sub(r"[-+*/]", lambda _: sign, expressions[step])
        value = evaluate(changed)
    new[step] = np.nan if value is None else value
    used: set[int] = set()
    for later in range(1, len(expressions)):
        referred = references(expressions[later], results[:later], question, used)
        used |= set(referred.values())
        if later <= step:
            continue
        numbers = NUMBER.findall(expressions[later])
        for place, earlier in referred.items():
            numbers[place] = f"({new[earlier]!r})"
        rest = iter(numbers)
        text = NUMBER.sub(lambda _, rest=rest: next(rest), expressions[later])  # type: ignore[misc]
        computed = None if "nan" in text else evaluate(text)
        new[later] = np.nan if computed is None else computed
    return new


class Chains:
    """The written chains of a run, and what they would come to.

    A chain goes on from a changed result only while its results look like those of the run's own chains: within their
    range, and whole where all of those are whole.

    Raises
    ------
    UsageError
        If the run has no chains.
    """

    none = np.nan
    """What stands for no result."""

    def __init__(self, run: xr.Dataset) -> None:
        if "expression" not in run.data_vars or not run["intermediate_result"].notnull().any():
            raise UsageError(
                f"{run.attrs.get('run', 'the run')} has no written chains, so it is not known what the rest of a"
                " problem makes of another result; extract data with chains (GSM8K's <<26/2=13>>)"
            )
        self.result = np.asarray(run["intermediate_result"].values, dtype=np.float64)
        self.operation = run["operation"].values.astype(str)
        self.question = [str(text) for text in run["question"].values]
        self.expression = run["expression"].values.astype(str)
        self.n_step = (~np.isnan(self.result)).sum(1)
        known = self.result[~np.isnan(self.result)]
        self._retold: dict[tuple[int, int, float | None, str], np.ndarray | None] = {}
        self.least, self.most, self.whole = known.min(), known.max(), bool((known == np.round(known)).all())

    def retell(self, row: int, step: int, *, value: float | None = None, sign: str = "") -> np.ndarray | None:
        """Results ``(step,)`` of an example's chain with another result or operator at a step.

        ``None`` where the chain has no such step or no step after it, or cannot go on.
        """
        key = row, step, value, sign
        if key not in self._retold:
            self._retold[key] = self._retell(row, step, value, sign)
        return self._retold[key]

    def _retell(self, row: int, step: int, value: float | None, sign: str) -> np.ndarray | None:
        n = int(self.n_step[row])
        if not 0 <= step < n - 1:
            return None
        expressions = self.expression[row, :n].tolist()
        new = np.array(
            retold(expressions, self.result[row, :n].tolist(), self.question[row], step, value=value, sign=sign)
        )
        allowed = (new >= self.least) & (new <= self.most) & (not self.whole or new == np.round(new))
        if not allowed.all():
            return None
        return np.concatenate([new, np.full(self.result.shape[1] - n, np.nan)])

    def values_of(self, texts: Sequence[str]) -> np.ndarray:
        """Number ``(text,)`` that each text is; NaN where it is none."""
        return np.array([float(text) if text.isdecimal() else np.nan for text in texts])

    def answer_of(self, row: int, told: np.ndarray) -> float:
        """The last result of an example's chain."""
        return float(told[int(self.n_step[row]) - 1])

    def answer_text(self, row: int, results: np.ndarray) -> str:
        """The last result of an example's chain, as answers are written."""
        answer = self.answer_of(row, results)
        return f"{answer:.0f}" if answer == round(answer) else repr(answer)
