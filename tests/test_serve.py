"""``lake serve``: the whole lake in a page, what it refuses, many at once, and that it writes nothing."""

import errno
import json
import logging
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from accessibility import violations
from called import run_lake
from synthetic import make_model, make_run, write_run

from analyze.context import Context
from analyze.report import build_report, explore
from analyze.serve import answers as asked
from analyze.serve import reports
from analyze.serve.answers import Answers
from schemas import CorruptLakeError, MissingRunError, RemovedError
from store import open_lake
from store.removal import remove, select_removable

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
from served import FEW, RUN, N, Served, make_lake  # noqa: E402


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lake(tmp_path_factory.mktemp("serve") / "large.lake")


@pytest.fixture(scope="module")
def served(lake: Path) -> Iterator[Served]:
    server = Served(lake)
    yield server
    server.stop()


def files_of(lake: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in lake.rglob("*")}


def test_answers_are_what_the_lake_holds_and_nothing_is_written(lake: Path, served: Served) -> None:
    before = files_of(lake)
    runs = {run["name"]: run for run in served.get("runs")["runs"]}
    assert (runs[RUN]["n"], runs[RUN]["heads"], runs[RUN]["features"]) == (N, True, True)
    assert (runs[FEW]["n"], runs[FEW]["heads"], runs[FEW]["features"]) == (12, False, False)
    data = open_lake(lake)[RUN]
    listing = served.get("listing", run=RUN, start=0)
    assert [item["id"] for item in listing["items"]] == list(range(N))
    assert [item["correct"] for item in listing["items"]] == data["correct"].values.tolist()
    assert served.get("listing", run=RUN, start=1990)["items"] == listing["items"][1990:]

    seen = served.get("problem", run=RUN, example=1777)
    (item,) = seen["items"]
    row = data.sel(example=1777)
    assert item["question"] == "question 1777"
    assert seen["conditions"][item["outcomes"][0][0]][:2] == ["One thought corrupted", "zero, ct1"]
    assert item["outcomes"][0][1] == float(row["predicted_answer"]) + 1
    packed = served.get("attention", run=RUN, example=1777, layer=2, head=1)["weights"]
    weights = np.frombuffer(__import__("base64").b64decode(packed), "uint8").reshape(len(item["places"]), -1)
    wanted = row["attention"].sel(layer=2, head=1, position=item["places"], key_position=item["keys"]).values
    np.testing.assert_allclose((weights / 255) ** 2, wanted, atol=0.005)

    (condition,) = served.get("conditions", run=RUN)
    outcomes = served.get("outcomes", run=RUN, condition=condition[2])
    assert [row[0] for row in outcomes] == list(range(N))
    assert [row[1] == item["predicted"] for row, item in zip(outcomes, listing["items"], strict=True)] == [
        number % 2 == 0 for number in range(N)
    ]
    assert served.get("heads", run=RUN)["ranked"][0]["rank"] == 1
    assert served.get("heads", run=FEW) is None
    (features,) = served.get("features", run=RUN)
    page = served.get("feature", run=RUN, dictionary=features["mark"], feature=features["features"][0][0])
    assert page["top"][0]["question"] == f"question {page['top'][0]['id']}"
    assert page["top"][0]["activation"] == pytest.approx(page["max"])
    for result in served.get("runs")["results"]:
        assert served.get("result", mark=result["mark"])["tables"]
    assert files_of(lake) == before


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/problem?run=made-up/problem&example=1", 404),
        (f"/api/problem?run={RUN}&example=2000", 404),
        (f"/api/problem?run={RUN}&example=-1", 404),
        (f"/api/problem?run={RUN}&example=1e3", 400),
        (f"/api/problem?run={RUN}&example=1&example2=2", 400),
        (f"/api/problem?run={RUN}", 400),
        (f"/api/problem?example={'9' * 5000}&run={RUN}", 400),
        (f"/api/attention?run={RUN}&example=1&layer=9&head=0", 404),
        (f"/api/feature?run={RUN}&dictionary=&feature=0", 404),
        (f"/api/outcomes?run={RUN}&condition=x.%00", 404),
        ("/api/result?mark=", 404),
        ("/api/nothing", 404),
        ("/etc/passwd", 404),
        ("/../../etc/passwd", 404),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
        ("/api/..%2f..%2fetc%2fpasswd", 404),
        ("//etc/passwd", 404),
        ("/api/problem?run=../../etc&example=1", 404),
        ("/api/problem?run=%2e%2e%2fother.lake%2fm%2fd&example=1", 404),
        ("/api/problem?run=/etc/passwd&example=1", 404),
        ("/api/listing?run=results/corrupt&start=0", 404),
        ("/zarr.json", 404),
    ],
)
def test_what_is_not_there_is_said_to_be_so(served: Served, path: str, status: int) -> None:
    got, headers, content = served.ask(path)
    assert got == status, content
    assert b"root:" not in content
    assert b"Traceback" not in content
    if path.startswith("/api/problem"):
        assert json.loads(content)["error"]


