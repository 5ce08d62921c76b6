"""Steps of a training recorded on a GPU and replayed."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from extract.training.losses import losses
from extract.training.student import Batch, Student


def weighed(parts: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Sum of the parts of a loss, each by its weight; 1 where none is given."""
    return torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum()


class Graphs:
    """Losses and gradients of a step, recorded once for each shape of a batch and replayed as one launch.

    A small model on a GPU waits for Python, which launches some 37,000 kernels a step.
    """

    def __init__(self, student: Student, parameters: list[nn.Parameter]) -> None:
        self.student = student
        self.parameters = parameters
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}
        self._pool: Any = None
        self._stream: Any = None

    def gradient(self, batch: Batch, weights: dict[str, float], thoughts: int) -> dict[str, Tensor]:
        """Losses of a batch, detached; the gradient of their weighed sum is left on the parameters."""
        shape = (thoughts, *(tensor.shape for tensor in vars(batch).values()))
        if shape not in self._recorded:
            self._recorded[shape] = self._record(batch, weights, thoughts)
        recorded = self._recorded[shape]
        for name, value in vars(recorded.batch).items():
            value.copy_(getattr(batch, name))
        recorded.graph.replay()
        for parameter, gradient in zip(self.parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        return {name: value.clone() for name, value in recorded.losses.items()}

    def _record(self, batch: Batch, weights: dict[str, float], thoughts: int) -> "_Recorded":
        still = Batch(**{name: value.clone() for name, value in vars(batch).items()})
        self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._forget()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # libraries prepare what they must not while recording; few rows suffice
            weighed(losses(self.student, still.rows(slice(0, 8)), thoughts), weights).backward()  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().wait_stream(self._stream)
        self._forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            parts = losses(self.student, still, thoughts)
            weighed(parts, weights).backward()  # type: ignore[no-untyped-call]
        self._pool = self._pool or graph.pool()
        detached = {name: value.detach() for name, value in parts.items()}
        gradients = [parameter.grad for parameter in self.parameters]
        self._forget()
        return _Recorded(graph, still, detached, gradients)

    def _forget(self) -> None:
        """Let go of gradients and of what the last step merged: its graph belongs to another stream."""
        for parameter in self.parameters:
            parameter.grad = None
        for adapter in self.student.adapters.values():
            adapter.merged = adapter.weight


@dataclass
class _Recorded:
    """One shape's graph, the batch it reads and what it leaves."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    losses: dict[str, Tensor]
    gradients: list[Tensor | None]


def one_kernel(device: torch.device) -> AbstractContextManager[None]:
    """One attention kernel for all shapes: cuDNN's would be prepared anew for each of them."""
    if device.type != "cuda":
        return nullcontext()
    kernels: AbstractContextManager[None] = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return kernels
