"""Mean Jacobians of later final states with respect to each place of the thoughts, and of a place to what made it."""

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from extract.reenter.batches import batch_errors
from extract.reenter.jacobian.command import JacobianSettings
from extract.reenter.jacobian.passes import Place, Tick, forward_sums, origin_sums
from extract.reenter.sites import check_layers
from extract.reenter.target import Target
from schemas import UsageError, fingerprint, nearest
from schemas.naming import FED
from schemas.problem_sums import problem_of
from schemas.statistics import split_problems

BATCH = 16
CHUNK = 64
"""Components whose gradients are computed at once."""


@dataclass(frozen=True, kw_only=True)
class JacobianPlan:
    """What mean Jacobians take."""

    n_example: int
    """Problems averaged over."""
    n_batch: int
    """Batches they are read in; every batch goes through all backward passes once."""
    n_backward: int
    """Backward passes of a batch, one for each component of a state."""
    n_byte: int
    """Bytes of the stored matrices; twice as many are held in memory."""
    seconds: float
    """On this machine, from the first passes; an upper estimate."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Labels of the result, and which places and states are behind them."""

    targets: tuple[str, ...]
    layers: tuple[int, ...]
    """Of the result, the vector fed (-1) first."""
    positions: tuple[str, ...]
    wanted: dict[Place, list[int]]
    """Offsets of the final states that a place is asked for."""
    cells: dict[tuple[int, Place], list[tuple[int, int, int]]]
    """Where in the result a final state's Jacobian from a place belongs."""
    origins: dict[Place, tuple[int, int]]
    prefix: list[int]


def mean_jacobian(target: Target, settings: JacobianSettings | None = None) -> xr.Dataset:
    """Average over problems how final states depend on what was at a place of the thoughts before them.

    A row of a Jacobian is one backward pass from a component of a final state through attention, blocks and the loop
    that feeds each thought from the state before. Cost: ``hidden`` backward passes for each state asked for and for
    each layer, for every batch of problems; memory: the result twice, and a batch.

    Returns
    -------
    xr.Dataset
        ``jacobian(target, layer, position, to, hidden)``: of component ``to`` of the final state with respect to
        component ``hidden`` of the place; NaN where the state does not come after the place. ``origin(layer, position,
        hidden, before)``: of the place itself with respect to the final state its thought was made of, taken halfway
        between two problems' states (see :func:`extract.reenter.jacobian.passes.origin_sums`). ``left_out(layer,
        position, hidden, other)``: covariance of what that mean leaves out of the place, ``E[(J - B) S (J - B)']`` over
        single examples' Jacobians ``J``, with ``B`` their mean and ``S`` the covariance of the states before; it takes
        how much Jacobians differ, not which state came with which. ``spread(target, layer,
        position)`` and ``origin_spread(layer, position)``: norm of the difference of two halves' means over that of
        their sum (0: the halves agree, 1: they have nothing in common). ``fit_example(fit)``: labels of the examples
        averaged over.

    Raises
    ------
    UsageError
        If the model has no thoughts, or a layer, position or target is not there.

    References
    ----------
    Gurnee et al., *Verbalizable Representations Form a Global Workspace in Language Models*, Transformer Circuits 2026,
    who sum over all later positions; here each has its own, and thoughts are differentiated through.
    """
    settings = settings or JacobianSettings()
    rows = _fit_rows(target, settings)
    sizes = _sizes(target, settings, rows)
    batches = _batches(target, rows)
    hidden = target.reasoner.hidden
    sums = np.zeros((2, *_cells_shape(sizes), hidden, hidden), dtype=np.float32)
    identity = fingerprint(
        {
            "weights": target.reasoner.fingerprint, "run": str(target.data.attrs.get("fingerprint", "")),
            "dtype": target.compute_dtype, "targets": list(sizes.targets), "layers": list(sizes.layers),
            "positions": list(sizes.positions), "batches": [list(map(int, part)) for part in batches],
        }
    )  # fmt: skip
    factors = _factors(target, sizes, rows)
    kept = None if target.folder is None else target.folder / f"{identity[:32]}.npz"
    taken, progress = _take_up(kept, sums), _Progress(target, len(batches), _n_backward(sizes, hidden))
    with target.reasoner.session():
        for number, part in enumerate(batches):
            if number >= taken:
                with batch_errors(len(part), "examples"):
                    for cell, components, gradient in _batch_sums(target, sizes, part, CHUNK, factors, progress):
                        sums[(number % 2, *cell, components)] += gradient
                _keep(kept, sums, number + 1)
            progress.finish(number)
    counts = [sum(map(len, batches[half::2])) for half in (0, 1)]
    return _labelled(target, sizes, sums, counts, rows, factors)


