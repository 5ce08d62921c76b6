"""Which command mends what is damaged."""

import os
import shlex
from collections.abc import Container, Mapping
from typing import Any

from zarr.abc.store import Store

from schemas import CorruptLakeError, LakeError, RemovedError, canonical_json, filled, fingerprint
from schemas.registry import line
from store.files import CLAIM, COMING, RECORD, RESULTS, names_below, read_bytes, unseal


def extract_command(location: str | os.PathLike[str], store: Store, run: str, rebuild: str) -> str:
    """The command that made a run, with what of it to write again: shards' numbers, ``static`` for all else."""
    attributes = _attributes(store, run, "run")
    model, _, data = run.partition("/")
    if not attributes:
        words = ["lake", "extract", "--model", f"{model}=CHECKPOINT", "--data", f"{data}=FILE"]
        words += ["--lake", str(location), "--rebuild", rebuild]
        return f"{shlex.join(words)}  # with CHECKPOINT, FILE and settings that {run} was made with"
    if command := attributes.get("provenance", {}).get("command"):
        return filled([*command, "--rebuild", rebuild], location)
    described = _attributes(store, model, "model")
    source = attributes.get("provenance", {}).get("data", f"{data}.jsonl")
    options = {name: value for name, value in attributes["spec"].items() if value is not None}
    checkpoint = described.get("checkpoint", "CHECKPOINT")
    words = ["lake", "extract", "--model", f"{model}={checkpoint}", "--data", f"{data}={source}"]
    words += ["--lake", str(location)]
    words += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join([*words, "--rebuild", rebuild])


def analyze_command(location: str | os.PathLike[str], store: Store, result: str) -> str:
    """Command that makes a result again, in its place."""
    kind, label = result.split("/")[1:3]
    attributes = _attributes(store, result, "result")
    if attributes.get("command"):
        return filled(attributes["command"], location)
    # Made in Python or by an older version, or no longer readable: its settings are at best known, not how one types
    # them.
    named = label.rpartition("~")[0].split("+")
    runs = [run for run in _runs(store) if run.replace("/", ".") in named]
    settings = canonical_json(attributes["spec"]) if attributes else "it was made with"
    command = filled(line(kind), location, runs)
    remove = shlex.join(["lake", "rm", str(location), result])
    return f"{command}  # with the settings {settings}; where that makes another result: {remove}".strip()


def lost(
    location: str | os.PathLike[str], store: Store, group: str, kind: str, gone: str, what: str, shard: int | None
) -> LakeError:
    """What is said where reading a group finds a file not as it was written.

    ``gone`` is what became of the group (:func:`since_opened`), ``what`` names the file and what is wrong with it, of a
    run's ``shard`` or of no shard.
    """
    if gone:
        return RemovedError(
            f"{location}: {kind} {group} {gone} since it was opened ({what}); lake info {location} shows what there is"
        )
    rebuild = "static" if shard is None else str(shard)
    if kind == "run":
        command = extract_command(location, store, group, rebuild)
    elif kind == "model":
        run = next((run for run in _runs(store) if run.startswith(f"{group}/")), f"{group}/DATASET")
        command = extract_command(location, store, run, rebuild)
    else:
        command = analyze_command(location, store, group)
    return CorruptLakeError(f"{what}; run lake verify {location} for all that is damaged, or mend this with: {command}")


def since_opened(store: Store, group: str, kind: str, digests: Mapping[str, str], mark: str = "") -> str:
    """What became of a group whose files had these digests when it was opened; empty: it is still there, if damaged."""
    first = {"run": f"{RECORD}/zarr.json", "model": "unembedding/zarr.json"}.get(kind, "zarr.json")
    own, document = (read_bytes(store, f"{group}/{key}") for key in ("zarr.json", first))
    if own is document is None:
        return "was removed"
    return "was made anew" if is_another(own if kind == "model" else document, digests, mark) else ""


def is_another(document: bytes | None, digests: Mapping[str, str], mark: str) -> bool:
    """Whether a document, of a run that of its record, is whole and of another group than the one that was opened.

    ``digests`` are those of the files of the one that was opened, and ``mark`` a run's fingerprint.
    """
    attributes = unseal(document or b"")
    if attributes is None or not digests:
        return False
    files = attributes["files"]
    if mark:
        files = {key.removeprefix("../"): digest for key, digest in files.items() if key.startswith("../")}
    return files != digests or bool(mark and attributes["fingerprint"] != mark)


def _runs(store: Store) -> list[str]:
    names = (f"{model}/{name}" for model in names_below(store, "") for name in names_below(store, model))
    return [run for run in names if read_bytes(store, f"{run}/{RECORD}/zarr.json") is not None]


def has_other_model(run: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether a run was made with another model than the one of its name, by their attributes."""
    stated: Mapping[str, Any] = model.get("fingerprint", {})
    return any(run.get(name, digest) != digest for name, digest in stated.items())


def foreign_weights(run: str) -> str:
    """What is wrong with a run whose model in the lake is another one, and what to do."""
    model = run.split("/")[0]
    return (
        f"{run} was made with other weights or another tokenizer than the model {model} of this lake, whose read-out"
        f" would be taken for the run's; move the folder {run} into a lake whose {model} it was made with, or extract"
        " it again under another model's name"
    )


def of_another_place(run: str, attributes: Mapping[str, Any]) -> str:
    """What is wrong with a run that lies under another run's name, and what to do; empty where it is in its place."""
    stated = attributes.get("run", run)
    moved = f"{run} holds the run {stated}, whose folder was renamed, copied or exchanged; move it back to {stated}"
    return "" if stated == run else moved


def is_result_of(name: str, attributes: Mapping[str, Any]) -> bool:
    """Whether a document belongs to the result where it lies, whose name ends with a digest of runs and settings."""
    wanted = {"runs": attributes.get("runs"), "spec": attributes.get("spec")}
    return attributes.get("result") == name.split("/")[1] and name.removesuffix(COMING).endswith(
        f"~{fingerprint(wanted)[:8]}"
    )


def is_passing(key: str, keys: Container[str]) -> bool:
    """Whether a file will go by itself: a claim, or of a result that is being replaced or about to be put in place."""
    parts = key.split("/")
    if parts[-1] == CLAIM:
        return True
    if parts[0] != RESULTS or len(parts) < 4:
        return False
    name = "/".join(parts[:3]).removesuffix(COMING)
    old, new = f"{name}/zarr.json" in keys, f"{name}{COMING}/zarr.json" in keys
    return (old or not new) if parts[2].endswith(COMING) else (new and not old)


def _attributes(store: Store, group: str, kind: str) -> dict[str, Any]:
    attributes = unseal(read_bytes(store, f"{group}/zarr.json") or b"") or {}
    return attributes if attributes.get("kind") == kind else {}
