"""Train a decoder of a run's thoughts, from the lake's vectors and the written steps of its problems."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from extract.reenter.decode.command import DecodeSettings
from extract.reenter.decode.learned import (
    END,
    OWN,
    RECORD,
    SHUFFLED,
    LearnedDecoder,
    Made,
    digests,
    read_made,
    result_first,
    save,
)
from extract.reenter.target import Target
from schemas import UsageError
from schemas.json_values import read_json
from schemas.problem_sums import problem_of
from schemas.statistics import split_problems
from schemas.whole_files import check_folder, write_json

BATCH, RATE, WARMUP, CLIP = 128, 3e-3, 0.03, 1.0
LOOKS = 10
"""Times that the loss on the problems that are chosen by is measured: the best weights are kept."""
LOOKED_AT = 2048
FEWEST = 10
"""Problems with steps that a decoder is trained on at least."""


class Lesson(NamedTuple):
    """What a decoder is trained on."""

    vectors: Tensor  # (example, thought, hidden)
    tokens: Tensor  # (example, step, character); -1 once a step is over
    fitted: np.ndarray  # (row, 3): example, thought and step of all that is fitted
    chosen: np.ndarray


def train_decoder(target: Target, settings: DecodeSettings, positions: list[str], vectors: np.ndarray) -> Path:
    """Train a decoder, and one of shuffled thoughts; what is finished in the folder is not trained again.

    Of the run's problems (a problem's twins and rephrasings with it) 70% are fitted, the best of ten looks is chosen by
    15%, and 15% are left to be asked. Every thought of a problem is asked for every step of it, evenly, so that
    nothing is assumed of which thought holds which step. The second decoder is fed another problem's thoughts
    throughout: it learns what steps look like, and nothing of what thoughts say.

    Parameters
    ----------
    target, settings
        As for ``decode``; ``settings.train`` is the folder.
    positions
        Thoughts.
    vectors : (example, thought, hidden)
        What is fed at them; NaN where there is none.

    Returns
    -------
    Path
        Folder of this run's decoder in ``settings.train``.

    Raises
    ------
    UsageError
        If the run has too few problems with steps, the folder has a decoder of other settings, or cannot be written.
    """
    assert settings.train is not None
    lesson, made, longest = lesson_of(target, settings, positions, vectors)
    folder = Path(settings.train) / target.run
    check_folder(folder)
    if (folder / RECORD).exists() and read_made(folder) != (made, longest):
        raise UsageError(
            f"decode --train: {folder} has a decoder of other problems or settings; take it with --decoder {folder}, or"
            " name another folder"
        )
    missing = [file for file in (OWN, SHUFFLED) if not (folder / file).exists()]
    for number, file in enumerate(missing):

        def done(step: int, before: int = number * made.steps) -> None:
            target.report(before + step, len(missing) * made.steps)

        decoder, losses = fit(lesson, made, longest, target.reasoner.device, shuffled=file == SHUFFLED, done=done)
        known = read_json(folder / RECORD, "record of the decoder", missing={})
        loss = {**known.get("loss", {}), file.partition(".")[0]: losses}
        write_json(folder / RECORD, {**asdict(made), "longest": longest, "loss": loss})
        save(folder, file, decoder)
    return folder


def lesson_of(
    target: Target, settings: DecodeSettings, positions: list[str], vectors: np.ndarray
) -> tuple[Lesson, Made, int]:
    """What a run has to train on, what the decoder is made of, and how long its steps may be."""
    part = split_problems(problem_of(target.data), settings.seed)
    texts, finite = result_first(target.data), np.isfinite(vectors).all(-1)
    known = finite[:, :, None] & (texts != "")[:, None]
    triples = np.argwhere(known)
    fitted, chosen = (triples[part[triples[:, 0]] == number] for number in (0, 1))
    n = len(np.unique(problem_of(target.data)[fitted[:, 0]]))
    if n < FEWEST or not len(chosen):
        raise UsageError(
            f"decode --train: {target.run} has {n} problems with steps to train on (70% of all); it needs {FEWEST} at"
            " least, and some hundred to read well"
        )
    written = [texts[row, step] for row, _, step in fitted]
    alphabet = "".join(sorted(set("".join(written))))
    longest = 1 + max(map(len, written))
    tokens = np.full((*texts.shape, longest), -1)
    for place, text in np.ndenumerate(texts):
        # A character that was never trained on cannot be written; the step is cut before it.
        line = [alphabet.find(character) + 1 for character in text]
        line = [*line[: line.index(0) if 0 in line else None], END][:longest]
        tokens[place][: len(line)] = line
    made = Made(
        run=target.run, fingerprint=str(target.lake.attributes(target.run)["fingerprint"]) if target.lake else "",
        positions=tuple(positions), n_step=1 + int(fitted[:, 2].max()), alphabet=alphabet, hidden=vectors.shape[-1],
        width=settings.width, steps=settings.steps, seed=settings.seed,
        n_problem=len(np.unique(problem_of(target.data)[part < 2])),
        questions=tuple(sorted(set(digests(target.data)[part < 2]))),
    )  # fmt: skip
    chosen = chosen[chosen[:, 2] < made.n_step]
    return Lesson(torch.from_numpy(vectors), torch.from_numpy(tokens), fitted, chosen), made, longest


def fit(
    lesson: Lesson, made: Made, longest: int, device: torch.device, *, shuffled: bool, done: Callable[[int], None]
) -> tuple[LearnedDecoder, list[float]]:
    """A decoder, and its losses on the problems that the best of its looks was chosen by, in nats a character."""
    torch.manual_seed(made.seed)
    rng = np.random.default_rng([made.seed, int(shuffled)])
    vectors, tokens = lesson.vectors.clone(), lesson.tokens.to(device)
    if shuffled:
        for part in (lesson.fitted, lesson.chosen):
            rows = np.unique(part[:, 0])
            vectors[rows] = lesson.vectors[rng.permutation(rows)]
    finite = vectors.isfinite().all(-1).numpy()  # shuffled, a problem may have got a thought that is missing
    fitted, chosen = (part[finite[part[:, 0], part[:, 1]]] for part in (lesson.fitted, lesson.chosen))
    decoder = LearnedDecoder(made, longest)
    decoder.standardise(lesson.vectors[np.unique(lesson.fitted[:, 0])])
    decoder, vectors = decoder.to(device), vectors.to(device)
    looked_at = rng.permutation(chosen)[:LOOKED_AT]

    def loss_of(rows: np.ndarray) -> Tensor:
        example, thought, step = torch.from_numpy(rows.T.copy()).to(device)
        loss: Tensor = decoder(vectors[example, thought], thought, step, tokens[example, step])
        return loss

    optimizer = torch.optim.AdamW(decoder.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    best, losses = copy.deepcopy(decoder.state_dict()), list[float]()
    for number in range(made.steps):
        warm = min(1.0, (number + 1) / max(1.0, WARMUP * made.steps))
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * number / made.steps)))
        optimizer.zero_grad()
        loss_of(fitted[rng.integers(len(fitted), size=BATCH)]).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(decoder.parameters(), CLIP)
        optimizer.step()
        if (number + 1) * LOOKS // made.steps > number * LOOKS // made.steps:
            with torch.inference_mode():
                losses.append(float(loss_of(looked_at)))
            if losses[-1] <= min(losses):
                best = copy.deepcopy(decoder.state_dict())
        done(number + 1)
    decoder.load_state_dict(best)
    return decoder.eval(), losses
