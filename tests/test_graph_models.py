"""Graph-search problems, and the training and weights of the models that answer them."""

from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from extract import load_reasoner
from extract.model.checkpoint import SHIPPED
from extract.reenter.ablation.experiments import ablate, corrupt
from extract.reenter.attention.edges import cut_edges
from extract.reenter.target import open_target
from extract.run.data import read_problems
from extract.run.extract import extract
from extract.run.prepare import prepare
from extract.small_models.graph_evaluate import answer_graphs, evaluate_graphs
from extract.small_models.graph_network import (
    SmallCoconut,
    load_graph_checkpoint,
    make_graph_tokenizer,
    save_graph_checkpoint,
)
from extract.small_models.graph_problems import (
    DEPTH,
    KINDS,
    draw_graphs,
    held_out_graphs,
    make_graph_pairs,
    sentence,
    tell,
    write_graph_problems,
)
from extract.small_models.graph_train import GraphStage, plan_graph, think_graph, tokens_of, train_graph
from extract.small_models.train import GRAPH_NAMES
from schemas import RunSpec, Scoring, UsageError
from store import open_lake


def search(question: str) -> tuple[str, list[set[str]]]:
    """Answer by reading the sentences of the text and following them, one step after another."""
    *told, asked = question.replace("Every ", "").rstrip("?").split(". ")
    edges = [line.split(" is a ") for line in told]
    person, first, second = asked.removeprefix("Is ").replace(" a ", " ").replace(" or ", " ").split()
    reached, steps = {person}, []
    for _ in range(DEPTH):
        reached = {what for subject, what in edges if subject in reached}
        steps.append(reached)
    (answer,) = reached & {first, second}
    return answer, steps


def test_the_answer_is_what_a_search_of_the_text_reaches():
    graphs = draw_graphs(np.random.default_rng(0), 200)
    for record, frontier in zip(tell(graphs), graphs.frontier, strict=True):
        answer, steps = search(record["question"])
        assert answer == record["answer"] == KINDS[record["target"]]
        assert steps == [{KINDS[k] for k in kinds} for kinds in frontier]
        assert all(step in record["question"] for step in record["steps"])
    assert sentence(len(KINDS), 0) == "Tom is a wumpus."


@pytest.mark.parametrize("step", range(1, DEPTH + 1))
def test_without_the_sentences_of_any_one_step_both_answers_are_as_likely(step):
    """A problem's twin has the other answer, differs in these sentences alone, and has the problem as its own twin."""
    graphs = draw_graphs(np.random.default_rng(1), 100)
    other = graphs.crossed(step)
    back = other.crossed(step)
    assert all((a == b).all() for a, b in zip(graphs, back, strict=True))
    for one, two, frontier in zip(tell(graphs), tell(other), graphs.frontier, strict=True):
        assert (two["target"], two["neg_target"]) == (one["neg_target"], one["target"])
        told = [record["question"].split(". ") for record in (one, two)]
        changed = [(a, b) for a, b in zip(*told, strict=True) if a != b]
        assert len(changed) == 4
        ends = {what.split(" is a ")[1] for what, _ in changed}
        assert {KINDS[k] for k in frontier[step - 1]} < ends
        assert [a.split(" is a ")[0] for a, _ in changed] == [b.split(" is a ")[0] for _, b in changed]
        steps = [search(record["question"])[1] for record in (one, two)]
        assert steps[0][: step - 1] == steps[1][: step - 1]
        assert all(a.isdisjoint(b) for a, b in zip(steps[0][step - 1 :], steps[1][step - 1 :], strict=True))


def test_a_data_file_has_the_graph_as_columns(tmp_path):
    file, _ = write_graph_problems(tmp_path, 20, 6)
    data = read_problems(str(file))
    assert data.answer_kind == "text"
    graphs = held_out_graphs("test", 20)
    for path, other, frontier in zip(
        data.columns["intermediate_text"][1], data.columns["distractor"][1], graphs.frontier, strict=True
    ):
        assert [{a, b} for a, b in zip(path, other, strict=True)] == [{KINDS[k] for k in kinds} for kinds in frontier]
    tokens = make_graph_tokenizer()([f"{question}\n" for question in data.question])["input_ids"]
    assert tokens == tokens_of(graphs).tolist()


