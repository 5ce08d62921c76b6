"""``lake train``."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from schemas import Control, UsageError
from schemas.command import Command, Output, Settings, Shell, setting
from schemas.controls import kind_of_protocol
from schemas.flags import flags
from schemas.whole_files import check_folder

TWINS = {
    "codi": {"decodable": "codi", "pause": "codi-pause", "multipass-pause": "codi-multipass-pause"},
    "coconut": {"decodable": "coconut", "pause": "pause", "multipass-pause": "multipass-pause"},
}
"""Protocols whose controls are trained beside them, and the protocols that these follow; others are called alike."""
PREFIX = {"codi": "The answer is:", "coconut": "###"}
"""What stands before the answer, for those of their controls whose own protocol has another."""

DISTILLED = ("codi", "codi-pause", "codi-multipass-pause")
IN_STAGES = ("coconut", "pause", "multipass-pause")
TRAINED_WITH = {
    **dict.fromkeys(("teacher_weight", "distillation_weight", "distillation_scale", "last_step"), DISTILLED),
    "curriculum": IN_STAGES,
    "thoughts": (*DISTILLED, *IN_STAGES),
}
"""Settings that only some protocols are trained with."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """What a training of adapters is made of; everything here decides the weights."""

    base: str = setting(help="Base model that adapters are trained for.", metavar="PATH_OR_ID")
    data: tuple[str, ...] = setting(
        help="Problems, counted K times, or stories:N[:SEED[:LARGEST]]. May be repeated.",
        metavar="FILE[*K]",
        repeat=True,
    )
    protocol: Literal[
        "codi", "codi-pause", "codi-multipass-pause", "coconut", "pause", "multipass-pause", "direct", "cot"
    ] = setting("codi", "How the model thinks and is trained; see docs/training.md.")
    lora_rank: int = setting(16, "Rank of the adapters.", least=1)
    lora_alpha: float = setting(32.0, "Numerator of the adapters' scale, over their rank.", least=1e-12)
    thoughts: int = setting(6, "Number of thoughts.", least=1)
    steps: int | None = setting(None, "Training steps in all.", least=1)
    minutes: float | None = setting(None, "Minutes in all; the learning rate follows the time.", least=1e-6)
    batch_size: int = setting(64, "Problems in a step.", least=1)
    accumulate: int = setting(1, "Number of parts in which a step is computed.", least=1)
    batch_tokens: int = setting(40_000, "Most tokens in a step.", least=1)
    longest: int = setting(256, "Leave out problems longer than this, in tokens with chain and answer.", least=1)
    learning_rate: float = setting(5e-4, "Highest learning rate.", least=1e-12)
    warmup: float = setting(0.03, "Share of the training in which the learning rate rises.")
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", least=0)
    clip: float = setting(1.0, "Largest norm of the gradient; longer ones are cut to it.", least=1e-12)
    teacher_weight: float = setting(1.0, "CODI: weight of the written chain's loss.", least=0)
    distillation_weight: float = setting(1.0, "CODI: weight of the distance to the teacher's states.", least=0)
    distillation_scale: Literal["layer", "component"] = setting(
        "layer", "CODI: what that distance is divided by: the standard deviation of a layer, or of each component."
    )
    last_step: bool = setting(False, "CODI: keep the chain's last step in the teacher's text.")
    curriculum: float = setting(
        0.5, "Coconut: share of the training in which thoughts take the place of steps, one after another."
    )
    answer_prefix: str | None = setting(None, "Text before the answer; by default the protocol's own.")
    compute_dtype: Literal["float32", "bfloat16"] = setting("float32", "Type in which products are computed.")
    graphs: bool = setting(False, "On a GPU: record a step once and replay it.")
    start: str | None = setting(
        None, "Begin with the weights of this checkpoint, an earlier training of the same base.", metavar="DIR"
    )
    seed: int = setting(0, "Seed of weights and batches.", least=0)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        super().__post_init__()
        if (self.steps is None) == (self.minutes is None):
            raise UsageError("say how long to train: either --steps or --minutes")
        if not 0 <= self.curriculum < 1:
            raise UsageError(f"--curriculum is {self.curriculum}; it must be at least 0 and below 1")
        if not 0 <= self.warmup <= 1:
            raise UsageError(f"--warmup is {self.warmup}; it must be a share, from 0 to 1")
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
        (),
        "Problems, counted K times, or stories:N[:SEED[:LARGEST]]. May be repeated.",
        metavar="FILE[*K]",
        repeat=True,
    )
    validation: tuple[str, ...] = setting(
        (), "Held-out problems on which accuracy is measured during training.", metavar="FILE", repeat=True
    )
    device: str = setting("cpu", "Where the model runs: cpu, cuda, cuda:1, mps.", metavar="cpu|cuda|cuda:N|mps")
    save_every: float = setting(60.0, "Seconds between saves.", least=0)
    twins: tuple[Literal["decodable", "pause", "multipass-pause", "direct", "cot"], ...] = setting(
        (), "Controls trained after the model, in folders named after it and the kind."
    )
    control_of: str | None = setting(
        None,
        "Train only controls of this model, which was trained elsewhere: those of --twins, or the one of --protocol.",
    )

    def __post_init__(self) -> None:
        """Refuse what names neither or both."""
        if (self.name is None) == (self.base is None):
            raise UsageError("train: name one of the small models, or a base model with --base")
        if self.base is not None:
            if not self.data:
                raise UsageError("train --base: name what to train on with --data")
            super().__post_init__()
            self._check_protocol()
        elif self.twins or self.control_of is not None:
            raise UsageError("train --twins, --control-of: small models have controls of their own; see --help")
        else:
            Settings.__post_init__(self)
            own = ("name", "out", "seed", "device")
            said = [flag for flag in flags(type(self)) if getattr(self, flag.name) != flag.default]
            if passed_over := [flag.option for flag in said if flag.name not in own]:
                raise UsageError(
                    f"train {self.name}: small models have settings of their own; leave out {', '.join(passed_over)}"
                )
        if self.twins and self.protocol not in TWINS:
            raise UsageError(f"train --twins: {' and '.join(TWINS)} have controls; --protocol is {self.protocol}")
        if self.start is not None and set(self.twins) - {"decodable"}:
            raise UsageError("train --start: controls begin anew; train them without it, as long as the model in all")
        if self.control_of is not None and not self.twins and self.protocol in TWINS:
            raise UsageError("train --control-of: name the controls with --twins")
        if self.control_of is not None and "decodable" in self.twins:
            raise UsageError(
                "train --twins decodable: it goes on from its model's own training; train the model here, without"
                " --control-of"
            )

    def _check_protocol(self) -> None:
        """Refuse what another protocol than the one asked for is trained with."""
        for flag in flags(type(self)):
            value, protocols = getattr(self, flag.name), TRAINED_WITH.get(flag.name, (self.protocol,))
            if self.protocol not in protocols and value != flag.default:
                raise UsageError(
                    f"{flag.option} does nothing with --protocol {self.protocol}, but with {', '.join(protocols)};"
                    " leave it out"
                )


def trainings(settings: TrainCommandSettings) -> Iterator[tuple[TrainSettings, Path, Control | None]]:
    """What is to be trained, one after another: settings, folder, and whose control it is."""
    chosen = TrainSettings(**{field.name: getattr(settings, field.name) for field in fields(TrainSettings)})
    of = settings.control_of
    if of is None or not settings.twins:
        yield chosen, settings.out, None if of is None else Control(of, kind_of_protocol(settings.protocol))
    for kind in settings.twins:
        protocol: Any = TWINS[settings.protocol].get(kind, kind)
        twin = replace(
            chosen, protocol=protocol, answer_prefix=chosen.answer_prefix or PREFIX[settings.protocol],
            # In exact arithmetic it is the pause control: from another seed it tells how far two trainings differ.
            seed=chosen.seed + (kind == "multipass-pause"),
        )  # fmt: skip
        folder = settings.out.with_name(f"{settings.out.resolve().name}-{kind}")
        yield (chosen if kind == "decodable" else twin), folder, Control(of or settings.out.resolve().name, kind)


def run(settings: TrainCommandSettings, shell: Shell) -> Output:
    """Train, or go on with a training."""
    check_folder(settings.out)  # nobody trains for hours to learn that it cannot be kept
    if settings.base is None:
        from extract.small_models.graph_train import train_graph
        from extract.small_models.train import GRAPH_NAMES
        from extract.small_models.train import train as train_stories

        train_small = train_graph if settings.name in GRAPH_NAMES else train_stories
        with shell.progress(f"{settings.name}, seed {settings.seed}", "steps") as report:
            folders = train_small(str(settings.name), settings.out, settings.seed, settings.device, progress=report)
        return Output(printed=[str(folder) for folder in folders])
    from extract.training.loop import Watch, train

    made = []
    for chosen, folder, control in trainings(settings):
        with shell.progress(f"{folder}, seed {chosen.seed}", "steps" if chosen.steps else "s") as report:
            watch = Watch(save_every=settings.save_every, progress=report, say=shell.note)
            decodable = control is not None and control.kind == "decodable"
            train(
                chosen, folder, validation=settings.validation, device=settings.device, watch=watch, control=control,
                model=settings.out if decodable else None,
            )  # fmt: skip
        made.append(str(folder))
    return Output(printed=made)


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
