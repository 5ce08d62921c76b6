"""Pairs that can be scored, and the nodes of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from extract.reenter.answers import Apart, answers_apart
from extract.reenter.attribute.passes import Asked, Parts, lay_out
from extract.reenter.batches import by_length
from extract.reenter.patching.experiment import pairs_of
from extract.reenter.target import Target
from schemas import UsageError
from schemas.naming import FED


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Clean and corrupted halves whose answers can be told apart."""

    target: Target
    clean: np.ndarray
    """Rows of the run ``(pair,)``."""
    corrupted: np.ndarray
    prompts: list[list[int]]
    """Of all rows of the run."""
    answers: list[Apart]
    """The two answers of each pair."""
    counts: dict[str, int]
    """How many pairs do not count, and why."""

    @property
    def problem(self) -> np.ndarray:
        """Problem of each pair ``(pair,)``."""
        data = self.target.data
        problem = np.asarray(data["problem"].values if "problem" in data.coords else data["pair"].values)
        return np.asarray(problem[self.corrupted])

    @property
    def n_place(self) -> int:
        """Tokens read of the longest answer before it parts from the other."""
        return max(len(answer.begin) for answer in self.answers)

    def halves(self, part: np.ndarray) -> tuple[Asked, Asked]:
        """Clean and corrupted halves of some pairs, laid out."""
        asked = [self.answers[index] for index in part]
        one, other = ([self.prompts[rows[index]] for index in part] for rows in (self.clean, self.corrupted))
        reasoner = self.target.reasoner
        return lay_out(reasoner, one, asked, self.n_place), lay_out(reasoner, other, asked, self.n_place)

    def batches(self, size: int) -> list[np.ndarray]:
        """Pairs of each batch, of similar length."""
        return [np.array(part) for part in by_length([self.prompts[row] for row in self.corrupted], size)]


def pairs_to_score(target: Target, *, one_length: bool) -> Pairs:
    """Pairs of a run that count and whose answers part; ``one_length``: only those whose questions are equally long.

    Raises
    ------
    UsageError
        If fewer than two problems are left.
    """
    halves = pairs_of(target)
    clean, corrupted = halves.clean, halves.corrupted
    reasoner = target.reasoner
    gold = [str(text) for text in target.data["gold_answer"].values]
    prompts = reasoner.prompts(target.data["question"].values)
    answers = answers_apart(reasoner, [(gold[a], gold[b]) for a, b in zip(clean, corrupted, strict=True)])
    apart = np.array([answer.other >= 0 for answer in answers])
    same = np.array([len(prompts[a]) == len(prompts[b]) for a, b in zip(clean, corrupted, strict=True)])
    used = np.flatnonzero(apart & (same | (not one_length)))
    counts = halves.counts | {
        "n_same_tokens": int((~apart).sum()),
        "n_two_lengths": int((~same).sum()),
        "n_used": len(used),
        "n_example": len(used),
    }
    if len(used) < 2:
        raise UsageError(
            f"{target.run} has {len(used)} pairs to score: of {len(clean)} that count, {counts['n_same_tokens']} have"
            f" answers of the same tokens and {counts['n_two_lengths']} have questions of two lengths, which only"
            " --steps 1 can score"
        )
    pairs = Pairs(
        target=target, clean=clean[used], corrupted=corrupted[used], prompts=prompts,
        answers=[answers[index] for index in used], counts=counts,
    )  # fmt: skip
    if len(np.unique(pairs.problem)) < 2:
        raise UsageError(
            f"all {len(used)} pairs of {target.run} are of one problem; nodes are ranked on some and judged on others"
        )
    return pairs


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Labels of the nodes, in the order of the parts: all fed vectors, then heads, then MLPs."""

    kind: np.ndarray
    layer: np.ndarray
    head: np.ndarray
    position: np.ndarray
    shapes: dict[str, tuple[int, ...]]
    """Of each part, what is there for a row."""

    def __len__(self) -> int:
        """How many."""
        return len(self.kind)

    def masks(self, chosen: np.ndarray, n_row: int, device: torch.device) -> Parts:
        """Nodes chosen ``(condition, node)`` as masks of parts, each for ``n_row`` rows side by side."""
        rows = torch.from_numpy(np.repeat(chosen, n_row, axis=0)).to(device)
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        split = zip(self.shapes.items(), torch.split(rows, sizes, dim=1), strict=True)
        return Parts(**{name: part.view(len(rows), *shape) for (name, shape), part in split})

    def flat(self, parts: Parts) -> Tensor:
        """One number for each node ``(row, node)``."""
        return torch.cat([getattr(parts, name).flatten(1) for name in self.shapes], dim=1)

    def senders(self, sender: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Nodes of the senders of :func:`extract.reenter.attribute.kernels.edge_sums`; -1 where none is there."""
        (n_latent,), (_, n_position, n_head), _ = self.shapes.values()
        layer, within = np.divmod(sender - 1, n_head + 1)
        head = n_latent + (layer * n_position + position) * n_head + within
        mlp = n_latent + int(np.prod(self.shapes["head_output"])) + layer * n_position + position
        fed = np.where((position >= 1) & (position <= n_latent), position - 1, -1)
        return np.asarray(np.where(sender == 0, fed, np.where(within < n_head, head, mlp)))


def nodes_of(target: Target, n_place: int) -> Nodes:
    """All nodes of a model, from ``bot`` to the last of ``n_place`` tokens that are read of the answers."""
    reasoner = target.reasoner
    positions: Sequence[str] = reasoner.places.labels(0, n_place)
    n_layer, n_head, n_position = reasoner.n_layer, reasoner.n_head, len(positions)
    heads, mlps = (n_layer, n_position, n_head), (n_layer, n_position)
    layer, position, head = (axis.ravel() for axis in np.indices(heads))
    mlp_layer, mlp_position = (axis.ravel() for axis in np.indices(mlps))
    names, n_fed = np.array(positions, dtype=object), reasoner.n_latent
    none = np.full(len(mlp_layer), -1)
    return Nodes(
        kind=np.repeat(np.array(["fed", "head", "mlp"], dtype=object), [n_fed, len(layer), len(none)]),
        layer=np.concatenate([np.full(n_fed, FED), layer, mlp_layer]),
        head=np.concatenate([np.full(n_fed, -1), head, none]),
        position=np.concatenate([np.array(target.thoughts, dtype=object), names[position], names[mlp_position]]),
        shapes={"fed": (n_fed,), "head_output": heads, "mlp_output": mlps},
    )
