"""Experiments that go back into the model with stored activations, each one function with a labelled result."""

from extract.reenter.ablation import ablate, corrupt
from extract.reenter.attention import ablate_heads, cut_edges
from extract.reenter.gradients import integrated_gradients
from extract.reenter.grid import sweep_grid
from extract.reenter.patching import patch
from extract.reenter.steering import steer
from extract.reenter.target import Target, open_target

__all__ = [
    "Target",
    "ablate",
    "ablate_heads",
    "corrupt",
    "cut_edges",
    "integrated_gradients",
    "open_target",
    "patch",
    "steer",
    "sweep_grid",
]
