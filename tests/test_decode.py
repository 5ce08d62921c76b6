"""SIM-CoT's decoder against a reference without a cache, one trained afterwards on what is planted; what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from codi_models import VOCABULARY, write_checkpoint
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig

from analyze.context import Context
from analyze.page import write_section
from analyze.report.sections import sections
from extract.reenter.decode.command import DecodeSettings
from extract.reenter.decode.experiment import decode, shares
from extract.reenter.decode.learned import Made, digests, read_made
from extract.reenter.decode.training import Lesson, fit
from extract.reenter.target import Target, open_target
from extract.run.extract import extract
from extract.run.prepare import prepare
from extract.small_models.problems import make_hard, make_pairs, write_pairs, write_problems
from schemas import RunSpec, UsageError
from store import open_lake

QUESTIONS = {
    "Tom has 7 apples and buys 5 more. How many apples does he have?": "<<7+5=12>> #### 12",
    "Ann had 12 pens and lost 3, then gave away 2. How many are left?": "<<12-3=9>> <<9-2=7>> #### 7",
    "A baker makes 4 trays of 6 rolls. He sells 9. How many rolls are left?": "<<4*6=24>> <<24-9=15>> #### 15",
}
OWN = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
OTHER = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}


def made(folder: Path, kind: str) -> tuple[Path, Path, Path | None, Any, dict[str, Tensor]]:
    """Checkpoint, base and decoder's base; its decoder by plain transformers, and the maps around it.

    ``alike``: GPT-2 with a decoder of its own sizes, as SIM-CoT's scripts train it. ``other``: LLaMA with a decoder of
    other width and vocabulary, and ``pj_in`` and ``pj_out`` between.
    """
    if kind == "alike":
        config: Any = GPT2Config(n_embd=48, n_head=4, n_layer=2, n_positions=256, bos_token_id=0, eos_token_id=0)
    else:
        config = LlamaConfig(**OWN, intermediate_size=96, bos_token_id=0, eos_token_id=0, max_position_embeddings=256)
    checkpoint, base, _, _ = write_checkpoint(folder, config)
    torch.manual_seed(3)
    decoder_base, maps = None, {}
    if kind == "other":
        decoder_base = folder / "decoder-base"
        LlamaConfig(**OTHER, intermediate_size=48, vocab_size=120, bos_token_id=0, eos_token_id=0).save_pretrained(
            decoder_base
        )
        for file in base.glob("*token*"):
            (decoder_base / file.name).write_bytes(file.read_bytes())
        sizes = {"pj_in.weight": (32, 48), "pj_in.bias": (32,), "pj_out.U": (120, 30), "pj_out.V": (30, VOCABULARY)}
        maps = {name: torch.randn(size) for name, size in sizes.items()}
    config = AutoConfig.from_pretrained(decoder_base or base)
    decoder = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    state = torch.load(checkpoint / "pytorch_model.bin")
    state |= {f"decoder.{name}": value for name, value in decoder.state_dict().items()} | maps
    torch.save(state, checkpoint / "pytorch_model.bin")
    return checkpoint, base, decoder_base, decoder, maps


def opened(folder: Path, checkpoint: Path, base: Path, call: Any) -> Target:
    """A run of three problems with its model."""
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in QUESTIONS.items()]
    (folder / "data.jsonl").write_text("\n".join(rows))
    status, _, err = call(
        "extract", "--model", f"m={checkpoint}", "--base", base, "--data", folder / "data.jsonl", "--lake",
        folder / "a.lake", "--dtype", "float32", "--max-new-tokens", 4,
    )  # fmt: skip
    assert status == 0, err
    return open_target(open_lake(folder / "a.lake"), "m/data", checkpoint=str(checkpoint), base=str(base))


@torch.no_grad()
def written_slowly(
    target: Target, decoder: Any, maps: dict[str, Tensor], vector: np.ndarray, n: int
) -> tuple[list[int], float]:
    """Tokens and log probability of one vector's text, the whole of it anew for every token."""
    words, fed = target.reasoner.model.get_input_embeddings(), torch.from_numpy(vector)[None]
    tokens, total = list[int](), 0.0
    for _ in range(n):
        inward = nn.functional.linear(fed, maps["pj_in.weight"], maps["pj_in.bias"]) if maps else fed
        logits = decoder(inputs_embeds=inward[None]).logits[0, -1]
        logits = logits @ maps["pj_out.U"] @ maps["pj_out.V"] if maps else logits
        best = logits.log_softmax(-1).max(-1)
        total += float(best.values)
        if int(best.indices) == target.reasoner.eos_id:
            break
        tokens.append(int(best.indices))
        fed = torch.cat([fed, words(best.indices)[None]])
    return tokens, total


