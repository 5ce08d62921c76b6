"""Effects of every thought on every later one and on the answer: total, and direct with what lies between held."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.graph.command import GraphSettings
from extract.reenter.graph.edges import with_edges
from extract.reenter.graph.similarity import graph_similarity
from extract.reenter.observe import COMPARED
from extract.reenter.sites import check_layers, self_controls
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from extract.reenter.values import StoredValues
from schemas import Intervention, UsageError, nearest
from schemas.problem_sums import problem_of
from schemas.scoring import is_value
from schemas.statistics import mean_share
from schemas.wording import interval_columns
from store.results import preferred

CHANGES: dict[str, dict[str, Any]] = {
    "mean": {"operation": "mean"},
    "resample": {"operation": "resample"},
    "noise": {"operation": "noise"},
    "alike": {"operation": "replace", "donor": "alike"},
    "twin": {"operation": "replace", "donor": "twin"},
}
"""What ``do`` puts in: the position's mean, another problem's value, noise on top, the value of a problem of the same
operators, that of the pair's twin."""
ANSWER = "answer"
TOTAL, DIRECT = "total", "direct"


@dataclass(frozen=True, slots=True)
class _Do:
    """A node changed, with or without holding later ones, and the edges that are read from it."""

    condition: Condition
    operation: str
    effect: str
    source: int
    targets: tuple[int, ...]

    @property
    def name(self) -> str:
        """That of the condition."""
        return self.condition.name


def thought_graph(target: Target, settings: GraphSettings | None = None) -> xr.Dataset:
    """Change each thought and measure every later one, and the answer.

    A node is a thought: the vector fed at it or, with ``layer``, the output of that block at it. It is measured by the
    state it was made of (for the output of a block, by the state at it), after the final norm, as the
    unembedding reads it.

    Parameters
    ----------
    settings
        By default every fed vector is set to its mean, exchanged for another problem's, and changed by noise.

    Returns
    -------
    xr.Dataset
        Of (``operation``, ``effect``, ``source``, ``target``, ``example``), NaN where the target is not later than the
        source: ``state_kl``, ``state_logprob_change``, ``state_flip``, ``state_cosine``, ``state_change`` as
        :data:`extract.reenter.observe.COMPARED` has them. At the target ``answer`` they are the divergence at the
        answer's first token, the change of the gold answer's log probability, whether another answer is given, and
        the state before the answer. ``effect`` is ``total``, what follows recomputed, or ``direct``: the nodes between
        source and target held at their stored values. Figures over examples as :func:`with_edges` gives them;
        ``self_kl(target)`` and ``held_kl(target)``, the largest divergence where every node is replaced by its own
        value of the same pass, and by its stored one; of drawn answers
        ``sample_flip(operation, effect, source, example)``, the share that differs from what the untouched run draws by
        the same numbers, and its mean over problems ``_mean`` with its interval ``_low``, ``_high``; with ``against``
        what :func:`extract.reenter.graph.similarity.graph_similarity` gives. ``reads_result(source)`` is the share of
        problems in which the likeliest token of the state by which a node is measured is a number (where answers are
        texts: begins a word of the steps or answers).

    Raises
    ------
    UsageError
        If there are not two nodes, or an operation or node is not there.
    """
    settings = settings or GraphSettings()
    nodes, layer = _nodes(target, settings.layer, settings.positions), settings.layer
    operations = operations_of(target, settings)
    other = None if settings.against is None else stored_graph(target, settings.against, nodes)
    place = _place(layer)
    changes = _changes(nodes, operations, place, settings.strength, settings.seed)
    labels = {"operation": "replace", "group": "all"}
    controls = self_controls(target, place["site"], -1 if layer is None else layer, nodes, labels)
    conditions = {change.condition.name: change.condition for change in changes}
    draws = settings.drawing(settings.seed)
    swept = target.sweep([*conditions.values(), *controls], observe=True, draws=draws)
    measured = _measured(target, swept, nodes, layer)
    axes: dict[str, list[str]] = {
        "operation": operations, "effect": [TOTAL, DIRECT], "source": nodes, "target": [*nodes, ANSWER],
    }  # fmt: skip
    values = by_edge({change.name: measured[change.condition.name] for change in changes}, changes, axes)
    attrs = {key: value for key, value in swept.attrs.items() if key != "rule"}
    out = labelled(values, axes, swept["example"].values, attrs)
    for name, control in zip(("self_kl", "held_kl"), controls, strict=True):
        out[name] = ("target", np.nanmax(measured[control.name][:, 0], axis=-1))
    middle = target.reasoner.places.middle
    read = [target.number_states(middle[middle.index(node) - (layer is None)]).mean() for node in nodes]
    out["reads_result"] = "source", np.array(read)
    problem = problem_of(target.data)
    if draws is not None:
        out = _with_drawn(out, swept, changes, problem, target)
    out = completed(out, settings, strata=target.strata, problem=problem, other=other)
    return out.assign_attrs(
        layer=-1 if layer is None else layer, **alike_share(target.values, operations, settings.seed)
    )


