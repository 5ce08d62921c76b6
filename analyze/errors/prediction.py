"""Will the answer be wrong? Error prediction from sparse codes, held out, beside simpler predictors.

A logistic regression is fitted on the training problems by passes over the data, so that memory does not grow with the
number of examples, and judged on problems that neither it nor the dictionary has seen. Codes, the raw activations they
came from, the question's length and the majority answer are judged on the same rows.
"""

import json
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import sparse, special

from analyze.errors.design import Spool, designs
from analyze.errors.fit import Fit, fit
from analyze.errors.spec import ErrorSpec
from analyze.sae.batches import SPLITS, Rows
from analyze.sae.codes import Activations, sources, weights
from analyze.sae.metrics import split_numbers
from analyze.statistics import bootstrap_weights
from schemas.errors import SchemaError, UsageError
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.resampling import percentiles
from schemas.statistics import share_interval

PREDICTORS = ("sae_codes", "raw_activation", "question_length", "majority")
OUTCOMES = ("wrong", "right")
_TOGETHER = 100
"""Resamples that are scored at once."""


def predict_errors(
    run: xr.Dataset,
    sae: xr.Dataset,
    activation: Activations | None = None,
    spec: ErrorSpec | None = None,
    *,
    progress: Progress = silent,
) -> xr.Dataset:
    """Predict from sparse codes whether a run's answers are wrong.

    Parameters
    ----------
    run : Dataset with ``correct(example)``; ``question`` and ``problem`` where there are any
    sae : Dataset of :func:`analyze.sae.dictionary.train_sae`
    activation : (example, ..., hidden), or a mapping for a crosscoder
        What the dictionary reads; ``run["hidden_state"]`` at the dictionary's own cells if absent.
    spec : ErrorSpec
    progress : called with (done, total) in steps of work

    Returns
    -------
    Dataset
        Along ``predictor`` (sae_codes, raw_activation, question_length, majority), on the test problems, each with
        ``_low`` and ``_high`` (95% percentile interval over resampled problems): ``accuracy``, ``balanced_accuracy``,
        ``auroc`` of the probability of being wrong, ``precision`` and ``recall`` for each ``outcome``; ``auroc_gain``
        and ``accuracy_gain`` of the codes over each predictor, on the same resamples. ``train_accuracy`` is a
        diagnostic. ``penalty`` the C that was taken, ``n_input``, ``n_iteration``; ``n_test(outcome)``;
        ``probability(predictor, example)`` of being wrong. ``weight(..., feature)`` the change of the log odds of
        being wrong per standard deviation of a code, and its largest in ``carrier_*``, with how often and how
        strongly they fire on wrong and right answers of the test problems. A metric that does not exist (a test split
        with one outcome) is NaN and named in ``note``, as are fits that did not converge.
    """
    spec = spec or ErrorSpec()
    source = sources(_activation(run, sae) if activation is None else activation, sae)
    first = next(iter(source.values()))
    if "correct" not in run:
        raise SchemaError("error prediction needs 'correct', which the run does not have; extract it with gold answers")
    labels = run[[n for n in ("correct", "question") if n in run]]
    if "example" in first.coords:
        labels = labels.sel(example=first["example"].values)
    wrong = ~labels["correct"].values.astype(bool)
    problem = problem_of(labels)
    side = _sides(spec, sae, first, wrong)
    rows = Rows(source, pooled=sae.attrs["scope"] != "cell")
    n_pass = 1 + 2 * len(spec.penalties)
    progress(0, n_pass)

    with tempfile.TemporaryDirectory(prefix="lake-errors-") as folder:
        codes, raw = designs(rows, weights(sae, source, rows), spec, Path(folder))
        progress(1, n_pass)
        length = Spool(None, "question_length")
        question = map(str, labels["question"].values) if "question" in labels else [""] * len(wrong)
        length.add(np.array([[len(q.split()), len(q)] for q in question], dtype=np.float32))
        fits: dict[str, Fit] = {}
        scores = np.zeros((len(PREDICTORS), len(wrong)))
        done = 1
        for number, (name, design) in enumerate(zip(PREDICTORS, (codes, raw, length), strict=False)):
            of_predictor: Literal["common", "deviation"] = "common" if name == "sae_codes" else "deviation"
            fits[name] = fit(design, wrong, side, "none" if spec.scale == "none" else of_predictor, spec)
            scores[number] = fits[name].scores(design)
            done += len(spec.penalties) if name != "question_length" else 0
            progress(done, n_pass)
        carriers = _carriers(codes, fits["sae_codes"], wrong, side, spec.carriers)
    share = wrong[side == 0].mean()
    scores[3] = np.log(max(share, 1e-12) / max(1 - share, 1e-12))
    out = _metrics(scores, wrong, problem, side, spec)
    notes = [str(out["note"].values)]
    if rows.n_infinite:
        notes.append(f"{rows.n_infinite} states hold infinite numbers: no code is on there, raw numbers are the mean")
    if unfinished := [name.replace("_", " ") for name, found in fits.items() if not found.converged]:
        notes.append(
            f"the fit of {', '.join(unfinished)} did not converge in {spec.max_iterations:,} iterations; give more with"
            " --max-iterations"
        )
    if library := sae.attrs.get("library"):
        notes.append(f"the dictionary was learned elsewhere ({library}), perhaps from these problems")
    out["note"] = (), "; ".join(filter(None, notes))
    out["probability"] = ("predictor", "example"), special.expit(scores)
    out["penalty"] = "predictor", [*(fits[n].penalty for n in PREDICTORS[:3]), np.nan]
    out["n_input"] = "predictor", [*(len(fits[n].weight) for n in PREDICTORS[:3]), 0]
    out["n_iteration"] = "predictor", [*(fits[n].n_iteration for n in PREDICTORS[:3]), 0]
    out["example_split"] = "example", np.array(SPLITS, dtype=object)[side]
    out = out.assign_coords({n: ("example", labels[n].values) for n in ("example", "problem") if n in labels.coords})
    out = out.merge(_labelled(carriers, fits["sae_codes"], rows, first, spec, sae.sizes["feature"]))
    out.attrs = {"spec": json.dumps(spec.spec(), sort_keys=True), "sae": str(sae.attrs.get("fingerprint", ""))}
    return out


