"""What a run will cost, before it is paid: bytes from the questions' lengths, ratios and time from a few batches."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from extract.run.precision import STATES, calibration
from extract.run.prepare import IN_FLIGHT, Prepared, batches, held_bytes, place, think
from schemas import LakeError, UsageError
from schemas.vocabulary import ITERATIONS
from store import encoded_sizes, local_path, model_size, most_bytes, open_lake, run_files_size
from store.record import PARTS

MIN_CALIBRATION = 32
"""Examples thought through at least to calibrate."""
N_PRECISION = 4
"""Questions that are computed alone and together."""
ASSUMED_RATIO = 0.9
"""Encoded over raw bytes of what exists, where nothing was encoded to find out."""
ASSUMED_ANSWER = 6
"""Answer tokens, end token included, where nothing was answered to find out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariablePlan:
    """One array of a planned run."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    files: int
    """One for each shard."""
    raw_bytes: int
    """Shape times width: padding, future keys and question rows included."""
    expected_bytes: int
    """On disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run will take."""

    run: str
    n_example: int
    n_shard: int
    shard_examples: int
    batch_examples: float
    """Mean of the batches: less than asked for where questions are too long for the memory."""
    shards_committed: int
    """Shards that the lake already holds."""
    variables: list[VariablePlan]
    files: int
    """All files of the run and, where the lake has it not yet, of the model."""
    static_bytes: int
    """Documents, coordinates, texts, and the model's read-out."""
    raw_bytes: int
    expected_bytes: int
    """All that the whole run puts on disk."""
    remaining_bytes: int
    """All that is still to be put there."""
    memory_bytes: int
    """Peak of the process: what it has now, the shards and batches in flight."""
    memory_budget: int
    """Bound of the activations among it."""
    model_seconds: float
    write_seconds: float
    seconds: float
    """Of what is still to be done."""
    free_bytes: int | None
    """On the lake's disk; ``None`` where it has none to be asked."""
    precision: dict[str, Any]
    """Calibration of the compute type; see :func:`extract.run.precision.calibrate`."""

    @property
    def fits(self) -> bool:
        """Whether the disk is large enough."""
        return self.free_bytes is None or self.remaining_bytes <= self.free_bytes


def plan(prepared: Prepared, lake: str | os.PathLike[str]) -> Plan:
    """Plan a run: lay it out, think through two batches or more, encode them in memory, and reckon up the rest.

    ``lake`` is the folder or URL that is to take it; nothing is written.
    """
    layout, spec = prepared.layout, prepared.spec
    resident = psutil.Process().memory_info().rss
    n_prompt = np.array([len(prompt) for prompt in prepared.prompts])
    every_batch = [batch for shard in range(layout.n_shard) for batch in batches(prepared, shard)]
    chosen = _calibration_batches(prepared, every_batch)
    examples = np.concatenate(chosen)
    sample = replace(layout, n_example=len(examples))
    values = sample.empty(len(examples))
    seconds, n_answer = _think_through(prepared, chosen, values)
    begin = time.perf_counter()
    encoded = encoded_sizes(sample, values)
    encode_seconds = time.perf_counter() - begin
    known = entries(prepared, n_prompt[examples], n_answer)
    every = entries(prepared, n_prompt, np.full(len(n_prompt), n_answer.mean()))
    done = committed_shards(prepared, lake)
    left = np.repeat(~done, layout.shard_examples)[: layout.n_example]
    variables, remaining, to_write = [], 0, 0.0
    for name, array in layout.arrays().items():
        ratio = encoded[name] / max(known[name].sum(), 1)
        content = ratio * float(every[name][left].sum())
        to_write += content
        remaining += int(content) + array.index_bytes * int((~done).sum())
        variables.append(
            VariablePlan(
                name=name,
                dims=array.dims,
                shape=array.shape,
                dtype=array.dtype,
                chunks=array.chunks,
                shards=array.shards,
                files=layout.n_shard,
                raw_bytes=layout.n_example * array.example_bytes,
                expected_bytes=int(ratio * every[name].sum()) + array.index_bytes * layout.n_shard,
            )
        )
    static_files, static_bytes, static_left = _static(prepared, lake)
    model_seconds = _model_seconds(prepared, chosen, seconds, done)
    write_seconds = encode_seconds * to_write / sum(encoded.values())
    shared = not spec.device.startswith("cuda")  # on a CPU model and compression share the cores
    return Plan(
        run=prepared.run,
        n_example=layout.n_example,
        n_shard=layout.n_shard,
        shard_examples=layout.shard_examples,
        batch_examples=layout.n_example / len(every_batch),
        shards_committed=int(done.sum()),
        variables=variables,
        files=static_files + layout.n_shard * (len(variables) + 1 + len(PARTS)),
        static_bytes=static_bytes,
        raw_bytes=sum(variable.raw_bytes for variable in variables),
        expected_bytes=static_bytes + sum(variable.expected_bytes for variable in variables),
        remaining_bytes=static_left + remaining,
        memory_bytes=resident + IN_FLIGHT * held_bytes(prepared, layout.shard_examples),
        memory_budget=prepared.memory,
        model_seconds=model_seconds,
        write_seconds=write_seconds,
        seconds=model_seconds + write_seconds if shared else max(model_seconds, write_seconds),
        free_bytes=free_bytes(lake),
        precision=calibration(prepared, N_PRECISION),
    )


