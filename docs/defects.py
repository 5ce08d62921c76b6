"""Fifteen defects of earlier scripts, each done as they do it and as it should be done, measured on the small models.

    python docs/defects.py                      # writes docs/defects.json; then: make docs
    python docs/defects.py --only E2 E7         # measures some and keeps the others

One function for each defect; what it gives are the rows of its table in docs/defects.md.
"""

import argparse
import copy
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from defect_world import N_NEW, Row, World, changed, make_world, share, sliced
from transformers import AutoModelForCausalLM

from analyze import head_scores, lens_summary, logit_lens
from analyze.probes.command import ProbeSettings
from analyze.probes.linear import linear_probes
from extract import Reasoner
from extract.model.capture import KeyValues
from extract.model.flight import Flight
from extract.reenter.intervene import Armed
from extract.reenter.sweep import Condition, sweep
from schemas import Intervention, answers_match, extract_answer, position_offset

MODELS = ("small-gpt2=small-gpt2", "small-llama=small-llama")
OUT = Path(__file__).parent / "defects.json"
STEPS = ("bot", "ct0", "ct1", "ct2", "ct3", "ct4")
"""What the scripts call step 0 to 5."""
THOUGHTS = ("ct0", "ct1", "ct2", "ct3", "ct4", "ct5")


def e1(world: World) -> Iterator[Row]:
    """BOT counted as the first of six steps: five vectors are fed."""
    reasoner = world.reasoner
    six = world.answers()
    with thoughts(reasoner, 5):
        five = world.answers()
    yield "vectors fed", "5", "6"
    yield (
        "problems of four operations answered right",
        world.right(five, world.longest),
        world.right(six, world.longest),
    )
    lens = lens_summary(logit_lens(world.run, world.readout, positions=STEPS)).compute()
    number = lens["number_share"].isel(layer=-1).sel(position=list(STEPS)).values > 0.5
    old = " ".join(f"CT{step}" for step in np.flatnonzero(number))
    new = " ".join(np.array(STEPS)[number])
    yield "first six states that read as a number", old, new


@contextmanager
def thoughts(reasoner: Reasoner, number: int) -> Iterator[None]:
    """Another number of thoughts, for a while."""
    before = reasoner.n_latent
    reasoner.n_latent = number
    try:
        yield
    finally:
        reasoner.n_latent = before


def e2(world: World) -> Iterator[Row]:
    """A run patched with its own values, read one block below where they are written."""
    before = world.answers()
    layer = world.reasoner.n_layer - 1
    texts = []
    for source in (layer - 1, layer):
        armed = world.armed()
        for position in STEPS:
            world.put(armed, layer, position, world.state(source, position))
        texts.append(world.answers(armed))
    yield "answers that change when a run is patched with itself", *(changed(each, before) for each in texts)
    yield "answered right", *(world.right(each) for each in texts)


def e3(world: World) -> Iterator[Row]:
    """A value meant for the marker written over the question's last token, too."""
    prompts = [world.reasoner.encode(str(question)) for question in world.run["question"].values]
    before = world.reasoner.think(prompts, stored_dtype="float32", max_new_tokens=N_NEW)
    texts, moved = [], []
    for positions in (("q-1", "bot"), ("bot",)):
        armed = world.armed()
        for position in positions:
            world.put(armed, 0, position, world.state(0, "bot"))
        thinking = world.reasoner.think(prompts, stored_dtype="float32", max_new_tokens=N_NEW, editor=armed)
        texts.append(thinking.generated_text)
        fed = thinking.latent_embedding - before.latent_embedding
        moved.append(np.linalg.norm(fed, axis=-1).mean() / np.linalg.norm(before.latent_embedding, axis=-1).mean())
    yield "thoughts fed when step 0 is patched with itself: relative change", *(f"{100 * each:.1f}%" for each in moved)
    yield "answers that change", *(changed(each, before.generated_text) for each in texts)


