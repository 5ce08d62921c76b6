"""What README.md and docs/ say of commands, names, sizes and measurements, written from the code itself.

    python docs/generate.py            # rewrite what lies between the markers
    python docs/generate.py --check    # write nothing, name what is stale and exit with 1

A page holds ``<!-- generated: NAME -->`` .. ``<!-- end -->``; what stands between them is replaced.
"""

import argparse
import json
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from lake import app
from schemas import DIMS, MODEL_VARIABLES, OPERATIONS, RUN_VARIABLES, Variable, position_labels, segment_of
from schemas.intervention import SITES
from store import RunLayout

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
MEASURED = DOCS / "defects.json"
_BLOCK = re.compile(r"(<!-- generated: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# Axes of the two official models; question lengths of GSM8K's 7,473 training problems, counted once with their
# tokenizers (longest and mean, the beginning-of-text token of LLaMA included).
OFFICIAL: dict[str, dict[str, Any]] = {
    "CODI on GPT-2": {"n_layer": 12, "n_head": 12, "hidden": 768, "longest_question": 212, "mean": 54.6},
    "CODI on LLaMA-3.2-1B": {"n_layer": 16, "n_head": 32, "hidden": 2048, "longest_question": 209, "mean": 57.7},
}
N_TRAIN = 7473
ANSWER = 24
WRITTEN_ANSWER = 9
"""Tokens of a usual answer, ``The answer is: 18`` and the end token; the axis has room for ``ANSWER``."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table; an upright bar inside a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def commands(group: click.Group = app, path: str = "lake") -> Iterator[tuple[str, Any]]:
    """Every command with its full name."""
    for name in group.list_commands(click.Context(group)):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def flag(parameter: Any) -> str:
    """An option or argument as one types it."""
    if parameter.param_type_name == "argument":
        return parameter.metavar or f"{parameter.name.upper()}"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if getattr(parameter, "is_flag", False):
        return names
    return f"{names} {parameter.metavar or parameter.name.upper()}"


def usage(name: str, command: Any) -> str:
    """A command with its arguments and the options it cannot do without."""
    parts = [flag(param) for param in command.params if param.param_type_name == "argument" or param.required]
    return " ".join([name, *parts])


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r"(?<=\.)\s", " ".join((text or "").split()), maxsplit=1)[0]


def command_table() -> str:
    """Each command in a line."""
    return table(
        ["command", "what it does"],
        [[f"`{usage(name, command)}`", first_sentence(command.help)] for name, command in commands()],
    )


def default_of(parameter: Any) -> str:
    """Default value, as text; empty where there is none to speak of."""
    value = parameter.to_info_dict()["default"]
    if parameter.required:
        return "required"
    if value is None or callable(value) or value is False or value in ([], ()):
        return ""
    if isinstance(value, list | tuple):
        return "`" + " ".join(str(item) for item in value) + "`"
    return f"`{value}`"


def command_pages() -> str:
    """Every command with every flag."""
    parts = []
    for name, command in commands():
        rows = [[f"`{flag(param)}`", param.help or "", default_of(param)] for param in command.params]
        help_text = " ".join((command.help or "").split())
        parts.append(f"## {name}\n\n{help_text}\n\n" + table(["argument", "meaning", "default"], rows))
    return "\n" + "\n".join(parts)


def variable_table(variables: dict[str, Variable]) -> str:
    """Variables with dims, type, unit and what a missing entry holds."""
    rows = []
    for name, variable in variables.items():
        dtype = {"stored": "float16 or float32"}.get(variable.dtype, variable.dtype)
        fill = {"nan": "NaN", "": '""'}.get(str(variable.fill), str(variable.fill))
        unit = {"1": "", "": ""}.get(variable.units, variable.units)
        rows.append([f"`{name}`", ", ".join(variable.dims), dtype, unit, fill, variable.long_name])
    return table(["variable", "dims", "type", "unit", "where there is none", "what"], rows)


def dim_table() -> str:
    """Dims of the lake and of results."""
    return table(["dim", "what"], [[f"`{name}`", what] for name, what in DIMS.items()])


def position_table() -> str:
    """Segments and the positions in them."""
    labels: dict[str, list[str]] = {}
    for label in position_labels(3, 2):
        labels.setdefault(segment_of(label), []).append(label)
    meaning = {
        "question": "the question's tokens, counted back from `bot`",
        "bot": "marker after the question; its state, projected, is what `ct0` is fed",
        "latent": "the six thoughts; `ctk` is where the k-th vector is fed in",
        "eot": "marker after the thoughts; its state predicts the first answer token",
        "answer": "answer tokens as written, the end token included",
    }
    rows = [[segment, " ".join(f"`{label}`" for label in labels[segment]), meaning[segment]] for segment in labels]
    return table(["segment", "positions", "what"], rows)


def operation_table() -> str:
    """What can be done at each site."""
    rows = []
    for site, kind in SITES.items():
        names = [f"`{name}`" for name, operation in OPERATIONS.items() if site in operation.sites]
        rows.append([f"`{site}`", kind.what, " ".join(names)])
    described = [[f"`{name}`", operation.what] for name, operation in OPERATIONS.items()]
    return table(["site", "what it is", "operations"], rows) + "\n" + table(["operation", "what it does"], described)


def size_table() -> str:
    """Gigabytes of the two official models over GSM8K's training problems, from the layout's own arithmetic."""
    rows = []
    for model, axes in OFFICIAL.items():
        question = axes["mean"]
        sizes = {key: value for key, value in axes.items() if key != "mean"}
        for capture in ("latent", "full"):
            fixed = {"n_example": N_TRAIN, "n_latent": 6, "n_answer": ANSWER, "dtype": "float16"}
            layout = RunLayout(**sizes, **fixed, capture=capture)
            raw = {name: array.example_bytes * N_TRAIN / 1e9 for name, array in layout.arrays().items()}
            # Places from bot on in a usual example, and pairs of query and key that exist.
            head = 8 + WRITTEN_ANSWER
            queries, pairs = head, head * question + head * (head + 1) / 2
            if capture == "full":
                queries, pairs = queries + question, pairs + question * (question + 1) / 2
            states = (raw["hidden_state"] + raw["final_state"]) * queries / len(layout.positions)
            states += raw["latent_embedding"]
            attention = raw["attention"] * pairs / (len(layout.positions) * len(layout.key_positions))
            figures = [f"{size:.0f} GB" for size in (sum(raw.values()), states + attention, states, attention)]
            rows.append([model, f"`{capture}`", *figures])
    return table(["model", "capture", "whole axes", "what exists", "of it states", "of it attention"], rows)


def chunk_table() -> str:
    """Chunks of each activation of a run of GPT-2's sizes."""
    sizes = {name: value for name, value in OFFICIAL["CODI on GPT-2"].items() if name != "mean"}
    layout = RunLayout(**sizes, n_example=N_TRAIN, n_latent=6, n_answer=ANSWER, dtype="float16", capture="latent")
    rows = []
    for name, array in layout.arrays().items():
        if array.shards is not None:
            chunk, shard = (", ".join(map(str, shape)) for shape in (array.chunks, array.shards))
            codecs = ", ".join(codec.to_dict()["name"] for codec in array.codecs)
            rows.append([f"`{name}`", ", ".join(array.dims), chunk, shard, codecs])
    return table(["array (GPT-2's sizes)", "dims", "inner chunk", "shard", "codecs"], rows)


def measured() -> dict[str, Any]:
    """What ``docs/defects.py`` measured."""
    return dict(json.loads(MEASURED.read_text(encoding="utf-8"))) if MEASURED.exists() else {}


def defect_block(name: str) -> str:
    """Table of one defect's measurements."""
    of_defect = measured().get("defects", {}).get(name)
    if of_defect is None:
        return "Not measured yet.\n"
    rows = [[row["what"], row["wrong"], row["right"]] for row in of_defect["rows"]]
    return table(["measured", "as the scripts do", "as it should be"], rows) + f"\n{of_defect['on']}\n"


def defect_versions() -> str:
    """When and with what the page's numbers were made."""
    known_defects = measured()
    if not known_defects:
        return "Not measured yet.\n"
    versions = ", ".join(f"{name} {version}" for name, version in known_defects["versions"].items())
    weights = ", ".join(f"`{name}` {digest[:12]}" for name, digest in known_defects["weights"].items())
    return f"Measured with {versions}. Weights: {weights} (first digits of their digest in `lake info`).\n"


def block(name: str) -> str:
    """Text between the markers of a name."""
    of_truth = runpy.run_path(str(DOCS / "known_truth.py"))
    makers = {
        "commands": command_table,
        "command pages": command_pages,
        "variables": lambda: variable_table(RUN_VARIABLES),
        "model variables": lambda: variable_table(MODEL_VARIABLES),
        "dims": dim_table,
        "positions": position_table,
        "operations": operation_table,
        "sizes": size_table,
        "chunks": chunk_table,
        "versions": defect_versions,
        "methods versions": of_truth["conditions"],
        "methods": lambda: of_truth["rates"](table),
        "methods alarms": lambda: of_truth["alarms"](table),
    }
    if name in makers:
        return "\n" + makers[name]() + "\n"
    if report := re.fullmatch(r"claims of (\d+)", name):
        return "\n" + of_truth["claims"](report[1], table) + "\n"
    if re.fullmatch(r"E\d+", name):
        return "\n" + defect_block(name) + "\n"
    raise KeyError(
        f"no generator for the marker {name!r}; there are {', '.join(makers)}, E1 to E15, claims of 000 to 004"
    )


def generated(page: str) -> str:
    """A page with everything between its markers made anew."""
    return _BLOCK.sub(lambda match: match.group(1) + block(match.group(2)) + match.group(3), page)


def stale() -> list[Path]:
    """Pages that differ from what the code says."""
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES if page.exists()}
    return [page for page, text in pages.items() if generated(text) != text]


def main() -> None:
    """Rewrite or check every page."""
    parser = argparse.ArgumentParser(description="Generated parts of README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    arguments = parser.parse_args()
    old = stale()
    for page in old:
        print(f"{'stale' if arguments.check else 'written'}: {page.relative_to(ROOT)}")
        if not arguments.check:
            page.write_text(generated(page.read_text(encoding="utf-8")), encoding="utf-8")
    if arguments.check and old:
        sys.exit("run make docs")


if __name__ == "__main__":
    main()
