"""The graph between thoughts: against a slow reference, and on models whose graph is known."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from codi_models import written_chain_model
from reentry_lake import oracle_target, states_of, story_lake
from scipy.stats import spearmanr
from small_runs import prepared_run

from extract import Reasoner
from extract.reenter import open_target
from extract.reenter.graph.chain import chain_graph
from extract.reenter.graph.command import GraphSettings, edge_names, tables
from extract.reenter.graph.edges import with_edges
from extract.reenter.graph.effects import thought_graph
from extract.reenter.graph.similarity import graph_similarity
from extract.reenter.graph.steps import step_bounds, written_chains
from extract.reenter.observe import COMPARED
from extract.reenter.target import Target
from extract.reenter.values import StoredValues
from extract.run.extract import extract, prepare
from extract.small_models.problems import make_pairs, write_pairs
from schemas import RunSpec, UsageError
from store import open_lake

CHAIN = ["ct1 > ct3", "ct3 > ct5", "ct5 > answer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of a shipped pair of twins over a few problems, and of a random model over pairs."""
    root = tmp_path_factory.mktemp("graph")
    lake = story_lake(root, ("small-gpt2", "small-gpt2-decodable", "small-llama"), {2: 12, 3: 12, 4: 12})
    write_pairs(make_pairs(2, 3), root / "pairs.json")
    extract(prepared_run(lake, root / "pairs.json", name="oracle", dtype="float32"), lake)
    chain = f"chain={written_chain_model(root / 'chain')}"
    longer = RunSpec(dtype="float32", batch_size=36, max_new_tokens=44)
    extract(prepare(chain, str(root / "test.jsonl"), lake, longer), lake)
    return lake


def pairs(folder: Path) -> Target:
    """The random model's run."""
    return oracle_target(folder, "pairs", "gpt2")


