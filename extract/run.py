"""An extraction run: one pass of one model over one data set, streamed into a lake shard by shard."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from extract.data import Problems, read_problems
from extract.load import load_reasoner
from extract.reasoner import Reasoner, Thinking
from schemas import LakeError, RunSpec, UsageError, answers_match, extract_answer
from store import RunLayout, RunWriter, check_model, create_run, open_lake, write_model

Progress = Callable[[int, int, int], None]
"""Called with examples done, examples in all, and bytes written so far."""

DYNAMIC_STATES = ("hidden_state", "final_state", "latent_embedding", "attention")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Everything checked before anything is paid: model loaded, data read and encoded, axes known."""

    model: str
    reasoner: Reasoner
    problems: Problems
    prompts: list[list[int]]
    layout: RunLayout
    spec: RunSpec
    checkpoint: str
    """Where the weights came from: a shipped name, a hub id, or a folder's last part."""
    skipped: int = 0
    """Questions left out because they do not fit into the model's context."""

    @property
    def run(self) -> str:
        """Run's name: ``MODEL/DATASET``."""
        return f"{self.model}/{self.problems.name}"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the run's values."""
        return {
            "spec": self.spec.to_json(),
            "data": {"name": self.problems.name, "sha256": self.problems.fingerprint, "n_example": len(self.problems)},
            **self.reasoner.fingerprint,
        }

    @property
    def model_attributes(self) -> dict[str, Any]:
        """What the lake says of the model."""
        reasoner = self.reasoner
        names = ("architecture", "n_layer", "n_head", "hidden", "n_latent", "final_norm", "final_norm_epsilon")
        ids = ("pad_id", "bot_id", "eot_id", "eos_id")
        plain = {name: getattr(reasoner, name) for name in (*names, *ids, "answer_prefix")}
        plain["architecture"] = str(getattr(plain["architecture"], "model_type", plain["architecture"]))
        return {**plain, "checkpoint": self.checkpoint, "fingerprint": dict(reasoner.fingerprint)}


@dataclass(kw_only=True, slots=True)
class Extracted:
    """What a run of :func:`extract` did."""

    run: str
    n_example: int
    n_correct: int
    shards_written: list[int] = field(default_factory=list)
    shards_kept: int = 0
    shards_elsewhere: int = 0
    """Shards that belong to other writers, or that another process is at work on."""
    bytes_written: int = 0


def split_name(text: str, what: str) -> tuple[str, str]:
    """``NAME=VALUE`` as a pair.

    Raises
    ------
    UsageError
        If it has not that form, or the name is no plain word.
    """
    name, sign, value = text.partition("=")
    if not sign or not value or not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name == "results":
        raise UsageError(f"{what} {text!r} is not of the form NAME={what.upper()}, with a plain word as NAME")
    return name, value


