"""What a state would say if it were read out now: logit lens and tuned lens, from the lake alone.

A state of ``hidden_state`` is taken before the final norm, so the lens applies that norm and the unembedding; at the
last layer this is the model's own read-out. The tuned lens has one affine map per layer, fitted on the lake, instead.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from dask.system import CPU_COUNT

from analyze.blocks import whole_chunks
from analyze.labels import after_question, inherited, labels_along, numbered, problem_along, require_dims, take
from analyze.lens.readout import ReadOut, check_model
from analyze.lens.tokens import Chain
from analyze.pieces import pieces_in
from schemas import AnswerKind, SchemaError, UsageError, answer_word
from schemas.resampling import DRAWN_TOGETHER

Array = np.ndarray[Any, np.dtype[Any]]

ROW_BLOCK = 1024
"""States that are read out together, so that the unembedding is read from memory once for all of them."""
LEAST_BLOCK = 256
"""States that are read out together where there are few and every core is to have some."""
LONG_NAMES = {
    "top_token": "best tokens",
    "top_probability": "probability of the best tokens",
    "is_number": "whether the best token holds a digit",
    "gold_rank": "rank of the gold answer's first token",
    "gold_probability": "probability of the gold answer's first token",
    "result_rank": "rank of the token that is the step's result, 0: none of the best",
    "operator_rank": "rank of the token that is the step's operator, 0: none of the best",
    "control_rank": "rank of the token that is the step's result in another problem, 0: none of the best",
}
"""What a lens gives for each state, in the order in which :func:`_lens` returns it."""


def logit_lens(
    run: xr.Dataset,
    model: xr.Dataset,
    *,
    positions: Sequence[str] | None = None,
    top: int = 5,
    tuned: xr.Dataset | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Read every state out through the final norm and the unembedding.

    Parameters
    ----------
    run
        Needs ``hidden_state`` (example, layer, position, hidden) and ``gold_answer``; with ``intermediate_result`` and
        ``operation`` tokens are compared with the written chain. Where answers are not numbers (attribute
        ``answer_kind``) the chain is ``intermediate_text``. Lazy input stays lazy.
    model
        Read-out of the run's model, from ``lake.model``.
    positions
        Where to look; by default every position from ``bot`` on, or from ``q-1`` where the answer follows it.
    top
        Number of best tokens kept.
    tuned
        From :func:`analyze.lens.tuned.fit_tuned_lens` or :func:`analyze.lens.jacobian.jacobian_maps`: affine maps by
        layer, or by layer and position, that take the place of the final norm.
    folder
        Where blocks of states that are read out are kept, so that the same lens, computed again after it was stopped,
        takes them up.

    Returns
    -------
    Dataset
        ``top_token`` (id, -1: no state) and ``top_probability`` : (example, layer, position, rank), rank from 1;
        ``is_number`` : (example, layer, position), whether the best token holds a digit (where answers are not numbers:
        begins a word that any step of the run arrives at or that answers, attribute ``decoded``); NaN:
        no state;
        ``gold_rank`` and ``gold_probability`` : (example, layer, position), of the gold answer's first token (of a
        sentence, of its last word: :func:`schemas.answer_word`). Its spellings with and without a leading space are
        counted as one: probabilities add, the better rank holds. NaN if no token begins the answer; ``result_rank`` :
        (example, layer, position, step), rank from 1 at which a token is the result of that step, 0: not among the
        ``top``; ``operator_rank`` the same for the step's operator; ``control_rank`` the same as ``result_rank`` for
        the chain of another problem, which says how often that happens by chance. A result matches a token by value, so
        a number that is not a single token is never found; a word matches the longest token that begins it;
        ``can_be_read`` and ``other_can_be_read`` : (example, step), whether there is such a token for either chain's;
        ``n_step`` : (example).

    Notes
    -----
    The work of a state is one product with the unembedding. Small chunks are read out together, 1,024 states at a time;
    each thread holds those and their logits over 2,048 tokens, 8 MiB, beside the unembedding.
    """
    check_model(model, run)
    require_dims(run["hidden_state"], ["example", "layer", "position", "hidden"], "the lens")
    if not 1 <= top <= model.sizes["vocabulary"]:
        raise UsageError(f"top is {top}; it must lie between 1 and the {model.sizes['vocabulary']} tokens there are")
    if positions is None:
        positions = after_question(run)
    state = take(run["hidden_state"], "position", positions, "the lens").transpose(
        "example", "layer", "position", "hidden"
    )
    state = numbered(state, ["example", "layer"])
    lazy = state.chunks is not None
    readout = ReadOut(model)

    kind = run.attrs.get("answer_kind", "number")
    if lazy:
        state = state.chunk(larger_blocks(state.variable.chunksizes) | {"hidden": -1})
    sides = sides_of(run, kind, state)
    maps = [] if tuned is None else _maps_of(tuned, state)
    if lazy:
        blocks = {dim: state.variable.chunksizes[dim] for dim in ("layer", "position")}
        maps = [x.chunk({d: blocks.get(str(d), -1) for d in x.dims}) for x in maps]

    n_step = sides["result"].sizes["step"]
    outputs = xr.apply_ufunc(
        pieces_in(folder, __file__).cache(_lens, ignore=["readout"]),
        state.drop_vars(list(state.coords)),
        *sides.values(),
        *maps,
        input_core_dims=[["hidden"], [], ["step"], ["step"], ["step"], *([["hidden", "to"], ["to"]] if maps else [])],
        output_core_dims=[["rank"], ["rank"], [], [], [], ["step"], ["step"], ["step"]],
        exclude_dims={"to"} if maps else set(),
        kwargs={"readout": readout, "top": top, "answer_kind": kind, "words": _words(run, kind)},
        dask="parallelized",
        output_dtypes=["int32", "float32", "float32", "float32", "float32", "int32", "int32", "int32"],
        dask_gufunc_kwargs={"output_sizes": {"rank": top, "step": n_step}, "allow_rechunk": False},
    )
    told = zip(LONG_NAMES.items(), outputs, strict=True)
    lens = xr.Dataset({name: values.assign_attrs(long_name=text, units="1") for (name, text), values in told})
    in_words = kind != "number"
    lens["n_step"] = ((sides["result"] != "") if in_words else sides["result"].notnull()).sum("step")
    for name, of in (("can_be_read", "result"), ("other_can_be_read", "control")):
        lens[name] = sides[of] != "" if in_words else xr.apply_ufunc(
            _can_be_read, sides[of], kwargs={"readout": readout}, dask="parallelized", output_dtypes=[bool]
        )  # fmt: skip
    kept = ("example", "problem", "variant", "layer", "position")
    coords = {name: coord for name, coord in state.coords.items() if name in kept}
    lens = lens.assign_coords(coords | {"rank": np.arange(1, top + 1), "step": np.arange(n_step)})
    if in_words:
        lens["is_number"].attrs["long_name"] = "whether the best token begins a word of steps or answers"
        lens.attrs["decoded"] = "word"
    which = "plain" if tuned is None else tuned.attrs.get("lens", "tuned")
    return lens.assign_attrs(inherited(run, kind="lens_example", lens=which))


