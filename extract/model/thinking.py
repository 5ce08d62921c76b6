"""What a batch of questions leaves behind, and its way from the device to the host."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from extract.model.recorder import StoredRangeError
from schemas import UsageError
from schemas.vocabulary import ITERATIONS

if TYPE_CHECKING:
    from extract.model.own import OwnModel
    from extract.model.reasoner import Reasoner


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """What one batch of questions left behind, aligned at ``bot``.

    Key positions are ``n_before`` question places, ``bot``, the thoughts, what closes them and ``n_answer`` answer
    places (see :class:`schemas.Places`);
    positions are the same, or begin at ``bot`` in a latent capture. Arrays that were not asked for are empty.
    """

    n_before: int
    """Question places before ``bot``: those of the longest question of the batch."""
    n_answer: int
    """Answer places: tokens of the longest answer of the batch, end token included."""
    hidden_state: np.ndarray
    """``(example, layer, position, hidden)``, NaN where an example has no such position."""
    final_state: np.ndarray
    """``(example, position, hidden)``, likewise."""
    latent_embedding: np.ndarray
    """``(example, latent, hidden)``."""
    attention: np.ndarray
    """``(example, layer, head, position, key_position)``, 0 for padding, future keys and rows that do not exist."""
    parts: Mapping[str, np.ndarray]
    """Further sites, where asked for, as ``(example, layer, position, hidden)`` or, of heads,
    ``(example, layer, position, head, head_size)``; NaN where an example has no such position."""
    iterations: Mapping[str, np.ndarray]
    """Of thoughts computed side by side, ``iteration_embedding`` and ``iteration_state``, each
    ``(example, iteration, latent, hidden)``."""
    token: np.ndarray
    """``(example, position)`` int32, -1 where there is none (at the thoughts, too); in a full capture all positions,
    otherwise from ``bot`` on."""
    generated_text: list[str]
    answer_logprob: np.ndarray
    """``(example,)`` float64, NaN where no gold answer was given."""


def check_length(model: "Reasoner | OwnModel", n_token: int, max_new_tokens: int, what: str = "question") -> None:
    """Refuse a prompt that does not fit the context with its thoughts and answer.

    Raises
    ------
    UsageError
        Naming ``what`` and the lengths.
    """
    needed = model.places.needed(n_token, max_new_tokens)
    if needed > model.context:
        raise UsageError(
            f"{what} has {n_token} tokens; with thoughts, what closes them and {max_new_tokens} answer tokens it needs"
            f" {needed} places, the model has {model.context}"
        )


def thinking_of(
    fetched: Mapping[str, Tensor], *, n_before: int, generated_text: list[str], parts: Sequence[str]
) -> Thinking:
    """What was fetched of a batch, by name; what was not captured is empty."""
    names = ("hidden_state", "final_state", "latent_embedding", "attention")
    return Thinking(
        n_before=n_before,
        n_answer=fetched["answers"].shape[1],
        token=fetched["token"].numpy(),
        generated_text=generated_text,
        answer_logprob=fetched["log_p"].double().sum(1).numpy(),
        **{name: fetched[name].numpy() if name in fetched else np.empty(0) for name in names},
        parts={site: fetched[site].numpy() for site in parts},
        iterations={name: fetched[name].numpy() for name in ITERATIONS if name in fetched},
    )


def to_host(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Arrays in the host's memory, and what waits until they are there; on a GPU it computes on meanwhile.

    Copies go through a stream of their own into page-locked memory, which torch keeps and gives out again.
    """
    device = next(iter(arrays.values())).device
    if device.type != "cuda":
        return {name: array.cpu() for name, array in arrays.items()}, lambda: None
    stream = _copies(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    fetched, done = {}, torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for name, array in arrays.items():
            fetched[name] = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
            fetched[name].copy_(array, non_blocking=True)
            array.record_stream(stream)
        done.record(stream)
    return fetched, done.synchronize


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which captured arrays leave it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Values moved to a device without waiting for what runs there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def beyond_range(wider: Thinking, stored_dtype: str, error: StoredRangeError) -> str:
    """What to say of values that fit float32 but not the stored type."""
    states = [wider.hidden_state[:, layer] for layer in range(wider.hidden_state.shape[1])]
    values = [*states, wider.final_state, wider.latent_embedding, *wider.parts.values(), *wider.iterations.values()]
    limit = torch.finfo(getattr(torch, stored_dtype)).max
    return (
        f"{error} reach {np.nanmax(np.abs(values[error.place])):.3g}, beyond the largest {stored_dtype} ({limit:.0f});"
        " store them with --dtype float32"
    )