@pytest.mark.parametrize("kind", ["alike", "other"])
def test_a_decoder_writes_what_it_writes_without_a_cache(tmp_path: Path, call: Any, kind: str) -> None:
    checkpoint, base, decoder_base, decoder, maps = made(tmp_path, kind)
    target = opened(tmp_path, checkpoint, base, call)
    settings = DecodeSettings(decoder=decoder_base and str(decoder_base), max_new_tokens=7, positions=("ct0", "ct4"))
    result = decode(target, settings)
    for row, column in np.ndindex(3, 2):
        vector = target.data["latent_embedding"].sel(latent=settings.positions[column]).values[row]
        tokens, total = written_slowly(target, decoder, maps, vector, 7)
        assert result["text"].values[row, column] == target.reasoner.decode(tokens)
        assert result["n_token"].values[row, column] == len(tokens)
        assert bool(result["ended"].values[row, column]) == (len(tokens) < 7)
        assert float(result["log_probability"].values[row, column]) == pytest.approx(total, abs=1e-3)


def test_a_decoder_that_does_not_fit_is_refused(tmp_path: Path, call: Any) -> None:
    checkpoint, base, decoder_base, _, _ = made(tmp_path, "other")
    target = opened(tmp_path, checkpoint, base, call)
    with pytest.raises(UsageError, match="pass the model that it began as with --decoder"):
        decode(target)
    with pytest.raises(UsageError, match="ct9 is no thought of m/data"):
        decode(target, DecodeSettings(positions=("ct9",)))
    state = torch.load(checkpoint / "pytorch_model.bin")
    for name, lacking in (("pj_in.bias", r"pj_in\.\* of .* missing bias"), ("pj_out.U", r"pj_out\.\* of .* missing U")):
        torch.save({key: value for key, value in state.items() if key != name}, checkpoint / "pytorch_model.bin")
        with pytest.raises(UsageError, match=lacking):
            decode(target, DecodeSettings(decoder=str(decoder_base)))
    plain = {key: value for key, value in state.items() if not key.startswith(("decoder.", "pj_"))}
    torch.save(plain, checkpoint / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"has no weights named decoder\.\*"):
        decode(target)


PLANTED = xr.Dataset(
    {
        "intermediate_result": (("example", "step"), [[3.0, 6], [4, 8], [5, 10], [6, np.nan]]),
        "expression": (("example", "step"), [["1+2", "3*2"], ["2+2", "4*2"], ["4+1", "5*2"], ["3+3", ""]]),
    },
    coords={"example": [0, 1, 2, 3], "problem": ("example", [0, 1, 2, 3])},
)
"""Four problems, of which the last has one step."""


def test_steps_are_looked_for_in_what_is_written() -> None:
    texts = np.array(
        [
            ["<<1 + 2=3>>", "<<3*2=6>>"],
            ["<<1+3=4>>", "no step"],
            ["<<4+1=5>>", "<<5*2=10>><<2*4=8>>"],
            ["3", "<<1+2=3>>"],
        ]
    )  # fmt: skip
    known = np.ones((4, 2), dtype=bool)
    known[3, 1] = False
    found = shares(texts, known, PLANTED, seed=0)
    assert found["n_step"][1].tolist() == [[4, 3], [3, 3]]
    np.testing.assert_allclose(found["result_share"][1], [[3 / 4, 0], [0, 2 / 3]])
    np.testing.assert_allclose(found["expression_share"][1], [[2 / 4, 0], [0, 2 / 3]])
    np.testing.assert_allclose(found["any_share"][1], [3 / 4, 2 / 3])
    assert found["n"][1].tolist() == [4, 3]
    low, high = (found[f"result_share_{end}"][1][0, 0] for end in ("low", "high"))
    assert 0 < low < 3 / 4 < high < 1


