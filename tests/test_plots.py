"""Figures: drawn from finished results, labelled, on one scale, in the axes given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from synthetic import make_model, make_run

from analyze import (
    answer_attention,
    attention_importance,
    attention_summary,
    failure_importance,
    fit_tuned_lens,
    head_analysis,
    head_summary,
    lens_difference,
    lens_summary,
    lens_tests,
    logit_lens,
)
from analyze.attention import figures as plot_attention
from analyze.correlate import figures as plot_importance
from analyze.heads import figures as plot_heads
from analyze.lens import figures as plot_lens
from schemas import UsageError

NAMES = ("gpt2/made-up", "llama/made-up")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, xr.Dataset]]:
    """Every result of two runs of different depth, by kind and run."""
    found: dict[str, dict[str, xr.Dataset]] = {}
    for seed, name in enumerate(NAMES):
        model = make_model(seed=seed)
        run = make_run(name=name, n_example=40, n_layer=3 + seed, n_head=4, seed=seed, model=model)
        run["attention"].attrs["run"] = name
        lost = np.random.default_rng(seed).random((40, 6)) < np.linspace(0.2, 0.7, 6)
        ablated = xr.DataArray(
            ~lost, dims=("example", "position"), coords={"example": run["example"], "position": run["latent"].values}
        )
        lens = logit_lens(run, model)
        one = {
            "heads": head_analysis(run["attention"], n_resample=20),
            "summary": head_summary(run["attention"], top=8),
            "reports": head_summary(run["attention"], "reports", top=8),
            "reports_heads": head_analysis(run["attention"], "reports", n_resample=5),
            "attention": attention_summary(run["attention"], n_resample=20),
            "lens": lens_summary(lens),
            "tests": lens_tests(lens["is_number"]),
            "tuned": fit_tuned_lens(run, model),
            "importance": attention_importance(
                answer_attention(run["attention"]),
                failure_importance(run["correct"], ablated),
                n_permutation=20,
                n_resample=20,
            ),
        }
        for kind, result in one.items():
            found.setdefault(kind, {})[name] = result
    return found


@pytest.fixture(autouse=True)
def _close() -> object:
    yield
    plt.close("all")


def texts(axis: plt.Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_matrices_have_queries_on_the_rows(results):
    one = results["heads"][NAMES[0]]
    axes = plot_heads.plot_critical_heads(one, n=3)
    best = one["composite"].argmax(["layer", "head"])
    pattern = one["pattern"].isel(best)
    image = axes[0].images[0].get_array()
    assert image[4, 1] == pytest.approx(pattern.sel(position="ct4", key_position="ct1").item())
    assert np.ma.is_masked(image[1, 4]) or np.isnan(image[1, 4])  # later keys are impossible, not zero
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [f"ct{i}" for i in range(6)]
    assert f"L{int(best['layer'])}H{int(best['head'])}" in axes[0].get_title()
    assert "query" in axes[0].get_ylabel()
    assert len(plot_heads.plot_top_attention(one, n=7)) == 7
    by_reports = plot_heads.plot_critical_heads(results["reports_heads"][NAMES[0]], n=1)[0]
    assert by_reports.get_yticklabels()[0].get_text() == "bot"
    assert by_reports.get_xticklabels()[0].get_text() == "ct0"


def test_two_runs_share_one_scale(results):
    by_layer = plot_heads.plot_attention_by_layer(results["heads"])
    assert len({axis.images[0].get_clim() for axis in by_layer if axis.images}) == 1
    axes = plot_heads.plot_model_comparison(results["heads"], results["summary"])
    assert len(axes) == 7
    assert axes[2].get_ylim() == axes[3].get_ylim()
    assert axes[4].get_ylim() == axes[5].get_ylim()
    maps = plot_heads.plot_head_map(results["heads"], name="hub")
    assert len({axis.images[0].get_clim() for axis in maps}) == 1
    shares = plot_attention.plot_thought_share_lines(results["attention"])
    assert shares[0].get_ylim() == shares[1].get_ylim()
    bars = plot_importance.plot_importance_and_attention(results["importance"])
    assert bars[0].get_ylim() == bars[1].get_ylim()
    with pytest.raises(UsageError, match="comparison is of two runs"):
        plot_heads.plot_model_comparison(results["heads"][NAMES[0]], results["summary"][NAMES[0]])


def test_hubs_show_what_even_attention_would_give(results):
    axes = plot_heads.plot_hubs(results["summary"][NAMES[0]])
    even = axes[0].collections[0].get_segments()
    np.testing.assert_allclose([line[0][1] for line in even], results["summary"][NAMES[0]]["expected"])
    reports = plot_heads.plot_hubs(results["reports"])
    assert "itself" in reports[1].get_title()


def test_stacked_shares_reach_one(results):
    axes = plot_attention.plot_attention_shares(results["attention"], query="answer")
    tops = [bar.get_y() + bar.get_height() for bar in axes[0].patches]
    assert max(tops) == pytest.approx(1, abs=1e-3)
    looks = plot_attention.plot_looks(results["attention"][NAMES[0]])
    assert [t.get_text() for t in looks[0].get_yticklabels()][:2] == ["bot", "ct0"]


def test_lens_grid_says_in_percent_what_is_where(results):
    summary = results["lens"][NAMES[0]]
    axes = plot_lens.plot_lens_grid(summary)
    titles = [axis.get_title() for axis in axes]
    assert titles[:3] == ["1st intermediate result", "2nd intermediate result", "answer (last result)"]
    assert titles[3:] == ["1st operator", "2nd operator", "3rd operator"]
    place = summary["position"].values.tolist().index("ct2")
    value = summary["inner_share"].isel(layer=1, position=place, step=0).item() * 100
    assert axes[0].images[0].get_array()[1, place] == pytest.approx(value)
    assert f"{value:.0f}" in texts(axes[0])


def test_intervals_are_drawn(results):
    axis = plot_lens.plot_number_frequency(results["lens"])[0]
    assert len(axis.containers) == 4  # bars and error bars of two runs
    assert axis.get_ylabel().endswith("%")
    difference = lens_difference(*results["lens"].values())
    assert difference["low"].min() >= -1.5
    assert plot_lens.plot_number_difference(difference)[0].containers
    assert plot_importance.plot_importance(results["importance"])[0].containers


def test_every_other_figure_draws_in_the_axes_it_is_given(results):
    one = {kind: by_run[NAMES[0]] for kind, by_run in results.items()}
    drawn = [
        (plot_heads.plot_metric_distributions, (one["heads"], one["summary"]), 4),
        (plot_heads.plot_rank_stability, (results["heads"],), 2),
        (plot_attention.plot_thought_attention, (results["attention"],), 2),
        (plot_lens.plot_number_heatmap, (results["lens"],), 2),
        (plot_lens.plot_answer_by_layer, (results["lens"],), 2),
        (plot_lens.plot_lens_tests, (one["tests"],), 1),
        (plot_lens.plot_tuned_lens, (one["tuned"],), 2),
        (plot_importance.plot_importance_by_example, (one["importance"],), 1),
        (plot_importance.plot_attention_against_importance, (one["importance"],), 3),
        (plot_importance.plot_position_scatters, (one["importance"],), 6),
        (plot_importance.plot_correlations, (results["importance"],), 2),
        (plot_importance.plot_position_correlations, (results["importance"],), 2),
        (plot_importance.plot_correlation_bars, (one["importance"],), 1),
    ]
    for function, arguments, n in drawn:
        _, grid = plt.subplots(1, n)
        before = plt.get_fignums()
        axes = function(*arguments, ax=grid)
        assert plt.get_fignums() == before, function.__name__
        assert axes == list(np.ravel(grid)), function.__name__
        assert all(axis.has_data() for axis in axes), function.__name__
        assert any(axis.get_title() or axis.get_xlabel() for axis in axes), function.__name__
    with pytest.raises(UsageError, match="ax holds 1 axes"):
        plot_heads.plot_hubs(one["summary"], ax=plt.subplot())
