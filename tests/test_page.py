"""What sections are written with: texts with values, captions, tables and what they leave out; errors name the text."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analyze.contents import labels_of
from analyze.context import without_folders
from analyze.curves import curve
from analyze.drawing import INK, Look, Percent
from analyze.effects.conditions import single_positions
from analyze.heads.types_section import counted
from analyze.page import Page, Section, Sentence
from analyze.report import sections as found
from analyze.report.build import _embed
from analyze.tables import rows_with, triple
from schemas import SchemaError
from schemas.flags import flags
from schemas.registry import by_kind, line


def test_no_text_of_a_question_ends_or_breaks_the_pages_data():
    data = {"question": "</script><!-- <script> & \u2028 \\"}
    assert "<" not in _embed(data)
    assert json.loads(_embed(data)) == data


TEXTS = """
[shared]
ends = [["Low", "low"], ["High", "high"]]
[one]
title = "One"
headline = "It is {size:.1f}."
caveats = ["Always.", "Only of {there}.", "Never of {missing}.", "{several}"]
[one.lines]
of = "{x:share} of {name}, {d:points}, p {p:p}, {n:+.1f}"
[one.figures]
second = "Second of {size}."
first = "First, {what}."
[one.tables.rows]
caption = "Rows."
limit = 1
columns = [["Name", "name", "text"], "ends"]
"""
CODE = """
from analyze.page import Section
def write(page):
    pass
