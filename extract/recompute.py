"""Some examples of a run computed again: whether the lake still says what the model says."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from extract.load import load_reasoner
from schemas import RunSpec, SpecMismatchError, UsageError
from store import open_lake

STATES = ("hidden_state", "final_state", "latent_embedding", "attention")
TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 5e-2}
"""Largest error allowed, relative to the largest value of an example: rounding in storage and in computing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputed:
    """Examples of a run beside what the model gives now."""

    run: str
    examples: list[int]
    """Their labels."""
    error: dict[str, float]
    """Largest absolute error of each variable over the largest absolute value, of the worst example."""
    tolerance: float
    other_texts: int
    """Examples answered otherwise; they are compared up to the end of thinking."""

    @property
    def agrees(self) -> bool:
        """Whether all errors lie within the tolerance."""
        return all(error <= self.tolerance for error in self.error.values())


def recompute(
    lake: str | os.PathLike[str],
    run: str,
    n_example: int,
    *,
    checkpoint: str | None = None,
    base: str | None = None,
    device: str = "cpu",
    lora_alpha: float | None = None,
) -> Recomputed:
    """Think through some of a run's examples again, one at a time, and compare.

    Parameters
    ----------
    lake
        Folder or URL.
    run
        ``MODEL/DATASET``.
    n_example
        How many of the committed examples, spread evenly.
    checkpoint
        Where the model is; as the run was made, if absent.
    base, device, lora_alpha
        As for extraction.

    Returns
    -------
    Recomputed

    Raises
    ------
    SpecMismatchError
        If the checkpoint is another than the run was made with.
    UsageError
        If it cannot be found.
    """
    opened = open_lake(lake)
    attributes = opened.attributes(run)
    spec = RunSpec(**attributes["spec"])
    source = checkpoint or opened.model_attributes(run.split("/")[0])["checkpoint"]
    try:
        reasoner = load_reasoner(source, base=base, device=device, dtype=spec.compute_dtype, lora_alpha=lora_alpha)
    except UsageError as error:
        raise UsageError(f"{run} was made with {source!r}: {error}. Say where it is with --model and --base") from error
    for name, digest in reasoner.fingerprint.items():
        if attributes[name] != digest:
            raise SpecMismatchError(
                f"{source} has other {name} than {run} was made with: {digest[:12]}.. there,"
                f" {attributes[name][:12]}.. in the lake"
            )
    dataset = opened[run]
    chosen = np.unique(np.linspace(0, dataset.sizes["example"] - 1, n_example).round().astype(int))
    worst = dict.fromkeys(STATES, 0.0)
    other_texts = 0
    for index in chosen:
        stored = dataset.isel(example=int(index)).load()
        prompt = reasoner.encode(str(stored["question"].item()))
        again = reasoner.think(
            [prompt], capture=spec.capture, stored_dtype=spec.dtype, max_new_tokens=spec.max_new_tokens
        )
        n_key = again.n_before + reasoner.n_latent + 2
        if again.generated_text[0] == stored["generated_text"].item():
            n_key += again.n_answer
        else:
            other_texts += 1
        keys = [f"q-{distance}" for distance in range(again.n_before, 0, -1)]
        keys += [label for label in stored["key_position"].values if not str(label).startswith("q-")]
        keys = keys[:n_key]
        positions = keys if spec.capture == "full" else keys[again.n_before :]
        places = slice(0, len(positions))
        for name in STATES:
            values = getattr(again, name)[0].astype("float64")
            there = stored[name]
            if "position" in there.dims:
                there = there.sel(position=positions)
                values = values[..., places, :] if name != "attention" else values[..., places, :n_key]
            if name == "attention":
                there = there.sel(key_position=keys)
            scale = np.abs(values).max()
            apart = float(np.abs(there.values.astype("float64") - values).max() / scale)
            worst[name] = max(worst[name], apart if np.isfinite(apart) else float("inf"))
    return Recomputed(
        run=run,
        examples=[int(dataset["example"].values[index]) for index in chosen],
        error=worst,
        tolerance=max(TOLERANCE[spec.dtype], TOLERANCE[spec.compute_dtype]),
        other_texts=other_texts,
    )
