"""What precision costs is measured on the run's own questions, kept with it, and judges what is computed again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from called import run_lake
from small_runs import checkpoint, prepared_run, tree, write_questions

from extract.model.load import load_reasoner
from extract.run import precision
from extract.run.extract import extract
from extract.run.precision import STATES, attention_error, chosen, state_error
from extract.run.prepare import Prepared
from extract.run.recompute import Recomputed, compare
from store import open_lake, verify

KINDS = ("gpt2", "float32"), ("gpt2", "float16"), ("llama", "bfloat16")
"""Of the other architecture the type that rounds most."""


@pytest.fixture(scope="module", autouse=True)
def _as_many_questions_as_users_have() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "N_QUESTION", 8)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "toy.jsonl", 12)


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path
) -> tuple[Prepared, xr.Dataset, Path]:
    """A run in each compute type, all of it loaded."""
    architecture, kind = request.param
    place = tmp_path_factory.mktemp("precision") / "toy.lake"
    prepared = prepared_run(place, data, architecture=architecture, capture="full", compute_dtype=kind)
    extract(prepared, place)
    return prepared, open_lake(place)["toy/toy"].load(), place


def again(run: tuple[Prepared, xr.Dataset, Path], dataset: xr.Dataset) -> Recomputed:
    prepared, _, place = run
    precision = open_lake(place).attributes("toy/toy")["precision"]
    return compare(prepared.reasoner, dataset, prepared.spec, 2, precision=precision)


def test_error_is_that_of_typical_components() -> None:
    rng = np.random.default_rng(0)
    state = rng.standard_normal((5, 64))
    state[:, 7] = 3000
    zeros = np.zeros_like(state)
    zeros[:, 7] = 3000
    assert (state_error(state, zeros) > 0.7).all()
    assert state_error(state, state * 1.01) == pytest.approx(np.full(5, 0.01), rel=0.5)
    assert not state_error(state, state).any()
    half = state.astype("float16")  # the largest is off by no more than its own rounding
    assert state_error(state, half).max() < 2**-11
    # With all components alike, it is the plain relative error.
    flat, other = np.full(100, 2.0), np.full(100, 2.5)
    assert state_error(flat, other) == pytest.approx(0.25)
    assert np.isinf(state_error(state, np.full_like(state, np.nan))).all()
    assert not state_error(zeros[:, :3], zeros[:, :3]).any()


def test_attention_error_is_the_share_that_lies_elsewhere() -> None:
    row = np.array([0.5, 0.25, 0.25, 0.0])
    assert attention_error(row, row[::-1]) == pytest.approx(0.5)
    assert attention_error(row, 0 * row) == pytest.approx(0.5)
    assert np.isinf(attention_error(row, np.array([np.nan, 0, 0, 0])))


def test_questions_are_of_all_lengths() -> None:
    assert chosen([5, 3, 9, 7, 8], 3) == [1, 3, 2]
    assert chosen([4, 4], 8) == [0, 1]
    assert len(chosen(list(range(1000)))) == 8


def test_what_is_kept_is_the_difference_of_alone_and_batched(run: tuple[Prepared, xr.Dataset, Path]) -> None:
    """The slow way: each question by itself and in the batch, place by place."""
    prepared, _, place = run
    kept = open_lake(place).attributes("toy/toy")["precision"]
    some = chosen([len(prompt) for prompt in prepared.prompts])
    assert kept["compute_dtype"] == prepared.spec.compute_dtype
    assert (kept["questions"], kept["batch"]) == (8, prepared.spec.batch_size)
    errors, moved = [], []
    for start in (0, 4):
        part = some[start : start + 4]
        options = {"capture": "full", "stored_dtype": "float32", "max_new_tokens": 3}
        gold = [prepared.problems.gold_answer[index] for index in part]
        batch = prepared.reasoner.think([prepared.prompts[index] for index in part], gold=gold, **options)
        for row, index in enumerate(part):
            alone = prepared.reasoner.think([prepared.prompts[index]], gold=[gold[row]], **options)
            skipped = batch.n_before - alone.n_before
            n_place = len(prepared.prompts[index]) + 7
            if alone.generated_text[0] == batch.generated_text[row]:
                n_place += alone.n_answer
            for key in range(n_place):
                errors += [
                    state_error(alone.hidden_state[0, layer, key], batch.hidden_state[row, layer, skipped + key])
                    for layer in range(prepared.reasoner.n_layer)
                ]
                difference = (
                    alone.attention[0, :, :, key, :n_place]
                    - batch.attention[row, :, :, skipped + key, skipped : skipped + n_place]
                )
                moved.append(np.abs(difference.astype("float64")).sum(-1) / 2)
    assert kept["states"]["hidden_state"]["mean"] == pytest.approx(np.mean(errors), rel=6e-3)
    assert kept["states"]["hidden_state"]["worst"] == pytest.approx(np.max(errors), rel=6e-3)
    assert kept["states"]["attention"]["worst"] == pytest.approx(np.max(moved), rel=6e-3)
    limit = {"float32": 2e-5, "float16": 0.02, "bfloat16": 0.2}[prepared.spec.compute_dtype]
    assert 0 <= kept["states"]["hidden_state"]["worst"] < limit


def test_a_sound_run_agrees(run: tuple[Prepared, xr.Dataset, Path]) -> None:
    found = again(run, run[1])
    assert found.agrees, found


def wrong_values(right: xr.DataArray, wrong: str) -> np.ndarray:
    """A variable's values, all wrong in one way."""
    values: np.ndarray = right.values.copy()
    if wrong == "zeros":
        return values * 0
    if wrong == "examples":
        return np.roll(values, 1, axis=0)
    if wrong == "layers":
        values[:, [1, 2]] = values[:, [2, 1]]
        return values
    if wrong == "positions":
        return np.roll(values, 1, axis=right.dims.index("latent" if "latent" in right.dims else "position"))
    if wrong == "largest":
        return np.where(np.abs(values) < np.abs(values).max(-1, keepdims=True), 0, values)
    return np.full_like(values, np.nan)