def operations_of(target: Target, settings: GraphSettings) -> list[str]:
    """What is done to each node: as the settings say, by default all but ``twin``; ``alike`` if operators are known."""
    if settings.operations is None:
        known = "operation" in target.data.variables and bool((target.data["operation"] != "").any())
        return ["mean", "resample", "noise", *(["alike"] if known else [])]
    if not settings.operations:
        raise UsageError("no operation is named; " + ", ".join(CHANGES) + " can be")
    return list(dict.fromkeys(settings.operations))


def alike_share(values: StoredValues, operations: Sequence[str], seed: int) -> dict[str, float]:
    """Share of problems whose ``alike`` donor has all of their operators; others share the beginning of them."""
    if "alike" not in operations:
        return {}
    donors, operators = values.donors(np.arange(values.run.sizes["example"]), "alike", seed), values.operators()
    return {"alike_share": float(np.mean([operators[row] == operators[donor] for row, donor in enumerate(donors)]))}


def _with_drawn(
    out: xr.Dataset, swept: xr.Dataset, changes: Sequence[_Do], problem: np.ndarray | None, target: Target
) -> xr.Dataset:
    """Add how many of the drawn answers a change makes others."""
    drawn, place = swept["sample_answer"].values, swept["condition"].values.tolist().index
    flip = _otherwise(target, drawn)  # (condition, sample, example)
    dims = ("operation", "effect", "source")
    share = np.full((*(out.sizes[dim] for dim in dims), out.sizes["example"]), np.nan)
    operations, effects = ([str(label) for label in out[dim].values] for dim in dims[:2])
    for change in changes:
        if out.sizes["source"] in change.targets:  # the answer stands after the last node
            cell = operations.index(change.operation), effects.index(change.effect), change.source
            share[cell] = flip[place(change.name)].mean(0)
    figures = interval_columns("sample_flip", mean_share(share, problem), "_mean")
    out = out.assign({name: (dims, value) for name, value in figures.items()})
    return out.assign(sample_flip=((*dims, "example"), share))


def completed(
    effects: xr.Dataset, settings: GraphSettings, *, strata: np.ndarray | None, problem: np.ndarray | None,
    other: xr.Dataset | None,
) -> xr.Dataset:  # fmt: skip
    """Figures over problems and, beside another graph, how like it is."""
    out = with_edges(
        effects, strata=strata, problem=problem, least=settings.least, n_null=settings.null_draws, seed=settings.seed
    )
    if problem is not None:
        out = out.assign_coords(problem=("example", problem))
    if other is not None:
        out = out.merge(graph_similarity(out, other, n_null=settings.null_draws, seed=settings.seed))
        out.attrs["against"] = settings.against
    return out


def stored_graph(target: Target, run: str, nodes: list[str]) -> xr.Dataset:
    """Stored graph of a run: of several, one of the same nodes, else one of as many, else that with fewest settings."""
    stored = (
        []
        if target.lake is None
        else preferred(result for result in target.lake.results("graph") if run in result.runs)
    )
    if target.lake is None or not stored:
        raise UsageError(f"the lake has no graph of {run}; run lake reenter graph on it first")
    graphs = [target.lake.open_result(result.name) for result in stored]
    as_many = [graph for graph in graphs if graph.sizes["source"] == len(nodes)]
    return next((graph for graph in as_many if graph["source"].values.tolist() == nodes), [*as_many, *graphs][0])


def labelled(
    values: np.ndarray, labels: Mapping[str, list[str]], example: np.ndarray, attrs: Mapping[str, Any]
) -> xr.Dataset:
    """Measures of every edge and example by name."""
    coords = {name: np.array(axis, dtype=object) for name, axis in labels.items()}
    dims = (*labels, "example")
    return xr.Dataset(
        {name: (dims, values[..., index, :], {"units": units}) for index, (name, units) in enumerate(COMPARED.items())},
        coords={**coords, "example": example},
        attrs=dict(attrs),
    )


