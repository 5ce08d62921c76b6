"""Which model is the control of which: by what it says itself, else by its name; and what is said beside it."""

import json
from math import nan
from types import SimpleNamespace

import pytest
import xarray as xr

from analyze.beside import (
    FAINTER,
    LESS,
    MORE,
    NOT,
    NOTHING_SAID,
    OPEN,
    SEEN,
    UNMEASURED,
    Finding,
    Pair,
    beside,
    beside_pairs,
    compared,
    in_words,
)
from analyze.drawing import looks
from analyze.verdict.measures import of_share
from extract import load_reasoner
from extract.training.command import TrainCommandSettings, trainings
from extract.training.state import state_control
from schemas import Control, UsageError
from schemas.controls import CONTROLS, control_among, control_by_name, stated_control
from schemas.picked import Pick, of_picked


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
    state_control(tmp_path, Control("mine", "pause"))
    assert stated_control(json.loads((tmp_path / "codi.json").read_text()), "codi", "x") == Control("mine", "pause")
    given = {"out": tmp_path / "mine", "base": "b", "data": ("d",), "steps": 1}
    twins = {"protocol": "coconut", "twins": tuple(CONTROLS)[1:]}
    planned = trainings(TrainCommandSettings(**given, **twins))
    assert [(one.protocol, folder.name, control) for one, folder, control in planned] == [
        ("coconut", "mine", None),
        *((kind, f"mine-{kind}", Control("mine", kind)) for kind in ("multipass-pause", "pause", "direct", "cot")),
    ]
    (alone,) = trainings(TrainCommandSettings(**given, protocol="codi-pause", control_of="other"))
    assert alone[1:] == (tmp_path / "mine", Control("other", "pause"))
    for wrong, message in [
        ({"control_of": "mine"}, "name the controls with --twins"),
        ({"control_of": "mine", "twins": ("decodable",)}, "goes on from its model's own training"),
        ({"protocol": "direct", "twins": ("pause",)}, "codi and coconut have controls; --protocol is direct"),
        ({"curriculum": 1.0}, "--curriculum is 1.0"),
    ]:
        with pytest.raises(UsageError, match=message):
            TrainCommandSettings(**given, **wrong)


def test_what_a_control_shows_is_told_by_intervals():
    own = (0.9, 0.85, 0.94)
    assert compared(own, (0.88, 0.83, 0.92), 0.1) == SEEN
    assert compared(own, (0.5, 0.43, 0.57), 0.1) == FAINTER
    assert compared(own, (0.02, 0.0, 0.05), 0.1) == NOT
    assert compared((0.2, 0.12, 0.3), (0.09, 0.03, 0.2), 0.1) == OPEN
    assert compared((0.2, 0.09, 0.3), (0.0, 0.0, 0.05), 0.1) == ""  # nothing found, nothing to compare
    assert compared(own, (0.5, nan, nan), 0.1) == compared((nan, nan, nan), own, 0.1) == ""
    # of what no value is nothing, only the difference
    assert compared((3.0, 2.8, 3.2), (3.1, 2.9, 3.3), nan) == OPEN
    assert compared((3.0, 2.8, 3.2), (5.0, 4.8, 5.2), nan) == MORE
    assert compared((5.0, 4.8, 5.2), (3.0, 2.8, 3.2), nan) == LESS


def told(says: list[str]) -> str:
    return in_words([{"what": f"step {number}", "says": each} for number, each in enumerate(says, 1)])


def test_what_controls_show_in_words():
    assert told([SEEN]) == "seen too"
    assert told([SEEN, SEEN]) == "all seen too"
    assert told([NOT, SEEN, NOT]) == "step 1 and step 3 not seen; step 2 seen too"
    assert told([UNMEASURED]) == "not measured"