def test_other_names_sites_and_methods_are_refused(served: Served) -> None:
    here = f"127.0.0.1:{served.port}"
    for name in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "[", "127.0.0.1@evil.example"):
        assert served.ask("/api/runs", host=name)[0] in (400, 421), name
    for name in (here, "localhost", "LOCALHOST:99", "[::1]:80", "127.0.0.1"):
        assert served.ask("/api/runs", host=name)[0] == 200, name
    for origin in ("http://evil.example", "null", "http://[::1", f"http://localhost:{served.port + 1}"):
        status, headers, _ = served.ask("/api/runs", origin=origin)
        assert status == 403
        assert headers["access-control-allow-origin"] is None
    assert served.ask("/api/runs", origin=f"http://{here}")[0] == 200
    for site in ("cross-site", "same-site"):
        assert served.ask("/api/runs", sec_fetch_site=site)[0] == 403
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert served.ask("/api/runs", method)[0] == 405, method
    status, headers, content = served.ask("/", "HEAD")
    assert (status, content) == (200, b"")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_what_is_no_http_leaves_no_traceback(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
        client.sendall(f"{head}no chunk\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 400"
        while client.recv(1000):
            pass
    assert served.ask("/")[0] == 200  # and by now the broken one is done
    logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_token_is_asked_of_everybody(lake: Path) -> None:
    server = Served(lake, token="a word")
    try:
        for path in ("/", "/api/runs", "/?token=another", "/api/runs?token=a%20word", "/nothing"):
            assert server.ask(path, host="somewhere:80")[0] == 401, path
        status, headers, _ = server.ask(f"/?token={quote('a word')}", host="somewhere")
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert server.ask("/", host="somewhere", cookie=cookie.partition(";")[0])[0] == 200
        assert server.ask("/api/runs", authorization="Bearer a word")[0] == 200
        assert server.ask("/api/runs", authorization="Bearer a wor")[0] == 401
    finally:
        server.stop()


def test_fifty_at_once(served: Served) -> None:
    paths = [f"/api/problem?run={RUN}&example={100 + number % 10}" for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(served.ask, paths))
    assert {status for status, _, _ in answers} == {200}
    assert len({content for _, _, content in answers}) == 10
    assert json.loads(answers[7][2])["items"][0]["question"] == "question 107"


def test_a_lake_that_is_being_written_shows_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "FRESH_SECONDS", 0.1)
    place, model = tmp_path / "growing.lake", make_model()
    whole = make_run(name=RUN, n_example=24, model=model)
    write_run(place, whole, model, shard_examples=8, shards=[0])
    answers = Answers(place)
    assert json.loads(answers.listing(RUN))["total"] == 8
    stop = threading.Event()

    def readers() -> list[int]:
        totals = []
        while not stop.wait(0.02):
            totals.append(json.loads(answers.listing(RUN))["total"])
        return totals

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(readers) for _ in range(4)]
        for shard in (2, 1):
            write_run(place, whole, model, shard_examples=8, shards=[shard])
            time.sleep(0.3)
        write_run(place, make_run(name=FEW, model=model), model)
        time.sleep(0.3)
        stop.set()
        for each in reading:
            assert each.result() == sorted(each.result())
            assert each.result()[-1] == 24
    assert [run["name"] for run in json.loads(answers.runs())["runs"]] == [FEW, RUN]


