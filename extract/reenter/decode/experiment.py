"""What SIM-CoT's decoder writes of the thoughts of a run, and how often that is a step of the problem."""

import re

import numpy as np
import xarray as xr

from extract.model.device import device_errors
from extract.model.step_decoder import load_step_decoder
from extract.reenter.decode.command import DecodeSettings
from extract.reenter.target import Target
from extract.run.chains import parse_chain
from schemas import UsageError, nearest
from schemas.answers import equal_answers
from schemas.problem_sums import other_rows, problem_of
from schemas.statistics import share_interval

BATCH = 64
"""Thoughts that are written out together."""
Array = np.ndarray


def decode(target: Target, settings: DecodeSettings | None = None) -> xr.Dataset:
    """Write out each stored thought by the decoder that SIM-CoT trained beside the model.

    In training the decoder was given the vector fed at ``ct0`` and had to write the first step, that at ``ct1`` the
    second, and so on; of thoughts after the last step it was asked nothing. A decoder knows what steps look like
    without any thought, so beside each share stands that of another problem's step in the same text.

    Parameters
    ----------
    target
        Run and model; the vectors are the lake's.
    settings
        The decoder's base, which thoughts, and how long a step may be.

    Returns
    -------
    xr.Dataset
        ``text``, ``n_token``, ``ended`` (whether the end token came) and ``log_probability`` (nats, of all tokens):
        (example, position). ``result_share``, ``control_share`` and ``expression_share`` : (position, step), how often
        the text has that step's result, that of another problem, and that step's expression, of the ``n_step``
        (``n_control``) examples that have one, each with ``_low`` and ``_high``, Wilson's 95% over problems.
        ``any_share``, ``any_control_share`` : (position,), any step's, of all ``n`` examples with a finite vector.

    Raises
    ------
    UsageError
        If the checkpoint has no decoder, the run no thoughts or no steps with results, or a position is no thought.

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
    steps = target.data["intermediate_result"]
    if not np.isfinite(steps).any():
        raise UsageError(
            f"decode: no problem of {target.run} has a step with a result that texts could be held against"
        )
    if len(np.unique(problem_of(target.data))) < 2:
        raise UsageError("decode: one problem has no other beside which its steps could be looked for; take more")
    decoder = load_step_decoder(target.checkpoint, target.reasoner, settings.decoder)
    vectors = np.stack([target.values.column("latent_embedding", -1, name) for name in positions], axis=1)
    known = np.isfinite(vectors).all(-1)
    shape = known.shape
    text, tokens = np.full(shape, "", dtype=object), np.zeros(shape, dtype=np.int64)
    ended, log_probability = np.zeros(shape, dtype=bool), np.full(shape, np.nan)
    places = np.argwhere(known)
    batch = target.batch_rows or BATCH
    with device_errors(f"a batch of {batch} thoughts", "a smaller --batch-rows"), target.reasoner.session(hooks=False):
        for start in range(0, len(places), batch):
            rows = tuple(places[start : start + batch].T)
            written = decoder.write(vectors[rows], settings.max_new_tokens)
            text[rows] = [target.reasoner.decode(each) for each in written.tokens]
            tokens[rows] = [len(each) for each in written.tokens]
            ended[rows], log_probability[rows] = written.ended, written.log_probability
            if target.progress is not None:
                target.progress(min(start + batch, len(places)), len(places))
    out = xr.Dataset(
        {
            "text": (("example", "position"), text),
            "n_token": (("example", "position"), tokens),
            "ended": (("example", "position"), ended),
            "log_probability": (("example", "position"), log_probability),
        },
        coords={
            "example": target.data["example"].values,
            "position": np.array(positions, dtype=object),
            "step": np.arange(steps.sizes["step"]),
        },
        attrs={"seed": settings.seed, "max_new_tokens": settings.max_new_tokens},
    )
    return out.assign(shares(out["text"].values, known, target.data, settings.seed))


def shares(texts: Array, known: Array, run: xr.Dataset, seed: int) -> dict[str, tuple[object, Array]]:
    """How often a text has a step's result, another problem's, and its expression, with intervals over problems."""
    problem, steps = problem_of(run), run["intermediate_result"].values.astype(float)
    stated = np.vectorize(bare, otypes=[object])(run["expression"].values)
    other = other_rows(problem, np.random.default_rng(seed))
    written = [[parse_chain(str(text)) for text in row] for row in texts]
    longest = max([1, *(len(chain) for row in written for chain in row)])
    results, expressions = np.full((*texts.shape, longest), np.nan), np.full((*texts.shape, longest), "", dtype=object)
    for row, column in np.ndindex(*texts.shape):
        for index, (expression, _, value) in enumerate(written[row][column]):
            results[row, column, index], expressions[row, column, index] = value, bare(expression)

    def found(wanted: Array) -> Array:  # (example, position, step)
        return np.asarray(equal_answers(results[:, :, None], wanted[:, None, :, None]).any(-1))

    there, control_there = (known[:, :, None] & np.isfinite(side)[:, None] for side in (steps, steps[other]))
    own, control = found(steps) & there, found(steps[other]) & control_there
    same = (expressions[:, :, None] == stated[:, None, :, None]).any(-1) & there & (stated != "")[:, None]
    out: dict[str, tuple[object, Array]] = {"n": ("position", known.sum(0))}
    of_steps = {"result": (own, there), "control": (control, control_there), "expression": (same, there)}
    of_any = {"any": (own.any(-1), known), "any_control": (control.any(-1), known)}
    for dims, measures in ((("position", "step"), of_steps), (("position",), of_any)):
        for name, (yes, counted) in measures.items():
            yes, counted = (np.moveaxis(side, 0, -1) for side in (yes, counted))
            low, high = share_interval(yes, counted, problem)
            with np.errstate(invalid="ignore"):
                out[f"{name}_share"] = (dims, yes.sum(-1) / counted.sum(-1))
            out |= {f"{name}_share_low": (dims, low), f"{name}_share_high": (dims, high)}
    counts = {"n_step": there, "n_control": control_there}
    return out | {name: (("position", "step"), side.sum(0)) for name, side in counts.items()}


def bare(expression: object) -> str:
    """An expression without spaces."""
    return re.sub(r"\s", "", str(expression))
