"""Re-entries against ``slow_forward``: whose values go in, what is fitted, and what the model makes of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from reentry_lake import story_lake
from slow_forward import Changes, Slow
from torch import Tensor
from torch.autograd.functional import jacobian

from extract.reenter import (
    CrossSettings,
    EditSettings,
    JacobianSettings,
    Target,
    cross,
    edit,
    mean_jacobian,
    open_target,
)
from extract.reenter.transplant.command import TransplantSettings
from extract.reenter.transplant.experiment import transplant
from extract.reenter.trial import Place, open_trial
from extract.reenter.wanted import draw_wanted
from store import open_lake

Row = Callable[[int], Changes]
AT = {"bot": 0, "ct1": 2, "ct3": 4}
"""Places after bot."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story_lake(tmp_path_factory.mktemp("slowly"), ("small-gpt2", "small-llama"), {2: 25, 3: 25, 4: 25}, hard=20)


def opened(lake: Path, run: str) -> tuple[Target, Slow, list[list[int]], list[str]]:
    """A run, its model in float64, and each example's question and gold answer."""
    target = open_target(open_lake(lake), run)
    prompts = [target.reasoner.encode(str(text)) for text in target.data["question"].values]
    return target, Slow(target.reasoner), prompts, [str(text) for text in target.data["gold_answer"].values]


def fed(slow: Slow, prompts: Sequence[list[int]]) -> np.ndarray:
    """Vectors fed (example, thought, hidden)."""
    with torch.no_grad():
        return np.stack([slow.think(prompt)[len(prompt) : len(prompt) + 6].numpy() for prompt in prompts])


def put(prompt: list[int], vectors: dict[str, np.ndarray]) -> Changes:
    """Vectors in place of those fed at thoughts."""
    return {
        ("latent_embedding", -1, len(prompt) - 1 + AT[name]): lambda _, vector=vector: torch.tensor(vector)
        for name, vector in vectors.items()
    }


