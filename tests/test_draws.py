"""Answers drawn under every condition: against a slow reference, and what they share."""

import numpy as np
import pytest
import reentry_lake
import torch
from reentry_lake import states_of, story_lake

from extract.reenter.ablation.command import CorruptSettings
from extract.reenter.ablation.experiments import corrupt
from extract.reenter.draws import Draws
from extract.reenter.patching.command import PatchSettings, tables
from extract.reenter.patching.experiment import patch
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A shipped model over a few pairs."""
    lake = story_lake(tmp_path_factory.mktemp("draws"), ["small-gpt2"], pairs=5, max_new_tokens=8)
    return reentry_lake.target(lake, "small-gpt2", "pairs")


@torch.no_grad()
def slow_draw(target: Target, row: int, given: dict[int, np.ndarray], uniform: np.ndarray, temperature: float) -> str:
    """An answer drawn token by token, each from the whole sequence."""
    reasoner = target.reasoner
    embed = reasoner.model.get_input_embeddings()
    vectors = embed(torch.tensor(reasoner.encode(str(target.data["question"].values[row]))))
    for thought in range(6):
        own = reasoner.projection(states_of(reasoner, vectors)[-1])
        vectors = torch.cat([vectors, (torch.from_numpy(given[thought]) if thought in given else own)[None]])
    vectors = torch.cat([vectors, embed(torch.tensor(reasoner.closing_ids))])
    tokens: list[int] = []
    for chance in uniform:
        logits = reasoner.writable(reasoner.logits(states_of(reasoner, vectors)[-1])).double()
        share = torch.softmax(logits / temperature, -1).cumsum(-1)
        tokens.append(int((share <= chance * share[-1]).sum()))
        if tokens[-1] == reasoner.eos_id:
            break
        vectors = torch.cat([vectors, embed(torch.tensor(tokens[-1:]))])
    return reasoner.decode(tokens)


def test_draws_are_those_of_a_slow_reference_and_of_any_batch(target: Target) -> None:
    change = Intervention(site="latent_embedding", operation="mean", positions=("ct3",))
    kept = Intervention(site="latent_embedding", operation="replace", donor="forward", positions=("ct3",))
    conditions = [Condition(name=name, interventions=(each,)) for name, each in (("mean", change), ("kept", kept))]
    draws = Draws(n_sample=3, temperature=3.0, seed=7)
    found = target.sweep(conditions, draws=draws)
    answers = found["sample_answer"].transpose("condition", "sample", "example")
    target.batch_rows = 5
    few = target.sweep(conditions, draws=draws)["sample_answer"]
    target.batch_rows = None
    np.testing.assert_array_equal(few.values, answers.values)
    np.testing.assert_array_equal(answers.sel(condition="kept"), answers.sel(condition="untouched"))
    assert (answers.sel(condition="mean") != answers.sel(condition="untouched")).any()
    mean = target.values.mean("latent_embedding", -1, "ct3", "position")
    for row in (0, 4):
        label = int(target.data["example"].values[row])
        uniform = np.random.default_rng([7, label, 61]).random((3, 8))
        for name, given in (("untouched", {}), ("mean", {3: mean})):
            for sample in range(3):
                text = slow_draw(target, row, given, uniform[sample], 3.0)
                expected = target.scoring.column([target.scoring.answer(text)])
                np.testing.assert_array_equal(answers.sel(condition=name).values[sample, row], expected[0])


def test_experiments_say_how_often_draws_are_right(target: Target) -> None:
    result = corrupt(target, CorruptSettings(corruptions=("mean",), positions=("ct1",), sample=4, temperature=0.5))
    assert result["sample_correct"].dims == ("condition", "example")
    share = result["sample_correct_mean"].sel(stratum="all").values
    np.testing.assert_allclose(share, result["sample_correct"].mean("example"))
    patched = patch(target, PatchSettings(sites=("latent_embedding",), subsets="none", positions=("ct1",), sample=4))
    assert ((patched["sample_given_mean"] >= 0) & (patched["sample_given_mean"] <= 1)).all()
    assert "drawn: clean 95%" in tables(patched, {})[0].columns
    nothing = corrupt(target, CorruptSettings(corruptions=("mean",), positions=("ct1",)))
    assert "sample_answer" not in nothing