def test_what_is_removed_under_the_page_is_missing_not_damaged(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "FRESH_SECONDS", 1e6)
    place = Path(shutil.copytree(lake, tmp_path / "own.lake"))
    answers, opened = Answers(place), open_lake(place)
    (stored,) = opened.results("corrupt")
    result, mark = opened.open_result(stored.name), stored.fingerprint[:12]
    answers.runs()
    remove(place, select_removable(opened, [stored.name]))
    with pytest.raises(MissingRunError, match="no result"):
        answers.result(mark)
    opened.write_result("corrupt", result, runs=[RUN], spec={}, command=stored.command)
    answers._looked = -1e6
    assert json.loads(answers.result(mark))["name"] == stored.name
    remove(place, select_removable(opened, [FEW]))
    write_run(place, make_run(name=FEW, seed=4), make_model())
    assert answers.problem(FEW, 0) == Answers(place).problem(FEW, 0)
    remove(place, select_removable(opened, [FEW]))
    with pytest.raises(MissingRunError, match="no run"):
        answers.listing(FEW)
    next((place / stored.name / "accuracy").rglob("c/*")).write_bytes(b"damaged")
    with pytest.raises(CorruptLakeError):
        answers.result(mark)
    opened.write_result("corrupt", result, runs=[RUN], spec={}, command=stored.command)
    page, state = Context(opened, [RUN]), answers.state()
    assert json.loads(answers.problem(RUN, 3))["conditions"]
    remove(place, select_removable(opened, [RUN]))
    write_run(place, make_run(name=RUN, n_answer=1, seed=5), make_model())
    assert json.loads(answers.problem(RUN, 5))["conditions"] == []
    assert answers.problem(RUN, 5) == Answers(place).problem(RUN, 5)
    assert answers.state() != state
    with pytest.raises(RemovedError, match="made anew since it was opened"):
        page.rows(RUN)


def test_links_out_of_the_lake_are_not_followed_and_damage_costs_one_run(lake: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(lake, tmp_path / "own.lake"))
    elsewhere = tmp_path / "elsewhere"
    (place / FEW).rename(elsewhere)
    (place / FEW).symlink_to(elsewhere)
    served = json.loads(Answers(place).runs())
    assert [run["name"] for run in served["runs"]] == [RUN]
    assert "outside the lake" in served["broken"][FEW]
    document = place / RUN / "zarr.json"
    document.write_text(document.read_text().replace("fingerprint", "fingerprlnt"))
    (place / FEW).unlink()
    elsewhere.rename(place / FEW)
    served = json.loads(Answers(place).runs())
    assert [run["name"] for run in served["runs"]] == [FEW]
    assert "does not agree" in served["broken"][RUN]


