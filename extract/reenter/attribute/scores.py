"""Attribution patching: what parts of a clean problem would do in a corrupted one, to first order, and what they do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from extract.reenter.attribute.command import AttributeSettings
from extract.reenter.attribute.curves import Curves
from extract.reenter.attribute.kernels import PATCHED_ROWS, patch_nodes, score_batch
from extract.reenter.attribute.pairs import Nodes, nodes_of, pairs_to_score
from extract.reenter.batches import batch_errors
from extract.reenter.kept import Kept
from extract.reenter.target import Target
from schemas import fingerprint
from schemas.resampling import draw_counts, mean_interval, percentiles, way_interval
from schemas.wording import interval_columns, interval_names

BATCH = 16
N_RESAMPLE = 200
"""Draws of pairs for the interval of a rank correlation."""
Values = dict[str, np.ndarray]


def attribute(target: Target, settings: AttributeSettings | None = None) -> xr.Dataset:
    """Score nodes and edges by attribution patching, and check the scores against patching itself.

    A node's score is the change of its value from the corrupted to the clean half of a pair, times the gradient of the
    logit difference (clean answer less corrupted one) in the corrupted half. One pass forward and backward goes through
    the question, all thoughts and what both answers begin with. Nodes are the vectors fed and the outputs of heads and
    MLPs at every position from ``bot`` to where the answers part. An edge's score is what a node's change does through
    one reader of the residual stream: attention (all heads) or the MLP of a later layer, or the final norm, which leads
    to the next thought or the answer. The scores of the edges out of a node add up to the node's score.

    Parameters
    ----------
    target
        Run over clean/corrupted pairs, and model.
    settings
        With more than one step, gradients are taken at the middles of as many steps from the corrupted question's
        embeddings to the clean one's (EAP-IG); pairs whose questions differ in length are then left out.

    Returns
    -------
    xr.Dataset
        ``score(node)`` in logits, mean over pairs, with bootstrap intervals ``score_low``, ``score_high``;
        ``exact(node)`` with its own: what patching does (NaN: not patched), and ``exact_share(node)``, the same as a
        share of what patching all nodes does in the half that curves are measured on; coordinates ``kind``
        (``fed``, ``head``, ``mlp``), ``layer``, ``head``, ``position`` of a node. ``edge_score(edge)`` with
        ``sender(edge)`` (a node), ``reader``, ``reader_layer``. ``kept(size)``: what patching the best nodes alone
        moves the logit difference by (faithfulness), and ``left(size)``: all but these (completeness: how little is
        left without them), both as shares of what all nodes do; ``kept_random``, ``left_random`` with ``_low`` and
        ``_high``: as many nodes at random. Nodes are ranked on one half of the problems and curves measured on the
        other. ``attrs``: ``spearman`` of scores and exact effects over the nodes patched, with its interval
        ``spearman_low``, ``spearman_high``; ``residual``: how far the scores of the question's embeddings are from
        adding up to the difference between the halves, on average, over the mean difference (questions of one length
        only); counts of the pairs that do not count.

    Raises
    ------
    UsageError
        If fewer than two pairs can be scored.

    References
    ----------
    Syed et al., *Attribution Patching Outperforms Automated Circuit Discovery*, 2023; Hanna et al., *Have Faith in
    Faithfulness*, 2024 (EAP-IG).
    """
    settings = settings or AttributeSettings()
    steps, seed = settings.steps, settings.seed
    target.need_thoughts("attribute")
    pairs = pairs_to_score(target, one_length=steps > 1)
    nodes = nodes_of(target, pairs.n_place)
    rng = np.random.default_rng(seed)
    tried = np.sort(rng.permutation(len(nodes))[: settings.exact])
    batches = pairs.batches(target.batch_rows or BATCH)
    reasoner = target.reasoner
    identity = {
        "weights": reasoner.fingerprint, "run": str(target.data.attrs.get("fingerprint", "")), "steps": steps,
        "pairs": [pairs.clean.tolist(), pairs.corrupted.tolist()], "dtype": target.compute_dtype,
        "tried": tried.tolist(), "n_random": settings.random, "seed": seed,
    }  # fmt: skip
    keep = Kept(target.folder, fingerprint(identity))

    scores = _each_batch(
        target, keep, "scores", batches,
        lambda part: score_batch(reasoner, nodes, *pairs.halves(part), steps, tried),
    )  # fmt: skip
    score = np.concatenate([score["score"] for score in scores])
    order = np.concatenate(batches)
    problem = pairs.problem[order]
    ranking = np.unique(problem, return_inverse=True)[1] % 2 == 0
    best = np.argsort(-np.abs(score[ranking].mean(0)), kind="stable")
    curves = Curves(len(nodes), best, settings.random, rng)
    others = [np.array([x for x in part if x in order[~ranking]], dtype=int) for part in batches]
    moved = _each_batch(
        target, keep, "curves", [part for part in others if len(part)],
        lambda part: {"moved": patch_nodes(reasoner, nodes, *pairs.halves(part), curves.chosen)},
    )  # fmt: skip
    shifts = np.concatenate([pair["moved"] for pair in moved], axis=1)
    shift, whole = shifts.mean(1), np.full(len(order), np.nan)
    whole[~ranking] = shifts[-1]
    out = _labelled(target, nodes, scores, tried, whole, problem, seed).merge(curves.measured(shift))
    return out.assign_attrs(**pairs.counts, steps=steps, seed=seed, all_nodes=float(shift[-1]), **_completeness(scores))


@dataclass(frozen=True, kw_only=True)
class AttributePlan:
    """What scores and their checks take."""

    n_pair: int
    n_node: int
    n_pass: int
    """Passes forward and backward for the scores, of one pair each."""
    n_patched: int
    """Passes forward for exact effects and subgraphs, of one pair each."""
    seconds: float
    """On this machine, from the first batch."""


def attribute_plan(target: Target, settings: AttributeSettings | None = None) -> AttributePlan:
    """Estimate what :func:`attribute` takes, from the scores of a batch and a few patched nodes."""
    settings = settings or AttributeSettings()
    pairs = pairs_to_score(target, one_length=settings.steps > 1)
    nodes, reasoner = nodes_of(target, pairs.n_place), target.reasoner
    part = pairs.batches(target.batch_rows or BATCH)[0]
    halves = pairs.halves(part)
    n_tried = max(1, PATCHED_ROWS // len(part))
    chosen = np.eye(len(nodes), dtype=bool)[:n_tried]
    times = [time.perf_counter()]
    with reasoner.session():
        score_batch(reasoner, nodes, *halves, 1, np.arange(1))
        times.append(time.perf_counter())
        patch_nodes(reasoner, nodes, *halves, chosen)
        times.append(time.perf_counter())
    n_pair = len(pairs.clean)
    n_condition = len(Curves(len(nodes), np.arange(len(nodes)), settings.random, np.random.default_rng(0)).chosen)
    n_patched = n_pair * min(settings.exact, len(nodes)) + n_pair // 2 * n_condition
    score, patched = (times[1] - times[0]) / len(part), (times[2] - times[1]) / len(part) / len(chosen)
    return AttributePlan(
        n_pair=n_pair, n_node=len(nodes), n_pass=n_pair * settings.steps, n_patched=n_patched,
        seconds=n_pair * settings.steps * score + n_patched * patched,
    )  # fmt: skip


def _each_batch(
    target: Target, keep: Kept, name: str, batches: Sequence[np.ndarray],
    compute: Callable[[np.ndarray], Values],
) -> list[Values]:  # fmt: skip
    """Values of each batch of pairs: those kept before, or computed and kept."""
    by_batch, done, total = [], 0, sum(map(len, batches))
    with target.reasoner.session():
        for number, part in enumerate(batches):
            holds = {"pairs": [int(index) for index in part]}
            with batch_errors(len(part), "pairs"):
                by_batch.append(keep.get(f"{name}-{number:05d}", holds, partial(compute, part)))
            done += len(part)
            target.report(done, total)
    return by_batch


def _completeness(batches: Sequence[Values]) -> dict[str, float]:
    """What scores of the question's embeddings lack to the difference between the halves, and that difference."""
    residual, gap = (np.concatenate([curve[name] for curve in batches]) for name in ("residual", "gap"))
    known = np.isfinite(residual)
    share = np.abs(residual[known]).mean() / np.abs(gap[known]).mean() if known.any() else np.nan
    return {"residual": float(share), "difference": float(gap.mean())}


