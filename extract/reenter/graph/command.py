"""``lake reenter graph``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from extract.reenter.settings import DrawnSettings
from extract.reenter.tables import drawn_cells, p_text
from schemas import UsageError
from schemas.command import Experiment, Printed, Table, setting
from schemas.wording import interval_names, interval_text, or_dash

if TYPE_CHECKING:
    import xarray as xr

    from extract.reenter.target import Target


READS = 0.5
"""Share of problems in which a node must read as a result to be called one that carries it."""


@dataclass(frozen=True, kw_only=True)
class GraphSettings(DrawnSettings):
    """What is done to each thought, and what counts as an edge."""

    operations: tuple[Literal["mean", "resample", "noise", "alike", "twin"], ...] | None = setting(
        None,
        "What a thought becomes: its mean, that of another problem (resample), itself with noise, that of a problem of"
        " the same operators, so that only numbers differ (alike), that of the pair's twin; by default all but the"
        " last, alike where the run has its problems' operators.",
    )
    layer: int | None = setting(
        None, "The thought is the output of this block at its place; by default the vector fed there.", metavar="N"
    )
    positions: tuple[str, ...] | None = setting(
        None,
        "Thoughts that are nodes, by default all; of a model that writes its chain its steps, as step1,step3, by"
        " default those that half of its answers have.",
        metavar="ct1,ct3..",
    )
    strength: float = setting(
        1.414,
        "Strength of noise, in standard deviations of each component; the default is as long as the way from one"
        " problem's thought to another's.",
    )
    least: float = setting(
        0.25, "Least share of problems in which an edge's target reads otherwise, by the lower end of its interval.",
        least=0,
    )  # fmt: skip
    null_draws: int = setting(2000, "Draws of the shuffled order.", least=1)
    against: str | None = setting(None, "Run with whose stored graph this one's is compared.", metavar="RUN")
    seed: int = setting(0, "Seed of everything random.", least=0)

    def __post_init__(self) -> None:
        """Refuse a share that nothing can be above."""
        super().__post_init__()
        if self.least >= 1:
            raise UsageError(f"--least is {self.least:g}; it is a share of the problems, below 1")


def run(target: "Target", settings: GraphSettings) -> "xr.Dataset":
    """Change each thought, or step of a written chain, and measure every later one, and the answer."""
    from extract.reenter.graph.chain import chain_graph
    from extract.reenter.graph.effects import thought_graph

    return thought_graph(target, settings) if target.thoughts else chain_graph(target, settings)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Edges, total and direct, of each operation; effects below them; how like another graph it is."""
    printed: list[Printed] = [_effects(result)]
    if "sample_flip" in result:
        printed.append(_drawn(result))
    if "similarity" in result:
        printed.append(_similarity(result))
    for operation in result["operation"].values:
        for effect in result["effect"].values:
            edges = edge_names(result, operation, effect)
            line = f"{effect} edges by {operation}: {_with_shares(result, operation, effect, edges)}"
            wordy = wordy_nodes(result)
            carried = [edge for edge in edges if wordy.isdisjoint(edge.split(" > "))]
            if len(carried) < len(edges):
                line += f"; between those that read as results: {', '.join(carried) or 'none'}"
            printed.append(line)
    printed += _plan_edges(result)
    held = float(result["held_kl"].max())
    printed.append(f"with every node held at its stored value nothing changes by more than {held:.1e} nats")
    return printed


def wordy_nodes(result: Any) -> set[str]:
    """Nodes that read as a result in few problems: as no number or, where answers are texts, no word of theirs."""
    if "reads_result" not in result:
        return set()
    share = result["reads_result"]
    return {str(node) for node in share["source"].values if float(share.sel(source=node)) < READS}


def edge_names(result: Any, operation: str, effect: str) -> list[str]:
    """Edges as ``ct1 > ct3``."""
    table = result["edge"].sel(operation=operation, effect=effect, stratum="all")
    return [
        f"{source} > {target}"
        for source in table["source"].values
        for target in table["target"].values
        if bool(table.sel(source=source, target=target))
    ]


def _with_shares(result: Any, operation: str, effect: str, edges: Sequence[str]) -> str:
    """Edges, each with the share of problems in which its target reads otherwise."""
    share = result["state_flip_mean"].sel(operation=operation, effect=effect, stratum="all")
    ends = [edge.split(" > ") for edge in edges]
    named = [f"{source} > {end} ({float(share.sel(source=source, target=end)):.2f})" for source, end in ends]
    return ", ".join(named) or "none"


