"""``lake extract``, ``lake plan`` and ``lake verify``."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from schemas import LakeError, RunSpec, UsageError
from schemas.command import Command, Output, Printed, Settings, Shell, Table, setting
from schemas.wording import duration_text, shape_text, size_text

if TYPE_CHECKING:
    from extract.run.plan import Plan
    from extract.run.prepare import Prepared
    from extract.run.recompute import Recomputed
    from store import Verification

DATA = "Questions and answers: JSON Lines, a JSON list, Parquet, CSV, or lines question||chain #### answer."


@dataclass(frozen=True, kw_only=True)
class PlanSettings(RunSpec):
    """What is to be extracted: the model, the questions, and how."""

    model: str = setting(
        help="Folder or hub id in the official layout, a shipped name, or your own code as MODULE:FUNCTION.",
        metavar="NAME=CHECKPOINT",
        stored=False,
    )
    data: str = setting(help=DATA, metavar="FILE_OR_NAME=FILE", stored=False)
    lake: str = setting(help="Lake: a folder or a URL; made where there is none.", metavar="PATH", stored=False)
    base: str | None = setting(None, "Base model: configuration and tokenizer.", metavar="PATH_OR_ID", stored=False)
    lora_alpha: float | None = setting(
        None, "Scale of the checkpoint's low-rank adapter; by default its config's, or 32.", stored=False
    )
    protocol: str | None = setting(
        None,
        "How the model is asked and fed, where the checkpoint does not say: codi, soft ..., or a JSON file of fields.",
        metavar="NAME_OR_FILE",
        stored=False,
    )
    thoughts: int | None = setting(
        None, "Number of thoughts, where the checkpoint does not say.", metavar="N", stored=False
    )
    question_field: str | None = setting(
        None, "Field of the data that holds the question, where no known form does.", metavar="NAME", stored=False
    )
    answer_field: str | None = setting(
        None, "Field of the data that holds the answer, where no known form does.", metavar="NAME", stored=False
    )
    skip_long: bool = setting(False, "Leave out questions that exceed the model's context.", stored=False)
    memory: float = setting(
        4.0, "GiB of activations in memory; decides the size of shards, and of batches of long questions.", stored=False
    )
    json: bool = setting(False, "Print the result as JSON.", stored=False)


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(PlanSettings):
    """What is extracted, and which part of it."""

    shard: str | None = setting(None, "Only shards I modulo N; I from 0.", metavar="I/N", stored=False)
    rebuild: str | None = setting(
        None,
        "Write these shards again, as 3,17; static writes everything else that is damaged.",
        metavar="SHARDS",
        stored=False,
    )


def prepared_by(settings: PlanSettings, shell: Shell, *, rebuild_static: bool = False) -> "Prepared":
    """Model, questions and layout; what was noticed of the data is said."""
    from extract.run.prepare import prepare

    spec = RunSpec(**{field.name: getattr(settings, field.name) for field in fields(RunSpec)})
    prepared = prepare(
        settings.model,
        settings.data,
        settings.lake,
        spec,
        base=settings.base,
        lora_alpha=settings.lora_alpha,
        protocol=settings.protocol,
        thoughts=settings.thoughts,
        question_field=settings.question_field,
        answer_field=settings.answer_field,
        skip_long=settings.skip_long,
        memory=settings.memory,
        rebuild_static=rebuild_static,
    )
    marks = prepared.reasoner.marks_in(prepared.problems.question)
    for note in (*prepared.reasoner.notes, *prepared.problems.notes, *marks):
        shell.note(note)
    return prepared


KIND_READ = {"number": "number", "text": "text", "choice": "choice", "boolean": "yes or no"}
"""What an answer of each kind is read as."""


def extract_run(settings: ExtractSettings, shell: Shell) -> Output:
    """Extract a run, or go on with one."""
    part = rank_from_environment() if settings.shard is None else part_of(settings.shard)
    again, static = shards_of(settings.rebuild)
    prepared = prepared_by(settings, shell, rebuild_static=static)
    from extract.run.extract import extract  # torch and transformers: wrong data need not wait for them

    with shell.progress(prepared.run, "examples") as report:
        done = extract(
            prepared,
            settings.lake,
            part=part,
            rebuild=again,
            rebuild_static=static,
            progress=report,
            command=shell.words(without=("--shard", "--rebuild")),
        )
    if done.most_rows is not None:
        shell.note(
            f"memory was too small for {settings.batch_size} questions at once: batches of at most {done.most_rows}"
            " instead"
        )
    if done.n_cut:
        shell.note(
            f"{done.run}: {done.n_cut} answers had not ended after {settings.max_new_tokens} tokens;"
            " more are allowed with --max-new-tokens"
        )
    if done.n_unended:
        eos = prepared.reasoner.eos_id
        shell.note(
            f"{done.run}: {done.n_unended} answers end without eos_id, token {eos}"
            f" ({prepared.reasoner.token_strings[eos]!r}), or go on after it; is that the token that ends answers?"
        )
    if done.n_unprefixed > (done.n_committed - done.n_cut) / 2:
        shell.note(
            f"{done.run}: {done.n_unprefixed} of {done.n_committed - done.n_cut} answers that ended do not have"
            f" {prepared.reasoner.answer_prefix!r}, after which the log probability of the gold answer is taken;"
            " answer_prefix in codi.json beside the checkpoint says another"
        )
    if done.n_unread:
        kind = KIND_READ[prepared.problems.answer_kind]
        shell.note(
            f"{done.run}: in {done.n_unread} of {done.n_committed} answers no {kind} can be read, and they count as"
            f" wrong; the first is {done.unread[:60]!r}"
        )
    whole = done.n_committed == done.n_example
    examples = f"{done.n_example} examples" if whole else f"{done.n_committed} of {done.n_example} examples"
    line = (
        f"{done.run}: {examples}, {done.n_correct} answered correctly; "
        f"{len(done.shards_written)} shards written ({done.bytes_written / 1e6:.1f} MB), {done.shards_kept} kept"
        + (f", {done.shards_elsewhere} left to other writers" if done.shards_elsewhere else "")
        + (f"; {prepared.skipped} questions too long for the model left out" if prepared.skipped else "")
    )
    how = f"xr.open_zarr({settings.lake!r}, group={done.run!r}, consolidated=False)"
    return Output(printed=[line, how], document=asdict(done))


def part_of(text: str) -> tuple[int, int]:
    """``I/N`` as numbers with 0 <= I < N."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise UsageError(f"--shard {text!r} is not I/N with 0 <= I < N, as in 0/4")
    return int(first), int(count)


