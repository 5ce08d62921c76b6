"""Train a base model to think in vectors, or one of its controls, within steps or minutes.

Every batch is drawn from the seed and the step alone, and the training state is written as it goes, so that a training
that was killed goes on where it was; counted in steps, it ends with the weights it would have had.
"""

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from extract.model.checkpoint import SETTINGS
from extract.model.load import new_reasoner
from extract.model.protocols import COCONUT
from extract.training.command import TrainSettings
from extract.training.data import TrainedOn, read_held_out, read_trained_on
from extract.training.graphs import Graphs, one_kernel, weighed
from extract.training.losses import draw_exchanged, losses
from extract.training.state import (
    STATE,
    WEIGHTS,
    begin_with,
    is_saved,
    mark_of,
    progress_of,
    read_state,
    state_control,
    state_of,
)
from extract.training.student import Student
from extract.training.table import Shape, Table, draw_batches, shapes_of
from schemas import Control, UsageError
from schemas.progress import Progress
from schemas.whole_files import beside, write_json

Widths = tuple[int, int, int]
BEST = "best"
"""Subfolder with the checkpoint that answered most of the held-out problems."""
RISEN = 1.0
"""Nats above the lowest loss of the answers so far from which on it is reported: batches differ by less."""


class Training:
    """A student, its optimizer, and how far it has come.

    With ``model``, the folder of a finished training of the same settings, it goes on from that one and becomes its
    decodable control. ``data`` is the digest of what is trained on.
    """

    def __init__(self, settings: TrainSettings, device: str, model: Path | None = None, data: str = "") -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.reasoner = new_reasoner(
            settings.base, device, protocol=settings.protocol, n_latent=settings.thoughts,
            answer_prefix=settings.answer_prefix,
        )  # fmt: skip
        dtype = getattr(torch, settings.compute_dtype)
        self.student = Student(self.reasoner, settings.lora_rank, settings.lora_alpha, dtype)
        self.student.distillation_scale = settings.distillation_scale
        if settings.start is not None:
            begin_with(self.student, settings)
        self.parameters = list(self.student.trained().values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True
        )
        self.graphs = Graphs(self.student, self.parameters)
        self.data = data
        self.step = 0
        self.seconds = 0.0
        self.parts = settings.accumulate
        self.curve: list[dict[str, Any]] = []
        self.device = self.reasoner.device
        if model is not None:
            self._go_on_from(model)

    def _go_on_from(self, model: Path) -> None:
        content = read_state(model / STATE)
        if content["settings"] != mark_of(self.settings):
            raise UsageError(f"{model} holds a training with other settings; its decodable control needs the same")
        self._set(content["trained"])
        self.student.kept = {name: value.detach().clone() for name, value in self.student.trained().items()}

    def _set(self, trained: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.student.trained().items():
                value.copy_(trained[name])

    @property
    def mark(self) -> str:
        """What must be the same for a training to go on."""
        return mark_of(self.settings, decodable=self.student.kept is not None)

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return progress_of(self.settings, self.step, self.seconds)

    @property
    def stage(self) -> int:
        """Written steps that are left out, as a thought does their work; one more than there are thoughts: all."""
        n_latent, curriculum = self.student.n_latent, self.settings.curriculum
        if self.student.rule.bot != COCONUT.bot:
            return 0
        if self.student.kept is not None or self.progress >= curriculum:
            return n_latent + 1
        return int(self.progress / curriculum * (n_latent + 1))

    def rate(self) -> float:
        """Linear warm-up, then a cosine down to 2% of the learning rate, over the steps or the minutes."""
        done, warmup = self.progress, self.settings.warmup
        warm = min(1.0, (done + 1e-3) / warmup) if warmup > 0 else 1.0
        return self.settings.learning_rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * min(done, 1.0))))

    def learn(self, table: Table, rows: NDArray[np.int64], widths: Widths | None = None) -> dict[str, Tensor]:
        """Make one step; the losses stay on the device. A step whose gradient is not finite changes nothing."""
        while (losses := self._try_gradient(table, rows, widths)) is None:
            self.parts *= 2
            torch.cuda.empty_cache()
        losses["gradient"] = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip, foreach=True)
        # Read by the fused kernel, on the device: nothing waits for the answer.
        self.optimizer.found_inf = (~torch.isfinite(losses["gradient"])).float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.step += 1
        return losses

    def _try_gradient(self, table: Table, rows: NDArray[np.int64], widths: Widths | None) -> dict[str, Tensor] | None:
        """Losses, with the gradient left on the parameters; ``None`` if a part of the step does not fit the GPU."""
        try:
            return self._gradient(table, rows, widths)
        except torch.OutOfMemoryError:
            if self.parts >= len(rows):
                raise
            return None

    def _gradient(self, table: Table, rows: NDArray[np.int64], widths: Widths | None = None) -> dict[str, Tensor]:
        weights = {"teacher": self.settings.teacher_weight, "distillation": self.settings.distillation_weight}
        stage, n_latent = self.stage, self.student.n_latent
        thoughts = min(stage, n_latent) if self.student.rule.bot == COCONUT.bot else n_latent
        dropped = table.most_steps if stage > n_latent else stage
        exchanged = np.zeros((len(rows), n_latent), dtype=bool)
        if self.student.kept is not None:
            exchanged = draw_exchanged(np.random.default_rng([self.settings.seed, self.step, 1]), *exchanged.shape)
        self.optimizer.zero_grad(set_to_none=True)
        if self.settings.graphs and self.parts == 1:
            batch = table.batch(rows, widths, dropped=dropped, exchanged=exchanged)
            return self.graphs.gradient(batch, weights, thoughts)
        total: dict[str, Tensor] = {}
        for part in np.array_split(np.arange(len(rows)), min(self.parts, len(rows))):
            batch = table.batch(rows[part], widths, dropped=dropped, exchanged=exchanged[part])
            parts = losses(self.student, batch, thoughts)
            share = len(part) / len(rows)
            (weighed(parts, weights) * share).backward()  # type: ignore[no-untyped-call]
            for name, value in parts.items():
                total[name] = total.get(name, torch.zeros_like(value)) + value.detach() * share
        return total

    def accuracy(self, tables: dict[str, Table], size: int) -> dict[str, float]:
        """Share of problems answered exactly, after the thoughts and without them (the markers alone)."""
        accuracies: dict[str, float] = {}
        for name, table in tables.items():
            order = np.argsort(table.length, kind="stable")
            without = [(f"{name} without thoughts", 0)] if self.student.rule.bot else []
            for label, thoughts in ((name, None), *without):
                right = [
                    self.student.right(table.batch(order[start : start + size]), thoughts)
                    for start in range(0, len(order), size)
                ]
                accuracies[label] = float(torch.cat(right).float().mean())
        return accuracies

    def save_state(self, path: Path) -> None:
        """Write all that is needed to go on, whole or not at all."""
        content = {
            "trained": {name: value.detach() for name, value in self.student.trained().items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "parts": self.parts,
            "curve": self.curve,
            "settings": self.mark,
            "data": self.data,
            "base": self.reasoner.fingerprint["weights"],
        }
        with beside(path) as partial:
            torch.save(content, partial)

    def load_state(self, content: dict[str, Any]) -> None:
        """Take over what :meth:`save_state` wrote; refused if the base is another one since."""
        base = self.reasoner.fingerprint["weights"]
        if content.get("base", base) != base:
            raise UsageError(
                f"base {self.settings.base} has changed since this training began; begin with another --out"
            )
        self._set(content["trained"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds, self.parts = content["step"], content["seconds"], content["parts"]
        self.curve = content["curve"]

    def save_checkpoint(self, folder: Path, control: Control | None = None, dtype: torch.dtype = torch.float16) -> None:
        """Write what was trained, and ``codi.json`` and ``training.json`` beside it."""
        settings, rule = self.settings, self.student.rule
        notes = {
            "n_latent": self.student.n_latent,
            "answer_prefix": rule.answer_prefix,
            "protocol": {"name": rule.name, "rows_after": rule.rows_after} if rule.rows else rule.name,
            "base": settings.base,
            "lora_rank": settings.lora_rank,
            "lora_alpha": settings.lora_alpha,
        }
        record = {
            "settings": asdict(settings) | {"data": [Path(data).name for data in settings.data]},
            "base": self.reasoner.fingerprint["weights"],
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "curve": self.curve,
        }
        with beside(folder / WEIGHTS) as partial:
            save_file(self.student.checkpoint(dtype), partial, metadata={"format": "pt"})
        write_json(folder / SETTINGS, notes)
        state_control(folder, control)
        write_json(folder / "training.json", record, indent=None)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a training is watched and cut into pieces; nothing of it changes the weights."""

    save_every: float = 60.0
    """Seconds between saves."""
    log_every: int = 20
    """Steps between records of the losses: the only moments at which a GPU is waited for."""
    stop_after: int | None = None
    """Steps of this call."""
    progress: Progress = lambda done, total: None
    """Called with steps done and steps in all, or seconds, after every step."""
    say: Callable[[str], None] = lambda line: None
    """Called with a line at every record and save."""


def train(
    settings: TrainSettings,
    out: Path | str,
    *,
    validation: Sequence[str] = (),
    device: str = "cpu",
    watch: Watch | None = None,
    control: Control | None = None,
    model: Path | None = None,
) -> Path:
    """Train, or go on with an interrupted training; one that is finished is left as it is.

    Parameters
    ----------
    settings
        What is trained, on what, how long.
    out
        Folder of checkpoint, record and training state; made if missing.
    validation
        Data files whose accuracy is measured at every save, ``FILE`` or ``NAME=FILE``; nothing is trained on them, and
        problems of theirs that are in the training data are left out of it. The checkpoint that answers most of them,
        on average over the files, is kept in ``best``.
    device
        Where to train.
    watch
        What is called and how often things are saved.
    control
        Whose control it is and of which kind, to be written beside the weights.
    model
        Of a decodable control, the folder of its model's training, from which it goes on: its thoughts are to stay as
        they are, and its answer is to ignore them.

    Returns
    -------
    Path
        The checkpoint's folder, which :func:`extract.load_reasoner` opens.

    Raises
    ------
    UsageError
        If base or data cannot be read, or ``out`` holds a training with other settings or data, or
        a model that it would write over.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if settings.graphs and not device.startswith("cuda"):
        raise UsageError(f"--graphs records what a GPU does; --device is {device}")
    watch = watch or Watch()
    held_out = read_held_out(validation)
    data = read_trained_on(settings.data, held_out)
    state = state_of(out, mark_of(settings, decodable=model is not None), data.digest)
    finished = state is not None and progress_of(settings, state["step"], state["seconds"]) >= 1
    run = Training(settings, device, model, data.digest)
    if state is not None:
        run.load_state(state)
    if state is not None and finished and is_saved(out, state["step"]):
        state_control(out, control)
        watch.say(f"{out} is trained already")
        return out
    if finished:  # stopped between the state and the checkpoint
        run.save_checkpoint(out, control)
        return out
    tables = {name: Table(run.reasoner, examples) for name, examples in held_out.items()}

    def save() -> None:
        _save(run, out, tables, control, watch.say)

    with one_kernel(run.device):
        table, weights = _training_table(run, data, watch.say)
        shapes = shapes_of(table, weights, settings.batch_size, settings.batch_tokens)
        drawn = draw_batches(shapes, weights, settings.batch_size, settings.seed)
        _learn(run, table, itertools.islice(drawn, run.step, None), save, watch)
        save()
    return out


def _learn(
    run: Training,
    table: Table,
    drawn: Iterator[tuple[NDArray[np.int64], Shape]],
    save: Callable[[], None],
    watch: Watch,
) -> None:
    begin, saved, first = time.perf_counter() - run.seconds, time.perf_counter(), run.step
    recent: list[dict[str, Tensor]] = []
    total = run.settings.steps or round(60 * (run.settings.minutes or 0))
    while run.progress < 1 and (watch.stop_after is None or run.step - first < watch.stop_after):
        rows, shape = next(drawn)
        recent.append(run.learn(table, rows, shape.widths))
        run.seconds = time.perf_counter() - begin
        if run.step % watch.log_every == 0 or run.step == 1:
            _record(run, recent, watch.say)
            run.seconds = time.perf_counter() - begin
        if time.perf_counter() - saved >= watch.save_every and run.progress < 1:
            save()
            saved = time.perf_counter()
        watch.progress(run.step if run.settings.steps else min(round(run.seconds), total), total)
    _record(run, recent, watch.say)


def _save(
    run: Training, out: Path, tables: dict[str, Table], control: Control | None, say: Callable[[str], None]
) -> None:
    accuracies = run.accuracy(tables, max(run.settings.batch_size, 64))
    best = max((_right(entry, tables) for entry in run.curve), default=-1.0)
    run.curve.append({"step": run.step, "seconds": round(run.seconds, 1), **accuracies})
    if _right(accuracies, tables) > best:
        (out / BEST).mkdir(exist_ok=True)
        run.save_checkpoint(out / BEST, control)
    run.save_state(out / STATE)
    run.save_checkpoint(out, control)
    rates = ", ".join(f"{key} {value:.3f}" for key, value in accuracies.items())
    say(f"step {run.step}, {run.seconds:.0f} s, right: {rates or 'not asked (--validation)'}")


def _right(accuracies: Mapping[str, float], tables: Collection[str]) -> float:
    """Mean over the sets that are held out; below all else where they were not asked, or are none."""
    return sum(accuracies.get(name, -1.0) for name in tables) / len(tables) if tables else -1.0


def _record(run: Training, recent: list[dict[str, Tensor]], say: Callable[[str], None]) -> None:
    if not recent:
        return
    means = {name: float(torch.stack([record[name] for record in recent]).mean()) for name in recent[0]}
    lowest = min((entry for entry in run.curve if "answer" in entry), key=lambda entry: entry["answer"], default=None)
    run.curve.append({"step": run.step, "seconds": round(run.seconds, 1), "rate": run.rate(), **means})
    say(
        f"step {run.step}, {run.seconds:.1f} s, rate {run.rate():.2e}: "
        + ", ".join(f"{key} {value:.4f}" for key, value in means.items())
    )
    recent.clear()
    eased = run.student.rule.bot == COCONUT.bot  # its curriculum takes away the steps, which are easily written
    if lowest is not None and not eased and not means["answer"] < lowest["answer"] + RISEN:
        say(
            f"the loss of the answers is {means['answer']:.2f} and was {lowest['answer']:.2f} at step {lowest['step']}:"
            f" what was learned may be lost; begin anew with a --learning-rate below {run.settings.learning_rate:g}"
        )


def _training_table(run: Training, data: TrainedOn, say: Callable[[str], None]) -> tuple[Table, NDArray[np.float64]]:
    """Problems to train on, and how often each is drawn."""
    settings = run.settings
    table = Table(run.reasoner, data.examples, longest=settings.longest, last_step=settings.last_step)
    share = np.array(data.counts, dtype=np.float64)[table.kept]
    longer = len(data.examples) - len(table)
    for line in (*data.lines, f"{len(table)} problems of at most {settings.longest} tokens, {longer} longer left out"):
        say(line)
    return table, share / share.sum()
