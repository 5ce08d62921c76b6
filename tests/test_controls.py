"""Which model is the control of which: by what it says itself, else by its name; and what is said beside it."""

import json

import pytest

from analyze.drawing import looks
from extract import load_reasoner
from extract.training.command import TrainCommandSettings, state_control
from schemas import Control, UsageError
from schemas.controls import CONTROLS, control_among, control_by_name, stated_control


def test_a_control_is_known_by_what_it_says_and_else_by_its_name():
    models = {
        "g": {"checkpoint": "small-gpt2"},
        "twin": {"control_of": "small-gpt2", "control": "decodable"},  # named by the checkpoint
        "p": {"control_of": "g", "protocol": "codi-pause"},  # the kind follows from the protocol
        "g-multipass-pause": {},
        "g-pause": {"control_of": "other"},  # what it says goes before its name
        "alone-cot": {},
    }
    assert control_among(models) == {
        "twin": Control("g", "decodable"), "p": Control("g", "pause"),
        "g-multipass-pause": Control("g", "multipass-pause"), "g-pause": Control("other", "decodable"),
        "alone-cot": Control("alone", "cot"),
    }  # fmt: skip
    for wrong in ({"control_of": 3}, {"control_of": ""}, {"control_of": "g", "control": "decodeable"}):
        with pytest.raises(UsageError, match="control"):
            stated_control(wrong, "codi", "codi.json")


@pytest.mark.parametrize("name", ["small-gpt2-pause", "small-gpt2-decodable", "small-graph-direct", "small-gpt2"])
def test_shipped_controls_say_whose_they_are(name):
    assert load_reasoner(name).control == control_by_name(name)


def test_every_kind_of_control_is_drawn_in_its_own_way():
    models = ["m", *(f"m-{kind}" for kind in CONTROLS), "other"]
    drawn = list(looks([f"{model}/d" for model in models]).values())
    assert len({one.colour for one in drawn[:-1]}) == 1 != len({drawn[0].colour, drawn[-1].colour})
    ways = [(str(one.line()["linestyle"]), one.bar()["hatch"]) for one in drawn[:-1]]
    assert len({line for line, _ in ways}) == len({hatch for _, hatch in ways}) == len(ways)


def test_a_training_says_of_whom_its_model_is_the_control(tmp_path):
    (tmp_path / "codi.json").write_text('{"protocol": "codi", "n_latent": 6}')
    state_control(tmp_path, "mine", "pause")
    assert stated_control(json.loads((tmp_path / "codi.json").read_text()), "codi", "x") == Control("mine", "pause")
    with pytest.raises(UsageError, match="--control-of"):
        TrainCommandSettings(out=tmp_path, base="b", data=("d",), steps=1, control_of="mine")
