"""Head scores: closed forms, the published figures, an oracle written by hand, laziness, messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from synthetic import make_run, no_compute, thought_attention

from analyze import head_analysis, head_scores, head_summary, head_table, result_tables
from analyze.labels import take
from schemas import SchemaError, UsageError, latent_labels
from schemas.resampling import draw_counts, tail

PUBLISHED = json.loads((Path(__file__).parent / "data" / "heads" / "llama.json").read_text())
N = 6


def patterns() -> dict[str, np.ndarray]:
    """Attention among six thoughts that spends all of every row on them."""
    uniform = np.tri(N) / np.arange(1, N + 1)[:, None]
    diagonal = np.eye(N)
    hub = np.eye(N)
    hub[2:] = 0
    hub[1:, 1] = 1  # everyone after ct1 looks at ct1
    sequential = np.eye(N, k=-1)
    sequential[0, 0] = 1
    skip = np.eye(N)
    skip[5] = [1 / 3, 1 / 3, 1 / 3, 0, 0, 0]
    return {"uniform": uniform, "diagonal": diagonal, "hub": hub, "sequential": sequential, "skip": skip}


@pytest.fixture
def five_heads() -> xr.Dataset:
    return head_scores(thought_attention({(0, i): matrix for i, matrix in enumerate(patterns().values())}))


def published_attention(n_layer: int = 16, n_head: int = 32, empty: float = np.nan) -> xr.DataArray:
    heads = {}
    for name, rows in PUBLISHED["matrices"].items():
        layer, head = map(int, name[1:].split("H"))
        matrix = np.zeros((N, N))
        for step, row in enumerate(rows):
            matrix[step, : len(row)] = row
        heads[layer, head] = matrix
    return thought_attention(heads, n_layer=n_layer, n_head=n_head).fillna(empty)


def test_closed_forms(five_heads):
    harmonic = sum(1 / i for i in range(1, N + 1))
    even = [sum(1 / (i + 1) for i in range(j + 1, N)) for j in range(N)]
    expected = {
        "flow": [1 - harmonic / 6, 0, 4 / 6, 5 / 6, 1 / 6],
        "hub": [0, 0, 4 - even[1], 1 - even[4], 0],
        "skip": [1 / 6, 0, 1 / 3, 0, 1 / 3],
        "sequential": [np.mean([1 / i for i in range(2, 7)]), 0, 1 / 5, 1, 0],
        "max_attention": [1, 1, 1, 1, 1],
        "hub_ratio": [1, np.nan, 4 / even[1], 1 / even[4], np.nan],
    }
    for name in ("flow", "hub", "skip", "sequential", "max_attention"):
        np.testing.assert_allclose(five_heads[name].sel(layer=0), expected[name], atol=1e-12, err_msg=name)
    np.testing.assert_allclose(
        five_heads["hub_ratio"].sel(layer=0)[[2, 3]], [expected["hub_ratio"][2], expected["hub_ratio"][3]]
    )
    assert five_heads["hub_position"].sel(layer=0).values.tolist()[1:4] == ["", "ct1", "ct4"]
    assert five_heads["type"].sel(layer=0).values.tolist() == [
        "Forward Flow",
        "",
        "Multi-Purpose",  # skips to its hub as well
        "Forward Flow",
        "Skip Connection",
    ]


def test_hub_is_measured_against_an_even_spread_of_the_same_attention():
    spread = np.tri(N) / np.arange(1, N + 1)[:, None] * np.linspace(0.1, 0.9, N)[:, None]
    scores = head_scores(thought_attention({(0, 0): spread, (0, 1): patterns()["hub"]}))
    assert scores["hub"][0, 0] == pytest.approx(0, abs=1e-12)
    assert scores["hub_position"][0, 0] == ""
    assert scores["hub_position"][0, 1] == "ct1"


def test_constant_metric_gives_its_weight_away():
    shapes = patterns()
    same_flow = [shapes["diagonal"] * 0.5, shapes["diagonal"]]
    scores = head_scores(
        thought_attention({(0, 0): same_flow[0], (0, 1): same_flow[1], (0, 2): shapes["diagonal"] * 0.2})
    )
    assert scores.attrs["constant"] == "flow, hub, skip"
    assert (scores["composite"] == 0).all()
    hub = shapes["hub"].copy()
    hub[:, 0], hub[5] = 0, [0, 0, 0, 0, 0, 1]
    hub[0, 0] = 1
    far = np.eye(N)
    far[4] = [1, 0, 0, 0, 0, 0]
    scores = head_scores(thought_attention({(0, 0): hub, (0, 1): far, (0, 2): np.eye(N)}))
    assert scores.attrs["constant"] == "skip"
    assert float(scores["skip_weight"]) == 0
    np.testing.assert_allclose([scores["flow_weight"], scores["hub_weight"]], [0.5, 0.5])
    assert scores["composite"].max() == pytest.approx(1)


@pytest.mark.parametrize("empty", [np.nan, 0.0])
@pytest.mark.parametrize("layout", ["grid", "row", "no bot", "bot filled in"])
def test_reports_convention_gives_the_published_figures(empty, layout):
    attention = published_attention(empty=empty)
    names = {name: tuple(map(int, name[1:].split("H"))) for name in PUBLISHED["matrices"]}
    if layout in ("row", "bot filled in"):  # ten heads side by side, as if of one layer
        attention = xr.concat(
            [attention.sel(layer=layer, head=head, drop=True) for layer, head in names.values()], "head"
        )
        attention = attention.expand_dims(layer=[0])
        names = {name: (0, i) for i, name in enumerate(names)}
    if layout == "no bot":
        attention = attention.sel(position=[f"ct{i}" for i in range(5)], key_position=[f"ct{i}" for i in range(5)])
    if layout != "bot filled in":  # published matrices say nothing of what bot pays
        attention = attention.where(attention["position"] != "bot", 0.0)
    known = {"hub": 0, "skip": 0} if layout == "bot filled in" else None  # nothing else tells it from a whole model
    alone = head_scores(attention, convention="reports", model_min=known)
    scaled = head_scores(attention, convention="reports", model_max=PUBLISHED["model_max"])
    for name, (layer, head) in names.items():
        for scores in (alone, scaled):
            assert scores["type"].sel(layer=layer, head=head).item() == PUBLISHED["type"][name]
        assert scaled["composite"].sel(layer=layer, head=head).item() == pytest.approx(
            PUBLISHED["composite"][name], abs=0.01
        )
    assert alone["hub"].max() == pytest.approx(0.300, abs=0.01)  # L4H5
    figures = {"L4H5": (0.300, 0.162), "L5H30": (0.246, 0.153), "L5H28": (0.196, 0.218)}
    for name, (hub, skip) in figures.items():
        layer, head = names[name]
        assert alone["hub"].sel(layer=layer, head=head).item() == pytest.approx(hub, abs=0.01)
        assert alone["skip"].sel(layer=layer, head=head).item() == pytest.approx(skip, abs=0.01)
    present = alone["type"] != ""
    assert present.sum() == 10
    assert (alone["flow"].where(present, 1) == 1).all()
    assert (alone["hub_position"].where(present, "ct0").isin(["ct0", "ct1", "ct2", "ct3", "ct4"])).all()


def by_hand(attention: np.ndarray) -> list[list[float]]:
    """The reports' scores of (head, step or key, step or key) over bot, ct0 .. ct4, written as their formulas read."""
    rows = []
    for head in attention:
        matrix = [[0.0] * 6 for _ in range(6)]
        for step in range(6):
            for column in range(step):
                matrix[step][column] = head[step][column + 1]
        columns = [sum(matrix[s][j] for s in range(6)) for j in range(6)]
        mean = sum(columns) / 6
        rows.append([sum((c - mean) ** 2 for c in columns) / 6, sum(matrix[5][:3]) / 3, max(max(r) for r in matrix)])
    low, high = [min(r[i] for r in rows) for i in (0, 1)], [max(r[i] for r in rows) for i in (0, 1)]
    for r in rows:
        scaled = [(r[i] - low[i]) / (high[i] - low[i] + 1e-10) for i in (0, 1)]
        r.append(0.4 * scaled[0] + 0.2 * scaled[1])
    return rows


