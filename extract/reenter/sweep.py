"""Many conditions in few batches: a question is thought through once, conditions branch off where they first differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from extract.model.reasoner import Reasoner
from extract.model.thinking import check_length
from extract.reenter.answers import Trunk, asked_answers
from extract.reenter.batches import batch_errors, by_length
from extract.reenter.branches import Questions, first_offset, run_conditions, think_untouched
from extract.reenter.draws import Draws
from extract.reenter.kept import Kept, array_digest
from extract.reenter.observe import OBSERVED
from extract.reenter.values import StoredValues
from extract.run.extract import code_fingerprint
from schemas import Intervention, Places, Rule, Scoring, UsageError, fingerprint
from schemas.progress import Progress

UNTOUCHED = "untouched"
COSTS = ("positions_fed", "model_calls", "positions_one_by_one", "model_calls_one_by_one")
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
        token that tells them apart), ``kl`` (nats, of the untouched run's distribution at the answer's first token,
        after the same prefix, from this one's: of a number that is written digit by digit only its first digit is
        seen), ``generated_text``, ``predicted_answer``, all ``(condition, example)``. With ``observe`` what
        :data:`extract.reenter.observe.OBSERVED` lists, ``(condition, position, example)``; with ``draws`` what they
        answer, ``sample_answer(condition, sample, example)``.
        ``attrs`` say how many positions were fed (``positions_fed``, in ``model_calls``), how many the same conditions
        cost one by one (``positions_one_by_one``), and how many of the untouched run's were shared.

    Raises
    ------
    UsageError
        If a condition asks for what is not there, or leaves the model's logits no numbers.
    LakeError
        If the device has too little memory, or fails.
    """
    scoring = Scoring(run.attrs.get("answer_kind", "number"), rule, reasoner.answer_prefix)
    stored = values or StoredValues(run, reasoner)
    labels = [int(label) for label in (run["example"].values if examples is None else examples)]
    _check_arguments(reasoner, conditions, answers, len(labels), batch_rows)
    n_new = int(max_new_tokens or json.loads(run.attrs.get("spec", "{}")).get("max_new_tokens", 24))
    asked = asked_answers(reasoner, [list(texts) for texts in answers.values()])
    longest_answer = max((len(rest) for golds in asked.rest for rest in golds), default=0)
    rows = stored.rows(labels)
    questions = Questions(
        reasoner=reasoner, stored=stored, labels=labels, rows=rows, asked=asked, n_new=n_new,
        prompts=reasoner.prompts(run["question"].values[rows]),
        room=max(n_new if generate else 1, len(asked.shared) + longest_answer),
        generate=generate, observe=observe, draws=draws, cost=dict.fromkeys(COSTS, 0),
    )  # fmt: skip
    for label, prompt in zip(labels, questions.prompts, strict=True):
        check_length(reasoner, len(prompt), questions.room, f"question of example {label}")
    _check_question_positions(conditions, labels, questions.prompts, reasoner.places)
    if "token" in run:
        written = (run["token"].values[rows][:, run["segment"].values == "answer"] >= 0).sum(1).max(initial=0)
        _check_answer_positions(conditions, max(int(written), len(asked.shared) + longest_answer), reasoner.places)
    batches, chunks, n_head_row = _batches(questions, conditions, batch_rows)
    identity = ""
    if folder is not None:
        decides = _decides(reasoner, run, stored, conditions, answers, labels, n_new, generate, observe, draws)
        identity = fingerprint({**decides, "batches": batches, "chunks": chunks, "head_rows": n_head_row})
    keep = Kept(folder, identity)
    names = [UNTOUCHED, *(condition.name for condition in conditions)]
    measured = _unmeasured(questions, len(names))
    done, total = 0, measured["text"].size
    with torch.inference_mode(), reasoner.session():
        for number, batch in enumerate(batches):
            for chunk, of_chunk in _batch_found(questions, conditions, batch, chunks, keep, number):
                for slot, place in enumerate(chunk):
                    _check_numbers(questions, names[place], batch, of_chunk["kl"][slot])
                    for name, array in measured.items():
                        array[place][..., batch] = of_chunk[name][slot]
                done += len(chunk) * len(batch)
                if progress is not None:
                    progress(done, total)
    result = _labelled(questions, measured, scoring, list(answers), names)
    return result.assign_attrs(rule=rule, answer_kind=scoring.kind)


