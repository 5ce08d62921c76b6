"""Before a run: model loaded, data read and encoded, axes known; and one batch of it, thought through and placed."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from extract.run.data import Problems, read_problems
from schemas import RunSpec, Scoring, UsageError
from schemas.controls import settings_of
from schemas.names import check_name
from store import MAX_SHARD_EXAMPLES, RunLayout, check_model, check_run, taken_up

if TYPE_CHECKING:
    from extract.model.own import OwnModel
    from extract.model.reasoner import Reasoner
    from extract.model.thinking import Thinking

IN_FLIGHT = 3
"""Shards' worth of memory that a run may take: one being filled, one being encoded, and its encoded bytes."""
BATCHES = 4
"""A shard's worth of memory is at least as many batches: few would be of questions of any length."""
CARD = 0.7
"""Part of a GPU's memory beside the model that batches are made to fit into."""
MEMORY = 4.0
"""Default bound of the activations in memory, in GiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Everything checked before anything is paid: model loaded, data read and encoded, axes known."""

    model: str
    reasoner: "Reasoner | OwnModel"
    problems: Problems
    prompts: list[list[int]]
    layout: RunLayout
    spec: RunSpec
    checkpoint: str
    """Where the weights came from: a shipped name, a hub id, or a folder's last part."""
    base: str | None
    """Likewise where its base model came from, if that was named."""
    memory: int
    """Bound of the activations in memory, in bytes."""
    n_answer: int
    """Answer places of a pass: those of the longest answer that may be written, or is given."""
    skipped: int = 0
    """Questions left out because they do not fit into the model's context."""

    @property
    def run(self) -> str:
        """Run's name: ``MODEL/DATASET``."""
        return f"{self.model}/{self.problems.name}"

    @property
    def scoring(self) -> Scoring:
        """How answers are read and compared."""
        return Scoring(self.problems.answer_kind, prefix=self.reasoner.answer_prefix)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the run's values."""
        return {
            "spec": self.spec.to_json(),
            "data": {"name": self.problems.name, "sha256": self.problems.fingerprint, "n_example": len(self.problems)},
            **self.reasoner.fingerprint,
        }

    def model_arrays(self) -> dict[str, Any]:
        """What offline lenses need of the model; at real sizes a gigabyte that comes off the GPU, and seconds."""
        reasoner = self.reasoner
        return {
            "unembedding": reasoner.unembedding,
            "final_norm_weight": reasoner.final_norm_weight,
            "final_norm_bias": reasoner.final_norm_bias,
            "token_string": reasoner.token_strings,
        }

    @property
    def model_attributes(self) -> dict[str, Any]:
        """What the lake says of the model."""
        reasoner = self.reasoner
        names = ("architecture", "n_layer", "n_head", "hidden", "n_latent", "final_norm", "final_norm_epsilon")
        ids = ("pad_id", "bot_id", "eot_id", "eos_id")
        plain = {name: getattr(reasoner, name) for name in (*names, *ids, "answer_prefix")}
        capped = {} if reasoner.logit_softcap is None else {"logit_softcap": reasoner.logit_softcap}
        return {
            **plain,
            **capped,
            **settings_of(reasoner.control),
            "protocol": reasoner.protocol.name,
            **({} if reasoner.described is None else {"protocol_fields": dict(reasoner.described)}),
            "checkpoint": self.checkpoint,
            **({} if self.base is None else {"base": self.base}),
            "fingerprint": dict(reasoner.fingerprint),
        }


