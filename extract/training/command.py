"""``lake train``."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from schemas import UsageError
from schemas.command import Command, Output, Settings, Shell, setting
from schemas.controls import CONTROLS


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """What a training of adapters is made of; everything here decides the weights."""

    base: str = setting(help="Base model that adapters are trained for.", metavar="PATH_OR_ID")
    data: tuple[str, ...] = setting(
        help="Problems, counted K times, or stories:N. May be repeated.", metavar="FILE[*K]", repeat=True
    )
    protocol: Literal["codi", "pause"] = setting("codi", "codi, or pause: one learned vector is fed at every thought.")
    lora_rank: int = setting(16, "Rank of the adapters.", least=1)
    lora_alpha: float = setting(32.0, "Numerator of the adapters' scale, over their rank.")
    thoughts: int = setting(6, "Number of thoughts.", least=1)
    steps: int | None = setting(None, "Steps in all.", least=1)
    minutes: float | None = setting(None, "Minutes in all; the learning rate follows the time.", least=1e-6)
    batch_size: int = setting(64, "Problems of a step.", least=1)
    accumulate: int = setting(1, "Parts in which a step is computed.", least=1)
    batch_tokens: int = setting(40_000, "Tokens of a step at most.", least=1)
    longest: int = setting(256, "Longer problems, in tokens with chain and answer, are left out.", least=1)
    learning_rate: float = setting(1e-3, "Highest learning rate.", least=1e-12)
    warmup: float = setting(0.03, "Share of the training in which the rate rises.")
    weight_decay: float = setting(0.01, "Of AdamW.")
    clip: float = setting(1.0, "Longest gradient.")
    teacher_weight: float = setting(1.0, "Weight of the written chain's loss.")
    distillation_weight: float = setting(1.0, "Weight of the distance to the teacher's states.")
    last_step: bool = setting(False, "Leave the chain's last step in.")
    compute_dtype: Literal["float32", "bfloat16"] = setting("float32", "Type of the products.")
    graphs: bool = setting(False, "On a GPU: record a step once and replay it.")
    seed: int = setting(0, "Seed of weights and batches.", least=0)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        super().__post_init__()
        if (self.steps is None) == (self.minutes is None):
            raise UsageError("say how long to train: either --steps or --minutes")
        if self.graphs and self.accumulate > 1:
            raise UsageError("--graphs records whole steps; leave --accumulate out")


@dataclass(frozen=True, kw_only=True)
class TrainCommandSettings(TrainSettings):
    """A training as it is asked for: of a small model by name, or of adapters for a base."""

    out: Path = setting(help="Folder for checkpoints and training state.", metavar="DIR")
    name: str | None = setting(
        None,
        "small-gpt2, small-llama, their twins -decodable, -pause, -cot or -direct; small-graph, its -pause or -direct.",
        metavar="[NAME]",
        argument=True,
    )
    base: str | None = setting(  # type: ignore[assignment]
        None, "Instead of NAME: train adapters for this base model.", metavar="PATH_OR_ID"
    )
    data: tuple[str, ...] = setting(
        (), "Problems, counted K times, or stories:N. May be repeated.", metavar="FILE[*K]", repeat=True
    )
    validation: tuple[str, ...] = setting(
        (), "Problems held out, whose accuracy is watched.", metavar="FILE", repeat=True
    )
    device: str = setting("cpu", "Where the model runs: cpu, cuda, cuda:1, mps.", metavar="cpu|cuda|cuda:N|mps")
    save_every: float = setting(60.0, "Seconds between saves.")
    control_of: str | None = setting(
        None, "Model whose control this one is, by its name in lakes or its folder's; written beside the weights."
    )

    def __post_init__(self) -> None:
        """Refuse what names neither or both."""
        if (self.name is None) == (self.base is None):
            raise UsageError("train: name one of the small models, or a base model with --base")
        if self.base is not None:
            if not self.data:
                raise UsageError("train --base: name what to train on with --data")
            super().__post_init__()
        if self.control_of is not None and (self.base is None or self.protocol not in CONTROLS):
            raise UsageError(
                "train --control-of: controls are trained with --base and --protocol, one of"
                f" {', '.join(sorted(CONTROLS))}; small models name theirs themselves"
            )


def run(settings: TrainCommandSettings, shell: Shell) -> Output:
    """Train, or go on with a training."""
    if settings.base is None:
        from extract.small_models.graph_train import train_graph
        from extract.small_models.train import GRAPH_NAMES
        from extract.small_models.train import train as train_stories

        train_small = train_graph if settings.name in GRAPH_NAMES else train_stories
        with shell.progress(f"{settings.name}, seed {settings.seed}", "steps") as report:
            folders = train_small(str(settings.name), settings.out, settings.seed, settings.device, progress=report)
        return Output(printed=[str(folder) for folder in folders])
    from extract.training.loop import Watch, train

    chosen = TrainSettings(**{each.name: getattr(settings, each.name) for each in fields(TrainSettings)})
    with shell.progress(f"{settings.base}, seed {settings.seed}", "steps" if settings.steps else "s") as report:
        watch = Watch(save_every=settings.save_every, progress=report, say=shell.note)
        folder = train(chosen, settings.out, validation=settings.validation, device=settings.device, watch=watch)
    if settings.control_of is not None:
        state_control(folder, settings.control_of, settings.protocol)
    return Output(printed=[str(folder)])


def state_control(folder: Path, of: str, kind: str) -> None:
    """Write beside the weights of whom they are the control, and of which kind."""
    file = folder / "codi.json"
    notes = json.loads(file.read_text(encoding="utf-8")) | {"control_of": of, "control": kind}
    file.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


def left(values: Any) -> str:
    """What an interrupted training leaves."""
    return f"{values['out']} keeps the last state that was saved, and the same command goes on from there"


COMMAND = Command(
    name="train",
    help="Train a small model from scratch, or adapters for a base model; run again, it goes on where it stopped.",
    settings=TrainCommandSettings,
    run=run,
    stopped=left,
)
