"""Train the small CODI models from scratch: ``lake train small-gpt2 --out DIR``.

Stage 1 is CODI (arXiv 2502.21074) with read-out losses on the thoughts. Stage 2 goes on from there, with thoughts
exchanged between problems (interchange training, Geiger et al. 2022), in one of two ways. For ``small-ARCH`` the answer
is trained to follow the exchanged number: its thoughts are used. For ``small-ARCH-decodable`` the answer is trained to
stay what it was: its thoughts can be read and are not used. The controls are the same network on the same data.
``small-ARCH-pause``, fed one learned vector at every thought, and ``small-ARCH-direct``, which answers at once, are
trained for the same number of steps; ``small-ARCH-cot``, which writes its steps, has learnt it much sooner.

Every batch is drawn from the seed and the step alone, and training state is written every few hundred steps, so a
training that was killed goes on where it was and ends with the weights it would have had.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from extract.model.device import device_errors, find_device
from extract.small_models.losses import LOSSES, Settings, Stage, quick_accuracy
from extract.small_models.network import ARCHITECTURES, CONTROLS, SmallCodi, make_tokenizer, save_checkpoint
from extract.small_models.problems import MAX_OPERATION, make_splits
from extract.small_models.thinking import ProblemTable, Words, tabulate
from schemas.errors import UsageError
from schemas.json_values import read_json
from schemas.progress import Progress, silent
from schemas.whole_files import beside, write_json

NAMES = tuple(
    f"small-{architecture}{kind}"
    for architecture in ARCHITECTURES
    for kind in ("", "-decodable", *(f"-{control}" for control in CONTROLS))
)
GRAPH_NAMES = ("small-graph", "small-graph-pause", "small-graph-direct")
"""Trained by :func:`extract.small_models.graph_train.train_graph`."""
DATA_SEED = 0


StageT = TypeVar("StageT", bound=Settings)
STAGE_1 = Stage(steps=6000, rate=2e-3)
FOLLOW = Stage(steps=2400, rate=1e-3, exchange="follow")
IGNORE = Stage(steps=1500, rate=1e-3, exchange="ignore")
CONTROL = Stage(steps=STAGE_1.steps + FOLLOW.steps, rate=2e-3)
COT = Stage(steps=1800, rate=2e-3, kind="cot")  # every text of the validation problems is right after 1,200


def plan(name: str) -> list[tuple[str, Stage]]:
    """Return the stages a name stands for, each with the name its weights are written under."""
    if name not in NAMES:
        raise UsageError(f"train {name!r}: no such model; choose one of {', '.join((*NAMES, *GRAPH_NAMES))}")
    for control in CONTROLS:
        if name.endswith(f"-{control}"):
            return [(name, COT if control == "cot" else replace(CONTROL, kind=control))]
    first = name.removesuffix("-decodable") + "-stage-1"
    return [(first, STAGE_1), (name, IGNORE if name.endswith("-decodable") else FOLLOW)]


@dataclass
class TrainingState:
    """Everything a training needs to go on: the model, the optimizer, the step and the curve so far."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "curve": self.curve,
        }
        with beside(path) as partial:
            torch.save(content, partial)

    def load(self, path: Path) -> None:
        """Read back what `save` wrote."""
        content = torch.load(path, map_location=next(self.model.parameters()).device, weights_only=True)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.curve = content["step"], content["curve"]