def _origin(source: str) -> str:
    """What a lake says of where a model came from: no path of this machine."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def batches(prepared: Prepared, shard: int) -> Iterator[list[int]]:
    """Examples of a shard, in batches of questions of like length."""
    rows = prepared.layout.shard_slice(shard)
    return _batches(prepared, range(rows.start, rows.stop))


def _batches(prepared: Prepared, examples: range) -> Iterator[list[int]]:
    """Batches of the size that the spec asks for, smaller ones where questions are long.

    On a GPU its own memory bounds a batch. On a CPU the batches share the memory of the shard, and a shard is to be
    more than a few of them, or each would be as wide as the shard's longest question.
    """
    on_card = prepared.reasoner.device.type == "cuda"
    most = _card_bytes(prepared) if on_card else prepared.memory // IN_FLIGHT // BATCHES
    bytes_of_row = _card_row_bytes if on_card else row_bytes
    batch = list[int]()
    for index in sorted(examples, key=lambda index: (len(prepared.prompts[index]), index)):
        n_row = len(batch) + 1
        if batch and (n_row > prepared.spec.batch_size or n_row * bytes_of_row(prepared, index) > most):
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _card_bytes(prepared: Prepared) -> int:
    """What batches may take of the GPU: of all its memory, so that the same card always makes the same batches."""
    import torch

    total = torch.cuda.get_device_properties(prepared.reasoner.device).total_memory
    return int(CARD * (total - cast("Reasoner", prepared.reasoner).nbytes))


def _card_row_bytes(prepared: Prepared, longest: int) -> int:
    """Bytes on the GPU of one row of a batch: captured twice (one batch is copied while the next runs), and at work."""
    layout, reasoner, n_prompt = prepared.layout, cast("Reasoner", prepared.reasoner), len(prepared.prompts[longest])
    n_key = n_prompt + layout.places.n_middle - 1 + prepared.n_answer
    states = n_prompt * (8 * layout.hidden + 4 * reasoner.inner) * 4
    attention = 4 * layout.n_head * n_prompt * n_key * 4
    logits = 3 * reasoner.vocabulary * prepared.n_answer * 4
    return 2 * row_bytes(prepared, longest) + n_key * reasoner.key_value_bytes + states + attention + logits


def row_bytes(prepared: Prepared, longest: int, dtype: str | None = None) -> int:
    """Bytes of one row of a batch; ``longest`` is the example of the longest question, ``dtype`` the stored type."""
    layout, n_prompt = prepared.layout, len(prepared.prompts[longest])
    key = n_prompt + layout.places.n_middle - 1 + prepared.n_answer
    position = key if prepared.spec.rows == "full" else key - n_prompt + 1
    n_state = (1 + len(prepared.spec.parts)) * layout.n_layer + 1
    states = (n_state * position + (1 + 2 * layout.n_round) * layout.n_latent) * layout.hidden
    attention = layout.n_layer * layout.n_head * position * key
    return (states + attention) * np.dtype(dtype or layout.dtype).itemsize


def held_bytes(prepared: Prepared, shard_examples: int) -> int:
    """Bytes of the fullest shard before it is encoded: its batches, each as wide as its longest question."""
    every = range(len(prepared.prompts))
    shards = (every[start : start + shard_examples] for start in every[::shard_examples])
    return max(
        sum(len(batch) * row_bytes(prepared, batch[-1]) for batch in _batches(prepared, shard)) for shard in shards
    )


def split_name(text: str, what: str) -> tuple[str, str]:
    """``NAME=VALUE`` as a pair.

    Raises
    ------
    UsageError
        If it has not that form, or nothing can be called so.
    """
    name, _, value = text.partition("=")
    if not value:
        raise UsageError(f"{what} {text!r} is not of the form NAME={what.upper()}")
    check_name(name, what, ("results", "zarr.json"))
    return name, value


def _fitting(
    reasoner: "Reasoner | OwnModel", questions: Sequence[str], n_answer: int, data: str, *, skip_long: bool
) -> tuple[list[list[int]], list[int]]:
    """Tokens of the questions that fit into the model's context, and which of the questions they are."""
    from extract.model.thinking import check_length

    prompts, keep = [], []
    for index, question in enumerate(questions):
        prompt = reasoner.encode(question)
        try:
            check_length(reasoner, len(prompt), n_answer)
        except UsageError as error:
            if skip_long:
                continue
            raise UsageError(
                f"{data}, question {index + 1}: {error}; leave such questions out with --skip-long"
            ) from error
        prompts.append(prompt)
        keep.append(index)
    if not keep:
        raise UsageError(f"{data}: none of {len(questions)} questions fits into the model's context")
    return prompts, keep


