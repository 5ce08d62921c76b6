"""Steps that a model writes out: where they are, what is taken there, and answers judged after them."""

import numpy as np
import pytest
import torch
import xarray as xr
from slow_protocols import plain_model

from analyze.labels import up_to_eot
from analyze.written import at_places, results_in
from extract import load_reasoner
from schemas import UsageError

STRINGS = ["<eos>", "<<", "=", ">>", "+", *map(str, range(20)), " 1", "0", "The answer is:"]


def made_up(texts: list[list[str]]) -> tuple[xr.Dataset, xr.Dataset]:
    """A run whose states tell example and place, and its model."""
    longest = max(map(len, texts))
    token = np.full((len(texts), 1 + longest), -1)
    token[:, 0] = 4
    for row, text in enumerate(texts):
        token[row, 1 : 1 + len(text)] = [STRINGS.index(word) for word in text]
    place = np.arange(1.0 + longest) + 100 * np.arange(len(texts))[:, None]
    labels = ["q-1", *(f"a{k}" for k in range(longest))]
    run = xr.Dataset(
        {
            "token": (("example", "position"), token),
            "final_state": (("example", "position", "hidden"), np.repeat(place[..., None], 2, 2)),
            "attention": (("example", "layer", "position", "key_position"), np.ones((len(texts), 1, 1 + longest, 3))),
            "correct": ("example", np.ones(len(texts), dtype=bool)),
        },
        coords={"position": np.array(labels, dtype=object), "problem": ("example", np.arange(len(texts)))},
        attrs={"run": "m/d"},
    )
    return run.chunk({"position": 2}), xr.Dataset({"token_string": ("vocabulary", np.array(STRINGS, dtype=object))})


def test_a_step_has_one_name_wherever_it_is_written():
    texts = [
        ["<<", "1", "+", "2", "=", "3", ">>", "<<", "3", "+", "9", "=", "12", ">>", "The answer is:", "12", "<eos>"],
        ["<<", "7", "=", " 1", "0", ">>", "The answer is:", " 1", "0", "<eos>"],
    ]
    assert [results_in(text) for text in texts] == [[(5, 5), (12, 12)], [(3, 4)]]
    run, model = made_up(texts)
    taken = at_places(run, model, ["q-1", "step1", "fed1", "step2", "a0"]).compute()
    states = taken["final_state"][..., 0].values
    np.testing.assert_array_equal(states, [[0, 5, 6, 12, 1], [100, 103, 105, np.nan, 101]])
    assert taken["token"].values[1].tolist()[3] == -1
    assert taken["attention"].sel(position="step2").sum("key_position").values.tolist() == [[3], [0]]
    assert taken["segment"].values.tolist() == ["question", *["answer"] * 4]
    assert taken["final_state"].dims == run["final_state"].dims
    with pytest.raises(UsageError, match=r"m/d has no position step3; it has q-1 .. a16 and steps .* up to step2"):
        at_places(run, model, ["step3"])


def test_an_answer_is_judged_after_the_steps_that_the_model_wrote(tmp_path):
    model = plain_model(tmp_path / "m")
    reasoner = load_reasoner(tmp_path / "m", protocol="cot")
    prompts = [reasoner.encode(text) for text in ("Ann had 12 pens.", "Why?", "Tom has 7 apples and buys 5 more.")]
    prefix = reasoner.text_tokens("###")
    written = [[5, 6, *prefix, 9, 0, -1], [7, 8, 9, 10, 11, 12, 13], [*prefix, *prefix, 4, 0, -1, -1, -1][:7]]
    asked = [reasoner.tokens_and_prefix(gold) for gold in ("35", "7", "124")]
    with torch.inference_mode(), reasoner.session():
        found = reasoner._after_own_steps(prompts, written, asked)[:, 0]
    assert torch.isnan(found[1])
    for row in (0, 2):
        end = 2 + len(prefix) if row == 0 else 2 * len(prefix)
        answer = asked[row][0][asked[row][1] :]
        tokens = torch.tensor([[*prompts[row], *written[row][:end], *answer]])
        with torch.no_grad():
            log_p = model(tokens).logits.log_softmax(-1)[0, -len(answer) - 1 : -1]
        assert float(found[row]) == pytest.approx(float(log_p[range(len(answer)), answer].sum()), abs=1e-4)


def test_a_run_without_thoughts_is_looked_at_where_its_answer_begins():
    run, _ = made_up([["<<", "7", "=", " 1", "0", ">>"]])
    assert up_to_eot(run)["position"].values.tolist() == ["q-1"]