def jacobian_plan(target: Target, settings: JacobianSettings | None = None) -> JacobianPlan:
    """Estimate what :func:`mean_jacobian` takes, from two backward passes over a batch's longest way."""
    settings = settings or JacobianSettings()
    rows = _fit_rows(target, settings)
    sizes = _sizes(target, settings, rows)
    batches = _batches(target, rows)
    hidden = target.reasoner.hidden
    n_backward = _n_backward(sizes, hidden)
    last = max(offset for offset, _ in sizes.cells)
    wanted = {place: [last] for place in sizes.wanted}
    prompts = target.reasoner.prompts(target.data["question"].values[batches[0]])
    chunk = min(CHUNK, -(-hidden // 2))  # two at least: the first one's time has the way forward in it
    times = [time.perf_counter()]
    with target.reasoner.session():
        passes = forward_sums(target.reasoner, prompts, wanted, sizes.prefix, chunk)
        for _ in range(2):
            for _ in wanted:
                next(passes)
            times.append(time.perf_counter())
    way, backward = times[1] - times[0], times[2] - times[1]
    seconds = len(batches) * (way + -(-hidden // chunk) * (n_backward // hidden) * backward)
    n_byte = math.prod(_cells_shape(sizes)) * hidden * hidden * 4
    return JacobianPlan(
        n_example=len(rows), n_batch=len(batches), n_backward=n_backward, n_byte=n_byte, seconds=seconds
    )


class _Progress:
    """Tells of backward passes, one for each row of a Jacobian: where layers are many a batch of them takes long."""

    def __init__(self, target: Target, n_batch: int, n_backward: int) -> None:
        self.report, self.n_backward, self.total, self.done = target.report, n_backward, n_batch * n_backward, 0

    def __call__(self, n: int) -> None:
        """So many more are done."""
        self.done = min(self.done + n, self.total)
        self.report(self.done, self.total)

    def finish(self, batch: int) -> None:
        """All of a batch are done, or need not be."""
        self(max(0, (batch + 1) * self.n_backward - self.done))


def _n_backward(sizes: _Sizes, hidden: int) -> int:
    """Backward passes of a batch, at most: one for each component of a state that is differentiated."""
    return hidden * (len({offset for offset, _ in sizes.cells}) + (len(sizes.layers) if sizes.origins else 0))


def _fit_rows(target: Target, settings: JacobianSettings) -> np.ndarray:
    """Rows of the examples averaged over: one of each problem, at random from those that lenses are fitted on."""
    target.need_thoughts("jacobian")
    problem = problem_of(target.data)
    first = np.unique(problem, return_index=True)[1]
    fitted = np.sort(first[split_problems(problem, settings.seed)[first] == 0])
    if len(fitted) < 2:
        raise UsageError(
            f"{target.run} has {len(first)} problems; a mean over seven in ten of them, with halves to compare, needs 3"
        )
    return np.random.default_rng(settings.seed).permutation(fitted)[: settings.fit]


def _batches(target: Target, rows: np.ndarray) -> list[np.ndarray]:
    """Rows of each batch; of even number where there are two at least, so that halves can be compared."""
    return np.array_split(rows, max(2, -(-len(rows) // (target.batch_rows or BATCH))))


def _sizes(target: Target, settings: JacobianSettings, rows: np.ndarray) -> _Sizes:
    """Check what is asked for, and find the places and states behind it."""
    reasoner, targets, layers = target.reasoner, settings.targets, settings.layers
    middle = list(reasoner.places.middle)
    chosen = list(settings.positions or middle)
    for position in chosen:
        if position not in middle:
            raise UsageError(f"position {position!r} is not one of {', '.join(middle)}{nearest(position, middle)}")
    blocks = target.layers if layers is None else layers
    check_layers(target, blocks)
    gold = [str(text) for text in target.data["gold_answer"].values[rows]]
    prefix = reasoner.answer_tokens(gold[0])[: reasoner.answer_start(*gold)] if "answer" in targets else []
    ordered = (FED, *blocks)
    wanted: dict[Place, list[int]] = {}
    cells: dict[tuple[int, Place], list[tuple[int, int, int]]] = {}
    origins: dict[Place, tuple[int, int]] = {}
    for j, layer in enumerate(ordered):
        for k, position in enumerate(chosen):
            offset = reasoner.places.offset(position)
            if layer == FED and not 1 <= offset <= reasoner.n_latent:
                continue
            if 1 <= offset <= reasoner.n_latent:
                origins[layer, offset] = j, k
            for i, name in enumerate(targets):
                state = _state_of(name, offset, middle, len(prefix))
                if state is not None and state >= offset:
                    cells.setdefault((state, (layer, offset)), []).append((i, j, k))
                    if state not in wanted.setdefault((layer, offset), []):
                        wanted[layer, offset].append(state)
    if not cells:
        raise UsageError(f"none of the states {', '.join(targets)} comes after any of {', '.join(chosen)}")
    return _Sizes(
        targets=tuple(targets), layers=ordered, positions=tuple(chosen), wanted=wanted, cells=cells, origins=origins,
        prefix=prefix,
    )  # fmt: skip


def _state_of(name: str, offset: int, middle: list[str], n_prefix: int) -> int | None:
    """Offset from ``bot`` of a target's final state, seen from a place; ``None`` where there is none."""
    if name == "self":
        return offset
    if name == "next":
        return offset + 1 if offset + 1 < len(middle) else None
    if name == "answer":
        return len(middle) - 1 + n_prefix
    if name in middle:
        return middle.index(name)
    known = ("next", "self", "answer", *middle)
    raise UsageError(f"target {name!r} is not one of {', '.join(known)}{nearest(name, known)}")


def _cells_shape(sizes: _Sizes) -> tuple[int, int, int]:
    """Targets and, as the last two, the origin and what it makes of the states before; layers; positions."""
    return len(sizes.targets) + 2, len(sizes.layers), len(sizes.positions)


def _factors(target: Target, sizes: _Sizes, rows: np.ndarray) -> dict[int, np.ndarray]:
    """For each thought a factor (hidden, rank) of the covariance ``F F'`` of the states that thoughts are made of."""
    factors = {}
    for offset in {offset for _, offset in sizes.origins}:
        before = target.data["final_state"].sel(position=target.reasoner.places.middle[offset - 1])
        state = np.asarray(before.isel(example=np.sort(rows)).values, dtype="float64")
        _, lengths, directions = np.linalg.svd(state - state.mean(0), full_matrices=False)
        factors[offset] = (directions.T * lengths / np.sqrt(len(state) - 1)).astype("float32")
    return factors


def _batch_sums(
    target: Target, sizes: _Sizes, rows: np.ndarray, chunk: int, factors: dict[int, np.ndarray], tick: Tick
) -> Iterator[tuple[tuple[int, int, int], slice, np.ndarray]]:
    """Cells of the result, components and what a batch of examples adds to them."""
    reasoner = target.reasoner
    prompts = reasoner.prompts(target.data["question"].values[rows])
    for state, place, components, gradient in forward_sums(reasoner, prompts, sizes.wanted, sizes.prefix, chunk, tick):
        for cell in sizes.cells.get((state, place), []):
            yield cell, components, gradient.float().cpu().numpy()
    offsets = sorted({offset for _, offset in sizes.origins})
    if not offsets:
        return
    origin, made = len(sizes.targets), len(sizes.targets) + 1
    carried: dict[Place, list[torch.Tensor]] = {}
    for place, components, gradient in origin_sums(reasoner, prompts, sizes.layers, offsets, chunk, tick):
        yield (origin, *sizes.origins[place]), components, gradient.sum(1).float().cpu().numpy()
        factor = torch.as_tensor(factors[place[1]], device=gradient.device, dtype=gradient.dtype)
        carried.setdefault(place, []).append(gradient @ factor)  # (component, row, rank)
        if components.stop == reasoner.hidden:
            whole = torch.cat(carried.pop(place)).flatten(1)
            yield (made, *sizes.origins[place]), slice(0, reasoner.hidden), (whole @ whole.T).float().cpu().numpy()


def _take_up(path: Path | None, sums: np.ndarray) -> int:
    """Fill in sums that were kept, if they are there and whole; batches they hold."""
    if path is None or not path.is_file():
        return 0
    try:
        with np.load(path) as kept:
            kept_sums, done, digest = kept["sums"], int(kept["done"]), str(kept["digest"])
    except (OSError, ValueError, KeyError, EOFError):
        return 0
    if kept_sums.shape != sums.shape or hashlib.sha256(kept_sums.tobytes()).hexdigest() != digest:
        return 0
    sums[:] = kept_sums
    return done


def _keep(path: Path | None, sums: np.ndarray, done: int) -> None:
    """Write sums to a file, whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, sums=sums, done=done, digest=hashlib.sha256(sums.tobytes()).hexdigest())
    partial.replace(path)


def _labelled(
    target: Target, sizes: _Sizes, sums: np.ndarray, counts: list[int], rows: np.ndarray, factors: dict[int, np.ndarray]
) -> xr.Dataset:
    """Means of both halves together, how far they are apart, and what the origins' mean leaves out."""
    there = np.zeros(_cells_shape(sizes), dtype=bool)
    for cells in sizes.cells.values():
        for cell in cells:
            there[cell] = True
    for origin in sizes.origins.values():
        there[(-2, *origin)] = there[(-1, *origin)] = True
    apart = np.linalg.norm(sums[0] / counts[0] - sums[1] / counts[1], axis=(-2, -1))
    both = np.linalg.norm(sums[0] / counts[0] + sums[1] / counts[1], axis=(-2, -1))
    spread = np.divide(apart, both, out=np.full(there.shape, np.nan), where=there & (both > 0))
    mean = sums.sum(0) / np.float32(sum(counts))
    mean[~there] = np.nan
    for (_, offset), origin in sizes.origins.items():
        explained = mean[(-2, *origin)] @ factors[offset]
        mean[(-1, *origin)] -= explained @ explained.T
    place = ("layer", "position")
    return xr.Dataset(
        {
            "jacobian": (("target", *place, "to", "hidden"), mean[:-2], {"units": "1"}),
            "origin": ((*place, "hidden", "before"), mean[-2], {"units": "1"}),
            "left_out": ((*place, "hidden", "other"), mean[-1], {"units": "1"}),
            "spread": (("target", *place), spread[:-2], {"units": "1"}),
            "origin_spread": (place, spread[-2], {"units": "1"}),
            "fit_example": ("fit", target.data["example"].values[rows]),
        },
        coords={
            "target": np.array(sizes.targets, dtype=object),
            "layer": np.array(sizes.layers),
            "position": np.array(sizes.positions, dtype=object),
        },
        attrs={"n_example": len(rows)},
    )