def prepare(
    model: str,
    data: str,
    lake: str | os.PathLike[str],
    spec: RunSpec,
    *,
    base: str | None = None,
    lora_alpha: float | None = None,
    protocol: str | None = None,
    thoughts: int | None = None,
    question_field: str | None = None,
    answer_field: str | None = None,
    skip_long: bool = False,
    memory: float = MEMORY,
    shard_examples: int | None = None,
    rebuild_static: bool = False,
) -> Prepared:
    """Load a model, read and encode the data, and check all of it against an existing lake; nothing is written.

    Parameters
    ----------
    model
        ``NAME=CHECKPOINT``, or a shipped name alone; ``NAME=MODULE:FUNCTION``: code of one's own (:class:`OwnModel`).
    data
        ``FILE`` or ``NAME=FILE``; see :func:`extract.run.data.read_problems`.
    lake
        Folder or URL that is to take the run; there need not be one yet.
    spec
        Settings.
    base
        Base model's folder or hub id, where the checkpoint does not hold its configuration and tokenizer.
    lora_alpha
        Scale of the low-rank adapters, where the checkpoint has them.
    protocol, thoughts
        How the model is asked and fed, and how often, where the checkpoint does not say.
    question_field, answer_field
        Fields of the data that hold question and answer, where none of the known forms does.
    skip_long
        Leave out questions that do not fit into the model's context, instead of refusing the data.
    memory
        Bound of the activations in memory, in GiB; it decides how many examples make a shard, unless the run is there
        already, and how many long questions a batch, which moves results by rounding only.
    shard_examples
        Examples of a shard, a power of two, instead of as many as the memory holds.
    rebuild_static
        Overlook damage of the lake's documents, as it is to be mended.

    Raises
    ------
    UsageError
        For whatever is wrong with the input.
    """
    name, checkpoint = split_name(model if "=" in model else f"{model}={model}", "model")
    problems = read_problems(
        data, spec.limit, answer=spec.answer, question_field=question_field, answer_field=answer_field
    )
    spec = replace(spec, answer=problems.answer_kind)
    from extract.model.load import load_reasoner  # torch and transformers: wrong data need not wait for them
    from extract.model.own import is_own, open_own

    reasoner: Reasoner | OwnModel
    if is_own(checkpoint):
        reasoner = open_own(
            checkpoint, base=base, device=spec.device, lora_alpha=lora_alpha, protocol=protocol, thoughts=thoughts
        )
        if spec.compute_dtype not in ("float32", reasoner.compute_dtype):
            raise UsageError(f"{checkpoint} computes in {reasoner.compute_dtype}; leave --compute-dtype out")
        spec = replace(spec, compute_dtype=reasoner.compute_dtype)
    else:
        reasoner = load_reasoner(
            checkpoint, base=base, device=spec.device, dtype=spec.compute_dtype, lora_alpha=lora_alpha,
            protocol=protocol, thoughts=thoughts,
        )  # fmt: skip
    n_answer = max(spec.max_new_tokens, *(len(reasoner.answer_tokens(answer)) for answer in problems.gold_answer))
    prompts, keep = _fitting(reasoner, problems.question, n_answer, data, skip_long=skip_long)
    skipped = len(problems) - len(keep)
    if skipped:
        problems = problems.take(keep)
    layout = RunLayout(
        n_example=len(problems), n_layer=reasoner.n_layer, n_head=reasoner.n_head, hidden=reasoner.hidden,
        n_latent=reasoner.n_latent, n_closing=reasoner.places.n_closing, bot=reasoner.places.bot,
        n_round=reasoner.protocol.n_round, longest_question=max(len(prompt) for prompt in prompts) - 1,
        n_answer=spec.max_new_tokens, capture=spec.capture, dtype=spec.dtype, answer_kind=problems.answer_kind,
    )  # fmt: skip
    prepared = Prepared(
        model=name, reasoner=reasoner, problems=problems, prompts=prompts, layout=layout, spec=spec,
        checkpoint=_origin(checkpoint), base=None if base is None else _origin(base), memory=int(memory * 2**30),
        n_answer=n_answer, skipped=skipped,
    )  # fmt: skip
    if shard_examples is None:
        sizes = [2**power for power in range(MAX_SHARD_EXAMPLES.bit_length())]
        shard_examples = max(
            (size for size in sizes if held_bytes(prepared, size) <= prepared.memory / IN_FLIGHT), default=1
        )
    layout = taken_up(lake, prepared.run, replace(layout, shard_bytes=shard_examples * layout.example_bytes))
    prepared = replace(prepared, layout=layout)
    held = held_bytes(prepared, layout.shard_examples)
    if held > prepared.memory / IN_FLIGHT:
        raise UsageError(
            f"--memory {memory:g} is too small: shards of {layout.shard_examples} of these examples take"
            f" {held * IN_FLIGHT / 2**30:.2g} GiB"
        )
    check_against(prepared, lake, rebuild_static=rebuild_static)
    return prepared