def test_the_page_says_which_step_is_written_of_which_thought(tmp_path: Path, call: Any) -> None:
    checkpoint, base, _, _, _ = made(tmp_path, "alike")
    target = opened(tmp_path, checkpoint, base, call)
    status, out, err = call(
        "reenter", "decode", tmp_path / "a.lake", "m/data", "--checkpoint", checkpoint, "--base", base
    )
    assert status == 0, err
    assert "a step 95%" in out
    lake = open_lake(tmp_path / "a.lake")
    (section,) = (one for one in sections() if one.slug == "decoded-thoughts")
    page = write_section(section, Context(lake, ["m/data"]))
    assert page is not None
    ((_, line),) = page.lines
    assert line.startswith("the result of step 1 at ct0 in 0% [0%, 56%], another problem's in 0%; step 2 at ct1 in 0%")
    assert target.run == "m/data"


def planted() -> tuple[Lesson, Made]:
    """Results of one digit in problems of one step: ``ct1`` has one of ten directions by the result, ``ct0`` noise."""
    rng = np.random.default_rng(0)
    result = rng.integers(10, size=300)
    vectors = rng.standard_normal((300, 2, 12)).astype("float32")
    vectors[:, 1] = 0.1 * vectors[:, 1] + np.eye(10, 12)[result]
    tokens = np.stack([1 + result, np.full(300, 11), 1 + rng.integers(10, size=300), np.zeros(300, int)], 1)  # 7=3
    triples = np.array([(row, thought, 0) for row in range(240) for thought in range(2)])[1:]
    vectors[0, 0] = np.nan  # a thought that is missing
    lesson = Lesson(torch.from_numpy(vectors), torch.from_numpy(tokens)[:, None], triples[:400], triples[400:])
    made = Made(
        run="planted", fingerprint="", positions=("ct0", "ct1"), n_step=1, alphabet="0123456789=", hidden=12, width=32,
        steps=80, seed=0, n_problem=200, questions=(),
    )  # fmt: skip
    return lesson, made


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_decoder_trained_afterwards_reads_what_was_planted_and_nothing_else(shuffled: bool) -> None:
    lesson, made = planted()
    decoder, losses = fit(lesson, made, 4, torch.device("cpu"), shuffled=shuffled, done=lambda step: None)
    assert np.isfinite(losses).sum() == 10
    asked, none = lesson.vectors[240:].numpy(), np.zeros(60, dtype=int)
    right = []
    for thought in range(2):
        written = decoder.write(asked[:, thought], none + thought, none)
        results = np.array([int(text[-3]) for text in written.texts])  # <<3=7>>
        right.append(np.mean(results + 1 == lesson.tokens[240:, 0, 0].numpy()))
    assert right[0] < 0.3
    assert right[1] < 0.3 if shuffled else right[1] > 0.95


