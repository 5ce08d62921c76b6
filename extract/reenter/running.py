"""Running a declared experiment on a run of a lake."""

from collections.abc import Sequence
from dataclasses import replace

import xarray as xr

from extract.reenter.settings import TargetSettings
from extract.reenter.target import Target, open_target
from schemas import LakeError, UsageError, nearest
from schemas.command import Experiment, Settings, Shell
from store import Lake
from store.keeping import Kept, keep, remove_folder, working_folder


def target_of(command: Experiment, lake: Lake, run: str, where: TargetSettings, shell: Shell) -> Target:
    """A run with its model, set up as the settings say.

    Raises
    ------
    UsageError
        If the model is not at hand, or not the one that made the run.
    """
    target = _opened(lake, run, where, where.limit)
    named = replace(where, checkpoint=_named(where.checkpoint), base=_named(where.base))
    model = run.partition("/")[0]
    target.opened = lambda other: _opened(lake, other, where if other.partition("/")[0] == model else named, None)
    if target.compute_dtype != target.made_in:
        shell.note(f"{run} was computed in {target.made_in}; the model goes on in {target.compute_dtype}")
    target.rule, target.batch_rows = where.rule, where.batch_rows
    target.folder = working_folder(lake, f"reenter.{next(iter(command.results))}", run)
    return target


def _named(values: Sequence[str]) -> tuple[str, ...]:
    """Those of ``[NAME=]VALUE`` that say which model they are of."""
    return tuple(value for value in values if "=" in value)


def _opened(lake: Lake, run: str, where: TargetSettings, limit: int | None) -> Target:
    """A run with the model that the settings name for it."""
    return open_target(
        lake,
        run,
        checkpoint=for_model(where.checkpoint, run),
        base=for_model(where.base, run),
        device=where.device,
        compute_dtype=where.compute_dtype,
        lora_alpha=where.lora_alpha,
        limit=limit,
    )


def reenter(
    command: Experiment, lake: Lake, target: Target, settings: Settings, where: TargetSettings, shell: Shell
) -> Kept:
    """Run an experiment and store its result."""
    with shell.progress(f"{command.name} {target.run}", "rows") as report:
        target.progress = report
        result = command.run(target, settings)
    if not isinstance(result, xr.Dataset):
        raise LakeError(
            f"lake reenter {command.name} made {type(result).__name__}, which cannot be kept; its run(target, settings)"
            " must return an xarray.Dataset"
        )
    spec = settings.spec() | where.spec() | {"compute_dtype": target.compute_dtype}
    result = result.assign_attrs(compute_dtype=target.compute_dtype, device=target.reasoner.device.type)
    read = {target.run: target.data.attrs["fingerprint"]}
    kept = keep(lake, next(iter(command.results)), result, [target.run], spec, shell, read=read)
    remove_folder(target.folder)
    return kept


def check_named(lake: Lake, values: Sequence[str], what: str) -> None:
    """Raise :class:`UsageError` where a ``[NAME=]VALUE`` is of another form, or of a model that the lake lacks."""
    known = lake.models()
    for value in values:
        name, sign, rest = value.partition("=")
        if not value or (sign and not (name and rest)):
            raise UsageError(f"--{what} {value!r} is not of the form [NAME=]VALUE")
        if sign and name not in known:
            raise UsageError(
                f"--{what} {value}: {lake.location} has no model {name!r}; it has {', '.join(known)}"
                f"{nearest(name, known)}"
            )


def for_model(values: Sequence[str], run: str) -> str | None:
    """The value for a run's model among ``[NAME=]VALUE``."""
    model, chosen = run.partition("/")[0], None
    for value in values:
        name, sign, rest = value.partition("=")
        if not sign or name == model:
            chosen = rest or value
    return chosen
