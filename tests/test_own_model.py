"""A model of one's own code: the guide's loop gives the lake that loading it gives, and mistakes are refused."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from called import run_lake
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.utils import logging

from analyze.typed import typed
from extract import OwnModel, load_reasoner
from extract.model.checkpoint import SHIPPED
from extract.small_models.problems import make_splits, write_problems
from schemas import LakeError, UsageError
from store import open_lake

GUIDE = Path(__file__).parents[1] / "docs" / "own_model.md"
POSITIONS = ("(columns[fed:] - pad[:, None]).clamp(min=0)", "columns[fed:].expand(n_row, -1)")
MASK = ("(columns >= pad[:, None])", "(columns >= 0).expand(n_row, -1)")
LAYERS = ("[*out.hidden_states[1:-1], before_norm]", "[*out.hidden_states[:-2], before_norm]")
COLUMN = (
    "np.concatenate(states, axis=2)",
    "(lambda s: np.concatenate([np.roll(s[:, :-1], 1, axis=2), s[:, -1:]], axis=1))(np.concatenate(states, axis=2))",
)
OPTIONS = ["--data", "problems.jsonl", "--lake", "own.lake", "--max-new-tokens", "8"]


MODULES = {
    "own_model": ("", ""), "own_counted": POSITIONS, "own_unmasked": MASK, "own_layers": LAYERS, "own_column": COLUMN
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The guide's module, copies with a mistake each, their model, and problems."""
    place = tmp_path_factory.mktemp("own")
    code = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)[0]
    for name, (right, wrong) in MODULES.items():
        assert right in code
        (place / f"{name}.py").write_text(code.replace(right, wrong) if right else code)
    (place / "own_others.py").write_text(
        """from own_model import Mine

def number():
    return 3

def fails():
    raise OSError('no weights')

class Raises(Mine):
    def run(self, *given):
        return 1 / 0

class GivesNothing(Mine):
    def run(self, *given):
        pass

class Ends(Mine):
    def run(self, *given):
        self.eos_id = self.pad_id
        captured = super().run(*given)
        self.eos_id = 5
        return captured

class Bare(Mine):
    def __init__(self):
        pass
"""
    )
    reasoner = load_reasoner("small-gpt2")
    logging.disable_progress_bar()
    reasoner.model.save_pretrained(place / "mine")
    reasoner.tokenizer.save_pretrained(place / "mine")
    parts = reasoner.projection._modules
    torch.save(nn.Sequential(parts["1"], nn.GELU(), parts["3"], parts["ln"]), place / "mine" / "projection.pt")
    write_problems(make_splits(sizes={"test": {1: 6, 2: 6, 3: 6}})["test"], place / "problems.jsonl")
    return place


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    """Where commands run, and where modules are found."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))


@pytest.fixture(scope="module")
def spoilt(place):
    """The guide's model, what it captured put through a function; and some prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        model = import_module("own_model").Mine()
    prompts = [model.encode(text) for text in ("Ann has 3 apples . Ann buys 4 more .", "Bo has 7 .")]
    right = model.run(prompts, 8, None)

    def think(change=lambda captured: {}, **options):
        model.run = lambda *_: replace(right, **change(right))
        return model.think(prompts, max_new_tokens=8, **options)

    return think


def test_the_guide_s_loop_gives_the_lake_that_loading_the_model_gives(place, capsys):
    for model in ("mine=own_model:Mine", "small-gpt2"):
        assert not run_lake("extract", "--model", model, *OPTIONS, "--capture", "full", "--dtype", "float32")
    lake = open_lake("own.lake")
    mine, loaded = lake["mine/problems"], lake["small-gpt2/problems"]
    for name in ("hidden_state", "final_state", "latent_embedding", "attention"):
        np.testing.assert_allclose(mine[name].values, loaded[name].values, atol=1e-4, err_msg=name)
    for name in ("token", "generated_text", "correct", "question"):
        assert (mine[name].values == loaded[name].values).all(), name
    capsys.readouterr()
    assert not run_lake("verify", "own.lake", "mine/problems", "--recompute", "3")
    assert "computed again agree" in capsys.readouterr().out
    told = []
    for run in ("mine/problems", "small-gpt2/problems"):
        assert not run_lake("analyze", "lens", "own.lake", run)
        told.append([line.replace(run, "") for line in capsys.readouterr().out.splitlines() if "results/" not in line])
    assert told[0] == told[1]
    assert run_lake("reenter", "ablate", "own.lake", "mine/problems") == 2
    assert "put back into the model of mine/problems: own_model:Mine is code of your own" in capsys.readouterr().err
    folder = str(SHIPPED / "small-gpt2")
    assert not run_lake("extract", "--model", f"moved={folder}", *OPTIONS, "--limit", "2")
    runs = ["mine/problems", "small-gpt2/problems", "moved/problems"]
    assert "MODEL/PAIRS" in typed(lake, "lake reenter patch PATH RUNS", "own.lake", ["MODEL/PAIRS"])
    printed = [typed(lake, "lake reenter graph PATH RUNS", "own.lake", [run]) for run in runs]
    assert printed[:2] == ["", "lake reenter graph own.lake small-gpt2/problems"]
    assert printed[2] == f"lake reenter graph own.lake moved/problems --checkpoint moved={folder}"
    assert typed(lake, "lake reenter graph PATH RUNS", "own.lake", runs) == printed[2].replace(
        "moved/problems", "small-gpt2/problems moved/problems"
    )
    assert not run_lake(*shlex.split(printed[2])[1:], "--limit", "2"), capsys.readouterr().err