def test_a_trained_decoder_is_asked_only_of_problems_it_does_not_know(tmp_path: Path, call: Any) -> None:
    write_pairs(make_pairs(30, 0), tmp_path / "pairs.json")
    write_problems(make_hard(30), tmp_path / "hard.jsonl")
    for name in ("pairs.json", "hard.jsonl"):
        prepared = prepare("small-gpt2", str(tmp_path / name), tmp_path / "a.lake", RunSpec(max_new_tokens=4))
        extract(prepared, tmp_path / "a.lake")
    decode = ("reenter", "decode", tmp_path / "a.lake")
    folder = tmp_path / "decoders"
    status, out, err = call(*decode, "small-gpt2/pairs", "--train", folder, "--steps", 4)
    assert status == 0, err
    assert "shows what can be read in a thought" in out
    made, _ = read_made(folder / "small-gpt2/pairs")
    lake = open_lake(tmp_path / "a.lake")
    run, first = lake["small-gpt2/pairs"], lake.result("decode")
    known = np.isin(digests(run), made.questions)
    pairs = run["problem"].values
    assert not np.isin(pairs[known], pairs[first["example"].values]).any()
    assert first.sizes["example"] + known.sum() == 60
    assert first.attrs["n_trained"] == made.n_problem == len(np.unique(pairs[known]))
    assert first["text"].dims == ("example", "position", "step")
    # What is in the folder is not trained again, and says the same when it is named.
    trained = folder / "small-gpt2/pairs"
    before = (trained / "model.safetensors").stat().st_mtime_ns
    for run_asked, *options in (
        ("small-gpt2/pairs", "--train", folder, "--steps", 4),
        ("small-gpt2/pairs", "--decoder", folder),
        ("small-gpt2/hard", "--decoder", trained),
    ):
        assert call(*decode, run_asked, *options)[0] == 0
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    again = lake.result("decode", "small-gpt2/pairs", decoder=str(folder))
    xr.testing.assert_identical(again["text"], first["text"])
    assert call(*decode, "small-gpt2/pairs", "--decoder", folder, "--max-new-tokens", 2)[0] == 0
    assert lake.result("decode", "small-gpt2/pairs", max_new_tokens=2)["n_token"].max() <= 2
    assert lake.result("decode", "small-gpt2/hard").attrs["left_out"] == 0  # other problems, all of them
    for options, said in (
        (("--train", folder, "--steps", 5), "of other problems or settings"),
        (("--train", folder, "--decoder", folder), "leave one of them out"),
        (("--train", folder, "--width", 6), "multiple of four"),
        (("--decoder", tmp_path), "has no decoder that --train made"),
        (("--train", tmp_path / "a.lake"), "is inside the lake"),
        (("--train", tmp_path / "hard.jsonl"), "hard.jsonl is a file; name another place"),
        (("--train", folder, "--steps", 4, "--max-new-tokens", 0), "must be at least 1"),
        (("--steps", 5), "--steps does nothing without --train"),
        (("--train", folder, "--limit", 12), "to train on"),
        (
            ("--decoder", trained, "--limit", first["example"].values[2]),
            "was trained on all problems of small-gpt2/pairs",
        ),
    ):
        status, _, err = call(*decode, "small-gpt2/pairs", *options)
        assert (status, said in err) == (2, True), err
    (trained / "shuffled.safetensors").unlink()
    status, _, err = call(*decode, "small-gpt2/pairs", "--decoder", trained)
    assert (status, "its training was stopped" in err) == (2, True), err


def test_steps_in_words_are_found_by_their_last_word() -> None:
    said = [["Eva is a jompus.", "Every jompus is a lempus."], ["Tom is a rompus.", ""]]
    run = xr.Dataset(
        {
            "intermediate_result": (("example", "step"), np.full((2, 2), np.nan)),
            "step_text": (("example", "step"), np.array(said, dtype=object)),
            "intermediate_text": (("example", "step"), np.array([["jompus", "lempus"], ["rompus", ""]], dtype=object)),
        },
        coords={"example": [0, 1], "problem": ("example", [0, 1])},
    )
    texts = np.array([[["Tom is a Jompus", "Every jompus is a lempus."]], [["Eva is a jompus.", ""]]], dtype=object)
    found = shares(texts, np.ones((2, 1), dtype=bool), run, seed=0, shuffled=texts)
    assert found["n_step"][1].tolist() == [[2, 1]]
    assert found["result_share"][1].tolist() == found["shuffled_share"][1].tolist() == [[0.5, 1.0]]
    assert found["expression_share"][1].tolist() == [[0.0, 1.0]]
    assert found["control_share"][1].tolist() == [[0.5, 0.0]]  # the second problem's text has the first one's word
    assert not found["above_controls"][1].any()