@pytest.mark.parametrize("wrong", ["zeros", "examples", "layers", "positions", "largest", "not a number"])
def test_a_wrong_run_disagrees(run: tuple[Prepared, xr.Dataset, Path], wrong: str) -> None:
    names = [name for name in STATES if wrong != "layers" or "layer" in run[1][name].dims]
    changed = {name: run[1][name].copy(data=wrong_values(run[1][name], wrong)) for name in names}
    assert again(run, run[1].assign(changed)).beyond == names


def test_one_place_of_a_run_can_be_wrong(run: tuple[Prepared, xr.Dataset, Path]) -> None:
    right = run[1]["hidden_state"]
    values = right.values.copy()
    values[:, :, right["position"].values.tolist().index("ct2")] = 0
    assert again(run, run[1].assign(hidden_state=right.copy(data=values))).beyond == ["hidden_state"]


def test_texts_and_log_probabilities_are_compared(run: tuple[Prepared, xr.Dataset, Path]) -> None:
    dataset = run[1]
    assert again(run, dataset.assign(answer_logprob=dataset["answer_logprob"] - 2)).beyond == ["answer_logprob"]
    texts = dataset["generated_text"].copy(data=np.full(dataset.sizes["example"], "something else", dtype=object))
    assert again(run, dataset.assign(generated_text=texts)).beyond == ["generated_text"]