def test_a_latent_capture_is_the_end_of_a_full_one(spoilt):
    full, latent = spoilt(capture="full"), spoilt(capture="latent")
    np.testing.assert_array_equal(latent.hidden_state, full.hidden_state[:, :, full.n_before :])
    np.testing.assert_array_equal(latent.attention, full.attention[:, :, :, full.n_before :])
    assert latent.hidden_state.dtype == np.float16
    assert np.isnan(full.hidden_state[1, :, 0]).all()
    assert not full.attention[1, :, :, 0].any()


def at(values, place, value):
    """A copy with another value somewhere."""
    values = values.copy()
    values[place] = value
    return values


def after_norm(states):
    """The last layer's states after the guide's final norm."""
    return np.stack([states[:, 0], import_module("own_model").Mine().read_out.normalised(states[:, 1])], axis=1)


MISTAKES = {
    "states of the column before": (
        lambda right: {"hidden_state": np.roll(right.hidden_state, 1, axis=2)}, "columns are shifted"
    ),
    "states of a block before": (
        lambda right: {"hidden_state": np.roll(right.hidden_state, 1, axis=1)}, "not those before the final norm"
    ),
    "keys and queries exchanged": (lambda right: {"attention": right.attention.swapaxes(3, 4)}, "sum to 1 only within"),
    "a later key": (
        lambda right: {"attention": right.attention[..., ::-1, ::-1]}, "is padding or comes after the query|sum to 1"
    ),
    "the last token not fed": (
        lambda right: {"hidden_state": right.hidden_state[:, :, :-1]}, r"hidden_state is \(2, 2, \d+, 64\)"
    ),
    "not finite": (lambda right: {"latent_embedding": at(right.latent_embedding, (0, 0, 0), np.nan)}, "not finite"),
    "beyond float16": (lambda right: {"hidden_state": at(right.hidden_state, (0, 0, -1, 0), 1e6)}, "--dtype float32"),
    "a text too many": (lambda right: {"texts": [*right.texts, "more"]}, "3 texts came back for 2 questions"),
    "an empty answer": (lambda right: {"answers": [right.answers[0], []]}, "answer 1 of a batch has 0 tokens"),
    "no token": (lambda right: {"answers": [right.answers[0], [10**6]]}, "token 1000000 is none of 90"),
    "states after the final norm": (
        lambda right: {"hidden_state": after_norm(right.hidden_state)}, "after the final norm"
    ),
    "a layer twice": (lambda right: {"attention": right.attention[:, [0, 0]]}, "layers 0 and 1 is the same"),
    "a mean over heads": (
        lambda right: {"attention": right.attention.mean(2, keepdims=True).repeat(4, 2)}, "the same in all heads"
    ),
    "whole numbers": (lambda right: {"hidden_state": right.hidden_state.astype(int)}, "floating-point numbers"),
    "tokens as text": (lambda right: {"answers": [["3"], ["7"]]}, "must be whole numbers"),
    "another's text": (lambda right: {"texts": right.texts[::-1]}, "its tokens say 'Theanswer"),
    "p instead of log p": (lambda right: {"answer_logprob": np.full(2, 0.5)}, "no log probability"),
    "one log p for two": (lambda right: {"answer_logprob": np.zeros(1)}, r"answer_logprob is \(1,\)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_right_is_refused(spoilt, mistake):
    change, said = MISTAKES[mistake]
    with pytest.raises(LakeError, match=said):
        spoilt(change)


def test_tensors_are_taken(spoilt):
    tensors = spoilt(lambda right: {"hidden_state": torch.from_numpy(right.hidden_state).double().requires_grad_()})
    np.testing.assert_array_equal(tensors.hidden_state, spoilt().hidden_state)


def test_parts_of_blocks_are_not_captured(spoilt):
    with pytest.raises(UsageError, match=r"leave \+parts out"):
        spoilt(parts=("mlp_output",))


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("own_counted:Mine", [], "alone and in a batch differ"),
        ("own_unmasked:Mine", [], "on a key that is padding"),
        ("own_layers:Mine", [], "layer 0 are as they were after it, as embeddings are"),
        ("own_column:Mine", [], "layer 0 are as they were at it"),
        ("own_others:number", [], r"gives int; it must give an extract.OwnModel"),
        ("own_others:fails", [], r"makes no model, line 7 of .*own_others.py: OSError: no weights"),
        ("own_others:Bare", [], r"must call super\(\).__init__"),
        ("own_others:Raises", [], r"Raises.run failed, line 11 of .*own_others.py: ZeroDivisionError"),
        ("own_others:GivesNothing", [], "GivesNothing.run gives NoneType; it must give extract.Captured"),
        ("own_absent:Mine", [], "No module named 'own_absent'"),
        ("own_model:Mine", ["--base", "gpt2", "--device", "cuda"], "decides itself what --base, --device would say"),
        ("own_model:Mine", ["--compute-dtype", "bfloat16"], "own_model:Mine computes in float32"),
    ],
)
def test_a_mistake_is_a_line_and_no_run(capsys, model, more, said):
    assert run_lake("extract", "--model", f"wrong={model}", *OPTIONS, *more) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert "Traceback" not in error
    assert not Path("own.lake", "wrong", "problems", "zarr.json").exists()


