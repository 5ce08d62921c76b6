"""Some examples of a run computed again: whether the lake still says what the model says."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from extract.model.load import load_reasoner
from extract.model.own import OwnModel, is_own, open_own
from extract.model.reasoner import Reasoner
from extract.run.precision import (
    FLOOR,
    STATES,
    Differences,
    allowed,
    calibrate,
    chosen,
    error_of,
    floor_of,
    kept,
    up_to_turn,
)
from schemas import RunSpec, SpecMismatchError, UsageError
from schemas.vocabulary import ITERATIONS
from store import open_lake

OTHER_TEXTS = 1
"""Answers that may differ even where the calibration's did not: two tokens can be all but equally likely."""

OTHER_THOUGHTS = 0.1
"""Share of examples, beside the same one, that may have another thought where words are mixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputed:
    """Examples of a run beside what the model gives now."""

    run: str
    examples: list[int]
    """Their labels."""
    states: dict[str, Differences]
    """By variable, how far the lake is from the model beyond the rounding of the stored type."""
    answer_logprob: float
    """Largest difference."""
    other_texts: int
    """Examples answered otherwise; their states are compared up to the end of thinking."""
    other_thoughts: int
    """Examples one of whose thoughts is another mixture of words; their states are compared up to that."""
    beyond: list[str]
    """What differs by more than rounding."""
    precision: dict[str, Any]
    """The calibration that this was judged by: the run's own, or made now where it has none."""

    @property
    def agrees(self) -> bool:
        """Whether all differences are rounding."""
        return not self.beyond


def recompute(
    lake: str | os.PathLike[str],
    run: str,
    n_example: int,
    *,
    checkpoint: str | None = None,
    base: str | None = None,
    device: str = "cpu",
    lora_alpha: float | None = None,
    protocol: str | None = None,
    thoughts: int | None = None,
) -> Recomputed:
    """Think through some of a run's examples again, one at a time, and compare.

    Differences are measured place by place, in units of the place's own scale
    (:func:`extract.run.precision.state_error`), and judged by the run's calibration.

    Parameters
    ----------
    lake
        Folder or URL.
    run
        ``MODEL/DATASET``.
    n_example
        How many of the committed examples, spread evenly.
    checkpoint
        Where the model is; as the run was made, if absent.
    base, device, lora_alpha
        As for extraction.
    protocol, thoughts
        Likewise; by default what the lake remembers.

    Returns
    -------
    Recomputed

    Raises
    ------
    SpecMismatchError
        If the checkpoint is another than the run was made with.
    UsageError
        If it cannot be found.
    """
    opened = open_lake(lake)
    attributes = opened.attributes(run)
    spec = RunSpec(**attributes["spec"])
    made = opened.model_attributes(run.split("/")[0])
    source = checkpoint or made["checkpoint"]
    base = base or (made.get("base") if checkpoint is None else None)
    reasoner: Reasoner | OwnModel
    try:
        if is_own(source):
            reasoner = open_own(
                source, base=base, device=device, lora_alpha=lora_alpha, protocol=protocol, thoughts=thoughts
            )
        else:
            remembered = made.get("protocol_fields", made.get("protocol"))
            reasoner = load_reasoner(
                source, base=base, device=device, dtype=spec.compute_dtype, lora_alpha=lora_alpha,
                protocol=protocol or remembered, thoughts=made["n_latent"] if thoughts is None else thoughts,
            )  # fmt: skip
    except UsageError as error:
        raise UsageError(f"{run} was made with {source!r}: {error}. Say where it is with --model and --base") from error
    for name, digest in reasoner.fingerprint.items():
        if attributes.get(name, digest) != digest:
            raise SpecMismatchError(
                f"{source} has other {name} than {run} was made with: {digest[:12]}.. there,"
                f" {attributes[name][:12]}.. in the lake"
            )
    dataset = opened[run]
    if not dataset.sizes["example"]:
        raise UsageError(f"{run} has no committed examples to compute again; finish it with lake extract")
    return compare(reasoner, dataset, spec, n_example, run=run, precision=attributes.get("precision"))


