"""Many conditions in few batches: a question is thought through once, conditions branch off where they first differ."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from extract.model.capture import KeyValues
from extract.model.device import device_errors
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from extract.reenter.answers import Answers, Trunk, asked_answers, measure_answers, set_base, spend, write_answers
from extract.reenter.armed import Armed
from extract.reenter.draws import Draws, draw_answers
from extract.reenter.intervene import arm
from extract.reenter.kept import Kept, array_digest
from extract.reenter.observe import OBSERVED, observe_states
from extract.reenter.values import StoredValues
from extract.run.extract import code_fingerprint
from schemas import Intervention, Places, Rule, Scoring, UsageError, fingerprint

Progress = Callable[[int, int], None]
UNTOUCHED = "untouched"
BATCH_BYTES = 2**30
"""Aim for the memory that keys, values and logits of one batch take; on a card a quarter of what is free there."""
MOST_ROWS, HEAD_ROWS = 1024, 32
MOST_TOGETHER = 8
"""Conditions of a batch: fewer that begin at one place, on more examples, feed less than many that begin anywhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What is done to the model in one cell of a sweep."""

    name: str
    interventions: tuple[Intervention, ...]
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Where the cell lies: coordinates of the sweep's result."""
    where: Mapping[str, np.ndarray] | None = None
    """For some positions, the examples ``(example,)`` of the sweep on which they are armed."""