@torch.no_grad()
def slow_states(
    reasoner: Reasoner, question: str, answer: str, given: dict[int, np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """States at ``bot``, the thoughts and ``eot``, and logits at the answer's number; some thoughts given."""
    embed = reasoner.model.get_input_embeddings()
    vectors = embed(torch.tensor(reasoner.encode(question)))
    for thought in range(6):
        own = reasoner.projection(states_of(reasoner, vectors)[-1])
        fed = torch.from_numpy(given[thought]) if thought in given else own
        vectors = torch.cat([vectors, fed[None]])
    shared = reasoner.answer_tokens(answer)[: reasoner.answer_start(answer)]
    vectors = torch.cat([vectors, embed(torch.tensor([*reasoner.closing_ids, *shared], dtype=torch.long))])
    out = states_of(reasoner, vectors)
    n = len(shared)
    return (out[:-n] if n else out)[-8:], reasoner.logits(out[-1])


def slow_measures(reasoner: Reasoner, old: torch.Tensor, new: torch.Tensor) -> list[float]:
    """What is measured of two states, in order."""
    before, after = (reasoner.logits(each).log_softmax(-1) for each in (old, new))
    best = before.argmax()
    cosine = (old @ new / old.norm() / new.norm()).item()
    kl = float((before.exp() * (before - after)).sum())
    return [
        kl,
        float(after[best] - before[best]),
        float(after.argmax() != best),
        cosine,
        float((new - old).norm() / old.norm()),
    ]


def test_effects_are_what_a_slow_reference_computes(folder: Path) -> None:
    found = pairs(folder)
    reasoner, data = found.reasoner, found.data
    result = thought_graph(found, GraphSettings(operations=("twin", "mean")))
    fed = data["latent_embedding"].values
    partner = {0: 1, 1: 0, 2: 3, 3: 2}
    for row in range(2):
        text = str(data["question"].values[row]), str(data["gold_answer"].values[row])
        clean, clean_number = slow_states(reasoner, *text, {})
        for operation, value in (("twin", fed[partner[row]]), ("mean", fed.mean(0))):
            for source in (0, 3, 5):
                for effect in ("total", "direct"):
                    for target in range(source + 1, 7):
                        held = {k: fed[row, k] for k in range(source + 1, target)} if effect == "direct" else {}
                        if held or target == source + 1:  # else nothing is held, as for the target before
                            states, number = slow_states(reasoner, *text, {source: value[source], **held})
                        part = result.isel(source=source, target=target, example=row).sel(
                            operation=operation, effect=effect
                        )
                        place = target if target < 6 else 7  # fed from the state before; the answer from that at eot
                        expected = slow_measures(reasoner, clean[place], states[place])
                        if target == 6:
                            logs = [each.log_softmax(-1) for each in (clean_number, number)]
                            expected[0] = float((logs[0].exp() * (logs[0] - logs[1])).sum())
                        for index, name in enumerate(COMPARED):
                            if target < 6 or index in (0, 3, 4):
                                assert float(part[name]) == pytest.approx(expected[index], abs=2e-4), name
    np.testing.assert_array_equal(result["self_kl"], 0)
    np.testing.assert_allclose(result["held_kl"], 0, atol=1e-6)
    # Before the change nothing changes, and between neighbours nothing is to be held.
    assert np.isnan(result["state_kl"].isel(source=3, target=[0, 1, 2, 3])).all()
    near = result["state_kl"].isel(source=2, target=3)
    np.testing.assert_array_equal(near.sel(effect="total"), near.sel(effect="direct"))


def test_outputs_of_a_block_are_held_up_to_each_target(folder: Path) -> None:
    found = pairs(folder)
    coldest: dict[str, Any] = {"sample": 2, "temperature": 1e-6}
    nodes = ("ct2", "bot", "ct4")
    result = thought_graph(found, GraphSettings(operations=("resample",), layer=1, positions=nodes, **coldest))
    np.testing.assert_array_equal(result["sample_flip"], result["state_flip"].sel(target="answer"))
    assert list(result["source"].values) == ["bot", "ct2", "ct4"]
    edges = result["state_kl"].isel(operation=0).max("example")
    assert not np.isnan(edges.sel(effect="direct", source="bot", target="answer"))
    assert float(edges.sel(effect="direct", source="bot", target="ct4")) > 0
    np.testing.assert_allclose(result["held_kl"], 0, atol=1e-6)


def test_the_graph_is_the_chain_by_construction_and_its_twin_has_none(folder: Path) -> None:
    settings = GraphSettings(operations=("mean", "resample"))
    used = thought_graph(open_target(open_lake(folder), "small-gpt2/test"), settings)
    read = thought_graph(open_target(open_lake(folder), "small-gpt2-decodable/test"), settings)
    for operation in ("mean", "resample"):
        assert edge_names(used, operation, "direct") == CHAIN
        assert set(edge_names(used, operation, "total")) == {*CHAIN, "ct1 > ct5", "ct1 > answer", "ct3 > answer"}
        assert edge_names(read, operation, "direct") == edge_names(read, operation, "total") == []
    for result in (used, read):  # which thoughts read as results does not tell whether they are used
        np.testing.assert_array_equal(result["reads_result"], [0, 1, 0, 1, 0, 1])
    alike, apart = graph_similarity(used, used), graph_similarity(used, read)
    np.testing.assert_allclose(alike["similarity"], 1)
    np.testing.assert_allclose(alike["jaccard"], 1)
    assert float(alike["similarity_p"].max()) < 0.05
    assert float(alike["even_similarity"].sel(operation="mean", effect="direct")) < 0.8
    assert not (apart["jaccard"] > 0).any()
    for name in ("", "_low", "_high"):
        np.testing.assert_allclose(alike[f"rank_correlation{name}"], 1, atol=0.35)
    assert float(alike["rank_correlation"].min()) == pytest.approx(1)
    assert float(alike["rank_correlation_p"].max()) < 0.05
    assert used.attrs["positions_fed"] < used.attrs["positions_one_by_one"] / 2


def test_thoughts_that_say_which_operations_follow_are_told_from_those_that_carry_numbers(folder: Path) -> None:
    target = open_target(open_lake(folder), "small-llama/test")
    result = thought_graph(target, GraphSettings(operations=("resample", "alike")))
    assert {"ct0 > ct1", *CHAIN} <= set(edge_names(result, "resample", "direct"))
    assert edge_names(result, "alike", "direct") == CHAIN
    assert any("not on the numbers: ct0 > ct1" in str(line) for line in tables(result, {}))
    operators = [[name for name in names if name] for names in target.data["operation"].values.tolist()]
    donors = target.values.donors(np.arange(len(operators)), "alike", 0)

    def likeness(row: int, other: int) -> tuple[bool, int]:
        one, two = operators[row], operators[other]
        return len(one) == len(two), next(
            (n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
        )

    for row, donor in enumerate(donors):
        assert donor != row
        assert likeness(row, donor) == max(likeness(row, other) for other in range(len(operators)) if other != row)
    same = np.mean([operators[row] == operators[donor] for row, donor in enumerate(donors)])
    assert result.attrs["alike_share"] == pytest.approx(same)


@torch.no_grad()
def slow_chain(
    reasoner: Reasoner, question: str, tokens: list[int], given: dict[int, torch.Tensor], read: set[int]
) -> tuple[list[torch.Tensor], list[int]]:
    """States that predict each place, and the tokens there; places of ``read`` are read, the others written."""
    embed = reasoner.model.get_input_embeddings()
    vectors, states, written = embed(torch.tensor(reasoner.encode(question))), [], []
    for place, own in enumerate(tokens):
        states.append(states_of(reasoner, vectors)[-1])
        chosen = own if place in read else int(reasoner.writable(reasoner.logits(states[-1])).argmax())
        written.append(chosen)
        fed = given[place] if place in given else embed(torch.tensor(chosen))
        vectors = torch.cat([vectors, fed[None]])
    return states, written


def test_effects_in_a_written_chain_are_what_a_slow_reference_computes(folder: Path) -> None:
    target = open_target(open_lake(folder), "chain/test", checkpoint=str(folder.parent / "chain"), limit=24)
    reasoner = target.reasoner
    names, chains = written_chains(target, ["step1", "step2"])
    result = chain_graph(target, GraphSettings(operations=("mean", "resample"), positions=("step1", "step2")))
    data = target.data.isel(example=chains.rows)
    embed = reasoner.model.get_input_embeddings()
    donors = StoredValues(data, reasoner).donors(np.arange(len(chains.rows)), "other", 0)
    for example in (0, 5):
        tokens, question = chains.tokens[example], str(data["question"].values[example])
        spans = [chains.span(example, step) for step in (0, 1, -1)]
        assert reasoner.decode([tokens[place] for place in spans[0]]).count("=") == 1
        clean, _ = slow_chain(reasoner, question, tokens, {}, set(range(len(tokens))))
        for source, span in enumerate(spans[:2]):
            given: dict[str, dict[int, torch.Tensor]] = {"mean": {}, "resample": {}}
            for back, place in enumerate(reversed(span)):
                theirs = [chains.span(each, source) for each in range(len(chains.rows))]
                last = [chains.tokens[each][part[-1 - back]] for each, part in enumerate(theirs) if back < len(part)]
                given["mean"][place] = embed(torch.tensor(last)).mean(0)
                donor = theirs[donors[example]]
                token = chains.tokens[donors[example]][donor[max(0, len(donor) - 1 - back)]]
                given["resample"][place] = embed(torch.tensor(token))
            for effect in ("total", "direct"):
                read = {*range(span.stop), *(spans[1] if effect == "direct" else [])}
                for operation, vectors in given.items():
                    states, written = slow_chain(reasoner, question, tokens, vectors, read)
                    for number in range(source + 1, 3):
                        expected = np.array(
                            [slow_measures(reasoner, clean[place], states[place]) for place in spans[number]]
                        )
                        part = result.isel(source=source, target=number, example=example).sel(
                            operation=operation, effect=effect
                        )
                        for index, name in enumerate(COMPARED):
                            gathered = [np.sum, np.sum, np.max, np.mean, np.mean][index](expected[:, index])
                            if number < 2 or index != 2:
                                assert float(part[name]) == pytest.approx(float(gathered), abs=5e-4), name
                        if number == 2:
                            end = written.index(reasoner.eos_id) if reasoner.eos_id in written else len(written)
                            answer = target.scoring.answer(reasoner.decode(written[:end]))
                            own = target.scoring.answer(reasoner.decode(tokens))
                            assert bool(part["state_flip"]) == (answer != own)
    np.testing.assert_allclose(result["held_kl"], 0, atol=1e-5)
    np.testing.assert_allclose(result["self_kl"], 0, atol=1e-5)
    assert result.attrs["positions_fed"] < result.attrs["positions_one_by_one"]


def test_thoughts_are_set_against_the_steps_of_a_written_chain(folder: Path) -> None:
    lake = open_lake(folder)
    written = chain_graph(
        open_target(lake, "chain/test", checkpoint=str(folder.parent / "chain")), GraphSettings(operations=("mean",))
    )
    settings = GraphSettings(operations=("mean",), positions=("ct1", "ct3"))
    thoughts = thought_graph(open_target(lake, "small-gpt2/test"), settings)
    assert list(written["source"].values) == ["step1", "step2", "step3"]
    with pytest.raises(UsageError, match="as many nodes are needed"):
        graph_similarity(thoughts, written)
    settings = GraphSettings(operations=("mean",), positions=("ct1", "ct3", "ct5"))
    thoughts = thought_graph(open_target(lake, "small-gpt2/test"), settings)
    found = graph_similarity(thoughts, written).sel(operation="mean", effect="direct")
    lists = [
        each["state_flip_mean"].sel(operation="mean", effect="direct", stratum="all").values
        for each in (thoughts, written)
    ]
    ours, theirs = (each[~np.isnan(each)] for each in lists)
    assert float(found["rank_correlation"]) == pytest.approx(spearmanr(ours, theirs).statistic)
    low, high = float(found["rank_correlation_low"]), float(found["rank_correlation_high"])
    assert low <= float(found["rank_correlation"]) <= high
    assert low < high


def test_a_written_chain_is_cut_into_steps(folder: Path) -> None:
    target = open_target(open_lake(folder), "chain/test", checkpoint=str(folder.parent / "chain"))
    reasoner = target.reasoner
    tokens = reasoner.answer_tokens("0")[:-2]
    text = "5 + 4 = 9 >> << 9 * 2 = 18 >> The answer is: 18"
    ids = [*reasoner.text_tokens(text), reasoner.eos_id]
    bounds = step_bounds(reasoner, ids)
    cut = [reasoner.decode(ids[start:stop]) for start, stop in itertools.pairwise([*bounds, len(ids)])]
    assert cut == ["5 + 4 = 9", ">> << 9 * 2 = 18", ">> The answer is : 18"]
    assert step_bounds(reasoner, [*tokens, *reasoner.text_tokens("18"), reasoner.eos_id]) == [0]


def test_a_chain_without_steps_is_refused_in_one_line(folder: Path) -> None:
    target = open_target(open_lake(folder), "chain/test", checkpoint=str(folder.parent / "chain"), limit=8)
    for change, message in (
        ({"positions": ["step9"]}, "'step9' is no step that chain/test writes; there are step1"),
        ({"positions": ["ct1"]}, "'ct1' is no step"),
        ({"layer": 0}, "nodes of its graph are tokens of its chain"),
        ({"sample": 2}, "writes its chain, and a chain that is drawn"),
    ):
        with pytest.raises(UsageError, match=message):
            chain_graph(target, GraphSettings(**change))
    silent = replace(target, data=target.data.assign(token=target.data["token"].where(False, 3)))
    with pytest.raises(UsageError, match="its answers write no steps"):
        chain_graph(silent, GraphSettings())


def test_nulls_have_their_closed_forms() -> None:
    flips = np.full((1, 1, 2, 3, 20), np.nan)
    flips[0, 0, 0, 1:] = 0.0
    flips[0, 0, 1, 2] = 1.0
    dims = ("operation", "effect", "source", "target", "example")
    effects = xr.Dataset(
        {name: (dims, flips) for name in COMPARED},
        coords={
            "operation": ["mean"],
            "effect": ["direct"],
            "source": ["ct0", "ct1"],
            "target": ["ct0", "ct1", "answer"],
        },
    )
    result = with_edges(effects, strata=None, problem=np.arange(20) // 2, least=0.25, n_null=500, seed=0)
    assert edge_names(result, "mean", "direct") == ["ct1 > answer"]
    one = result.isel(stratum=0, operation=0, effect=0)
    assert int(one["n"]) == 10
    np.testing.assert_allclose(one["even_flip"].sel(source="ct0", target=["ct1", "answer"]), 0)
    # Of three edges one always flips; all ten problems deal it to the same edge once in 3 ** 10 draws.
    np.testing.assert_allclose(one["shuffled_flip"].sel(source="ct1", target="answer"), 1 / 3, atol=0.02)
    assert float(one["p"].sel(source="ct1", target="answer")) == pytest.approx(1 / 501)
    assert float(one["p"].sel(source="ct0", target="ct1")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operations": ["melt"]}, "--operations melt is not one of"),
        ({"positions": ["ct9"]}, "'ct9' is no node of the graph"),
        ({"positions": ["bot"]}, "'bot' is no node of the graph"),
        ({"layer": 9}, "layer 9 is not there"),
        ({"operations": ()}, "no operation is named"),
        ({"against": "oracle/test"}, "has no graph of oracle/test; run lake reenter graph on it first"),
    ],
)
def test_bad_requests_are_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        thought_graph(pairs(folder), GraphSettings(**change))
    assert "\n" not in str(error.value)
