"""A run and the model it came from, opened for going back in."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from extract.model.load import ComputeDtype, load_reasoner
from extract.model.own import is_own
from extract.model.reasoner import Reasoner
from extract.reenter.draws import Draws
from extract.reenter.statistics import with_accuracy
from extract.reenter.sweep import Condition, sweep
from extract.reenter.values import StoredValues
from schemas import OPERATIONS, Rule, Scoring, UsageError, answer_word, is_number_token, latent_labels
from schemas.progress import Progress
from store import Lake

LENS_ROWS = 256


@dataclass(slots=True)
class Target:
    """What an experiment goes back into."""

    lake: Lake | None
    run: str
    data: xr.Dataset
    reasoner: Reasoner
    values: StoredValues
    made_in: str = "float32"
    """Type in which the run was computed."""
    checkpoint: str = ""
    """Where the model was loaded from, as for :func:`extract.load_reasoner`."""
    rule: Rule = "default"
    batch_rows: int | None = None
    folder: Path | None = None
    progress: Progress | None = None
    opened: "Callable[[str], Target] | None" = None
    """Opens another run of the lake, its model where the user says that it is."""
    _likeliest: dict[str, np.ndarray] = field(default_factory=dict)
    _carrying: np.ndarray | None = None

    @property
    def compute_dtype(self) -> str:
        """Type in which the model computes now."""
        return str(self.reasoner.model.dtype).removeprefix("torch.")

    @property
    def thoughts(self) -> list[str]:
        """Names of the continuous thoughts."""
        return latent_labels(self.reasoner.n_latent)

    def report(self, done: int, total: int) -> None:
        """Tell whoever watches how many rows are done, and of how many."""
        if self.progress is not None:
            self.progress(done, total)

    def need_thoughts(self, experiment: str) -> None:
        """Refuse an experiment on thoughts where there are none."""
        if not self.thoughts:
            raise UsageError(f"{experiment}: {self.run} has no thoughts (protocol {self.reasoner.protocol.name})")

    @property
    def layers(self) -> list[int]:
        """All layers."""
        return list(range(self.reasoner.n_layer))

    @property
    def scoring(self) -> Scoring:
        """How answers are read and compared."""
        return Scoring(self.data.attrs.get("answer_kind", "number"), self.rule, self.reasoner.answer_prefix)

    @property
    def gold(self) -> np.ndarray:
        """Gold answers ``(example,)``: numbers, or texts."""
        return self.scoring.column(self.scoring.gold(str(text)) for text in self.data["gold_answer"].values)

    @property
    def max_new_tokens(self) -> int:
        """Longest answer, as the run was made."""
        return int(json.loads(self.data.attrs.get("spec", "{}")).get("max_new_tokens", 24))

    @property
    def answer_positions(self) -> tuple[str, ...]:
        """Every place of an answer: as many as the run had room for, or as the longest gold answer takes, if more."""
        texts = {str(text) for text in self.data["gold_answer"].values}
        longest = max((len(self.reasoner.answer_tokens(text)) for text in texts), default=0)
        return tuple(f"a{index}" for index in range(max(self.max_new_tokens, longest)))

    @property
    def strata(self) -> np.ndarray | None:
        """Difficulty ``(example,)``: number of operations, as the data says or as the written chains show."""
        if "n_operation" in self.data.variables and self.data["n_operation"].dtype.kind in "iu":
            return np.asarray(self.data["n_operation"].values).astype(int)
        if "intermediate_result" in self.data.variables:
            steps = self.data["intermediate_result"].notnull().sum("step").values
            if "step_text" in self.data.variables:
                steps = steps + (self.data["step_text"] != "").sum("step").values
            return np.asarray(steps).astype(int) if steps.any() else None
        return None

    def likeliest_tokens(self, position: str) -> np.ndarray:
        """Likeliest token ``(example,)`` of the unembedded state at a position."""
        if position not in self._likeliest:
            unembedding = self.reasoner.unembedding
            states = self.data["final_state"].sel(position=position)
            tokens = []
            for start in range(0, states.sizes["example"], LENS_ROWS):
                block = states.isel(example=slice(start, start + LENS_ROWS)).values.astype(np.float32)
                tokens.append((block @ unembedding.T).argmax(1))
            self._likeliest[position] = np.concatenate(tokens)
        return self._likeliest[position]

    def number_states(self, position: str) -> np.ndarray:
        """Whether the unembedded state at a position ``(example,)`` is a number: its likeliest token has a digit.

        Where answers are not numbers: whether that token begins a word of the run's steps or answers.
        """
        if self._carrying is None:
            self._carrying = self._carrying_tokens()
        return np.asarray(self._carrying[self.likeliest_tokens(position)])

    def _carrying_tokens(self) -> np.ndarray:
        """Which tokens of the vocabulary are numbers, or begin a word that a step arrives at or that answers."""
        if self.scoring.kind == "number":
            return np.array([is_number_token(text) for text in self.reasoner.token_strings])
        words = {answer_word(str(text), self.scoring.kind) for text in self.data["gold_answer"].values}
        if "intermediate_text" in self.data.variables:
            words |= set(map(str, self.data["intermediate_text"].values.ravel())) - {""}
        begins = np.zeros(len(self.reasoner.token_strings), dtype=bool)
        begins[[self.reasoner.first_token(f"{space}{word}") for word in words for space in ("", " ")]] = True
        return begins

    def number_thoughts(self, site: str) -> np.ndarray:
        """Which thoughts carry a number ``(example, thought)``.

        At ``latent_embedding`` a thought carries what the state it was made of reads (that at ``bot`` for
        ``ct0``, at ``ct0`` for ``ct1``); at ``hidden_state`` its own state.
        """
        positions = ["bot", *self.thoughts[:-1]] if site == "latent_embedding" else self.thoughts
        return np.stack([self.number_states(position) for position in positions], axis=1)

    def random_like(self, mask: np.ndarray, seed: int) -> np.ndarray:
        """As many thoughts as ``mask (example, thought)`` has in each example, drawn at random."""
        out = np.zeros_like(mask)
        for row, line in enumerate(mask):
            drawn = np.random.default_rng([seed, row, 17]).permutation(len(line))[: int(line.sum())]
            out[row, drawn] = True
        return out

    def where(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        """Thoughts ``(example, thought)`` as examples by position."""
        return {position: mask[:, index] for index, position in enumerate(self.thoughts)}

    def sweep(
        self, conditions: Sequence[Condition], *, answers: dict[str, list[str]] | None = None,
        examples: Sequence[int] | None = None, observe: bool = False, draws: Draws | None = None,
    ) -> xr.Dataset:  # fmt: skip
        """Run conditions over examples; coordinates of the conditions, and the problems, are put on the result."""
        chosen = self.data["example"].values if examples is None else np.asarray(examples)
        if answers is None:
            gold = dict(
                zip(self.data["example"].values.tolist(), self.data["gold_answer"].values.tolist(), strict=True)
            )
            answers = {"gold": [str(gold[int(example)]) for example in chosen]}
        result = sweep(
            self.reasoner, self.data, conditions, answers=answers, examples=[int(example) for example in chosen],
            values=self.values, batch_rows=self.batch_rows, rule=self.rule, folder=self.folder, progress=self.progress,
            observe=observe, draws=draws,
        )  # fmt: skip
        if "problem" in self.data.coords:
            problem = self.data["problem"].sel(example=chosen).values
            result = result.assign_coords(problem=("example", problem))
        return result.assign_coords(condition_coords(conditions))

    def accuracy(
        self, conditions: Sequence[Condition], *, seed: int, rows: np.ndarray | None = None,
        counted: np.ndarray | None = None, outcomes: bool = False, observe: bool = False, draws: Draws | None = None,
    ) -> xr.Dataset:  # fmt: skip
        """Run conditions over rows of the run, by default all, and measure what they do to right answers.

        Options are those of :meth:`sweep` and of :func:`extract.reenter.statistics.with_accuracy`.
        """
        chosen = np.arange(self.data.sizes["example"]) if rows is None else rows
        examples = self.data["example"].values[chosen].tolist()
        swept = self.sweep(conditions, examples=examples, observe=observe, draws=draws)
        strata = None if self.strata is None else self.strata[chosen]
        return with_accuracy(swept, self.gold[chosen], counted=counted, strata=strata, outcomes=outcomes, seed=seed)


def change_of(operation: str) -> dict[str, str]:
    """Fields of an operation's name: ``mean:run`` is the operation ``mean`` with the average ``run``."""
    name, sign, average = operation.partition(":")
    if sign and name in OPERATIONS and not (average and "average" in OPERATIONS[name].takes):
        raise UsageError(f"{operation!r} is no operation; only a mean has an average, as mean:run")
    return {"operation": name, "average": average} if average else {"operation": name}


