"""Finished pieces of an analysis: taken up where nothing that decides them has changed."""

import xarray as xr
from synthetic import make_run

from analyze.pieces import pieces_in, remove_unused, taken_up

CALLS = []


def counted(run: xr.Dataset, *, seed: int, progress: object = None) -> xr.Dataset:
    """States of the first examples; notes that it was called."""
    CALLS.append(run.attrs["run"])
    return run[["correct"]].isel(example=slice(seed))


def test_a_piece_is_taken_up_for_the_same_part_and_settings_alone(tmp_path) -> None:
    run, other = make_run(), make_run(name="other/problems", seed=1)
    for part, seed, n_call in (
        (run, 1, 1), (run, 1, 1), (run, 2, 2), (other, 1, 3), (run.isel(example=slice(4)), 1, 4),
        (run.sel(position=["ct1"]), 1, 5), (other, 1, 5),
    ):  # fmt: skip
        found = taken_up(pieces_in(tmp_path, __file__), counted, [part], progress=print, seed=seed)
        xr.testing.assert_identical(found, part[["correct"]].isel(example=slice(seed)))
        assert len(CALLS) == n_call
    taken_up(pieces_in(None, __file__), counted, [run], seed=1)
    assert len(CALLS) == 6


def test_of_a_command_that_was_refused_only_finished_pieces_stay(tmp_path) -> None:
    refused, stopped = tmp_path / "toy.lake.probes/one", tmp_path / "toy.lake.lens/one"
    for folder in (refused, stopped):
        pieces_in(folder, __file__).cache(counted)
    taken_up(pieces_in(stopped, __file__), counted, [make_run()], seed=1)
    for folder in (refused, stopped):
        remove_unused(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.lake.lens"]
