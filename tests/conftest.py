"""What several test files share, and how tests stay cheap: the whole suite has eight minutes on two cores.

- A command is called in this process (``call``, ``called.run_lake``). A process of its own costs five seconds of
  imports before it begins: only for what is tested of a process, a kill, a pipe, a kernel. Where nothing is wrong with
  it, ``os.fork`` gives a real one that has everything loaded.
- ``report_lake`` has two models, heads, attention, lens, corruption, patching and a comparison, made once for all
  workers; ``made_once`` does so for others. Who changes such a lake copies it.
- Most tests need no model: ``synthetic.make_run`` makes a run in memory, ``small_runs.prepared_run`` one of a random
  model in less than a second. Numbers of problems, resamples and draws are as small as what is asserted allows.
- Files of tests lie in memory where there is room: results are many small files, each made durable as it is written,
  and on a disk that is a fifth of all processor time and most of the waiting.
- ``pytest --durations 20`` tells what is slow; figures of the page are what a report costs.
"""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: one worker a core, and threads that wait burn the other's

import matplotlib
import psutil
import pytest
from filelock import FileLock

matplotlib.use("Agg")
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available) > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))  # the whole suite leaves a gigabyte there until it ends
MadeOnce = Callable[[str, Callable[[Path], object]], Path]


LONGEST = (
    "printed_commands", "report", "remote", "sentences", "push", "extract_run", "damage", "notebooks", "workers",
    "reenter", "precision", "small", "printed", "torch_dataset", "real_model", "serve", "reenter_kept", "intervene",
    "training", "reasoner", "graph", "depth", "verify",
)  # fmt: skip
"""Files that take a minute or half of one: a worker that begins one of them last is waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hand out the longest files first."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


gc.set_threshold(100_000, 50, 50)  # looking for garbage after every 700 objects is an eighth of all time


@pytest.fixture(scope="module", autouse=True)
def nothing_old_is_searched_for_garbage() -> None:
    """Imported modules are a million objects, which every full collection would go through: a fifth of all time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def precision_is_measured_on_few_questions() -> Iterator[None]:
    """Every extraction begins with eight questions one by one: half the time of a small one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("extract.run.precision.N_QUESTION", 2)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of reference data that the project may not contain; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the reference data is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A folder by its name, filled by the first of all workers that asks for it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        place = root / name
        with FileLock(f"{place}.lock"):
            if not (place / "whole").exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                make(place)
                (place / "whole").touch()
        return place

    return folder


@pytest.fixture(scope="session")
def report_lake(made_once: MadeOnce) -> Path:
    """The lake of ``report_lake.make_lake``; to be read only."""
    from report_lake import make_lake

    return made_once("report_lake", make_lake) / "toy.lake"


@pytest.fixture(scope="session")
def reentry_lake(made_once: MadeOnce) -> Path:
    """The lake of ``reentry_lake.make_lake``; to be read only."""
    from reentry_lake import make_lake

    return made_once("reentry_lake", make_lake) / "a.lake"


@pytest.fixture(scope="session")
def analysed_lake(made_once: MadeOnce) -> Path:
    """The lake of ``two_runs.make_analysed``; to be read only."""
    from two_runs import make_analysed

    return made_once("analysed_lake", make_analysed) / "a.lake"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call a command in this process: exit status, standard output, standard error."""
    from called import run_lake

    def called(*words: object) -> tuple[int, str, str]:
        return run_lake(*words), *capsys.readouterr()

    return called


CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; where there is none the tests that need it are skipped."""
    if not CHROMIUM or find_spec("playwright") is None:
        if os.environ.get("CI_NEEDS_BROWSER"):
            pytest.fail("no Chromium, or no Playwright")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium), or Playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()
