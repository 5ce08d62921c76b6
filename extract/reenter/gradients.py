"""Integrated gradients of the answer with respect to the thoughts, with what they fail to add up to."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from extract.model.capture import KeyValues
from extract.model.device import device_errors
from extract.model.reasoner import Flight
from extract.reenter.statistics import mean_interval
from extract.reenter.target import Target
from schemas import UsageError

Baseline = Literal["zero", "mean"]


def integrated_gradients(
    target: Target,
    *,
    against: Sequence[str] | None = None,
    baseline: Baseline = "mean",
    n_step: int = 32,
    batch: int | None = None,
    limit: int | None = None,
) -> xr.Dataset:
    """Share of each thought in the answer's logit difference, along the straight way from a baseline.

    The six vectors are taken as inputs, all moved together from the baseline to what was fed; the question stays as
    it is. Midpoint rule, model in evaluation mode.

    Parameters
    ----------
    target
        Run and model.
    against
        Answer ``(example,)`` the gold one is set against; by default that of the pair's other half, or of the next
        problem with another answer.
    baseline
        ``mean`` of each thought over the run, or ``zero``.
    n_step
        Points on the way.
    batch
        Examples at a time; those of the target's batches by default, or 16.
    limit
        Only the first examples.

    Returns
    -------
    xr.Dataset
        ``attribution(example, latent)`` in logits; ``logit_difference`` and ``baseline_logit_difference(example)``, the
        values at both ends; ``residual(example)``: what the attributions lack to the difference of the two, and
        ``relative_residual`` (its mean absolute value over the mean absolute difference, in ``attrs``);
        ``attribution_mean(latent)`` and ``magnitude_mean(latent)`` (of absolute values) with bootstrap intervals.
    """
    if baseline not in ("zero", "mean"):
        raise UsageError(f"baseline {baseline!r} is neither zero nor mean")
    if n_step < 1:
        raise UsageError(f"n_step is {n_step}; it must be at least 1")
    reasoner, data = target.reasoner, target.data
    batch = next(each for each in (batch, target.batch_rows, 16) if each is not None)
    if batch < 1:
        raise UsageError(f"batch_rows is {batch}; it must be at least 1")
    n = data.sizes["example"] if limit is None else min(limit, data.sizes["example"])
    rows = np.arange(n)
    gold = [str(text) for text in data["gold_answer"].values]
    other = list(against) if against is not None else other_answers(target)
    prompts = [reasoner.encode(str(text)) for text in data["question"].values[:n]]
    thoughts = target.thoughts
    fed = np.stack([target.values.stored(rows, "latent_embedding", -1, each) for each in thoughts], axis=1)
    start = np.zeros_like(fed)
    if baseline == "mean":
        start += np.stack([target.values.mean("latent_embedding", -1, each, "position") for each in thoughts])
    attribution = np.empty((n, len(thoughts)))
    ends = np.empty((2, n))
    order = sorted(range(n), key=lambda row: len(prompts[row]))
    done = 0
    with reasoner.session():
        for first in range(0, n, batch):
            part = order[first : first + batch]
            with device_errors(f"a batch of {len(part)} examples", f"pass --batch-rows {max(1, len(part) // 2)}"):
                tokens, ids = _answer_tokens(target, [gold[row] for row in part], [other[row] for row in part])
                x0, x1 = (torch.as_tensor(each[part], device=reasoner.device) for each in (start, fed))
                with torch.no_grad():
                    laid, pad, n_before = reasoner.lay_out([prompts[row] for row in part])
                    cache = KeyValues(n_before + 1)
                    Flight(reasoner, pad, n_before, cache).feed_tokens(laid)
                total = torch.zeros_like(x0)
                for step in range(n_step):
                    x = (x0 + (step + 0.5) / n_step * (x1 - x0)).requires_grad_()
                    difference = _difference(target, cache, pad, n_before, x, tokens, ids)
                    (gradient,) = torch.autograd.grad(difference.sum(), x)
                    total += gradient / n_step
                attribution[part] = ((x1 - x0) * total).sum(-1).cpu().double().numpy()
                with torch.no_grad():
                    for end, x in enumerate((x0, x1)):
                        ends[end, part] = (
                            _difference(target, cache, pad, n_before, x, tokens, ids).cpu().double().numpy()
                        )
            done += len(part)
            if target.progress is not None:
                target.progress(done, n)
    residual = ends[1] - ends[0] - attribution.sum(1)
    mean, low, high = mean_interval(attribution.T)
    size, size_low, size_high = mean_interval(np.abs(attribution).T)
    gap = np.abs(ends[1] - ends[0]).mean()
    return xr.Dataset(
        {
            "attribution": (("example", "latent"), attribution, {"units": "logit"}),
            "logit_difference": ("example", ends[1], {"units": "logit"}),
            "baseline_logit_difference": ("example", ends[0], {"units": "logit"}),
            "residual": ("example", residual, {"units": "logit"}),
            "attribution_mean": ("latent", mean),
            "attribution_low": ("latent", low),
            "attribution_high": ("latent", high),
            "magnitude_mean": ("latent", size),
            "magnitude_low": ("latent", size_low),
            "magnitude_high": ("latent", size_high),
        },
        coords={"example": data["example"].values[:n], "latent": np.array(thoughts, dtype=object)},
        attrs={
            "baseline": baseline,
            "n_step": n_step,
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
    partner: dict[int, list[int]] = {}
    for index, number in enumerate(pair):
        partner.setdefault(number, []).append(index)
    found = []
    for index, number in enumerate(pair):
        twins = [each for each in partner[number] if each != index] if number >= 0 else []
        if asked is not None and not any(not scoring.match(gold[each], gold[index]) for each in twins):
            found.append(str(asked[index]))
            continue
        for each in [*twins, *((index + step) % len(texts) for step in range(1, len(texts)))]:
            if not scoring.match(gold[each], gold[index]):
                found.append(texts[each])
                break
        else:
            raise UsageError(
                f"all examples of {target.run} have the answer {texts[index]}; there is no other to set against it"
            )
    return found


def _answer_tokens(target: Target, gold: list[str], other: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens ``(row, place)`` before the first that tells two answers apart, and what follows them ``(row, 3)``.

    That is the two answers' tokens and the place at which they are predicted.
    """
    lines, ids = [], []
    for one, two in zip(gold, other, strict=True):
        a, b = target.reasoner.answer_tokens(one), target.reasoner.answer_tokens(two)
        place = next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if place is None:
            raise UsageError(f"the answers {one!r} and {two!r} are the same tokens; there is no logit between them")
        lines.append(a[:place])
        ids.append([a[place], b[place], place])
    longest = max(len(line) for line in lines)
    padded = [line + [target.reasoner.eos_id] * (longest - len(line)) for line in lines]
    device = target.reasoner.device
    return torch.tensor(padded, dtype=torch.long, device=device), torch.tensor(ids, device=device)


def _difference(
    target: Target, cache: KeyValues, pad: Tensor, n_before: int, thoughts: Tensor, tokens: Tensor, ids: Tensor
) -> Tensor:
    """Logit difference ``(row,)`` with given vectors ``(row, thought, hidden)`` fed after the question."""
    reasoner = target.reasoner
    every = torch.arange(len(pad), device=pad.device)
    capacity = n_before + reasoner.places.n_middle + tokens.shape[1]
    own = cache.take(every, n_before + 1, capacity, differentiable=True)
    flight = Flight(reasoner, pad, n_before, own)
    closing = reasoner.closing_tokens(len(pad), pad.device)
    with torch.no_grad():
        after = reasoner._embed(torch.cat([closing, tokens], dim=1))
    states = flight.feed(torch.cat([thoughts.to(after.dtype), after], dim=1))
    # The state that predicts the token at `place` of the answer lies that many places after the last closing token.
    state = states[every, reasoner.places.n_middle - 2 + ids[:, 2]]
    logits = reasoner._logits(state).float()
    return logits[every, ids[:, 0]] - logits[every, ids[:, 1]]