def _plan_edges(result: Any) -> list[Printed]:
    """Which direct edges say what is to be done, not with which numbers: they are gone where only numbers change."""
    operations = [str(each) for each in result["operation"].values]
    if "alike" not in operations or "resample" not in operations:
        return []
    high = result["state_flip_high"].sel(operation="alike", effect="direct", stratum="all")
    gone = [
        edge
        for edge, (source, end) in ((edge, edge.split(" > ")) for edge in edge_names(result, "resample", "direct"))
        if float(high.sel(source=source, target=end)) < result.attrs["least"]
    ]
    how = (
        "alike: the thought of another problem with the same operators is put in; for"
        f" {result.attrs['alike_share']:.0%} of the problems there is one with all of them, for the others one that"
        " shares the longest beginning"
    )
    if not gone:
        return [how]
    shares = [_with_shares(result, operation, "direct", gone) for operation in ("resample", "alike")]
    return [
        how,
        f"edges that depend on the operators, not on the numbers: {shares[0]} by resample, but {shares[1]} by alike,"
        " which changes the numbers only",
    ]


def _effects(result: Any) -> Table:
    part = result.sel(stratum="all")
    rows = [
        _row(part.sel(operation=operation, source=source, target=target))
        for operation in result["operation"].values
        for index, source in enumerate(result["source"].values)
        for target in result["target"].values[index + 1 :]
    ]
    columns = [
        "operation", "from > to", "total: reads otherwise 95%", "KL", "direct: reads otherwise 95%", "KL", "even",
        "shuffled", "p Holm", "",
    ]  # fmt: skip
    caption = (
        "share of problems in which the target's read-out (of the answer: the answer) changes; KL: nat, of the answer"
        " at its first token; even: the share if the source's direct effect were spread evenly over all later thoughts;"
        " shuffled: the share if each problem's effects were dealt to its edges at random"
    )
    return Table(title="", columns=columns, rows=rows, caption=caption, labels=2)


def _row(edge: Any) -> list[str]:
    """Total and direct effect of one thought on one later."""
    total, direct = edge.sel(effect="total"), edge.sel(effect="direct")
    name = f"{edge['source'].item()} > {edge['target'].item()}"
    return [
        str(edge["operation"].item()), name, *_cells(total), *_cells(direct), or_dash(direct['even_flip'], ".2f"),
        or_dash(direct['shuffled_flip'], ".2f"), p_text(direct["p_holm"]), "edge" if bool(direct["edge"]) else "",
    ]  # fmt: skip


def _cells(line: Any) -> list[str]:
    return [interval_text(line, "state_flip", "_mean", ".2f"), or_dash(line["state_kl_mean"], ".2f")]


def _drawn(result: Any) -> Table:
    """Drawn answers that are others than the untouched run draws."""
    rows = [
        [str(operation), f"{source} > answer", *(
            drawn_cells(result.sel(operation=operation, source=source, effect=effect), "sample_flip")[0]
            for effect in result["effect"].values
        )]
        for operation in result["operation"].values
        for source in result["source"].values
    ]  # fmt: skip
    columns = ["operation", "from > to", *(f"{effect}: drawn otherwise 95%" for effect in result["effect"].values)]
    caption = "share of drawn answers that differ from those drawn with the same random numbers without the change"
    return Table(title="drawn answers", columns=columns, rows=rows, labels=2, caption=caption)


def _similarity(result: Any) -> Table:
    rows = []
    for operation in result["operation"].values:
        for effect in result["effect"].values:
            one = result.sel(operation=operation, effect=effect)
            ranks = [or_dash(one[name]) for name in interval_names("rank_correlation")]
            cosines = [or_dash(one[name]) for name in ("similarity", "even_similarity")]
            rows.append(
                [
                    str(operation), str(effect), f"{ranks[0]} [{ranks[1]}, {ranks[2]}]",
                    p_text(one["rank_correlation_p"]), cosines[0], p_text(one["similarity_p"]), cosines[1],
                    or_dash(one["jaccard"]),
                ]
            )  # fmt: skip
    columns = [
        "operation", "effect", "rank correlation 95%", "p", "cosine", "p", "cosine with even", "edges in common",
    ]  # fmt: skip
    caption = "of the shares of problems, edge by edge; p: as high when the other graph's shares are dealt to any edge"
    return Table(title=f"beside {result.attrs['against']}", columns=columns, rows=rows, labels=2, caption=caption)


COMMAND = Experiment(
    name="graph",
    help="Change each thought (or written step) and measure every later one and the answer: which acts on which.",
    settings=GraphSettings,
    run=run,
    results={"graph": tables},
)