def _think_through(
    prepared: Prepared, chosen: Sequence[list[int]], values: dict[str, Any]
) -> tuple[list[float], np.ndarray]:
    """Put what the model makes of some batches into place; seconds of each batch, and answer tokens by example."""
    seconds, answers, done = [], [], 0
    think(prepared, chosen[0][:1])  # what runs for the first time is not what is measured
    for batch in chosen:
        begin = time.perf_counter()
        thinking = think(prepared, batch)
        place(thinking, prepared, done + np.arange(len(batch)), batch, values)
        seconds.append(time.perf_counter() - begin)
        done += len(batch)
        answers.append((thinking.token[:, thinking.token.shape[1] - thinking.n_answer :] >= 0).sum(1))
    return seconds, np.concatenate(answers)


def entries(prepared: Prepared, n_prompt: np.ndarray, n_answer: np.ndarray) -> Mapping[str, np.ndarray]:
    """Entries of each variable that exist, by example; of the small columns, rows.

    ``n_prompt`` (example,) are the tokens of each question, BOT included, ``n_answer`` (example,) those of each answer,
    end token included.
    """
    layout = prepared.layout
    position = n_prompt + layout.places.n_middle - 1 + n_answer
    row = position if prepared.spec.rows == "full" else layout.places.n_middle + n_answer
    before = position - row
    seen = (position * (position + 1) - before * (before + 1)) / 2
    one = np.ones(len(n_prompt))
    counts = dict.fromkeys(layout.arrays(), one)
    for name in ("hidden_state", *prepared.spec.parts):
        counts[name] = row * layout.n_layer * layout.hidden
    counts["final_state"] = row * layout.hidden
    counts["latent_embedding"] = one * layout.n_latent * layout.hidden
    if layout.n_round:
        counts |= dict.fromkeys(ITERATIONS, counts["latent_embedding"] * layout.n_round)
    counts["attention"] = seen * layout.n_layer * layout.n_head
    return counts


def committed_shards(prepared: Prepared, lake: str | os.PathLike[str]) -> np.ndarray:
    """Which shards of the run the lake holds already: (shard,) bool."""
    try:
        return open_lake(lake).committed(prepared.run)
    except LakeError:
        return np.zeros(prepared.layout.n_shard, dtype=bool)