def e4(world: World) -> Iterator[Row]:
    """A hook that goes on writing the last step's value into marker and answer."""
    layer = world.reasoner.n_layer - 1
    value = world.state(layer, STEPS[-1])
    texts = []
    for positions in ((STEPS[-1], "eot", *(f"a{place}" for place in range(N_NEW))), (STEPS[-1],)):
        armed = world.armed()
        for position in positions:
            world.put(armed, layer, position, value)
        texts.append(world.answers(armed))
    yield "answered right with step 5 patched with itself", *(world.right(each) for each in texts)
    yield "answers that repeat one token to the end", *(share([one_token(text) for text in each]) for each in texts)


def one_token(text: str) -> bool:
    """Whether a text is one word over and over."""
    words = text.split()
    return len(words) > 1 and len(set(words)) == 1


def e5(world: World) -> Iterator[Row]:
    """What EOT predicts thrown away, the answer begun from the default beginning-of-text token."""
    reasoner = world.reasoner
    prompts = [reasoner.encode(str(question)) for question in world.run["question"].values]
    begin = reasoner.tokenizer.bos_token_id
    begin = reasoner.eos_id if begin is None else int(begin)
    with torch.inference_mode(), reasoner.session():
        tokens, pad, n_before = reasoner.lay_out(prompts)
        flight = Flight(reasoner, pad, n_before, KeyValues(n_before + reasoner.n_latent + N_NEW + 4))
        flight.think(flight.feed_tokens(tokens)[:, -1])
        for token in (reasoner.eot_id, begin):
            state = flight.feed_tokens(torch.full((len(prompts), 1), token))[:, -1]
        restarted = [reasoner.decode(line) for line in flight.answer(state, N_NEW).tolist()]
    texts = (restarted, world.answers())
    yield "answered right", *(world.right(each) for each in texts)
    prefix = "".join(reasoner.answer_prefix.split())
    whole = [["".join(text.split()).startswith(prefix) for text in each] for each in texts]
    yield f"answers that begin with “{reasoner.answer_prefix}”", *(share(each) for each in whole)


def e6(world: World) -> Iterator[Row]:
    """The gold answer of a row fetched from a list by its pair's number."""
    pairs = world.pairs
    number = pairs["pair"].values
    variant = pairs["variant"].values
    # A list of the same pairs in another order, as a filtered or sorted file is.
    listed = np.random.default_rng(0).permutation(np.unique(number))
    gold = {(int(n), str(v)): str(g) for n, v, g in zip(number, variant, pairs["gold_answer"].values, strict=True)}
    by_place = [gold[int(listed[n]), str(v)] for n, v in zip(number, variant, strict=True)]
    by_number = [gold[int(n), str(v)] for n, v in zip(number, variant, strict=True)]
    own = pairs["gold_answer"].values
    yield "rows that meet their own gold answer", *(share(np.array(each) == own) for each in (by_place, by_number))
    predicted = pairs["predicted_answer"].values.tolist()
    right = [
        [answers_match(answer, extract_answer(text)) for answer, text in zip(predicted, each, strict=True)]
        for each in (by_place, by_number)
    ]
    yield "accuracy of the untouched model on these labels", *(share(each) for each in right)


def e7(world: World) -> Iterator[Row]:
    """Attention of a thought as the mean of its own row; as what the answer pays to it."""
    attention = world.run["attention"]
    row = attention.sel(position="ct2").compute()
    seen = (row > 0).any(["layer", "head"])
    mean = (row.where(seen).mean("key_position") * seen.sum("key_position")).mean("example")
    paid = attention.sel(position="eot", key_position="ct2").mean("example").compute()
    ratio = [f"{float(each.max() / each.min()):.4g}" for each in (mean, paid)]
    yield "“attention of ct2”: highest head over lowest, all layers", *ratio
    spread = float(abs(row.where(seen).mean("key_position") * seen.sum("key_position") - 1).max())
    yield "largest departure of mean x row length from 1, any problem, layer, head", f"{spread:.1e}", "not a constant"


