"""``lake demo``: the one command that needs both extraction and analysis."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lake import printing
from schemas.command import Command, Output, Settings, Shell, setting

MODELS = ("small-gpt2", "small-gpt2-decodable", "small-llama", "small-llama-decodable")


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Where the demo puts what it makes."""

    out: Path = setting(Path("demo.lake"), "Lake to make.", metavar="PATH")
    report: Path = setting(Path("demo-report"), "Folder of the report.", metavar="DIR")


def steps(lake: str, data: str, report: str) -> Iterator[str]:
    """The commands of the demo, in order: extract once, analyse, re-enter, compare, report."""
    problems = " ".join(f"{model}/test" for model in MODELS)
    pairs = " ".join(f"{model}/pairs" for model in MODELS)
    hard = "small-gpt2/hard small-llama/hard"
    yield f"problems --out {data}"
    for model in MODELS:
        for file, limit in (("test.jsonl", 600), ("pairs.json", 400), ("hard.jsonl", 1000)):
            if f"{model}/{Path(file).stem}" in f"{problems} {pairs} {hard}".split():
                yield (
                    f"extract --model {model} --data {data}/{file} --lake {lake} --limit {limit} --batch-size 64"
                    " --max-new-tokens 8"
                )
    yield f"analyze heads {lake} {problems}"
    yield f"analyze attention {lake} {problems}"
    yield f"analyze lens {lake} {problems}"
    yield f"analyze probes {lake} {problems} --target intermediate_result"
    yield (
        f"analyze probes {lake} {problems} --target operation --layers 1 --positions bot,ct0,ct1,ct2,ct3,ct4,ct5"
        " --max-examples 300 --controls 1"
    )
    yield f"analyze probes {lake} {hard} --target correct"
    yield f"analyze sae {lake} {problems}"
    yield f"analyze errors {lake} {hard}"
    yield f"analyze sae {lake} small-gpt2/test small-llama/test --scope crosscoder"
    yield f"reenter corrupt {lake} {problems} --limit 200"
    yield f"reenter ablate {lake} {problems} --limit 200"
    yield f"reenter patch {lake} {pairs}"
    yield f"reenter heads {lake} {problems} --limit 200"
    yield f"reenter edges {lake} {problems} --limit 200"
    yield f"reenter steer {lake} {hard} --limit 200"
    yield f"reenter gradients {lake} {problems} --limit 100"
    yield f"analyze correlate {lake} {problems} --importance corrupt:failure"
    yield f"analyze compare {lake} {problems}"
    yield f"report {lake} --out {report}"


def demo(settings: DemoSettings, shell: Shell) -> Output:
    """Run every step as its own command."""
    from lake import app

    lake, report = str(settings.out), str(settings.report)
    with tempfile.TemporaryDirectory() as data:
        for step in steps("LAKE", "DATA", "REPORT"):
            words = [{"LAKE": lake, "REPORT": report}.get(word, word.replace("DATA", data)) for word in step.split()]
            shown = step.replace("LAKE", lake).replace("REPORT", report)
            printing.console.print(f"\n$ lake {shown}", style="bold")
            app(args=words, standalone_mode=False)
    return Output(
        printed=[
            f"\nlake:   {lake}\nreport: {settings.report / 'index.html'}",
            f"open:   xarray.open_zarr({lake!r}, group='small-gpt2/test', consolidated=False)",
        ]
    )


COMMAND = Command(
    name="demo",
    help="Both small models and their decodable twins, end to end: problems, lake, every analysis, report.",
    settings=DemoSettings,
    run=demo,
    stopped=lambda values: (
        f"{values['out']} keeps the shards and results it has: the same command takes up the extractions"
    ),
)
