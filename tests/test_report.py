import json
import os
import re
import shutil
from pathlib import Path

import pytest
from accessibility import violations
from markupsafe import escape
from report_lake import MODELS

from analyze import drawing
from analyze.report import build_report, svg
from analyze.report.sections import chapters, sections
from schemas import UsageError
from schemas.registry import by_kind, foreign
from store import open_lake


@pytest.fixture(scope="module")
def lake(report_lake):
    return open_lake(report_lake)


@pytest.fixture(scope="module")
def report(lake, tmp_path_factory):
    return build_report(lake.location, tmp_path_factory.mktemp("page") / "out", n_problem=6)


@pytest.fixture(scope="module")
def html(report):
    return report.page.read_text(encoding="utf-8")


def embedded(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL).group(1))


def test_page_stands_alone(report, html):
    assert report.page_bytes < 15e6
    assert not report.broken
    body = re.sub(r'<script type="application/json".*?</script>', "", html, flags=re.DOTALL)
    body = re.sub(r'<a href="https://[^"]+">', "", body)  # a source that is cited is not loaded
    links = re.findall(r'(?:src|href)="([^"#]+)"', body)
    assert links
    assert not [x for x in links if x.startswith(("http", "//"))]
    for link in links:
        assert link.startswith("data:") or (report.page.parent / link).is_file(), link
    assert "url(http" not in html
    assert "@import" not in html


def test_every_experiment_is_found_by_its_name(report, html):
    for section in sections():
        assert f'id="{section.slug}"' in html
        assert escape(section.texts["title"]) in html
    assert {section.texts["report"] for section in sections()} >= {"000", "001", "002", "003", "004"}
    assert "linear-probes" in report.missing
    assert "lake analyze probes" in html  # what is not in the lake says how to get it
    assert {"number-decoding", "token-ablation", "several-patching", "twins", "critical-heads"} <= set(report.sections)


def test_figures_and_tables_lie_beside_it(report):
    folder = report.page.parent
    for kind in ("png", "svg"):
        assert len(list((folder / "figures").glob(f"*.{kind}"))) == report.n_figure
    tables = {path.stem for path in (folder / "tables").glob("*.csv")}
    assert len(tables) == report.n_table
    assert {"number_decoding", "token_ablation", "differences", "twins"} <= tables


def test_every_section_names_a_fingerprint_of_the_lake(lake, html):
    marks = {result.fingerprint[:12] for result in lake.results()}
    marks |= {lake.attributes(run)["fingerprint"][:12] for run in lake}
    named = set(re.findall(r"lake info \S+ ([0-9a-f]{12})", html))
    assert named
    assert named <= marks
    for run in lake.runs():
        assert lake.attributes(run)["fingerprint"][:12] in html


def test_headlines_are_computed(lake, html):
    right = lake["small-gpt2/test"]["correct"].values.mean()
    assert f"{100 * right:.1f}%" in html
    hub = lake.result("compare")["hub_position"].sel(model="small-gpt2/test").item()
    assert re.search(rf"small-gpt2</b>\s*{hub}, [\d.]+ \[[\d.]+, [\d.]+\] times an even spread", html)


def test_problems_on_the_page_are_those_of_the_lake(lake, html):
    data = embedded(html)
    assert [run["name"] for run in data["runs"]][: len(MODELS)] == [f"{model}/test" for model in MODELS]
    run = lake["small-gpt2/test"]
    problems = data["runs"][0]["problems"]
    assert len(problems["items"]) == 6
    ids = [[item["id"] for item in one["problems"]["items"]] for one in data["runs"][:2]]
    assert ids[0] == ids[1]  # the same problems of both models
    for item in problems["items"]:
        row = run.sel(example=item["id"])
        assert item["question"] == row["question"].item()
        assert item["correct"] == bool(row["correct"].item())
        last = item["lens"][-1][item["places"].index("ct0")][0]
        first_result = item["chain"][0].split("=")[1].strip()
        assert problems["strings"][last[0]].strip() == first_result  # small-gpt2's ct0 reads as the first result
        assert item["outcomes"]
    assert all(
        "".join(item["tokens"]).replace(" ", "") == item["question"].replace(" ", "") for item in problems["items"]
    )


