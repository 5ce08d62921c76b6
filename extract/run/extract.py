"""An extraction run: one pass of one model over one data set, streamed into a lake shard by shard."""

import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from traceback import clear_frames
from typing import Any

import numpy as np
import torch

from extract.model.device import ALONE, device_errors, is_full
from extract.model.thinking import Thinking
from extract.run.plan import in_lake, require_space
from extract.run.precision import calibration
from extract.run.prepare import Prepared, batches, begin, check_against, place, prepare
from schemas import LakeError, UsageError
from schemas.scoring import is_value
from store import RunWriter, create_run, open_lake, write_model
from store.processes import FileProcesses

__all__ = ["Extracted", "Prepared", "extract", "prepare", "provenance"]

Progress = Callable[[int, int, int], None]
"""Called with examples done, examples in all, and bytes written so far."""


@dataclass(kw_only=True, slots=True)
class Extracted:
    """What a run of :func:`extract.run.extract.extract` did."""

    run: str
    n_example: int
    n_committed: int = 0
    """Examples that are in the lake now, whoever wrote them."""
    n_correct: int = 0
    """Correct answers among those."""
    n_cut: int = 0
    """Those that had not ended after the longest answer that was allowed."""
    n_unended: int = 0
    """Those that end earlier without the token that ends answers, or go on after it."""
    n_unprefixed: int = 0
    """Those that ended without the answer prefix anywhere, after which the gold answer's log probability is taken."""
    n_unread: int = 0
    """Those in which no answer of the data's kind can be read; they count as wrong."""
    unread: str = ""
    """Text of the first of these."""
    shards_written: list[int] = field(default_factory=list)
    shards_kept: int = 0
    """Shards that were committed already."""
    shards_elsewhere: int = 0
    """Shards that belong to other writers, or that another process is at work on."""
    bytes_written: int = 0
    most_rows: int | None = None
    """Rows of the largest batch that the GPU had memory for, where it had too little for one of those planned."""


class Line:
    """A thread that does one thing at a time beside the caller; an error in it is raised by the next call."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._pending: Future[None] | None = None

    def wait(self) -> None:
        """Until what was started last is done."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Start something once what was started before is done."""
        self.wait()
        self._pending = self._pool.submit(work, *arguments)

    def check(self) -> None:
        """Raise now if what was started last has failed; called from any thread."""
        pending = self._pending
        if pending is not None and pending.done():
            pending.result()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()


def _create(
    prepared: Prepared,
    lake: str | os.PathLike[str],
    facts: dict[str, Any],
    *,
    rebuild_static: bool,
    command: Sequence[str],
) -> RunWriter:
    """The run in the lake, and its model, where they fit what is prepared and there is room."""
    check_against(prepared, lake, rebuild_static=rebuild_static)
    require_space(prepared, lake)
    write_model(lake, prepared.model, prepared.model_arrays, prepared.model_attributes, rebuild=rebuild_static)
    there = not rebuild_static and in_lake(prepared, lake)[0]
    words = {"command": list(command)} if command else {}
    return create_run(
        lake, prepared.run, prepared.layout, identity=prepared.identity, columns=prepared.problems.columns,
        provenance=facts | words, precision=None if there else calibration(prepared), rebuild=rebuild_static,
    )  # fmt: skip


