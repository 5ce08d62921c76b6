"""Train the small Coconut model and its controls: ``lake train small-graph --out DIR``.

Stage 1 is where Coconut's curriculum begins: the chain is given. At the thoughts the model is fed what it is to think,
the mean of the embeddings of all kinds reached, and learns to look up the next ones, there and for kinds drawn anywhere
in the graph, and to answer. In stage 2 it is fed its own states (Coconut, arXiv 2412.06769), each trained to be read as
the kinds reached one step further, both alike. ``small-graph-pause`` and ``small-graph-direct`` go on from the same
stage 1 with as many steps on the same problems, look-ups included: fed one learned vector at every thought, or without
thoughts.

Every batch is drawn from the seed and the step alone, and training state is written every few hundred steps, so a
training that was killed goes on where it was and ends with the weights it would have had.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from extract.model.device import find_device
from extract.small_models.graph_network import (
    ANSWER,
    END,
    FIRST_KIND,
    FIRST_PERSON,
    NEWLINE,
    START,
    WORDS,
    Kind,
    SmallCoconut,
    save_graph_checkpoint,
)
from extract.small_models.graph_problems import DEPTH, KINDS, Graphs, draw_graphs, held_out_graphs
from extract.small_models.losses import Settings
from extract.small_models.thinking import Sequence
from extract.small_models.train import GRAPH_NAMES, TrainingState, make_optimizer, optimize, run_stages
from schemas import UsageError
from schemas.progress import Progress, silent

EOS = 0


@dataclass(frozen=True)
class GraphStage(Settings):
    """Settings of one stage of training."""

    # whether the kinds reached are given at the thoughts, instead of what `kind` feeds there
    given: bool = False
    kind: Kind = "coconut"
    template_weight: float = 0.2
    thought_weight: float = 1.0
    look_up_weight: float = 2.0
    n_look_up: int = 16


GIVEN = GraphStage(steps=600, rate=2e-3, warmup=100, given=True)
OWN = GraphStage(steps=900, rate=1.5e-3)
KIND_OF: dict[str, Kind] = {"small-graph": "coconut", "small-graph-pause": "pause", "small-graph-direct": "direct"}


def plan_graph(name: str) -> list[tuple[str, GraphStage]]:
    """Return the stages a name stands for, each with the name its weights are written under."""
    if name not in GRAPH_NAMES:
        raise UsageError(f"train {name!r}: no such model; choose one of {', '.join(GRAPH_NAMES)}")
    return [("small-graph-stage-1", GIVEN), (name, replace(OWN, kind=KIND_OF[name]))]


def train_graph(
    name: str,
    out: Path | str,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    *,
    stages: list[tuple[str, GraphStage]] | None = None,
    save_every: int = 100,
    stop_after: int | None = None,
) -> list[Path]:
    """Train the small Coconut model or one of its controls, or go on with an interrupted training.

    Parameters and what is returned are those of :func:`extract.small_models.train.train`. All of `GRAPH_NAMES` have
    stage 1 in common: with the same ``out`` and seed it is trained once.
    """
    where = find_device(device)
    stages = plan_graph(name) if stages is None else stages
    torch.manual_seed(seed)
    model = SmallCoconut().to(where)
    state = TrainingState(model, make_optimizer(model, stages[0][1]))
    validation = held_out_graphs("validation", 500)

    def step(stage: GraphStage, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return optimize(state, stage, graph_losses(model, stage, draw_graphs(rng, stage.batch), rng))

    return run_stages(
        stages, state, Path(out), seed, make_step=step, save_every=save_every, stop_after=stop_after, progress=progress,
        score=lambda stage: {"accuracy": graph_accuracy(model, stage, validation)},
        save=lambda stage, folder: save_graph_checkpoint(model, stage.kind, folder),
    )  # fmt: skip


def tokens_of(graphs: Graphs) -> NDArray[np.int64]:
    """Ids of the questions, newline included, as the tokenizer gives them: (problem, token), all of one length."""
    subject, what = graphs.edge
    subject = np.where(subject < len(KINDS), FIRST_KIND + subject, FIRST_PERSON + subject - len(KINDS))
    told = np.stack([subject, np.full_like(subject, WORDS.index("is a")), FIRST_KIND + what], 2)
    n = len(graphs.asked)
    asked = FIRST_PERSON + graphs.person[np.arange(n), graphs.asked]
    first, second = (FIRST_KIND + graphs.candidate).T
    words = {word: np.full(n, WORDS.index(word)) for word in ("Is", "a", "or", "?")}
    question = [words["Is"], asked, words["a"], first, words["or"], second, words["?"], np.full(n, NEWLINE)]
    return np.concatenate([told.reshape(n, -1), np.stack(question, 1)], 1)


def graph_losses(
    model: SmallCoconut, stage: GraphStage, graphs: Graphs, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """All parts of the loss of one batch, weighted: the answer, the thoughts of a Coconut model, and look-ups."""
    device = model.embedding.device
    question, frontier, answer = (
        torch.from_numpy(ids).to(device)
        for ids in (tokens_of(graphs), FIRST_KIND + graphs.frontier, FIRST_KIND + graphs.answer)
    )
    sequence, states = think_graph(model, stage.kind, question, frontier if stage.given else None)
    text = torch.stack([torch.full_like(answer, ANSWER), answer, torch.full_like(answer, EOS)], 1)
    logits = answer_logits(model, stage.kind, sequence, text)
    loss = functional.cross_entropy(logits.flatten(0, 1), text.flatten(), reduction="none").view(text.shape)
    losses = {"answer": loss[:, 1].mean(), "template": stage.template_weight * (loss[:, 0] + loss[:, 2]).mean()}
    if stage.kind == "coconut":
        losses["thought"] = stage.thought_weight * DEPTH * kinds_loss(model, states, frontier)
    losses["look_up"] = stage.look_up_weight * look_up_loss(model, stage, graphs, sequence, rng)
    return losses


def kinds_loss(model: SmallCoconut, states: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of states (.., hidden) against kinds that are to be read alike (.., 2); ln 2 at best."""
    return -(states @ model.embedding.T).log_softmax(-1).gather(-1, kinds).mean()


