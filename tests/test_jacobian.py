"""Jacobians through the loop of thoughts, against finite differences of ordinary passes without gradients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reentry_lake
import torch
from reentry_lake import lose_gradients, story_lake

from extract.reenter import JacobianSettings, Target, jacobian_plan, mean_jacobian
from extract.reenter.intervene import Armed
from schemas import UsageError

N = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of both shipped models over a few problems, float32."""
    return story_lake(tmp_path_factory.mktemp("jacobian"), ("small-gpt2", "small-llama"), {2: 4, 4: 6})


def states(target: Target, rows: np.ndarray, edit: tuple[Any, ...] | None = None, **change: Any) -> Any:
    """States of the model with one place changed by a plain hook, without gradients."""
    reasoner = target.reasoner
    armed = None
    if edit is not None:
        armed = Armed(len(rows), reasoner.device)
        armed.add(edit, change.pop("kind"), np.arange(len(rows)), **change)
    prompts = [reasoner.encode(str(target.data["question"].values[row])) for row in rows]
    gold = [str(target.data["gold_answer"].values[row]) for row in rows]
    return reasoner.think(prompts, stored_dtype="float32", max_new_tokens=8, gold=gold, editor=armed)


@pytest.mark.parametrize("model", ["small-gpt2", "small-llama"])
def test_jacobians_are_the_slopes_of_the_states(folder: Path, model: str) -> None:
    target = reentry_lake.target(folder, model)
    result = mean_jacobian(target, JacobianSettings(fit=6, positions=("bot", "ct0", "ct1")))
    rows = result["fit_example"].values
    answer = len(target.reasoner.places.middle) - 1 + 4  # "The answer is :" in both models
    fed = float(np.abs(states(target, rows).latent_embedding).mean())
    for site, layer, position, name, offset, step in [
        ("latent_embedding", -1, "ct0", "eot", 7, 0.1 * fed),
        ("hidden_state", 0, "ct1", "answer", answer, 0.02),
        ("hidden_state", 1, "bot", "next", 1, 0.02),
    ]:
        place = site, layer, target.reasoner.places.offset(position)
        matrix = result["jacobian"].sel(target=name, layer=layer, position=position).values
        strongest = np.linalg.svd(matrix)[2][0]

        def seen(move: float, place: Any = place, way: Any = strongest, offset: int = offset) -> Any:
            value = np.tile(np.float32(move * way), (len(rows), 1))
            final = states(target, rows, place, kind="affine", scale=1.0, value=value).final_state
            return final[:, offset].astype(np.float64).mean(0)

        # Of two steps, so that the third-order term falls out.
        near, far = ((seen(each) - seen(-each)) / (2 * each) for each in (step, 2 * step))
        slope = (4 * near - far) / 3
        assert np.linalg.norm(matrix @ strongest - slope) < 1e-3 * np.linalg.norm(slope), (site, position, name)


def test_origins_are_slopes_halfway_between_two_states(folder: Path) -> None:
    target = reentry_lake.target(folder, "small-gpt2")
    result = mean_jacobian(target, JacobianSettings(fit=6, targets=("eot",), positions=("ct2",)))
    reasoner, position = target.reasoner, 3  # ct2
    matrix = result["origin"].sel(layer=1, position="ct2").values
    strongest = np.linalg.svd(matrix)[2][0].astype(np.float32)
    ends = []
    for sign in (-1, 1):
        seen = []
        for rows in np.array_split(result["fit_example"].values, 2):
            before = states(target, rows).final_state[:, position - 1]
            state = torch.as_tensor((before + np.roll(before, 1, axis=0)) / 2)
            state += sign * 1e-2 * torch.from_numpy(strongest)
            with torch.no_grad():
                value = reasoner.projection(state).numpy()
            place = "latent_embedding", -1, position
            seen.append(states(target, rows, place, kind="set", value=value).hidden_state[:, 1, position])
        ends.append(np.concatenate(seen).astype(np.float64).mean(0))
    slope = (ends[1] - ends[0]) / 2e-2
    assert np.linalg.norm(matrix @ strongest - slope) < 1e-3 * np.linalg.norm(slope)


