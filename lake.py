"""The command line ``lake``: each command parses, makes one library call, and prints."""

import errno
import inspect
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from functools import cache, partial, wraps
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand
from typer.exceptions import TyperException

from schemas import FORMAT_VERSION, LakeError, RunSpec, UnwritableLakeError, UsageError, filled, nearest
from schemas.commands import COMMANDS, OUTPUT, PATH, STEERING_UNIT

_at_work: ContextVar[Any] = ContextVar("context of the command at work")


class Stopped(Exception):
    """A command was interrupted from the keyboard; the text says what it leaves behind."""


class Command(TyperCommand):
    """A command that can say how it was called, see :func:`command_of`, and what is left when it is stopped."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        before = _at_work.set(ctx)
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Stopped) as error:
            raise Stopped(left_behind(ctx)) from error
        finally:
            _at_work.reset(before)


def left_behind(context: Any) -> str:
    """What a command that is stopped midway has kept, and what the same command does when it is given again."""
    names = " ".join(command_names(context))
    given = context.params
    if names == "extract":
        return "stopped; shards that are committed stay, and the same command goes on after them"
    if names == "train":
        return f"stopped; {given['out']} keeps the state of every 300 steps, and the same command goes on from there"
    if names == "demo":
        return f"stopped; {given['out']} keeps the shards and results it has: the same command takes up the extractions"
    done = "results of the runs before the one at work are in the lake"
    if names == "analyze probes" and (kept := kept_cells(given["path"])) is not None:
        return f"stopped; {done}, finished cells of that one in {kept}, and the same command takes them up"
    if names.startswith("reenter") and names != "reenter gradients" and "://" not in given["path"]:
        folder = f"{given['path'].rstrip('/')}.reenter"
        return f"stopped; {done}, finished batches of that one in {folder}, and the same command takes them up"
    if names.startswith(("analyze", "reenter")):
        return f"stopped; {done}, nothing of that one is kept, and the same command begins again"
    if names == "report":
        return f"stopped; {given['out']} has part of the figures and no new page: the same command makes them all"
    if names == "rm":
        return "stopped; what was to be removed is there as before, or no longer to be read: lake info says which"
    return "stopped; nothing was changed" if names in ("plan", "info", "verify", "show", "query", "top") else "stopped"


def kept_cells(path: str) -> Path | None:
    """Where probes keep finished cells while they are at work: beside a lake in a folder that can be written."""
    folder = Path(f"{path.rstrip('/')}.probes")
    return folder if "://" not in path and os.access(folder.parent, os.W_OK) else None


def command_names(context: Any) -> list[str]:
    """Names of a command below ``lake``, as ``reenter``, ``patch``."""
    names: list[str] = []
    while context.parent is not None:
        names, context = [context.info_name, *names], context.parent
    return names


class Commands(typer.Typer):
    """Commands that can say how they were called."""

    def command(self, name: str | None = None, **options: Any) -> Callable[..., Any]:  # type: ignore[override]
        """Register a command."""
        return super().command(name, cls=Command, **options)


app = Commands(
    help="Extract a latent-reasoning model's activations once; analyse them offline.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Analyses(Commands):
    """Commands that all take ``--scheduler`` and ``--workers`` too, and then compute there."""

    def command(self, name: str | None = None, **options: Any) -> Callable[..., Any]:  # type: ignore[override]
        """Register a command, with the two options."""
        register = super().command(name, **options)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def computed(*arguments: Any, scheduler: str | None, workers: int | None, **named: Any) -> Any:
                from analyze.cluster import compute_on

                with compute_on(scheduler, workers):
                    return function(*arguments, **named)

            added = {"scheduler": Scheduler, "workers": Workers}
            signature = inspect.signature(function)
            parameters = [
                inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                for each, annotation in added.items()
            ]
            computed.__signature__ = signature.replace(  # type: ignore[attr-defined]
                parameters=[*signature.parameters.values(), *parameters]
            )
            computed.__annotations__ = {**function.__annotations__, **added}
            register(computed)
            return function

        return decorate


Scheduler = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Compute on a running dask scheduler.")]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Compute in N processes of this machine.")]
analyze = Analyses(
    help="Analyses of stored runs: no model, no GPU.", rich_markup_mode=None, invoke_without_command=True
)
reenter = Commands(
    help="Back into the model, with stored activations.", rich_markup_mode=None, invoke_without_command=True
)
app.add_typer(analyze, name="analyze")
app.add_typer(reenter, name="reenter")


@analyze.callback()
@reenter.callback()
def help_alone(context: typer.Context) -> None:
    """Without a command: print what commands there are."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.callback()
def begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version of lake and of its format.")] = False,
) -> None:
    """Without a command: print the version if asked, else what commands there are."""
    if version:
        typer.echo(f"activation-lake {metadata.version('activation-lake')}, lake format {FORMAT_VERSION}")
        raise typer.Exit()
    help_alone(context)


console = Console(soft_wrap=True, highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)

LakePath = Annotated[str, typer.Argument(metavar="PATH", help="Lake: a folder or a URL.")]
RunNames = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs, MODEL/DATASET; all if none is named.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CsvFolder = Annotated[Path | None, typer.Option("--csv", metavar="DIR", help="Also write every table as CSV into DIR.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME=CHECKPOINT", help="Folder or hub id in the official layout, or a shipped name."
    ),
]
Base = Annotated[
    str | None, typer.Option("--base", metavar="PATH_OR_ID", help="Base model: configuration and tokenizer.")
]
Data = Annotated[str, typer.Option("--data", metavar="FILE_OR_NAME=FILE", help="JSON Lines or a JSON list of pairs.")]
LakeOption = Annotated[
    str, typer.Option("--lake", metavar="PATH", help="Lake: a folder or a URL; made where there is none.")
]
Limit = Annotated[int | None, typer.Option(help="Only the first N problems.")]
CaptureOption = Annotated[
    str, typer.Option("--capture", metavar="latent|full", help="latent: rows from bot on; full: every row.")
]
Device = Annotated[
    str, typer.Option(metavar="cpu|cuda|cuda:N|mps", help="Where the model runs: cpu, cuda, cuda:1, mps.")
]
Dtype = Annotated[str, typer.Option(metavar="float16|float32", help="Type in which activations are stored.")]
ComputeDtype = Annotated[
    str,
    typer.Option(
        metavar="float32|float16|bfloat16",
        help="Type in which the model runs: float32; float16 and bfloat16 lose precision (lake plan: how much).",
    ),
]
BatchSize = Annotated[int, typer.Option(help="Questions thought through together.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer in tokens.")]
Alpha = Annotated[
    float | None, typer.Option(help="Scale of the checkpoint's low-rank adapter.  [default: its config's, or 32]")
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="NAME",
        help="How the model is asked and fed, where the checkpoint does not say: codi, coconut ...",
    ),
]
Thoughts = Annotated[
    int | None, typer.Option("--thoughts", metavar="N", help="Number of thoughts, where the checkpoint does not say.")
]
Memory = Annotated[
    float,
    typer.Option(help="GiB of activations in memory; decides the size of shards, and of batches of long questions."),
]
SkipLong = Annotated[bool, typer.Option("--skip-long", help="Leave out questions that exceed the model's context.")]


@contextmanager
def progress_bar(label: str, unit: str = "") -> Iterator[Callable[..., None]]:
    """A bar on a terminal, nothing in a pipe; yields ``report(done, total, bytes=0)``."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(label, total=None, rate="", visible=False)  # until there is a total to show

        def report(done: int, total: int, written: int = 0) -> None:
            speed = bar.tasks[task].speed
            rate = f"{speed:.1f} {unit}/s" if speed and unit else ""
            bar.update(
                task,
                completed=done,
                total=total,
                rate=" ".join([rate, f"{written / 1e6:.0f} MB" if written else ""]),
                visible=True,
            )

        yield report


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str | None = None) -> None:
    """A table with one header line; numbers to three decimals."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def runs_of(path: str, names: Sequence[str] | None) -> tuple[Any, list[str]]:
    """Open a lake, and the runs named or all it has."""
    from store import open_lake

    lake = open_lake(path)
    runs = list(names or lake.runs())
    if not runs:
        raise UsageError(f"{path} has no runs yet; make one with lake extract")
    for run in runs:
        lake.attributes(run)
    return lake, runs


