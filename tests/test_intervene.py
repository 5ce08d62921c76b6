"""Interventions against ``slow_interventions``, patches by itself that change nothing, resuming, bad requests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from codi_models import ORACLE
from slow_interventions import named_values, reference_changes, slowly

from extract import Reasoner, load_reasoner
from extract.reenter.answers import divergence
from extract.reenter.armed import Armed
from extract.reenter.intervene import arm
from extract.reenter.sweep import Condition, sweep
from extract.reenter.values import StoredValues
from schemas import Intervention, UsageError, position_coords, position_labels

QUESTIONS = [
    ("Ann had 12 pens and lost 4 of them.", "Ann had 13 pens and lost 4 of them."),
    ("Tom buys 5 apples, 7 more and then eats 3.", "Tom buys 6 apples, 7 more and then eats 3."),
    ("Why 4 of 7?", "Why 5 of 7?"),
]


def run_of(reasoner: Reasoner, dtype: str = "float32") -> xr.Dataset:
    """What a lake hands out for the questions, in memory."""
    questions = [question for pair in QUESTIONS for question in pair]
    prompts = [reasoner.encode(question) for question in questions]
    found = reasoner.think(prompts, capture="full", stored_dtype=dtype, max_new_tokens=4)  # type: ignore[arg-type]
    labels = position_labels(found.n_before, found.n_answer)
    n = len(questions)
    return xr.Dataset(
        {
            "hidden_state": (("example", "layer", "position", "hidden"), found.hidden_state),
            "final_state": (("example", "position", "hidden"), found.final_state),
            "latent_embedding": (("example", "latent", "hidden"), found.latent_embedding),
            "attention": (("example", "layer", "head", "position", "key_position"), found.attention),
            "question": ("example", np.array(questions, dtype=object)),
            "correct": ("example", np.arange(n) % 3 == 0),
            "pair": ("example", np.arange(n) // 2),
        },
        coords={
            "example": np.arange(n) + 10,
            "problem": ("example", np.arange(n) // 2),
            "variant": ("example", ["clean", "corrupted"] * (n // 2)),
            "layer": np.arange(reasoner.n_layer),
            "head": np.arange(reasoner.n_head),
            "latent": [f"ct{index}" for index in range(6)],
            "position": labels,
            "key_position": labels,
            **position_coords(labels),
        },
        attrs={"run": "oracle/questions"},
    )


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def oracle(request: pytest.FixtureRequest) -> tuple[Reasoner, xr.Dataset]:
    reasoner = load_reasoner(ORACLE / f"codi-{request.param}", ORACLE / f"base-{request.param}")
    return reasoner, run_of(reasoner)


OPERATIONS = [
    {"operation": "zero"},
    {"operation": "mean"},
    {"operation": "mean", "average": "correct"},
    {"operation": "resample", "seed": 3},
    {"operation": "scale", "strength": -1.5},
    {"operation": "replace", "donor": "twin"},
    {"operation": "replace", "donor": "forward"},
]
WHERE = ("mean", "scale", "replace", "project_out")
ELSEWHERE = [*OPERATIONS, {"operation": "noise", "strength": 0.7, "seed": 5}]
PLACES = {
    "latent_embedding": [{"positions": ("ct2",)}, {"positions": ("ct0", "ct4")}],
    "hidden_state": [
        {"positions": ("ct1",), "layers": (1,)},
        {"positions": ("q-2", "bot"), "layers": (0, 2)},
        {"positions": ("eot", "a0"), "layers": (3,)},
    ],
    "head_output": [
        {"positions": ("ct3",), "layers": (2,), "heads": (1, 3)},
        {"positions": ("bot", "eot"), "layers": (1,)},
    ],
    "mlp_output": [{"positions": ("bot", "ct4"), "layers": (0, 3)}],
    "attention_output": [{"positions": ("ct1", "eot"), "layers": (1, 2)}],
    "key": [{"positions": ("bot", "ct3"), "layers": (1, 2), "heads": (1,)}],
    "value": [{"positions": ("ct1", "eot"), "layers": (0, 3)}],
    "attention": [
        {"positions": ("ct4",), "layers": (1,), "heads": (0, 2), "keys": ("ct1", "ct4", "q-1")},
        {"positions": ("eot", "ct5"), "layers": (0, 3), "keys": ("bot", "ct2")},
    ],
}


def cases(site: str, architecture: str) -> list[Intervention]:
    operations = list(ELSEWHERE)
    if site == "attention":
        others = [{"operation": name} for name in ("force", "even", "shuffle")]
        operations = [*OPERATIONS[:2], *OPERATIONS[3:], *others]
        operations = [{**each, "strength": 2.5} if each["operation"] == "scale" else each for each in operations]
    if site in ("latent_embedding", "hidden_state", "mlp_output", "attention_output"):
        operations += [
            {"operation": "add", "strength": 2.0, "direction": "ramp"},
            {"operation": "project_out", "subspace": "straight"},
            {"operation": "project_out", "subspace": "oblique", "strength": 0.5},
            {"operation": "replace_in", "subspace": "oblique", "donor": "twin"},
            {"operation": "replace_in", "subspace": "straight", "donor": "forward"},
            {"operation": "write", "subspace": "straight", "direction": "ramp"},
            {"operation": "write", "direction": "ramp", "strength": 0.7},
        ]
    if site in ("mlp_output", "attention_output", "key", "value") or (architecture == "llama" and site != "attention"):
        # What an operation does is the same at every site of every architecture; where it acts, and whose values come
        # back, is not.
        operations = [each for each in operations if each["operation"] in WHERE]
    if site == "latent_embedding":
        operations += [{"operation": "mean", "average": "run"}]
    found = []
    elsewhere = [each for each in operations if each["operation"] in WHERE]  # nor is it at every place of a site
    places = [(place, each) for n, place in enumerate(PLACES[site]) for each in (elsewhere if n else operations)]
    for place, operation in places:
        if "a0" in place["positions"] and operation["operation"] in (
            "mean", "resample", "noise", "replace", "replace_in",
        ):  # fmt: skip
            place = {**place, "positions": ("eot",)}
        found.append(Intervention(site=site, **place, **operation))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("site", list(PLACES))
def test_every_operation_is_what_a_slow_reference_computes(oracle: tuple[Reasoner, xr.Dataset], site: str) -> None:
    reasoner, run = oracle
    interventions = cases(site, reasoner.architecture)
    values = StoredValues(run, reasoner, *named_values(reasoner))
    conditions = [Condition(name=str(index), interventions=(each,)) for index, each in enumerate(interventions)]
    examples = [11, 14]
    answers = {"gold": ["12", "7"], "against": ["13", "4"]}
    found = sweep(reasoner, run, conditions, answers=answers, examples=examples, values=values, max_new_tokens=2)
    base = {}
    for slot, example in enumerate(examples):
        prompt = reasoner.encode(str(run.question.sel(example=example).item()))
        texts = [each[slot] for each in answers.values()]
        for index, each in enumerate([None, *interventions]):
            if each is not None and index % 2 != slot:
                continue
            changes = [] if each is None else reference_changes(reasoner, run, each, example - 10, prompt)
            want = slowly(reasoner, prompt, changes, texts, n_new=2)
            if each is None:
                base = want
            got = found.isel(condition=index, example=slot)
            kl = float((base["distribution"].exp() * (base["distribution"] - want["distribution"])).sum())
            np.testing.assert_allclose(got.answer_logprob, want["answer_logprob"], atol=1e-3, err_msg=str(each))
            np.testing.assert_allclose(got.logit_difference, want["logit_difference"], atol=1e-3, err_msg=str(each))
            np.testing.assert_allclose(got.kl, kl, atol=5e-4, err_msg=str(each))
            assert got.generated_text.item() == want["generated_text"], each


def test_several_interventions_and_chosen_examples(oracle: tuple[Reasoner, xr.Dataset]) -> None:
    reasoner, run = oracle
    several = (
        Intervention(site="hidden_state", operation="scale", strength=2.0, layers=(1,), positions=("ct1", "ct3")),
        Intervention(site="hidden_state", operation="replace", donor="twin", layers=(1,), positions=("ct3",)),
        Intervention(site="attention", operation="zero", layers=(2,), positions=("eot",), keys=("ct3",)),
        Intervention(site="latent_embedding", operation="zero", positions=("ct5",)),
    )
    # ct1 is armed on the second example only.
    condition = Condition(name="many", interventions=several, where={"ct1": np.array([False, True])})
    answers = {"gold": ["12", "7"], "against": ["13", "4"]}
    found = sweep(reasoner, run, [condition], answers=answers, examples=[12, 15], max_new_tokens=4)
    for slot, example in enumerate([12, 15]):
        prompt = reasoner.encode(str(run.question.sel(example=example).item()))
        first = several[0] if slot else replace(several[0], positions=("ct3",))
        changes = [
            c for each in (first, *several[1:]) for c in reference_changes(reasoner, run, each, example - 10, prompt)
        ]
        want = slowly(reasoner, prompt, changes, [each[slot] for each in answers.values()])
        np.testing.assert_allclose(found.answer_logprob[1, :, slot], want["answer_logprob"], atol=3e-4)
        assert found.generated_text[1, slot].item() == want["generated_text"]


def armed_with(reasoner: Reasoner, run: xr.Dataset, interventions: list[Intervention]) -> Armed:
    n = run.sizes["example"]
    armed = Armed(n, torch.device("cpu"))
    for stage, each in enumerate(interventions):
        arm(armed, each, StoredValues(run, reasoner), np.arange(n), np.arange(n), stage=stage)
    return armed


def everywhere(reasoner: Reasoner, donor: str) -> list[list[Intervention]]:
    """Every site, layer, position (and head) from ``q-2`` to ``eot``, replaced by itself, each at once."""
    positions = tuple(position_labels(2, 0))
    layers = tuple(range(reasoner.n_layer))
    where: list[dict[str, Any]] = [
        {"site": "latent_embedding", "positions": positions[3:9]},
        {"site": "hidden_state", "positions": positions, "layers": layers},
    ]
    computed = ("head_output", "mlp_output", "attention_output", "key", "value")
    for site in computed if donor == "forward" else ():
        where.append({"site": site, "positions": positions, "layers": layers})
    out = [[Intervention(operation="replace", donor=donor, **each)] for each in where]  # type: ignore[arg-type]
    edges = [
        Intervention(
            site="attention",
            operation="replace",
            donor=donor,
            positions=(query,),
            layers=layers,  # type: ignore[arg-type]
            keys=positions[: index + 1],
            heads=tuple(range(head, reasoner.n_head, 2)),
        )  # fmt: skip
        for index, query in enumerate(positions)
        for head in (0, 1)
    ]
    return [*out, edges]


@pytest.mark.parametrize("dtype", ["forward", "float32", "float16"])
def test_replacing_by_itself_changes_nothing(oracle: tuple[Reasoner, xr.Dataset], dtype: str) -> None:
    reasoner, run = oracle
    stored = run_of(reasoner, "float16") if dtype == "float16" else run
    prompts = [reasoner.encode(str(question)) for question in run.question.values]
    gold = ["12", "8", "7", "4", "9", "10"]

    def think(editor: Armed) -> Any:
        return reasoner.think(
            prompts, capture="full", stored_dtype="float32", max_new_tokens=3, gold=gold, editor=editor
        )

    nothing = think(armed_with(reasoner, run, []))
    for interventions in everywhere(reasoner, "forward" if dtype == "forward" else "stored"):
        again = think(armed_with(reasoner, stored, interventions))
        assert again.generated_text == nothing.generated_text
        if dtype == "forward":
            np.testing.assert_array_equal(again.final_state, nothing.final_state)
            np.testing.assert_array_equal(again.answer_logprob, nothing.answer_logprob)
        else:
            atol = 1e-5 if dtype == "float32" else 0.02
            np.testing.assert_allclose(again.final_state[:, -10:], nothing.final_state[:, -10:], atol=atol)
            np.testing.assert_allclose(again.answer_logprob, nothing.answer_logprob, atol=atol)


def test_conditions_side_by_side_begin_each_at_its_own_first_change(oracle: tuple[Reasoner, xr.Dataset]) -> None:
    reasoner, run = oracle
    n_example = run.sizes["example"]
    zeroed = {
        position: Condition(name=position, interventions=(
            Intervention(site="hidden_state", operation="zero", positions=(position,), layers=(0,)),))
        for position in ("ct4", "q-2", "ct1", "a0", "bot")
    }  # fmt: skip

    def swept(*positions: str) -> xr.Dataset:
        some, answers = [zeroed[position] for position in positions], {"gold": ["12", "8", "7", "4", "9", "10"]}
        return sweep(reasoner, run, some, answers=answers, max_new_tokens=3, generate=False, observe=True)

    untouched = swept().attrs["positions_fed"]
    alone = {position: swept(position) for position in zeroed}
    fed = {position: one.attrs["positions_fed"] - untouched for position, one in alone.items()}
    assert fed["ct1"] - fed["ct4"] == 3 * n_example
    assert fed["q-2"] - fed["bot"] == 2 * n_example
    together = swept(*zeroed)  # what changes the question begins where the first of these does
    assert together.attrs["positions_fed"] == untouched + sum(fed.values()) + 2 * n_example
    for position, one in alone.items():
        xr.testing.assert_allclose(together.sel(condition=["untouched", position]), one, rtol=1e-5, atol=1e-5)


def test_sweep_is_resumed_and_counts_what_it_saved(oracle: tuple[Reasoner, xr.Dataset], tmp_path: Path) -> None:
    reasoner, run = oracle
    conditions = [
        Condition(name=f"{position}/{layer}", interventions=(
            Intervention(site="hidden_state", operation="zero", positions=(position,), layers=(layer,)),))
        for position in ("ct1", "ct4", "eot") for layer in range(reasoner.n_layer)
    ]  # fmt: skip
    answers = {"gold": ["12", "8", "7", "4", "9", "10"]}
    whole = sweep(reasoner, run, conditions, answers=answers, max_new_tokens=3)
    assert whole.attrs["positions_fed"] < whole.attrs["positions_one_by_one"]
    assert whole.attrs["positions_saved"] == whole.attrs["positions_one_by_one"] - whole.attrs["positions_fed"]

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done > total / 2:
            raise Killed

    arguments = {"answers": answers, "max_new_tokens": 3, "batch_rows": 8, "folder": tmp_path}
    with pytest.raises(Killed):
        sweep(reasoner, run, conditions, progress=kill, **arguments)  # type: ignore[arg-type]
    resumed = sweep(reasoner, run, conditions, **arguments)  # type: ignore[arg-type]
    assert resumed.attrs["model_calls"] < sweep(reasoner, run, conditions, answers=answers, max_new_tokens=3,
                                                batch_rows=8).attrs["model_calls"]  # fmt: skip
    np.testing.assert_allclose(resumed.answer_logprob, whole.answer_logprob, atol=1e-4)
    np.testing.assert_array_equal(resumed.generated_text, whole.generated_text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (9,)}, "layer 9 is not there; the model has layers 0 to"),
        ({"positions": ("ct6",)}, "position 'ct6' is not there"),
        ({"positions": ("nowhere",)}, "no position is called 'nowhere'"),
        ({"positions": ("q-40",)}, "q-40 is not there"),
        ({"operation": "add", "direction": "x"}, "direction 'x' was never computed"),
        ({"site": "head_output", "heads": (12,)}, "head 12 is not there"),
        ({"site": "attention", "keys": ("ct4",)}, "a query sees no later position"),
        ({"operation": "replace", "positions": ("a9",)}, "stores no hidden_state at position a9"),
        ({"operation": "force"}, "'force' cannot be done at hidden_state"),
        ({"layers": ()}, "names no layer"),
        ({"layers": (0.5,)}, "layer 0.5 of an intervention is no whole number"),
        ({"strength": 0.5}, "zero takes no strength; 0.5 would change nothing"),
        ({"donor": "twin"}, "zero takes no donor"),
        ({"operation": "noise", "strength": 0.0}, "noise with a strength of 0 would change nothing"),
        ({"layers": (1, 1)}, "names 1 twice among its layers"),
        ({"operation": "scale", "positions": ("ct1", "bot", "ct1")}, "names ct1 twice among its positions"),
        ({"site": "attention", "operation": "force", "keys": ("bot", "bot")}, "names bot twice among its keys"),
    ],
)
def test_bad_requests_are_one_line(oracle: tuple[Reasoner, xr.Dataset], change: dict[str, Any], message: str) -> None:
    reasoner, run = oracle
    asked = {"site": "hidden_state", "operation": "zero", "positions": ("ct1",), "layers": (1,), **change}
    with pytest.raises(UsageError, match=message) as caught:
        sweep(reasoner, run, [Condition(name="x", interventions=(Intervention(**asked),))], answers={})
    assert "\n" not in str(caught.value)


def test_a_run_of_another_model_is_refused(oracle: tuple[Reasoner, xr.Dataset]) -> None:
    reasoner, run = oracle
    with pytest.raises(UsageError, match="a donor of another model"):
        StoredValues(run.isel(layer=slice(1, None)), reasoner)


def test_a_place_that_was_passed_once_copies_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    armed = Armed(4, torch.device("cpu"))
    armed.add(("hidden_state", 0, 1), "set", np.array([0, 2]), value=np.ones((2, 3), dtype=np.float32))
    armed.add(("head_output", 0, 1), "affine", np.array([1, 3]), scale=0.5, heads=(1,))
    armed.add(("attention", 0, 1), "edges", np.array([1, 2]), scale=0.0, keys=(-1, 0))
    everything, some = torch.arange(4), torch.tensor([1, 2])

    def one_pass() -> list[torch.Tensor]:
        return [
            edited
            for rows in (everything, some)
            for edited in (
                armed.states("hidden_state", 0, torch.zeros(len(rows), 1, 3), 1, rows),
                armed.states("head_output", 0, torch.ones(len(rows), 1, 2, 3), 1, rows),
                armed.attention(0, torch.full((len(rows), 2, 1, 4), 0.25), 1, rows, 2),
            )
        ]

    first = one_pass()
    assert first[0][:, 0, 0].tolist() == [1, 0, 1, 0]
    assert first[1][:, 0, 1, 0].tolist() == [1, 0.5, 1, 0.5]
    assert first[3][:, 0, 0].tolist() == [0, 1]
    assert first[5][:, 0, 0].tolist() == [[0.5, 0, 0, 0.5]] * 2
    monkeypatch.setattr(torch, "from_numpy", None)
    for one, other in zip(first[3:], one_pass()[3:], strict=True):
        assert torch.equal(one, other)


def test_what_overflowed_is_no_value_and_no_number_diverges_from_nothing(oracle: tuple[Reasoner, xr.Dataset]) -> None:
    reasoner, run = oracle
    states = run["hidden_state"].copy()
    states.loc[{"layer": 1, "position": "ct1", "example": 12, "hidden": 2}] = np.inf
    values = StoredValues(run.assign(hidden_state=states), reasoner)
    others = run["hidden_state"].sel(layer=1, position="ct1").drop_sel(example=12)
    np.testing.assert_allclose(values.mean("hidden_state", 1, "ct1", "position"), others.mean("example"), rtol=1e-5)
    np.testing.assert_allclose(values.spread("hidden_state", 1, "ct1"), others.std("example"), rtol=1e-5)
    with pytest.raises(UsageError, match="example 12 has no hidden_state at ct1 .* no finite one"):
        values.stored(np.arange(6), "hidden_state", 1, "ct1")
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]).log()
    found = divergence(shares, torch.tensor([[0.25, 0.25, 0.5], [torch.nan] * 3, [0.5, 0.5, 0.0]]).log())
    torch.testing.assert_close(found, torch.tensor([np.log(2), torch.nan, torch.inf]).float(), equal_nan=True)


def test_a_change_that_leaves_no_numbers_is_refused(oracle: tuple[Reasoner, xr.Dataset]) -> None:
    reasoner, run = oracle
    change = Intervention(
        site="hidden_state", operation="scale", strength=3e38, positions=("ct1",), layers=(reasoner.n_layer - 1,)
    )
    far = [Condition(name="far", interventions=(change,))]
    with pytest.raises(UsageError, match="condition far: .* no longer numbers on example 1., .* beyond float32"):
        sweep(reasoner, run, far, answers={"gold": ["1"] * 6}, max_new_tokens=1)