def e8(world: World) -> Iterator[Row]:
    """Six keys sliced one place too late."""
    paid = world.run["attention"].sel(position="eot").mean(["example", "layer", "head"]).compute()
    shares = []
    for keys in ((*THOUGHTS[1:], "eot"), THOUGHTS):
        block = paid.sel(key_position=list(keys))
        shares.append((block / block.sum()).values)
    yield "share of “token 5” in the answer's attention to six tokens", *(f"{100 * each[5]:.1f}%" for each in shares)
    yield "token with the largest share", *(f"token {int(each.argmax())}" for each in shares)


def e9(world: World) -> Iterator[Row]:
    """Columns one step off."""
    attention = world.run["attention"].mean("example")
    scores = [head_scores(attention, convention).compute() for convention in ("reports", "thoughts")]
    flow = [each["flow"] for each in scores]
    yield (
        "flow score, lowest to highest head",
        *(f"{float(each.min()):.2f} to {float(each.max()):.2f}" for each in flow),
    )
    step = [float(each["sequential"].mean()) for each in scores]
    yield "“attention to the step before”, mean over heads", *(f"{each:.3f}" for each in step)


def e10(n_row: int = 100, hidden: int = 768, seed: int = 0) -> Row:
    """Accuracy of a probe on noise: on the rows it was fitted to, and held out."""
    rng = np.random.default_rng(seed)
    noise = xr.Dataset(
        {
            "hidden_state": (("example", "layer", "position", "hidden"), rng.normal(size=(n_row, 1, 1, hidden))),
            "correct": ("example", rng.permutation(n_row) % 2 == 0),
        },
        coords={
            "example": np.arange(n_row),
            "problem": ("example", np.arange(n_row)),
            "layer": [0],
            "position": ["bot"],
        },
        attrs={"run": "noise"},
    )
    found = linear_probes(noise, ProbeSettings(controls=0, permutations=0, resamples=50, seed=seed))
    values = [100 * float(found[name].squeeze()) for name in ("training_accuracy", "accuracy")]
    return f"probe on {n_row} rows of pure noise, {hidden} features", *(f"{value:.0f}% accuracy" for value in values)


def e11(world: World) -> Iterator[Row]:
    """What replaces one vector is fed once more, as the next."""
    vectors = world.run["latent_embedding"]
    for step, average in ((0, True), (2, True), (4, True), (0, False)):
        label = THOUGHTS[step]
        value = np.repeat(vectors.sel(latent=[label]).mean("example").values, world.n_example, axis=0)
        texts = []
        for replaced in (THOUGHTS[step : step + 2], THOUGHTS[step : step + 1]):
            armed = world.armed()
            for position in replaced:
                world.put(armed, -1, position, value if average else None, "latent_embedding")
            texts.append(world.answers(armed))
        what = f"four operations, {label} replaced by {'its mean' if average else 'zeros'}: answered right"
        yield what, *(world.right(each, world.longest) for each in texts)


def e12(world: World) -> Iterator[Row]:
    """Divergence divided by the vocabulary at the first token; summed, at the number."""
    reasoner = world.reasoner
    armed = world.armed()
    world.put(armed, -1, "ct1", None, "latent_embedding")
    log_p = first_token(world, None), first_token(world, armed)
    batchmean = [
        float(torch.nn.functional.kl_div(log_q, base.exp(), reduction="batchmean"))
        for base, log_q in zip(*log_p, strict=True)
    ]
    zero = Intervention(site="latent_embedding", operation="zero", positions=("ct1",))
    gold = [str(each) for each in world.run["gold_answer"].values]
    found = sweep(
        reasoner, world.run, [Condition(name="zero", interventions=(zero,))], answers={"gold": gold}, generate=False
    )
    kl = found["kl"].sel(condition="zero").mean().item()
    yield "divergence with ct1 zeroed, mean", f"{np.mean(batchmean):.2g}", f"{kl:.2f} nats"
    tokens = [len(set(each.argmax(-1).tolist())) for each in (log_p[0],)]
    yield "different tokens the untouched model writes there", str(tokens[0]), str(len(set(gold)))