def test_what_the_mean_leaves_out_is_the_spread_of_single_jacobians(folder: Path) -> None:
    target = reentry_lake.target(folder, "small-gpt2")
    result = mean_jacobian(target, JacobianSettings(fit=6, targets=("eot",), positions=("ct1",), layers=()))
    projection, single, every = target.reasoner.projection, [], []
    for rows in np.array_split(result["fit_example"].values, 2):
        before = torch.from_numpy(states(target, rows).final_state[:, 1])
        every.append(before)
        for state in (before + before.roll(1, 0)) / 2:
            single.append(torch.autograd.functional.jacobian(lambda each: projection(each[None])[0], state).numpy())
    covariance = np.cov(torch.cat(every).numpy().T)
    apart = np.stack(single) - np.mean(single, 0)
    wanted = np.einsum("nij,jk,nlk->il", apart, covariance, apart) / len(apart)
    left = result["left_out"].sel(layer=-1, position="ct1").values
    np.testing.assert_allclose(left, wanted, atol=2e-4 * np.abs(wanted).max())


def test_a_cache_without_gradients_would_be_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = reentry_lake.target(folder, "small-gpt2")
    settings = JacobianSettings(fit=4, targets=("ct4",), positions=("ct1",))
    whole = mean_jacobian(target, settings)
    lose_gradients(monkeypatch)
    cut = mean_jacobian(target, settings)
    first, cut_first = (each["jacobian"].sel(layer=0, position="ct1") for each in (whole, cut))
    assert float(np.abs(first - cut_first).max()) > 0.1 * float(np.abs(first).max())


def test_batches_and_a_stop_change_nothing(folder: Path, tmp_path: Path) -> None:
    target = reentry_lake.target(folder, "small-llama")
    settings = JacobianSettings(positions=("ct5", "eot"), layers=(1,), fit=4, targets=("next", "eot"))
    whole = mean_jacobian(target, settings)
    assert np.isnan(whole["jacobian"].sel(target="next", position="eot")).all()
    np.testing.assert_allclose(whole["jacobian"].sel(target="eot", position="eot", layer=-1), np.nan)
    # Halves are of other examples with another batch size; their mean is the same.
    target.batch_rows = 1
    one_by_one = mean_jacobian(target, settings)
    np.testing.assert_allclose(whole["jacobian"], one_by_one["jacobian"], atol=2e-5)
    target.folder, plan = tmp_path / "kept", jacobian_plan(target, settings)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        assert total == plan.n_batch * plan.n_backward
        if done > plan.n_backward:
            raise KeyboardInterrupt

    target.progress = stop
    with pytest.raises(KeyboardInterrupt):
        mean_jacobian(target, settings)
    assert 0 < seen[0] < plan.n_backward  # told before a batch is done
    seen.clear()
    target.progress = lambda done, total: seen.append(done)
    resumed = mean_jacobian(target, settings)
    target.folder = None
    assert (seen[0], seen[-1]) == (plan.n_backward, plan.n_batch * plan.n_backward)
    assert seen == sorted(seen)
    np.testing.assert_array_equal(resumed["jacobian"], one_by_one["jacobian"])
    assert plan.n_byte == 4 * whole["origin"].nbytes
    assert plan.seconds > 0


def test_what_is_not_there_is_said(folder: Path) -> None:
    target = reentry_lake.target(folder, "small-gpt2")
    for options, message in [
        ({"targets": ("eott",)}, "target 'eott' is not one of .*eot"),
        ({"positions": ("a0",)}, "position 'a0' is not one of bot"),
        ({"layers": (7,)}, "layer 7 is not there"),
        ({"layers": (-1,)}, "layer -1 is not there"),
        ({"positions": ("eot",), "targets": ("next",)}, "none of the states next comes after any of eot"),
        ({"fit": 1}, "--fit is 1; it must be at least 2"),
    ]:
        with pytest.raises(UsageError, match=message):
            mean_jacobian(target, JacobianSettings(**options))
