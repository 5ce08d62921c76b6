"""What a run's precision costs: the same question computed alone and in a batch, in units of each place's scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.model.device import ALONE, device_errors, is_full
from extract.model.own import OwnModel
from extract.model.own_check import check_places
from extract.model.reasoner import Reasoner
from extract.model.thinking import Thinking
from extract.run.prepare import Prepared, row_bytes
from schemas import LakeError, RunSpec
from schemas.vocabulary import ITERATIONS, PARTS

Array = NDArray[Any]
STATES = ("hidden_state", "final_state", "latent_embedding", "attention")
N_QUESTION = 8
"""Questions of a calibration."""
TYPICAL = 0.9
"""Share of a state's components, the smallest, that its scale is taken from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """Differences that are still rounding: of a layer's mean, a position's mean, a single place; and of a log p."""

    layer: float
    position: float
    place: float
    logprob: float


FLOOR = {
    "float32": Bound(layer=1e-5, position=1e-4, place=1e-3, logprob=1e-3),
    "float16": Bound(layer=4e-3, position=2e-2, place=0.1, logprob=0.05),
    "bfloat16": Bound(layer=3e-2, position=0.1, place=0.5, logprob=0.5),
}
"""By compute type, what other machines and versions may differ by even where a calibration finds nothing.

A few of the type's relative steps on average and some hundred at a single place.
"""
CEILING = Bound(layer=0.4, position=0.5, place=np.inf, logprob=np.inf)
"""Nobody's rounding: states replaced by zeros are off by 0.8, attention by 0.5."""
SENSITIVE = 100.0
"""Where words are mixed, as many times the floor is still rounding: probabilities move further than states."""
FAR = 100.0
"""Code of one's own may differ between alone and batched by as many times the floor: huge components round far."""
MARGIN = 3.0
"""A run may differ by as many times what its calibration found."""