def _metrics(
    scores: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    problem: NDArray[Any],
    side: NDArray[np.intp],
    spec: ErrorSpec,
) -> xr.Dataset:
    """Scores of each predictor on the test rows with intervals over resampled problems."""
    test = side == 2
    if not test.any():
        raise UsageError("error prediction has no test problems; give the dictionary's split a test share above 0")
    truth, n_problem = wrong[test], len(np.unique(problem[test]))
    weight = bootstrap_weights(xr.DataArray(problem[test], dims="example"), spec.resamples, spec.seed)
    draws = np.concatenate([np.ones((test.sum(), 1), dtype=np.float32), weight.values], axis=1)  # the first: as it is
    judged = [judge(s[test], truth, draws) for s in scores]
    out = xr.Dataset(coords={"predictor": list(PREDICTORS), "outcome": list(OUTCOMES)})
    for name in ("accuracy", "balanced_accuracy", "auroc", "precision", "recall"):
        value = np.stack([f[name] for f in judged])  # (predictor, [outcome,] draw)
        _with_interval(out, name, ("predictor", "outcome")[: value.ndim - 1], value, n_problem)
    for name in ("accuracy", "auroc"):
        value = np.stack([f[name] for f in judged])
        _with_interval(out, f"{name}_gain", ("predictor",), value[:1] - value, n_problem)
    guess = scores > 0
    # Of shares by Wilson: a bootstrap of answers that are all alike would be certain of them.
    right, mine = (guess == wrong)[:, None, test], guess[:, None, test]
    called, actual = np.concatenate([mine, ~mine], axis=1), np.stack([truth, ~truth])
    for name, counted in (("accuracy", np.ones_like(truth)), ("precision", called), ("recall", actual)):
        yes, among = np.broadcast_arrays(right, counted)
        bounds = share_interval(yes, among, problem[test])
        for end, bound in zip(("low", "high"), bounds, strict=True):
            out[f"{name}_{end}"] = out[name].dims, bound.reshape(out[name].shape)
    out["train_accuracy"] = "predictor", (guess[:, side == 0] == wrong[side == 0]).mean(1)
    out["n_test"] = "outcome", [int(truth.sum()), int((~truth).sum())]
    out["n_test_problem"] = (), n_problem
    degenerate = truth.all() or not truth.any()
    out["note"] = (), "every test answer has the same outcome: AUROC does not exist" if degenerate else ""
    out["auroc"].attrs = {"long_name": "AUROC of being wrong", "range": "[0, 1], chance 0.5"}
    out["accuracy"].attrs = {"long_name": "held-out accuracy", "range": "[0, 1]"}
    return out


