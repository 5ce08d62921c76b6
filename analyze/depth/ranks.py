"""Ranks of the answer and of every result of the written chain, by thought and layer, from the lake alone."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.blocks import computed_blocks
from analyze.labels import inherited, labels_along, numbered, require_dims, take, thinking_labels
from analyze.lens import logit
from analyze.lens.logit import larger_blocks, sides_of
from analyze.lens.readout import ReadOut, check_model
from analyze.pieces import pieces_in
from schemas import AnswerKind, answer_word, segment_of
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.resampling import DrawnMean, draw_counts
from schemas.scoring import value_text
from schemas.wording import interval_columns

Array = np.ndarray[Any, np.dtype[Any]]
STATES = 1024
"""States that are read out together."""


def readout_depth(
    run: xr.Dataset,
    model: xr.Dataset,
    *,
    positions: Sequence[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Rank the answer and the chain's results in the read-out of every state.

    Parameters
    ----------
    run
        Needs ``hidden_state`` (example, layer, position, hidden) and ``gold_answer``; with ``intermediate_result``
        results are ranked, too. Lazy input stays lazy.
    model
        Read-out of the run's model, from ``lake.model``.
    positions
        In order of time; by default from ``bot`` to the last before the answer.
    folder
        Where blocks of states that are read out are kept until all are, as by :func:`analyze.lens.logit.logit_lens`.

    Returns
    -------
    Dataset
        ``top_token`` : (example, layer, position), id of the likeliest token, -1: no state; ``rank`` and
        ``probability`` : (example, layer, position, what), from 1, of the token that begins the ``answer``, ``result
        0``, ``result 1`` .. of the chain, and ``other 0`` .. the results of another problem's chain, which say how good
        a rank is by chance. NaN where there is no such result, none that is a token, or no state. Spellings with and
        without a leading space count as one: the better rank holds, probabilities add.

    Notes
    -----
    One product with the unembedding for each state, in blocks of 2,048 tokens; memory does not grow with the run.
    """
    check_model(model, run)
    what = "depth"
    require_dims(run["hidden_state"], ["example", "layer", "position", "hidden"], what)
    if positions is None:
        before = [label for label in labels_along(run, "position") if segment_of(label) == "question"]
        positions = thinking_labels(run) or before[-1:]
    state = take(run["hidden_state"], "position", positions, what).transpose("example", "layer", "position", "hidden")
    state = numbered(state, ["example", "layer"])
    if (np.diff(state["layer"]) < 0).any():
        state = state.sortby("layer")
    if state.chunks is not None:
        state = state.chunk(larger_blocks(state.variable.chunksizes) | {"hidden": -1})
    answer_kind = run.attrs.get("answer_kind", "number")
    by_name = sides_of(run, answer_kind, state)
    sides = [by_name[name] for name in ("gold", "result", "control")]
    n_step = by_name["result"].sizes["step"]
    names = ["answer", *(f"result {step}" for step in range(n_step)), *(f"other {step}" for step in range(n_step))]
    outputs = xr.apply_ufunc(
        pieces_in(folder, __file__, logit.__file__).cache(_ranks, ignore=["readout"]),
        state.drop_vars(list(state.coords)),
        *sides,
        input_core_dims=[["hidden"], [], ["step"], ["step"]],
        output_core_dims=[[], ["what"], ["what"]],
        kwargs={"readout": ReadOut(model), "answer_kind": answer_kind},
        dask="parallelized",
        output_dtypes=["int32", "float32", "float32"],
        dask_gufunc_kwargs={"output_sizes": {"what": len(names)}, "allow_rechunk": False},
    )
    out = xr.Dataset(dict(zip(("top_token", "rank", "probability"), outputs, strict=True)))
    there = sides[1].notnull() if answer_kind == "number" else sides[1] != ""
    out["n_step"] = there.sum("step")
    kept = {name: coord for name, coord in state.coords.items() if name in ("example", "problem", "layer", "position")}
    out = out.assign_coords(kept | {"what": np.array(names, dtype=object)})
    return out.assign_attrs(inherited(run, kind="depth_example"))


def _ranks(
    state: Array,  # (example, layer, position, hidden)
    gold: Array,  # (example,) with axes of length one
    result: Array,  # (example, .., step)
    other: Array,  # (example, .., step)
    *,
    readout: ReadOut,
    answer_kind: AnswerKind,
) -> tuple[Array, Array, Array]:
    """Read a block of states out, :data:`STATES` of them at a time."""
    shape = state.shape[:-1]
    values = [ranks.reshape(shape[0], -1) for ranks in (result, other)]
    texts = [
        [answer_word(str(answer), answer_kind), *(value_text(value) for value in line)]
        for answer, line in zip(gold.ravel(), np.concatenate(values, axis=1), strict=True)
    ]
    wanted = np.stack([readout.tokens.begin(line) for line in texts])  # (example, what, spelling)
    flat = state.reshape(-1, state.shape[-1])
    owner = np.indices(shape)[0].ravel()
    top = np.full(len(flat), -1, dtype="int32")
    rank, probability = (np.full((len(flat), wanted.shape[1]), np.nan, dtype="float32") for _ in range(2))
    there = np.flatnonzero(np.isfinite(flat).all(-1))
    for start in range(0, len(there), STATES):
        rows = there[start : start + STATES]
        final = readout.norm(flat[rows].astype("float32"))
        top[rows], rank[rows], probability[rows] = readout.ranks(final, wanted[owner[rows]])
    return top.reshape(shape), rank.reshape(*shape, -1), probability.reshape(*shape, -1)


