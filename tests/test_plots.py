"""Figures: drawn from finished results, labelled, on one scale, in the axes given."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from synthetic import make_model, make_run, write_run

from analyze import (
    attention_summary,
    drawing,
    head_analysis,
    head_summary,
    lens_summary,
    logit_lens,
    plot_head,
    plot_values,
)
from analyze.attention import figures as plot_attention
from analyze.heads import figures as plot_heads
from analyze.lens import figures as plot_lens
from analyze.report import svg
from analyze.report.svg import NARROW, narrow_legend
from schemas import SchemaError, UsageError
from store import open_lake

NAMES = ("gpt2/made-up", "llama/made-up")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, xr.Dataset]]:
    """Every result of two runs of different depth, by kind and run."""
    results: dict[str, dict[str, xr.Dataset]] = {}
    for seed, name in enumerate(NAMES):
        model = make_model(seed=seed)
        run = make_run(name=name, n_example=40, n_layer=3 + seed, n_head=4, seed=seed, model=model)
        run["attention"].attrs["run"] = name
        one = {
            "heads": head_analysis(run["attention"], n_resample=20),
            "summary": head_summary(head_analysis(run["attention"], n_resample=5), top=8),
            "reports": head_summary(head_analysis(run["attention"], "reports", n_resample=5), top=8),
            "reports_heads": head_analysis(run["attention"], "reports", n_resample=5),
            "attention": attention_summary(run["attention"], n_resample=20),
            "lens": lens_summary(logit_lens(run, model)),
        }
        for kind, result in one.items():
            results.setdefault(kind, {})[name] = result
    return results


@pytest.fixture(autouse=True)
def _close() -> object:
    yield
    plt.close("all")


def texts(axis: plt.Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def strength(axis: plt.Axes) -> list[float]:
    """Opacity of each cell of a map."""
    return [patch.get_facecolor()[3] for patch in axis.patches]


def test_a_map_is_as_strong_as_its_values_and_names_its_cells():
    _, ax = plt.subplots()
    drawing.heat_map(ax, [[0.0, 0.5, np.nan], [1.0, -1.0, 2.0]], ["a", "b"], ["x", "y", "z"])
    assert texts(ax) == ["0.00", "0.50", "·", "1.00", "-1.00", "2.00"]
    np.testing.assert_allclose(strength(ax), [0.04, 0.5, 0.96, 0.96, 0.96])
    hues = {patch.get_facecolor()[:3] for patch in ax.patches}
    assert len(hues) == 2  # negative values have a hue of their own
    assert ax.get_ylim() == (2, 0)  # the first row is at the top


def test_bars_stand_side_by_side_with_their_intervals():
    _, ax = plt.subplots()
    one, twin = drawing.looks(["m/d", "m-decodable/d"]).values()
    drawing.bars(ax, ["p", "q"], [(one, [0.2, np.nan], [0.1, np.nan], [0.4, np.nan]), (twin, [0.6, 0.7], None, None)])
    assert [patch.get_height() for patch in ax.patches] == [0.2, 0, 0.6, 0.7]
    assert [line.tolist()[0][1] for line in ax.collections[0].get_segments()] == [0.1]
    assert one.colour == twin.colour
    assert (one.control, twin.control) == ("", "decodable")


def test_matrices_have_queries_on_the_rows(results):
    one = results["heads"][NAMES[0]]
    axes = plot_heads.plot_critical_heads(one, n=3)
    best = one["composite"].argmax(["layer", "head"])
    pattern = one["pattern"].isel(best).transpose("position", "key_position").values
    lower = pattern[np.tril_indices(6)]  # later keys are impossible, not zero: their cells are empty
    np.testing.assert_allclose([float(text) for text in texts(axes[0])], lower, atol=0.005)
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [f"ct{i}" for i in range(6)]
    assert f"L{int(best['layer'])}H{int(best['head'])}" in axes[0].get_title()
    assert "query" in axes[0].get_ylabel()
    by_reports = plot_heads.plot_critical_heads(results["reports_heads"][NAMES[0]], n=1)[0]
    assert by_reports.get_yticklabels()[0].get_text() == "bot"
    assert by_reports.get_xticklabels()[0].get_text() == "ct0"


def test_two_runs_share_one_scale(results):
    maps = plot_heads.plot_head_map(results["heads"], name="hub")
    most = max(float(result["hub"].max()) for result in results["heads"].values())
    for axis, result in zip(maps, results["heads"].values(), strict=True):
        hub = result["hub"].transpose("layer", "head").values.ravel()
        np.testing.assert_allclose(strength(axis), 0.04 + 0.92 * hub / most)
    axes = plot_attention.plot_thought_attention(results["attention"])
    assert max(max(strength(axis)) for axis in axes) == pytest.approx(0.96)
    with pytest.raises(SchemaError, match="no query 'eott'.*did you mean 'eot'"):
        plot_attention.plot_thought_attention(results["attention"], query="eott")


def test_hubs_show_what_even_attention_would_give(results):
    axes = plot_heads.plot_hubs(results["summary"][NAMES[0]])
    even = axes[0].collections[0].get_segments()
    np.testing.assert_allclose([line[0][1] for line in even], results["summary"][NAMES[0]]["expected"])
    reports = plot_heads.plot_hubs(results["reports"])
    assert "itself" in reports[1].get_title()
    with pytest.raises(UsageError, match="ax holds 1 axes"):
        plot_heads.plot_hubs(results["summary"], ax=plt.subplot())


def test_stacked_shares_reach_one(results):
    _, grid = plt.subplots(1, 2)
    axes = plot_attention.plot_attention_shares(results["attention"], query="answer", ax=grid)
    assert axes == list(grid)
    tops = [bar.get_y() + bar.get_height() for bar in axes[0].patches]
    assert max(tops) == pytest.approx(1, abs=1e-3)


def test_lens_grid_says_in_percent_what_is_where(results):
    summary = results["lens"][NAMES[0]]
    axes = plot_lens.plot_lens_grid(summary)
    titles = [axis.get_title() for axis in axes]
    assert titles[:3] == ["1st intermediate result", "2nd intermediate result", "answer (last result)"]
    assert titles[3:] == ["1st operator", "2nd operator", "3rd operator"]
    values = summary["inner_share"].isel(step=0).sel(position=plot_lens.shown_positions(summary))
    expected = [f"{100 * value:.0f}" for value in values.transpose("layer", "position").values.ravel()]
    assert texts(axes[0]) == [text if text != "nan" else "·" for text in expected]


def test_intervals_are_drawn(results):
    axis = plot_lens.plot_number_frequency(results["lens"])[0]
    assert len(axis.containers) == len(axis.collections) == 2  # bars and intervals of two runs
    assert axis.get_ylabel().endswith("%")


def test_legends_of_many_long_names_fit_a_phone():
    figure, ax = drawing.figure(width=9.2, height=2.9)
    looks = [drawing.Look(label=f"small-llama-decodable {number}", colour="#000000") for number in range(5)]
    drawing.bars(ax, ["ct0"], [(look, [1.0], None, None) for look in looks])
    drawing.legend_above(ax, 4)
    assert narrow_legend(ax) == 5
    figure.set_size_inches(NARROW, 3.7)
    figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("low", [0.1, 0.1237])  # at the second the top of the axes is a rounding below 1
def test_a_legend_above_stays_above_on_a_phone(low):
    figure, ax = drawing.figure(width=9.2, height=2.9)
    figure.set_layout_engine("none")
    ax.set_position((0.1, low, 0.85, 0.6))
    drawing.bars(ax, ["ct0"], [(drawing.Look(label="one", colour="#000000"), [1.0], None, None)])
    drawing.legend_above(ax, 4)
    ax.set_title("small-gpt2-decodable minus small-llama-decodable", loc="left")
    svg.draw_narrow(figure, "one")
    figure.set_size_inches(NARROW, 3)
    figure.draw_without_rendering()
    title = ax.title if ax.get_title() else ax._right_title
    assert title.get_window_extent().x1 <= figure.bbox.x1
    assert ax.get_legend().get_window_extent().y0 > ax.bbox.y1 - 1


def test_labels_that_are_text_are_drawn(tmp_path):
    model = make_model(seed=0)
    write_run(tmp_path / "a.lake", make_run(n_example=6, n_layer=2, n_head=3, model=model, name=NAMES[0]), model)
    run = open_lake(tmp_path / "a.lake")[NAMES[0]]
    pattern = run["attention"].sel(layer=1, head=2).mean("example")
    (axis,) = plot_values(pattern)
    np.testing.assert_array_equal(axis.images[0].get_array(), pattern.values)
    assert [tick.get_text() for tick in axis.get_yticklabels()] == list(pattern["position"].values)
    assert axis.get_xlabel() == "key_position"
    (axis,) = plot_values(run["hidden_state"].isel(layer=0, hidden=0, drop=True).mean("example"))
    np.testing.assert_array_equal(
        axis.lines[0].get_ydata(), run["hidden_state"].isel(layer=0, hidden=0).mean("example").values
    )
    assert [tick.get_text() for tick in axis.get_xticklabels()] == list(run["position"].values)
    with pytest.raises(UsageError, match="attention has dims example, layer, head, position, key_position; a picture"):
        plot_values(run["attention"])


def test_one_head_is_one_line(tmp_path):
    model = make_model(seed=0)
    write_run(tmp_path / "a.lake", make_run(n_example=6, n_layer=2, n_head=3, model=model, name=NAMES[0]), model)
    run = open_lake(tmp_path / "a.lake")[NAMES[0]]
    for example in (None, 4):
        (axis,) = plot_head(run, "L1H2", example=example)
        pattern = run["attention"].isel(layer=1, head=2).load()
        pattern = pattern.mean("example") if example is None else pattern.isel(example=example)
        row = pattern.sel(position="ct5", key_position=["bot", *(f"ct{k}" for k in range(6))]).values
        question = 1 - row.sum()
        shown = [text.get_text() for text in axis.texts if 7 < text.get_position()[1] + 0.5 < 8][:8]
        np.testing.assert_allclose([float(text) for text in shown], [question, *row], atol=0.0051)
    with pytest.raises(UsageError, match=r"no head 'L2H2'; there are L0H0 to L1H2; did you mean 'L.H2'"):
        plot_head(run, "L2H2")
    with pytest.raises(UsageError, match="0 to 5"):
        plot_head(run, "L0H0", example=6)
    with pytest.raises(KeyError, match=r"position 'ct9' is not there; there are .*; did you mean 'ct\d'\?"):
        run.sel(position="ct9")
    with pytest.raises(KeyError, match="layer 7 is not there; there are 0, 1"):
        run["hidden_state"].sel(layer=[0, 7])


@pytest.mark.parametrize("theme", [0, 1])
def test_numbers_on_a_heat_can_be_read_in_both_themes(theme: int) -> None:
    style = (Path(svg.__file__).parent / "style.css").read_text(encoding="utf-8")
    shown = {
        name: to_rgb(re.findall(rf"--{name}: (#\w{{6}})", style)[theme])
        for name in ("paper", "heat", "heat-negative", "on-heat")
    }
    _, ax = drawing.figure(8, 30)
    values = np.linspace(-1, 1, 401)[:, None]
    drawing.heat_map(ax, values, range(401), [""])

    def light(colour: np.ndarray) -> float:
        linear = np.where(colour <= 0.03928, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05

    for value, cell, text in zip(values[:, 0], ax.patches or ax.artists, ax.texts, strict=True):
        strength = cell.get_facecolor()[3]
        hue = shown["heat-negative" if value < 0 else "heat"]
        ground = strength * np.array(hue) + (1 - strength) * np.array(shown["paper"])
        written = np.array(shown.get(svg.THEMED.get(text.get_color(), "--")[2:]) or to_rgb(text.get_color()))
        pair = sorted([light(ground), light(written)])
        assert pair[1] / pair[0] > 4.5, (value, text.get_color())