def train(
    name: str,
    out: Path | str,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    *,
    stages: list[tuple[str, Stage]] | None = None,
    data: dict[str, ProblemTable] | None = None,
    save_every: int = 300,
    stop_after: int | None = None,
) -> list[Path]:
    """Train one of the small models from scratch, or go on with an interrupted training.

    Parameters
    ----------
    name
        One of `NAMES`. The two models of an architecture have stage 1 in common: with the same `out` and seed, the
        second starts from what the first has done.
    out
        Folder to write checkpoints and training state to; created if missing.
    seed
        Seed of the initial weights and of the batches. The problems are the same for every seed.
    device
        Where to train.
    progress
        Called with (steps done, steps in all) after every step.
    stages, data, save_every, stop_after
        For tests and studies: other settings, problems (``train`` and ``validation``), how often the training state is
        written, and after how many steps of this call to stop.

    Returns
    -------
    list of Path
        The checkpoint folders written, the last one being `name`.

    Raises
    ------
    UsageError
        If there is no such model or device.
    """
    out, where = Path(out), find_device(device)
    stages = plan(name) if stages is None else stages
    tables = tabulate_splits() if data is None else data
    groups = [np.flatnonzero(tables["train"].n_operation == n) for n in range(1, MAX_OPERATION + 1)]
    words = Words.of(where)
    torch.manual_seed(seed)
    model = SmallCodi(name.split("-")[1], len(make_tokenizer()), stages[0][1].kind).to(where)
    state = TrainingState(model, make_optimizer(model, stages[0][1]))

    def step(stage: Stage, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        batch = tables["train"].take(draw_rows(rng, groups, stage))
        model.train()
        return optimize(state, stage, LOSSES[stage.kind](model, stage, batch, rng, words))

    return run_stages(
        stages, state, out, seed, make_step=step, save_every=save_every, stop_after=stop_after, progress=progress,
        score=lambda stage: quick_accuracy(model, tables["validation"], words),
        save=lambda stage, folder: save_checkpoint(model, folder),
    )  # fmt: skip


def run_stages(
    stages: Iterable[tuple[str, StageT]],
    state: TrainingState,
    out: Path,
    seed: int,
    *,
    make_step: Callable[[StageT, np.random.Generator], dict[str, torch.Tensor]],
    score: Callable[[StageT], dict[str, float]],
    save: Callable[[StageT, Path], None],
    progress: Progress,
    save_every: int,
    stop_after: int | None,
) -> list[Path]:
    """Go through the stages of a training from wherever it stands; returns the checkpoint folders written.

    ``make_step`` makes one step of the optimizer and returns the parts of the loss, ``score`` measures accuracies
    for the curve, ``save`` writes a checkpoint.
    """
    stages = list(stages)
    for folder in (out / stage_name for stage_name, _ in stages):
        there = read_json(folder / "training.json", "record of a training", missing={}).get("seed", seed)
        if there != seed:
            raise UsageError(f"{folder} holds the model of seed {there}; give --seed {there}, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    total, before, done_here = sum(stage.steps for _, stage in stages), 0, 0
    written: list[Path] = []
    for index, (stage_name, stage) in enumerate(stages):
        state_file = out / f"{stage_name}-seed{seed}.training.pt"
        if state_file.exists():
            state.load(state_file)
        else:
            state.step, state.optimizer = 0, make_optimizer(state.model, stage)
        while state.step < stage.steps:
            if stop_after is not None and done_here >= stop_after:
                state.save(state_file)
                return written
            with device_errors(f"a training batch of {stage.batch} problems", "train with --device cpu"):
                losses = make_step(stage, np.random.default_rng([seed, index, state.step]))
            state.step += 1
            done_here += 1
            if state.step % 100 == 0 or state.step == stage.steps:
                parts = {key: value.item() for key, value in losses.items()}
                state.curve.append({"stage": index + 1, "step": state.step, **parts, **score(stage)})
            if state.step % save_every == 0 or state.step == stage.steps:
                state.save(state_file)
            progress(before + state.step, total)
        before += stage.steps
        save(stage, out / stage_name)
        note = {"seed": seed, "stages": [asdict(s) for _, s in stages[: index + 1]], "curve": state.curve}
        write_json(out / stage_name / "training.json", note, indent=None)
        written.append(out / stage_name)
    return written


def tabulate_splits() -> dict[str, ProblemTable]:
    """Draw the training and validation problems and keep only their arrays."""
    splits = make_splits(DATA_SEED)
    return {split: tabulate(splits[split]) for split in ("train", "validation")}


def make_optimizer(model: nn.Module, stage: Settings) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": stage.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98), foreach=True)


def draw_rows(rng: np.random.Generator, groups: list[NDArray[np.int64]], stage: Stage) -> NDArray[np.int64]:
    """Draw the rows of one batch: first the numbers of operations, then problems."""
    counts = rng.multinomial(stage.batch, stage.mixture)
    rows = [rng.choice(group, count) for group, count in zip(groups, counts, strict=True) if count]
    return rng.permutation(np.concatenate(rows))


def rate_at(stage: Settings, step: int) -> float:
    """Linear warm-up, then a cosine down to 2% of the learning rate."""
    warm = min(1.0, (step + 1) / stage.warmup)
    return stage.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))


def optimize(state: TrainingState, stage: Settings, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make one step of the optimizer; returns the parts of the loss."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate_at(stage, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    loss: Any = torch.stack(list(losses.values())).sum()
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), stage.clip)
    state.optimizer.step()
    return losses