def prepare(
    model: str,
    data: str,
    lake: str | os.PathLike[str],
    spec: RunSpec,
    *,
    base: str | None = None,
    lora_alpha: float = 32.0,
    skip_long: bool = False,
) -> Prepared:
    """Load a model, read and encode the data, and check all of it against an existing lake; nothing is written.

    Parameters
    ----------
    model
        ``NAME=CHECKPOINT``, or a shipped name alone.
    data
        ``FILE`` or ``NAME=FILE``; see :func:`extract.data.read_problems`.
    lake
        Folder or URL.
    spec
        Settings.
    base
        Base model's folder or hub id, where the checkpoint does not hold its configuration and tokenizer.
    lora_alpha
        Scale of the low-rank adapters, where the checkpoint has them.
    skip_long
        Leave out questions that do not fit into the model's context, instead of refusing the data.

    Raises
    ------
    UsageError
        For whatever is wrong with the input.
    """
    name, checkpoint = split_name(model if "=" in model else f"{model}={model}", "model")
    problems = read_problems(data, spec.limit)
    reasoner = load_reasoner(checkpoint, base=base, device=spec.device, dtype=spec.compute_dtype, lora_alpha=lora_alpha)
    prompts, keep = [], []
    for index, question in enumerate(problems.question):
        prompt = reasoner.encode(question)
        try:
            reasoner.check_length(len(prompt), spec.max_new_tokens)
        except UsageError as error:
            if skip_long:
                continue
            raise UsageError(f"{data}, question {index + 1}: {error}; leave such questions out with --skip-long") from error
        prompts.append(prompt)
        keep.append(index)
    if not keep:
        raise UsageError(f"{data}: none of {len(problems)} questions fits into the model's context")
    skipped = len(problems) - len(keep)
    if skipped:
        problems = problems.take(keep)
    layout = RunLayout(
        n_example=len(problems),
        n_layer=reasoner.n_layer,
        n_head=reasoner.n_head,
        hidden=reasoner.hidden,
        n_latent=reasoner.n_latent,
        longest_question=max(len(prompt) for prompt in prompts) - 1,
        n_answer=spec.max_new_tokens,
        capture=spec.capture,
        dtype=spec.dtype,
    )
    known = checkpoint if not os.path.isdir(checkpoint) else os.path.basename(os.path.normpath(checkpoint))  # noqa: PTH112, PTH118, PTH119
    prepared = Prepared(
        model=name,
        reasoner=reasoner,
        problems=problems,
        prompts=prompts,
        layout=layout,
        spec=spec,
        checkpoint=known,
        skipped=skipped,
    )
    check_model(lake, name, prepared.model_attributes)
    return prepared


def extract(
    prepared: Prepared,
    lake: str | os.PathLike[str],
    *,
    part: tuple[int, int] = (0, 1),
    rebuild: Sequence[int] = (),
    progress: Progress | None = None,
) -> Extracted:
    """Run the model over the data and write what is not yet in the lake.

    One shard is thought through while the one before it is compressed and written: two shards of buffers are in memory
    at a time, whatever the number of examples.

    Parameters
    ----------
    prepared
        From :func:`prepare`.
    lake
        Folder or URL; created where there is none.
    part
        ``(I, N)``: only shards whose number is I modulo N.
    rebuild
        Shards to write again although they are committed.
    progress
        Called after every batch and every shard.

    Raises
    ------
    SpecMismatchError
        If the lake holds this run or model made from something else.
    OSError
        If the disk is full: what is committed stays.
    """
    reasoner, problems = prepared.reasoner, prepared.problems
    write_model(
        lake,
        prepared.model,
        {
            "unembedding": reasoner.unembedding,
            "final_norm_weight": reasoner.final_norm_weight,
            "final_norm_bias": np.zeros(reasoner.hidden) if reasoner.final_norm_bias is None else reasoner.final_norm_bias,
            "token_string": reasoner.token_strings,
        },
        prepared.model_attributes,
    )
    writer = create_run(
        lake,
        prepared.run,
        prepared.layout,
        identity=prepared.identity,
        columns=problems.columns,
        provenance=provenance(prepared.spec.device),
    )
    committed = writer.committed()
    for shard in rebuild:
        if not 0 <= shard < len(committed):
            raise UsageError(f"{prepared.run} has shards 0 to {len(committed) - 1}; there is no shard {shard} to rebuild")
    mine = [shard for shard in range(len(committed)) if shard % part[1] == part[0]]
    wanted = [shard for shard in mine if not committed[shard] or shard in rebuild]
    done = Extracted(run=prepared.run, n_example=len(problems), n_correct=0, shards_kept=int(committed.sum()))
    done.shards_elsewhere = len(committed) - len(mine)
    examples = [len(range(*writer.layout.shard_slice(shard).indices(len(problems)))) for shard in range(len(committed))]
    total = sum(examples[shard] for shard in mine)
    ahead = sum(examples[shard] for shard in mine if shard not in wanted)

    def report(more: int) -> None:
        if progress is not None:
            progress(ahead + more, total, done.bytes_written)

    counted = 0
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="lake-write") as pool:
        pending: Future[None] | None = None

        def write(shard: int, buffers: Mapping[str, np.ndarray], claim: Any) -> None:
            try:
                done.bytes_written += writer.write_shard(shard, buffers)
                done.shards_written.append(shard)
            finally:
                claim.__exit__(None, None, None)

        try:
            for shard in wanted:
                claim = writer.claim(shard)
                if not claim.__enter__():
                    done.shards_elsewhere += 1
                    continue
                if shard not in rebuild and writer.committed()[shard]:
                    claim.__exit__(None, None, None)
                    done.shards_kept += 1
                    counted += examples[shard]
                    continue
                try:
                    buffers = writer.buffers(shard)
                    for n_batch in think_shard(prepared, shard, buffers):
                        counted += n_batch
                        report(counted)
                    if pending is not None:
                        pending.result()
                except BaseException:
                    claim.__exit__(None, None, None)
                    raise
                pending = pool.submit(write, shard, buffers, claim)
                del buffers
        finally:
            if pending is not None:
                pending.result()
    report(counted)
    run = open_lake(lake).open(prepared.run)
    done.n_correct = int(run["correct"].sum())
    return done