def test_answers_that_end_with_another_token_than_said_are_told(capsys):
    assert not run_lake("extract", "--model", "ends=own_others:Ends", *OPTIONS)
    said = capsys.readouterr().err
    assert re.search(r"ends/problems: 18 answers end without eos_id, token 5 \('.*'\), or go on after it;", said)


def test_answers_without_the_prefix_before_the_gold_answer_are_told(tmp_path, capsys):
    folder = shutil.copytree(SHIPPED / "small-gpt2", tmp_path / "codi")
    for prefix, told in (("Result=", True), ("The answer is:", False)):
        (folder / "codi.json").write_text(json.dumps({"n_latent": 6, "answer_prefix": prefix}))
        assert not run_lake("extract", "--model", f"prefix{told:d}={folder}", *OPTIONS)
        assert ("18 of 18 answers that ended do not have 'Result='" in capsys.readouterr().err) == told


def test_only_its_own_kind_of_name_means_code(tmp_path):
    with pytest.raises(UsageError, match="is code of your own"):
        load_reasoner("own_model:Mine")
    assert issubclass(import_module("own_model").Mine, OwnModel)


class OuroConfig(LlamaConfig):
    model_type = "ouro"
    total_ut_steps = 3


class OuroBlock(LlamaDecoderLayer):
    """As in Ouro's code: what attention and MLP add is normed, too."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.input_layernorm_2 = LlamaRMSNorm(config.hidden_size)
        self.post_attention_layernorm_2 = LlamaRMSNorm(config.hidden_size)

    def forward(self, state, **options):
        state = state + self.input_layernorm_2(self.self_attn(self.input_layernorm(state), **options)[0])
        return state + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(state)))


class Ouro(LlamaForCausalLM):
    """Loops over its blocks as Ouro's code does, normed after each; without the gate, which by default does nothing."""

    config_class = OuroConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.layers = nn.ModuleList(OuroBlock(config, index) for index in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None, loops=None, **options):
        state = self.model.embed_tokens(input_ids)
        n = input_ids.shape[1]
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        position_ids = torch.arange(n)[None] if position_ids is None else position_ids
        seen = (torch.ones(n, n).tril().bool() & attention_mask[:, None].bool()) | torch.eye(n, dtype=torch.bool)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
        turned = self.model.rotary_emb(state, position_ids)
        for _ in range(loops or self.config.total_ut_steps):
            for block in self.model.layers:
                state = block(state, attention_mask=mask, position_embeddings=turned)
            state = self.model.norm(state)
        return CausalLMOutputWithPast(logits=self.lm_head(state))


def test_passes_through_blocks_that_repeat_are_layers(place):
    torch.manual_seed(0)
    config = OuroConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=256, attn_implementation="eager",
    )  # fmt: skip
    model = Ouro(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained("ouro")
    tokenizer = load_reasoner("small-gpt2").tokenizer
    tokenizer.save_pretrained("ouro")
    AutoConfig.register("ouro", OuroConfig, exist_ok=True)
    AutoModelForCausalLM.register(OuroConfig, Ouro, exist_ok=True)
    code = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)[1]
    Path("looped.py").write_text(code)
    options = [*OPTIONS, "--capture", "full", "--dtype", "float32"]
    assert not run_lake("extract", "--model", "ouro=looped:Looped", *options)
    lake = open_lake("own.lake")
    run, read = lake["ouro/problems"].load(), lake.model("ouro").load()
    assert run.sizes["layer"] == 6
    for row in (0, 7):
        one = run.isel(example=row)
        one = one.isel(position=(one["token"] >= 0).values)
        tokens = torch.from_numpy(one["token"].values.astype(np.int64))[None]
        # What the model would answer after each loop is what the lens reads after its last block.
        for loop in (1, 2, 3):
            with torch.no_grad():
                logits = model(tokens, loops=loop).logits[0].numpy()
            state = one["hidden_state"].isel(layer=2 * loop - 1).values
            normed = state / np.sqrt((state**2).mean(-1, keepdims=True) + 1e-6) * read["final_norm_weight"].values
            np.testing.assert_allclose(normed @ read["unembedding"].values.T, logits, atol=1e-4)
    assert not run_lake("verify", "own.lake", "ouro/problems", "--recompute", "3")
    assert not run_lake("analyze", "lens", "own.lake", "ouro/problems", "--layers", "1,3,5")
    assert open_lake("own.lake").result("lens", "ouro/problems")["layer"].values.tolist() == [1, 3, 5]
