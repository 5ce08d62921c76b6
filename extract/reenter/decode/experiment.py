"""What a decoder writes of the thoughts of a run, and how often that is a step of the problem."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from extract.model.checkpoint import fingerprint_weights
from extract.model.device import device_errors
from extract.model.step_decoder import Written, load_step_decoder
from extract.reenter.decode.command import DecodeSettings
from extract.reenter.decode.learned import (
    OWN,
    RECORD,
    SHUFFLED,
    LearnedDecoder,
    held_out,
    in_order,
    in_words,
    load,
    result_first,
)
from extract.reenter.decode.training import train_decoder
from extract.reenter.target import Target
from extract.run.chains import last_word, parse_chain
from schemas import UsageError, nearest
from schemas.answers import equal_answers
from schemas.problem_sums import other_rows, problem_of
from schemas.statistics import share_interval

MAX_NEW_TOKENS = 24
"""Longest step of a checkpoint's own decoder, end token included."""
BATCH, BATCH_OF_SMALL = 64, 1024
"""Thoughts that are written out together, by a decoder of the model's size and by one that was trained here."""
Array = np.ndarray


def decode(target: Target, settings: DecodeSettings | None = None) -> xr.Dataset:
    """Write out each stored thought by a decoder: SIM-CoT's own of the checkpoint, or one that was trained afterwards.

    SIM-CoT's was given the vector fed at ``ct0`` and had to write the first step, that at ``ct1`` the second, and so
    on; of thoughts after the last step it was asked nothing. One that was trained afterwards
    (:func:`extract.reenter.decode.training.train_decoder`) is asked for every step of every thought, of problems that
    it was not trained on. A decoder knows what steps look like without any thought, so beside each share stands that
    of another problem's step in the same text, and that of a decoder trained on shuffled thoughts.

    Returns
    -------
    xr.Dataset
        ``text``, ``n_token``, ``ended`` (whether the end token came) and ``log_probability`` (nats, of all tokens):
        (example, position), of a decoder that is asked for a step (example, position, step). ``result_share``,
        ``control_share`` and ``expression_share`` : (position, step), how often the text has that step's result, that
        of another problem, and that step's expression, of the ``n_step`` (``n_control``) examples that have one, each
        with ``_low`` and ``_high``, Wilson's 95% over problems; ``shuffled_share``, how often the text of the decoder
        trained on shuffled thoughts has the result. ``above_controls``: whether the interval of ``result_share`` lies
        above those of the controls. ``any_share``, ``any_control_share``, ``any_shuffled_share`` : (position,), any
        step's, of all ``n`` examples with a finite vector. ``stated`` : (example, step), the problem's own, or empty.

    Raises
    ------
    UsageError
        If there is no decoder or it fits neither model nor run, the run has no thoughts or no steps with results, all
        of its problems were trained on, or a position is no thought.

    References
    ----------
    Wei et al., *SIM-CoT: Supervised Implicit Chain-of-Thought*, 2025 (InternLM/SIM-CoT, CODI/src/model.py).
    """
    settings = settings or DecodeSettings()
    target.need_thoughts("decode")
    positions = list(settings.positions or target.thoughts)
    if strange := [name for name in positions if name not in target.thoughts]:
        raise UsageError(
            f"decode: {strange[0]} is no thought of {target.run}; there are {', '.join(target.thoughts)}"
            + nearest(strange[0], target.thoughts)
        )
    if not (in_words(target.data) or np.isfinite(target.data["intermediate_result"]).any()):
        raise UsageError(
            f"decode: no problem of {target.run} has a step with a result that texts could be held against"
        )
    if len(np.unique(problem_of(target.data))) < 2:
        raise UsageError("decode: one problem has no other beside which its steps could be looked for; take more")
    vectors = np.stack([target.values.column("latent_embedding", -1, name) for name in positions], axis=1)
    folder = learned_in(settings.decoder, target.run)
    if settings.train is not None:
        folder = train_decoder(target, settings, positions, vectors)
    if folder is not None:
        return by_learned(target, settings, folder, positions, vectors)
    decoder = load_step_decoder(target.checkpoint, target.reasoner, settings.decoder)
    longest = settings.max_new_tokens or MAX_NEW_TOKENS
    out = written(target, vectors, lambda rows: decoder.write(vectors[tuple(rows)], longest))
    return held_against(out, target.data, positions, vectors, settings).assign_attrs(max_new_tokens=longest)