def test_other_weights_disagree(run: tuple[Prepared, xr.Dataset, Path]) -> None:
    """A checkpoint whose weights are off by 2%: more than the rounding of any compute type."""
    prepared, dataset, _ = run
    folder, base = checkpoint(prepared.reasoner.architecture)
    other = load_reasoner(folder, base=base, dtype=prepared.spec.compute_dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (parameter.float() * (1 + 0.02 * noise)).to(parameter.dtype)
    assert "hidden_state" in compare(other, dataset, prepared.spec, 4).beyond


def test_a_component_of_3000_hides_nothing(tmp_path: Path, data: Path) -> None:
    prepared = prepared_run(tmp_path / "toy.lake", data, capture="full")
    blocks = prepared.reasoner.blocks
    with torch.no_grad():
        blocks[0].mlp.c_proj.bias[5] += 3000  # type: ignore[index]
    extract(prepared, tmp_path / "toy.lake")
    dataset = open_lake(tmp_path / "toy.lake")["toy/toy"].load()
    run = prepared, dataset, tmp_path / "toy.lake"
    assert again(run, dataset).agrees
    values = dataset["hidden_state"].values.copy()
    values[np.abs(values) < 1000] = 0
    assert (np.abs(values) > 1000).any()
    assert again(run, dataset.assign(hidden_state=dataset["hidden_state"].copy(data=values))).beyond == ["hidden_state"]


def test_a_run_without_calibration_is_calibrated_to_be_judged(run: tuple[Prepared, xr.Dataset, Path]) -> None:
    prepared, dataset, place = run
    found = compare(prepared.reasoner, dataset, prepared.spec, 4)
    assert found.agrees
    assert found.precision == open_lake(place).attributes("toy/toy")["precision"]


def test_it_is_shown(run: tuple[Prepared, xr.Dataset, Path], capsys: pytest.CaptureFixture[str]) -> None:
    prepared, _, place = run
    folder, base = checkpoint(prepared.reasoner.architecture)
    printed = {}
    for command in (
        ["info", str(place), "toy/toy"],
        ["verify", str(place), "--recompute", "2", "--model", folder, "--base", base],
    ):
        assert run_lake(*command) == 0
        printed[command[0]] = " ".join(capsys.readouterr().out.split())
    assert f"precision: {prepared.spec.compute_dtype}; 8 questions alone and in batches of 4" in printed["info"]
    assert "examples 0, 11 computed again agree: off by hidden_state" in printed["verify"]


def test_another_machine_is_listed_once(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs between each writer and the creator is listed; the run stays the same."""
    place = tmp_path / "toy.lake"
    prepared = prepared_run(place, data, shard_examples=4)
    extract(prepared, place, part=(0, 3))
    begun = open_lake(place).attributes("toy/toy")
    extract(prepared, place, part=(0, 3))
    assert open_lake(place).attributes("toy/toy") == begun
    assert "others" not in begun["provenance"]
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    for part in (1, 2):
        extract(prepared, place, part=(part, 3))
    (other,) = open_lake(place).attributes("toy/toy")["provenance"]["others"]
    assert other["torch"] == "9.9.9"
    assert {key: value for key, value in other.items() if key != "torch"}.items() <= begun["provenance"].items()
    assert open_lake(place).attributes("toy/toy")["fingerprint"] == begun["fingerprint"]
    assert verify(place).damage == []
    extract(prepared, place)  # nothing left to write: who only looks is no writer
    before = tree(place)
    monkeypatch.setattr(torch, "__version__", "8.8.8")
    extract(prepared, place)
    assert tree(place) == before


def test_float32_is_float32_whatever_was_set_before() -> None:
    folder, base = checkpoint("gpt2")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        assert torch.backends.cuda.matmul.allow_tf32
        load_reasoner(folder, base=base)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_batch_of_one_is_what_it_is(tmp_path: Path, data: Path) -> None:
    place = tmp_path / "toy.lake"
    prepared = prepared_run(place, data, batch_size=1, compute_dtype="bfloat16")
    extract(replace(prepared), place)
    kept = open_lake(place).attributes("toy/toy")["precision"]
    assert (kept["batch"], kept["states"]["hidden_state"]["worst"], kept["other_texts"]) == (1, 0.0, 0)