def first_token(world: World, armed: Armed | None) -> torch.Tensor:
    """Log probabilities (example, token) of the first token after EOT."""
    reasoner = world.reasoner
    prompts = [reasoner.encode(str(question)) for question in world.run["question"].values]
    with torch.inference_mode(), reasoner.session():
        tokens, pad, n_before = reasoner.lay_out(prompts)
        flight = Flight(reasoner, pad, n_before, KeyValues(n_before + reasoner.n_latent + 4), editor=armed)
        flight.think(flight.feed_tokens(tokens)[:, -1])
        state = flight.feed_tokens(torch.full((len(prompts), 1), reasoner.eot_id))[:, -1]
        return torch.log_softmax(reasoner.logits(state), -1)


def e13(world: World) -> Iterator[Row]:
    """A counter that starts at the question and stops at its target: the step before, and all after."""
    layer = world.reasoner.n_layer - 1
    for step in (2, 4):
        texts = []
        for positions in (STEPS[step - 1 :], STEPS[step : step + 1]):
            armed = world.armed()
            for position in positions:
                mean = world.state(layer, position).mean(0, keepdims=True)
                world.put(armed, layer, position, np.repeat(mean, world.n_example, axis=0))
            texts.append(world.answers(armed))
        name = f"state at {STEPS[step]} replaced by its mean, last layer: answered right"
        yield name, *(world.right(each) for each in texts)


def e14(world: World) -> Iterator[Row]:
    """Columns of the output projection's output taken for heads."""
    reasoner = world.reasoner
    before = world.answers()
    positions = (*STEPS, "ct5", "eot")
    places = [(layer, head) for layer in range(reasoner.n_layer) for head in range(reasoner.n_head)]
    right = []
    for layer, head in places:
        armed = world.armed()
        for position in positions:
            offset = position_offset(position, reasoner.n_latent)
            armed.add(("head_output", layer, offset), "set", np.arange(world.n_example), heads=(head,))
        right.append(world.answers(armed))
    wrong = []
    for layer, head in places:
        with sliced(reasoner, layer, head):
            wrong.append(world.answers())
    damage = [
        np.array([np.mean([a != b for a, b in zip(each, before, strict=True)]) for each in texts])
        for texts in (wrong, right)
    ]
    yield "answers changed by one head removed, mean over heads", *(f"{100 * each.mean():.1f}%" for each in damage)
    names = ["layer {}, head {}".format(*places[int(each.argmax())]) for each in damage]
    yield "head whose removal changes most", *names
    most = int(np.abs(damage[0] - damage[1]).argmax())
    where = "layer {}, head {}".format(*places[most])
    yield f"answers changed without {where}", *(f"{100 * each[most]:.1f}%" for each in damage)
    escaped, plain = re.compile(r"(?:answer is)\\s*:\\s*(-?\\d+)"), re.compile(r"(?:answer is)\s*:\s*(-?\d+)")
    read = [[pattern.search(text) is not None for text in before] for pattern in (escaped, plain)]
    yield "the model's own answers in which the parser finds a number", *(share(each) for each in read)