def think_graph(
    model: SmallCoconut,
    kind: Kind,
    question: torch.Tensor,
    given: torch.Tensor | None = None,
    replace: dict[int, torch.Tensor] | None = None,
) -> tuple[Sequence, torch.Tensor]:
    """Read questions (problem, token) and think.

    Parameters
    ----------
    model, kind
        The model, and what it is fed at its thoughts: its own states, one vector, or nothing.
    question
        Ids, newline last.
    given
        Kinds (problem, thought, 2) whose mean embedding is fed at the thoughts, instead.
    replace
        For some thoughts, the vectors (problem, hidden) fed instead.

    Returns
    -------
    tuple
        The sequence, after the last thought; final states before every thought, that is at bot, ct0 .. (problem,
        DEPTH, hidden), which are what is fed where the kind is ``coconut``.
    """
    embedding = model.embedding
    sequence = Sequence(model, len(question), question.device)
    if kind == "direct":
        (states,) = sequence.feed(embedding[question[:, :-1]])  # the newline begins the answer
        return sequence, states[:, :0]
    question = torch.cat([question, torch.full_like(question[:, :1], START)], 1)
    if given is not None or kind == "pause":
        fed = model.pause_embedding.expand(len(question), DEPTH, -1) if given is None else embedding[given].mean(2)
        if replace:
            fed = torch.stack([replace.get(k, fed[:, k]) for k in range(DEPTH)], 1)
        (states,) = sequence.feed(torch.cat([embedding[question], fed], 1))
        return sequence, states[:, -DEPTH - 1 : -1]
    (states,) = sequence.feed(embedding[question])
    own = [states[:, -1]]
    for k in range(DEPTH):
        vector = (replace or {}).get(k, own[-1])
        own.append(sequence.feed(vector[:, None])[0][:, 0])
    return sequence, torch.stack(own[:-1], 1)


def answer_logits(model: SmallCoconut, kind: Kind, sequence: Sequence, text: torch.Tensor) -> torch.Tensor:
    """Feed what closes the thoughts and a text but its last token; returns logits (problem, text, vocabulary)."""
    begin = torch.full_like(text[:, :1], NEWLINE if kind == "direct" else END)
    (states,) = sequence.feed(model.embedding[torch.cat([begin, text[:, :-1]], 1)])
    return states @ model.embedding.T


def look_up_loss(
    model: SmallCoconut, stage: GraphStage, graphs: Graphs, sequence: Sequence, rng: np.random.Generator
) -> torch.Tensor:
    """Loss of looking up what follows a person or kinds of either half of the graph, one kind or both branches at once.

    They are fed where the thoughts are, all at the same time, and do not see each other.
    """
    n, device = len(graphs.asked), model.embedding.device
    depth, column = (rng.integers(high, size=(n, stage.n_look_up)) for high in (DEPTH, 2))
    one, branch = rng.random((n, stage.n_look_up)) < 0.5, rng.integers(2, size=(n, stage.n_look_up))
    chosen = np.where(one[..., None], branch[..., None], np.arange(2))  # the same branch twice, or both
    people = np.repeat(FIRST_PERSON + graphs.person[:, None, :, None], 2, axis=3)
    subject = np.concatenate([people, FIRST_KIND + graphs.kind[:, :-1]], 1)
    where = np.arange(n)[:, None, None], depth[..., None], column[..., None]
    now = torch.from_numpy(subject[(*where, chosen)]).to(device)
    followed = np.where(depth[..., None] == 0, np.arange(2), chosen)  # both branches begin at a person
    then = torch.from_numpy(FIRST_KIND + graphs.kind[(*where, followed)]).to(device)
    before = sequence.valid.shape[1] - (0 if stage.kind == "direct" else DEPTH)  # all of them follow the question
    question = sequence.branch(before)
    position = before + torch.arange(stage.n_look_up, device=device) % DEPTH
    (states,) = question.feed(model.embedding[now].mean(2), apart=position)
    return kinds_loss(model, states, then)


@torch.no_grad()
def graph_accuracy(model: SmallCoconut, stage: GraphStage, graphs: Graphs) -> float:
    """Share of right answers where the text before the word is given."""
    model.eval()
    device = model.embedding.device
    answer = torch.from_numpy(FIRST_KIND + graphs.answer).to(device)
    sequence, _ = think_graph(model, stage.kind, torch.from_numpy(tokens_of(graphs)).to(device))
    text = torch.stack([torch.full_like(answer, ANSWER), answer], 1)
    return float((answer_logits(model, stage.kind, sequence, text)[:, 1].argmax(1) == answer).float().mean())