def learned_in(folder: str | None, run: str) -> Path | None:
    """Where in a folder the record of a decoder is that was trained afterwards: there, or under the run's name."""
    places = [] if folder is None else [Path(folder), Path(folder) / run]
    return next((place for place in places if (place / RECORD).is_file()), None)


def by_learned(
    target: Target, settings: DecodeSettings, folder: Path, positions: list[str], vectors: Array
) -> xr.Dataset:
    """What a decoder that was trained afterwards writes, asked for each step of problems that it does not know."""
    decoder, shuffled = (load(folder, file).to(target.reasoner.device) for file in (OWN, SHUFFLED))
    made = decoder.made
    if made.hidden != vectors.shape[-1] or not set(positions) <= set(made.positions):
        raise UsageError(
            f"decode: the decoder in {folder} reads vectors of {made.hidden} components at {', '.join(made.positions)};"
            f" {target.run} has {vectors.shape[-1]} at {', '.join(positions)}"
        )
    mine = held_out(target.data, made)
    data, vectors = target.data.isel(example=mine), vectors[mine]
    if len(np.unique(problem_of(data))) < 2:
        raise UsageError(
            f"decode: the decoder in {folder} was trained on all problems of {target.run} but {data.sizes['example']};"
            " ask it of a run over others"
        )
    thought = np.array([made.positions.index(name) for name in positions])
    n_step = min(made.n_step, target.data.sizes["step"])
    data = data.isel(step=slice(0, n_step))
    longest = min(settings.max_new_tokens or decoder.longest, decoder.longest)
    sides = []
    for one in (decoder, shuffled):

        def write(rows: Array, one: LearnedDecoder = one) -> Written:
            row, place, step = rows
            return one.write(vectors[row, place], thought[place], step, longest)

        sides.append(written(target, vectors, write, n_step))
    out = held_against(sides[0], data, positions, vectors, settings, sides[1]["text"])
    return out.assign_attrs(
        max_new_tokens=longest, trained_on=made.run, n_trained=made.n_problem, left_out=int((~mine).sum()),
        decoder_weights=fingerprint_weights(decoder.cpu().state_dict(), {}),
    )  # fmt: skip


def written(
    target: Target, vectors: Array, write: Callable[[Array], Written], n_step: int | None = None
) -> dict[str, Array]:
    """What is written of all finite vectors (example, position, hidden), asked for each step where there are any."""
    known = np.isfinite(vectors).all(-1)
    if n_step is not None:
        known = np.repeat(known[:, :, None], n_step, -1)
    text, tokens = np.full(known.shape, "", dtype=object), np.zeros(known.shape, dtype=np.int64)
    ended, log_probability = np.zeros(known.shape, dtype=bool), np.full(known.shape, np.nan)
    places, batch = np.argwhere(known), target.batch_rows or (BATCH if n_step is None else BATCH_OF_SMALL)
    with device_errors(f"a batch of {batch} thoughts", "a smaller --batch-rows"), target.reasoner.session(hooks=False):
        for start in range(0, len(places), batch):
            rows = places[start : start + batch].T
            made, at = write(rows), tuple(rows)
            text[at], tokens[at] = made.texts, made.n_token
            ended[at], log_probability[at] = made.ended, made.log_probability
            target.report(min(start + batch, len(places)), len(places))
    return {"text": text, "n_token": tokens, "ended": ended, "log_probability": log_probability}


def held_against(
    out: dict[str, Array], data: xr.Dataset, positions: list[str], vectors: Array, settings: DecodeSettings,
    shuffled: Array | None = None,
) -> xr.Dataset:  # fmt: skip
    """What was written, labelled, and how often it has the problem's steps."""
    dims = ("example", "position", "step")[: out["text"].ndim]
    known = np.isfinite(vectors).all(-1)
    made = xr.Dataset(
        {name: (dims, values) for name, values in out.items()}
        | {"stated": (("example", "step"), np.vectorize(in_order, otypes=[object])(result_first(data)))},
        coords={
            "example": data["example"].values,
            "position": np.array(positions, dtype=object),
            "step": np.arange(data.sizes["step"]),
        },
        attrs={"seed": settings.seed},
    )
    return made.assign(shares(out["text"], known, data, settings.seed, shuffled))