def _check_arguments(
    reasoner: Reasoner, conditions: Sequence[Condition], answers: Mapping[str, Sequence[str]], n_example: int,
    batch_rows: int | None,
) -> None:  # fmt: skip
    for name, texts in answers.items():
        if len(texts) != n_example:
            raise UsageError(f"{len(texts)} answers called {name!r} for {n_example} examples")
    if batch_rows is not None and batch_rows < 1:
        raise UsageError(f"batch_rows is {batch_rows}; it must be at least 1")
    names = [condition.name for condition in conditions]
    if len({UNTOUCHED, *names}) <= len(names):
        raise UsageError("conditions of a sweep need names of their own, other than untouched")
    for condition in conditions:
        for intervention in condition.interventions:
            reasoner.check(intervention)


def _batches(
    questions: Questions, conditions: Sequence[Condition], batch_rows: int | None
) -> tuple[list[list[int]], list[list[int]], int]:
    """Examples of each batch, conditions that go side by side, and rows whose attention is computed head by head.

    Examples are ordered by length, so that a batch is padded little; conditions by where they begin, so that those side
    by side share most of the trunk.
    """
    reasoner, prompts, n_example = questions.reasoner, questions.prompts, len(questions.labels)
    order = sorted(range(len(conditions)), key=lambda index: first_offset(conditions[index], reasoner.places))
    n_row = batch_rows or rows_that_fit(
        reasoner, max(reasoner.places.needed(len(prompt), questions.room) for prompt in prompts)
    )
    n_head_row = min(HEAD_ROWS, n_row)
    with batch_errors(n_head_row):
        interventions = (intervention for condition in conditions for intervention in condition.interventions)
        questions.stored.prepare(interventions, n_head_row)
    n_batch = min(n_example, max(n_head_row, n_row // max(1, min(MOST_TOGETHER, len(conditions)))))
    n_together = max(1, n_row // n_batch)
    chunks = [order[start : start + n_together] for start in range(0, len(order), n_together)]
    return by_length(prompts, n_batch), chunks, n_head_row


def _batch_found(
    questions: Questions, conditions: Sequence[Condition], batch: list[int], chunks: list[list[int]],
    keep: Kept, number: int,
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:  # fmt: skip
    """Places in the result (0: the untouched run) and what was measured there, kept or computed now."""

    @cache
    def trunk() -> Trunk:
        return think_untouched(questions, batch)

    def measured(together: Sequence[Condition]) -> dict[str, np.ndarray]:
        with batch_errors(len(batch) * max(1, len(together)), "rows (examples times conditions)"):
            return run_conditions(questions, trunk(), together, batch)

    for piece, chunk in enumerate([[], *chunks]):
        together = [conditions[index] for index in chunk]
        holds = {
            "examples": [questions.labels[index] for index in batch],
            "conditions": [condition.name for condition in together] or [UNTOUCHED],
        }
        values = keep.get(f"{number:05d}-{piece:05d}", holds, partial(measured, together))
        yield [index + 1 for index in chunk] or [0], values


def _check_numbers(questions: Questions, name: str, batch: list[int], kl: np.ndarray) -> None:
    """Refuse a condition after which the model's logits are not numbers; ``kl`` is of the examples of a batch."""
    lost = np.flatnonzero(np.isnan(kl))
    if questions.asked.rest and len(lost):
        dtype = str(questions.reasoner.model.dtype).removeprefix("torch.")
        raise UsageError(
            f"condition {name}: the model's logits are no longer numbers on example"
            f" {questions.labels[batch[lost[0]]]}, as its states go beyond {dtype}; change them less"
            + ("" if dtype == "float32" else ", or compute in float32")
        )


def _unmeasured(questions: Questions, n_condition: int) -> dict[str, np.ndarray]:
    """Arrays for what every batch measures, with the axes of :func:`run_conditions`."""
    shape = (n_condition, len(questions.labels))
    measured = {
        "text": np.full(shape, "", dtype=object),
        "logprob": np.full((n_condition, len(questions.asked.rest), shape[1]), np.nan),
        "difference": np.full(shape, np.nan),
        "kl": np.full(shape, np.nan),
    }
    if questions.draws is not None and questions.draws.n_sample:
        measured["sample_text"] = np.full((n_condition, questions.draws.n_sample, shape[1]), "", dtype=object)
    if questions.observe:
        n_middle = questions.reasoner.places.n_middle
        measured["seen"] = np.full((n_condition, len(OBSERVED), n_middle, shape[1]), np.nan)
    return measured


def _labelled(
    questions: Questions, measured: Mapping[str, np.ndarray], scoring: Scoring, answers: list[str], names: list[str]
) -> xr.Dataset:
    """The result of a sweep; what it cost is in its attributes."""
    dims, text, cost = ("condition", "example"), measured["text"], questions.cost
    drawn = measured.get("sample_text", np.empty(0, dtype=object))
    _one_by_one(questions, [*text.ravel(), *drawn.ravel()], len(names))
    cost["positions_fed"] += questions.stored.fed
    result = xr.Dataset(
        {
            "answer_logprob": (("condition", "answer", "example"), measured["logprob"], {"units": "nat"}),
            "logit_difference": (dims, measured["difference"], {"units": "logit"}),
            "kl": (dims, measured["kl"], {"units": "nat"}),
        },
        coords={"condition": names, "answer": answers, "example": questions.labels},
        attrs={
            **cost,
            "positions_saved": cost["positions_one_by_one"] - cost["positions_fed"],
            "n_condition": len(names),
        },
    )

    if questions.generate:
        result["generated_text"] = (dims, text)
        result["predicted_answer"] = (dims, scoring.answers(text))
    if "sample_text" in measured:
        result["sample_answer"] = ("condition", "sample", "example"), scoring.answers(drawn)
    if "seen" in measured:
        result = result.assign_coords(position=np.array(questions.reasoner.places.middle, dtype=object))
        for index, (name, units) in enumerate(OBSERVED.items()):
            result[name] = (("condition", "position", "example"), measured["seen"][:, index], {"units": units})
    return result


def _one_by_one(questions: Questions, texts: Sequence[str], n_condition: int) -> None:
    """What the same conditions cost when each example is thought through from its question for every one of them."""
    reasoner, asked, n_prompt = questions.reasoner, questions.asked, len(questions.prompts)
    # Shared tokens and every answer's own, but for the last token of each, which nobody reads on from.
    teacher = len(asked.shared) + sum(np.mean([len(rest) - 1 for rest in golds]) for golds in asked.rest)
    head = sum(reasoner.places.needed(len(prompt), 0) for prompt in questions.prompts)
    length = {text: len(reasoner.text_tokens(text)) + 1 for text in set(map(str, texts))}
    lengths = [length[str(text)] for text in texts if text]
    questions.cost["positions_one_by_one"] = int(n_condition * (head + n_prompt * teacher) + sum(lengths))
    calls = 1 + reasoner.places.n_middle + len(asked.rest) + (int(np.mean(lengths)) if lengths else 0)
    questions.cost["model_calls_one_by_one"] = n_condition * n_prompt * calls


def rows_that_fit(reasoner: Reasoner, columns: int) -> int:
    """Rows whose keys, values and logits a batch has room for, all of them twice where it goes on with some only."""
    keys = reasoner.key_value_bytes * columns
    row = keys + 3 * 4 * (reasoner.vocabulary + len(reasoner.extra_rows))
    if reasoner.device.type != "cuda":
        return int(min(MOST_ROWS, max(8, BATCH_BYTES // row)))
    free = torch.cuda.mem_get_info(reasoner.device)[0]
    # A power of two: finished batches are taken up again although others now hold a little more or less of the card.
    return int(min(MOST_ROWS, 2 ** (max(8, free // 4 // row).bit_length() - 1)))


def _check_question_positions(
    conditions: Sequence[Condition], labels: list[int], prompts: list[list[int]], places: Places
) -> None:
    """A question position must exist in every example it is armed on."""
    for condition in conditions:
        for intervention in condition.interventions:
            # An edge to a place that is not there can be cut or left out of what is dealt, not forced or replaced.
            for position in {
                *intervention.positions,
                *(intervention.keys if intervention.operation not in ("zero", "even", "shuffle") else ()),
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


def _check_answer_positions(conditions: Sequence[Condition], longest: int, places: Places) -> None:
    """One of a condition's positions must be fed in some answer, whose last token is not: else nothing would change."""
    for condition in conditions:
        positions = {position for one in condition.interventions for position in one.positions}
        if positions and min(map(places.offset, positions)) >= places.offset(f"a{max(longest, 1) - 1}"):
            raise UsageError(
                f"condition {condition.name}: the longest answer has {longest} tokens, of which the last is not fed;"
                f" {', '.join(sorted(positions))} would change nothing"
            )


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
            [str(part.attrs.get("fingerprint", "")), part["example"].values.tolist()] for part in (run, stored.run)
        ],
        "directions": {name: array_digest(array) for name, array in stored.directions.items()},
        "subspaces": {
            name: {str(key): array_digest(array) for key, array in factors.data_vars.items()}
            for name, factors in stored.subspaces.items()
        },
        "conditions": [
            [
                condition.name,
                [asdict(intervention) for intervention in condition.interventions],
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