def judge(
    score: NDArray[np.float64], truth: NDArray[np.bool_], draws: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Metrics under each set of row weights (row, draw), some draws at a time; NaN where one does not exist."""
    _, group = np.unique(score, return_inverse=True)
    membership: Any = sparse.csr_array((np.ones(len(group)), (group, np.arange(len(group)))))
    parts = [
        _measures(score > 0, truth, membership, draws[:, start : start + _TOGETHER].astype(np.float64))
        for start in range(0, draws.shape[1], _TOGETHER)
    ]
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def _measures(
    guess: NDArray[np.bool_], truth: NDArray[np.bool_], membership: Any, draws: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of guesses under weights (row, draw); ``membership`` (group, row) has rows of one score together."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = draws.sum(0)
        hit = np.stack([(guess & truth) @ draws, (~guess & ~truth) @ draws])  # (outcome, draw)
        actual = np.stack([truth @ draws, ~truth @ draws])
        called = np.stack([guess @ draws, ~guess @ draws])
        recall = hit / actual
        positive, negative = (membership @ (draws * side[:, None]) for side in (truth, ~truth))  # (group, draw)
        below = np.cumsum(negative, axis=0) - 0.5 * negative  # ties count half
        return {
            "accuracy": hit.sum(0) / total,
            "balanced_accuracy": recall.mean(0),
            "precision": hit / called,
            "recall": recall,
            "auroc": (positive * below).sum(0) / (actual[0] * actual[1]),
        }


def _with_interval(out: xr.Dataset, name: str, dims: Sequence[str], value: NDArray[np.float64], n_problem: int) -> None:
    """Estimate (first draw) and 95% percentile interval (the others)."""
    out[name] = tuple(dims), value[..., 0]
    for end, bound in zip(("low", "high"), percentiles(value[..., 1:], n_problem), strict=True):
        out[f"{name}_{end}"] = tuple(dims), bound


def _carriers(
    codes: Spool, fit: Fit, wrong: NDArray[np.bool_], side: NDArray[np.intp], n: int
) -> dict[str, NDArray[Any]]:
    """The features with the largest standardised weights, and how they fire on test answers."""
    strength = fit.weight * fit.deviation
    best = np.argsort(-np.abs(strength), kind="stable")[:n]
    mean, rate = np.zeros((2, len(best))), np.zeros((2, len(best)))
    for part, x in codes.pieces():
        piece = x[:, best]
        dense = np.asarray(piece if isinstance(piece, np.ndarray) else piece.toarray(), dtype=np.float64)
        for which, answer in enumerate((wrong, ~wrong)):
            inside = (side[part] == 2) & answer[part]
            mean[which] += dense[inside].sum(0)
            rate[which] += (dense[inside] != 0).sum(0)
    count = np.array([((side == 2) & wrong).sum(), ((side == 2) & ~wrong).sum()])[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"index": best, "weight": strength[best], "mean": mean / count, "rate": rate / count}


def _labelled(
    carriers: Mapping[str, NDArray[Any]], fit: Fit, rows: Rows, first: xr.DataArray, spec: ErrorSpec, n_feature: int
) -> xr.Dataset:
    strength = (fit.weight * fit.deviation).astype(np.float32)
    by_cell = spec.pooling == "concatenate"
    dims: tuple[Hashable, ...] = (*(rows.cell_dims if by_cell else ()), "feature")
    shape = (*(rows.cell_shape if by_cell else ()), n_feature)
    out = xr.Dataset({"weight": (dims, strength.reshape(shape))}, coords={"feature": np.arange(n_feature)})
    out["weight"].attrs = {"long_name": "log odds of a wrong answer per standard deviation of the code"}
    index = np.unravel_index(carriers["index"], shape)
    out["carrier_feature"] = "carrier", index[-1]
    if by_cell:
        out = out.assign_coords({d: first[d].values for d in rows.cell_dims if d in first.coords})
        for dim, place in zip(rows.cell_dims, index[:-1], strict=True):
            values = first[dim].values if dim in first.coords else np.arange(first.sizes[dim])
            out[f"carrier_{dim}"] = "carrier", values[place]
    out["carrier_weight"] = "carrier", carriers["weight"]
    out["carrier_mean"] = ("outcome", "carrier"), carriers["mean"]
    out["carrier_rate"] = ("outcome", "carrier"), carriers["rate"]
    return out.assign_coords(carrier=np.arange(len(index[-1])), outcome=list(OUTCOMES))


def _activation(run: xr.Dataset, sae: xr.Dataset) -> xr.DataArray:
    name = sae.attrs.get("variable", "hidden_state")
    if sae.attrs["scope"] == "crosscoder" or name not in run:
        raise UsageError(
            f"error prediction needs the activation that the {sae.attrs['scope']} dictionary reads; pass it"
        )
    array = run[name]
    known = sae["frequency"] if "frequency" in sae else sae["encoder"]
    chosen: xr.DataArray = array.sel(
        {d: known[d].values for d in array.dims if d in known.dims and d not in ("example", "hidden")}
    )
    return chosen


def _sides(spec: ErrorSpec, sae: xr.Dataset, first: xr.DataArray, wrong: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Number of each row's split."""
    if spec.split == "stratified":
        from sklearn.model_selection import train_test_split

        counts = (int(wrong.sum()), int((~wrong).sum()))
        if 1 in counts or sum(counts) < 5:
            raise UsageError(
                f"{counts[0]} wrong and {counts[1]} right answers cannot be split into shares of both; take more"
                " examples, or --split sae"
            )
        side = np.zeros(len(wrong), dtype=np.intp)
        side[train_test_split(np.arange(len(wrong)), test_size=0.2, random_state=spec.seed, stratify=wrong)[1]] = 2
        return side
    if "example_split" not in sae:
        raise UsageError("the dictionary says of no example whether it was trained on it; give --split stratified")
    number = split_numbers(sae, first, "error prediction", "use the run it was trained on")
    if not (number == 2).any():
        raise UsageError(
            "the dictionary was trained on every example, so none is left to test on; learn it with --split "
            "problem of more examples, or give --split stratified and accept that it saw the test rows"
        )
    return number