def think_shard(prepared: Prepared, shard: int, buffers: dict[str, np.ndarray]) -> Iterator[int]:
    """Think through a shard's questions, batched by length, into its buffers; yields the size of each batch done."""
    rows = prepared.layout.shard_slice(shard)
    order = sorted(range(rows.start, rows.stop), key=lambda index: (len(prepared.prompts[index]), index))
    size = prepared.spec.batch_size
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        thinking = prepared.reasoner.think(
            [prepared.prompts[index] for index in batch],
            capture=prepared.spec.capture,
            stored_dtype=prepared.spec.dtype,
            max_new_tokens=prepared.spec.max_new_tokens,
            gold=[prepared.problems.gold_answer[index] for index in batch],
        )
        place(thinking, prepared, np.array(batch) - rows.start, batch, buffers)
        yield len(batch)


def place(
    thinking: Thinking, prepared: Prepared, slots: np.ndarray, batch: Sequence[int], buffers: dict[str, np.ndarray]
) -> None:
    """Put a batch into a shard's buffers, aligned at ``bot``."""
    layout = prepared.layout
    first_key = layout.n_question - thinking.n_before
    keys = slice(first_key, first_key + thinking.attention.shape[-1])
    first = first_key if layout.capture == "full" else 0
    positions = slice(first, first + thinking.hidden_state.shape[2])
    buffers["hidden_state"][slots, :, positions] = thinking.hidden_state
    buffers["final_state"][slots, positions] = thinking.final_state
    buffers["latent_embedding"][slots] = thinking.latent_embedding
    buffers["attention"][slots, :, :, positions, keys] = thinking.attention
    buffers["token"][slots, positions] = thinking.token
    buffers["answer_logprob"][slots] = thinking.answer_logprob
    for slot, index, text in zip(slots, batch, thinking.generated_text, strict=True):
        answer = extract_answer(text)
        buffers["generated_text"][slot] = text
        buffers["predicted_answer"][slot] = np.nan if answer is None else answer
        buffers["correct"][slot] = answers_match(answer, float(prepared.problems.gold_answer[index]))


def provenance(device: str) -> dict[str, Any]:
    """Facts that move numbers by rounding: versions, device, threads."""
    name = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else platform.machine()
    return {
        "code": version("activation-lake"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "zarr": version("zarr"),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "attention_kernel": "eager, probabilities in float32",
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def rank_from_environment() -> tuple[int, int]:
    """``(I, N)`` from torchrun's or SLURM's rank variables; ``(0, 1)`` where there are none.

    Raises
    ------
    LakeError
        If they are not numbers.
    """
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            try:
                return int(os.environ[rank]), int(os.environ[world])
            except ValueError as error:
                raise LakeError(f"{rank}={os.environ[rank]} and {world}={os.environ[world]} are no rank and size") from error
    return 0, 1