def rank_from_environment() -> tuple[int, int]:
    """``(I, N)`` from torchrun's or SLURM's rank variables; ``(0, 1)`` where there are none.

    Raises
    ------
    UsageError
        If one is there without the other, or they are not a rank and a size: some shards would be left to nobody.
    """
    # A SLURM batch script has a number without a count: it is one process unless srun starts several.
    for rank, world, alone in (("RANK", "WORLD_SIZE", None), ("SLURM_PROCID", "SLURM_NTASKS", "0")):
        number, count = os.environ.get(rank), os.environ.get(world)
        if number is None or (count is None and number == alone):
            continue
        if count is None or not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise UsageError(
                f"{rank}={number} with {world}={'(not set)' if count is None else count} is no process I of N,"
                " 0 <= I < N; set both, unset both, or pass --shard I/N"
            )
        return int(number), int(count)
    return 0, 1


def shards_of(text: str | None) -> tuple[list[int], bool]:
    """``3,17,static`` as shards, and whether all else is meant too."""
    words = [word.strip() for word in text.split(",") if word.strip()] if text else []
    numbers = [word for word in words if word != "static"]
    if not all(word.isdecimal() for word in numbers) or (text is not None and not words):
        raise UsageError(f"--rebuild {text!r} is not a comma-separated list of shards or static, as in 3,17")
    return [int(word) for word in numbers], "static" in words


def plan_run(settings: PlanSettings, shell: Shell) -> Output:
    """What an extraction will take."""
    from extract.run.plan import plan

    planned = plan(prepared_by(settings, shell), settings.lake)
    failure = None
    if not planned.fits:
        failure = LakeError(
            f"the disk of {settings.lake} is too small: {size_text(planned.remaining_bytes)} are needed and"
            f" {size_text(planned.free_bytes or 0)} free. Free some space, use another --lake, --capture latent, or"
            " --limit"
        )
    return Output(
        printed=plan_lines(planned, settings.compute_dtype),
        document={**asdict(planned), "fits": planned.fits},
        failure=failure,
    )


def plan_lines(planned: "Plan", compute_dtype: str) -> list[Printed]:
    """Arrays, bytes, memory, time and precision."""
    from store import precision_text

    free = "" if planned.free_bytes is None else f"; the disk has {size_text(planned.free_bytes)} free"
    table = Table(
        title=f"{planned.run}: {planned.n_example} examples in {planned.n_shard} shards of {planned.shard_examples},"
        f" batches of {planned.batch_examples:.0f}",
        columns=["variable", "shape", "chunk", "shard", "files", "raw", "expected"],
        rows=[
            [v.name, shape_text(v.shape), shape_text(v.chunks), shape_text(v.shards or v.chunks)]
            + [v.files, size_text(v.raw_bytes), size_text(v.expected_bytes)]
            for v in planned.variables
        ],
    )
    lines = [
        f"texts, coordinates, read-out: {size_text(planned.static_bytes)}",
        f"in all {planned.files} files, {size_text(planned.raw_bytes)} raw,"
        f" {size_text(planned.expected_bytes)} on disk",
        f"still to be written: {size_text(planned.remaining_bytes)}{free}",
        f"memory: {size_text(planned.memory_bytes)} at most; activations below {size_text(planned.memory_budget)}",
        f"time: about {duration_text(planned.seconds)} (model {duration_text(planned.model_seconds)}, writing"
        f" {duration_text(planned.write_seconds)})",
        f"precision: {precision_text(planned.precision)}",
    ]
    if compute_dtype != "float32":
        lines.append("--compute-dtype float32 gives the same alone and in any batch, but for its own rounding")
    return [table, *lines]


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Settings):
    """What is checked."""

    lake: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    run: str | None = setting(None, "Only this run, MODEL/DATASET, and its model.", metavar="[RUN]", argument=True)
    recompute: int = setting(0, "Run the model again on N examples of each run.", metavar="N", least=0)
    model: str | None = setting(
        None,
        "Where the model is, if it is no longer where the lake remembers it.",
        metavar="CHECKPOINT",
        needs="recompute",
    )
    base: str | None = setting(
        None, "Base model: configuration and tokenizer.", metavar="PATH_OR_ID", needs="recompute"
    )
    protocol: str | None = setting(
        None,
        "How the model is asked and fed; by default as the lake remembers.",
        metavar="NAME_OR_FILE",
        needs="recompute",
    )
    thoughts: int | None = setting(
        None, "Number of thoughts, where the checkpoint does not say.", metavar="N", needs="recompute"
    )
    device: str = setting(
        "cpu", "Where the model runs: cpu, cuda, cuda:1, mps.", metavar="cpu|cuda|cuda:N|mps", needs="recompute"
    )
    json: bool = setting(False, "Print the result as JSON.")


