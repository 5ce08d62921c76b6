"""What a lens found, over all examples: shares, paired tests, best tokens."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from analyze.labels import inherited, numbered, require_dims, take, thought_labels
from schemas import UsageError
from schemas.problem_sums import effective_trials, problem_of, problem_sums, sums_by_problem, trials_of
from schemas.statistics import adjust, cochran_q, interval_of_trials, mcnemar_exact

LONG_NAMES = {
    "number_share": "share of examples whose best token is a number",
    "result_share": "share of examples whose best token is a result of the chain",
    "control_share": "the same with the chain of another problem",
    "step_share": "share of examples whose best token is the result of the step",
    "inner_share": "share of examples whose best token is the result of the step, where it is not the last",
    "last_share": "share of examples whose best token is the result of the last step",
    "operator_share": "share of examples whose best token is the operator of the step",
    "gold_probability": "probability of the answer's first token, mean",
    "gold_log_rank": "log rank of the answer's first token, mean",
    "gold_first_share": "share of examples whose best token is the answer's first",
    "n": "examples with a state there",
    "n_step": "examples with that step, whose result is a token",
    "n_step_control": "examples with such a step of another problem",
    "n_inner": "examples with that step, whose result is a token and not the answer",
    "n_inner_control": "examples with such a step of another problem",
}
OF = {
    **dict.fromkeys(
        ("number_share", "result_share", "result_top_share", "control_share", "control_top_share", "last_share"), "n"
    ),
    **dict.fromkeys(("step_share", "step_top_share"), "n_step"),
    **{"step_control_share": "n_step_control", "operator_share": "n_operator"},
    **{"inner_share": "n_inner", "inner_control_share": "n_inner_control"},
    **dict.fromkeys(("gold_first_share", "gold_probability", "gold_log_rank"), "n_gold"),
}
"""What each sum of :func:`lens_counts` is divided by."""
READ = {
    **dict.fromkeys(("result_share", "result_top_share", "last_share"), "n_step"),
    **dict.fromkeys(("control_share", "control_top_share"), "n_step_control"),
}
"""Shares of nothing, not of 0, where no example has a step whose result a token says."""
WITH_INTERVAL = ("number_share", "step_share", "step_control_share", "inner_share", "inner_control_share")


def lens_summary(lens: xr.Dataset) -> xr.Dataset:
    """How often the lens finds a number, a result of the chain and the answer, over all examples.

    Lazy input stays lazy. All : (layer, position), or with ``step`` or ``rank``:

    ``n`` examples with a state there; ``number_share`` how often the best token is a number, ``number_share_low`` and
    ``number_share_high`` its 95% Wilson interval over problems; ``result_share`` how often it is the result of any
    step, ``result_top_share`` how often one of the top tokens is, and ``control_share``, ``control_top_share`` the same
    with another problem's chain; ``step_share``, ``step_top_share`` : (layer, position, step), of the examples whose
    chain has that step and a token that says its result (``n_step``), with ``step_share_low`` and ``step_share_high``,
    ``operator_share`` of all with that step, ``step_control_share`` how often the best token is the other problem's
    result, where it has one and a token says it (``n_step_control``); ``inner_share``, ``inner_control_share`` (of
    ``n_inner_control``) the same of the examples in which that step is not the last (``n_inner``), so that its result
    is not what is asked for, these three controls and shares with ``_low`` and ``_high``, too, and ``last_share`` how
    often the best token is the result of the last step; ``gold_probability`` and ``gold_log_rank`` (natural log) means
    over examples, ``gold_first_share`` how often the gold token is the best.
    """
    answers, trials = _answers(lens), {}
    if "problem" in lens.coords:
        problem = lens["problem"].drop_vars(list(lens["problem"].coords))
        for name in WITH_INTERVAL:
            trials[name] = xr.apply_ufunc(
                trials_of,
                *xr.broadcast(answers[name], answers[OF[name]]),
                problem,
                input_core_dims=[["example"]] * 3,
                dask="parallelized",
                dask_gufunc_kwargs={"allow_rechunk": True},
                output_dtypes=["float64"],
            )
    return _quotients(lens_counts(lens), lens, trials)


def lens_counts(lens: xr.Dataset) -> xr.Dataset:
    """Sums over examples whose quotients are the shares and means of :func:`lens_summary`; those of blocks add up."""
    return xr.Dataset({name: values.sum("example") for name, values in _answers(lens).items()})


def _answers(lens: xr.Dataset) -> dict[str, xr.DataArray]:
    """Which examples each share counts, and for which of them it says yes."""
    has_state = lens["top_token"].isel(rank=0, drop=True) >= 0  # (example, layer, position)
    result, control, operator = lens["result_rank"], lens["control_rank"], lens["operator_rank"]
    step_exists = lens["step"] < lens["n_step"]  # (example, step)
    inner = lens["step"] < lens["n_step"] - 1
    can_be_read, other_can_be_read = lens["can_be_read"], lens["other_can_be_read"]
    last = lens["step"] == lens["n_step"] - 1
    return {
        "n": has_state,
        "n_operator": has_state & step_exists,
        "n_step": has_state & step_exists & can_be_read,
        "n_step_control": has_state & other_can_be_read,
        "n_inner": has_state & inner & can_be_read,
        "n_inner_control": has_state & inner & other_can_be_read,
        "n_gold": lens["gold_rank"].notnull(),
        "number_share": lens["is_number"] == 1,
        "result_share": (result == 1).any("step"),
        "result_top_share": (result > 0).any("step"),
        "control_share": (control == 1).any("step"),
        "control_top_share": (control > 0).any("step"),
        "step_share": result == 1,
        "step_top_share": result > 0,
        "step_control_share": control == 1,
        "inner_share": (result == 1) & inner,
        "inner_control_share": (control == 1) & inner,
        "last_share": ((result == 1) & last).any("step"),
        "operator_share": (operator == 1) & step_exists,
        "gold_first_share": lens["gold_rank"] == 1,
        "gold_probability": lens["gold_probability"].astype("float64"),
        "gold_log_rank": _log(lens["gold_rank"]),
    }


class _Problems:
    """Sums over problems whose examples come block by block; only unfinished problems are held."""

    def __init__(self, problem: np.ndarray) -> None:
        self._label, self._left = np.unique(problem, return_counts=True)
        self._open = self._label[:0]
        self._held: dict[str, np.ndarray] = {}
        self._sums: dict[str, xr.DataArray] = {}

    def add(self, block: xr.Dataset) -> None:
        """Take a block of examples in."""
        answers, problem = _answers(block), np.concatenate([self._open, block["problem"].values])
        np.subtract.at(self._left, np.searchsorted(self._label, block["problem"].values), 1)
        label = np.unique(problem)
        whole = self._left[np.searchsorted(self._label, label)] == 0
        for name in WITH_INTERVAL:
            both = xr.concat(xr.broadcast(answers[name] & answers[OF[name]], answers[OF[name]]), "side")
            both = both.transpose("side", ..., "example")
            new = both.values.astype("float64")
            of = sums_by_problem(np.concatenate([self._held.get(name, new[..., :0]), new], axis=-1), problem)
            self._held[name] = of[..., ~whole]
            frame = both.isel(side=[0] * 4, example=0, drop=True).rename(side="sum")
            sums = frame.astype("float64").copy(data=problem_sums(*of[..., whole]))
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        self._open = label[~whole]

    def trials(self, counts: xr.Dataset) -> dict[str, xr.DataArray]:
        """Effective number of trials of each share, when all examples have come."""
        found = {}
        for name, sums in self._sums.items():
            total, n = xr.broadcast(counts[name], counts[OF[name]])
            found[name] = total.copy(data=effective_trials(total.values, n.values, sums.values))
        return found


def summary_of_blocks(
    blocks: Iterable[xr.Dataset], problem: np.ndarray | None = None
) -> tuple[xr.Dataset, xr.DataArray]:
    """:func:`lens_summary` of a lens whose examples come in blocks, and ``is_number`` of every example.

    Memory is that of a block, of one number for each state, and of the sums of problems whose examples lie in several
    blocks.

    Parameters
    ----------
    problem : (example,)
        Problem of each example; by default every example is its own.
    """
    counts: xr.Dataset | None = None
    problems = None if problem is None or len(np.unique(problem)) == len(problem) else _Problems(problem)
    numbers = []
    for block in blocks:
        own = lens_counts(block)
        counts = own if counts is None else counts + own
        numbers.append(block["is_number"])
        if problems is not None:
            problems.add(block)
    assert counts is not None
    whole = xr.concat(numbers, "example")
    trials = {} if problems is None else problems.trials(counts)
    summary = _quotients(counts, block, trials)
    return summary.assign_attrs(n_example=whole.sizes["example"]), whole


def _quotients(counts: xr.Dataset, lens: xr.Dataset, trials: dict[str, xr.DataArray]) -> xr.Dataset:
    """Shares and means from their sums; the intervals are of so many trials, or of the examples counted."""
    summary = counts[["n", "n_step", "n_step_control", "n_inner", "n_inner_control"]]
    for name, of in OF.items():
        total = counts[of]
        if (step := READ.get(name)) is not None:
            total = total.where(counts[step].sum("step") > 0)
        summary[name] = counts[name] / total.where(total > 0)
        if name in WITH_INTERVAL:
            summary[f"{name}_low"], summary[f"{name}_high"] = xr.apply_ufunc(
                interval_of_trials,
                *xr.broadcast(counts[name], total, trials.get(name, total)),
                output_core_dims=[[], []],
                dask="parallelized",
                output_dtypes=["float64", "float64"],
            )
    for name, text in LONG_NAMES.items():
        summary[name].attrs = {"long_name": text, "units": "1"}
    return summary.transpose("layer", "position", ...).assign_attrs(
        {**lens.attrs, "kind": "lens", "n_example": lens.sizes["example"], "top": lens.sizes["rank"]}
    )


def lens_tests(
    is_number: xr.DataArray, *, positions: Sequence[str] | None = None, correction: str = "holm"
) -> xr.Dataset:
    """Whether some thoughts read out as numbers more often than others, as paired answers of the same examples.

    Cochran's Q over all positions at each layer, and exact McNemar tests of each pair of them, each corrected for the
    number of its tests in the whole result. Of examples that share a problem only the first is used, as twins are not
    independent; examples without a state at one of the positions are left out. Computes: it needs one number of each
    example at once.

    Parameters
    ----------
    is_number : (example, layer, position)
        Of :func:`analyze.lens.logit.logit_lens`: 1, 0, or NaN.
    positions
        By default the thoughts.

    Returns
    -------
    Dataset
        ``q``, ``q_p``, ``q_p_adjusted`` : (layer); ``mcnemar_p``, ``mcnemar_p_adjusted`` : (layer, position,
        other_position), NaN on the diagonal; ``difference`` of the shares, row minus column; ``n`` examples used
    """
    what = "the paired tests"
    require_dims(is_number, ["example", "layer", "position"], what)
    positions = thought_labels(is_number) if positions is None else list(positions)
    if len(positions) < 2:
        raise UsageError(f"{what} compare at least two positions; got {', '.join(positions) or 'none'}")
    values = take(is_number, "position", positions, what).transpose("layer", "example", "position")
    values = numbered(values, ["layer"])
    first = np.sort(np.unique(problem_of(values), return_index=True)[1])
    table = np.asarray(values.isel(example=first).values, dtype="float64")  # (layer, example, position)
    table = table[:, np.isfinite(table).all((0, 2))] == 1
    n_layer, n_example, n_position = table.shape
    if n_example == 0:
        raise UsageError(f"{what} found no example with a state at every one of {', '.join(positions)}")
    shares = table.mean(1)
    q = [cochran_q(layer) for layer in table]
    pair_p = np.full((n_layer, n_position, n_position), np.nan)
    for layer in range(n_layer):
        for i in range(n_position):
            for j in range(i):
                pair_p[layer, i, j] = mcnemar_exact(table[layer, :, i], table[layer, :, j]).p
    lower = np.tril_indices(n_position, -1)
    adjusted = np.full_like(pair_p, np.nan)
    adjusted[:, *lower] = adjust(pair_p[:, *lower], correction)
    for matrix in (pair_p, adjusted):
        matrix[:, lower[1], lower[0]] = matrix[:, *lower]
    labels = np.array(positions, dtype=object)
    pair = ("layer", "position", "other_position")
    return xr.Dataset(
        {
            "q": ("layer", [x.statistic for x in q]),
            "q_p": ("layer", [x.p for x in q]),
            "q_p_adjusted": ("layer", adjust([x.p for x in q], correction)),
            "mcnemar_p": (pair, pair_p),
            "mcnemar_p_adjusted": (pair, adjusted),
            "difference": (pair, shares[:, :, None] - shares[:, None, :]),
            "n": ((), n_example),
        },
        coords={"layer": values["layer"].values, "position": labels, "other_position": labels},
        attrs=inherited(is_number, kind="lens_tests", correction=correction, n_example=is_number.sizes["example"]),
    )


def lens_tokens(lens: xr.Dataset, model: xr.Dataset, n_example: int = 10) -> pd.DataFrame:
    """Best tokens of the first examples as text, one row for each example, layer, position and rank. Computes."""
    part = lens[["top_token", "top_probability"]].isel(example=slice(0, n_example)).compute()
    table = part.to_dataframe(dim_order=["example", "layer", "position", "rank"]).reset_index()
    table = table.loc[table["top_token"] >= 0, ["example", "layer", "position", "rank", "top_token", "top_probability"]]
    strings = np.asarray(model["token_string"].values, dtype=object)
    return table.assign(text=strings[table["top_token"].to_numpy()])


def _log(values: xr.DataArray) -> xr.DataArray:
    """Natural logarithm, lazy where the values are."""
    result: xr.DataArray = xr.apply_ufunc(np.log, values, dask="parallelized", output_dtypes=["float64"])
    return result