def settled(depth: xr.Dataset) -> xr.Dataset:
    """When the read-out stops changing: over positions at each layer, and over layers at each position.

    Parameters
    ----------
    depth
        Of :func:`readout_depth`.

    Returns
    -------
    Dataset
        ``settled_position`` : (example, layer), how many positions (of those in order) pass until the likeliest token
        is that of the last and stays so; ``settled_layer`` : (example, position), the first layer from which on it is
        that of the last layer; ``answer_position`` : (example, layer), from which position on the answer is likeliest,
        NaN: not at the last. NaN where states are missing.
    """
    token = depth["top_token"]
    there = token >= 0

    def since(same: xr.DataArray, dim: str) -> xr.DataArray:
        """Place from which on all are the same as the last."""
        staying = same.isel({dim: slice(None, None, -1)}).astype("int64").cumprod(dim)
        return same.sizes[dim] - staying.sum(dim)

    position = since(token == token.isel(position=-1), "position")
    layer = since(token == token.isel(layer=-1), "layer")
    answer = depth["rank"].sel(what="answer", drop=True) == 1
    first = since(answer, "position")
    return xr.Dataset(
        {
            "settled_position": position.where(there.all("position")),
            "settled_layer": layer.where(there.all("layer")),
            "answer_position": first.where(there.all("position") & (first < answer.sizes["position"])),
        }
    )


def depth_summary(
    depth: xr.Dataset, *, n_resample: int = 500, seed: int = 0, progress: Progress = silent
) -> xr.Dataset:
    """Mean ranks and when read-outs settle, over all problems and by the number of steps of their chains.

    Parameters
    ----------
    depth
        Of :func:`readout_depth`; computed here, a block of examples at a time.
    n_resample, seed
        Of the bootstrap over problems.
    progress
        Called as ``progress(done, total)``, in examples.

    Returns
    -------
    Dataset
        Along ``stratum`` (``all``, and numbers of steps) ``n`` examples and, with 95% intervals ``_low`` and ``_high``:
        ``log_rank`` (mean natural logarithm), ``first_share`` (how often it is the likeliest token) and
        ``probability`` : (layer, position, what); means of what :func:`settled` gives, and ``answer_found`` : (layer),
        the share of problems whose answer is likeliest at the last position.
    """
    problem = problem_of(depth)
    steps = depth["n_step"].values
    groups = {"all": np.ones(len(steps), dtype=bool)}
    if len(np.unique(steps)) > 1:
        groups |= {str(n): steps == n for n in np.unique(steps)}
    sums: dict[tuple[str, str], DrawnMean] = {}
    start = 0
    for block in computed_blocks(depth, progress):
        rows = slice(start, start := start + block.sizes["example"])
        draws = draw_counts(problem[rows], n_resample=n_resample, seed=seed)
        values = _averaged(block)
        for (group, members), (name, value) in itertools.product(groups.items(), values.items()):
            total = sums.setdefault((group, str(name)), DrawnMean(value.shape[:-1], n_resample))
            total.add(value.values[..., members[rows]], draws[members[rows]])
    dims = {name: value.dims[:-1] for name, value in values.items()}
    parts = []
    for group, members in groups.items():
        line: dict[str, Any] = {"n": int(members.sum())}
        for name in values:
            columns = interval_columns(str(name), sums[group, str(name)].interval())
            line |= {key: (dims[name], bound) for key, bound in columns.items()}
        parts.append(xr.Dataset(line, coords={dim: depth[dim] for dim in ("layer", "position", "what")}))
    out = xr.concat(parts, dim=xr.DataArray(np.array(list(groups), dtype=object), dims="stratum", name="stratum"))
    return out.assign_attrs(depth.attrs | {"kind": "depth_readout", "n_resample": n_resample})


def _averaged(depth: xr.Dataset) -> xr.Dataset:
    """What means are taken of, the example last."""
    rank = depth["rank"]
    first = (rank == 1).where(rank.notnull())
    values = xr.Dataset(
        {
            "log_rank": np.log(rank),
            "first_share": first,
            "probability": depth["probability"],
            **settled(depth),
            "answer_found": first.sel(what="answer", drop=True).isel(position=-1, drop=True),
        }
    )
    return values.transpose(..., "example")