@torch.no_grad()
def agrees(
    result: xr.Dataset, condition: str, opened: tuple[Target, Slow, list[list[int]], list[str]], rows: Sequence[int],
    examples: Sequence[int], changes: Row,
) -> None:  # fmt: skip
    """Log probability of the gold answer and divergence at its first token, of examples under a condition."""
    target, slow, prompts, golds = opened
    for row, example in zip(rows, examples, strict=True):
        tokens = target.reasoner.answer_tokens(golds[example])
        start, prefix = target.reasoner.answer_start(golds[example]), target.reasoner.prefix_length(golds[example])
        found = []
        for each in ({}, changes(example)):
            log_p = slow.logits(slow.think(prompts[example], each), tokens, each).log_softmax(-1)
            found.append((float(log_p[range(len(tokens)), tokens][prefix:].sum()), log_p[start]))
        (_, before), (log_p_gold, after) = found
        cell = result.sel(condition=condition).isel(example=row)
        np.testing.assert_allclose(cell["answer_logprob"].values.ravel()[0], log_p_gold, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(cell["kl"], float((before.exp() * (before - after)).sum()), rtol=1e-4, atol=1e-4)


def test_thoughts_that_go_over_are_those_of_a_problem_of_the_outcome(lake: Path) -> None:
    each = target, slow, prompts, _ = opened(lake, "small-gpt2/hard")
    result = cross(target, CrossSettings(positions=("ct1", "ct3"), sites=("latent_embedding",), seed=4))
    correct, problem, vectors = target.data["correct"].values, target.data["problem"].values, fed(slow, prompts)
    for giver in ("right", "wrong"):
        gives = correct == (giver == "right")
        donors = [
            int(np.random.default_rng([4, row]).choice(np.flatnonzero((problem != problem[row]) & gives)))
            for row in range(20)
        ]
        for group, names in (("ct1", ("ct1",)), ("all", ("ct1", "ct3"))):
            agrees(
                result, f"{giver} {group} latent_embedding -1", each, range(0, 20, 5), range(0, 20, 5),
                lambda row, names=names, donors=donors: put(
                    prompts[row], {name: vectors[donors[row], AT[name] - 1] for name in names}
                ),
            )  # fmt: skip


def test_edits_write_what_is_fitted_on_the_other_half(lake: Path) -> None:
    each = target, slow, prompts, _ = opened(lake, "small-llama/test")
    result = edit(
        target, EditSettings(positions=("ct1",), step=0, methods=("means", "regression", "donor"), doses=(0.5, 1.0))
    )
    trial = open_trial(target, 0)
    wanted = draw_wanted(trial, Place("latent_embedding", -1, "ct1", 0))
    vectors, chain = fed(slow, prompts)[:, 1], target.data["intermediate_result"].values
    label = np.where(np.isfinite(chain).sum(1) > 1, chain[:, 0], np.nan)
    fitted = np.array([row for row in trial.fitted if np.isfinite(label[row])])
    assert not set(trial.tried) & set(trial.fitted)
    x, y = vectors[fitted], label[fitted]
    mean, scale = x.mean(0), x.std(0)
    z = (x - mean) / scale
    slope = np.linalg.solve(z.T @ z + np.eye(64), z.T @ (y - y.mean())) / scale

    def written(method: str, row: int, dose: float) -> Changes:
        index = list(trial.tried).index(row)
        new, own = float(wanted.value[index]), vectors[row]
        if method == "means":
            to = own + x[y == new].mean(0) - x[y == label[row]].mean(0)
        elif method == "regression":
            to = own + (new - y.mean() - (own - mean) @ slope) * slope / (slope @ slope)
        else:
            assert label[wanted.donor[index]] == new
            to = vectors[wanted.donor[index]]
        return put(prompts[row], {"ct1": own + dose * (to - own)})

    counted = [index for index in np.flatnonzero(wanted.counted) if label[trial.tried[index]] in y][:4]
    assert len(counted) == 4
    for method in ("means", "regression", "donor"):
        for dose in (0.5, 1.0):
            name = f"{method} {dose} latent_embedding -1 ct1 0  "
            agrees(
                result, name, each, counted, trial.tried[counted],
                lambda row, method=method, dose=dose: written(method, row, dose),
            )  # fmt: skip


def test_transplants_go_through_a_map_fitted_on_other_problems(lake: Path) -> None:
    each = target, slow, prompts, _ = opened(lake, "small-gpt2/test")
    source, other, source_prompts, _ = opened(lake, "small-llama/test")
    result = transplant(target, TransplantSettings(source="small-llama/test", positions=("ct1", "ct3")), source=source)
    theirs, ours = fed(other, source_prompts), fed(slow, prompts)
    held = np.isin(target.data["example"].values, result["example"].values)
    mapped, raw = {}, {}
    for name in ("ct1", "ct3"):
        x, y = theirs[:, AT[name] - 1], ours[:, AT[name] - 1]
        raw[name], mapped[name] = x, through_ridge(x, y, ~held)
        rest = ((y - y[~held].mean(0))[held] ** 2).sum()
        np.testing.assert_allclose(result["r2"].sel(place=name), 1 - ((y - mapped[name])[held] ** 2).sum() / rest, 1e-4)
    rows = np.flatnonzero(held)
    for kind, values in (("mapped", mapped), ("as they are", raw)):
        agrees(
            result, f"all: {kind}", each, range(0, len(rows), 8), rows[::8],
            lambda row, values=values: put(prompts[row], {name: vectors[row] for name, vectors in values.items()}),
        )  # fmt: skip


def through_ridge(x: np.ndarray, y: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Predictions of a ridge regression whose penalty does best where each problem in turn is left out."""
    z = (x - x[fitted].mean(0)) / x[fitted].std(0)
    centred, n = z[fitted], fitted.sum()
    best = (np.inf, z)
    for power in range(-4, 5):
        weights = np.linalg.solve(centred.T @ centred + 10.0**power * np.eye(z.shape[1]), centred.T)
        leverage = np.diag(centred @ weights) + 1 / n
        made = z @ weights @ (y[fitted] - y[fitted].mean(0)) + y[fitted].mean(0)
        best = min(best, ((((y - made)[fitted] / (1 - leverage)[:, None]) ** 2).sum(), made), key=lambda pair: pair[0])
    return best[1]


@pytest.mark.parametrize("model", ["small-gpt2", "small-llama"])
def test_jacobians_are_those_of_automatic_differentiation(lake: Path, model: str) -> None:
    target, slow, prompts, golds = opened(lake, f"{model}/test")
    result = mean_jacobian(target, JacobianSettings(fit=2, positions=("ct3",), layers=(0,), targets=("answer", "next")))
    rows = [target.data["example"].values.tolist().index(example) for example in result["fit_example"].values]
    fit = [golds[row] for row in rows]
    prefix = target.reasoner.answer_tokens(fit[0])[: target.reasoner.answer_start(*fit)]
    for layer, site in ((-1, "latent_embedding"), (0, "hidden_state")):

        def later(zero: Tensor, prompt: list[int], layer: int = layer, site: str = site) -> Tensor:
            place = len(prompt) - 1 + AT["ct3"]
            changes = {(site, layer, place): lambda x: x + zero}
            states = slow.states(torch.cat([slow.think(prompt, changes), slow.embed(prefix)]), changes)
            return torch.stack([states[-1], states[place + 1]])

        zero = torch.zeros(64, dtype=torch.float64)
        each = [jacobian(lambda z, row=row: later(z, prompts[row]), zero, vectorize=True) for row in rows]
        mean = torch.stack(each).mean(0).numpy()
        found = result["jacobian"].sel(layer=layer, position="ct3").values
        np.testing.assert_allclose(found, mean, atol=1e-5 * np.abs(mean).max())