def extract(
    prepared: Prepared,
    lake: str | os.PathLike[str],
    *,
    part: tuple[int, int] = (0, 1),
    rebuild: Sequence[int] = (),
    rebuild_static: bool = False,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Extracted:
    """Run the model over the data and write what is not yet in the lake.

    While the model thinks through one shard, the one before is compressed and written: two shards and what is encoded
    of one are in memory at a time, whatever the number of examples. On a GPU a batch is copied off the card while the
    next one runs, and other processes compress and write. On a CPU compressing takes turns with thinking.

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
    rebuild_static
        Write again what is damaged of documents, coordinates and the model's read-out.
    progress
        Called after every batch and every shard.
    command
        Words of the command that makes the run, ``PATH`` for the lake; kept with it.

    Returns
    -------
    Extracted

    Raises
    ------
    SpecMismatchError
        If the lake holds this run or model made from something else.
    UsageError
        If the disk is too small for what is left to do, or no lake can be there.
    OSError
        If the disk fills up all the same: what is committed stays.
    """
    layout = prepared.layout
    shards = range(layout.n_shard)
    if unknown := sorted(set(rebuild) - set(shards)):
        raise UsageError(f"{prepared.run} has shards 0 to {shards[-1]}; there is no shard {unknown[0]} to rebuild")
    facts = provenance(prepared)
    writer = _create(prepared, lake, facts, rebuild_static=rebuild_static, command=command)
    committed = writer.committed()
    mine = [shard for shard in shards if shard % part[1] == part[0]]
    wanted = [shard for shard in mine if not committed[shard] or shard in rebuild]
    if wanted:
        writer.add_provenance(facts)
    kept, elsewhere = len(mine) - len(wanted), len(shards) - len(mine)
    done = Extracted(run=prepared.run, n_example=len(prepared.problems), shards_kept=kept, shards_elsewhere=elsewhere)
    sizes = [layout.shard_slice(shard).stop - layout.shard_slice(shard).start for shard in shards]
    total = sum(sizes[shard] for shard in mine)
    thought = total - sum(sizes[shard] for shard in wanted)

    def report(more: int) -> None:
        nonlocal thought
        thought += more
        if progress is not None:
            progress(thought, total, done.bytes_written)

    claims: dict[int, ExitStack] = {}

    def free(held: ExitStack) -> Iterator[int]:
        """Shards that are to be written, each claimed when it is asked for."""
        for shard in wanted:
            claim = held.enter_context(ExitStack())
            if not claim.enter_context(writer.claim(shard)):
                done.shards_elsewhere += 1
            elif shard not in rebuild and writer.is_committed(shard):
                claim.close()
                done.shards_kept += 1
                report(sizes[shard])
            else:
                claims[shard] = claim
                yield shard

    on_card = prepared.reasoner.device.type != "cpu"
    with (
        FileProcesses() if on_card and FileProcesses.possible() else nullcontext() as processes,
        Line("lake-write") as writing,
        ExitStack() as held,
    ):
        left = 0
        for shard, batch, thinking in _thoughts(prepared, free(held), done):
            if not left:
                values, left = writer.empty(shard), sizes[shard]
            place(thinking, prepared, np.array(batch) - layout.shard_slice(shard).start, batch, values)
            writing.check()
            report(len(batch))
            left -= len(batch)
            if left:
                continue
            work = partial(writer.write_shard, shard, values, processes)
            if not on_card:
                # A model works in lockstep on all cores and stands still whenever one is taken from it.
                writing.wait()
                work = partial(writer.write_encoded, shard, writer.encode(shard, values))
            writing.start(_write, done, shard, work, claims.pop(shard).pop_all())
            del thinking, work, values
    report(0)
    _count(done, prepared, lake)
    return done


def _write(done: Extracted, shard: int, work: Callable[[], int], claim: ExitStack) -> None:
    with claim:
        done.bytes_written += work()
        done.shards_written.append(shard)


def _count(done: Extracted, prepared: Prepared, lake: str | os.PathLike[str]) -> None:
    """Say what is in the lake of a run now."""
    run = open_lake(lake).open(prepared.run)
    done.n_committed, done.n_correct = run["correct"].size, int(run["correct"].sum())
    most = prepared.spec.max_new_tokens
    token = run["token"].sel(position=[f"a{place}" for place in range(most)]).values
    length, n_end = (token >= 0).sum(1), (token == prepared.reasoner.eos_id).sum(1)
    ended = np.take_along_axis(token, length[:, None] - 1, 1)[:, 0] == prepared.reasoner.eos_id
    done.n_cut = int(((length == most) & ~ended).sum())
    prefix = "".join(prepared.reasoner.answer_prefix.split())  # some tokenizers write other spaces
    texts = run["generated_text"].values[(length < most) | ended]
    done.n_unprefixed = sum(prefix not in "".join(str(text).split()) for text in texts)
    done.n_unended = int((((length < most) & ~ended) | (n_end > ended)).sum())
    predicted = run["predicted_answer"].values
    unread = np.flatnonzero(~is_value(predicted))
    done.n_unread = len(unread)
    done.unread = str(run["generated_text"].values[unread[0]]) if len(unread) else ""


def _thoughts(prepared: Prepared, shards: Iterable[int], done: Extracted) -> Iterator[tuple[int, list[int], Thinking]]:
    """Batches, thought through, with their shards; on a GPU the next is begun before the last's copies are waited for.

    A batch for which there is too little memory is halved, and so are all that come after it.
    """
    ahead = prepared.reasoner.device.type != "cpu"
    begun: list[tuple[int, list[int], Callable[[], Thinking]]] = []
    for shard in shards:
        waiting = list(batches(prepared, shard))[::-1]
        while waiting:
            batch = waiting.pop()
            if done.most_rows is not None and len(batch) > done.most_rows:
                waiting += [batch[done.most_rows :], batch[: done.most_rows]]
                continue
            try:
                with device_errors(f"a batch of {len(batch)} questions", ALONE):
                    begun.append((shard, batch, begin(prepared, batch)))
            except LakeError as error:
                if len(batch) == 1 or error.__cause__ is None or not is_full(error.__cause__):
                    raise
                done.most_rows = len(batch) // 2
                waiting.append(batch)
                clear_frames(error.__cause__.__traceback__)  # they hold what filled the memory
            while begun and (len(begun) > ahead or done.most_rows is not None):
                yield _end(*begun.pop(0))
    for thought in begun:
        yield _end(*thought)


def _end(shard: int, batch: list[int], end: Callable[[], Thinking]) -> tuple[int, list[int], Thinking]:
    return shard, batch, end()


def provenance(prepared: Prepared) -> dict[str, Any]:
    """Facts that move numbers by rounding or are good to know: code, versions, device, threads, data file."""
    device = prepared.reasoner.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "activation-lake": version("activation-lake"),
        "code": code_fingerprint(),
        "data": prepared.problems.source,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "zarr": version("zarr"),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "attention_kernel": "eager, probabilities in float32",
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        **({"cuda": torch.version.cuda, "driver": _driver()} if device.type == "cuda" else {}),
    }


def _driver() -> str | None:
    """Version of NVIDIA's driver, where the system tells."""
    file = Path("/proc/driver/nvidia/version")
    version = re.search(r"\d+(\.\d+)+", file.read_text()) if file.is_file() else None
    return version.group() if version else None


@cache
def code_fingerprint() -> str:
    """SHA-256 of the source files that make a run: ``extract``, ``store`` and ``schemas``."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in ("extract", "schemas", "store"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
