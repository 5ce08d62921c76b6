"""What is in a lake: runs and how complete they are, models, results, and the chain of fingerprints between them."""

from collections import Counter
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, TypeVar

import numpy as np

from schemas import CorruptLakeError, MissingRunError, fingerprint, nearest
from store.read import Lake

T = TypeVar("T")
SHORTEST_PREFIX = 4


def describe(lake: Lake) -> dict[str, Any]:
    """Runs, models and results of a lake, each with its fingerprint and what it was made from.

    Returns
    -------
    dict
        ``runs``, ``models``, ``results``: by name; JSON values only.
    """
    runs = {run: describe_run(lake, run) for run in lake.runs()}
    models = {
        name: {key: value for key, value in lake.model_attributes(name).items() if key not in ("files", "seal", "kind")}
        for name in lake.models()
    }
    return {"location": str(lake.location), "runs": runs, "models": models, "results": describe_results(lake)}


def describe_run(lake: Lake, run: str) -> dict[str, Any]:
    """Spec, completeness, fingerprints and results of a run.

    Raises
    ------
    MissingRunError
        If the run is not in the lake.
    """
    attributes = lake.attributes(run)
    layout = lake.layout(run)
    committed = lake.committed(run)
    rows = [layout.shard_slice(shard) for shard in range(layout.n_shard)]
    return {
        "fingerprint": attributes["fingerprint"],
        "format": attributes["format"],
        # Who writes a run through the store alone may have said nothing of what it was made from.
        "spec": {"capture": layout.capture, "dtype": layout.dtype, **attributes.get("spec", {})},
        "spec_fingerprint": fingerprint(attributes.get("spec", {})),
        "data": attributes.get("data", {"name": "", "sha256": ""}),
        "weights": attributes.get("weights", ""),
        "tokenizer": attributes.get("tokenizer", ""),
        "provenance": attributes["provenance"],
        "precision": attributes.get("precision"),
        "examples": layout.n_example,
        "examples_committed": sum(r.stop - r.start for r, there in zip(rows, committed, strict=True) if there),
        "shards": layout.n_shard,
        "shards_committed": int(committed.sum()),
        "variables": {name: dict(zip(array.dims, array.shape, strict=True)) for name, array in layout.arrays().items()},
        "results": [name for name, result in describe_results(lake).items() if run in result["runs"]],
    }


def precision_text(precision: Mapping[str, Any] | None) -> str:
    """A run's calibration in words: what its compute type makes of the same question alone and in a batch."""
    if precision is None:
        return "not calibrated: extracted by an older version, or written otherwise"
    state, attention = (precision["states"][name] for name in ("hidden_state", "attention"))
    return (
        f"{precision['compute_dtype']}; {precision['questions']} questions alone and in batches of {precision['batch']}"
        f" differ by {state['mean']:.1e} of a state's scale on average and {state['worst']:.1e} at most,"
        f" {attention['mean']:.1e} and {attention['worst']:.1e} of a row's attention,"
        f" {precision['answer_logprob']:.1e} of answer_logprob, {precision['other_texts']} answers"
    )


def describe_results(lake: Lake) -> dict[str, dict[str, Any]]:
    """Kind, settings and inputs of every result, and whether its runs are still those it was computed from."""
    now = {run: lake.attributes(run)["fingerprint"] for run in lake.runs()}
    return {
        result.name: {
            "kind": result.kind,
            "runs": list(result.runs),
            "spec": dict(result.spec),
            "fingerprint": result.fingerprint,
            "inputs": dict(result.inputs),
            "examples": result.n_example,
            "current": all(now.get(run) == digest for run, digest in result.inputs.items()),
        }
        for result in lake.results()
    }


def find(lake: Lake, prefix: str) -> list[dict[str, str]]:
    """Everything in a lake that a fingerprint, or its beginning, names; a result also by its name.

    Returns
    -------
    list of dict
        ``fingerprint``, ``what`` (run, result, spec, weights, tokenizer, data, code) and ``of``: its name, or that of
        the run it belongs to.

    Raises
    ------
    MissingRunError
        If nothing is named so.
    """
    results = []
    for run in lake.runs():
        described = describe_run(lake, run)
        digests = {
            "run": described["fingerprint"],
            "spec": described["spec_fingerprint"],
            "weights": described["weights"],
            "tokenizer": described["tokenizer"],
            "data": described["data"]["sha256"],
            "code": described["provenance"].get("code", ""),
        }
        results += [{"fingerprint": digest, "what": what, "of": run} for what, digest in digests.items()]
    for name, result in describe_results(lake).items():
        results.append({"fingerprint": result["fingerprint"], "what": "result", "of": name})
    named = [result for result in results if (result["what"], result["of"]) == ("result", prefix)]
    fitting = named or [
        result for result in results if len(prefix) >= SHORTEST_PREFIX and result["fingerprint"].startswith(prefix)
    ]
    if not fitting:
        raise MissingRunError(
            f"{lake.location}: {prefix!r} is neither a run ({', '.join(lake.runs()) or 'there is none'}),"
            f" nor a result, nor the beginning of a fingerprint, {SHORTEST_PREFIX} digits or more"
            + nearest(prefix, lake.runs())
        )
    return fitting


def html_table(lake: Lake) -> str:
    """Runs of a lake for a notebook: how complete each is, its sizes, and what was computed from it."""
    results = _whole(lake.results) or []
    rows = []
    for run in lake.runs():
        layout, committed = _whole(lake.layout, run), _whole(lake.committed, run)
        if layout is None or committed is None:
            cells = [run, "damaged; see lake verify", "", ""]
        else:
            there = int(np.repeat(committed, layout.shard_examples)[: layout.n_example].sum())
            sizes = f"{layout.n_layer} x {layout.n_head} x {layout.hidden}"
            cells = [run, f"{there} of {layout.n_example}", sizes, layout.capture]
        kinds = Counter(result.kind for result in results if run in result.runs)
        cells.append(", ".join(kind if n == 1 else f"{kind} ({n})" for kind, n in kinds.items()))
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    names = ("run", "examples", "layers x heads x hidden", "capture", "results")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><caption>Lake {escape(str(lake.location))}</caption><tr>{head}</tr>{body}</table>"


def _whole(read: Callable[..., T], *arguments: Any) -> T | None:
    """What a reading gives; ``None`` of what is damaged: a table of a lake shows the rest."""
    try:
        return read(*arguments)
    except CorruptLakeError:
        return None
