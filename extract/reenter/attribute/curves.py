"""Subgraphs of the best nodes, and of as many at random, put in and left out."""

import numpy as np
import xarray as xr


def subsets(n_node: int) -> list[int]:
    """Sizes of the subgraphs: powers of two, and all nodes."""
    sizes = [2**power for power in range(n_node.bit_length()) if 2**power < n_node]
    return [*sizes, n_node]


class Curves:
    """Which nodes are patched in every condition: best and random ones of each size, and all but these."""

    def __init__(self, n_node: int, best: np.ndarray, n_random: int, rng: np.random.Generator) -> None:
        self.sizes = subsets(n_node)
        self.n_random = n_random
        orders = [best, *(rng.permutation(n_node) for _ in range(n_random))]
        lines = []
        for order in orders:
            for size in self.sizes:
                mask = np.zeros(n_node, dtype=bool)
                mask[order[:size]] = True
                lines += [mask, ~mask]
        self.chosen = np.stack([*lines, np.ones(n_node, dtype=bool)])
        """``(condition, node)``; the last condition is all nodes."""

    def measured(self, moved: np.ndarray) -> xr.Dataset:
        """Curves from how far each condition moved the logit difference ``(condition,)``, as shares of what all do."""
        shares = (moved[:-1] / moved[-1]).reshape(1 + self.n_random, len(self.sizes), 2)
        out = {}
        for index, name in enumerate(("kept", "left")):
            out[name] = ("size", shares[0, :, index], {"units": "1"})
            random = shares[1:, :, index]
            if self.n_random:
                low, high = np.percentile(random, [2.5, 97.5], axis=0)
                for part, value in {"": random.mean(0), "_low": low, "_high": high}.items():
                    out[f"{name}_random{part}"] = ("size", value, {"units": "1"})
        return xr.Dataset(out, coords={"size": self.sizes})
