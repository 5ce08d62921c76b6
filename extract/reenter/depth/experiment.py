"""The answer after none, one, two .. thoughts, and beyond those trained for."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from extract.reenter.answers import asked_answers
from extract.reenter.batches import batch_errors, by_length
from extract.reenter.depth.command import DepthSettings
from extract.reenter.depth.gains import with_gains
from extract.reenter.depth.routes import Route, answer_routes, check_routes, routes_of
from extract.reenter.depth.samples import with_samples
from extract.reenter.draws import Draws
from extract.reenter.kept import Kept
from extract.reenter.sweep import rows_that_fit
from extract.reenter.target import Target
from extract.run.extract import code_fingerprint
from schemas import UsageError, fingerprint
from schemas.problem_sums import problem_of


def think_to_depth(target: Target, settings: DepthSettings | None = None) -> xr.Dataset:
    """Ask for the answer after every number of thoughts.

    Each question is read and thought through once; every number of thoughts is a branch of that. The pause vector is
    that of the model or, where it has none, the mean of all fed vectors.

    Parameters
    ----------
    settings
        By default every series of :class:`extract.reenter.depth.routes.Route`, with markers and without, to three times
        the trained number of thoughts.

    Returns
    -------
    xr.Dataset
        Of (``series``, ``marker``, ``n_thought``, ``example``): ``generated_text``, ``predicted_answer``, ``correct``,
        ``answer_logprob`` of the gold answer, ``kl`` of the answer's first token after the trained number of thoughts
        from that after this one; NaN and "" where there is no such route. Figures over examples as
        :func:`extract.reenter.depth.gains.with_gains` gives them, those of draws as
        :func:`extract.reenter.depth.samples.with_samples`. ``attrs`` say how many positions were fed
        (``positions_fed``), and how many the same answers cost one by one (``positions_one_by_one``).

    Raises
    ------
    UsageError
        If the model has no thoughts or the thoughts asked for do not fit its context.
    """
    settings = settings or DepthSettings()
    reasoner = target.reasoner
    _check(target, settings)
    n, most, seed = reasoner.n_latent, (1 + settings.beyond) * reasoner.n_latent, settings.seed
    series, draws = settings.series, settings.drawing(seed)
    markers = [marker for marker in settings.markers if marker == "kept" or reasoner.bot_id is not None]
    routes = routes_of(n, most, list(dict.fromkeys(series)), list(dict.fromkeys(markers)))
    by_route, attrs = _run(target, routes, most, draws)
    axes: dict[str, list[object]] = {
        "series": [*dict.fromkeys(series)],
        "marker": [*dict.fromkeys(markers)],
        "n_thought": list(range(most + 1)),
    }
    out = _labelled(target, by_route, axes)
    over: dict[str, Any] = {
        "scoring": target.scoring, "strata": target.strata, "problem": problem_of(target.data), "seed": seed,
    }  # fmt: skip
    if draws is not None:
        texts = np.stack([by_route[route]["sample_text"] for route in routes if route.drawn])
        out = with_samples(out, target.scoring.answers(texts), target.gold, **over)
    out = with_gains(out, target.gold, n_latent=n, **over)
    return out.assign_attrs(**attrs, n_latent=n, rule=target.rule)


def _check(target: Target, settings: DepthSettings) -> None:
    target.need_thoughts("depth")
    if settings.sample and not ("own" in settings.series and "kept" in settings.markers):
        raise UsageError(
            "samples are drawn after the model's own thoughts with markers; ask for series own, markers kept"
        )
    if not settings.series or not settings.markers:
        raise UsageError("no series or no markers are named; own, repeat, pause and kept, none can be")


def _run(
    target: Target, routes: Sequence[Route], most: int, draws: Draws | None
) -> tuple[dict[Route, dict[str, np.ndarray]], dict[str, int]]:
    """What was found on each route, of all examples, and what it cost."""
    reasoner, data = target.reasoner, target.data
    prompts = reasoner.prompts(data["question"].values)
    labels = data["example"].values.tolist()
    asked = asked_answers(reasoner, [[str(text) for text in data["gold_answer"].values]])
    n_new = target.max_new_tokens
    room = max(n_new, len(asked.shared) + max(len(tokens) for tokens in asked.rest[0]))
    check_routes(reasoner, prompts, labels, most, room)
    longest = max(reasoner.places.needed(len(prompt), room) for prompt in prompts) - reasoner.n_latent + most
    # The walks with and without markers, one that grows, and the branch, all at once.
    n_row = target.batch_rows or max(1, rows_that_fit(reasoner, longest) // 4)
    batches = by_length(prompts, n_row)
    keep = _keep(target, routes, draws, batches, n_new)
    pause = pause_vector(target)
    cost = {"positions_fed": 0, "model_calls": 0}
    by_route: dict[Route, dict[str, np.ndarray]] = {}

    def answered(batch: list[int]) -> dict[str, np.ndarray]:
        answers = answer_routes(
            reasoner, [prompts[row] for row in batch], routes, pause=pause, asked=asked, batch=batch, n_new=n_new,
            draws=draws, n_together=max(1, n_row // len(batch)), cost=cost,
        )  # fmt: skip
        return _stacked([part for _, part in answers])

    done = 0
    with torch.inference_mode(), reasoner.session(hooks=False):
        for number, batch in enumerate(batches):
            holds = {"examples": [labels[row] for row in batch]}
            with batch_errors(len(batch)):
                parts = keep.get(f"{number:05d}", holds, partial(answered, batch))
            _put(by_route, routes, parts, batch, len(prompts))
            done += len(batch) * len(routes)
            target.report(done, len(prompts) * len(routes))
    texts = {str(text) for route in routes for text in by_route[route]["text"]}
    length = {text: len(reasoner.text_tokens(text)) + 1 for text in texts}
    alone = sum(
        len(prompt) + route.n_thought + len(reasoner.closing_ids) + len(asked.shared) + length[str(text)]
        for route in routes
        for prompt, text in zip(prompts, by_route[route]["text"], strict=True)
    )
    return by_route, {**cost, "positions_one_by_one": alone, "n_condition": len(routes)}


def pause_vector(target: Target) -> np.ndarray:
    """Vector ``(hidden,)`` that says nothing: that of a pause model, else the mean of all that were fed."""
    reasoner = target.reasoner
    if reasoner.protocol.fed == "vector":
        return reasoner.projection.get_parameter("vector").detach().float().cpu().numpy()
    return target.values.mean("latent_embedding", -1, "ct0", "run")


def _keep(target: Target, routes: Sequence[Route], draws: Draws | None, batches: list[list[int]], n_new: int) -> Kept:
    """Where finished batches are kept, under everything that decides them."""
    reasoner, data = target.reasoner, target.data
    identity = {
        "model": dict(reasoner.fingerprint),
        "compute_dtype": target.compute_dtype,
        "device": reasoner.device.type,
        "code": code_fingerprint(),
        "run": [str(data.attrs.get("fingerprint", "")), data["example"].values.tolist()],
        "routes": [[route.series, route.marker, route.n_thought] for route in routes],
        "draws": None if draws is None else asdict(draws),
        "batches": batches,
        "max_new_tokens": n_new,
    }
    return Kept(target.folder, fingerprint(identity))


def _stacked(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What was found on all routes, each name's in one array; only some routes have samples."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.stack([part[name] for part in parts if name in part]) for name in names}


def _put(
    measured: dict[Route, dict[str, np.ndarray]], routes: Sequence[Route], parts: dict[str, np.ndarray],
    batch: list[int], n_example: int,
) -> None:  # fmt: skip
    """Put a batch's values where its examples are."""
    drawn = [route for route in routes if route.drawn]
    for name, values in parts.items():
        for route, value in zip(drawn if name == "sample_text" else routes, values, strict=True):
            empty = np.empty((*value.shape[:-1], n_example), dtype=value.dtype)
            measured.setdefault(route, {}).setdefault(name, empty)[..., batch] = value


