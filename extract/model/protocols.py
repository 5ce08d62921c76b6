"""How a model is asked and fed its thoughts: one table entry per kind of latent reasoner."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from schemas import Places, UsageError, nearest
from schemas.checks import check_whole

EOS = "eos"
"""Stands for the tokenizer's own end token, whatever its text."""
TURN = "turn"
"""Stands for the token with which a chat template begins the model's turn; without a template, for a newline."""
PEFT = "base_model.model."
"""Before the names of weights in a folder that PEFT saved."""
MIXING = ("temperature", "top_k", "top_p", "min_p")
"""Fields that decide, with ``max_topk``, which words are mixed."""
PRJ, PROJECTOR = ("prj", ("1", "3", "ln")), ("projector", ("1", "3", "4"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """What stands around the question, what is fed at a thought, and what the weights of both are called.

    A token is named by its text: that of a row of the checkpoint (:attr:`rows`), one the tokenizer knows, or ``eos``;
    where mixtures of words are fed, by any text that it is the token of.
    """

    name: str
    prefixes: tuple[str, ...] = ("",)
    """What may stand before the language model's names of weights."""
    unused: tuple[str, ...] = ()
    """Beginnings of names of weights that may be there and are not used: copies, and helpers of the training."""
    rows: tuple[str, ...] = ()
    """Tokens of the rows after the base vocabulary, in their order, unless the tokenizer knows them all."""
    rows_after: Literal["vocabulary", "tokenizer"] = "vocabulary"
    """Whether these rows come after the ``vocab_size`` of the base or after its tokenizer's last token."""
    n_unwritten: int = 0
    """Rows at the end of the vocabulary that the model may not write."""
    trimmed: bool = False
    """Whether spaces around the question are taken away and double ones made single."""
    before_question: str = ""
    """Text put before the question."""
    after_question: str = ""
    """Text put after the question."""
    chat: bool = False
    """Whether all of that is what the user says in the tokenizer's chat template, where it has one."""
    before_bot: tuple[str, ...] = ()
    """Tokens between question and ``bot``; they count as the question's last."""
    if_known: tuple[str, ...] = ()
    """Those of :attr:`before_bot` that are left out where the tokenizer does not know them."""
    bot: str = ""
    """Token at which the first thought is computed; none where the model answers from the question's last token.

    Where mixtures of words are fed, ``turn``, or a text: its last token, the others count as the question's last.
    """
    closing: tuple[str, ...] = ()
    """Tokens fed after the thoughts, at ``eot`` and ``eos``."""
    fed: Literal["projection", "state", "vector", "mixture", "nothing"] = "nothing"
    """At a thought: a projection of the state before (after the final norm), that state, one learned vector, or the
    embeddings of the words that the state makes likeliest, mixed by their probabilities."""
    temperature: float = 1.0
    """Of the probabilities of words that are mixed."""
    top_k: int = 0
    """How many of the likeliest words are kept first; 0: all."""
    top_p: float = 1.0
    """Of these, as many as together have this share."""
    min_p: float = 0.0
    """Of these, those with at least this share of the likeliest word's probability."""
    max_topk: int = 0
    """Of these, as many of the likeliest as are mixed at the most."""
    projection: tuple[str, tuple[str, str, str]] = PRJ
    """What the projection is called, and its two linear layers and layer norm below that."""
    vector: str = ""
    """Name of the learned vector's weight."""
    n_latent: int | None = None
    """Thoughts of a checkpoint that does not say; ``None``: it has to be said."""
    answer_prefix: str = ""
    """Text between the thoughts and the answer itself."""
    after_prefix: str = " "
    """Text between the prefix and the answer itself."""
    given_prefix: bool = False
    """Whether the prefix is fed rather than written by the model."""
    n_round: int = 0
    """Rounds in which all thoughts are computed side by side; 0: one after another."""
    placeholder: str = ""
    """With rounds, the token that stands at every thought before the first of them."""
    writes_steps: bool = False
    """Whether it writes steps before the prefix, so that an answer is judged after the steps that it wrote."""

    def __post_init__(self) -> None:
        """Check what hangs together."""
        if (self.fed == "vector") != bool(self.vector):
            raise UsageError(f"protocol {self.name}: fed is {self.fed!r}, vector {self.vector!r}; one needs the other")
        if (self.fed == "mixture") != bool(self.max_topk):
            raise UsageError(
                f"protocol {self.name}: fed is {self.fed!r}, max_topk {self.max_topk}; a mixture is of 1 word at least,"
                " and nothing else has words"
            )
        defaults = {field.name: field.default for field in fields(self)}
        idle = [name for name in MIXING if self.fed != "mixture" and getattr(self, name) != defaults[name]]
        if idle:
            raise UsageError(f"protocol {self.name}: {', '.join(idle)} set how words are mixed; fed is {self.fed!r}")
        if self.writes_steps and self.given_prefix:
            raise UsageError(
                f"protocol {self.name}: a model whose answer prefix is fed (given_prefix) writes no steps before it"
                " (writes_steps)"
            )
        if not (0 < self.temperature < math.inf and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise UsageError(
                f"protocol {self.name}: temperature is {self.temperature}, top_p {self.top_p}, min_p {self.min_p}; they"
                " lie above 0, above 0 and up to 1, and from 0 to 1"
            )
        if not self.bot and (self.fed != "nothing" or self.closing):
            raise UsageError(f"protocol {self.name} has thoughts or a closing token but no bot")
        if self.n_round < 0 or bool(self.n_round) != bool(self.placeholder):
            raise UsageError(
                f"protocol {self.name}: n_round is {self.n_round}, placeholder {self.placeholder!r};"
                " one needs the other"
            )
        if len(self.closing) > 2:
            raise UsageError(f"protocol {self.name} has {len(self.closing)} closing tokens; places are named for two")
        if strays := set(self.if_known) - set(self.before_bot):
            raise UsageError(f"protocol {self.name}: if_known names {', '.join(strays)}, which before_bot does not")

    def places(self, n_latent: int) -> Places:
        """Places between question and answer."""
        return Places(n_latent, len(self.closing), bool(self.bot))

    def check_thoughts(self, n_latent: Any, source: str) -> int:
        """Check a number of thoughts against what is fed.

        Raises
        ------
        UsageError
            If it is no whole number, 0 where there must be some, or not 0 where there can be none.
        """
        check_whole(source, n_latent, 0)
        if self.fed == "nothing" and n_latent:
            raise UsageError(f"{source} is {n_latent}; protocol {self.name} has no thoughts")
        if self.fed != "nothing" and not n_latent:
            raise UsageError(
                f"{source} is 0; protocol {self.name} needs a thought at least (direct and cot are without)"
            )
        return int(n_latent)

    def to_json(self) -> dict[str, Any]:
        """Fields that decide what is computed and are not the default, as plain JSON values; the number apart."""
        apart = ("name", "prefixes", "unused", "projection", "vector", "n_latent", "answer_prefix")
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(self)
            if field.name not in apart and (value := getattr(self, field.name)) != field.default
        }


CODI = Protocol(
    name="codi",
    prefixes=("codi.base_model.model.", "codi.", PEFT),
    unused=("decoder.", "pj_in.", "pj_out."),
    rows=("[PAD]", "[BOT]", "[EOT]"),
    n_unwritten=1,
    trimmed=True,
    bot="[BOT]",
    closing=("[EOT]",),
    fed="projection",
    n_latent=6,
    answer_prefix="The answer is:",
)
"""zhenyi4/codi with ``remove_eos True``, as released, and SIM-CoT on top of it (``decoder`` and ``pj_*``)."""
COCONUT = Protocol(
    name="coconut",
    prefixes=("base_causallm.", PEFT, ""),
    unused=("embedding.", "expainable_llm."),
    rows=("<|start-latent|>", "<|end-latent|>", "<|latent|>"),
    rows_after="tokenizer",
    after_question="\n",
    bot="<|start-latent|>",
    closing=("<|end-latent|>",),
    fed="state",
    answer_prefix="###",
)
"""facebookresearch/coconut, and its checkpoints under plain Hugging Face names."""
DIRECT = Protocol(
    name="direct", prefixes=COCONUT.prefixes, unused=COCONUT.unused, rows_after="tokenizer",
    after_question="\n", n_latent=0, answer_prefix="###",
)  # fmt: skip
"""The controls of Coconut's code: no thoughts and no markers; ``cot`` writes its steps before the answer."""
SOFT = Protocol(
    name="soft", prefixes=("", PEFT), chat=True, bot=TURN, closing=("\n",), fed="mixture", temperature=0.6, top_k=30,
    top_p=0.95, min_p=0.001, max_topk=10, answer_prefix="The answer is:", given_prefix=True,
)  # fmt: skip
"""eric-ai-lab/Soft-Thinking with its settings and without its sampling, for a number of thoughts that is the same in
every question; of a language model that need not have been trained to think."""
PROTOCOLS: dict[str, Protocol] = {
    entry.name: entry
    for entry in (
        CODI,
        # zhenyi4/codi with `remove_eos False`: an end token before bot and another after eot.
        replace(CODI, name="codi-eos", before_bot=(EOS,), closing=("[EOT]", EOS)),
        # connordilgren/are-lrms-easily-interpretable: no row for padding, LLaMA's turn ends before bot.
        replace(
            CODI, name="codi-multimode", rows=("[BOT]", "[EOT]"), n_unwritten=0, before_bot=("<|eot_id|>",),
            if_known=("<|eot_id|>",),
        ),
        # The controls of CODI: one learned vector at every thought.
        replace(CODI, name="codi-pause", fed="vector", vector="pause_embedding"),
        replace(CODI, name="codi-multipass-pause", fed="vector", vector="pause_embedding"),
        # ModalityDance/LatentTTS: adapters merged, markers in the tokenizer.
        replace(
            CODI, name="codi-hf", prefixes=("",), unused=(), rows=COCONUT.rows, n_unwritten=0, trimmed=False,
            bot=COCONUT.bot, closing=COCONUT.closing, projection=PROJECTOR, n_latent=None,
        ),
        # whyNLP/PCCoT: thoughts side by side in rounds, whose number its config gives; without a projection by default.
        replace(
            CODI, name="pccot", prefixes=(PEFT, ""), unused=(),
            rows=("<pcot.bot>", "<pcot.eot>", "<pcot.latent>", "[PAD]"), rows_after="tokenizer", n_unwritten=0,
            trimmed=False, bot="<pcot.bot>", closing=("<pcot.eot>",), projection=("prj", ("0", "2", "3")),
            n_latent=None, after_prefix="", given_prefix=True, n_round=3, placeholder="<pcot.latent>",
        ),
        COCONUT,
        # bmarti44/research-pipeline: as Coconut, one vector at every thought; in one pass or many it is the same.
        replace(COCONUT, name="pause", fed="vector", vector="pause_embedding"),
        replace(COCONUT, name="multipass-pause", fed="vector", vector="pause_embedding"),
        DIRECT,
        replace(DIRECT, name="cot", writes_steps=True),
        SOFT,
        # Of a model that was trained to think in words, as in the official code.
        replace(SOFT, name="soft-think", closing=("</think>",)),
        # Their control: the likeliest word itself is fed.
        replace(SOFT, name="hard", top_k=1),
        replace(SOFT, name="hard-think", top_k=1, closing=("</think>",)),
    )
}  # fmt: skip
BY_ROWS = "codi-multimode"
"""Differs from ``codi`` in the number of its rows alone, as an embedding that lost one would."""
PREFIXES = tuple(dict.fromkeys(prefix for entry in PROTOCOLS.values() for prefix in entry.prefixes if prefix)) + ("",)


def named_protocol(name: str) -> Protocol:
    """Protocol of a name.

    Raises
    ------
    UsageError
        If there is none, naming all.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"protocol {name!r} is not one of {', '.join(PROTOCOLS)}{nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def stated_protocol(stated: Any, source: str) -> Protocol | None:
    """What a file beside the weights says: a name, or fields of :class:`Protocol`, its ``name`` the one they change.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if stated is None:
        return None
    if isinstance(stated, str):
        return named_protocol(stated)
    if not isinstance(stated, Mapping) or not isinstance(stated.get("name"), str):
        raise UsageError(f"{source}: protocol is {stated!r}; it must be a name, or fields with the name they change")
    base = named_protocol(stated["name"])
    changes: dict[str, Any] = {}
    known = {field.name for field in fields(Protocol)}
    for key, value in stated.items():
        if key not in known:
            raise UsageError(f"{source}: protocol has no field {key!r}; it has {', '.join(sorted(known))}")
        before = 0 if key == "n_latent" else getattr(base, key)
        whole = type(before) is float and type(value) is int and abs(value) < 2**53
        changes[key] = float(value) if whole else _as_tuple(value)
        if not _fits(key, changes[key], before):
            raise UsageError(f"{source}: {key} of the protocol is {value!r}, {base.name} has {before!r}")
    if changes.get("fed", base.fed) not in ("projection", "state", "vector", "mixture", "nothing"):
        raise UsageError(f"{source}: fed is {changes['fed']!r}, not projection, state, vector, mixture or nothing")
    if changes.get("rows_after", base.rows_after) not in ("vocabulary", "tokenizer"):
        raise UsageError(f"{source}: rows_after is {changes['rows_after']!r}, not vocabulary or tokenizer")
    return replace(base, **changes)


def _fits(key: str, value: Any, known: Any) -> bool:
    """Whether a field's value is of the type that a known one has: texts in lists, whole numbers from 0 on."""
    if key == "projection":
        texts = (value[0], *value[1]) if isinstance(value, tuple) and len(value) == 2 else ()
        return len(texts) == 1 + len(PRJ[1]) and all(isinstance(text, str) for text in texts)
    if type(value) is not type(known):
        return False
    if isinstance(value, tuple):
        return all(isinstance(item, str) for item in value)
    return not isinstance(value, int) or value >= 0


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def protocol_notes(rule: Protocol, stated: Any, source: str) -> list[str]:
    """What is to be known of a protocol: that its number of rows alone tells it, or that a field of it does nothing."""
    notes = []
    if stated is None and rule.name == BY_ROWS:
        notes.append(f"{source} is read as {BY_ROWS}: it has two rows after the base's vocabulary, {CODI.name} three")
    if 0 < rule.top_k < rule.max_topk != PROTOCOLS[rule.name].max_topk:
        notes.append(f"protocol {rule.name}: max_topk is {rule.max_topk}, but top_k keeps {rule.top_k} words")
    return notes


def recognise(
    prefix: str, names: Collection[str], n_extra: int, *, markers: bool, arguments: Mapping[str, Any], source: str
) -> Protocol:
    """Protocol of a checkpoint that names none.

    Three rows after the vocabulary and a projection are the official CODI's, whose weights do not differ from those of
    ``codi-eos``: that one is to be named.

    Parameters
    ----------
    prefix
        What the language model's weights are called by.
    names
        All names of weights.
    n_extra
        Rows after the base vocabulary.
    markers
        Whether the tokenizer knows Coconut's markers.
    arguments
        Those of Coconut's training, where they lie beside the weights.
    source
        Named in what is raised.

    Raises
    ------
    UsageError
        If it could be several: naming them.
    """
    for control, argument in (("cot", "cot"), ("direct", "no_cot")):
        if arguments.get(argument):
            return PROTOCOLS[control]
    if PROTOCOLS["codi-pause"].vector in names and prefix.startswith("codi."):
        return PROTOCOLS["codi-pause"]
    if any(name.startswith("prj.") for name in names) or prefix.startswith("codi."):
        return PROTOCOLS[BY_ROWS if n_extra == len(PROTOCOLS[BY_ROWS].rows) else "codi"]
    if any(name.startswith("projector.") for name in names):
        return PROTOCOLS["codi-hf"]
    if PROTOCOLS["pause"].vector in names:
        return PROTOCOLS["pause"]
    if prefix == COCONUT.prefixes[0] or markers or arguments.get("coconut"):
        return COCONUT
    raise UsageError(
        f"{source} is a language model without projection or markers of thoughts; say with --protocol how it is asked"
        f" ({', '.join(PROTOCOLS)})"
    )
