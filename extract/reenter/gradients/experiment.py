"""Integrated gradients of the answer with respect to the thoughts, with what they fail to add up to."""

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from extract.model.capture import KeyValues
from extract.model.flight import Flight
from extract.reenter.answers import answers_apart, laid_apart
from extract.reenter.batches import batch_errors, by_length
from extract.reenter.gradients.command import GradientSettings
from extract.reenter.target import Target
from schemas import UsageError
from schemas.problem_sums import problem_of
from schemas.resampling import mean_interval
from schemas.wording import interval_columns

BATCH = 16
STEP_ROWS = 64
"""Rows of several steps on the way that go together."""


def integrated_gradients(target: Target, settings: GradientSettings | None = None) -> xr.Dataset:
    """Share of each thought in the answer's logit difference, along the straight way from a baseline.

    The gold answer is set against that of the pair's other half, or of the next problem with another answer.

    The vectors of all thoughts are taken as inputs, all moved together from the baseline to what was fed; the question
    stays as it is. Midpoint rule, model in evaluation mode.

    Parameters
    ----------
    target
        Run and model; its batches say how many examples go together, 16 by default.
    settings
        By default 32 steps from the mean of each thought over the run.

    Returns
    -------
    xr.Dataset
        ``attribution(example, latent)`` in logits; ``logit_difference`` and ``baseline_logit_difference(example)``, the
        values at both ends; ``residual(example)``: what the attributions lack to the difference of the two, and
        ``relative_residual`` (its mean absolute value over the mean absolute difference, in ``attrs``);
        ``attribution_mean(latent)`` and ``magnitude_mean(latent)`` (of absolute values) with bootstrap intervals.

    Raises
    ------
    UsageError
        If all examples have the same answer.
    LakeError
        If the device has too little memory, or fails.
    """
    settings = settings or GradientSettings()
    target.need_thoughts("gradients")
    prompts = target.reasoner.prompts(target.data["question"].values)
    gold = [str(text) for text in target.data["gold_answer"].values]
    other = other_answers(target)
    start, fed = _vectors(target, settings.baseline)
    n, done = len(prompts), 0
    attribution, ends = np.empty((n, len(target.thoughts))), np.empty((2, n))
    with target.reasoner.session():
        for rows in by_length(prompts, target.batch_rows or BATCH):
            with batch_errors(len(rows), "examples"):
                line = _Line(target, [prompts[row] for row in rows], [(gold[row], other[row]) for row in rows])
                attribution[rows], ends[:, rows] = line.integrate(start[rows], fed[rows], settings.steps)
            done += len(rows)
            target.report(done, n)
    return _result(target, settings, attribution, ends)