def command_of(runs: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
    """Words of the command at work, ``PATH`` for the lake: for these runs, with every option not at its default."""
    context = _at_work.get()
    words = ["lake", *command_names(context)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.param_type_name == "argument":
            words += [PATH] if parameter.name == "path" else runs
        elif parameter.opts[0] in (*OUTPUT, *without) or value in (parameter.default, None, [], ()):
            continue
        elif getattr(parameter, "is_flag", False):
            words.append(parameter.opts[0])
        else:
            for each in value if isinstance(value, list | tuple) else [value]:
                words += [parameter.opts[0], PATH if parameter.name == "lake" else str(each)]
    return words


def spec_of(
    capture: str, dtype: str, compute_dtype: str, max_new_tokens: int, limit: int | None, batch_size: int, device: str
) -> RunSpec:
    """Checked settings from the flags that extract and plan share."""
    return RunSpec(
        capture=capture,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        compute_dtype=compute_dtype,  # type: ignore[arg-type]
        max_new_tokens=max_new_tokens,
        limit=limit,
        batch_size=batch_size,
        device=device,
    )


@app.command("extract")
def extract_command(
    model: Model,
    data: Data,
    lake: LakeOption,
    base: Base = None,
    limit: Limit = None,
    capture: CaptureOption = "latent",
    device: Device = "cpu",
    dtype: Dtype = "float16",
    compute_dtype: ComputeDtype = "float32",
    batch_size: BatchSize = 32,
    max_new_tokens: MaxNewTokens = 24,
    lora_alpha: Alpha = None,
    protocol: ProtocolName = None,
    thoughts: Thoughts = None,
    skip_long: SkipLong = False,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only shards I modulo N; I from 0.")] = None,
    memory: Memory = 4.0,
    rebuild: Annotated[
        str | None,
        typer.Option(metavar="SHARDS", help="Write these shards again: 3,17; static: all else that is damaged."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a model once over a data set and write everything it computes into a lake."""
    from extract.run.extract import extract, prepare, rank_from_environment

    spec = spec_of(capture, dtype, compute_dtype, max_new_tokens, limit, batch_size, device)
    part = rank_from_environment() if shard is None else parse_part(shard)
    again, static = parse_rebuild(rebuild)
    prepared = prepare(
        model,
        data,
        lake,
        spec,
        base=base,
        lora_alpha=lora_alpha,
        protocol=protocol,
        thoughts=thoughts,
        skip_long=skip_long,
        memory=memory,
        rebuild_static=static,
    )
    for said in prepared.problems.notes:
        note(said)
    with progress_bar(prepared.run, "examples") as report:
        done = extract(
            prepared,
            lake,
            part=part,
            rebuild=again,
            rebuild_static=static,
            progress=report,
            command=command_of(without=("--shard", "--rebuild")),
        )
    if done.most_rows is not None:
        note(
            f"memory was too small for {spec.batch_size} questions at once: batches of at most {done.most_rows} instead"
        )
    if as_json:
        print_json(asdict(done))
        return
    whole = done.n_committed == done.n_example
    examples = f"{done.n_example} examples" if whole else f"{done.n_committed} of {done.n_example} examples"
    console.print(
        f"{done.run}: {examples}, {done.n_correct} answered correctly; "
        f"{len(done.shards_written)} shards written ({done.bytes_written / 1e6:.1f} MB), {done.shards_kept} kept"
        + (f", {done.shards_elsewhere} left to other writers" if done.shards_elsewhere else "")
        + (f"; {prepared.skipped} questions too long for the model left out" if prepared.skipped else "")
    )
    console.print(f"xr.open_zarr({lake!r}, group={done.run!r}, consolidated=False)")


@app.command("plan")
def plan_command(
    model: Model,
    data: Data,
    lake: LakeOption,
    base: Base = None,
    limit: Limit = None,
    capture: CaptureOption = "latent",
    device: Device = "cpu",
    dtype: Dtype = "float16",
    compute_dtype: ComputeDtype = "float32",
    batch_size: BatchSize = 32,
    max_new_tokens: MaxNewTokens = 24,
    lora_alpha: Alpha = None,
    protocol: ProtocolName = None,
    thoughts: Thoughts = None,
    skip_long: SkipLong = False,
    memory: Memory = 4.0,
    as_json: AsJson = False,
) -> None:
    """Say what an extraction will take before it is paid: arrays, bytes, memory, time. Writes nothing."""
    from extract.run.extract import prepare
    from extract.run.plan import plan
    from store import precision_text

    spec = spec_of(capture, dtype, compute_dtype, max_new_tokens, limit, batch_size, device)
    prepared = prepare(
        model, data, lake, spec, base=base, lora_alpha=lora_alpha, protocol=protocol, thoughts=thoughts,
        skip_long=skip_long, memory=memory,
    )  # fmt: skip
    for said in prepared.problems.notes:
        note(said)
    planned = plan(prepared, lake)
    if as_json:
        print_json({**asdict(planned), "fits": planned.fits})
    else:
        print_table(
            f"{planned.run}: {planned.n_example} examples in {planned.n_shard} shards of {planned.shard_examples},"
            f" batches of {planned.batch_examples:.0f}",
            ["variable", "shape", "chunk", "shard", "files", "raw", "expected"],
            [
                [
                    v.name,
                    by(v.shape),
                    by(v.chunks),
                    by(v.shards or v.chunks),
                    v.files,
                    size(v.raw_bytes),
                    size(v.expected_bytes),
                ]
                for v in planned.variables
            ],
        )
        free = "" if planned.free_bytes is None else f"; the disk has {size(planned.free_bytes)} free"
        console.print(f"texts, coordinates, read-out: {size(planned.static_bytes)}")
        console.print(
            f"in all {planned.files} files, {size(planned.raw_bytes)} raw, {size(planned.expected_bytes)} on disk"
        )
        console.print(f"still to be written: {size(planned.remaining_bytes)}{free}")
        console.print(f"memory: {size(planned.memory_bytes)} at most; activations below {size(planned.memory_budget)}")
        console.print(
            f"time: about {duration(planned.seconds)} (model {duration(planned.model_seconds)}, "
            f"writing {duration(planned.write_seconds)})"
        )
        console.print(f"precision: {precision_text(planned.precision)}")
        if compute_dtype != "float32":
            console.print("--compute-dtype float32 gives the same alone and in any batch, but for its own rounding")
    if not planned.fits:
        raise LakeError(
            f"the disk of {lake} is too small: {size(planned.remaining_bytes)} are needed and"
            f" {size(planned.free_bytes or 0)} free. Free some space, use another --lake, --capture latent, or --limit"
        )


@app.command("info")
def info_command(
    lake: LakePath,
    name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run, MODEL/DATASET, or a fingerprint or its beginning.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in a lake: runs and how complete they are, models, results, and what each was made from."""
    from store import describe, describe_run, find, open_lake, precision_text

    opened = open_lake(lake)
    if name is None:
        described = describe(opened)
        if as_json:
            print_json(described)
            return
        print_table(
            f"runs of {lake}",
            ["run", "examples", "shards", "capture", "dtype", "weights", "data", "code", "fingerprint"],
            [
                [run, f"{d['examples_committed']}/{d['examples']}", f"{d['shards_committed']}/{d['shards']}"]
                + [d["spec"]["capture"], d["spec"]["dtype"], d["weights"][:12], d["data"]["sha256"][:12]]
                + [d["provenance"].get("code", "")[:12], d["fingerprint"][:12]]
                for run, d in described["runs"].items()
            ],
        )
        print_table(
            "models",
            ["model", "architecture", "checkpoint", "layers", "heads", "hidden"],
            [
                [model, d["architecture"], d["checkpoint"], d["n_layer"], d["n_head"], d["hidden"]]
                for model, d in described["models"].items()
            ],
        )
        print_table(
            "results",
            ["result", "read", "fingerprint", ""],
            [
                [result, ", ".join(f"{run} {digest[:12]}" for run, digest in d["inputs"].items())]
                + [d["fingerprint"][:12], "" if d["current"] else "of a run that is no more"]
                for result, d in described["results"].items()
            ],
        )
        return
    if name in opened:
        described = describe_run(opened, name)
        if as_json:
            print_json(described)
            return
        console.print(f"{name}: {described['examples_committed']} of {described['examples']} examples committed")
        console.print(f"precision: {precision_text(described['precision'])}")
        for key in ("fingerprint", "weights", "tokenizer", "data", "spec", "provenance", "variables"):
            value = described[key]
            console.print(f"{key}: " + (value if isinstance(value, str) else ""))
            for field, each in value.items() if isinstance(value, dict) else ():
                text = f"{by(each.values())} {' '.join(each)}" if isinstance(each, dict) else each
                console.print(f"  {field}: {text}")
        console.print("results: " + (", ".join(described["results"]) or "none"))
        return
    found = find(opened, name)
    if as_json:
        print_json(found)
        return
    for each in found:
        belongs = "" if each["what"] in ("run", "result") else "of "
        console.print(f"{each['fingerprint']} {each['what']} {belongs}{each['of']}")


@app.command("verify")
def verify_command(
    lake: LakePath,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Only this run, MODEL/DATASET, and its model.")
    ] = None,
    recompute: Annotated[int, typer.Option(metavar="N", help="Run the model again on N examples of each run.")] = 0,
    model: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Where the model is, if the lake's word for it is not enough."),
    ] = None,
    base: Base = None,
    protocol: ProtocolName = None,
    thoughts: Thoughts = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Check every byte against its checksum and say what mends what is damaged; exit 1 if anything is."""
    from store import open_lake, precision_text, verify

    with progress_bar("verify", "files") as report:
        found = verify(lake, run, progress=report)
    compared = []
    if recompute and not found.damage:
        from extract.run.recompute import recompute as run_again

        for each in [run] if run else open_lake(lake).runs():
            compared.append(
                run_again(
                    lake,
                    each,
                    recompute,
                    checkpoint=model,
                    base=base,
                    protocol=protocol,
                    thoughts=thoughts,
                    device=device,
                )  # fmt: skip
            )
    bad = [each for each in compared if not each.agrees]
    if as_json:
        print_json({**asdict(found), "recomputed": [{**asdict(each), "agrees": each.agrees} for each in compared]})
    else:
        for damage in found.damage:
            console.print(f"{damage.path} {damage.problem}")
        for each in compared:
            verdict = "agree" if each.agrees else f"DISAGREE ({', '.join(each.beyond)})"
            console.print(
                f"{each.run}: examples {', '.join(map(str, each.examples))} computed again {verdict}: off by "
                + ", ".join(
                    f"{name} {state.mean:.1e} (at most {state.worst:.1e})" for name, state in each.states.items()
                )
                + f" of each place's scale, answer_logprob {each.answer_logprob:.1e}, {each.other_texts} other answers;"
                f" judged by {precision_text(each.precision)}"
            )
        for name, shards in found.incomplete.items():
            console.print(f"{name}: not complete, {len(shards)} shards to come: {', '.join(map(str, shards))}")
        for key in found.leftovers:
            console.print(
                f"{key}: not finished; of a writer at work, or of a killed one and gone with the next extraction"
            )
        for command in found.commands:
            console.print(f"mend: {command}")
        console.print(f"{found.files} files, {size(found.bytes)} checked; {len(found.damage)} damaged")
    if found.damage or bad:
        what = [f"{len(found.damage)} damaged files"] if found.damage else []
        what += [f"{each.run} does not agree with its model" for each in bad]
        raise LakeError(f"{lake}: {', '.join(what)}")


def by(shape: Iterable[int]) -> str:
    """Shape as text."""
    return "x".join(map(str, shape))


def size(n_byte: float) -> str:
    """Bytes as text."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_byte < 1000:
            return f"{n_byte:.0f} B" if unit == "B" else f"{n_byte:.1f} {unit}"
        n_byte /= 1000
    return f"{n_byte:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as text."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def parse_part(text: str) -> tuple[int, int]:
    """``I/N`` as numbers with 0 <= I < N."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise UsageError(f"--shard {text!r} is not I/N with 0 <= I < N, as in 0/4")
    return int(first), int(count)


def parse_rebuild(text: str | None) -> tuple[list[int], bool]:
    """``3,17,static`` as shards, and whether all else is meant too."""
    words = [part.strip() for part in text.split(",")] if text else []
    return parse_numbers(",".join(word for word in words if word != "static")), "static" in words


def parse_numbers(text: str | None) -> list[int]:
    """Comma-separated numbers."""
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"{text!r} is not a comma-separated list of numbers, as in 3,17")
    return [int(part) for part in parts]


@app.command("problems")
def problems_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")],
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    pairs: Annotated[int, typer.Option(help="Number of clean/corrupted pairs.")] = 500,
    stories: Annotated[
        int, typer.Option(help="Write this many stories in plain English instead, for models trained with --base.")
    ] = 0,
) -> None:
    """Write the story problems of the small models: validation, test, hard and pair files; or stories."""
    from extract.small_models.problems import (
        SPLIT_SIZES,
        make_hard,
        make_pairs,
        make_splits,
        write_pairs,
        write_problems,
    )

    out.mkdir(parents=True, exist_ok=True)
    if stories:
        from extract.training.stories import write_stories

        write_stories(stories, seed, out / "stories.jsonl")
        console.print(f"{out / 'stories'}.jsonl: {stories} problems")
        return
    held_out = {name: size for name, size in SPLIT_SIZES.items() if name != "train"}
    for name, problems in (make_splits(seed, held_out) | {"hard": make_hard(seed=seed)}).items():
        write_problems(problems, out / f"{name}.jsonl")
        console.print(f"{out / name}.jsonl: {len(problems)} problems")
    write_pairs(make_pairs(pairs, seed), out / "pairs.json")
    console.print(f"{out / 'pairs'}.json: {pairs} pairs")


SHOWN_ROWS = 40
"""Rows of a table of which no command says how it is shortened."""
DEMO_MODELS = ("small-gpt2", "small-gpt2-decodable", "small-llama", "small-llama-decodable")


def demo_commands(lake: str, data: str, report: str) -> Iterator[list[str]]:
    """The commands of the demo, in order: extract once, analyse, re-enter, compare, report."""
    problems = [f"{model}/test" for model in DEMO_MODELS]
    pairs = [f"{model}/pairs" for model in DEMO_MODELS]
    hard = [f"{model}/hard" for model in DEMO_MODELS if not model.endswith("-decodable")]
    for model in DEMO_MODELS:
        for name, file, limit in (
            ("test", "test.jsonl", 600),
            ("pairs", "pairs.json", 400),
            ("hard", "hard.jsonl", 1000),
        ):
            if name != "hard" or f"{model}/hard" in hard:
                yield ["extract", "--model", model, "--data", f"{data}/{file}", "--lake", lake, "--limit", str(limit),
                       "--batch-size", "64", "--max-new-tokens", "8"]  # fmt: skip
    yield ["analyze", "heads", lake, *problems]
    yield ["analyze", "attention", lake, *problems]
    yield ["analyze", "lens", lake, *problems]
    yield ["analyze", "probes", lake, *problems, "--target", "intermediate_result"]
    yield ["analyze", "probes", lake, *problems, "--target", "operation", "--layers", "1",
           "--positions", "bot,ct0,ct1,ct2,ct3,ct4,ct5", "--max-examples", "300", "--controls", "1"]  # fmt: skip
    yield ["analyze", "probes", lake, *hard, "--target", "correct"]
    yield ["analyze", "sae", lake, *problems]
    yield ["analyze", "errors", lake, *hard]
    yield ["analyze", "sae", lake, "small-gpt2/test", "small-llama/test", "--scope", "crosscoder"]
    yield ["reenter", "corrupt", lake, *problems, "--limit", "200"]
    yield ["reenter", "ablate", lake, *problems, "--limit", "200"]
    yield ["reenter", "patch", lake, *pairs]
    yield ["reenter", "heads", lake, *problems, "--limit", "200"]
    yield ["reenter", "edges", lake, *problems, "--limit", "200"]
    yield ["reenter", "steer", lake, *hard, "--limit", "200"]
    yield ["reenter", "gradients", lake, *problems, "--limit", "100"]
    yield ["analyze", "correlate", lake, *problems, "--importance", "corrupt:failure"]
    yield ["analyze", "compare", lake, *problems]
    yield ["report", lake, "--out", report]


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="Lake to make.")] = Path("demo.lake"),
    report: Annotated[Path, typer.Option("--report", metavar="DIR", help="Folder of the report.")] = Path(
        "demo-report"
    ),
) -> None:
    """Both small models and their decodable twins, end to end: problems, lake, every analysis, report."""
    import tempfile

    with tempfile.TemporaryDirectory() as data:
        problems_command(out=Path(data))
        for arguments in demo_commands(str(out), data, str(report)):
            console.print("\n$ lake " + " ".join(arguments).replace(data, "DATA"), style="bold")
            app(args=arguments, standalone_mode=False)
    console.print(f"\nlake:   {out}\nreport: {report / 'index.html'}")
    console.print(f"open:   xarray.open_zarr({str(out)!r}, group='small-gpt2/test', consolidated=False)")


@app.command("train")
def train_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for checkpoints and training state.")],
    name: Annotated[
        str | None, typer.Argument(help="small-gpt2, small-llama, their -decodable twins or -direct comparisons.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    device: Device = "cpu",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="PATH_OR_ID", help="Instead of NAME: train adapters for this base model."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE[*K]", help="Problems, counted K times, or stories:N. May be repeated."),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option("--validation", metavar="FILE", help="Problems held out, whose accuracy is watched."),
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="codi|pause", help="codi, or pause: one learned vector is fed at every thought.")
    ] = "codi",
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 16,
    lora_alpha: Annotated[float, typer.Option(help="Numerator of the adapters' scale, over their rank.")] = 32.0,
    n_latent: Annotated[int, typer.Option("--thoughts", help="Number of thoughts.")] = 6,
    steps: Annotated[int | None, typer.Option(help="Steps in all.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes in all; the learning rate follows the time.")] = None,
    batch_size: Annotated[int, typer.Option(help="Problems of a step.")] = 64,
    accumulate: Annotated[int, typer.Option(help="Parts in which a step is computed.")] = 1,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a step at most.")] = 40_000,
    longest: Annotated[int, typer.Option(help="Longer problems, in tokens with chain and answer, are left out.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    warmup: Annotated[float, typer.Option(help="Share of the training in which the rate rises.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.01,
    clip: Annotated[float, typer.Option(help="Longest gradient.")] = 1.0,
    teacher_weight: Annotated[float, typer.Option(help="Weight of the written chain's loss.")] = 1.0,
    distillation_weight: Annotated[float, typer.Option(help="Weight of the distance to the teacher's states.")] = 1.0,
    last_step: Annotated[bool, typer.Option("--last-step", help="Leave the chain's last step in.")] = False,
    compute_dtype: Annotated[str, typer.Option(metavar="float32|bfloat16", help="Type of the products.")] = "float32",
    graphs: Annotated[bool, typer.Option("--graphs", help="On a GPU: record a step once and replay it.")] = False,
    save_every: Annotated[float, typer.Option(help="Seconds between saves.")] = 60.0,
) -> None:
    """Train a small CODI model from scratch, or adapters for a base model; run again, it goes on where it stopped."""
    if (name is None) == (base is None):
        raise UsageError("train: name one of the small models, or a base model with --base")
    if base is None:
        from extract.small_models.train import train as train_small

        with progress_bar(f"{name}, seed {seed}", "steps") as report:
            for folder in train_small(str(name), out, seed, device, progress=report):
                console.print(str(folder))
        return
    from extract.training.loop import TrainSettings, Watch, train

    if not data:
        raise UsageError("train --base: name what to train on with --data")
    arguments = locals()
    fields = {key: arguments[key] for key in TrainSettings.__dataclass_fields__} | {"data": tuple(data)}
    settings = TrainSettings(**fields)
    with progress_bar(f"{base}, seed {seed}", "steps" if steps else "s") as report:
        watch = Watch(save_every=save_every, progress=report, say=lambda line: typer.echo(line, err=True))
        folder = train(settings, out, validation=validation or (), device=device, watch=watch)
    console.print(str(folder))


Resamples = Annotated[int, typer.Option(help="Resamples of the bootstrap over problems.")]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]
OnlyLayers = Annotated[str | None, typer.Option("--layers", metavar="0,1..", help="Only these layers.")]
OnlyPositions = Annotated[str | None, typer.Option("--positions", metavar="bot,ct0..", help="Only these positions.")]
OnlyFirst = Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N examples.")]


def parts_of(
    lake: Any,
    runs: Sequence[str],
    *,
    layers: str | None = None,
    positions: str | None = None,
    limit: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an analysis reads of each run, all checked before the first is read; and what a result says of it."""
    from analyze.labels import part_of

    part = {"layers": layer_numbers(layers), "positions": words(positions), "limit": limit}
    parts = {run: part_of(lake[run], **part) for run in runs}
    some = parts[runs[0]]  # its order: results of the same part have the same settings
    part |= {name + "s": some[name].values.tolist() for name in ("layer", "position") if part[name + "s"]}
    return parts, {key: value for key, value in part.items() if value is not None}


def taken(lake: Any, kind: str, run: str) -> str:
    """Name of the result of a run that a command goes on from; said on stderr where several would do."""
    fitting = [each for each in lake.results(kind) if run in each.runs]
    result = lake.find(kind, run)
    if len(fitting) > 1:
        note(f"of {len(fitting)} results of {kind} of {run}, {result.name} is taken: {result.describe(lake.location)}")
    return str(result.name)


def compute(result: Any, label: str) -> Any:
    """Compute a lazy result, with a bar."""
    from dask.callbacks import Callback

    with progress_bar(label, "tasks") as report:

        def count(key: Any, value: Any, graph: Any, state: Any, worker: Any) -> None:
            parts = ("waiting", "ready", "running", "finished")
            report(len(state["finished"]), sum(len(state[part]) for part in parts))

        with Callback(posttask=count):
            return result.compute()


def keep(lake: Any, kind: str, result: Any, run: str, spec: dict[str, Any], csv: Path | None) -> dict[str, Any]:
    """Write a result into the lake, its tables as CSV if asked, and return its name and tables for ``--json``."""
    from analyze import result_tables

    result = result.assign_attrs(run=run)
    name = stored_as(lake, kind, result, [run], spec)
    tables = {part: table for part, table in result_tables(result).items() if "hidden" not in part}
    if csv is not None:
        csv.mkdir(parents=True, exist_ok=True)
        label = f"{kind}-tuned" if spec.get("lens") == "tuned" else kind
        for part, table in tables.items():
            table.to_csv(csv / f"{run.replace('/', '.')}-{label}-{part}.csv", index=False)
    short = {part: table for part, table in tables.items() if not part.startswith("example")}
    return {"result": name} | {part: json.loads(table.to_json(orient="records")) for part, table in short.items()}


@analyze.command("heads")
def heads_command(
    path: LakePath,
    runs: RunNames = None,
    convention: Annotated[
        str, typer.Option(metavar="thoughts|reports", help="thoughts, or reports: as report 004 computed it.")
    ] = "thoughts",
    top: Annotated[int, typer.Option(help="Heads that count as the best.")] = 20,
    resamples: Resamples = 300,
    limit: OnlyFirst = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Score every head: flow, hub, skip, composite, type, and how stable its rank is."""
    from analyze import head_analysis, summary_of_analysis

    lake, runs = runs_of(path, runs)
    spec = {"convention": convention, "top": top, "resamples": resamples, "seed": seed}
    parts, part = parts_of(lake, runs, limit=limit)
    spec |= part
    printed = {}
    for run in runs:
        attention = parts[run]["attention"]
        lazy = head_analysis(attention, convention, top=top, n_resample=resamples, seed=seed)  # type: ignore[arg-type]
        result = compute(lazy, run)
        printed[run] = keep(lake, "heads", result, run, spec, csv)
        summary = summary_of_analysis(result, top)
        printed[run] |= {"summary": keep(lake, "head_summary", summary, run, spec, csv)}
        if as_json:
            continue
        print_heads(run, result, spec)
        print_head_summary(run, summary)
    if as_json:
        print_json(printed)


def print_heads(run: str, result: Any, spec: Mapping[str, Any]) -> None:
    """The best heads, a line each."""
    from analyze import head_table

    convention, top = spec.get("convention", "thoughts"), spec.get("top", 20)
    found = head_table(result).head(top)
    constant = [name for name in ("flow", "hub", "skip") if float(result[f"{name}_weight"]) == 0]
    constant += ["flow"] if convention == "reports" else []
    n_head = result.sizes["layer"] * result.sizes["head"]
    print_table(
        f"{run}: {n_head} heads, {result.attrs['n_example']} examples, convention {convention}",
        ["rank", "head", "type", "band", "composite", "95%", "rank 95%", "flow", "hub", "at", "skip", "max"],
        [
            [
                head.rank,
                f"L{head.layer}H{head.head}",
                head.type or "-",
                head.band,
                head.composite,
                f"{head.composite_low:.2f}..{head.composite_high:.2f}",
                f"{head.rank_low:.0f}..{head.rank_high:.0f}",
                head.flow,
                head.hub,
                head.hub_position or "-",
                head.skip,
                head.max_attention,
            ]
            for head in found.itertuples()
        ],
        caption=f"constant over the heads: {', '.join(constant)}" if constant else None,
    )


def print_head_summary(run: str, summary: Any) -> None:
    """What each thought receives of attention."""
    print_table(
        f"{run}: attention received, mean over heads (hub {summary['hub_position'].item()}; sequential "
        f"{float(summary['mean_sequential']):.3f}, skip {float(summary['mean_skip']):.3f})",
        ["thought", "received", "spread evenly", "ratio"],
        summary[["incoming", "expected", "ratio"]].to_dataframe().reset_index().values.tolist(),
    )


@analyze.command("attention")
def attention_command(
    path: LakePath, runs: RunNames = None, layers: OnlyLayers = None, limit: OnlyFirst = None,
    resamples: Resamples = 300, seed: Seed = 0, as_json: AsJson = False, csv: CsvFolder = None,
) -> None:  # fmt: skip
    """Say where the answer looks, and where each thought looks: shares of attention that sum to 1."""
    from analyze import attention_summary

    lake, runs = runs_of(path, runs)
    parts, part = parts_of(lake, runs, layers=layers, limit=limit)
    printed = {}
    for run in runs:
        result = compute(attention_summary(parts[run]["attention"], n_resample=resamples, seed=seed), run)
        printed[run] = keep(lake, "attention", result, run, {"resamples": resamples, "seed": seed} | part, csv)
        if not as_json:
            print_attention(run, result)
    if as_json:
        print_json(printed)


def print_attention(run: str, result: Any) -> None:
    """Shares of the attention of ``eot`` and of the answer, by layer."""
    for query in ("eot", "answer"):
        if query not in result["query"]:
            continue
        part = result.sel(query=query)
        shares = part["layer_share"].transpose("layer", "target")
        print_table(
            f"{run}: attention of {query}, mean over heads, {int(part['n'])} examples",
            ["layer", *shares["target"].values, "all thoughts"],
            [
                [layer, *map(float, row), float(total)]
                for layer, row, total in zip(
                    shares["layer"].values, shares.values, part["layer_thought_total"].values, strict=True
                )
            ],
        )


@analyze.command("lens")
def lens_command(
    path: LakePath,
    runs: RunNames = None,
    top: Annotated[int, typer.Option(help="Best tokens kept of each state.")] = 5,
    tuned: Annotated[bool, typer.Option("--tuned", help="Also fit and use a tuned lens.")] = False,
    layers: OnlyLayers = None,
    positions: OnlyPositions = None,
    limit: OnlyFirst = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it would take.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Read every state out: numbers, results of the written chain, the answer, by layer and position."""
    from analyze import fit_tuned_lens

    lake, runs = runs_of(path, runs)
    parts, part = parts_of(lake, runs, layers=layers, positions=positions, limit=limit)
    where = part.get("positions")
    if plan:
        costs = {
            run: lens_costs(found, lake.model(run.split("/")[0]), where, top, tuned) for run, found in parts.items()
        }
        for run, cost in {} if as_json else costs.items():
            console.print(f"{run}: {said_of(cost)}")
        if as_json:
            print_json(costs)
        return
    printed: dict[str, dict[str, Any]] = {}
    for run, found in parts.items():
        model, said = lake.model(run.split("/")[0]), {"top": top} | part
        if found["hidden_state"].size * model.sizes["vocabulary"] > LONG_PRODUCT:
            cost = lens_costs(found, model, where, top, tuned)
            if cost["seconds"] > 60:
                note(f"{run}: {said_of(cost)}; --limit, --layers and --positions take a part")
        printed[run] = read_out(lake, run, found, model, None, said, csv, quiet=as_json)
        if tuned:
            with progress_bar(f"{run}, tuned lens", "layers") as report:
                fitted = fit_tuned_lens(found, model, positions=where, seed=seed, progress=report)
            printed[run]["tuned"] = read_out(lake, run, found, model, fitted, said, csv, quiet=as_json)
            printed[run]["tuned_lens"] = keep(lake, "tuned_lens", fitted, run, {"seed": seed} | part, csv)
            if not as_json:
                print_tuned_lens(run, fitted)
    if as_json:
        print_json(printed)


LONG_PRODUCT = 1e11
"""Multiplications from which on a read-out may take over a minute, so that it is worth an estimate."""


def lens_costs(found: Any, model: Any, positions: list[str] | None, top: int, tuned: bool) -> dict[str, Any]:
    """What the lens takes, twice where the tuned one comes after it (its fit is not counted)."""
    from analyze.lens.logit import lens_cost

    cost = lens_cost(found, model, positions=positions, top=top)
    times = 2 if tuned else 1
    return asdict(cost) | {"operations": times * cost.operations, "seconds": times * cost.seconds}


def said_of(cost: dict[str, Any]) -> str:
    """A lens' cost as text."""
    return (
        f"{cost['n_state']:,} states ({size(cost['n_byte'])}) over {cost['n_token']:,} tokens, "
        f"{cost['operations']:.1e} operations, about {duration(cost['seconds'])} on this machine"
    )


def print_tuned_lens(run: str, fitted: Any) -> None:
    """How well the tuned lens does by layer."""
    names = ["r2", "r2_plain", "kl", "kl_plain", "agreement", "agreement_plain"]
    rows = fitted[names].to_dataframe().reset_index().values.tolist()
    print_table(f"{run}: tuned lens, on problems it was not fitted on", ["layer", *names], rows)


def read_out(
    lake: Any, run: str, found: Any, model: Any, tuned: Any, said: dict[str, Any], csv: Path | None, *, quiet: bool
) -> dict[str, Any]:
    """One lens over one run: summary, paired tests, table."""
    from analyze import lens_summary, lens_tests, logit_lens
    from analyze.labels import thought_labels

    lens = logit_lens(found, model, positions=said.get("positions"), top=said["top"], tuned=tuned)
    both = compute(lens_summary(lens).assign(is_number=lens["is_number"]), run)
    result = both.drop_vars(["is_number", "example", "problem", "variant"], errors="ignore")
    spec = {"lens": result.attrs["lens"]} | said
    kept = keep(lake, "lens", result, run, spec, csv)
    if len(thought_labels(both)) > 1:  # the tests compare thoughts
        kept["tests"] = keep(lake, "lens_tests", lens_tests(both["is_number"]), run, spec, csv)
    if not quiet:
        print_lens(run, result)
    return kept


def print_lens(run: str, result: Any) -> None:
    """What the last layer reads out, by position."""
    last = result.isel(layer=-1)
    steps = [f"step {step}" for step in last["step"].values[:-1]]
    print_table(
        f"{run}: {result.attrs['lens']} lens, layer {int(last['layer'])}, {result.attrs['n_example']} examples",
        ["position", "n", "number", "95%", "result", "of another", *steps, "last", "p(answer)"],
        [
            [
                at["position"].item(),
                int(at["n"]),
                float(at["number_share"]),
                f"{float(at['number_share_low']):.3f}..{float(at['number_share_high']):.3f}",
                float(at["result_share"]),
                float(at["control_share"]),
                *map(float, at["inner_share"].values[: len(steps)]),
                float(at["last_share"]),
                float(at["gold_probability"]),
            ]
            for at in (last.sel(position=position) for position in last["position"].values)
            if int(at["n"]) > 0
        ],
        caption="shares of examples whose best token is a number; a result of the chain, or of another problem's; "
        "the result of a step that is not the last; of the last step; probability of the answer",
    )


@analyze.command("correlate")
def correlate_command(
    path: LakePath,
    runs: RunNames = None,
    importance: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What matters: a column of the run, or RESULT:MEASURE of a stored re-entry, as corrupt:failure.",
        ),
    ] = "answer_logprob",
    where: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of a re-entry: which conditions, as corruption=mean.")
    ] = None,
    query: Annotated[str, typer.Option(help="Whose attention: eot, answer, or a thought.")] = "eot",
    correction: Annotated[str, typer.Option(metavar="holm|bh", help="For many tests: holm or bh.")] = "holm",
    permutations: Annotated[int, typer.Option(help="Permutations.")] = 1000,
    resamples: Resamples = 500,
    layers: OnlyLayers = None,
    positions: OnlyPositions = None,
    limit: OnlyFirst = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Correlate attention with importance: pooled, by position, within problems, with position accounted for."""
    from analyze import answer_attention, attention_importance, importance_of, reentry_importance
    from analyze.labels import part_of

    lake, runs = runs_of(path, runs)
    spec = {
        "importance": importance,
        "where": sorted(where or []),
        "query": query,
        "correction": correction,
        "permutations": permutations,
        "resamples": resamples,
        "seed": seed,
    }
    _, part = parts_of(lake, runs, layers=layers, positions=positions, limit=limit)
    parts, _ = parts_of(lake, runs, layers=layers, limit=limit)  # a position is one looked at: every query stays
    spec |= part
    printed = {}
    for run, found in parts.items():
        kind, _, measure = importance.partition(":")
        chosen = dict(pair.partition("=")[::2] for pair in where or [])
        if measure:
            values = reentry_importance(lake.open_result(taken(lake, kind, run)), measure, **chosen)
        else:
            values = importance_of(found, importance)
        attention = part_of(answer_attention(found["attention"], query=query), positions=words(positions))
        for dim in {"example", "position"} & set(values.dims):
            values = values.isel({dim: values[dim].isin(attention[dim])})
        with progress_bar(run, "resamples") as report:
            result = attention_importance(
                attention,
                values,
                correction=correction,
                n_permutation=permutations,
                n_resample=resamples,
                seed=seed,
                progress=report,
            )
        printed[run] = keep(lake, "correlate", result, run, spec, csv)
        if not as_json:
            print_correlations(run, result, spec)
    if as_json:
        print_json(printed)


def print_correlations(run: str, result: Any, spec: Mapping[str, Any]) -> None:
    """Correlations by layer, in each way of taking them."""
    query, importance = spec.get("query", "eot"), spec.get("importance", "what matters")
    names = ("pooled", "within", "partial", "two_way")
    print_table(
        f"{run}: attention of {query} against {importance}, {int(result['n_example'])} examples",
        ["layer", *names, *result["position"].values],
        [
            [
                at["layer"].item(),
                *(correlation(at, name) for name in names),
                *(correlation(at.sel(position=position), "position") for position in at["position"].values),
            ]
            for at in (result.sel(layer=layer) for layer in result["layer"].values)
        ],
    )


def correlation(at: Any, name: str) -> str:
    """One correlation and its corrected p as text."""
    p = f" ({float(at[f'{name}_p_adjusted']):.2g})" if f"{name}_p_adjusted" in at else ""
    return f"{float(at[f'{name}_r']):+.2f}{p}"


@analyze.command("probes")
def probes_command(
    path: LakePath,
    runs: RunNames = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="correct, operation, intermediate_result, or a column of the run.")
    ] = "correct",
    treat: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="auto|classes|number",
            help="classes, number (by ridge), or auto: by the type of the target.",
        ),
    ] = "auto",
    layers: OnlyLayers = None,
    positions: OnlyPositions = None,
    limit: OnlyFirst = None,
    folds: Annotated[int, typer.Option(help="Folds of problems, outer and inner.")] = 5,
    selection: Annotated[
        str, typer.Option(metavar="log_loss|accuracy", help="What chooses the penalty: log_loss or accuracy.")
    ] = "log_loss",
    controls: Annotated[int, typer.Option(help="Repeats with labels shuffled among problems.")] = 3,
    permutations: Annotated[
        int | None, typer.Option(help="Permutations behind each p-value; enough for the correction by default.")
    ] = None,
    resamples: Resamples = 1000,
    correction: Annotated[str, typer.Option(metavar="holm|bh", help="For many cells: holm or bh.")] = "holm",
    max_example: Annotated[
        int, typer.Option("--max-examples", help="Examples used at most, whole problems drawn by the seed; 0: all.")
    ] = 2000,
    per_class: Annotated[
        int | None, typer.Option("--per-class", metavar="N", help="Draw N examples of each class.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Score to print: accuracy, balanced_accuracy, auroc, r2 .. (all of them are kept)."),
    ] = None,
    reports: Annotated[
        bool, typer.Option("--reports", help="As report 001: 50 of each class, penalty by accuracy, seed 42.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Probe every (layer, position) for a target: held out, with intervals, controls and corrected p-values."""
    from analyze import linear_probes, summarise_probes

    if reports:
        per_class, selection, seed = per_class or 50, "accuracy", seed or 42
    lake, runs = runs_of(path, runs)
    spec = {
        "target": target,
        "treat": treat,
        "layers": layer_numbers(layers),
        "positions": words(positions),
        "n_fold": folds,
        "selection": selection,
        "n_control": controls,
        "n_permutation": permutations,
        "n_resample": resamples,
        "correction": correction,
        "max_example": max_example or None,
        "n_per_class": per_class,
        "seed": seed,
    }
    parts, part = parts_of(lake, runs, layers=layers, positions=positions, limit=limit)
    printed = {}
    for run in runs:
        kept = kept_cells(path)
        with progress_bar(run, "cells") as report:
            result = linear_probes(parts[run], folder=kept, progress=report, **spec)  # type: ignore[arg-type]
        printed[run] = keep(lake, "probes", result, run, spec | part, csv)
        if kept is not None and kept.is_dir():
            shutil.rmtree(kept)
        if result.attrs["left_out"]:
            n_step = lake[run][target].sizes["step"] - result.sizes.get("step", 0)
            note(f"{run}: {n_step} steps of {target!r} left out: {result.attrs['left_out']}")
        table = summarise_probes(result)
        printed[run] = {key: value for key, value in printed[run].items() if not key.endswith("hidden")}
        printed[run] |= {"summary": table.to_dict("records")}
        if as_json:
            continue
        print_probes(run, result, spec, metric)
    if as_json:
        print_json(printed)


def print_probes(run: str, result: Any, spec: Mapping[str, Any], metric: str | None = None) -> None:
    """A score by layer and position, and the scores over all cells."""
    from analyze import summarise_probes

    target, correction = spec.get("target", "target"), spec.get("correction", "holm")
    main = "r2" if "r2" in result else "accuracy"
    constant = main == "accuracy" and bool((abs(result["accuracy"] - result["majority_accuracy"]) < 1e-3).all())
    shown = metric or ("auroc" if constant else main)
    table = summarise_probes(result, shown)
    parts = [result.isel(step=i) for i in range(len(table))] if "step" in result.dims else [result]
    for part in parts:
        grid = part[shown].transpose("layer", "position")
        found = part["p_corrected"].transpose("layer", "position") < 1 - part.attrs["level"]
        step = f", step {part['step'].item()}" if "step" in part.coords else ""
        print_table(
            f"{run}: {target}{step}, held-out {shown}, {int(part['n_example'].max())} examples"
            f" (* p < {1 - part.attrs['level']:.2f}, {correction}, {part.attrs['n_test']} cells)",
            ["layer", *grid["position"].values],
            [
                [layer, *(f"{value:.2f}{'*' if star else ' '}" for value, star in zip(row, stars, strict=True))]
                for layer, row, stars in zip(grid["layer"].values, grid.values, found.values, strict=True)
            ],
            caption="accuracy is constant: every cell calls everything the commonest class" if constant else None,
        )
    extra = {"training": f"training_{main}", "refit": f"refit_training_{main}"}
    print_table(
        f"{run}: {target}, {shown} over all cells",
        [*table.columns, *extra],
        [
            [*row, *(float(part[name].mean()) for name in extra.values())]
            for row, part in zip(table.values.tolist(), parts, strict=True)
        ],
        caption=f"baseline, control, training and refit: {main}; the last two on the rows the probe was fitted to, "
        f"refit is what report 001 calls accuracy. {result.attrs['note']}",
    )


@analyze.command("sae")
def sae_command(
    path: LakePath,
    runs: RunNames = None,
    scope: Annotated[
        str,
        typer.Option(
            metavar="pool|cell|crosscoder",
            help="pool: one dictionary; cell: one for each cell; crosscoder: one for all runs named.",
        ),
    ] = "pool",
    preset: Annotated[
        str | None,
        typer.Option(metavar="gpt2|llama|pilot|topk", help="Settings of the reports; options below override."),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            metavar="topk|batch_topk|relu|jumprelu|abs_topk", help="What makes codes sparse.  [default: topk]"
        ),
    ] = None,
    features: Annotated[int | None, typer.Option(help="Size of the dictionary.  [default: 4 times the width]")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Codes kept for each row.  [default: 16]")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Coefficient of the penalty of relu and jumprelu.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.  [default: 25]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a step.  [default: 256]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam.  [default: 0.003]")] = None,
    normalize: Annotated[
        str | None,
        typer.Option(metavar="cell|pool|none", help="Centre and scale by cell or pool, or none.  [default: cell]"),
    ] = None,
    variable: Annotated[
        str,
        typer.Option(
            metavar="hidden_state|final_state|latent_embedding|all_states", help="all_states: both of the first."
        ),
    ] = "hidden_state",
    layers: OnlyLayers = None,
    positions: Annotated[
        str | None, typer.Option(metavar="bot,ct0..", help="Only these positions.  [default: bot and all thoughts]")
    ] = None,
    limit: OnlyFirst = None,
    top: Annotated[int, typer.Option(help="Top-activating problems kept for each feature.")] = 10,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also save in the layout that SAELens loads.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Learn sparse dictionaries of a run's activations: reconstruction, sparsity, what each feature fires on."""
    from analyze.sae.dictionary import (
        REPORT_LAYERS,
        REPORT_POSITIONS,
        report_spec,
        sae_summary,
        save_sae,
        select_cells,
        train_sae,
    )

    lake, runs = runs_of(path, runs)
    given = {
        "activation": activation,
        "n_feature": features,
        "k": k,
        "sparsity": sparsity,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "normalize": normalize,
        "seed": seed,
    }
    spec = report_spec(preset, **{key: value for key, value in given.items() if value is not None})
    at = layer_numbers(layers) or (list(REPORT_LAYERS.get(preset, ())) or None if preset is not None else None)
    where = words(positions) if positions else (list(REPORT_POSITIONS) if preset is not None else None)
    said = spec.as_dict() | {"scope": scope, "variable": variable, "layers": at, "positions": where, "preset": preset}
    parts, part = parts_of(lake, runs, limit=limit)
    said |= part
    printed = {}
    for group in [runs] if scope == "crosscoder" else [[run] for run in runs]:
        label = " + ".join(group)
        arrays = {run: select_cells(parts[run], variable, layers=at, positions=where) for run in group}
        joint = {run.partition("/")[0]: array for run, array in arrays.items()}
        with progress_bar(label, "batches") as report:
            found = train_sae(
                joint if scope == "crosscoder" else arrays[group[0]],
                spec,
                scope=scope,  # type: ignore[arg-type]
                n_top=top,
                progress=report,
            )
        found.attrs["run"] = label
        note_infinite(label, found)
        name = stored_as(lake, "sae", found, group, said)
        if save is not None:
            folder = save if len(runs) == 1 or scope == "crosscoder" else save / group[0].replace("/", ".")
            save_sae(found, folder, metadata={"model_name": label, "result": name or ""})
        printed[label] = {"result": name} | tables_of(sae_summary(found), f"{label}-sae", csv)
        if not as_json:
            print_dictionary(label, found, name or "not kept")
    if as_json:
        print_json(printed)


def note_infinite(label: str, found: Any) -> None:
    """Say how many rows a dictionary could not be learned from."""
    if n_infinite := int(found["n_infinite"]):
        note(
            f"{label}: {n_infinite} rows hold infinite numbers and are left out; --dtype float32 would have stored them"
        )


def print_dictionary(label: str, found: Any, name: str) -> None:
    """Explained variance of every cell as rows and columns, and the rest in one line."""
    split = "test" if int(found["n_row"].sel(split="test").sum()) else "train"
    values = found["explained_variance"].sel(definition="squared_error", split=split)
    across = [str(dim) for dim in values.dims if dim in ("position", "latent")]
    over = [str(dim) for dim in values.dims if dim not in across]
    columns = values[across[0]].values.tolist() if across else ["explained variance"]
    table = values.expand_dims([] if over else ["cells"]).transpose(*(over or ["cells"]), *across)
    rows = table.values.reshape(-1, len(columns)).tolist()
    keys = table[over[0]].values.tolist() if len(over) == 1 else range(len(rows))
    total = found["explained_variance_all"].sel(definition="squared_error", split=split).values.reshape(-1)
    print_table(
        f"{label}: {found.attrs['activation']}, {found.sizes['feature']} features, explained variance of {split} rows",
        [over[0] if over else "", *columns],
        [[key, *row] for key, row in zip(keys, rows, strict=True)],
        caption=f"all cells {', '.join(f'{value:.3f}' for value in total)}; "
        f"L0 {float(found['l0'].sel(split=split).mean()):.1f}; "
        f"{100 * float(found['dead_share'].sel(split=split).mean()):.1f}% of features never fire; "
        f"{found.attrs['n_step']} steps, {found.attrs['n_revived']} revivals; {name}",
    )


@analyze.command("errors")
def errors_command(
    path: LakePath,
    runs: RunNames = None,
    sae: Annotated[
        str | None,
        typer.Option(metavar="RESULT", help="Stored dictionary; by default the run's, or a new one."),
    ] = None,
    pooling: Annotated[
        str, typer.Option(metavar="concatenate|mean|max", help="Over cells: concatenate, mean or max.")
    ] = "concatenate",
    penalties: Annotated[
        str, typer.Option(metavar="C,C..", help="Values of C to choose from on validation problems.")
    ] = "0.0001,0.001,0.01,0.1,1",
    balanced: Annotated[bool, typer.Option("--balanced", help="Weight right and wrong answers equally.")] = False,
    resamples: Resamples = 1000,
    reports: Annotated[
        bool, typer.Option("--reports", help="As report 001: C of 1, nothing scaled, a random fifth held out.")
    ] = False,
    limit: OnlyFirst = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Predict from sparse codes whether answers are wrong; beside raw activations, question length and majority."""
    from analyze.errors.prediction import error_spec, predict_errors
    from analyze.sae.dictionary import activation_of

    lake, runs = runs_of(path, runs)
    try:
        values = tuple(float(value) for value in penalties.split(","))
    except ValueError:
        raise UsageError(f"--penalties takes numbers between commas, as 0.01,1; found {penalties!r}") from None
    spec = error_spec(
        reports, pooling=pooling, penalties=values, balanced=balanced, n_resample=resamples, seed=seed or None
    )
    parts, part = parts_of(lake, runs, limit=limit)
    printed = {}
    for run in runs:
        if sae is None and not any(run in result.runs for result in lake.results("sae")):
            console.print(f"{run} has no dictionary yet; learning one", style="dim") if not as_json else None
            train_default(lake, run)
        dictionary = lake.open_result(sae or taken(lake, "sae", run))
        activation = activation_of(
            dictionary,
            {each: parts_of(lake, [each], limit=limit)[0][each] for each in json.loads(dictionary.attrs["runs"])},
        )
        with progress_bar(run, "passes") as report:
            found = predict_errors(parts[run], dictionary, activation, spec, progress=report)
        found.attrs["run"] = run
        said = spec.as_dict() | part | {"sae": str(dictionary.attrs["fingerprint"])}
        name = stored_as(lake, "errors", found, [run], said)
        printed[run] = {"result": name} | tables_of(found.drop_dims(["example", "feature"]), f"{run}-errors", csv)
        if not as_json:
            print_errors(run, found, name or "not kept")
    if as_json:
        print_json(printed)


def train_default(lake: Any, run: str) -> None:
    """Learn and store a dictionary of a run with the settings of ``lake analyze sae``."""
    from analyze.sae.dictionary import SAESpec, select_cells, train_sae

    spec = SAESpec()
    with progress_bar(run, "batches") as report:
        found = train_sae(select_cells(lake[run]), spec, progress=report)
    found.attrs["run"] = run
    note_infinite(run, found)
    more = {"scope": "pool", "variable": "hidden_state", "layers": None, "positions": None, "preset": None}
    command = COMMANDS["sae"].replace("RUNS", run).split()
    lake.write_result("sae", found, runs=[run], spec=spec.as_dict() | more, command=command)


def print_errors(run: str, found: Any, name: str) -> None:
    """Each predictor's held-out scores in a line."""
    rows = []
    for predictor in found["predictor"].values:
        one = found.sel(predictor=predictor)
        bounds = {n: f"{float(one[f'{n}_low']):.2f}..{float(one[f'{n}_high']):.2f}" for n in ("accuracy", "auroc")}
        gain, low, high = (float(one[f"auroc_gain{part}"]) for part in ("", "_low", "_high"))
        rows.append(
            [
                str(predictor).replace("_", " "),
                float(one["accuracy"]),
                bounds["accuracy"],
                float(one["auroc"]),
                bounds["auroc"],
                *(float(one[n].sel(outcome=o)) for o in ("wrong", "right") for n in ("precision", "recall")),
                "-" if predictor == "sae_codes" else f"{gain:+.3f} ({low:+.3f}..{high:+.3f})",
                float(one["train_accuracy"]),
            ]
        )
    wrong = int(found["n_test"].sel(outcome="wrong"))
    note = str(found["note"].item())
    print_table(
        f"{run}: will the answer be wrong? {wrong} of {int(found['n_test'].sum())} test answers are",
        ["predictor", "accuracy", "95%", "AUROC", "95%", "precision wrong", "recall wrong"]
        + ["precision right", "recall right", "codes' gain in AUROC", "training accuracy"],
        rows,
        caption=f"{note + '; ' if note else ''}training accuracy is a diagnostic only; {name}",
    )


def tables_of(result: Any, label: str, csv: Path | None) -> dict[str, Any]:
    """Tables of a result for ``--json``, and as CSV files if asked."""
    from analyze import result_tables

    tables = result_tables(result)
    if csv is not None:
        csv.mkdir(parents=True, exist_ok=True)
        for part, table in tables.items():
            table.to_csv(csv / f"{label.replace('/', '.').replace(' ', '')}-{part}.csv", index=False)
    return {part: json.loads(table.to_json(orient="records")) for part, table in tables.items()}


def layer_numbers(text: str | None) -> list[int] | None:
    """Layers from ``0,1,5``."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--layers takes whole numbers between commas, as 0,5,11; found {text!r}") from None


Checkpoint = Annotated[
    list[str] | None,
    typer.Option(metavar="[NAME=]CHECKPOINT", help="Where a run's model is; by default what the lake remembers."),
]
ReentryBase = Annotated[
    list[str] | None, typer.Option("--base", metavar="[NAME=]PATH_OR_ID", help="Its base model, as for extract.")
]
ReentryDtype = Annotated[
    str | None,
    typer.Option(
        "--compute-dtype",
        metavar="float32|float16|bfloat16",
        help="Type in which the model runs; by default that of the run's extraction.",
    ),
]
ReentryLimit = Annotated[int | None, typer.Option(help="Only the first N examples.")]
Rows = Annotated[
    int | None,
    typer.Option(
        help="Examples times conditions in one batch; by default what fits a gigabyte, or a quarter of a card's free"
        " memory."
    ),
]
Rule = Annotated[
    str, typer.Option(metavar="default|reports", help="How a number is read from a text: default, or reports.")
]
Preset = Annotated[
    str | None, typer.Option(metavar="reports", help="reports: the settings of the reports, done right.")
]
Layers = Annotated[str | None, typer.Option(help="Layers, as 0,5,11; by default all.")]
Positions = Annotated[str | None, typer.Option(help="Positions, as bot,ct0,ct5; by default the thoughts.")]


def words(text: str | None) -> list[str] | None:
    """Words between commas."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def numbers_of(text: str, what: str) -> list[float]:
    """Numbers between commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--{what} takes numbers between commas, as -1,0.5,2; found {text!r}") from None


def one_of(value: str | None, allowed: Sequence[str], what: str) -> str | None:
    """Check a word."""
    if value is not None and value not in allowed:
        raise UsageError(f"--{what} {value} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
    return value


def named(values: Sequence[str] | None, run: str, what: str) -> str | None:
    """The value for a run's model among ``[NAME=]VALUE``."""
    model = run.split("/")[0]
    found = None
    for value in values or ():
        name, sign, rest = value.partition("=")
        if sign and not (name and rest):
            raise UsageError(f"--{what} {value!r} is not of the form [NAME=]VALUE")
        if not sign or name == model:
            found = rest or value
    return found


def reenter_runs(
    command: str,
    path: str,
    runs: Sequence[str] | None,
    experiment: Callable[[Any], Any],
    spec: dict[str, Any],
    common: dict[str, Any],
) -> None:
    """Run an experiment on every run, keep its results in the lake, and print them side by side."""
    import shutil

    from analyze import result_tables
    from extract.reenter import open_target

    lake, names = runs_of(path, runs)
    one_of(common["rule"], ("default", "reports"), "rule")
    printed: dict[str, Any] = {}
    parts: dict[str, tuple[list[tuple[tuple[Any, ...], list[str]]], list[str]]] = {}
    for run in names:
        target = open_target(
            lake,
            run,
            checkpoint=named(common["checkpoint"], run, "checkpoint"),
            base=named(common["base"], run, "base"),
            device=common["device"],
            compute_dtype=common["compute_dtype"],
            lora_alpha=common["lora_alpha"],
            limit=common["limit"],
        )
        if target.compute_dtype != target.made_in:
            note(f"{run} was computed in {target.made_in}; the model goes on in {target.compute_dtype}")
        target.rule, target.batch_rows = common["rule"], common["batch_rows"]
        if "://" not in path:
            target.folder = Path(f"{path.rstrip('/')}.reenter") / command / run.replace("/", ".")
        with progress_bar(f"{command} {run}", "rows") as report:
            target.progress = report
            result = experiment(target)
        settings = {**spec, "limit": common["limit"], "rule": common["rule"], "compute_dtype": target.compute_dtype}
        result.attrs |= {"compute_dtype": target.compute_dtype, "device": target.reasoner.device.type}
        name = stored_as(lake, command, result, [run], settings)
        if target.folder is not None and target.folder.parent.is_dir():
            shutil.rmtree(target.folder, ignore_errors=True)
            for folder in (target.folder.parent, target.folder.parent.parent):
                if not any(folder.iterdir()):
                    folder.rmdir()
        brief = result.drop_vars([key for key, each in result.variables.items() if "example" in each.dims])
        tables = result_tables(brief)
        if common["csv"] is not None:
            common["csv"].mkdir(parents=True, exist_ok=True)
            for part, table in tables.items():
                table.to_csv(common["csv"] / f"{run.replace('/', '.')}-{command}-{part}.csv", index=False)
        records = {part: json.loads(table.to_json(orient="records")) for part, table in tables.items()}
        printed[run] = {"result": name, "attrs": dict(result.attrs)} | records
        parts[run] = reentry_part(command, result, settings, name)
    if common["as_json"]:
        print_json(printed)
        return
    print_reentry(command, parts)


def reentry_part(
    kind: str, result: Any, spec: Mapping[str, Any], name: str | None
) -> tuple[list[tuple[tuple[Any, ...], list[str]]], list[str]]:
    """What is printed of one run's result: rows of the table, and lines below it."""
    lines = [*REENTRIES[kind].lines(result, spec), kept(name)]
    if "positions_fed" in result.attrs:
        fed, alone = result.attrs["positions_fed"], result.attrs["positions_one_by_one"]
        lines.append(f"{fed} positions fed, {alone} one condition at a time ({fed / alone:.0%})")
    return REENTRIES[kind].rows(result), lines


def print_reentry(kind: str, parts: Mapping[str, tuple[list[tuple[tuple[Any, ...], list[str]]], list[str]]]) -> None:
    """Results of a re-entry, by run, side by side."""
    labels, measures = REENTRIES[kind].labels, REENTRIES[kind].measures
    cells: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for run, (rows, _) in parts.items():
        for key, values in rows:
            cells.setdefault(key, {})[run] = values
    blank = ["-"] * len(measures)
    heads = [
        f"{run if number == 0 and len(parts) > 1 else ''}\n{measure}"
        for run in parts
        for number, measure in enumerate(measures)
    ]
    table = Table(title=f"{kind} {', '.join(parts)}", title_justify="left", box=None, pad_edge=False)
    for index, head in enumerate([*labels, *heads]):
        # On a terminal the measures keep their width and labels fold; a pipe has no width to fit into.
        table.add_column(head, no_wrap=index >= len(labels) or not console.is_terminal)
    for key, found in cells.items():
        table.add_row(*key, *(cell for run in parts for cell in found.get(run, blank)))
    (console if console.is_terminal else Console(width=400, highlight=False, markup=False)).print(table)
    for run, (_, lines) in parts.items():
        for line in lines:
            console.print(f"{run}: {line}")


def accuracy_cells(labels: Sequence[str]) -> tuple[Sequence[str], Callable[[Any], Any], Sequence[str]]:
    """Table of accuracy by condition."""

    def rows(result: Any) -> list[tuple[tuple[Any, ...], list[str]]]:
        part = result.sel(stratum="all")
        found = []
        for index in range(part.sizes["condition"]):
            line = part.isel(condition=index)
            key = tuple("" if label not in line.coords else shown(label, line[label].item()) for label in labels)
            found.append(
                (
                    key,
                    [
                        str(int(line["n"])),
                        interval(line, "accuracy"),
                        f"{float(line['drop']):+.3f}",
                        p_cell(line["p"]),
                        p_cell(line["p_holm"]),
                        f"{float(line['kl_mean']):.2f}",
                    ],
                )
            )
        return found

    return labels, rows, ("n", "accuracy 95%", "drop", "p", "p Holm", "KL")


def p_cell(value: Any) -> str:
    """A p-value; a dash where there is none, as of a control that is not among the tests corrected for."""
    return f"{float(value):.1e}" if float(value) == float(value) else "-"


def interval(line: Any, name: str) -> str:
    """A share and its interval."""
    value, low, high = (float(line[each]) for each in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"


def shown(label: str, value: Any) -> str:
    """A coordinate as a word."""
    if label == "layer":
        return "all" if value == -1 else str(value)
    if isinstance(value, float):
        return "" if value != value else f"{value:+g}"
    return str(value)


def ablate_lines(result: Any, spec: Mapping[str, Any]) -> list[str]:
    """Where numbers are read, and what does not count."""
    share = [
        f"{p} {float(s):.1%}" for p, s in zip(result["position"].values, result["number_share"].values, strict=True)
    ]
    left = f"up to {float(result['share_not_counted'].max()):.1%} of examples lack such thoughts and do not count"
    return [f"states that read a number: {', '.join(share)}; {left}"]


def patch_rows(result: Any) -> list[tuple[tuple[Any, ...], list[str]]]:
    """Outcomes of each condition."""
    found = []
    for index in range(result.sizes["condition"]):
        line = result.isel(condition=index)
        key = tuple(shown(label, line[label].item()) for label in ("site", "layer", "positions", "kind", "control"))
        share = {
            kind: line.sel(outcome_kind=kind) for kind in ("clean_answer", "corrupted_answer", "other", "gibberish")
        }
        clean = share["clean_answer"]
        found.append(
            (
                key,
                [
                    interval(clean, "share"),
                    *(f"{float(share[kind]['share']):.3f}" for kind in ("corrupted_answer", "other", "gibberish")),
                    f"{float(line['recovery']):+.2f}",
                    p_cell(line["p"]),
                    p_cell(line["p_holm"]),
                ],
            )
        )
    return found


def patch_lines(result: Any, spec: Mapping[str, Any]) -> list[str]:
    """Which pairs count, and from how many thoughts on the clean answer wins."""
    a = result.attrs
    lines = [
        f"{a['n_counted']} of {a['n_pair']} pairs count; {a['n_same_answer']} have the same answer twice,"
        f" {a['n_not_both_right']} are not both answered rightly"
    ]
    for index in range(result.sizes["series"]):
        each = result.isel(series=index)
        n, low, high = (float(each[name]) for name in ("n_that_wins", "n_that_wins_low", "n_that_wins_high"))
        where = f"{each['series_site'].item()}, layer {shown('layer', each['series_layer'].item())}"
        won = f"from N = {n:.0f} [{low:.0f}, {high:.0f}]" if n == n else "at no N"
        lines.append(f"{where}: the clean answer wins {won}; in {float(each['never_wins']):.0%} of resamples never")
    return lines


def head_lines(result: Any, spec: Mapping[str, Any]) -> list[str]:
    """What ranked the heads."""
    return [f"ranked by {spec.get('by', 'composite')}: {' '.join(result.attrs['ranking'].split()[:10])} ..."]


def edge_lines(result: Any, spec: Mapping[str, Any]) -> list[str]:
    """Which position is the hub."""
    return [f"hub: {result.attrs['hub']}"]


def gradient_rows(result: Any) -> list[tuple[tuple[Any, ...], list[str]]]:
    """Attribution and magnitude of each thought."""
    found = []
    for latent in result["latent"].values:
        line = result.sel(latent=latent)
        mean, low, high = (float(line[f"attribution_{part}"]) for part in ("mean", "low", "high"))
        size = float(line["magnitude_mean"])
        found.append(((str(latent),), [f"{mean:+.3f} [{low:+.2f}, {high:+.2f}]", f"{size:.3f}"]))
    return found


def gradient_lines(result: Any, spec: Mapping[str, Any]) -> list[str]:
    """How far attributions are from adding up."""
    return [f"attributions miss the difference they should add up to by {result.attrs['relative_residual']:.2%}"]


SWEPT = ("layer", "position", "head", "operation", "donor", "strength")


def sweep_rows(result: Any) -> list[tuple[tuple[Any, ...], list[str]]]:
    """Accuracy at each place of the grid."""
    names = ["accuracy", "accuracy_low", "accuracy_high", "drop", "p", "p_holm", "kl_mean"]
    part = result[names].sel(stratum="all")
    frame = part.to_dataframe().reset_index()
    found = []
    for line in frame.itertuples():
        key = tuple(str(getattr(line, dim, "")) for dim in SWEPT)
        accuracy = f"{line.accuracy:.3f} [{line.accuracy_low:.2f}, {line.accuracy_high:.2f}]"
        found.append((key, [accuracy, f"{line.drop:+.3f}", p_cell(line.p), p_cell(line.p_holm), f"{line.kl_mean:.2f}"]))
    return found


class Reentry(NamedTuple):
    """How the results of a re-entry are printed."""

    labels: Sequence[str]
    """Columns that say what was done."""
    rows: Callable[[Any], list[tuple[tuple[Any, ...], list[str]]]]
    """Labels and measures of each row of a result."""
    measures: Sequence[str]
    lines: Callable[[Any, Mapping[str, Any]], list[str]] = lambda result, spec: []
    """What else a result says, given its settings."""


REENTRIES = {
    "ablate": Reentry(*accuracy_cells(("site", "layer", "operation", "group", "control")), ablate_lines),
    "corrupt": Reentry(*accuracy_cells(("site", "layer", "corruption", "group", "control"))),
    "patch": Reentry(
        ("site", "layer", "positions", "kind", "control"),
        patch_rows,
        ("clean 95%", "corrupted", "other", "gibberish", "recovery", "p", "p Holm"),
        patch_lines,
    ),
    "ablate_heads": Reentry(*accuracy_cells(("group", "control")), head_lines),
    "edges": Reentry(*accuracy_cells(("group", "control")), edge_lines),
    "steer": Reentry(*accuracy_cells(("layer", "direction", "strength", "control"))),
    "gradients": Reentry(("thought",), gradient_rows, ("attribution 95%", "magnitude"), gradient_lines),
    "sweep": Reentry(SWEPT, sweep_rows, ("accuracy 95%", "drop", "p", "p Holm", "KL")),
}


def common_options(**options: Any) -> dict[str, Any]:
    """Options that all re-entry commands share."""
    return options


def report_layers(target: Any, preset: str | None) -> list[int] | None:
    """Early, middle and late layer of the reports (outputs of blocks 2, 5, 10 of 12 and 3, 7, 13 of 16)."""
    if preset is None:
        return None
    n_layer = target.reasoner.n_layer
    return sorted({max(0, round(part * n_layer) - 1) for part in (0.25, 0.5, 0.9)})


@reenter.command("ablate")
def ablate_command(
    path: LakePath,
    runs: RunNames = None,
    sites: Annotated[
        str, typer.Option(metavar="hidden_state,latent_embedding", help="Where: one of them, or both.")
    ] = "hidden_state,latent_embedding",
    layers: Layers = None,
    operations: Annotated[
        str,
        typer.Option(metavar="zero|mean|mean:run|mean:correct|mean:wrong|resample,..", help="What is done to them."),
    ] = "zero,mean",
    draws: Annotated[int, typer.Option(help="Random sets of positions beside each group.")] = 1,
    preset: Preset = None,
    checkpoint: Checkpoint = None,
    base: ReentryBase = None,
    device: Device = "cpu",
    compute_dtype: ReentryDtype = None,
    lora_alpha: Alpha = None,
    limit: ReentryLimit = None,
    batch_rows: Rows = None,
    rule: Rule = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Ablate the thoughts that carry numbers, the others, and as many at random."""
    from extract.reenter import ablate

    one_of(preset, ("reports",), "preset")
    chosen = ["hidden_state"] if preset else words(sites) or []
    actions = ["zero"] if preset else words(operations) or []
    wanted = layer_numbers(layers)

    def experiment(target: Any) -> Any:
        where = wanted or report_layers(target, preset)
        return ablate(target, sites=chosen, layers=where, operations=actions, n_random=draws, seed=seed)

    spec = {"sites": chosen, "layers": wanted, "operations": actions, "draws": draws, "preset": preset, "seed": seed}
    common = common_options(
        checkpoint=checkpoint, base=base, device=device, compute_dtype=compute_dtype, lora_alpha=lora_alpha,
        limit=limit, batch_rows=batch_rows, rule=rule, as_json=as_json, csv=csv,
    )  # fmt: skip
    reenter_runs("ablate", path, runs, experiment, spec, common)


@reenter.command("corrupt")
def corrupt_command(
    path: LakePath,
    runs: RunNames = None,
    site: Annotated[str, typer.Option(metavar="latent_embedding|hidden_state", help="Where.")] = "latent_embedding",
    layers: Layers = None,
    positions: Positions = None,
    corruptions: Annotated[str | None, typer.Option(help="Of zero, mean, noise 0.1, noise 0.5, ..., resample.")] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Keep the other thoughts as they were: direct effects only.")
    ] = False,
    preset: Preset = None,
    checkpoint: Checkpoint = None,
    base: ReentryBase = None,
    device: Device = "cpu",
    compute_dtype: ReentryDtype = None,
    lora_alpha: Alpha = None,
    limit: ReentryLimit = None,
    batch_rows: Rows = None,
    rule: Rule = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Importance of each thought: zero, mean, noise of four strengths, another problem's, shuffled."""
    from extract.reenter import corrupt

    one_of(preset, ("reports",), "preset")
    if preset:
        site, hold = "hidden_state", True
    one_of(site, ("latent_embedding", "hidden_state"), "site")
    wanted, places = layer_numbers(layers), words(positions)

    def experiment(target: Any) -> Any:
        chosen = places or (["bot", *target.thoughts[:-1]] if preset else None)
        middle = wanted or ([max(0, target.reasoner.n_layer // 2 - 1)] if preset else None)
        return corrupt(
            target, site=site, layers=middle, positions=chosen, corruptions=words(corruptions), hold=hold, seed=seed  # type: ignore[arg-type]
        )  # fmt: skip

    spec = {
        "site": site, "layers": wanted, "positions": places, "corruptions": words(corruptions), "hold": hold,
        "preset": preset, "seed": seed,
    }  # fmt: skip
    common = common_options(
        checkpoint=checkpoint, base=base, device=device, compute_dtype=compute_dtype, lora_alpha=lora_alpha,
        limit=limit, batch_rows=batch_rows, rule=rule, as_json=as_json, csv=csv,
    )  # fmt: skip
    reenter_runs("corrupt", path, runs, experiment, spec, common)


@reenter.command("patch")
def patch_command(
    path: LakePath,
    runs: RunNames = None,
    sites: Annotated[
        str, typer.Option(metavar="hidden_state,latent_embedding", help="Where: one of them, or both.")
    ] = "hidden_state,latent_embedding",
    layers: Layers = None,
    subsets: Annotated[str, typer.Option(metavar="none|named|all", help="named: the reports' three.")] = "named",
    preset: Preset = None,
    checkpoint: Checkpoint = None,
    base: ReentryBase = None,
    device: Device = "cpu",
    compute_dtype: ReentryDtype = None,
    lora_alpha: Alpha = None,
    limit: ReentryLimit = None,
    batch_rows: Rows = None,
    rule: Rule = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Patch the clean half's thoughts into the corrupted half of every pair that was answered rightly twice."""
    from extract.reenter import patch

    one_of(preset, ("reports",), "preset")
    one_of(subsets, ("none", "named", "all"), "subsets")
    chosen = ["hidden_state"] if preset else words(sites) or []
    wanted = layer_numbers(layers)

    def experiment(target: Any) -> Any:
        where = wanted or report_layers(target, preset)
        return patch(target, sites=chosen, layers=where, subsets=subsets, legacy=preset is not None, seed=seed)

    spec = {"sites": chosen, "layers": wanted, "subsets": subsets, "preset": preset, "seed": seed}
    common = common_options(
        checkpoint=checkpoint, base=base, device=device, compute_dtype=compute_dtype, lora_alpha=lora_alpha,
        limit=limit, batch_rows=batch_rows, rule=rule, as_json=as_json, csv=csv,
    )  # fmt: skip
    reenter_runs("patch", path, runs, experiment, spec, common)


@reenter.command("heads")
def reenter_heads_command(
    path: LakePath,
    runs: RunNames = None,
    by: Annotated[str, typer.Option(help="Score of lake analyze heads that ranks them.")] = "composite",
    counts: Annotated[str, typer.Option(help="How many of the top-ranked to ablate together.")] = "1,2,5,10",
    operation: Annotated[str, typer.Option(metavar="zero|mean|resample", help="What is done to them.")] = "zero",
    positions: Positions = None,
    draws: Annotated[int, typer.Option(help="Random sets of each size.")] = 5,
    checkpoint: Checkpoint = None,
    base: ReentryBase = None,
    device: Device = "cpu",
    compute_dtype: ReentryDtype = None,
    lora_alpha: Alpha = None,
    limit: ReentryLimit = None,
    batch_rows: Rows = None,
    rule: Rule = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Ablate every head, the top-ranked together, and as many at random."""
    from extract.reenter import ablate_heads

    one_of(operation, ("zero", "mean", "resample"), "operation")
    sizes = [int(each) for each in layer_numbers(counts) or []]

    def experiment(target: Any) -> Any:
        return ablate_heads(
            target, by=by, counts=sizes, operation=operation, positions=words(positions), n_random=draws, seed=seed
        )

    spec = {
        "by": by,
        "counts": sizes,
        "operation": operation,
        "positions": words(positions),
        "draws": draws,
        "seed": seed,
    }
    common = common_options(
        checkpoint=checkpoint, base=base, device=device, compute_dtype=compute_dtype, lora_alpha=lora_alpha,
        limit=limit, batch_rows=batch_rows, rule=rule, as_json=as_json, csv=csv,
    )  # fmt: skip
    reenter_runs("ablate_heads", path, runs, experiment, spec, common)


@reenter.command("edges")
def edges_command(
    path: LakePath,
    runs: RunNames = None,
    hub: Annotated[
        str | None, typer.Option(help="Position cut off or forced; by default the one most attended to.")
    ] = None,
    layers: Layers = None,
    checkpoint: Checkpoint = None,
    base: ReentryBase = None,
    device: Device = "cpu",
    compute_dtype: ReentryDtype = None,
    lora_alpha: Alpha = None,
    limit: ReentryLimit = None,
    batch_rows: Rows = None,
    rule: Rule = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Cut attention edges: the hub, the sequence, single thoughts, sets of them; or force the hub."""
    from extract.reenter import cut_edges

    wanted = layer_numbers(layers)

    def experiment(target: Any) -> Any:
        return cut_edges(target, hub=hub, layers=wanted, seed=seed)

    common = common_options(
        checkpoint=checkpoint, base=base, device=device, compute_dtype=compute_dtype, lora_alpha=lora_alpha,
        limit=limit, batch_rows=batch_rows, rule=rule, as_json=as_json, csv=csv,
    )  # fmt: skip
    reenter_runs("edges", path, runs, experiment, {"hub": hub, "layers": wanted, "seed": seed}, common)


@reenter.command("steer")
def steer_command(
    path: LakePath,
    runs: RunNames = None,
    directions: Annotated[
        str, typer.Option(help="correct-wrong, or KIND:VARIABLE[:DIM=LABEL] of a result in the lake, between spaces.")
    ] = "correct-wrong",
    strengths: Annotated[str, typer.Option(help=f"In {STEERING_UNIT}.")] = "-3,-2,-1,-0.5,0.5,1,2,3",
    site: Annotated[str, typer.Option(metavar="hidden_state|latent_embedding", help="Where.")] = "hidden_state",
    layers: Layers = None,
    positions: Positions = None,
    draws: Annotated[int, typer.Option(help="Random directions beside them.")] = 3,
    checkpoint: Checkpoint = None,
    base: ReentryBase = None,
    device: Device = "cpu",
    compute_dtype: ReentryDtype = None,
    lora_alpha: Alpha = None,
    limit: ReentryLimit = None,
    batch_rows: Rows = None,
    rule: Rule = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Add directions to the thoughts, on both sides, with random ones beside them."""
    from extract.reenter import steer

    one_of(site, ("latent_embedding", "hidden_state"), "site")
    wanted, sizes = layer_numbers(layers), numbers_of(strengths, "strengths")

    def experiment(target: Any) -> Any:
        return steer(
            target, site=site, layers=wanted, positions=words(positions), strengths=sizes,  # type: ignore[arg-type]
            directions=directions.split(), n_random=draws, seed=seed,
        )  # fmt: skip

    spec = {
        "directions": directions.split(), "strengths": sizes, "site": site, "layers": wanted,
        "positions": words(positions), "draws": draws, "seed": seed,
    }  # fmt: skip
    common = common_options(
        checkpoint=checkpoint, base=base, device=device, compute_dtype=compute_dtype, lora_alpha=lora_alpha,
        limit=limit, batch_rows=batch_rows, rule=rule, as_json=as_json, csv=csv,
    )  # fmt: skip
    reenter_runs("steer", path, runs, experiment, spec, common)


@reenter.command("gradients")
def gradients_command(
    path: LakePath,
    runs: RunNames = None,
    baseline: Annotated[
        str, typer.Option(metavar="mean|zero", help="mean of each thought over the run, or zero.")
    ] = "mean",
    steps: Annotated[int, typer.Option(help="Points on the way from the baseline.")] = 32,
    checkpoint: Checkpoint = None,
    base: ReentryBase = None,
    device: Device = "cpu",
    compute_dtype: ReentryDtype = None,
    lora_alpha: Alpha = None,
    limit: ReentryLimit = None,
    batch_rows: Rows = None,
    rule: Rule = "default",
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Integrated gradients of the answer's logit difference with respect to the thoughts."""
    from extract.reenter import integrated_gradients

    one_of(baseline, ("mean", "zero"), "baseline")

    def experiment(target: Any) -> Any:
        return integrated_gradients(target, baseline=baseline, n_step=steps)  # type: ignore[arg-type]

    common = common_options(
        checkpoint=checkpoint, base=base, device=device, compute_dtype=compute_dtype, lora_alpha=lora_alpha,
        limit=limit, batch_rows=batch_rows, rule=rule, as_json=as_json, csv=csv,
    )  # fmt: skip
    spec = {"baseline": baseline, "steps": steps}
    reenter_runs("gradients", path, runs, experiment, spec, common)


@reenter.command("sweep")
def sweep_command(
    path: LakePath,
    runs: RunNames = None,
    site: Annotated[
        str, typer.Option(metavar="latent_embedding|hidden_state|head_output|attention", help="Where.")
    ] = "hidden_state",
    layers: Layers = None,
    positions: Positions = None,
    heads: Annotated[str | None, typer.Option(help="Heads, as 0,3; by default all, one at a time.")] = None,
    keys: Annotated[str | None, typer.Option(help="Key positions of attention's edges, as bot,ct0.")] = None,
    operations: Annotated[
        str,
        typer.Option(metavar="zero|mean|mean:run|resample|noise|scale|replace|force,..", help="What is done there."),
    ] = "zero",
    donors: Annotated[
        str, typer.Option(metavar="forward|stored|twin|other,..", help="For replace: whose values go in.")
    ] = "stored",
    strengths: Annotated[str, typer.Option(help="For noise and scale.")] = "1",
    checkpoint: Checkpoint = None,
    base: ReentryBase = None,
    device: Device = "cpu",
    compute_dtype: ReentryDtype = None,
    lora_alpha: Alpha = None,
    limit: ReentryLimit = None,
    batch_rows: Rows = None,
    rule: Rule = "default",
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Every combination of layers, positions, heads, operations, donors and strengths."""
    from extract.reenter import sweep_grid

    grid: dict[str, Any] = {
        "site": site, "layers": layer_numbers(layers), "positions": words(positions), "heads": layer_numbers(heads),
        "keys": words(keys) or [], "operations": words(operations) or [], "donors": words(donors) or [],
        "strengths": numbers_of(strengths, "strengths"), "seed": seed,
    }  # fmt: skip

    def experiment(target: Any) -> Any:
        return sweep_grid(target, **grid)

    common = common_options(
        checkpoint=checkpoint, base=base, device=device, compute_dtype=compute_dtype, lora_alpha=lora_alpha,
        limit=limit, batch_rows=batch_rows, rule=rule, as_json=as_json, csv=csv,
    )  # fmt: skip
    reenter_runs("sweep", path, runs, experiment, grid, common)


@analyze.command("compare")
def compare_command(
    path: LakePath,
    runs: RunNames = None,
    resamples: Resamples = 500,
    seed: Seed = 0,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Lay two or more runs beside each other: everything the lake knows, and differences with intervals."""
    from analyze.compare.differences import compare, comparison_table, difference_table

    lake, runs = runs_of(path, runs)
    result = compare(lake, runs, n_resample=resamples, seed=seed)
    name = stored_as(lake, "compare", result, runs, {"resamples": resamples, "seed": seed})
    tables = {"models": comparison_table(result), "differences": difference_table(result)}
    if csv is not None:
        csv.mkdir(parents=True, exist_ok=True)
        for part, table in tables.items():
            table.to_csv(csv / f"compare-{part}.csv", index=False)
    missing = json.loads(result.attrs["missing"])
    if as_json:
        records = {part: json.loads(table.to_json(orient="records")) for part, table in tables.items()}
        print_json({"result": name, "missing": missing, "note": result.attrs["note"]} | records)
        return
    print_comparison(result, path, name)


def print_comparison(result: Any, path: object, name: str | None) -> None:
    """Runs side by side, the largest differences, and what is missing."""
    from analyze.compare.differences import comparison_table, difference_table

    tables = {"models": comparison_table(result), "differences": difference_table(result)}
    models = tables["models"].set_index("model")
    print_table("Side by side", ["", *models.index], [[column, *models[column]] for column in models.columns])
    sure = tables["differences"].query("low > 0 or high < 0")
    sure = sure.assign(size=sure["difference"].abs()).sort_values("size", ascending=False).head(20)
    print_table(
        f"Largest differences whose 95% interval leaves out 0 ({result.attrs['note']})",
        ["what", "where", "first", "second", "difference", "95%", "paired"],
        [
            [
                d.what,
                d.where,
                d.first_of,
                d.second_of,
                f"{d.difference:+.3f}",
                f"{d.low:+.3f}..{d.high:+.3f}",
                "yes" if d.paired else "no",
            ]
            for d in sure.itertuples()
        ],
    )
    for line in json.loads(result.attrs["missing"]):
        what, _, command = line.partition("; ")
        console.print(f"missing: {what}; {filled(command, path)}")
    console.print(kept(name))


@app.command("show")
def show_command(
    path: LakePath,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RESULT]...",
            help="Its name, its kind and run, or the beginning of its fingerprint; none: all are listed.",
        ),
    ] = None,
    as_json: AsJson = False,
    csv: CsvFolder = None,
) -> None:
    """Print a stored result again, as the command that made it did; nothing is computed."""
    from store import open_lake, select_result

    lake = open_lake(path)
    if not words:
        list_results(lake, as_json=as_json)
        return
    found = select_result(lake, words)
    result = lake.open_result(found.name)
    tables = tables_of_result(found, result)
    if csv is not None:
        csv.mkdir(parents=True, exist_ok=True)
        for part, table in tables.items():
            table.to_csv(
                csv / f"{found.name.rpartition('/')[2].replace('~', '-')}-{found.kind}-{part}.csv", index=False
            )
    if as_json:
        said = {key: getattr(found, key) for key in ("kind", "runs", "spec", "fingerprint", "inputs", "command")}
        short = {part: table for part, table in tables.items() if not part.startswith("example")}
        records = {part: json.loads(table.to_json(orient="records")) for part, table in short.items()}
        print_json({"result": found.name} | said | records)
        return
    print_result(lake, found, result, tables)


def option(command: Sequence[str], name: str) -> str | None:
    """What a stored command gave for an option."""
    return next((value for key, value in pairwise(command) if key == name), None)


def list_results(lake: Any, *, as_json: bool) -> None:
    """Name, settings and fingerprint of every stored result."""
    found = lake.results()
    if as_json:
        print_json([asdict(each) for each in found])
        return
    rows = [[each.name, each.fingerprint[:12], each.describe(lake.location)] for each in found]
    print_table(f"results of {lake.location}", ["result", "fingerprint", "made from"], rows)


def tables_of_result(found: Any, result: Any) -> dict[str, Any]:
    """Tidy tables of a stored result, as its command gives them."""
    from analyze import result_tables, sae_summary
    from analyze.compare.differences import comparison_table, difference_table

    if found.kind == "compare":
        return {"models": comparison_table(result), "differences": difference_table(result)}
    if found.kind == "sae":
        return result_tables(sae_summary(result))
    if found.kind == "errors":
        return result_tables(result.drop_dims(["example", "feature"], errors="ignore"))
    if found.kind in REENTRIES:
        return result_tables(
            result.drop_vars([key for key, each in result.variables.items() if "example" in each.dims])
        )
    return {part: table for part, table in result_tables(result).items() if "hidden" not in part}


def print_result(lake: Any, found: Any, result: Any, tables: Mapping[str, Any]) -> None:
    """Print a stored result as its command does; one that no command printed, as its tables."""
    label = ", ".join(found.runs)
    printers: dict[str, Callable[[], None]] = {
        "heads": lambda: print_heads(label, result, found.spec),
        "head_summary": lambda: print_head_summary(label, result),
        "attention": lambda: print_attention(label, result),
        "lens": lambda: print_lens(label, result),
        "tuned_lens": lambda: print_tuned_lens(label, result),
        "correlate": lambda: print_correlations(label, result, found.spec),
        "probes": lambda: print_probes(label, result, found.spec, option(found.command, "--metric")),
        "sae": lambda: print_dictionary(label, result, found.name),
        "errors": lambda: print_errors(label, result, found.name),
        "compare": lambda: print_comparison(result, lake.location, found.name),
    }
    if found.kind in REENTRIES:
        part = partial(reentry_part, found.kind, result, found.spec, found.name)
        printers[found.kind] = lambda: print_reentry(found.kind, {label: part()})
    try:
        printers[found.kind]()
    except (KeyError, ValueError, AttributeError):  # no command prints this kind, or Python wrote other variables
        for name, table in tables.items():
            rows = table.head(SHOWN_ROWS).values.tolist()
            more = f"the first {SHOWN_ROWS} of {len(table)} rows; --csv DIR has all"
            cut = more if len(table) > SHOWN_ROWS else None
            print_table(f"{label}: {found.kind}, {name}", list(table.columns), rows, cut)
    if found.kind == "heads":
        beside = found.name.replace("/heads/", "/head_summary/")
        if any(each.name == beside for each in lake.results("head_summary")):
            print_head_summary(label, lake.open_result(beside))


@app.command("rm")
def remove_command(
    path: LakePath,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|RESULT|MODEL", help="What to remove: its name, or what else names one result, as for show."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a run, a stored result, or a model without runs; what was computed from it stays."""
    from store import open_lake, remove, select_removable

    found = select_removable(open_lake(path), words)
    stay = ""
    if found.results:
        stay = f"; what was computed from it stays: {', '.join(found.results)}"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"rm asks before {found.kind} {found.name} is removed{stay}; without a terminal say --yes")
        if not typer.confirm(f"remove {found.kind} {found.name}{stay}?", err=True):
            note("nothing was removed")
            raise typer.Exit(1)
    remove(path, found)
    if as_json:
        print_json(asdict(found))
    else:
        console.print(f"removed {found.kind} {found.name}{stay}")


@app.command("query")
def query_command(
    path: LakePath,
    sql: Annotated[
        str | None, typer.Argument(metavar="[SQL]", help="A SELECT; none: tables and columns are listed.")
    ] = None,
    as_json: AsJson = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the answer as CSV instead.")] = None,
) -> None:
    """Ask a question in SQL: a table for each run, a row for each example, and tables for each stored result."""
    from analyze import lake_tables, query_lake
    from store import open_lake

    lake = open_lake(path)
    if sql is None:
        tables = lake_tables(lake)
        if as_json:
            print_json({each.name: {"of": each.of, "columns": each.columns} for each in tables})
        else:
            rows = [[each.name, each.of, ", ".join(each.columns)] for each in tables]
            print_table(f"tables of {path}", ["table", "of", "columns"], rows)
        return
    found = query_lake(lake, sql)
    if csv is not None:
        found.to_csv(csv, index=False)
        console.print(f"{csv}: {len(found)} rows")
    elif as_json:
        sys.stdout.write(found.to_json(orient="records", date_format="iso", double_precision=15, indent=1) + "\n")
    else:
        rows = [
            ["" if is_missing(value) else f"{value:.6g}" if isinstance(value, float) else str(value) for value in row]
            for row in found.itertuples(index=False)
        ]
        print_table("", [str(column) for column in found.columns], rows, f"{len(found)} rows")


def is_missing(value: Any) -> bool:
    """Whether a cell is NULL."""
    return value is None or value != value


@app.command("top")
def top_command(
    path: LakePath,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run that is searched, MODEL/DATASET.")],
    head: Annotated[str | None, typer.Option(metavar="L1H2", help="A head: where it pays most attention.")] = None,
    feature: Annotated[
        str | None,
        typer.Option(metavar="RESULT:17", help="A feature of a stored dictionary: where it fires most; sae:17 may do."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="SQL over the run's columns, as -answer_logprob, see lake query: examples."),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", help="Places shown.")] = 10,
    positions: Annotated[str | None, typer.Option(metavar="bot,ct0..", help="Only these positions.")] = None,
    keys: Annotated[str | None, typer.Option(metavar="bot,ct0..", help="Of a head: only these keys.")] = None,
    as_json: AsJson = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the places as CSV instead.")] = None,
) -> None:
    """Find the problems and positions where a head, a feature or a column is largest, with what stands around them."""
    from analyze import top_of_column, top_of_feature, top_of_head
    from store import open_lake

    if sum(each is not None for each in (head, feature, by)) != 1:
        raise UsageError("top: name what is to be large, with --head L1H2, --feature RESULT:17 or --by EXPR")
    if (keys and not head) or (positions and by):
        raise UsageError("top: --keys goes with --head, --positions with --head and --feature")
    lake = open_lake(path)
    with progress_bar(run, "examples") as report:
        if head is not None:
            where = {"positions": words(positions), "keys": words(keys)}
            found = top_of_head(lake, run, head, n=top, progress=report, **where)
        elif by is not None:
            found = top_of_column(lake, run, by, n=top)
        else:
            found = top_of_feature(lake, run, str(feature), n=top, positions=words(positions), progress=report)
    if csv is not None:
        found.to_csv(csv, index=False)
        console.print(f"{csv}: {len(found)} rows")
    elif as_json:
        sys.stdout.write(found.to_json(orient="records", double_precision=15, indent=1) + "\n")
    else:
        short = found.assign(question=[shortened(text) for text in found["question"]])
        print_table(f"{run}: largest {head or feature or by}", list(short.columns), short.values.tolist())


def shortened(text: str, length: int = 60) -> str:
    """A text's end: a question asks there."""
    return text if len(text) <= length else ".." + text[2 - length :]


@app.command("report")
def report_command(
    path: LakePath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the page, its figures and tables.")],
    runs: RunNames = None,
    problems: Annotated[int, typer.Option(help="Problems of each run that can be picked on the page.")] = 40,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page of everything the lake knows, with its figures (PNG, SVG) and tables (CSV)."""
    from analyze.report import build_report

    with progress_bar("report", "sections") as progress:
        made = build_report(path, out, runs=runs, n_problem=problems, seed=seed, progress=progress)
    if as_json:
        print_json({key: getattr(made, key) for key in made.__slots__})
        return
    for run, n in made.problems.items():
        if n < problems:
            note(f"{run}: {n} problems can be picked, not {problems}; the runs over this data have no more in common")
    console.print(f"{made.page}: {made.page_bytes / 1e6:.1f} MB, {made.n_figure} figures, {made.n_table} tables")
    if made.missing:
        console.print(f"not in the lake: {', '.join(made.missing)}; the page says which command makes each")
    for slug, why in made.broken.items():
        console.print(f"could not be read: {slug}: {why}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit 2 for a user's mistake, 1 for a run that failed, each with one line on stderr."""
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False, prog_name="lake")
    except TyperException as error:
        context = getattr(error, "ctx", None)
        if unknown := getattr(error, "option_name", ""):
            known = [name for parameter in context.command.params for name in parameter.opts] if context else []
            message = f"No such option: {unknown}{nearest(unknown, known)}"
        else:
            message = error.format_message().removesuffix(".")
        fail(message + (f"; see {context.command_path} --help" if context else ""), 2)
    except Stopped as stop:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it laments reads that were cut short
        fail(str(stop), 130)
    except (typer.Abort, KeyboardInterrupt):
        fail("stopped", 130)
    except LakeError as error:
        fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        what = (
            "the disk is full; what is committed stays, free some space and run the same command again"
            if full
            else str(error)
        )
        fail(what, 1)
    except (RuntimeError, MemoryError) as error:
        from extract.model.device import device_failure

        line = device_failure(error)
        if line is None:
            raise
        fail(f"{line}; what is committed stays, and the same command goes on from there", 1)
    if code == 130:
        fail("stopped before anything was begun", 130)
    sys.exit(code if isinstance(code, int) else 0)


def stored_as(lake: Any, kind: str, result: Any, runs: Sequence[str], spec: dict[str, Any]) -> str | None:
    """Store a result and return its name; where the lake cannot be written, say so and go on to show it."""
    try:
        return str(lake.write_result(kind, result, runs=list(runs), spec=spec, command=command_of(list(runs))))
    except UnwritableLakeError as error:
        note_once(str(error))
        return None


def kept(name: str | None) -> str:
    """Where a result is."""
    return f"kept as {name}" if name else "not kept"


@cache
def note_once(message: str) -> None:
    """Say something on stderr, but not again."""
    note(message)


def note(message: str) -> None:
    """Say something on stderr, beside the result."""
    sys.stderr.write("lake: " + " ".join(message.split()) + "\n")


def fail(message: str, code: int) -> None:
    """Say what went wrong in one line and leave."""
    sys.stderr.write("lake: " + " ".join(message.split()) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
