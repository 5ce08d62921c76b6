"""Attribution patching: against the sweep's patching, sums that must come out, known truth on the small models."""

import json
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import xarray as xr
from reentry_lake import lose_gradients, story_lake, target

from extract.reenter import AttributeSettings, Target, attribute, subgraph, write_graph
from extract.reenter.patching.experiment import pairs_of
from extract.reenter.sweep import Condition
from schemas import Intervention, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of the shipped models over a few pairs, float32."""
    models = ("small-gpt2", "small-llama", "small-llama-decodable")
    return story_lake(tmp_path_factory.mktemp("attribute"), models, pairs=24)


def opened(folder: Path, model: str, limit: int | None = None) -> Target:
    return target(folder, model, "pairs", limit=limit)


def of_thoughts(result: xr.Dataset, name: str = "score") -> np.ndarray:
    """Figures of the fed vectors."""
    return np.asarray(result[name].values[result["kind"].values == "fed"])


def test_exact_effects_are_those_of_the_sweep(folder: Path) -> None:
    target = opened(folder, "small-gpt2", 16)
    result = attribute(target, AttributeSettings(random=1))
    pairs = pairs_of(target)
    places: dict[str, tuple[tuple[str, int, int, str], dict[str, Any]]] = {
        "fed": (("fed", -1, -1, "ct3"), {"site": "latent_embedding"}),
        "head": (("head", 0, 2, "ct2"), {"site": "head_output", "layers": (0,), "heads": (2,)}),
        "mlp": (("mlp", 1, -1, "ct4"), {"site": "mlp_output", "layers": (1,)}),
    }
    conditions = [
        Condition(
            name=name,
            interventions=(Intervention(operation="replace", donor="twin", positions=(labels[3],), **where),),
            labels={"place": name},
        )
        for name, (labels, where) in places.items()
    ]
    gold = target.data["gold_answer"].values.astype(str)
    swept = target.sweep(
        conditions, answers={"clean": list(gold[pairs.clean]), "corrupted": list(gold[pairs.corrupted])},
        examples=target.data["example"].values[pairs.corrupted].tolist(),
    )  # fmt: skip
    moved = swept["logit_difference"] - swept["logit_difference"].isel(condition=0)
    for name, (labels, _) in places.items():
        columns = zip(*(result[each].values for each in ("kind", "layer", "head", "position")), strict=True)
        node = next(index for index, found in enumerate(columns) if found == labels)
        expected = float(moved.sel(condition=name).mean())
        np.testing.assert_allclose(result["exact"].values[node], expected, atol=2e-3 * max(1, abs(expected)))


@pytest.mark.parametrize("model", ["small-gpt2", "small-llama"])
def test_scores_add_up_and_find_the_thoughts_that_carry_numbers(folder: Path, model: str) -> None:
    target = opened(folder, model)
    result = attribute(target, AttributeSettings(random=2))
    sums = np.zeros(result.sizes["node"])
    np.add.at(sums, result["sender"].values, result["edge_score"].values)
    np.testing.assert_allclose(sums, result["score"], atol=1e-3)
    order = np.argsort(-np.abs(of_thoughts(result)))
    assert set(order[:3]) == {1, 3, 5}
    assert result.attrs["spearman"] >= 0.8
    np.testing.assert_allclose(result["exact_share"], result["exact"] / result.attrs["all_nodes"], rtol=1e-4)
    # What all nodes do is uncertain, too: a share of it is not as certain as the effect itself.
    lengths = [
        (result[f"{name}_high"] - result[f"{name}_low"]) / abs(result[name]) for name in ("exact", "exact_share")
    ]
    assert not np.allclose(*lengths, rtol=0.05)
    # A quarter of the nodes carries nearly everything, and without them nearly nothing is left; not so at random.
    quarter = result.sel(size=32)
    assert float(quarter["kept"]) > 0.9 > float(quarter["kept_random"]) - 0.1
    assert float(quarter["left"]) < 0.3 < 0.7 < float(quarter["left_random"])


def test_scores_of_a_twin_that_does_not_use_its_thoughts_are_near_zero(folder: Path) -> None:
    twin, used = (attribute(opened(folder, model), AttributeSettings(random=1, exact=1))
                  for model in ("small-llama-decodable", "small-llama"))  # fmt: skip
    assert np.abs(of_thoughts(twin)).max() < 0.1 * np.abs(of_thoughts(used)).max()


def test_gradients_of_more_steps_add_up_unless_the_cache_loses_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = opened(folder, "small-llama", 8)
    settings = {steps: AttributeSettings(steps=steps, random=1, exact=1) for steps in (1, 32)}
    residual = [attribute(target, each).attrs["residual"] for each in settings.values()]
    assert residual[0] > 0.3 > 0.1 > residual[1]
    lose_gradients(monkeypatch)
    assert attribute(target, settings[32]).attrs["residual"] > 0.3


def test_batches_and_a_stop_change_nothing_and_the_graph_can_be_read(folder: Path, tmp_path: Path) -> None:
    target, settings = opened(folder, "small-gpt2", 12), AttributeSettings(random=1, exact=20)
    whole = attribute(target, settings)
    target.batch_rows, target.folder = 2, tmp_path / "kept"

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    target.progress = stop
    with pytest.raises(KeyboardInterrupt):
        attribute(target, settings)
    target.progress = None
    parts = attribute(target, settings)
    for name in ("score", "exact", "edge_score"):
        np.testing.assert_allclose(parts[name], whole[name], atol=2e-3)
    graph = subgraph(whole, n_edge=10)
    assert graph.number_of_edges() == 10
    for suffix in (".json", ".graphml"):
        write_graph(graph, tmp_path / f"a{suffix}")
    back = networkx.node_link_graph(json.loads((tmp_path / "a.json").read_text()), edges="edges")
    again = networkx.read_graphml(tmp_path / "a.graphml")
    assert set(back.edges) == set(again.edges) == set(graph.edges)
    with pytest.raises(UsageError, match=r"a.dot ends with neither .json nor .graphml"):
        write_graph(graph, tmp_path / "a.dot")


def test_pairs_of_one_problem_are_refused(folder: Path) -> None:
    target = opened(folder, "small-gpt2", limit=8)
    target.data = target.data.assign_coords(problem=("example", np.zeros(8, dtype=int)))
    with pytest.raises(UsageError, match="all 4 pairs of small-gpt2/pairs are of one problem"):
        attribute(target, AttributeSettings(random=1, exact=1))
