"""Read a checkpoint: which protocol it follows, PEFT names merged into the base, projection, extra rows, tied head."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from extract.model.adapters import ASSUMED, adapter_scale, check_trained_whole, merge_adapters, token_rows
from extract.model.architectures import ARCHITECTURES, Architecture, architecture_of
from extract.model.base_model import (
    NOT_MODEL,
    base_config,
    base_tokenizer,
    base_weights,
    build_model,
    check_base,
    check_frequencies,
    complete_weights,
    embedding_of,
    find_base,
    open_base,
    tied_names,
    tokenizer_notes,
)
from extract.model.checkpoint import (
    ADAPTER_CONFIG,
    ARGUMENTS,
    BASE,
    BUFFER,
    ROWS,
    SETTINGS,
    SHIPPED,
    find_checkpoint,
    fingerprint_tokenizer,
    fingerprint_weights,
    misfits,
    read_checkpoint,
    some,
)
from extract.model.device import find_device, full_float32, keep_freed_memory
from extract.model.feeding import feeding_of, new_feeding
from extract.model.own import is_own
from extract.model.protocols import (
    COCONUT,
    CODI,
    PEFT,
    PREFIXES,
    Protocol,
    named_protocol,
    protocol_notes,
    recognise,
    stated_protocol,
)
from extract.model.reasoner import Reasoner
from extract.model.settings import check_marks, pccot_settings, read_arguments, read_settings
from schemas import N_LATENT, UsageError, nearest
from schemas.checks import check_whole
from schemas.controls import stated_control
from schemas.json_values import read_json

__all__ = ["SHIPPED", "ComputeDtype", "load_reasoner", "new_reasoner"]
ComputeDtype = Literal["float32", "float16", "bfloat16"]


def load_reasoner(
    checkpoint: str | Path,
    base: str | Path | None = None,
    device: str = "cpu",
    dtype: ComputeDtype = "float32",
    *,
    lora_alpha: float | None = None,
    protocol: str | Mapping[str, Any] | None = None,
    thoughts: int | None = None,
) -> Reasoner:
    """Load the checkpoint of a latent reasoner, ready to think.

    Parameters
    ----------
    checkpoint
        Folder, file or hub id (``OWNER/NAME``, or ``OWNER/NAME:FILE``) with the weights (``model.safetensors``,
        ``pytorch_model.bin``, either in shards with its index, PEFT's ``adapter_model``, or the one other file that
        holds weights, read as weights only), ``smollm2-135m``, or the name of a model shipped with this project. A
        ``codi.json`` beside
        them may give ``protocol``, ``n_latent``, ``answer_prefix``, ``base`` and of which model it is a control
        (``control_of``, ``control``: :data:`schemas.controls.CONTROLS`), an ``adapter_config.json`` as PEFT
        writes it the scale of the low-rank updates, an ``args.yaml`` what a Coconut model was trained with.
    base
        Folder or hub id of the base model, or ``smollm2-135m``: its config and tokenizer are read, its weights only
        where the checkpoint holds no more than what was trained (adapters, projection, extra rows). Default: the
        checkpoint's own folder if it has both, what the files beside it name, or the public base of its sizes.
    device
        Where it runs: ``cpu``, ``cuda``, ``cuda:1`` ...; see :func:`extract.model.device.find_device`.
    dtype
        Type it computes in. Low-rank updates are merged in float32 first.
    lora_alpha
        Numerator of the scale of the low-rank updates, whose rank is read from the shapes; by default the adapter
        config's or, without one, 32.
    protocol
        How it is asked and fed, where the checkpoint does not say: one of :data:`extract.model.protocols.PROTOCOLS`,
        or fields that differ from one, as ``codi.json`` states them, or the name of a JSON file (``*.json``) of them.
    thoughts
        Number of thoughts, instead of what the checkpoint or its protocol says.

    Returns
    -------
    Reasoner

    Raises
    ------
    UsageError
        If anything is missing, unexpected, of another shape, type or architecture, holds two adapters or one of a kind
        that is not merged rightly here, could be of several protocols, or if ``lora_alpha`` or ``protocol`` is not what
        the checkpoint says; the text lists what.
    """
    if is_own(str(checkpoint)):
        raise UsageError(
            f"{checkpoint} is code of your own: what it ran can be analysed and computed again; what goes into a model"
            " needs one that this project loads"
        )
    target = find_device(device)
    full_float32()
    if dtype not in (dtypes := get_args(ComputeDtype)):
        raise UsageError(f"compute dtype {dtype!r} is not one of {', '.join(dtypes)}{nearest(dtype, dtypes)}")
    source = str(checkpoint)
    name, file, folder = find_checkpoint(source)
    adapter = read_json(folder / ADAPTER_CONFIG, "config of the adapter", missing={})
    raw = token_rows(read_checkpoint(source, file), adapter, source)
    settings = pccot_settings(folder) | read_settings(folder)
    arguments = read_arguments(folder)
    prefix, raw = _prefix_of(raw, source)
    weights = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
    trained_only = _trained_only(weights)
    stated = settings.get("base") or arguments.get("model_id") or adapter.get("base_model_name_or_path")
    under = open_base(base, folder, weights, stated, trained_only=trained_only)
    described = _described(protocol)
    rule = _find_protocol(
        described, settings.get("protocol"), prefix, raw, _n_extra(weights, under.architecture, under.n_word),
        markers=set(COCONUT.rows) <= under.tokenizer.get_vocab().keys(), arguments=arguments, source=source,
    )  # fmt: skip
    n_latent = _n_latent(rule, thoughts, settings, arguments, folder, source)
    rule = _with_prefix(rule, settings, folder)
    scale, assumed = adapter_scale(adapter, lora_alpha, settings, folder, raw, saved=prefix == PEFT)
    notes = [ASSUMED.format(source)] * assumed + protocol_notes(rule, described or settings.get("protocol"), source)
    notes += [*under.notes, *tokenizer_notes(under.folder, under.tokenizer, source, chat=rule.chat)]
    weights, projection = _split(raw, rule, prefix, source)
    # GPT-NeoX's head was called so before transformers 5.
    weights = {re.sub(r"^embed_out\.", "lm_head.", name): value for name, value in weights.items()}
    if trained_only:
        weights, raw = complete_weights(weights, raw, under.weights, source)
        weights = token_rows(weights, adapter, source)
    vocabulary, extra = _rows(rule, under.tokenizer, under.n_word, weights, under.architecture)
    if rule.n_unwritten >= vocabulary + len(extra):
        raise UsageError(f"{source}: n_unwritten is {rule.n_unwritten}, of {vocabulary + len(extra)} tokens")
    model = build_model(under.config, vocabulary + len(extra), under.architecture, under.name)
    check_base(weights, model, under.architecture, vocabulary, len(extra), source, under.name)
    check_frequencies(raw, model, source, under.name)
    check_trained_whole(adapter, [key for key in raw if not key.startswith(BASE)], model, source)
    model_config = {key: value for key, value in under.config_json.items() if key not in NOT_MODEL}
    decides = {"config": model_config, "n_latent": n_latent, **scale, **_decides(rule, under.tokenizer)}
    digests = {"weights": fingerprint_weights(raw, decides), **fingerprint_tokenizer(under.folder, under.tokenizer)}
    del raw  # of a large model only one copy of most weights is there from here on
    set_weights(model, merge_adapters(weights, model, adapter, scale, source, getattr(torch, dtype)), source)
    feeding = feeding_of(rule, projection, int(model.config.hidden_size), source)
    _make_ready(model, target, dtype)
    _make_ready(feeding, target, dtype)
    keep_freed_memory()
    reasoner = Reasoner(
        name=name, model=model, projection=feeding, tokenizer=under.tokenizer, architecture=under.architecture,
        vocabulary=vocabulary, n_latent=n_latent, answer_prefix=rule.answer_prefix, protocol=rule, extra_rows=extra,
        fingerprint=digests, control=stated_control(settings, rule.name, str(folder / SETTINGS)), notes=tuple(notes),
        described=described if isinstance(described, Mapping) else None,
    )  # fmt: skip
    check_marks(folder, reasoner)
    return reasoner


def _decides(rule: Protocol, tokenizer: Any) -> dict[str, Any]:
    """What of a protocol decides what is computed; nothing of CODI's, so that models known before keep their digest."""
    if (plain := rule.to_json()) == CODI.to_json():
        return {} if rule.answer_prefix == CODI.answer_prefix else {"answer_prefix": rule.answer_prefix}
    template = {"chat_template": tokenizer.chat_template} if rule.chat else {}
    return {"protocol": plain | {"answer_prefix": rule.answer_prefix} | template}