def test_a_package_of_others_brings_its_section(lake, tmp_path, monkeypatch):
    package = tmp_path / "elsewhere" / "counting"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    # the section that docs/extending.md shows
    shown = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    code, texts = re.search(r"```python\n([^`]*SECTIONS = [^`]*)```\n\n```toml\n([^`]*)```", shown).groups()
    (package / "section.py").write_text(code)
    (package / "texts.toml").write_text(texts)
    metadata = tmp_path / "elsewhere-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    points = "[activation_lake.analyses]\ncounting = elsewhere.counting\nlost = elsewhere.lost\n"
    (metadata / "entry_points.txt").write_text(points)
    lens_alone = shutil.copytree(lake.folder, tmp_path / "toy.lake")  # what that section reads
    for kind in (lens_alone / "results").iterdir():
        if kind.is_dir() and kind.name != "lens":
            shutil.rmtree(kind)
    by_kind()  # commands are found, and kept, before the other package is there
    monkeypatch.syspath_prepend(tmp_path)
    chapters.cache_clear()
    foreign.cache_clear()
    try:
        with pytest.warns(UserWarning, match="lost has no section on the page: importing elsewhere.lost"):
            assert "numbers-read" in [section.slug for section in chapters()[-1].sections]
        page = build_report(lens_alone, tmp_path / "out", n_problem=0).page.read_text(encoding="utf-8")
    finally:
        chapters.cache_clear()
        foreign.cache_clear()
    assert "Further questions" in page
    assert re.search(r"small-gpt2</b> ct0, in 100.0% of the problems", page)
    assert "need not be what the model uses." in page
    assert "Left out:" not in page  # a caveat whose values are not there


def test_a_lake_without_results_still_gives_a_page(report_lake, tmp_path):
    place = tmp_path / os.fsdecode(b"caf\xe9.lake")  # a name that is no UTF-8
    lake = open_lake(shutil.copytree(report_lake, place, ignore=shutil.ignore_patterns("results")))
    report = build_report(lake.location, tmp_path / "out", n_problem=2)
    assert not report.sections
    assert not report.broken
    assert "caf\\udce9.lake" in report.page.read_text(encoding="utf-8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<h1>Mine</h1>")
    with pytest.raises(UsageError, match="index.html is there and is no page of lake report"):
        build_report(report_lake, tmp_path / "mine")
    with pytest.raises(UsageError, match="is a file"):
        build_report(lake.location, report.page)


def test_inline_drawings_follow_the_theme_and_keep_their_numbers():
    figure, ax = drawing.figure(3, 2)
    ax.plot([0, 1], [0.12345, 0.5], color=drawing.PALETTE[0])
    ax.set_yticks([0.12345], ["0.12345"])
    vector, raster = svg.draw(figure, "one")
    inline = svg.inline(vector, "name", "a line")
    assert raster.startswith(b"\x89PNG")
    assert "0.12345" in inline
    assert "var(--series-0)" in inline
    assert drawing.PALETTE[0] not in inline
    assert not re.search(r"<(image|style|script)[^>]*http", inline)
    used = set(re.findall(r"url\(#([^)]+)\)", inline)) | set(re.findall(r'href="#([^"]+)"', inline))
    assert used <= set(re.findall(r'id="([^"]+)"', inline))


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_choosing_a_problem_and_a_head_changes_the_view(browser, report, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto(report.page.as_uri())

    def changes(act, *, of):
        before = page.locator(of).inner_html()
        act()
        page.wait_for_function("([of, before]) => document.querySelector(of).innerHTML !== before", arg=[of, before])

    changes(lambda: page.select_option("#problem", index=1), of="#question")
    changes(lambda: page.select_option("#problem-run", label="small-gpt2-decodable/test"), of="#problem-explorer")
    changes(lambda: page.select_option("#query", "ct1"), of="#attention")
    changes(lambda: page.locator("#lens button").first.click(), of="#lens-detail")
    changes(lambda: page.select_option("#head", index=1), of="#head-map")
    changes(lambda: page.select_option("#head-run", label="small-gpt2-decodable/test"), of="#head-map")
    assert page.locator("#outcomes tbody tr").count() > 0
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) != before
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []
    assert said == []
    page.close()