def e15(world: World, n_problem: int = 20) -> Iterator[Row]:
    """An additive mask where the library expects 1 for keep and 0 for drop."""
    reasoner = world.reasoner
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(reasoner.model.config), attn_implementation="eager").eval()
    plain.load_state_dict(reasoner.model.state_dict())
    embed = plain.get_input_embeddings()
    blocked, seen = [], []
    for example in range(min(n_problem, world.n_example)):
        prompt = reasoner.encode(str(world.run["question"].values[example]))
        latents = torch.tensor(world.run["latent_embedding"].isel(example=example).values)
        with torch.inference_mode():
            vectors = torch.cat([embed(torch.tensor(prompt)), latents, embed(torch.tensor([reasoner.eot_id]))])[None]
            mask = torch.zeros(vectors.shape[:2])
            key = len(prompt) + 1  # ct1
            mask[0, key] = -10000
            attention = plain(inputs_embeds=vectors, attention_mask=mask, output_attentions=True).attentions
        rows = torch.stack(attention)[:, 0, :, -1]  # (layer, head, key)
        blocked.append(float(rows[..., key].mean()))
        seen.append(float(rows.sum(-1).mean() - rows[..., key].mean()))
    armed = world.armed()
    for layer in range(reasoner.n_layer):
        armed.add(("attention", layer, 7), "edges", np.arange(world.n_example), scale=0.0, keys=(2,))
    prompts = [reasoner.encode(str(question)) for question in world.run["question"].values]
    found = reasoner.think(prompts, stored_dtype="float32", max_new_tokens=2, editor=armed)
    row = found.attention[:, :, :, 7]  # at eot
    right = float(row[..., found.n_before + 2].mean())
    way = "(the scripts' way: 20 problems)"
    yield f"attention of eot to the blocked key ct1 {way}", f"{np.mean(blocked):.3f}", f"{right:.3f}"
    yield f"to all other keys together {way}", f"{np.mean(seen):.3f}", f"{float(row.sum(-1).mean()) - right:.3f}"


DEFECTS: dict[str, Callable[[World], Iterator[Row]]] = {
    "E1": e1, "E2": e2, "E3": e3, "E4": e4, "E5": e5, "E6": e6, "E7": e7, "E8": e8, "E9": e9,
    "E11": e11, "E12": e12, "E13": e13, "E14": e14, "E15": e15,
}  # fmt: skip
"""Those measured on a model; E10 needs none."""


def measure(models: Sequence[str], n_problem: int, n_pair: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Rows of every defect, or of some, on every model."""
    wanted = list(only) or sorted({*DEFECTS, "E10"}, key=lambda name: int(name[1:]))
    with tempfile.TemporaryDirectory() as folder:
        worlds = [make_world(model, Path(folder), n_problem, n_pair) for model in models]
        defects: dict[str, Any] = {}
        for name in wanted:
            if name == "E10":
                rows: list[Row] = [e10(hidden=hidden) for hidden in (768, 2048)]
                on = "Random numbers and random labels; the scripts' penalties, folds by problem."
            else:
                rows = [(f"{world.name}: {what}", *both) for world in worlds for what, *both in DEFECTS[name](world)]
                n = worlds[0].pairs.sizes["example"] if name == "E6" else worlds[0].n_example
                on = f"{n} {'halves of pairs' if name == 'E6' else 'held-out problems of two to four operations'}."
            defects[name] = {
                "rows": [dict(zip(("what", "wrong", "right"), row, strict=True)) for row in rows],
                "on": on,
            }
        weights = {world.name: world.reasoner.fingerprint["weights"] for world in worlds}
    packages = ("activation-lake", "torch", "transformers", "zarr", "xarray", "numpy")
    versions = {"Python": sys.version.split()[0], **{name: version(name) for name in packages}}
    return {"versions": versions, "weights": weights, "defects": defects}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Measure the fifteen defects on the small models.")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME=CHECKPOINT")
    parser.add_argument("--problems", type=int, default=300, help="held-out problems")
    parser.add_argument("--pairs", type=int, default=100, help="clean/corrupted pairs")
    parser.add_argument("--only", nargs="+", default=[], metavar="E1", help="these only; the others are kept")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    found = measure(arguments.models, arguments.problems, arguments.pairs, arguments.only)
    if arguments.only and arguments.out.exists():
        found["defects"] = json.loads(arguments.out.read_text(encoding="utf-8"))["defects"] | found["defects"]
    arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, each in found["defects"].items():
        for row in each["rows"]:
            print(f"{name:4} {row['what']}: {row['wrong']} | {row['right']}")


if __name__ == "__main__":
    main()