def _vectors(target: Target, baseline: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors ``(example, thought, hidden)`` at both ends of the way: the baseline's, and those that were fed."""
    site, rows = "latent_embedding", np.arange(target.data.sizes["example"])
    fed = np.stack([target.values.stored(rows, site, -1, thought) for thought in target.thoughts], axis=1)
    start = np.zeros_like(fed)
    if baseline == "mean":
        start += np.stack([target.values.mean(site, -1, thought, "position") for thought in target.thoughts])
    return start, fed


def _result(target: Target, settings: GradientSettings, attribution: np.ndarray, ends: np.ndarray) -> xr.Dataset:
    """Attributions ``(example, thought)`` and logit differences ``(end, example)`` as a labelled result."""
    residual = ends[1] - ends[0] - attribution.sum(1)
    problem = problem_of(target.data)
    means = interval_columns("attribution", mean_interval(attribution.T, problem=problem), "_mean")
    means |= interval_columns("magnitude", mean_interval(np.abs(attribution).T, problem=problem), "_mean")
    gap = np.abs(ends[1] - ends[0]).mean()
    logit = {"units": "logit"}
    return xr.Dataset(
        {
            "attribution": (("example", "latent"), attribution, logit),
            "logit_difference": ("example", ends[1], logit),
            "baseline_logit_difference": ("example", ends[0], logit),
            "residual": ("example", residual, logit),
            **{name: ("latent", mean) for name, mean in means.items()},
        },
        coords={"example": target.data["example"].values, "latent": np.array(target.thoughts, dtype=object)},
        attrs={
            "baseline": settings.baseline,
            "n_step": settings.steps,
            "relative_residual": float(np.abs(residual).mean() / gap) if gap else float("nan"),
        },
    )


def other_answers(target: Target) -> list[str]:
    """An answer other than each example's own.

    That of its pair's other half; else the wrong one of the two that the question asks about, where the data says it;
    else the answer of the next problem that differs.
    """
    scoring, gold = target.scoring, target.gold
    texts = [str(text) for text in target.data["gold_answer"].values]
    asked = target.data["other_answer"].values.tolist() if "other_answer" in target.data.variables else None
    pair = target.data["pair"].values.tolist() if "pair" in target.data.variables else [-1] * len(texts)
    members: dict[int, list[int]] = {}
    for index, number in enumerate(pair):
        members.setdefault(number, []).append(index)
    answers = []
    for index, number in enumerate(pair):
        twins = [twin for twin in members[number] if twin != index] if number >= 0 else []
        if asked is not None and not any(not scoring.match(gold[twin], gold[index]) for twin in twins):
            answers.append(str(asked[index]))
            continue
        for candidate in [*twins, *((index + step) % len(texts) for step in range(1, len(texts)))]:
            if not scoring.match(gold[candidate], gold[index]):
                answers.append(texts[candidate])
                break
        else:
            raise UsageError(
                f"all examples of {target.run} have the answer {texts[index]}; there is no other to set against it"
            )
    return answers


class _Line:
    """Logit difference of two answers, for a batch of examples, as a function of the vectors fed after the question."""

    def __init__(self, target: Target, prompts: list[list[int]], answers: list[tuple[str, str]]) -> None:
        self.reasoner = target.reasoner
        apart = answers_apart(self.reasoner, answers)
        if same := [pair for pair, parts in zip(answers, apart, strict=True) if parts.other < 0]:
            raise UsageError(f"gradients: answer {same[0][0]!r} cannot be set against {same[0][1]!r}, its own tokens")
        self.tokens, self.ids = laid_apart(self.reasoner, apart)
        with torch.no_grad():
            laid, self.pad, self.n_before = self.reasoner.lay_out(prompts)
            self.cache = KeyValues(self.n_before + 1)
            Flight(self.reasoner, self.pad, self.n_before, self.cache).feed_tokens(laid)
        self._taken: dict[int, KeyValues] = {}

    def integrate(self, start: np.ndarray, end: np.ndarray, n_step: int) -> tuple[np.ndarray, np.ndarray]:
        """Attributions ``(row, thought)``, and the difference ``(2, row)`` at both ends of the way."""
        x0, x1 = (torch.as_tensor(vectors, device=self.reasoner.device) for vectors in (start, end))
        total = torch.zeros_like(x0)
        for steps in torch.split(torch.arange(n_step, device=x0.device), max(1, STEP_ROWS // len(x0))):
            ways = ((steps + 0.5) / n_step).to(x0.dtype)[:, None, None, None]
            x = (x0 + ways * (x1 - x0)).flatten(0, 1).requires_grad_()
            (gradient,) = torch.autograd.grad(self.difference(x).sum(), x)
            total += gradient.view(len(steps), *x0.shape).sum(0) / n_step
        with torch.no_grad():
            ends = self.difference(torch.cat([x0, x1])).view(2, -1)
        return ((x1 - x0) * total).sum(-1).cpu().double().numpy(), ends.cpu().double().numpy()

    def difference(self, thoughts: Tensor) -> Tensor:
        """Logit difference ``(row,)`` with given vectors ``(row, thought, hidden)`` fed after the question.

        Rows are those of the batch, once or several times over.
        """
        reasoner, device = self.reasoner, self.pad.device
        every = torch.arange(len(thoughts), device=device)
        example = every % len(self.pad)
        pad, (one, other, place) = self.pad[example], self.ids[example].T
        if len(every) not in self._taken:
            capacity = self.n_before + reasoner.places.n_middle + self.tokens.shape[1]
            taken = self.cache.take(example, self.n_before + 1, capacity, differentiable=True)
            self._taken = {len(every): taken}
        flight = Flight(reasoner, pad, self.n_before, self._taken[len(every)].again())
        with torch.no_grad():
            closing = reasoner.closing_tokens(len(pad), device)
            after = reasoner.embed(torch.cat([closing, self.tokens[example]], dim=1))
        states = flight.feed(torch.cat([thoughts.to(after.dtype), after], dim=1))
        # The state that predicts the token at `place` of the answer lies that many places after the last closing token.
        state = states[every, reasoner.places.n_middle - 2 + place]
        logits = reasoner.logits(state).float()
        return logits[every, one] - logits[every, other]
