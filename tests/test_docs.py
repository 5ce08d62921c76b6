"""README and docs say what the code says."""

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return load(ROOT / "docs" / "generate.py")


@pytest.fixture(scope="module")
def commands(generate: ModuleType) -> dict[str, Any]:
    return dict(generate.commands())


def test_no_page_is_stale(generate: ModuleType) -> None:
    assert not [page.name for page in generate.stale()], "run make docs"


def test_every_command_variable_and_dim_is_listed(generate: ModuleType, commands: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "variables.md").read_text()
    named = {*generate.RUN_VARIABLES, *generate.MODEL_VARIABLES, *generate.DIMS}
    assert not [name for name in named if f"| `{name}` |" not in text]
    text = (ROOT / "README.md").read_text()
    assert not [name for name in commands if f"| `{name} " not in text and f"| `{name}`" not in text]


def test_every_command_and_flag_says_what_it_does(commands: dict[str, Any]) -> None:
    silent = [name for name, command in commands.items() if not (command.help or "").strip()]
    silent += [
        f"{name} {parameter.name}"
        for name, command in commands.items()
        for parameter in command.params
        if not (parameter.help or "").strip()
    ]
    assert not silent


def shown_commands(text: str) -> Iterator[list[str]]:
    """Words of every ``lake`` command in a page's code blocks, continued lines joined."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for fenced in [block for language, block in blocks if language in ("", "console", "bash", "sh")]:
        for line in fenced.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("lake "):
                yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_exists_with_its_flags(page: Path, commands: dict[str, Any]) -> None:
    for words in shown_commands(page.read_text()):
        name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in commands), None)
        assert name is not None, f"{page.name} shows {shlex.join(words)}: no such command"
        known = {option for parameter in commands[name].params for option in parameter.opts} | {"--help", "-h"}
        unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
        assert not unknown, f"{page.name} shows {shlex.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    own = [page.parent / link for link in links if "://" not in link]
    assert not [link for link in own if not link.exists()]
    if page.name != "README.md":  # the others are pages of the site, which holds nothing from elsewhere
        assert not [link for link in own if not link.resolve().is_relative_to(ROOT / "docs")]


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "notebooks").glob("*.ipynb"))], ids=lambda page: page.name)
def test_no_page_names_a_place_of_one_machine(page: Path) -> None:
    assert not re.findall(r"(?<![\w.:/])/(?:work|tmp|home|root|var|Users)/\S*", page.read_text())


def test_a_stale_page_is_noticed(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: dims -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(generate, "PAGES", (page,))
    assert generate.stale() == [page]
    page.write_text(generate.generated(page.read_text()))
    assert generate.stale() == []
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    assert "| `key_position` |" in page.read_text()
    with pytest.raises(KeyError, match="no generator"):
        generate.block("nonsense")


def test_every_defect_is_measured(generate: ModuleType) -> None:
    page = (ROOT / "docs" / "defects.md").read_text()
    for number in range(1, 16):
        assert f"\n## E{number}. " in page
        assert generate.measured()["defects"][f"E{number}"]["rows"]


def test_every_claim_names_what_it_rests_on_and_a_command_that_there_is(commands: dict[str, Any]) -> None:
    claims = tomllib.loads((ROOT / "docs" / "claims.toml").read_text())["claim"]
    assert {claim["report"] for claim in claims} == {f"00{number}" for number in range(5)}
    truth = load(ROOT / "docs" / "known_truth.py")
    for claim in claims:
        assert claim["verdict"] in ("stands", "artefact", "not decidable here")
        assert claim["verdict"] == "stands" or "command" in claim
        assert set(claim.get("defects", [])) <= {f"E{number}" for number in range(1, 16)}
        assert " ".join(claim.get("command", "lake analyze lens LAKE").split()[:3]) in commands
        for reference in claim.get("measured", []):
            assert re.search(r"\d", truth.evidence(reference)), reference
            assert "not measured" not in truth.evidence(reference), reference


def test_hits_and_false_alarms_are_counted_by_what_training_decided() -> None:
    truth = load(ROOT / "docs" / "known_truth.py")
    row = {"seed": 0, "of_thought": "ct1", "method": "mean"}
    rows = [
        row | {"model": "user", "says": "no"}, row | {"model": "user", "says": "yes"},  # any of several says yes
        row | {"model": "user", "seed": 1, "says": "undecided"}, row | {"model": "twin", "says": "no"},
        row | {"model": "user", "of_thought": "ct0", "says": "yes"},  # of no known truth
    ]  # fmt: skip
    measured = {"rows": rows, "truth": {"user": {"ct1": True}, "twin": {"ct1": False}}}
    assert list(truth.said(measured)) == [
        ("mean", "user", True, "yes"), ("mean", "user", True, "undecided"), ("mean", "twin", False, "no"),
    ]  # fmt: skip
    assert truth.share_of(["yes", "undecided"]).startswith("1 of 2 [")
    assert truth.share_of(["yes", "undecided"]).endswith(", 1 undecided")
    assert truth.share_of([]) == "-"


def test_zeroing_implicates_twins_and_what_a_verdict_rests_on_does_not() -> None:
    truth = load(ROOT / "docs" / "known_truth.py")
    cells = list(truth.said(truth.known("methods")))

    def said(methods: set[str], used: bool) -> list[str]:
        return [says for method, _, is_used, says in cells if method in methods and is_used is used]

    assert said({"zero"}, False).count("yes") > 3
    assert "yes" not in said({"mean", "resample", "patch", "edit", "erase", "verdict"}, False)
    assert set(said({"verdict"}, True)) == {"yes"}
    assert len({seed for seed in (row["seed"] for row in truth.known("methods")["rows"])}) == 3


def test_defects_come_out_again_on_a_few_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    defects = load(ROOT / "docs" / "defects.py")
    found = defects.measure(["small-gpt2=small-gpt2"], 12, 10, ["E1", "E2", "E4", "E7", "E9", "E15"])["defects"]
    rows = {name: [(row["wrong"], row["right"]) for row in each["rows"]] for name, each in found.items()}
    assert rows["E1"][2] == ("CT1 CT3 CT5", "ct0 ct2 ct4")
    assert rows["E2"][0][1] == "0.0%"  # patched with its own values, a run is itself
    assert float(rows["E2"][0][0].rstrip("%")) > 20
    assert rows["E4"][1] == ("100.0%", "0.0%")
    assert rows["E7"][0][0] == "1"
    assert rows["E9"][0][0] == "1.00 to 1.00"
    assert rows["E15"][0] == ("1.000", "0.000")


@cache
def names_of(module: Path) -> set[str]:
    """Whatever a module, or a package's front, defines, imports or sets, at any depth."""
    names = set()
    for text in (path.read_text() for path in ([module] if module.is_file() else module.glob("__init__.py*"))):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def test_every_name_that_a_docstring_refers_to_is_there() -> None:
    packages = ("schemas", "store", "extract", "analyze", "lake")
    missing = []
    for source in [path for package in packages for path in (ROOT / package).rglob("*.py")]:
        for role, reference in re.findall(r":(func|class|data|mod|meth|attr):`([\w.]+)`", source.read_text()):
            parts, module = reference.split("."), source
            if parts[0] in packages:
                module = ROOT / parts.pop(0)
                while parts and (module / parts[0]).is_dir():
                    module /= parts.pop(0)
                if parts and (module / f"{parts[0]}.py").exists():
                    module /= f"{parts.pop(0)}.py"
            if not (role == "mod" if not parts else parts[0] in names_of(module)):
                missing.append(f"{source.relative_to(ROOT)}: {reference}")
    assert missing == []
