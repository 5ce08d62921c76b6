"""Running a declared analysis over the runs of a lake."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xarray as xr

from analyze.cost import LONG, Plan, Quiet, operations_of, plan_of, sampled
from analyze.labels import part_of
from analyze.pieces import remove_unused
from analyze.source import Source
from analyze.written import at_places, is_written
from schemas import LakeError, UsageError
from schemas.command import Analysis, Made, Settings, Shell
from store import Lake
from store.keeping import Kept, keep, remove_folder, working_folder
from store.results import n_example_of, name_of


def groups_of(
    command: Analysis, lake: Lake, runs: Sequence[str], settings: Settings, shell: Shell
) -> list[list[Source]]:
    """The runs that one call of the analysis takes, each as far as the settings reach.

    Raises
    ------
    UsageError
        If a run lacks a layer or position that is named; nothing has been read then.
    """
    asked = {name: getattr(settings, name, None) for name in settings.part}
    sources = [
        Source(
            lake=lake,
            run=run,
            data=_part(lake.open(run, chunks=command.block or "auto"), lake, run, asked),
            shell=shell,
            folder=working_folder(lake, command.name, run),
            block=command.block,
        )
        for run in runs
    ]
    sources = [sampled(command, source, settings) for source in sources]
    return [sources] if command.takes_all(settings) else [[source] for source in sources]


def plans_of(
    command: Analysis, groups: Sequence[Sequence[Source]], settings: Settings, *, always: bool
) -> Iterator[Plan | None]:
    """What each call of an analysis takes; unless always, only where it may be over a minute."""
    for sources in groups:
        if command.cost is None:
            yield None
            continue
        lake, runs = sources[0].lake, [source.run for source in sources]

        def regroup(other: Settings, lake: Lake = lake, runs: Sequence[str] = runs) -> Sequence[Source]:
            return groups_of(command, lake, runs, other, Quiet())[0]

        long = always or operations_of(command, sources, settings) > LONG
        yield plan_of(command, sources, settings, regroup) if long else None


def _part(data: xr.Dataset, lake: Lake, run: str, asked: dict[str, Any]) -> xr.Dataset:
    """What the settings name of a run; steps that its model writes out are found in every example."""
    positions = asked.get("positions")
    if not positions or not any(map(is_written, positions)):
        return part_of(data, **asked)
    rest = part_of(data, **asked | {"positions": None})
    return at_places(rest, lake.model(run.partition("/")[0]), positions)


def analyse(command: Analysis, groups: Sequence[Sequence[Source]], settings: Settings) -> Iterator[list[Kept]]:
    """Run an analysis on each group and store what it makes; results are handed out as they are made."""
    for sources in groups:
        if otherwise := made_otherwise({source.run: source.data.attrs for source in sources}):
            sources[0].shell.note(otherwise)
        spec = settings.spec() | _order_of(sources[0].data, settings)
        drawn = [source.n_sampled for source in sources if source.n_sampled is not None]
        spec |= {"sample": max(drawn)} if drawn else {}
        try:
            made: Any = command.run(sources if command.takes_all(settings) else sources[0], settings)
        except UsageError:
            for source in sources:
                remove_unused(source.folder)
            raise
        results = made if isinstance(made, list) else [Made(next(iter(command.results)), made)]
        for result in results:
            _check_made(command, result)
        of = [(list(result.runs) or [source.run for source in sources], {**spec, **result.spec}) for result in results]
        beside = [name_of(result.kind, *settled) for result, settled in zip(results, of, strict=True)]
        kept, read = [], {source.run: source.data.attrs["fingerprint"] for source in sources}
        for result, (runs, settled) in zip(results, of, strict=True):
            data: xr.Dataset = sources[0].compute(result.data) if result.data.chunks else result.data
            data = data.assign_attrs(run=" + ".join(runs))
            if not n_example_of(data):
                data.attrs["n_example"] = max(source.data.sizes["example"] for source in sources)
            kept.append(keep(sources[0].lake, result.kind, data, runs, settled, sources[0].shell, beside, read=read))
        for source in sources:
            remove_folder(source.folder)
        yield kept


def made_otherwise(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """What is to be said of runs (their attributes) that are compared, and were made with other settings."""
    specs = {run: json.loads(attributes.get("spec", "{}")) for run, attributes in runs.items()}
    told = []
    for name in ("compute_dtype", "max_new_tokens"):
        values = {run: spec.get(name) for run, spec in specs.items()}
        if len(set(values.values())) > 1:
            told.append(f"{name} {', '.join(f'{value} of {run}' for run, value in values.items())}")
    return f"made with other settings, from which a difference may come: {'; '.join(told)}" if told else ""


def _check_made(command: Analysis, result: Any) -> None:
    """Raise :class:`LakeError` where an analysis made something that is no result of it."""
    if not isinstance(result, Made) or not isinstance(result.data, xr.Dataset):
        found = type(result.data if isinstance(result, Made) else result).__name__
        raise LakeError(
            f"lake analyze {command.name} made {found}, which cannot be kept; its run(source, settings) must return an"
            " xarray.Dataset, or a list of schemas.command.Made"
        )
    if result.kind not in command.results:
        raise LakeError(
            f"lake analyze {command.name} made a result {result.kind!r}; it declares {', '.join(command.results)}"
        )


def _order_of(part: xr.Dataset, settings: Settings) -> dict[str, Any]:
    """Layers and positions that were asked for in the run's order: results of the same part have the same settings."""
    asked = {name: getattr(settings, name, None) for name in settings.part}
    return {f"{dim}s": part[dim].values.tolist() for dim in ("layer", "position") if asked.get(f"{dim}s")}