def _make_ready(module: nn.Module, device: torch.device, dtype: ComputeDtype) -> None:
    """Put a module where and in the type in which it runs, not to be trained."""
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        # Parameters only: rotary frequencies stay float32, rounding them moves far positions.
        parameter.data = parameter.data.to(device=device, dtype=getattr(torch, dtype))
    module.to(device)


def _prefix_of(raw: dict[str, Tensor], source: str) -> tuple[str, dict[str, Tensor]]:
    """What stands before the language model's own names of weights, without what a trainer put before all names."""
    blocks = tuple(dict.fromkeys(entry.block_prefix for entry in ARCHITECTURES.values()))
    first = {key.split(".")[0] for key in raw}
    inner = {key.partition(".")[2]: value for key, value in raw.items()} if len(first) == 1 else {}
    for named in (raw, inner):
        for prefix in PREFIXES:
            inside = (key.removeprefix(prefix) for key in named if key.startswith(prefix))
            if any(key.startswith(blocks) or (prefix and key.endswith(ROWS)) for key in inside):
                return prefix, named
    raise UsageError(
        f"{source} is no CODI checkpoint, nor of another protocol that is known: no weight begins with"
        f" {' or '.join(blocks)}, by itself or after {' or '.join(PREFIXES[:-1])} ({some(raw)})"
    )


