"""Words written into thoughts of a model that searches a graph, and subspaces of them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from reentry_lake import figure

from extract.reenter import EditSettings, SubspaceSettings, edit, open_target, subspaces
from extract.reenter.searching import Searches
from extract.run.extract import extract
from extract.run.prepare import prepare
from extract.small_models.graph_problems import DEPTH, KINDS, held_out_graphs, write_graph_problems
from schemas import RunSpec, UsageError
from store import open_lake

N = 160


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("words")
    file, _ = write_graph_problems(root, N, 6)
    place = root / "g.lake"
    extract(prepare("small-graph", str(file), place, RunSpec(dtype="float32", batch_size=80, max_new_tokens=4)), place)
    return place


def test_another_word_leads_where_the_graph_does(lake: Path) -> None:
    """What is expected comes from the arrays that the problems were drawn as, not from the edges of the text."""
    searches, graphs = Searches(open_lake(lake)["small-graph/graph"]), held_out_graphs("test", N)
    for row in range(0, N, 5):
        asked = int(graphs.asked[row])
        ends = {column: KINDS[graphs.kind[row, -1, column, graphs.branch[row, column]]] for column in (0, 1)}
        for step in range(DEPTH - 1):
            for column in (0, 1):
                for branch in (0, 1):
                    word = KINDS[graphs.kind[row, step, column, branch]]
                    told = searches.retell(row, step, value=word)
                    if branch != graphs.branch[row, column]:
                        assert told is None  # it leads to neither of the words asked about
                        continue
                    down = [KINDS[kind] for kind in graphs.kind[row, step:, column, branch]]
                    assert told is not None
                    assert told[step:].tolist() == down
                    assert searches.answer_of(row, told) == ends[column]
                    assert (told == searches.result[row]).all() == (column == asked)
        assert searches.retell(row, DEPTH - 1, value=KINDS[0]) is None  # no step comes after
        assert searches.retell(row, 0, value="nothing") is None
    edges = set(str(open_lake(lake)["small-graph/graph"]["edges"].values[0]).split())
    assert all(f"{a}>{b}" in edges for a, b in pairwise(searches.result[0].tolist()))


def test_a_word_written_into_a_thought_moves_the_answer(lake: Path) -> None:
    target = open_target(open_lake(lake), "small-graph/graph")
    found = edit(target, EditSettings(positions=("ct0", "ct1"), doses=(1.0, 2.0)))
    assert "regression" in found.attrs["passed_over"]
    for place, step in (("ct0", 0), ("ct1", 1)):
        at = {"changed": place, "step": step, "also": ""}
        assert figure(found, "hit_share", method="means", dose=2.0, **at) > 0.95
        assert figure(found, "hit_share", method="donor", dose=1.0, **at) > 0.85
        assert figure(found, "hit_share", method="means", control="noise of the same norm", dose=1.0, **at) < 0.3
        for control in ("self (forward)", "self (stored)"):
            assert figure(found, "kept_share", method="", control=control, dose=1.0, **at) == 1
    wanted, hit = found["wanted_answer"].values, found["hit"].values
    assert set(np.unique(wanted.astype(str))) <= {"", *KINDS}
    np.testing.assert_array_equal(hit, (found["predicted_answer"].values == wanted) & (wanted != ""))
    # ct1 carries the second step, not the first.
    other = edit(target, EditSettings(positions=("ct1",), step=0, doses=(1.0,), methods=("means",)))
    assert figure(other, "hit_share", method="means", dose=1.0, changed="ct1", step=0, also="") < 0.05
    with pytest.raises(UsageError, match="a regression is of numbers"):
        edit(target, EditSettings(methods=("regression",)))
    with pytest.raises(UsageError, match="'7' is not a value of step 0"):
        edit(target, EditSettings(to="7"))


def test_the_means_of_words_span_what_carries_them(lake: Path) -> None:
    target = open_target(open_lake(lake), "small-graph/graph")
    settings = SubspaceSettings(subspaces=("means", "das"), ranks=(11,), positions=("ct0",), das_steps=20, draws=1)
    found = subspaces(target, settings)
    at = {"changed": "ct0", "rank": 11, "change": "exchange"}
    assert figure(found, "hit_share", subspace="means", **at) > 0.8
    assert figure(found, "hit_share", subspace="das", **at) > 0.5
    assert figure(found, "hit_share", subspace="random #1", control="random subspace", **at) < 0.3