def test_without_the_extra_and_with_a_port_that_is_taken_there_is_one_line(
    lake: Path, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        assert run_lake("serve", *words) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "--port 0 takes a port that is free" in said(str(lake), "--port", str(served.port))
    assert "there is no lake at" in said(f"{lake}x")
    for token in ("", "a&b", "ü"):  # of a variable that is not set, and what an address would cut off
        assert "--token is empty or has other signs" in said(str(lake), "--token", token)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert said(str(lake)) == (
        "lake: lake serve needs uvicorn, which is not installed; pip install 'activation-lake[serve]'"
    )


def test_open_shows_the_report_of_a_lake_and_makes_it_where_it_is_old(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or True)
    place = tmp_path / "small.lake"
    write_run(place, make_run(name=FEW), make_model())
    page = tmp_path / "small-report" / "index.html"
    made = []
    for _ in range(2):
        assert run_lake("open", place, "--json") == 0
        made.append(json.loads(capsys.readouterr().out)["made"])
    assert made == [True, False]
    before, page_data = page.read_bytes(), explore.page_data

    write_text = Path.write_text

    def half(path: Path, text: str, **named: Any) -> None:
        write_text(path, text[: len(text) // 2] if path.suffix == ".html" else text, **named)
        if path.suffix == ".html":
            raise OSError(errno.ENOSPC, "No space left on device")

    def meanwhile(*given: Any, **named: Any) -> Any:
        write_run(place, make_run(name="third/more", seed=1), make_model())
        return page_data(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="No space"):
            build_report(place, page.parent)
    assert page.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(explore, "page_data", meanwhile)
        build_report(place, page.parent)
    lake_now = open_lake(place)
    assert reports.state_in(page) != reports.state_of(lake_now, lake_now.runs(), [])
    assert run_lake("open", page.parent) == 0
    assert shown == [page.as_uri()] * 3
    run_lake("open", tmp_path / "nothing")
    assert "there is no lake at" in capsys.readouterr().err


@pytest.mark.browser
def test_problems_are_searched_filtered_and_picked_and_the_keyboard_keeps_its_place(
    browser: Any, served: Served
) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"http://127.0.0.1:{served.port}/")
    count, question, focused = (page.locator(each) for each in ("label:has(#problem) > span", "#question", ":focus"))

    page.select_option("#problem-run", RUN)
    expect(count).to_have_text("Problem (2000 here)")
    page.locator("#problem-find").press_sequentially("question 177")
    expect(question).to_have_text("question 177")
    expect(focused).to_have_id("problem-find")
    expect(count).to_have_text("Problem (12 of 2000)")  # 177, 1177 and 1770 .. 1779
    page.focus("#problem-after")
    page.keyboard.press("Enter")
    expect(question).to_have_text("question 1177")
    expect(focused).to_have_id("problem-after")
    page.click("text=More filters")
    page.select_option("#problem-condition", label="zero, ct1")
    expect(count).to_have_text("Problem (7 of 2000)")  # odd ones
    page.select_option("#problem-filter", "wrong")
    right = open_lake(served.answers.lake.location)[RUN]["correct"].values
    expect(page.locator("#problem option")).to_have_count(sum(not right[n] for n in (177, 1177, *range(1771, 1780, 2))))

    page.select_option("#attention-layer", "2")
    page.focus("#attention-head")
    page.select_option("#attention-head", "1")
    expect(page.locator("#problem-explorer")).to_contain_text("Head 1 alone")
    expect(focused).to_have_id("attention-head")
    page.locator("#lens [aria-pressed='true']").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile("cell=2\\+ct5"))
    expect(focused).to_have_attribute("aria-pressed", "true")
    page.select_option("#feature", index=2)
    page.wait_for_url(re.compile("feature="))
    state = ("#question", "#attention", "#lens", "#problem-filter", "#feature-top")
    before = [page.locator(each).inner_text() for each in state]

    linked = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    linked.goto(page.url)  # as sent to a colleague
    for each, text in zip(state, before, strict=True):
        expect(linked.locator(each)).to_have_text(text, use_inner_text=True)
    assert linked.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("#result-explorer .table").first).to_be_visible()
    page.emulate_media(media="print")  # in which tables of all results' columns do not fit a sheet
    expect(page.locator("#result-explorer .table").first).to_be_hidden()
    page.emulate_media(media="screen")
    assert [violations(page), violations(linked)] == [[], []]
    assert said == []
    expect(page.locator("#changed")).to_be_empty()
    page.route("**/api/**", lambda route: route.fulfill(response=route.fetch(), headers={"lake-state": "another"}))
    page.select_option("#attention-head", "0")
    expect(page.locator("#changed")).to_contain_text("The lake has changed since this page was loaded")
    for each in (page, linked):
        each.close()