def shares(
    texts: Array, known: Array, run: xr.Dataset, seed: int, shuffled: Array | None = None
) -> dict[str, tuple[object, Array]]:
    """How often a text has a step's result, another problem's, and its expression, with intervals over problems.

    Parameters
    ----------
    texts : (example, position) or (example, position, step)
        Asked for each step, each text is held against the step that it was asked for.
    known : (example, position)
        Where there is a text.
    run
        Steps of the problems.
    seed
        Of the other problem.
    shuffled
        Texts of the decoder that was trained on shuffled thoughts.
    """
    problem, (steps, numbers) = problem_of(run), results_of(run)
    stated = np.vectorize(bare, otypes=[object])(run["expression" if numbers is None else "step_text"].values)
    other = other_rows(problem, np.random.default_rng(seed))
    results, expressions = read(texts, numbers)

    def found(wanted: Array, results: Array = results) -> Array:  # (example, position, step)
        return np.asarray(equal_answers(results, wanted[:, None, :, None]).any(-1))

    there, control_there = (known[:, :, None] & np.isfinite(side)[:, None] for side in (steps, steps[other]))
    own, control = found(steps) & there, found(steps[other]) & control_there
    same = (expressions == stated[:, None, :, None]).any(-1) & there & (stated != "")[:, None]
    out: dict[str, tuple[object, Array]] = {"n": ("position", known.sum(0))}
    of_steps = {"result": (own, there), "control": (control, control_there), "expression": (same, there)}
    of_any = {"any": (own.any(-1), known), "any_control": (control.any(-1), known)}
    if shuffled is not None:
        blind = found(steps, read(shuffled, numbers)[0]) & there
        of_steps["shuffled"], of_any["any_shuffled"] = (blind, there), (blind.any(-1), known)
    for dims, measures in ((("position", "step"), of_steps), (("position",), of_any)):
        for name, (yes, counted) in measures.items():
            yes, counted = (np.moveaxis(side, 0, -1) for side in (yes, counted))
            low, high = share_interval(yes, counted, problem)
            with np.errstate(invalid="ignore"):
                out[f"{name}_share"] = (dims, yes.sum(-1) / counted.sum(-1))
            out |= {f"{name}_share_low": (dims, low), f"{name}_share_high": (dims, high)}
    highest = [out[f"{name}_share_high"][1] for name in ("control", "shuffled") if f"{name}_share_high" in out]
    out["above_controls"] = (("position", "step"), out["result_share_low"][1] > np.fmax.reduce(highest))
    counts = {"n_step": there, "n_control": control_there}
    return out | {name: (("position", "step"), side.sum(0)) for name, side in counts.items()}


def results_of(run: xr.Dataset) -> tuple[Array, dict[str, float] | None]:
    """Results (example, step), NaN where there is none; of sentences the numbers of their last words, and these."""
    if not in_words(run):
        return run["intermediate_result"].values.astype(float), None
    words = np.vectorize(lambda word: str(word).casefold(), otypes=[object])(run["intermediate_text"].values)
    numbers = {word: float(number) for number, word in enumerate(np.unique(words)) if word}
    return np.vectorize(lambda word: numbers.get(word, np.nan), otypes=[float])(words), numbers


def read(texts: Array, numbers: dict[str, float] | None) -> tuple[Array, Array]:
    """Results and expressions of the steps in each text: (example, position, step or 1, number in the text)."""
    texts = texts if texts.ndim == 3 else texts[..., None]
    if numbers is None:
        chains = [parse_chain(str(text)) for text in texts.ravel()]
    else:
        chains = [[(text, "", numbers.get(last_word(text).casefold(), np.nan))] for text in map(str, texts.ravel())]
    longest = max([1, *map(len, chains)])
    results, expressions = np.full((len(chains), longest), np.nan), np.full((len(chains), longest), "", dtype=object)
    for row, chain in enumerate(chains):
        for index, (expression, _, value) in enumerate(chain):
            results[row, index], expressions[row, index] = value, bare(expression)
    return results.reshape(*texts.shape, longest), expressions.reshape(*texts.shape, longest)


def bare(expression: object) -> str:
    """An expression without spaces."""
    return re.sub(r"\s", "", str(expression))