def state_error(expected: Array, computed: Array) -> Array:
    """Difference of two state vectors, relative to its components.

    The root mean square over components of ``|computed - expected| / max(|expected|, s)``, where ``s`` is the root mean
    square of the smallest nine tenths of ``expected``. A model's few huge components thereby count as any other does:
    neither do they hide an error of the rest, nor is their own rounding taken for one.

    (..., hidden) to (...), float64; infinite where ``computed`` is not finite.
    """
    size = np.abs(expected.astype("float64"))
    n_typical = max(1, int(TYPICAL * size.shape[-1]))
    typical = np.partition(size, n_typical - 1, axis=-1)[..., :n_typical]
    scale = np.sqrt((typical**2).mean(-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        apart = np.abs(computed.astype("float64") - expected) / np.maximum(size, scale)
        apart = np.where(computed == expected, 0, apart)
        error = np.sqrt((apart**2).mean(-1))
    return np.where(np.isnan(error), np.inf, error)


def attention_error(expected: Array, computed: Array) -> Array:
    """Share of attention that lies elsewhere: half the sum of ``|computed - expected|`` over keys, from 0 to 1.

    (..., key_position) to (...), float64; infinite where ``computed`` is not finite.
    """
    with np.errstate(invalid="ignore"):
        moved = np.abs(computed.astype("float64") - expected).sum(-1) / 2
    return np.where(np.isnan(moved), np.inf, moved)


def error_of(name: str, expected: Array, computed: Array) -> Array:
    """Differences of one example's variable: (layer, head, position), of length 1 along the axes that it has not."""
    if name == "attention":
        return attention_error(expected, computed)
    error = state_error(expected, computed)
    return error[:, None] if name in ("hidden_state", *PARTS) else error.reshape(1, 1, -1)


def up_to_turn(reasoner: Reasoner | OwnModel, errors: Mapping[str, Array], bot: int, bound: float) -> bool:
    """Whether a thought of one example is another mixture of words; from there on its differences are set to 0.

    Rounding grows in some: probabilities move further than states, from thought to thought, and where two words at a
    bound of the mixture are all but equally likely one is in it and the other not, as an answer may go on otherwise.

    ``errors`` are those of :func:`error_of`, by variable; ``bot`` is the number of that position; a fed vector that
    differs by more than ``bound`` differs by more than rounding.
    """
    off = errors["latent_embedding"][0, 0] > bound
    if reasoner.protocol.fed != "mixture" or not off.any():
        return False
    for name, error in errors.items():
        error[..., int(off.argmax()) + (0 if name == "latent_embedding" else 1 + bot) :] = 0
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """How far a variable of some examples is from what it should be; in units of each place's scale."""

    mean: float
    """Over all places."""
    worst: float
    """Of a single (layer, head, position)."""
    layer: list[float]
    """By layer, the mean of the example that is off most."""
    position: float
    """Mean over layers and heads of the (example, position) that is off most."""

    @classmethod
    def of(cls, errors: Sequence[Array]) -> "Differences":
        """Summary of :func:`error_of` of each example."""
        if not errors or not errors[0].size:
            return cls(mean=0.0, worst=0.0, layer=[], position=0.0)
        return cls(
            mean=float(np.concatenate([error.ravel() for error in errors]).mean()),
            worst=float(max(error.max() for error in errors)),
            layer=np.max([error.mean((1, 2)) for error in errors], axis=0).tolist(),
            position=float(max(error.mean((0, 1)).max() for error in errors)),
        )

    def within(self, calibrated: Mapping[str, Any], floor: Bound) -> bool:
        """Whether this is rounding, given what a calibration found and what is allowed at least."""
        layer = zip(self.layer, calibrated["layer"], strict=True)
        return (
            all(difference <= allowed(known, floor.layer, CEILING.layer) for difference, known in layer)
            and self.position <= allowed(calibrated["position"], floor.position, CEILING.position)
            and self.worst <= allowed(calibrated["worst"], floor.place, CEILING.place)
        )


def floor_of(compute_dtype: str, *, mixed: bool) -> Bound:
    """What may differ whatever a calibration found, of a model that is fed mixtures of words or another."""
    floor = FLOOR[compute_dtype]
    wider = {field.name: SENSITIVE * getattr(floor, field.name) for field in fields(Bound)}
    return Bound(**wider) if mixed else floor


def allowed(calibrated: float, floor: float, ceiling: float = np.inf) -> float:
    """What a difference may be."""
    return min(max(MARGIN * calibrated, floor), ceiling)


def kept(thinking: Thinking, row: int, n_token: int, n_middle: int, n_answer: int, captured: str) -> dict[str, Array]:
    """Arrays of one row of a batch, cut to its own places.

    These are ``n_token`` of its prompt, BOT included, ``n_middle`` from ``bot`` up to the answer, and ``n_answer`` of
    the answer; ``captured`` is ``latent`` or ``full``.
    """
    first = thinking.n_before - n_token + 1
    keys = slice(first, thinking.n_before + n_middle + n_answer)
    rows = keys if captured == "full" else slice(0, n_middle + n_answer)
    return {
        "hidden_state": thinking.hidden_state[row][:, rows],
        "final_state": thinking.final_state[row][rows],
        "latent_embedding": thinking.latent_embedding[row],
        "attention": thinking.attention[row][:, :, rows, keys],
        **{name: part[row][:, rows] for name, part in thinking.parts.items()},
        **{name: part[row] for name, part in thinking.iterations.items()},
    }


def chosen(lengths: Sequence[int], n_question: int | None = None) -> list[int]:
    """Questions to calibrate on, ``N_QUESTION`` unless said: shortest, longest, those at even distances between."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    places = np.linspace(0, len(order) - 1, min(n_question or N_QUESTION, len(order))).round().astype(int)
    return [order[place] for place in np.unique(places)]


def calibrate(
    reasoner: Reasoner | OwnModel, prompts: Sequence[Sequence[int]], gold: Sequence[str], spec: RunSpec
) -> dict[str, Any]:
    """Think through some questions alone and together, and compare.

    It takes as long as the questions one by one, and once more together. Depends on its arguments only, so a run that
    is killed and begun anew finds the same.

    Parameters
    ----------
    reasoner, spec
        Of the run.
    prompts, gold
        Of the questions, from :func:`chosen`.

    Returns
    -------
    dict
        JSON values, to three digits: ``compute_dtype``, ``questions`` and ``batch`` (how many in all, and
        together), ``states`` (:class:`Differences` by variable), ``other_texts`` (how many answers differ),
        ``answer_logprob`` (largest difference); of a model that is fed mixtures of words, ``other_thoughts`` (how many
        questions have another).
    """
    options = {
        "capture": spec.rows, "parts": spec.parts, "stored_dtype": "float32", "max_new_tokens": spec.max_new_tokens
    }  # fmt: skip
    names = (*STATES, *spec.parts, *(ITERATIONS if reasoner.protocol.n_round else ()))
    errors: dict[str, list[Array]] = {name: [] for name in names}
    logprob, other_texts, turned = 0.0, 0, 0
    for start in range(0, len(prompts), spec.batch_size):
        rows = range(len(prompts))[start : start + spec.batch_size]
        together = reasoner.think([prompts[row] for row in rows], gold=[gold[row] for row in rows], **options)
        for row in rows:
            alone = reasoner.think([prompts[row]], gold=[gold[row]], **options)
            same = alone.generated_text[0] == together.generated_text[row - start]
            places = (len(prompts[row]), reasoner.places.n_middle, alone.n_answer if same else 0, spec.rows)
            expected, batched = kept(alone, 0, *places), kept(together, row - start, *places)
            found = {name: error_of(name, expected[name], batched[name]) for name in names}
            bot = len(prompts[row]) - 1 if spec.rows == "full" else 0
            turns = up_to_turn(reasoner, found, bot, FLOOR[spec.compute_dtype].place)
            for name in names:
                errors[name].append(found[name])
            turned += turns
            if turns:
                continue
            other_texts += not same
            logprob = max(logprob, abs(float(alone.answer_logprob[0] - together.answer_logprob[row - start])))
    states = {name: Differences.of(errors[name]) for name in names}
    return {
        "compute_dtype": spec.compute_dtype,
        "questions": len(prompts),
        "batch": min(spec.batch_size, len(prompts)),
        "states": {
            name: {
                "mean": _rounded(measured.mean),
                "worst": _rounded(measured.worst),
                "layer": [_rounded(value) for value in measured.layer],
                "position": _rounded(measured.position),
            }
            for name, measured in states.items()
        },
        "other_texts": other_texts,
        **({"other_thoughts": turned} if reasoner.protocol.fed == "mixture" else {}),
        "answer_logprob": _rounded(logprob),
    }


def calibration(prepared: Prepared, n_question: int | None = None) -> dict[str, Any]:
    """Calibrate a run to be on its own questions, as many of them at a time as its memory allows.

    Raises
    ------
    LakeError
        If not even single questions fit into the device's memory, or what they give is not finite.
    """
    some = chosen([len(prompt) for prompt in prepared.prompts], n_question)
    fit = prepared.memory // (4 * row_bytes(prepared, some[-1], "float32"))
    n_row = min(prepared.spec.batch_size, len(some), max(2, fit))
    prompts = [prepared.prompts[index] for index in some]
    gold = [prepared.problems.gold_answer[index] for index in some]
    while True:
        try:
            with device_errors(f"a batch of {n_row} questions", ALONE):
                found = calibrate(prepared.reasoner, prompts, gold, replace(prepared.spec, batch_size=n_row))
            if isinstance(prepared.reasoner, OwnModel):
                _check_alone(found)
                check_places(prepared.reasoner, prompts[-1], prepared.spec.max_new_tokens, _rounding(found))
            return found
        except LakeError as error:
            if n_row == 1 or error.__cause__ is None or not is_full(error.__cause__):
                raise
            n_row //= 2


def _rounding(found: Mapping[str, Any]) -> float:
    """Difference at a position up to which it may be rounding."""
    return min(FAR * FLOOR[found["compute_dtype"]].position, CEILING.position)


def _check_alone(found: Mapping[str, Any]) -> None:
    """Refuse code of one's own whose states depend on what else is in a batch: padding that is not masked."""
    most = _rounding(found)
    for name, measured in found["states"].items():
        if not measured["position"] <= most:
            raise LakeError(
                f"{name} of a question alone and in a batch differ by {measured['position']:.2g}, up to {most:.2g} is"
                " rounding: padding must be masked, and positions counted without it"
            )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