def sweep(
    reasoner: Reasoner,
    run: xr.Dataset,
    conditions: Sequence[Condition],
    *,
    answers: Mapping[str, Sequence[str]],
    examples: Sequence[int] | None = None,
    values: StoredValues | None = None,
    max_new_tokens: int | None = None,
    generate: bool = True,
    observe: bool = False,
    draws: Draws | None = None,
    batch_rows: int | None = None,
    rule: Rule = "default",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Think every example through again under every condition, and once untouched.

    Parameters
    ----------
    reasoner
        Model.
    run
        Its run, with the examples' questions.
    conditions
        Cells of the sweep, of any kinds together. ``untouched`` is added as the first.
    answers
        Answers by name, each ``(example,)``, whose log probability is asked: first the one that counts for, then the
        one against.
    examples
        Labels of the examples; all of the run by default.
    values
        Where donors, means and directions come from; the run itself by default.
    max_new_tokens
        Longest answer; the run's own by default.
    generate
        Write the answer's text, too; without it only numbers are measured.
    observe
        Measure as well how the state at ``bot``, at every thought and at what closes them differs from the untouched
        run's. Costs one product with the unembedding for each of them.
    draws
        Answers drawn beside the likeliest one.
    batch_rows
        Rows of a batch (examples times conditions); by default what fits a gigabyte, or a quarter of a card's free
        memory.
    rule
        How the answer in a text is read, see :class:`schemas.Scoring`; its kind is the run's.
    folder
        Where finished batches are kept; a sweep that is started again, with the same batches of the same things in the
        same precision, takes up what lies there.
    progress
        Called with rows done and rows in all.

    Returns
    -------
    xr.Dataset
        ``answer_logprob(condition, answer, example)``, ``logit_difference`` (first answer less second, at the first
        token that tells them apart), ``kl`` (nats, of the untouched run's distribution at the answer's number from this
        one's, both after the same prefix), ``generated_text``, ``predicted_answer``, all ``(condition, example)``. With
        ``observe`` what :data:`extract.reenter.observe.OBSERVED` lists, ``(condition, position, example)``; with
        ``draws`` what they answer, ``sample_answer(condition, sample, example)``.
        ``attrs`` say how many positions were fed (``positions_fed``, in ``model_calls``), how many the same conditions
        cost one by one (``positions_one_by_one``), and how many of the untouched run's were shared.

    Raises
    ------
    UsageError
        If a condition asks for what is not there.
    LakeError
        If the device has too little memory, or fails.
    """
    scoring = Scoring(run.attrs.get("answer_kind", "number"), rule, reasoner.answer_prefix)
    stored = values or StoredValues(run, reasoner)
    labels = [int(label) for label in (run["example"].values if examples is None else examples)]
    rows = stored.rows(labels)
    n_new = int(max_new_tokens or json.loads(run.attrs.get("spec", "{}")).get("max_new_tokens", 24))
    for name, texts in answers.items():
        if len(texts) != len(labels):
            raise UsageError(f"{len(texts)} answers called {name!r} for {len(labels)} examples")
    if batch_rows is not None and batch_rows < 1:
        raise UsageError(f"batch_rows is {batch_rows}; it must be at least 1")
    names = [condition.name for condition in conditions]
    if len({UNTOUCHED, *names}) <= len(names):
        raise UsageError("conditions of a sweep need names of their own, other than untouched")
    for condition in conditions:
        for each in condition.interventions:
            reasoner.check(each)
    prompts = [reasoner.encode(str(run["question"].values[row])) for row in rows]
    asked = asked_answers(reasoner, [list(texts) for texts in answers.values()])
    longest_answer = max((len(rest) for each in asked.rest for rest in each), default=0)
    room = max(n_new if generate else 1, len(asked.shared) + longest_answer)
    for label, prompt in zip(labels, prompts, strict=True):
        reasoner.check_length(len(prompt), room, f"question of example {label}")
    _check_question_positions(conditions, labels, prompts, reasoner.places)

    order = sorted(range(len(conditions)), key=lambda index: _first_offset(conditions[index], reasoner.places))
    longest = max(reasoner.longest(len(prompt), room) for prompt in prompts)
    n_row = batch_rows or rows_that_fit(reasoner, longest)
    n_head_row = min(HEAD_ROWS, n_row)
    with device_errors(f"a batch of {n_head_row} rows", f"pass --batch-rows {max(1, n_head_row // 2)}"):
        stored.prepare((each for condition in conditions for each in condition.interventions), n_head_row)
    n_batch = min(len(labels), max(min(HEAD_ROWS, n_row), n_row // max(1, min(MOST_TOGETHER, len(conditions)))))
    by_length = sorted(range(len(labels)), key=lambda index: (len(prompts[index]), index))
    batches = [by_length[start : start + n_batch] for start in range(0, len(by_length), n_batch)]
    n_together = max(1, n_row // n_batch)
    chunks = [order[start : start + n_together] for start in range(0, len(order), n_together)]

    n_condition = len(conditions) + 1
    shape = (n_condition, len(labels))
    logprob = np.full((n_condition, len(asked.rest), len(labels)), np.nan)
    difference, kl = np.full(shape, np.nan), np.full(shape, np.nan)
    middle = reasoner.places.middle
    seen = np.full((n_condition, len(OBSERVED), len(middle), len(labels)), np.nan) if observe else None
    text = np.full(shape, "", dtype=object)
    n_sample = 0 if draws is None else draws.n_sample
    drawn = np.full((n_condition, n_sample, len(labels)), "", dtype=object)
    cost = {"positions_fed": 0, "model_calls": 0, "positions_one_by_one": 0, "model_calls_one_by_one": 0}
    keep = None
    if folder is not None:
        decides = _decides(reasoner, run, stored, conditions, answers, labels, n_new, generate, observe, draws)
        keep = Kept(folder, fingerprint({**decides, "batches": batches, "chunks": chunks, "head_rows": n_head_row}))
    done, total = 0, n_condition * len(labels)
    with torch.inference_mode(), reasoner.session():
        for number, batch in enumerate(batches):
            trunk: Trunk | None = None
            for piece, chunk in enumerate([None, *chunks]):
                name = f"{number:05d}-{piece:05d}"
                holds = {
                    "examples": [labels[index] for index in batch],
                    "conditions": [UNTOUCHED] if chunk is None else [names[index] for index in chunk],
                }
                found = keep.load(name, holds) if keep is not None else None
                if found is None:
                    parts = [] if chunk is None else [conditions[index] for index in chunk]
                    n_now = len(batch) * max(1, len(parts))
                    remedy = f"pass --batch-rows {max(1, n_now // 2)}"
                    with device_errors(f"a batch of {n_now} rows (examples times conditions)", remedy):
                        if trunk is None:
                            trunk, fed = _trunk(reasoner, [prompts[index] for index in batch], room)
                            spend(cost, fed)
                            if asked.rest:
                                set_base(reasoner, trunk, asked, batch, cost)
                        found = _run(
                            reasoner,
                            stored,
                            trunk,
                            parts,
                            rows,
                            batch,
                            asked,
                            n_new,
                            room,
                            generate=generate,
                            observe=observe,
                            draws=draws,
                            labels=labels,
                            cost=cost,
                        )
                    if keep is not None:
                        keep.save(name, holds, found)
                places = [0] if chunk is None else [index + 1 for index in chunk]
                for slot, place in enumerate(places):
                    text[place, batch] = found["text"][slot]
                    logprob[place][:, batch] = found["logprob"][slot]
                    difference[place, batch] = found["difference"][slot]
                    kl[place, batch] = found["kl"][slot]
                    if n_sample:
                        drawn[place][:, batch] = found["sample_text"][slot]
                    if seen is not None:
                        seen[place][:, :, batch] = found["seen"][slot]
                done += len(places) * len(batch)
                if progress is not None:
                    progress(done, total)
            del trunk
    _one_by_one(cost, reasoner, prompts, [*text.ravel(), *drawn.ravel()], asked, n_condition)
    cost["positions_fed"] += stored.fed
    dims = ("condition", "example")
    result = xr.Dataset(
        {
            "answer_logprob": (("condition", "answer", "example"), logprob),
            "logit_difference": (dims, difference),
            "kl": (dims, kl),
        },
        coords={
            "condition": [UNTOUCHED, *(condition.name for condition in conditions)],
            "answer": list(answers),
            "example": labels,
        },
        attrs={
            **cost,
            "positions_saved": cost["positions_one_by_one"] - cost["positions_fed"],
            "n_condition": n_condition,
            "rule": rule,
            "answer_kind": scoring.kind,
        },
    )
    if generate:
        result["generated_text"] = (dims, text)
        predicted = scoring.column(scoring.answer(str(each)) for each in text.ravel())
        result["predicted_answer"] = (dims, predicted.reshape(shape))
    if n_sample:
        answered = scoring.column(scoring.answer(str(each)) for each in drawn.ravel()).reshape(drawn.shape)
        result["sample_answer"] = ("condition", "sample", "example"), answered
    if seen is not None:
        result = result.assign_coords(position=np.array(middle, dtype=object))
        for index, (name, units) in enumerate(OBSERVED.items()):
            result[name] = (("condition", "position", "example"), seen[:, index], {"units": units})
    result["logit_difference"].attrs["units"] = "logit"
    result["kl"].attrs["units"] = "nat"
    result["answer_logprob"].attrs["units"] = "nat"
    return result


def _one_by_one(
    cost: dict[str, int],
    reasoner: Reasoner,
    prompts: list[list[int]],
    texts: Sequence[str],
    asked: Answers,
    n_condition: int,
) -> None:
    """What the same conditions cost when each example is thought through from its question for every one of them."""
    # Shared tokens and every answer's own, but for the last token of each, which nobody reads on from.
    teacher = len(asked.shared) + sum(np.mean([len(rest) - 1 for rest in each]) for each in asked.rest)
    head = sum(reasoner.longest(len(prompt), 0) for prompt in prompts)
    length = {text: len(reasoner._plain(text)) + 1 for text in set(map(str, texts))}
    lengths = [length[str(text)] for text in texts if text]
    cost["positions_one_by_one"] = int(n_condition * (head + len(prompts) * teacher) + sum(lengths))
    calls = 1 + reasoner.places.n_middle + len(asked.rest) + (int(np.mean(lengths)) if lengths else 0)
    cost["model_calls_one_by_one"] = n_condition * len(prompts) * calls


def rows_that_fit(reasoner: Reasoner, columns: int) -> int:
    """Rows whose keys, values and logits a batch has room for, all of them twice where it goes on with some only."""
    config: Any = reasoner.model.config
    kv_heads = int(getattr(config, "num_key_value_heads", None) or reasoner.n_head)
    size = 4 if reasoner.model.dtype == torch.float32 else 2
    keys = 2 * reasoner.n_layer * kv_heads * reasoner.head_size * columns * size
    row = keys + 3 * 4 * (reasoner.vocabulary + len(reasoner.extra_rows))
    if reasoner.device.type != "cuda":
        return int(min(MOST_ROWS, max(8, BATCH_BYTES // row)))
    free = torch.cuda.mem_get_info(reasoner.device)[0]
    # A power of two: finished batches are taken up again although others now hold a little more or less of the card.
    return int(min(MOST_ROWS, 2 ** (max(8, free // 4 // row).bit_length() - 1)))


def _first_offset(condition: Condition, places: Places) -> int:
    """Offset of the first position that is changed in any example."""
    where = condition.where or {}
    changed = {p for each in condition.interventions for p in each.positions if p not in where or where[p].any()}
    return min(map(places.offset, changed), default=places.n_middle)


def _check_question_positions(
    conditions: Sequence[Condition], labels: list[int], prompts: list[list[int]], places: Places
) -> None:
    """A question position must exist in every example it is armed on."""
    for condition in conditions:
        for each in condition.interventions:
            # An edge to a place that is not there can be cut or left out of what is dealt, not forced or replaced.
            for position in {
                *each.positions,
                *(each.keys if each.operation not in ("zero", "even", "shuffle") else ()),
            }:
                offset = places.offset(position)
                if offset >= 0:
                    continue
                armed = (
                    condition.where[position] if condition.where is not None and position in condition.where else None
                )
                for index, prompt in enumerate(prompts):
                    if len(prompt) - 1 < -offset and (armed is None or armed[index]):
                        raise UsageError(
                            f"condition {condition.name}: example {labels[index]} has {len(prompt) - 1} question"
                            f" tokens, {position} is not there"
                        )


def _trunk(reasoner: Reasoner, prompts: list[list[int]], room: int) -> tuple[Trunk, Flight]:
    """Think a batch through up to the answer, untouched."""
    tokens, pad, n_before = reasoner.lay_out(prompts)
    flight = Flight(reasoner, pad, n_before, KeyValues(n_before + reasoner.places.n_middle + room))
    states = [flight.feed_tokens(tokens)[:, -1]]
    for _ in range(reasoner.n_latent):
        states.append(flight.feed(reasoner.projection(states[-1])[:, None])[:, -1])
    for token in reasoner.closing_ids:
        states.append(flight.feed_tokens(torch.full_like(tokens[:, :1], token))[:, -1])
    empty = torch.empty(0, device=reasoner.device)
    trunk = Trunk(tokens=tokens, pad=pad, n_before=n_before, cache=flight.cache, states=states, base=empty)
    return trunk, flight


def _run(
    reasoner: Reasoner, stored: StoredValues, trunk: Trunk, conditions: list[Condition], rows: np.ndarray,
    batch: list[int], asked: Answers, n_new: int, room: int, *, generate: bool, observe: bool, draws: Draws | None,
    labels: list[int], cost: dict[str, int],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Some conditions (none: the untouched run) on one batch of examples, side by side."""
    n_copy, n_batch = max(1, len(conditions)), len(batch)
    device = reasoner.device
    last = reasoner.places.n_middle - 1
    source = torch.arange(n_batch, device=device).repeat(n_copy)
    armed = Armed(n_copy * n_batch, device)
    first = last + 1
    for copy, condition in enumerate(conditions):
        first = min(first, _first_offset(condition, reasoner.places))
        where = None if condition.where is None else {key: mask[batch] for key, mask in condition.where.items()}
        for stage, each in enumerate(condition.interventions):
            batch_rows = np.arange(copy * n_batch, (copy + 1) * n_batch)
            arm(armed, each, stored, rows[batch], batch_rows, stage=stage, where=where)
    capacity = trunk.n_before + last + 1 + room
    cache = trunk.cache.take(source, trunk.n_before + first, capacity)
    flight = Flight(reasoner, trunk.pad[source], trunk.n_before, cache, editor=armed if conditions else None)
    flight.states = {} if observe else None
    if first > last:
        state = trunk.states[last][source]
    else:
        if first <= 0:
            state = flight.feed_tokens(trunk.tokens[:, trunk.n_before + first :][source])[:, -1]
            state = flight.think(state)
        else:
            state = flight.think(trunk.states[first - 1][source], first=first - 1)
        state = flight.close(state, first=max(0, first - 1 - reasoner.n_latent))
    found: dict[str, np.ndarray] = {}
    if draws is not None and draws.n_sample:  # before the flight goes on with those rows only whose answer is longest
        of_row = [labels[example] for example in batch] * n_copy
        texts = draw_answers(reasoner, flight, state, of_row, n_new, draws, cost)
        found["sample_text"] = texts.reshape(draws.n_sample, n_copy, n_batch).swapaxes(0, 1)
    measured = measure_answers(reasoner, flight, state, trunk, source, asked, batch)
    text = np.full((n_copy, n_batch), "", dtype=object)
    if generate:
        lines = write_answers(reasoner, flight, measured.states, asked.shared, n_new, cost, measured.known)
        text = np.array([reasoner.decode(line) for line in lines], dtype=object).reshape(n_copy, n_batch)
    spend(cost, flight)
    if flight.states is not None:
        found["seen"] = observe_states(reasoner, trunk.states, flight.states, source)
    return found | {
        "text": text,
        "logprob": measured.logprob.reshape(len(asked.rest), n_copy, n_batch).swapaxes(0, 1),
        "difference": measured.difference.reshape(n_copy, n_batch),
        "kl": measured.kl.reshape(n_copy, n_batch),
    }


def _decides(
    reasoner: Reasoner, run: xr.Dataset, stored: StoredValues, conditions: Sequence[Condition],
    answers: Mapping[str, Sequence[str]], labels: list[int], n_new: int, generate: bool, observe: bool,
    draws: Draws | None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that decides a sweep's values, but what is computed side by side."""
    return {
        "model": dict(reasoner.fingerprint),
        "compute_dtype": str(reasoner.model.dtype),
        "device": reasoner.device.type,
        "code": code_fingerprint(),
        # A run may have grown since: means and donors are over the examples it has.
        "runs": [
            [str(each.attrs.get("fingerprint", "")), each["example"].values.tolist()] for each in (run, stored.run)
        ],
        "directions": {name: array_digest(array) for name, array in stored.directions.items()},
        "subspaces": {
            name: {str(key): array_digest(array) for key, array in factors.data_vars.items()}
            for name, factors in stored.subspaces.items()
        },
        "conditions": [
            [
                condition.name,
                [asdict(each) for each in condition.interventions],
                {key: np.asarray(mask).astype(int).tolist() for key, mask in (condition.where or {}).items()},
            ]
            for condition in conditions
        ],
        "examples": labels,
        "answers": {name: [str(text) for text in texts] for name, texts in answers.items()},
        "max_new_tokens": n_new,
        "generate": generate,
        "observe": observe,
        "draws": None if draws is None else asdict(draws),
    }