SECTIONS = (Section(slug="one", write=write),)
"""


@pytest.fixture
def page(tmp_path, monkeypatch) -> Page:
    (tmp_path / "alone_section.py").write_text(CODE)
    (tmp_path / "texts.toml").write_text(TEXTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "alone_section", raising=False)
    (section,) = __import__("alone_section").SECTIONS
    return Page(section, None)


def test_texts_are_filled_and_those_without_values_left_out(page):
    page.set(size=-1.5, there="this", missing="", several=["a", "b"])
    assert page.headline == "It is −1.5."
    assert page.caveats == ["Always.", "Only of this.", "a", "b"]
    assert page.text("of", x=-0.25, name="k-2", d=0.031, p=0.0001, n=-2) == (
        "−25.0% of k-2, +3.1 points, p < 0.001, −2.0"
    )
    assert Sentence().format("{:share0} {:p}", 0.125, float("nan")) == "12% n/a"


def test_figures_stand_in_the_order_of_the_texts(page):
    page.set(size=2)
    page.panel("first", "a")
    page.caption("first", what="alone")
    page.panel("first", "b")
    page.caption("first", what="beside")
    page.panel("second")
    assert [one.caption for one in page.illustrations] == ["Second of 2.", "First, alone.", "First, beside."]
    assert [panel.name for one in page.illustrations for panel in one.panels] == ["second", "first_a", "first_b"]


def test_shares_are_in_percent_from_below_nothing_to_all_beside_what_was(page):
    with page.shares("first", "a", "thoughts", base=0.25) as ax:
        curve(ax, Look(label="one", colour=INK), [1, 2], [[0.5, 1.0], [0.4, 0.9], [0.6, 1.0]])
    assert (ax.get_xlabel(), ax.get_ylim()) == ("thoughts", (-0.02, 1.03))
    assert isinstance(ax.yaxis.get_major_formatter(), Percent)
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.5, 1.0], [0.25, 0.25]]
    assert [ends.tolist() for ends in ax.collections[0].get_segments()] == [[[1, 0.4], [1, 0.6]], [[2, 0.9], [2, 1.0]]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one"]


def test_rows_and_columns_of_a_map_are_called_by_their_labels():
    values = xr.DataArray(np.zeros((2, 1)), {"layer": [0, 3], "step": [1]}, ("layer", "step"))
    assert [labels_of(values, axis) for axis in (0, 1)] == [["layer 0", "layer 3"], ["step 2"]]
    assert labels_of(pd.DataFrame([[0.0]], index=["mean"], columns=pd.Index([2], name="head")), 1) == ["H2"]


def test_rows_are_taken_by_their_labels_and_numbers_with_their_ends():
    frame = pd.DataFrame({"n": [1, 2, 2], "kind": ["a", "a", "b"], "x": [0.1, 0.2, 0.3], "x_low": [0.0, 0.1, 0.2]})
    assert rows_with(frame, n=2, kind="a")["x"].tolist() == [0.2]
    assert rows_with(frame, place="here").empty
    value, low, high = triple(frame, "x")
    assert (value.tolist(), low.tolist(), high) == ([0.1, 0.2, 0.3], [0.0, 0.1, 0.2], None)


def test_a_value_grows_by_texts_and_empty_ones_add_nothing(page):
    for text in ("", "one", "", "two"):
        page.join("there", text)
    assert page.caveats == ["Always.", "Only of one; two."]


def test_a_table_shows_some_rows_of_each_run_and_keeps_all(page):
    for run in ("m", "n"):
        page.add("rows", run, pd.DataFrame({"name": ["x", "y"], "low": [1, 2], "other": 0}))
    page.add("rows", "none", [])
    (table,) = page.tables
    assert [column.label for column in table.columns] == ["Run", "Name", "Low"]  # "high" is not in the frame
    assert len(table.frame) == 4
    assert table.shown["run"].tolist() == ["m", "n"]


def test_errors_name_the_text(page, monkeypatch):
    with pytest.raises(SchemaError, match=r"section one uses 'frist' of \[one.figures\].*did you mean 'first'"):
        page.panel("frist")
    with pytest.raises(SchemaError, match="'It is {size:.1f}.' asks for 'size'; given are ends"):
        _ = page.headline
    with pytest.raises(SchemaError, match=r"section two: .*texts.toml has no table \[two\]"):
        _ = Section(slug="two", write=__import__("alone_section").write).texts


@pytest.mark.parametrize("section", found.sections(), ids=lambda section: section.slug)
def test_every_section_has_texts_and_commands_that_make_what_it_shows(section):
    assert {"title", "headline", "method", "caveats"} <= set(section.texts)
    assert section.needs
    for need in section.needs:
        kind, *options = need.split()
        command = by_kind()[kind]
        assert {word for word in options if word.startswith("--")} <= {flag.option for flag in flags(command.settings)}


def test_names_of_sections_are_told_apart(monkeypatch, page):
    module = __import__("alone_section")
    other = type(module)("elsewhere")
    other.SECTIONS = (Section(slug="one", write=lambda page: None),)
    monkeypatch.setattr(found, "section_modules", lambda: iter([module, other]))
    found.chapters.cache_clear()
    with pytest.warns(UserWarning, match="section 'one' of elsewhere is left out, as alone_section has one"):
        assert found.sections() == module.SECTIONS
    found.chapters.cache_clear()


def test_most_is_a_majority_whose_interval_says_so():
    assert counted({"flow": 18, "hub": 2}) == "most flow (18)"
    assert counted({"flow": 11, "hub": 9}) == "11 flow and 9 hub"  # of 20 heads, 55% may be a half
    assert counted({"flow": 4, "hub": 4}) == "4 flow and 4 hub"
    assert counted({"flow": 0, "hub": 3}) == "3 hub"  # three of three are too few to say so
    assert counted({"flow": 0}) == "none"


def test_percent_ticks_are_what_they_say():
    assert Percent().format_ticks([0, 0.025, 0.05, 0.075]) == ["0.0%", "2.5%", "5.0%", "7.5%"]
    assert Percent().format_ticks([0.0, 0.2, 1.0]) == ["0%", "20%", "100%"]
    assert Percent().format_ticks([0.0, 0.0125]) == ["0.00%", "1.25%"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lake x --data one=/home/me/it.json", "lake x --data one=it.json"),
        ("lake x '/home/me/my models/it' a/b 3/4 1 / 2", "lake x 'my models/it' a/b 3/4 1 / 2"),
        ('{"sae": "/srv/x/y.npz", "url": "s3://a/b"}', '{"sae": "y.npz", "url": "s3://a/b"}'),
    ],
)
def test_absolute_paths_are_shortened_to_names(text, shown):
    assert without_folders(text) == shown


def test_a_command_has_an_option_once():
    assert line("lens_comparison", "--lens jacobian") == "lake analyze lens PATH RUNS --lens jacobian"
    assert line("lens_comparison") == line("lens_comparison", "--lens jacobian")


def test_positions_are_in_the_order_of_the_sequence_however_many_thoughts_there_are():
    labels = ["eot", "ct40", "numbers", "ct3", "bot", "ct0+ct1"]
    assert single_positions(labels) == ["bot", "ct3", "ct40", "eot"]
