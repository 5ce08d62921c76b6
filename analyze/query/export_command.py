"""``lake export``."""

from dataclasses import dataclass
from pathlib import Path

from schemas.command import Command, Output, Part, Shell, setting
from schemas.wording import shape_text


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Part):
    """What of a run is written into which file."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    run: str = setting(help="The run, MODEL/DATASET.", metavar="RUN", argument=True)
    variable: tuple[str, ...] = setting(("hidden_state",), "What is written, as lake info PATH RUN lists it.")
    to: Path = setting(help="File to write: .parquet, .safetensors, .npz or .nc.", metavar="FILE")
    stored: bool = setting(
        False, "Keep numbers in the type they are stored in; by default they are widened to float32."
    )
    json: bool = setting(False, "Print the result as JSON.")


def export_file(settings: ExportSettings, shell: Shell) -> Output:
    """Write a selection, and say what it is."""
    from analyze.query.export import export
    from store import open_lake

    with shell.progress(settings.run, "examples") as report:
        data = export(
            open_lake(settings.path), settings.run, settings.to, settings.variable, layers=settings.layers,
            positions=settings.positions, limit=settings.limit, stored=settings.stored, progress=report,
        )  # fmt: skip
    size = settings.to.stat().st_size
    shapes = {str(name): {str(dim): n for dim, n in array.sizes.items()} for name, array in data.data_vars.items()}
    lines = [f"  {name}: {shape_text(sizes.values())} {' '.join(sizes)}" for name, sizes in shapes.items()]
    return Output(
        printed=[f"{settings.to}: {size / 1e6:.1f} MB", *lines],
        document={"file": str(settings.to), "bytes": size, "variables": shapes},
    )


COMMAND = Command(
    name="export",
    help="Write a selection of a run into one file for other tools: Parquet, safetensors, npz or netCDF.",
    settings=ExportSettings,
    run=export_file,
    stopped="no file was written",
)