def verify_lake(settings: VerifySettings, shell: Shell) -> Output:
    """Check a lake against its checksums, and some examples against the model."""
    from store import open_lake, verify

    with shell.progress("verify", "files") as report:
        checked = verify(settings.lake, settings.run, progress=report)
    compared: list[Recomputed] = []
    if settings.recompute and not checked.damage:
        from extract.run.recompute import recompute

        for run in [settings.run] if settings.run else open_lake(settings.lake).runs():
            compared.append(
                recompute(
                    settings.lake,
                    run,
                    settings.recompute,
                    checkpoint=settings.model,
                    base=settings.base,
                    protocol=settings.protocol,
                    thoughts=settings.thoughts,
                    device=settings.device,
                )
            )
    wrong = [f"{len(checked.damage)} damaged files"] if checked.damage else []
    wrong += [f"{comparison.run} does not agree with its model" for comparison in compared if not comparison.agrees]
    return Output(
        printed=verify_lines(checked, compared),
        document={
            **asdict(checked),
            "recomputed": [{**asdict(comparison), "agrees": comparison.agrees} for comparison in compared],
        },
        failure=LakeError(f"{settings.lake}: {', '.join(wrong)}") if wrong else None,
    )


def verify_lines(checked: "Verification", compared: Sequence["Recomputed"]) -> list[Printed]:
    """Damage, comparisons with the model, what is not finished, and what mends it."""
    lines: list[Any] = [f"{damage.path} {damage.problem}" for damage in checked.damage]
    lines += [recomputed_line(comparison) for comparison in compared]
    for name, shards in checked.incomplete.items():
        lines.append(f"{name}: not complete, {len(shards)} shards to come: {', '.join(map(str, shards))}")
    lines += [
        f"{name}: begun, or half removed, and nothing of it can be read; a process is at work on it, or was stopped,"
        " and then the same command goes on with it"
        for name in checked.begun
    ]
    lines += [
        f"{key}: not finished; a writer at work may have it open, or a killed one left it, and then the next writer"
        " removes it"
        for key in checked.leftovers
    ]
    lines += [f"mend: {command}" for command in checked.commands]
    return [*lines, f"{checked.files} files, {size_text(checked.bytes)} checked; {len(checked.damage)} damaged"]


def recomputed_line(compared: "Recomputed") -> str:
    """How far a run is from what the model computes now."""
    from store import precision_text

    verdict = "agree" if compared.agrees else f"DISAGREE ({', '.join(compared.beyond)})"
    turned = f", {compared.other_thoughts} with another thought" if compared.other_thoughts else ""
    states = (f"{name} {state.mean:.1e} (at most {state.worst:.1e})" for name, state in compared.states.items())
    return (
        f"{compared.run}: examples {', '.join(map(str, compared.examples))} computed again {verdict}: off by "
        + ", ".join(states)
        + f" of each place's scale, answer_logprob {compared.answer_logprob:.1e}, {compared.other_texts} other answers"
        f"{turned}; judged by {precision_text(compared.precision)}"
    )


COMMANDS = (
    Command(
        name="extract",
        help="Run a model once over a data set and write everything it computes into a lake.",
        settings=ExtractSettings,
        run=extract_run,
        stopped="shards that are committed stay, and the same command goes on after them",
    ),
    Command(
        name="plan",
        help="Say what an extraction will take before it is paid: arrays, bytes, memory, time. Writes nothing.",
        settings=PlanSettings,
        run=plan_run,
    ),
    Command(
        name="verify",
        help="Check every byte against its checksum and say what mends what is damaged; exit 1 if anything is.",
        settings=VerifySettings,
        run=verify_lake,
    ),
)