def condition_coords(conditions: Sequence[Condition]) -> dict[str, tuple[str, np.ndarray]]:
    """Labels of conditions as coordinates, the untouched run first; missing ones are "", -1 or NaN."""
    names = dict.fromkeys(name for condition in conditions for name in condition.labels)
    coords: dict[str, tuple[str, np.ndarray]] = {}
    for name in names:
        given = [condition.labels.get(name) for condition in conditions]
        sample = next(value for value in given if value is not None)
        missing: object = "" if isinstance(sample, str) else -1 if isinstance(sample, int) else np.nan
        filled = [missing, *(missing if value is None else value for value in given)]
        coords[name] = ("condition", np.array(filled, dtype=object if isinstance(sample, str) else None))
    if "control" in coords:
        coords["control"][1][0] = "untouched"
    return coords


def open_target(
    lake: Lake,
    run: str,
    *,
    checkpoint: str | None = None,
    base: str | None = None,
    device: str = "cpu",
    compute_dtype: ComputeDtype | None = None,
    lora_alpha: float | None = None,
    limit: int | None = None,
) -> Target:
    """Open a run together with its model.

    Parameters
    ----------
    lake
        Lake.
    run
        ``MODEL/DATASET``.
    checkpoint
        Where the model is: folder, hub id or shipped name; by default what the lake remembers.
    base
        As for :func:`extract.load_reasoner`; by default what the checkpoint says, else what the lake remembers.
    device, lora_alpha
        As for :func:`extract.load_reasoner`.
    compute_dtype
        Type the model computes in; by default the one the run was made in.
    limit
        Only the first examples.

    Raises
    ------
    UsageError
        If the run is not there, or the checkpoint is not the model that made it.
    """
    data = lake[run]
    attributes = lake.model_attributes(run.split("/")[0])
    made_in = lake.attributes(run)["spec"]["compute_dtype"]
    remembered, known_base = str(attributes.get("checkpoint", "")), attributes.get("base")
    load = partial(
        load_reasoner, checkpoint or remembered, device=device, dtype=compute_dtype or made_in, lora_alpha=lora_alpha,
        protocol=attributes.get("protocol_fields", attributes.get("protocol")), thoughts=attributes.get("n_latent"),
    )  # fmt: skip
    try:
        reasoner = load(base=base or (known_base if checkpoint is None else None))
    except UsageError as error:
        if is_own(checkpoint or remembered):
            raise UsageError(f"nothing can be put back into the model of {run}: {error}") from error
        if checkpoint is None:
            raise UsageError(
                f"the model of {run} is not at hand ({error}); say where it is with --checkpoint, and give its base"
                " model with --base if the checkpoint does not name it"
            ) from error
        if base is not None or known_base is None:
            raise
        reasoner = load(base=known_base)  # the checkpoint does not say what its base is
    _check_fingerprint(reasoner, attributes.get("fingerprint"), checkpoint or remembered, run)
    if reasoner.protocol.n_round:
        raise UsageError(
            f"{run}: protocol {reasoner.protocol.name} computes its thoughts side by side in"
            f" {reasoner.protocol.n_round} rounds; experiments change a thought while those after it are still to come,"
            " so they need thoughts one after another"
        )
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    if limit is not None:
        data = data.isel(example=slice(0, limit))
    if not data.sizes["example"]:
        raise UsageError(f"run {run} has no examples yet")
    return Target(
        lake=lake, run=run, data=data, reasoner=reasoner, values=StoredValues(data, reasoner), made_in=made_in,
        checkpoint=checkpoint or remembered,
    )  # fmt: skip


def _check_fingerprint(reasoner: Reasoner, made_by: object, checkpoint: str, run: str) -> None:
    """Refuse a model whose parts are others than those that made the run."""
    for name, digest in reasoner.fingerprint.items():
        if isinstance(made_by, dict) and made_by.get(name) not in (None, digest):
            raise UsageError(
                f"{checkpoint} is not the model that made {run}: other {name}"
                f" ({digest[:12]} instead of {str(made_by[name])[:12]})"
            )
