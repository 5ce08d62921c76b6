"""What the defects of docs/defects.py are measured on: a model and its runs, and what it writes when it is changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from extract import Reasoner, load_reasoner
from extract.reenter.intervene import Armed
from extract.run.extract import extract
from extract.run.prepare import prepare
from extract.small_models.problems import make_pairs, make_splits, write_pairs, write_problems
from schemas import RunSpec, answers_match, extract_answer, position_offset
from store import open_lake

N_NEW = 12
Row = tuple[str, str, str]
"""What is measured, as the scripts do, as it should be."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A model, its run over held-out problems and over pairs, both in a lake."""

    name: str
    reasoner: Reasoner
    run: xr.Dataset
    pairs: xr.Dataset
    readout: xr.Dataset

    @property
    def n_example(self) -> int:
        """Number of problems."""
        return int(self.run.sizes["example"])

    @property
    def gold(self) -> list[float | None]:
        """Gold answers."""
        return [extract_answer(str(text)) for text in self.run["gold_answer"].values]

    @property
    def longest(self) -> np.ndarray:
        """Which problems have four operations, and so need every thought."""
        return np.asarray(self.run["n_operation"].values == 4)

    def state(self, layer: int, position: str) -> np.ndarray:
        """Stored output of a block (example, hidden)."""
        return np.asarray(self.run["hidden_state"].sel(layer=layer, position=position).values)

    def answers(self, armed: Armed | None = None) -> list[str]:
        """Texts the model writes, with changes armed or without."""
        return answers_of(self.reasoner, self.run["question"].values, armed)

    def armed(self) -> Armed:
        """Nothing yet, for every problem at once."""
        return Armed(self.n_example, self.reasoner.device)

    def put(
        self, armed: Armed, layer: int, position: str, value: np.ndarray | None, site: str = "hidden_state"
    ) -> None:
        """Overwrite a place in every problem; ``None``: by zeros."""
        offset = position_offset(position, self.reasoner.n_latent)
        armed.add((site, layer, offset), "set", np.arange(self.n_example), value=value)

    def right(self, texts: Sequence[str], among: np.ndarray | None = None) -> str:
        """Share of texts that give the gold answer."""
        return share(
            [answers_match(extract_answer(text), gold) for text, gold in zip(texts, self.gold, strict=True)], among
        )


def answers_of(reasoner: Reasoner, questions: Sequence[str], armed: Armed | None = None) -> list[str]:
    """Texts a model writes, thinking of all questions in one batch."""
    prompts = [reasoner.encode(str(question)) for question in questions]
    return reasoner.think(prompts, capture=None, max_new_tokens=N_NEW, editor=armed).generated_text


def share(which: Sequence[bool] | np.ndarray, among: np.ndarray | None = None) -> str:
    """Per cent."""
    values = np.asarray(which, dtype=float)
    return f"{100 * (values if among is None else values[among]).mean():.1f}%"


def changed(texts: Sequence[str], before: Sequence[str]) -> str:
    """Share of texts that differ."""
    return share([one != other for one, other in zip(texts, before, strict=True)])


def make_world(model: str, folder: Path, n_problem: int, n_pair: int) -> World:
    """Extract a model's runs over held-out problems and pairs."""
    lake = folder / "defects.lake"
    files = (f"test={folder / 'test.jsonl'}", f"pairs={folder / 'pairs.json'}")
    write_problems(make_splits(0, {"test": {n: -(-n_problem // 3) for n in (2, 3, 4)}})["test"], folder / "test.jsonl")
    write_pairs(make_pairs(n_pair), folder / "pairs.json")
    spec = RunSpec(dtype="float32", max_new_tokens=N_NEW, batch_size=64)
    name = ""
    for data in files:
        prepared = prepare(model, data, lake, spec)
        name = prepared.model
        extract(prepared, lake)
    opened = open_lake(lake)
    return World(
        name=name,
        reasoner=load_reasoner(model.partition("=")[2] or model),
        run=opened[f"{name}/test"],
        pairs=opened[f"{name}/pairs"],
        readout=opened.model(name),
    )


@contextmanager
def sliced(reasoner: Reasoner, layer: int, head: int) -> Iterator[None]:
    """Zero a head's range of columns in the output of a layer's output projection, from ``bot`` to ``eot``."""
    block = reasoner.blocks[layer]
    projection = next(module for name, module in block.named_modules() if name in ("attn.c_proj", "self_attn.o_proj"))
    columns = slice(head * reasoner.head_size, (head + 1) * reasoner.head_size)

    def hook(_: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        running = reasoner._current
        if running is None:
            return output
        offset = running.column - running.n_before + torch.arange(output.shape[1])
        positions_inside = torch.nonzero((offset >= 0) & (offset <= reasoner.n_latent + 1))[:, 0]
        output = output.clone()
        output[:, positions_inside, columns] = 0
        return output

    handle = projection.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
