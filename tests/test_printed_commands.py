"""Every command that the page or a document prints runs, and makes what it names."""

import contextlib
import html
import re
import shlex
import shutil
from pathlib import Path

import pytest
import xarray as xr
from called import run_lake
from conftest import MadeOnce
from matplotlib.figure import Figure
from printed_lake import RUN, TWIN, make_bare, run_printed
from test_docs import ROOT, shown_commands

from analyze.context import Context
from analyze.page import write_section
from analyze.report import build_report, view
from analyze.report.sections import sections
from extract.model.load import SHIPPED
from schemas.intervention import STEERING_UNIT
from schemas.registry import by_kind
from store import open_lake

SAYS_EXAMPLES = {
    "heads",
    "attention",
    "lens",
    "correlate",
    "probes",
    "ablate",
    "corrupt",
    "patch",
    "ablate_heads",
    "edges",
    "attribute",
}
"""Kinds of results that say over how many examples they are, by which one of several is preferred."""
NOT_RUN = ("lake analyze probes", "lake analyze transfer")
"""Commands that take more than seconds, or more problems than are here: that they exist with their flags is looked
at, as for the README's."""
SUMMARIES = ("lake analyze compare", "lake analyze verdict")
"""Commands that set together what others have stored, so that they come after them."""
SHORTER = {
    "lake reenter subspace": " --ranks 1 --draws 1 --das-steps 2",
    "lake reenter depth": " --limit 8",
    "lake reenter features": " --limit 8 --draws 1",
    "lake reenter jacobian": " --limit 8",
    "lake reenter decode": " --steps 10",
    "lake reenter ablate": " --draws 2",
    "lake analyze correlate": " --permutations 20 --resamples 20",
    "lake analyze compare": " --resamples 10",
    "lake analyze errors": " --resamples 10",
    "lake analyze features": " --resamples 20 --permutations 20",
    "lake analyze geometry": " --resamples 10 --shuffles 5",
    "lake analyze heads": " --resamples 10",
    "lake analyze sae": " --epochs 8",
}
"""What is added to commands that take more than seconds as they are printed."""
ALONE = (
    "lake analyze depth", "lake analyze errors", "lake analyze lens --lens",
    "lake analyze similarity", "lake analyze stability",
    "lake analyze traces", "lake analyze verdict", "lake reenter ablate", "lake reenter cross",
    "lake reenter decode",
    "lake reenter depth", "lake reenter edges", "lake reenter edit", "lake reenter features", "lake reenter gradients",
    "lake reenter graph", "lake reenter heads",
    "lake reenter jacobian", "lake reenter steer", "lake reenter subspace",
)  # fmt: skip
"""Commands that are run for one of the runs they are printed for: each run is a result of its own."""


def printed(page: Path) -> list[str]:
    """Every command of a page, each once; lake serve goes on until it is stopped, and has tests of its own."""
    texts = map(html.unescape, re.findall(r"<code>(lake .*?)</code>", page.read_text()))
    return [text for text in dict.fromkeys(texts) if text != "lake report" and not text.startswith("lake serve")]


def as_run(command: str) -> str:
    """A printed command as it is run here: shorter, and for one run, where it takes more than seconds."""
    words = command.split()
    command += SHORTER.get(" ".join(words[:3]), "")
    name = " ".join([*words[:3], *(word for word in words if word == "--lens")][:4])
    return command.replace(f" {RUN} {TWIN}", f" {RUN}") if name.startswith(ALONE) else command


def unwritten(figure: Figure, name: str) -> tuple[str, bytes]:
    """Draw a figure, but neither lay it out nor write it: these tests are of commands."""
    figure.set_layout_engine("none")
    figure.draw_without_rendering()
    return "<svg></svg>", b""


@pytest.fixture(scope="module")
def filled_lake(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The lake after the commands of its page were run, and those commands."""
    bare = made_once("printed", make_bare)
    lake = Path(shutil.copytree(bare / "toy.lake", tmp_path_factory.mktemp("printed") / "filled toy.lake"))
    commands = printed(build_report(lake, lake.with_name("page"), n_problem=2).page)
    with contextlib.chdir(lake.parent):  # where the page says that they are run
        for command in sorted(commands, key=lambda command: command.startswith(SUMMARIES)):
            if not command.startswith(NOT_RUN):
                run_printed(as_run(command))
    return lake, commands


def test_every_command_that_the_page_prints_runs_and_makes_what_it_names(
    filled_lake: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, commands = filled_lake
    monkeypatch.setattr(view, "draw", unwritten)
    monkeypatch.setattr(view, "reflows", lambda panel: False)
    assert len(commands) > 15
    made = build_report(lake, lake.with_name("page"), n_problem=2)
    assert str(lake.parent) not in made.page.read_text()
    assert not made.broken
    # Probes are slow; transfer needs more problems; the others a crosscoder, and runs that hold the parts of blocks.
    not_run = {"linear-probes", "step-probes", "transfer", "transfer-sae", "transfer-lens"}
    assert set(made.missing) <= not_run | {"shared-features"}
    kinds = {result.kind for result in open_lake(lake).results()}
    beyond = {"probes", "attribution", "shared_features", "transfer", "transfer_sae", "transfer_lens"}
    assert kinds >= {need.split()[0] for section in sections() for need in section.needs} - beyond
    assert kinds <= set(by_kind())
    # Each result's own command is on the page, and is the one that made it.
    after = printed(made.page)
    for result in open_lake(lake).results():
        assert shlex.join(result.command).replace("PATH", f"'{lake.name}'") in after, result.name
        assert result.n_example or result.kind not in SAYS_EXAMPLES, result.kind
        stored = xr.open_zarr(lake, group=result.name, consolidated=False, chunks=None).variables
        assert not [name for name, of in stored.items() if not of.attrs.keys() & {"long_name", "description"}], (
            result.kind
        )


def within_reach(words: list[str]) -> bool:
    """Whether a command asks for nothing that only the reader has: a GPU, models or bases of others, their lakes."""
    given = dict(zip(words, words[1:], strict=False))
    model = given.get("--model", "small-gpt2").rpartition("=")[2]
    lakes = [word for word in words if word.endswith(".lake") and word != given.get("--lake")]
    own = (SHIPPED / model / "config.json").is_file()
    return "cuda" not in words and own and all(Path(lake).exists() for lake in lakes)


@pytest.mark.parametrize(
    "page", sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")}), ids=lambda page: page.name
)
def test_every_command_that_a_document_shows_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in filter(within_reach, shown_commands(page.read_text())):
        few = [re.sub(r"^\d+$", "12", word) if words[i - 1] == "--limit" else word for i, word in enumerate(words)]
        assert run_lake(*few[1:]) == 0, shlex.join(words)


def test_the_steering_axis_names_the_unit_that_was_used(filled_lake: tuple[Path, list[str]]) -> None:
    lake = open_lake(filled_lake[0])
    stored = lake.result("steer", RUN)
    assert stored["strength"].attrs["units"] == STEERING_UNIT
    steering = next(section for section in sections() if section.slug == "steering")
    page = write_section(steering, Context(lake, [RUN]))
    assert page is not None
    assert page.illustrations[0].panels[0].figure.axes[0].get_xlabel() == f"strength, in {STEERING_UNIT}"