def _trained_only(weights: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint holds only what was trained: extra rows by themselves, or adapters without blocks."""
    blocks = tuple(entry.block_prefix for entry in ARCHITECTURES.values())
    return any(key.endswith(ROWS) for key in weights) or all(
        ".lora_" in key for key in weights if key.startswith(blocks)
    )


def _n_extra(weights: Mapping[str, Tensor], architecture: Architecture, vocabulary: int) -> int:
    """Rows of a checkpoint after the base vocabulary."""
    for key, value in weights.items():
        if key.endswith(ROWS):
            return len(value)
    embedding = embedding_of(weights, architecture)
    return 0 if embedding is None else len(embedding) - vocabulary


def _described(protocol: str | Mapping[str, Any] | None) -> str | Mapping[str, Any] | None:
    """A protocol's name, or the fields that the file of the name holds."""
    if isinstance(protocol, str) and protocol.endswith(".json"):
        return read_json(Path(protocol), "protocol")
    return protocol


def _find_protocol(
    named: str | Mapping[str, Any] | None, statement: Any, prefix: str, raw: Mapping[str, Tensor], n_extra: int, *,
    markers: bool, arguments: Mapping[str, Any], source: str,
) -> Protocol:  # fmt: skip
    """Protocol that the user names, that a file beside the checkpoint states, or that the weights show."""
    stated = stated_protocol(statement, f"{source}, {SETTINGS}")
    asked = stated_protocol(named, "--protocol")
    if asked is not None and stated is not None and stated != asked != named_protocol(stated.name):
        raise UsageError(f"protocol is {named} in the argument, but {stated.name} in the files beside {source}")
    stated = stated or asked
    if stated is None:
        return recognise(prefix, raw, n_extra, markers=markers, arguments=arguments, source=source)
    if prefix not in stated.prefixes:
        wanted, prefix_there = (
            " or ".join(f"{x}*" if x else "plainly" for x in those) for those in (stated.prefixes, [prefix])
        )
        raise UsageError(f"weights of protocol {stated.name} are named {wanted}, those of {source} {prefix_there}")
    return stated


def _n_latent(
    rule: Protocol, thoughts: int | None, settings: Mapping[str, Any], arguments: Mapping[str, Any], folder: Path,
    source: str,
) -> int:  # fmt: skip
    """Number of thoughts, from whoever says it first: the user, the files beside the checkpoint, the protocol."""
    trained = None
    if rule.fed in ("state", "vector") and {"c_thought", "max_latent_stage"} <= arguments.keys():
        for name in ("c_thought", "max_latent_stage"):
            check_whole(f"{folder / ARGUMENTS}: {name}", arguments[name], 0)
        if thoughts is None and not arguments.get("pad_latent_to_max", True):
            raise UsageError(
                f"{folder / ARGUMENTS}: pad_latent_to_max is false, so questions have different numbers of thoughts;"
                " choose one with --thoughts N"
            )
        trained = arguments["c_thought"] * arguments["max_latent_stage"]
    for value, place in (
        (thoughts, "--thoughts"),
        (settings.get("n_latent"), f"{folder / SETTINGS}: n_latent"),
        (trained, f"{folder / ARGUMENTS}: c_thought x max_latent_stage"),
        (rule.n_latent, f"protocol {rule.name}: n_latent"),
    ):
        if value is not None:
            return rule.check_thoughts(value, place)
    raise UsageError(f"{source} (protocol {rule.name}) does not say how many thoughts it has; pass --thoughts N")


def _with_prefix(rule: Protocol, settings: Mapping[str, Any], folder: Path) -> Protocol:
    """A protocol with the answer prefix that a checkpoint's settings give."""
    answer_prefix = settings.get("answer_prefix", rule.answer_prefix)
    if not isinstance(answer_prefix, str):
        raise UsageError(f"{folder / SETTINGS}: answer_prefix is {answer_prefix!r}; it must be a text")
    return replace(rule, answer_prefix=answer_prefix)


def _rows(
    rule: Protocol, tokenizer: Any, vocabulary: int, weights: Mapping[str, Tensor], architecture: Architecture
) -> tuple[int, tuple[str, ...]]:
    """Rows before the protocol's own, and the tokens of these, unless the tokenizer knows them all."""
    if rule.rows and not set(rule.rows) <= tokenizer.get_vocab().keys():
        return (vocabulary if rule.rows_after == "vocabulary" else len(tokenizer)), rule.rows
    embedding = embedding_of(weights, architecture)
    as_tokenizer = embedding is not None and len(embedding) == len(tokenizer)
    return (len(tokenizer) if as_tokenizer else vocabulary), ()


def _split(
    raw: Mapping[str, Tensor], rule: Protocol, prefix: str, source: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the language model, without their prefix, and of what makes the vectors that are fed."""
    weights: dict[str, Tensor] = {}
    feeding: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, value in raw.items():
        own = key.removeprefix(PEFT)  # PEFT saves what is trained beside the language model inside it
        if own == rule.vector or (rule.fed == "projection" and own.startswith(f"{rule.projection[0]}.")):
            feeding[own.removeprefix(f"{rule.projection[0]}.")] = value
        elif key.startswith(rule.unused) or BUFFER.search(key):
            continue
        elif key.startswith(prefix):
            weights[key.removeprefix(prefix)] = value
        else:
            unexpected.append(key)
    if unexpected:
        raise UsageError(f"{source} (protocol {rule.name}) has unexpected weights: {some(unexpected)}")
    return weights, feeding


def new_reasoner(
    base: str | Path, device: str = "cpu", *, protocol: str = CODI.name, n_latent: int = N_LATENT,
    answer_prefix: str | None = None,
) -> Reasoner:  # fmt: skip
    """A base model with new rows and whatever feeds its thoughts, ready to be trained; nothing of it can think yet.

    Random numbers come from torch's generator. A projection ends at the scale of the word embeddings; a learned vector
    begins as their mean. Rows are those of the protocol, after the base's own vocabulary.

    Raises
    ------
    UsageError
        If there is no such base, or its tokenizer has the protocol's tokens already.
    """
    target = find_device(device)
    folder = find_base(base, Path(base), {}, trained_only=True)
    config_json = read_json(folder / "config.json", "config of the base model")
    architecture = architecture_of(str(config_json.get("model_type")), f"base {base}")
    config = base_config(folder, architecture, str(base))
    vocabulary = int(config.vocab_size)
    rule = replace(named_protocol(protocol), rows_after="vocabulary")
    tokenizer = base_tokenizer(folder, vocabulary)
    if known := set(rule.rows) & tokenizer.get_vocab().keys():
        raise UsageError(f"base {base} has the tokens {some(known)} of protocol {rule.name} already; take one without")
    rule = rule if answer_prefix is None else replace(rule, answer_prefix=answer_prefix)
    model = build_model(config, vocabulary + len(rule.rows), architecture, str(base))
    weights = {name: value.float() for name, value in base_weights(folder).items()}
    digest = fingerprint_weights(weights, {})
    hidden = int(model.config.hidden_size)
    for name in sorted({f"{module}.weight" for module in architecture.vocabulary_modules} & weights.keys()):
        rows = weights[name]
        new = rows.mean(0) + rows.std(0) * torch.randn(len(rule.rows), hidden)
        weights[name] = torch.cat([rows[:vocabulary], new])
    words = weights[f"{architecture.body}.{architecture.embedding}.weight"][:vocabulary]
    set_weights(model, weights, str(base))
    return Reasoner(
        name=str(base), model=model.to(target).eval(), projection=new_feeding(rule, words).to(target),
        tokenizer=tokenizer, architecture=architecture, vocabulary=vocabulary,
        n_latent=n_latent if rule.bot else 0, answer_prefix=rule.answer_prefix, protocol=rule, extra_rows=rule.rows,
        fingerprint={"weights": digest, **fingerprint_tokenizer(folder, tokenizer)},
    )  # fmt: skip


def set_weights(model: Any, weights: dict[str, Tensor], source: str) -> None:
    """Set every weight; anything missing, unexpected or of another shape is an error that lists it."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for head, embedding in tied_names(model).items():
        if head in weights and embedding in weights:
            if not torch.equal(weights[head], weights[embedding]):
                raise UsageError(
                    f"{source}: {head} and {embedding} differ, but the base's config ties them (tie_word_embeddings)"
                )
        elif head in weights:
            weights[embedding] = weights[head]
        elif embedding in weights:
            weights[head] = weights[embedding]
    if problems := misfits(weights, own):
        raise UsageError(f"weights of {source} do not fit its base: {'; '.join(problems)}")
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    not_finite = [name for name, value in model.named_parameters() if not _is_finite(value)]
    if not_finite:
        raise UsageError(f"weights of {source} are not finite: {some(not_finite)}")
    if empty := [name for name, value in model.named_parameters() if value.ndim == 2 and not value.any()]:
        raise UsageError(f"weights of {source} are zero throughout: {some(empty)}; is the file complete?")


def _is_finite(value: Tensor) -> bool:
    """Whether all numbers are finite, looked at a few million at a time."""
    flat = value.detach().reshape(-1)
    return all(bool(torch.isfinite(flat[start : start + 2**22]).all()) for start in range(0, len(flat), 2**22))