def _nodes(target: Target, layer: int | None, positions: Sequence[str] | None) -> list[str]:
    """Names of the nodes, in order of time."""
    known = target.thoughts if layer is None else target.reasoner.places.middle
    nodes = list(dict.fromkeys(positions)) if positions else list(target.thoughts)
    if strangers := [node for node in nodes if node not in known]:
        raise UsageError(
            f"{strangers[0]!r} is no node of the graph of {target.run}; there are {', '.join(known) or 'none'}"
            + nearest(strangers[0], known)
        )
    check_layers(target, [] if layer is None else [layer])
    if not nodes:
        raise UsageError(f"{target.run} has no thoughts, so there is no graph between them")
    return sorted(nodes, key=target.reasoner.places.offset)


def _place(layer: int | None) -> dict[str, Any]:
    return {"site": "latent_embedding"} if layer is None else {"site": "hidden_state", "layers": (layer,)}


def _changes(
    nodes: Sequence[str], operations: Sequence[str], place: dict[str, Any], strength: float, seed: int
) -> list[_Do]:
    """Each node changed alone, and with those between it and each target held.

    A fed vector is measured before it is fed, so all later ones are held at once for all targets; the output of a block
    is measured at its own place, which is not to be held then.
    """
    n, changes = len(nodes), []
    for operation in operations:
        for source, node in enumerate(nodes):
            what = CHANGES[operation] | ({"strength": strength} if operation == "noise" else {})
            change = Intervention(positions=(node,), seed=seed, **what, **place)
            later = tuple(range(source + 1, n + 1))
            alone = Condition(name=f"{operation} {node}", interventions=(change,))
            changes += [_Do(alone, operation, TOTAL, source, later), _Do(alone, operation, DIRECT, source, later[:1])]
            together = [later[1:]] if place["site"] == "latent_embedding" else [(target,) for target in later[1:]]
            for targets in filter(None, together):
                held = tuple(nodes[source + 1 : targets[-1]])
                hold = Intervention(operation="replace", positions=held, **place)
                name = f"{operation} {node}, {'+'.join(held)} held"
                condition = Condition(name=name, interventions=(change, hold))
                changes.append(_Do(condition, operation, DIRECT, source, targets))
    return changes


def _measured(target: Target, measured: xr.Dataset, nodes: Sequence[str], layer: int | None) -> dict[str, np.ndarray]:
    """Measures ``(target, measure, example)`` of each condition, the answer's last."""
    middle = target.reasoner.places.middle
    # What is fed at a thought is measured by the state it was made of.
    read_at = [middle.index(node) - (layer is None) for node in nodes]
    states = np.stack([measured[name].values for name in COMPARED], axis=1)  # (condition, measure, position, example)
    states = np.concatenate([states[:, :, read_at], states[:, :, -1:]], axis=2).swapaxes(1, 2)
    logprob, predicted = measured["answer_logprob"].values[:, 0], measured["predicted_answer"].values
    states[:, -1, 0] = measured["kl"].values
    states[:, -1, 1] = logprob - logprob[:1]
    states[:, -1, 2] = _otherwise(target, predicted)
    return dict(zip(measured["condition"].values.tolist(), states, strict=True))


def _otherwise(target: Target, answers: np.ndarray) -> np.ndarray:
    """Which answers ``(condition, ...)`` are others than those of the first condition; none twice is the same."""
    none = ~is_value(answers)
    return np.asarray(~(target.scoring.equal(answers, answers[:1]) | (none & none[:1])))


def by_edge(measured: Mapping[str, np.ndarray], changes: Iterable[Any], labels: Mapping[str, list[str]]) -> np.ndarray:
    """Measures ``(operation, effect, source, target, measure, example)``; NaN where there can be no edge.

    ``measured`` has ``(target, measure, example)`` by the name of a change. A change has ``name``, ``operation``,
    ``effect``, ``source`` and ``targets`` (places among the nodes); those of no operation are left out.
    """
    n_measure, n_example = next(iter(measured.values())).shape[1:]
    values = np.full((*(len(axis) for axis in labels.values()), n_measure, n_example), np.nan)
    for change in changes:
        if change.operation:
            operation, effect = labels["operation"].index(change.operation), labels["effect"].index(change.effect)
            targets = list(change.targets)
            values[operation, effect, change.source, targets] = measured[change.name][targets]
    return values