class Lines:
    """Stands for a page: keeps what a section says and lists."""

    def __init__(self, controls: dict[str, Control]) -> None:
        self.context = SimpleNamespace(
            controls=controls, controls_of=lambda model: [name for name, one in controls.items() if one.of == model]
        )
        self.notes: list[str] = []
        self.said: list[str] = []
        self.rows: list[dict[str, object]] = []

    def lay(self, name: str, form: str) -> str:
        return name

    def add(self, name, result, rows) -> None:
        self.rows += rows

    def say_more(self, label: str, text: str) -> None:
        self.said.append(f"{label}; {text}")


def test_findings_stand_beside_all_controls_and_what_is_missing_is_said():
    def result(model: str, count: int, n: int) -> SimpleNamespace:
        return SimpleNamespace(run=f"{model}/d", label=model, data=of_share(count / n, n)(0.95))

    finding = [Finding(what="step 1", of=lambda one: one.data)]
    page = Lines({f"m-{kind}": Control("m", kind) for kind in ("decodable", "pause", "cot")})
    results = [result("m", 95, 100), result("m-decodable", 94, 100), result("m-pause", 1, 1), result("other", 5, 100)]
    beside(page, [(one, finding) for one in results])
    # of one problem the interval goes from 21% to 100%
    assert page.said == ["m; control m-decodable: seen too", "m; control m-pause: seen too"]
    assert page.notes == [
        "No control of other is in this lake, so whether a model whose thoughts are not used shows the same is not"
        " known here.",
        "Not measured in the controls m-cot.",
    ]
    assert [row["control"] for row in page.rows] == ["m-decodable", "m-pause"]


def test_a_place_that_was_picked_on_a_model_has_the_interval_of_one_picked_and_its_control_its_own():
    page = Lines({"m-pause": Control("m", "pause")})
    results = [
        SimpleNamespace(run=f"{model}/d", label=model, data=of_share(0.2, 60)(0.95)) for model in ("m", "m-pause")
    ]
    beside(page, [(one, [Finding(what="best", of=lambda one: one.data, pick=Pick(50, share=True))]) for one in results])
    own, other = ([page.rows[0][f"{side}{end}"] for end in ("", "_low", "_high")] for side in ("own", "other"))
    assert own == of_picked(other, Pick(50, share=True))
    assert page.rows[0]["says"] == NOTHING_SAID  # by its own interval 20% of 60 were above a tenth


def test_a_control_over_other_problems_is_not_set_beside_a_model():
    page = Lines({"m-pause": Control("m", "pause")})
    results = [SimpleNamespace(run=run, label=run, data=of_share(0.5, 60)(0.95)) for run in ("m/d", "m-pause/e")]
    beside(page, [(one, [Finding(what="ct1", of=lambda one: one.data)]) for one in results])
    assert (page.rows, page.said, page.notes) == ([], [], ["Not measured in the controls m-pause."])


def test_what_two_models_have_in_common_stands_beside_pairs_with_their_controls():
    def pair(first: str, second: str, count: int) -> Pair:
        data = xr.Dataset({"share": of_share(count / 100, 100)(0.95)[0]})
        low, high = of_share(count / 100, 100)(0.95)[1:]
        return Pair(runs=(f"{first}/d", f"{second}/d"), label=f"{first} {second}", data=data.assign(low=low, high=high))

    finding = [Finding(what="ct1", of=lambda one: [float(one.data[name]) for name in ("share", "low", "high")])]
    page = Lines({"a-twin": Control("a", "decodable"), "b-twin": Control("b", "decodable")})
    pairs = [("a", "b", 95), ("b-twin", "a", 94), ("a-twin", "b-twin", 2), ("a", "a-twin", 90), ("a", "c", 90)]
    beside_pairs(page, [(pair(*each), finding) for each in pairs])
    # as likeness has no direction, "b-twin a" stands for "a b-twin"
    assert page.said == ["a b; b-twin a: seen too", "a b; a-twin b-twin: not seen"]
    assert page.notes[0].startswith("a c: no control of these was compared in their place")
    ordered = Lines(page.context.controls)
    beside_pairs(ordered, [(pair(*each), finding) for each in pairs[:3]], ordered=True)
    assert ordered.said == ["a b; a-twin b-twin: not seen"]