def _labelled(
    target: Target, measured: dict[Route, dict[str, np.ndarray]], axes: dict[str, list[object]]
) -> xr.Dataset:
    """Routes as dims; that of all own thoughts and no more is the same in every series."""
    n, n_example = target.reasoner.n_latent, target.data.sizes["example"]
    shape = (*(len(axis) for axis in axes.values()), n_example)
    logprob, kl = np.full(shape, np.nan), np.full(shape, np.nan)
    text = np.full(shape, "", dtype=object)
    for route, values in measured.items():
        marker, thoughts = axes["marker"].index(route.marker), route.n_thought
        same = route.series == "own" and thoughts == n
        for series in range(len(axes["series"])) if same else [axes["series"].index(route.series)]:
            place = series, marker, thoughts
            logprob[place], kl[place], text[place] = values["logprob"], values["kl"], values["text"]
    dims = (*axes, "example")
    return xr.Dataset(
        {
            "generated_text": (dims, text),
            "predicted_answer": (dims, target.scoring.answers(text)),
            "answer_logprob": (dims, logprob, {"units": "nat"}),
            "kl": (dims, kl, {"units": "nat"}),
        },
        coords={
            **{name: np.array(axis, dtype=None if name == "n_thought" else object) for name, axis in axes.items()},
            "example": target.data["example"].values,
        },
    )
