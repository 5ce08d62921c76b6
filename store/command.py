"""``lake info`` and ``lake rm``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from schemas.command import Command, Output, Printed, Settings, Shell, Table, setting
from schemas.wording import shape_text


@dataclass(frozen=True, kw_only=True)
class InfoSettings(Settings):
    """What of a lake is described."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    name: str | None = setting(
        None, "A run, MODEL/DATASET, or a fingerprint or its beginning.", metavar="[RUN]", argument=True
    )
    json: bool = setting(False, "Print the result as JSON.")


def info(settings: InfoSettings, shell: Shell) -> Output:
    """A whole lake, one run, or what a fingerprint is of."""
    from store import describe, describe_run, find, open_lake

    lake = open_lake(settings.path)
    if settings.name is None:
        document: Any = describe(lake)
        return Output(printed=lake_tables(settings.path, document), document=document)
    if settings.name in lake:
        document = describe_run(lake, settings.name)
        return Output(printed=run_lines(settings.name, document), document=document)
    document = find(lake, settings.name)
    lines = [
        f"{named['fingerprint']} {named['what']} {'' if named['what'] in ('run', 'result') else 'of '}{named['of']}"
        for named in document
    ]
    return Output(printed=lines, document=document)


def lake_tables(path: str, described: Mapping[str, Any]) -> list[Printed]:
    """Runs, models and results of a lake."""
    tables: list[Table] = [
        Table(
            title=f"runs of {path}",
            columns=["run", "examples", "shards", "capture", "dtype", "weights", "data", "code", "fingerprint"],
            rows=[
                [run, f"{d['examples_committed']}/{d['examples']}", f"{d['shards_committed']}/{d['shards']}"]
                + [d["spec"]["capture"], d["spec"]["dtype"], d["weights"][:12], d["data"]["sha256"][:12]]
                + [d["provenance"].get("code", "")[:12], d["fingerprint"][:12]]
                for run, d in described["runs"].items()
            ],
        ),
        Table(
            title="models",
            columns=["model", "architecture", "checkpoint", "layers", "heads", "hidden"],
            rows=[
                [model, *(d.get(key, "") for key in ("architecture", "checkpoint", "n_layer", "n_head", "hidden"))]
                for model, d in described["models"].items()
            ],
        ),
        Table(
            title="results",
            columns=["result", "read", "fingerprint", ""],
            rows=[
                [result, ", ".join(f"{run} {digest[:12]}" for run, digest in d["inputs"].items())]
                + [d["fingerprint"][:12], standing(d, described["runs"])]
                for result, d in described["results"].items()
            ],
        ),
    ]
    there: list[Printed] = [table for table in tables if table.rows]
    return there if described["results"] else [*there, "no results yet: lake analyze and lake reenter make them"]


def standing(result: Mapping[str, Any], runs: Mapping[str, Any]) -> str:
    """What may speak against a result: its run is another one by now, or has more examples than it was computed of."""
    if not result["current"]:
        return "its run has been removed or made again"
    there = runs[result["runs"][0]]["examples_committed"] if len(result["runs"]) == 1 else 0
    return f"of {result['examples']} of {there} examples" if 0 < result["examples"] < there else ""


def run_lines(run: str, described: Mapping[str, Any]) -> list[str]:
    """Everything known of a run, a line each."""
    from store import precision_text

    lines = [
        f"{run}: {described['examples_committed']} of {described['examples']} examples committed",
        f"precision: {precision_text(described['precision'])}",
    ]
    for key in ("fingerprint", "weights", "tokenizer", "data", "spec", "provenance", "variables"):
        value = described[key]
        lines.append(f"{key}: " + (value if isinstance(value, str) else ""))
        for name, entry in value.items() if isinstance(value, dict) else ():
            text = f"{shape_text(entry.values())} {' '.join(entry)}" if isinstance(entry, dict) else entry
            lines.append(f"  {name}: {text}")
    return [*lines, "results: " + (", ".join(described["results"]) or "none")]


@dataclass(frozen=True, kw_only=True)
class RemoveSettings(Settings):
    """What is removed from a lake."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    words: tuple[str, ...] = setting(
        help="What to remove: its name, or what else names one result, as for show.",
        metavar="RUN|RESULT|MODEL",
        argument=True,
    )
    yes: bool = setting(False, "Do not ask.")
    json: bool = setting(False, "Print the result as JSON.")


def remove_named(settings: RemoveSettings, shell: Shell) -> Output:
    """Remove what is named, once it is confirmed."""
    from store import open_lake, remove, select_removable

    chosen = select_removable(open_lake(settings.path), list(settings.words))
    stay = f"; what was computed from it stays: {', '.join(chosen.results)}" if chosen.results else ""
    if not settings.yes and not shell.confirm(f"remove {chosen.kind} {chosen.name}{stay}?"):
        return Output(printed=["nothing was removed"], document=None, code=1)
    remove(settings.path, chosen)
    return Output(printed=[f"removed {chosen.kind} {chosen.name}{stay}"], document=asdict(chosen))


COMMANDS = (
    Command(
        name="info",
        help="Say what is in a lake: runs and how complete they are, models, results, and what each was made from.",
        settings=InfoSettings,
        run=info,
    ),
    Command(
        name="rm",
        help="Remove a run, a stored result, or a model without runs; what was computed from it stays.",
        settings=RemoveSettings,
        run=remove_named,
        stopped="what was to be removed is there as before, or no longer to be read: lake info says which",
    ),
)