def _labelled(
    target: Target, nodes: Nodes, batches: Sequence[Values], tried: np.ndarray, whole: np.ndarray, problem: np.ndarray,
    seed: int,
) -> xr.Dataset:  # fmt: skip
    """Means and intervals by node, edges with their ends, rank correlation of scores and exact effects."""
    score, exact = (np.concatenate([batch[name] for batch in batches]) for name in ("score", "exact"))
    effect, share = np.full((2, 3, len(nodes)), np.nan)
    effect[:, tried] = mean_interval(exact.T, seed, problem)
    share[:, tried] = way_interval(exact.T, np.zeros_like(whole), whole, seed, problem)
    edges = np.sum([batch["edges"] for batch in batches], axis=0) / len(score)
    reader, sender, position = (axis.ravel() for axis in np.indices(edges.shape))
    node = nodes.senders(sender, position)
    there = np.flatnonzero((node >= 0) & (edges.ravel() != 0))
    kinds = np.array([*["attention", "mlp"] * target.reasoner.n_layer, "final"], dtype=object)
    columns = interval_columns("score", mean_interval(score.T, seed, problem)) | interval_columns("exact", effect)
    shares = interval_columns("exact_share", share)
    return xr.Dataset(
        {
            **{name: ("node", column, {"units": "logit"}) for name, column in columns.items()},
            **{name: ("node", column, {"units": "1"}) for name, column in shares.items()},
            "edge_score": ("edge", edges.ravel()[there], {"units": "logit"}),
            "sender": ("edge", node[there]),
        },
        coords={
            **{name: ("node", getattr(nodes, name)) for name in ("kind", "layer", "head", "position")},
            "reader": ("edge", kinds[reader[there]]),
            "reader_layer": ("edge", reader[there] // 2),
        },
        attrs=_rank_correlation(score[:, tried], exact, problem, seed),
    )


def _rank_correlation(score: np.ndarray, exact: np.ndarray, problem: np.ndarray, seed: int) -> dict[str, float]:
    """Spearman's over nodes of mean scores and effects ``(pair, node)``, and its 95% interval over problems."""
    if score.shape[1] < 3:
        return dict.fromkeys(interval_names("spearman"), float("nan"))
    counts = draw_counts(problem, n_resample=N_RESAMPLE, seed=seed).T
    # A rank is of a sum as it is of a mean.
    values = [float(spearmanr(drawn @ score, drawn @ exact).statistic) if drawn.any() else np.nan for drawn in counts]
    low, high = percentiles(np.array(values), len(np.unique(problem)))
    value = float(spearmanr(score.mean(0), exact.mean(0)).statistic)
    return interval_columns("spearman", (value, float(low), float(high)))