def check_against(prepared: Prepared, lake: str | os.PathLike[str], *, rebuild_static: bool = False) -> None:
    """Check that a lake can take up the run; nothing is touched.

    Raises
    ------
    SpecMismatchError
        If it holds this run or model made from something else; the differences are named.
    UsageError
        If no lake can be there.
    """
    check_run(lake, prepared.run, prepared.layout, prepared.identity, rebuild=rebuild_static)
    if not rebuild_static:
        check_model(lake, prepared.model, prepared.model_attributes)


def begin(prepared: Prepared, batch: Sequence[int]) -> Callable[[], "Thinking"]:
    """Think through one batch of examples, as the spec says; see :meth:`extract.model.reasoner.Reasoner.begin`."""
    return prepared.reasoner.begin(
        [prepared.prompts[index] for index in batch],
        capture=prepared.spec.rows,
        parts=prepared.spec.parts,
        stored_dtype=prepared.spec.dtype,
        max_new_tokens=prepared.spec.max_new_tokens,
        gold=[prepared.problems.gold_answer[index] for index in batch],
    )


def think(prepared: Prepared, batch: Sequence[int]) -> "Thinking":
    """Think through one batch of examples: :func:`begin` and its end."""
    return begin(prepared, batch)()


def place(
    thinking: "Thinking", prepared: Prepared, slots: np.ndarray, batch: Sequence[int], values: dict[str, Any]
) -> None:
    """Put a batch into the arrays of a shard, aligned at ``bot``. Activations stay where they are.

    Parameters
    ----------
    thinking
        Of the batch.
    prepared
        Its run.
    slots : (example,)
        Where the examples stand in the arrays.
    batch
        Their numbers.
    values
        By variable, from :meth:`store.RunLayout.empty`.
    """
    first_key = prepared.layout.n_question - thinking.n_before
    first = first_key if prepared.spec.rows == "full" else 0
    values["hidden_state"].add(slots, (0, first, 0), thinking.hidden_state)
    values["final_state"].add(slots, (first, 0), thinking.final_state)
    for name, part in thinking.parts.items():
        values[name].add(slots, (0, first, 0), part)
    values["latent_embedding"].add(slots, (0, 0), thinking.latent_embedding)
    for name, part in thinking.iterations.items():
        values[name].add(slots, (0, 0, 0), part)
    values["attention"].add(slots, (0, 0, first, first_key), thinking.attention)
    values["token"][slots, first : first + thinking.token.shape[1]] = thinking.token
    values["answer_logprob"][slots] = thinking.answer_logprob
    scoring = prepared.scoring
    answers = [scoring.answer(text) for text in thinking.generated_text]
    gold = [scoring.gold(prepared.problems.gold_answer[index]) for index in batch]
    values["generated_text"][slots] = np.array(thinking.generated_text, dtype=object)
    values["predicted_answer"][slots] = scoring.column(answers)
    values["correct"][slots] = [scoring.match(*pair) for pair in zip(answers, gold, strict=True)]