def free_bytes(lake: str | os.PathLike[str]) -> int | None:
    """Bytes free where a lake is or will be; ``None`` on an object store."""
    folder = local_path(lake)
    if folder is None:
        return None
    there = next(path for path in (folder, *folder.absolute().parents, Path("/")) if path.exists())
    return shutil.disk_usage(there).free


def require_space(prepared: Prepared, lake: str | os.PathLike[str]) -> None:
    """Refuse a run that the disk cannot take. By the questions' lengths alone, short answers assumed.

    Raises
    ------
    UsageError
        Saying how much is needed and how much is there.
    """
    free = free_bytes(lake)
    if free is None:
        return
    layout = prepared.layout
    done = committed_shards(prepared, lake)
    if done.all():
        return
    left = np.repeat(~done, layout.shard_examples)[: layout.n_example]
    n_prompt = np.array([len(prompt) for prompt in prepared.prompts])
    n_answer = np.full(len(n_prompt), min(ASSUMED_ANSWER, prepared.spec.max_new_tokens))
    counts = entries(prepared, n_prompt, n_answer)
    need, columns = 0, prepared.problems.columns
    for name in (*STATES, *prepared.spec.parts):
        array = layout.arrays()[name]
        need += int(counts[name][left].sum() * np.dtype(array.dtype).itemsize * ASSUMED_RATIO)
        need += array.index_bytes * int((~done).sum())
    has_run, has_model = in_lake(prepared, lake)
    model = None if has_model else prepared.model_arrays()
    if need + most_bytes(layout, None if has_run else columns, model) > free:
        need += 0 if has_run else run_files_size(layout, columns)[1]
        need += 0 if model is None else model_size(model)[1]
    if need > free:
        raise UsageError(
            f"{lake}: {prepared.run} needs about {need / 1e6:,.1f} MB more and the disk has {free / 1e6:,.1f} MB free;"
            " nothing was written. Free some space, use another --lake, --capture latent, or --limit (see lake plan)"
        )


def _calibration_batches(prepared: Prepared, every: list[list[int]]) -> list[list[int]]:
    """Some of the batches, of questions of many lengths: two or as many as make ``MIN_CALIBRATION`` examples."""
    every = sorted(every, key=lambda batch: len(prepared.prompts[batch[-1]]))
    wanted = max(2, round(MIN_CALIBRATION * len(every) / prepared.layout.n_example))
    places = (np.arange(wanted) + 0.5) / wanted * len(every)
    return [every[place] for place in sorted(set(places.astype(int).tolist()))]


def _model_seconds(prepared: Prepared, chosen: list[list[int]], seconds: list[float], done: np.ndarray) -> float:
    """Time of all batches still to come: a straight line in their longest question through those measured."""

    def longest(batch: list[int]) -> int:
        return max(len(prepared.prompts[index]) for index in batch)

    measured = np.array([longest(batch) for batch in chosen], dtype=float)
    slope, level = 0.0, float(np.mean(seconds))
    if len(set(measured)) > 1:
        slope, level = np.polyfit(measured, seconds, 1)
    if slope <= 0:
        slope, level = 0.0, float(np.mean(seconds))
    coming = [longest(batch) for shard in np.flatnonzero(~done) for batch in batches(prepared, int(shard))]
    return float(np.maximum(level + slope * np.array(coming, dtype=float), 0).sum())


def _static(prepared: Prepared, lake: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Files and bytes of what is written once, and the bytes of it that the lake has not yet."""
    files, size = run_files_size(prepared.layout, prepared.problems.columns)
    model_files, model = model_size(prepared.model_arrays())
    has_run, has_model = in_lake(prepared, lake)
    left = (0 if has_run else size) + (0 if has_model else model)
    return files + model_files + 1, size + model, left


def in_lake(prepared: Prepared, lake: str | os.PathLike[str]) -> tuple[bool, bool]:
    """Whether a lake has the run, and its model."""
    try:
        opened = open_lake(lake)
        return prepared.run in opened, prepared.model in opened.models()
    except LakeError:
        return False, False