def test_reports_convention_agrees_with_an_oracle_on_a_run():
    run = make_run(n_layer=4, n_head=3)
    steps = ["bot", "ct0", "ct1", "ct2", "ct3", "ct4"]
    mean = run["attention"].mean("example").sel(position=steps, key_position=steps)
    expected = by_hand(mean.values.reshape(12, 6, 6).tolist())
    scores = head_scores(run["attention"], convention="reports")
    xr.testing.assert_identical(head_scores(run, convention="reports"), scores)
    found = np.stack([scores[name].values.ravel() for name in ("hub", "skip", "max_attention", "composite")], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert scores["band"][:, 0].values.tolist() == ["early", "middle", "late", "late"]
    table = head_table(scores)
    assert table["composite"].is_monotonic_decreasing
    assert table["rank"].tolist() == list(range(1, 13))


def test_mean_first_and_each_example():
    run = make_run()
    mean = head_scores(run["attention"].mean("example"))
    xr.testing.assert_allclose(head_scores(run["attention"]), mean)
    each = head_scores(run["attention"], per_example=True)
    one = head_scores(run["attention"].isel(example=3))
    kept = ["layer", "head"]
    xr.testing.assert_allclose(
        each.isel(example=3).reset_coords(drop=True)[list(one)], one.reset_coords(drop=True)[list(one)]
    )
    assert each["hub"].dims == ("example", *kept)


@pytest.mark.parametrize("convention", ["thoughts", "reports"])
@pytest.mark.parametrize("chunks", [{"example": 5, "layer": 1}, {"example": 4, "position": 3, "key_position": 6}, {}])
def test_stays_lazy_and_ignores_chunks(chunks, convention):
    run = make_run(twins=True)
    with no_compute():
        lazy = head_scores(run.chunk(chunks)["attention"], convention)
        analysis = head_analysis(run.chunk(chunks)["attention"], convention, n_resample=20)
    xr.testing.assert_allclose(lazy.compute(), head_scores(run["attention"], convention))
    xr.testing.assert_allclose(analysis.compute(), head_analysis(run["attention"], convention, n_resample=20))


def test_of_few_examples_a_resample_may_hold_none(recwarn):
    scores = head_analysis(make_run(n_example=5).chunk(example=1)["attention"], n_resample=400).compute()
    assert (scores["rank_low"] <= scores["rank"]).all()
    assert not recwarn.list


def test_only_the_thoughts_are_read():
    run = make_run(n_question=9)
    poisoned = run["attention"].where(run["attention"]["key_position"].str.startswith("ct"), np.nan)
    xr.testing.assert_identical(head_scores(poisoned), head_scores(run["attention"]))


def test_analysis_knows_a_stable_head_from_noise():
    shapes = patterns()
    rng = np.random.default_rng(0)
    steady = np.broadcast_to(shapes["hub"], (40, N, N))
    noisy = np.tril(rng.dirichlet(np.ones(N), (40, 2, N)))
    heads = np.concatenate([steady[:, None], noisy], axis=1)
    parts = [thought_attention({(0, h): heads[i, h] for h in range(3)}) for i in range(40)]
    attention = xr.concat(parts, "example")
    result = head_analysis(attention, n_resample=100, top=1)
    assert result["hub_agreement"][0, 0] == 1
    assert result["spread"][0, 0] == pytest.approx(0, abs=1e-6)
    assert result["spread"][0, 1] > 0.05
    assert result["top_share"][0, 0] == 1
    assert result["rank"].values.ravel()[0] == 1
    assert (result["composite_low"] <= result["composite"] + 1e-6).all()
    assert (result["composite_high"] >= result["composite"] - 1e-6).all()
    assert result["rank_high"][0, 0] == 1


@pytest.mark.parametrize("convention", ["thoughts", "reports"])
def test_summary_counts_and_hub(convention):
    run = make_run(n_layer=4, n_head=3)
    summary = head_summary(head_analysis(run["attention"], convention, n_resample=3), top=5)
    assert summary["type_count"].sum() == summary["band_count"].sum() == 5
    if convention == "reports":
        assert summary["incoming"].sel(key_position="eot") == 0
        assert summary["ratio"].values == pytest.approx(summary["incoming"].values * 6)
        assert summary["hub_position"] == "ct0"  # columns have 5, 4, 3, .. entries: early ones win mechanically
    assert set(result_tables(summary)) == {"key_position", "position", "type", "band", "all"}


def test_what_heads_do_together_has_the_interval_of_a_slow_bootstrap():
    run = make_run(n_layer=2, n_head=3)
    attention = run["attention"]
    summary = head_summary(head_analysis(attention, n_resample=40, seed=3))
    block = take(take(attention, "position", latent_labels(), ""), "key_position", latent_labels(), "")
    values = block.transpose("example", "layer", "head", "position", "key_position").values.astype("float64")
    weights = draw_counts(run["problem"].values, n_resample=40, seed=3)
    means = [np.average(values, axis=0, weights=column).mean((0, 1)) for column in weights.T]
    below = tail(len(values) ** 2 / weights.sum(0).var())
    slow = {
        "mean_sequential": [np.mean([mean[i, i - 1] for i in range(1, 6)]) for mean in means],
        "mean_skip": [mean[5, :3].mean() for mean in means],
        "sequential": [[mean[i, i - 1] for i in range(1, 6)] for mean in means],
        "incoming": [[mean[j + 1 :, j].sum() for j in range(6)] for mean in means],
    }
    for name, draws in slow.items():
        for end, level in (("low", below), ("high", 1 - below)):
            assert summary[f"{name}_{end}"].values == pytest.approx(np.quantile(draws, level, axis=0), nan_ok=True), (
                name
            )
    assert 0 <= int(summary["type_sure"]) <= 6


def test_messages():
    run = make_run()
    with pytest.raises(SchemaError, match=r"reads dims layer, head.*lacks head"):
        head_scores(run["attention"].isel(head=0, drop=True))
    with pytest.raises(SchemaError, match=r"needs ct0, .* along position; attention lacks ct3"):
        head_scores(run["attention"].sel(position=["bot", "ct0", "ct1", "ct2", "ct4", "ct5"]))
    with pytest.raises(UsageError, match="convention 'report' is not one of thoughts, reports"):
        head_scores(run["attention"], "report")
    with pytest.raises(UsageError, match="take flow, hub, skip"):
        head_scores(run["attention"], model_max={"hubs": 1})


def test_scores_that_are_no_probabilities_and_keys_without_a_thought_are_refused():
    attention = make_run()["attention"]
    head_scores(attention)
    for changed in (2 * attention, np.log(attention + 1e-9)):
        with pytest.raises(SchemaError, match="attention is no distribution"):
            head_scores(changed)
    with pytest.raises(SchemaError, match="along key_position.* lacks ct3"):
        head_scores(attention.drop_sel(key_position="ct3"))