def compare(
    reasoner: Reasoner | OwnModel,
    dataset: xr.Dataset,
    spec: RunSpec,
    n_example: int,
    *,
    run: str = "",
    precision: Mapping[str, Any] | None = None,
) -> Recomputed:
    """Compare a run's dataset with what a model gives, whichever model it is; see :func:`recompute`."""
    if precision is None:
        questions, answers = (dataset[name].values for name in ("question", "gold_answer"))
        prompts = [reasoner.encode(str(question)) for question in questions]
        some = chosen([len(prompt) for prompt in prompts])
        precision = calibrate(reasoner, [prompts[row] for row in some], [str(answers[row]) for row in some], spec)
    n = dataset.sizes["example"]
    examples = np.unique(np.linspace(0, n - 1, min(n, n_example)).round().astype(int))
    names = (*STATES, *spec.parts, *(ITERATIONS if reasoner.protocol.n_round else ()))
    errors: dict[str, list[np.ndarray]] = {name: [] for name in names}
    logprob, other_texts, turned = [0.0], 0, 0
    floor = floor_of(spec.compute_dtype, mixed=reasoner.protocol.fed == "mixture")
    for index in examples:
        stored = dataset.isel(example=int(index)).load()
        prompt = reasoner.encode(str(stored["question"].item()))
        again = reasoner.think(
            [prompt], gold=[str(stored["gold_answer"].item())], capture=spec.rows, parts=spec.parts,
            stored_dtype="float32", max_new_tokens=spec.max_new_tokens,
        )  # fmt: skip
        same = again.generated_text[0] == stored["generated_text"].item()
        n_answer = again.n_answer if same else 0
        expected = kept(again, 0, len(prompt), reasoner.places.n_middle, n_answer, spec.rows)
        keys = reasoner.places.labels(len(prompt) - 1, n_answer)
        places = {"position": keys if spec.rows == "full" else keys[len(prompt) - 1 :], "key_position": keys}
        found: dict[str, np.ndarray] = {}
        for name in names:
            there = stored[name].sel({dim: places[dim] for dim in places if dim in stored[name].dims}).values
            error = error_of(name, expected[name], there)
            rounding = error_of(name, expected[name], expected[name].astype(spec.dtype))
            found[name] = np.maximum(error - rounding, 0)
            errors[name].append(found[name])
        if up_to_turn(reasoner, found, len(prompt) - 1 if spec.rows == "full" else 0, FLOOR[spec.compute_dtype].place):
            turned += 1
            continue
        other_texts += not same
        both = np.array([again.answer_logprob[0], stored["answer_logprob"].item()])
        if not np.isnan(both).all():  # neither text comes to its answer
            moved = abs(float(both[0] - both[1]))
            logprob.append(np.inf if np.isnan(moved) else moved)
    differences = {name: Differences.of(errors[name]) for name in names}
    beyond = [name for name in names if not differences[name].within(precision["states"][name], floor)]
    if not np.max(logprob) <= allowed(precision["answer_logprob"], floor.logprob):
        beyond.append("answer_logprob")
    if other_texts > OTHER_TEXTS + 2 * len(examples) * precision["other_texts"] / precision["questions"]:
        beyond.append("generated_text")
    share = OTHER_THOUGHTS + 2 * precision.get("other_thoughts", 0) / precision["questions"]
    if turned > OTHER_TEXTS + len(examples) * share:
        beyond.append("latent_embedding")
    return Recomputed(
        run=run,
        examples=[int(dataset["example"].values[index]) for index in examples],
        states=differences,
        answer_logprob=float(np.max(logprob)),
        other_texts=other_texts,
        other_thoughts=turned,
        beyond=beyond,
        precision=dict(precision),
    )