def test_pairs_have_both_answers_and_say_from_which_step_on_they_differ():
    pairs = make_graph_pairs(30)
    assert pairs == make_graph_pairs(30)
    for pair in pairs:
        (clean, one), (corrupted, two) = (search(pair[side]["question"]) for side in ("clean", "corrupted"))
        assert (clean, corrupted) == (pair["clean"]["answer"], pair["corrupted"]["answer"])
        assert clean == KINDS[pair["corrupted"]["neg_target"]]
        same = [a == b for a, b in zip(one, two, strict=True)]
        assert same == [k < pair["changed_step"] for k in range(1, DEPTH + 1)]


@pytest.mark.parametrize("kind", ["coconut", "pause", "direct"])
def test_the_written_checkpoint_thinks_as_the_trained_model(kind, tmp_path):
    torch.manual_seed(1)
    model = SmallCoconut()
    save_graph_checkpoint(model, kind, tmp_path / "model")
    again, known = load_graph_checkpoint(tmp_path / "model")
    assert known == kind
    graphs = held_out_graphs("test", 5)
    with torch.no_grad():
        _, states = think_graph(again, kind, torch.from_numpy(tokens_of(graphs)))
    reasoner = load_reasoner(tmp_path / "model")
    prompts = [reasoner.encode(record["question"]) for record in tell(graphs)]
    thinking = reasoner.think(prompts, capture="latent", stored_dtype="float32", max_new_tokens=3)
    if kind == "coconut":
        np.testing.assert_allclose(thinking.latent_embedding, states, atol=1e-5)
    if kind != "direct":
        np.testing.assert_allclose(thinking.final_state[:, :DEPTH], states, atol=1e-5)
    scoring = Scoring("text", prefix=reasoner.answer_prefix)
    wanted = [KINDS[k] if k >= 0 else None for k in answer_graphs(again, kind, graphs).predicted]
    assert [scoring.answer(text) for text in thinking.generated_text] == wanted


def test_a_training_goes_on_where_it_was_stopped(tmp_path):
    stages = [
        ("first", GraphStage(steps=2, rate=1e-3, batch=4, given=True)),
        ("m", GraphStage(steps=2, rate=1e-3, batch=4)),
    ]
    whole = train_graph("small-graph", tmp_path / "whole", stages=stages)
    assert train_graph("small-graph", tmp_path / "parts", stages=stages, stop_after=3) == [tmp_path / "parts" / "first"]
    parts = train_graph("small-graph", tmp_path / "parts", stages=stages)
    for name, tensor in load_file(whole[-1] / "model.safetensors").items():
        assert torch.equal(tensor, load_file(parts[-1] / "model.safetensors")[name]), name
    with pytest.raises(UsageError, match="choose one of small-graph, small-graph-pause"):
        plan_graph("small-grap")


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_shipped_weights_search_where_they_think_and_guess_where_they_do_not(name):
    folder = SHIPPED / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    rates = evaluate_graphs(folder, 150 if name == "small-graph" else 500)
    assert rates["answers with a word asked about"].share > 0.99
    if name != "small-graph":
        assert 0.4 < rates["accuracy"].share < 0.6
        return
    assert rates["accuracy"].share > 0.95
    assert all(rate.share > 0.95 for label, rate in rates.items() if label.startswith("lens"))
    assert rates["all from another problem"].share < 0.5
    for step, k in product(range(1, DEPTH + 1), range(DEPTH)):
        followed = rates[f"ct{k} of a twin that differs from step {step}: its answer"].share
        assert followed > 0.95 if k >= step - 1 else followed < 0.05


def test_experiments_on_thoughts_refuse_a_run_without(tmp_path):
    file, _ = write_graph_problems(tmp_path, 8, 2)
    path = tmp_path / "direct.lake"
    extract(prepare("small-graph-direct", str(file), path, RunSpec(max_new_tokens=4)), path)
    target = open_target(open_lake(path), "small-graph-direct/graph")
    for experiment in (ablate, corrupt, cut_edges):
        with pytest.raises(UsageError, match="small-graph-direct/graph has no thoughts"):
            experiment(target)