def sides_of(run: xr.Dataset, kind: AnswerKind, state: xr.DataArray) -> dict[str, xr.DataArray]:
    """What states are compared with: the answer, and the steps of the chain and of another's.

    Without coordinates, and in the chunks of the states' examples.
    """
    plain = xr.DataArray(np.empty((run.sizes["example"], 0)), dims=("example", "step"))
    in_words = kind != "number"
    results = run.get("intermediate_text" if in_words else "intermediate_result", plain).transpose("example", "step")
    operations = xr.full_like(results, "", dtype=object) if in_words or "operation" not in run else run["operation"]
    sides = {
        "gold": run["gold_answer"],
        "result": results,
        "operation": operations.transpose("example", "step"),
        "control": another_chain(results),
    }
    sides = {name: side.drop_vars(list(side.coords)) for name, side in sides.items()}
    if state.chunks is None:
        return sides
    rows: dict[Any, Any] = {"example": state.variable.chunksizes["example"]}
    return {name: side.chunk(dict.fromkeys(side.dims, -1) | rows) for name, side in sides.items()}


def larger_blocks(chunks: Mapping[Any, tuple[int, ...]]) -> dict[Any, Any]:
    """Sizes of blocks that join chunks until they hold enough states: of all layers first, then positions, examples.

    Of examples they hold at most as many as summaries take at a time.
    """
    total = math.prod(sum(chunks[dim]) for dim in ("layer", "position", "example"))
    wanted = min(ROW_BLOCK, max(LEAST_BLOCK, total // CPU_COUNT))
    blocks = {dim: max(chunks[dim]) for dim in ("layer", "position")}
    blocks["example"] = min(max(chunks["example"]), DRAWN_TOGETHER)
    for dim in blocks:
        more = -(-wanted // max(1, math.prod(blocks.values())))
        blocks[dim] = max(1, min(sum(chunks[dim]), blocks[dim] * more))
    return blocks | {"example": whole_chunks(chunks["example"], blocks["example"])}


def _lens(
    state: Array,  # (example, layer, position, hidden)
    gold: Array,  # (example,) or with axes of length one
    result: Array,  # (example, .., step)
    operation: Array,  # (example, .., step)
    control: Array,  # (example, .., step)
    weight: Array | None = None,  # (layer, position or 1, hidden, to)
    bias: Array | None = None,  # (layer, position or 1, to)
    *,
    readout: ReadOut,
    top: int,
    answer_kind: AnswerKind = "number",
    words: Sequence[str] = (),
) -> tuple[Array, ...]:
    """Read a block of states out, :data:`ROW_BLOCK` of them at a time."""
    shape, n_step = state.shape[:-1], result.shape[-1]
    tokens = readout.tokens
    gold_id = tokens.begin(answer_word(str(text), answer_kind) for text in gold.ravel())
    result, operation, control = (x.reshape(shape[0], n_step) for x in (result, operation, control))

    flat = state.reshape(-1, state.shape[-1])
    out = [
        np.full((len(flat), top), -1, dtype="int32"),
        np.full((len(flat), top), np.nan, dtype="float32"),
        *(np.full(len(flat), np.nan, dtype="float32") for _ in range(3)),
        *(np.zeros((len(flat), n_step), dtype="int32") for _ in range(3)),
    ]
    beginnings = tokens.begin(words)
    beginnings = beginnings[beginnings >= 0]
    chains = [Chain(texts, tokens) for texts in (result, control)]
    example, layer, position = (axis.ravel() for axis in np.indices(shape))
    n_map = 0
    if weight is not None and bias is not None:  # one map for each layer, or for each layer and position
        n_map = weight.size // (weight.shape[-1] * weight.shape[-2] * shape[1])
        weight, bias = weight.reshape(-1, *weight.shape[-2:]), bias.reshape(-1, bias.shape[-1])
    there = np.flatnonzero(np.isfinite(flat).all(-1))
    if bias is not None:  # where no map was fitted nothing is read
        mapped = np.asarray(np.isfinite(bias).all(-1))[layer * n_map + (position if n_map > 1 else 0)]
        there = there[mapped[there]]
    for start in range(0, len(there), ROW_BLOCK):
        rows = there[start : start + ROW_BLOCK]
        x, owner = flat[rows].astype("float32"), example[rows]
        if weight is None or bias is None:
            x = readout.norm(x)
        else:
            chosen = layer[rows] * n_map + (position[rows] if n_map > 1 else 0)
            for index in np.unique(chosen):
                mine = chosen == index
                x[mine] = x[mine] @ weight[index] + bias[index]
        token, probability, rank, chance = readout.read(x, top, gold_id[owner])
        out[0][rows], out[1][rows] = token, probability
        out[3][rows], out[4][rows] = rank, chance
        number, value, text = tokens.meaning(token)  # (state, rank)
        out[2][rows] = number[:, 0] if answer_kind == "number" else np.isin(token[:, 0], beginnings)
        same_text = (text[:, :, None] == operation[owner][:, None]) & (operation[owner] != "")[:, None]
        out[5][rows], out[7][rows] = (_rank_of(chain.found(token, value, owner)) for chain in chains)
        out[6][rows] = _rank_of(same_text.astype(bool))
    return tuple(x.reshape(*shape, *x.shape[1:]) for x in out)


def _can_be_read(numbers: Array, *, readout: ReadOut) -> Array:
    """Whether a token says each number, the whole of it."""
    return readout.tokens.say(numbers)


def _words(run: xr.Dataset, kind: AnswerKind) -> list[str]:
    """Words that any step of a run arrives at, or that answer, where answers are not numbers. Computes these texts."""
    if kind == "number":
        return []
    words = {answer_word(str(text), kind) for text in run["gold_answer"].values}
    if "intermediate_text" in run:
        words |= set(map(str, run["intermediate_text"].values.ravel())) - {""}
    return sorted(words)


def _rank_of(match: Array) -> Array:
    """First rank that matches, from 1; 0: none. (state, rank, step) -> (state, step)."""
    return np.asarray(np.where(match.any(1), match.argmax(1) + 1, 0))


def another_chain(results: xr.DataArray) -> xr.DataArray:
    """For each example the chain of the next problem; none if there is one problem only."""

    def shift(problem: Array, chain: Array) -> Array:  # (example,), (example, step)
        unique, first, inverse = np.unique(problem, return_index=True, return_inverse=True)
        nothing = np.nan if chain.dtype.kind == "f" else ""
        return np.full_like(chain, nothing) if len(unique) < 2 else chain[first[(inverse + 1) % len(unique)]]

    problem = problem_along(results)
    sides = [problem.drop_vars(list(problem.coords)), results.drop_vars(list(results.coords))]
    sides = [side.chunk(dict.fromkeys(side.dims, -1)) if results.chunks is not None else side for side in sides]
    core = ["example", "step"]
    control: xr.DataArray = xr.apply_ufunc(
        shift,
        *sides,
        input_core_dims=[["example"], core],
        output_core_dims=[core],
        dask="parallelized",
        output_dtypes=[results.dtype],
    )
    return control


def _maps_of(tuned: xr.Dataset, state: xr.DataArray) -> list[xr.DataArray]:
    """Maps of the layers that are read, bare of labels."""
    missing = [x for x in labels_along(state, "layer") if x not in labels_along(tuned, "layer")]
    by_position = "position" in tuned["weight"].dims
    known = labels_along(tuned, "position") if by_position else labels_along(state, "position")
    if far := [x for x in labels_along(state, "position") if x not in known]:
        raise SchemaError(
            f"the {tuned.attrs.get('lens')} lens has no map at {', '.join(far)}; it has positions {', '.join(known)}"
        )
    if missing or tuned.sizes["hidden"] != state.sizes["hidden"]:
        raise SchemaError(
            f"the {tuned.attrs.get('lens', 'tuned')} lens of run {tuned.attrs.get('run')!r} has layers"
            f" {', '.join(labels_along(tuned, 'layer'))} of width {tuned.sizes['hidden']}; the states have layers"
            f" {', '.join(labels_along(state, 'layer'))} of width {state.sizes['hidden']}. Fit it on a run of the same"
            " model."
        )
    chosen = tuned.sel(layer=state["layer"].values)
    if by_position:
        chosen = chosen.sel(position=state["position"].values)
    return [chosen[name].drop_vars(list(chosen[name].coords)) for name in ("weight", "bias")]
