"""A worker that is killed costs what it held: the others do it again, and the numbers are the same."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster, get_client
from synthetic import make_model, make_run, write_run

from analyze import cluster, lens_summary, logit_lens
from analyze.cluster import compute_on, spread
from analyze.geometry.procrustes import procrustes
from analyze.geometry.shape import geometry
from analyze.labels import up_to_eot
from analyze.traces.traces import traces
from analyze.transfer.command import TransferSettings
from analyze.transfer.linear import transfer_probes
from schemas import LakeError
from store import open_lake

STOPPED = """
import asyncio, os, signal, sys, threading
from distributed import Nanny
from analyze.cluster import compute_on

starting = threading.Event()

async def start(self):
    starting.set()
    if sys.argv[1] == "start":
        os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(60)

def meanwhile():
    assert starting.wait(30)  # workers start beside it
    if sys.argv[1] == "meanwhile":
        os.kill(os.getpid(), signal.SIGINT)

Nanny.start_unsafe = start
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
try:
    with compute_on(workers=1, meanwhile=meanwhile):
        print("computing")
except KeyboardInterrupt:
    print("stopped")
"""


def test_workers_that_do_not_start_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "START_SECONDS", 0.05)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty,
        Client(empty) as client,
        pytest.raises(LakeError, match=r"of 2 workers 0 have started in 0 s, .*give fewer --workers"),
    ):
        cluster._wait_for(client, 2)


@pytest.mark.parametrize("where", ["start", "meanwhile"])
def test_an_analysis_that_is_stopped_while_workers_start_says_so_alone(where: str) -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED, where], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("stopped\n", "")


ALONE = """
import sys
import dask.array as da
from analyze.cluster import compute_on

with compute_on():
    print(da.ones(6, chunks=2).rechunk(3).sum().compute(), "distributed" in sys.modules)
"""


def test_without_workers_what_starts_them_is_not_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert done.stdout == "6.0 False\n"


def test_a_killed_worker_changes_no_number_and_work_that_kills_them_is_said(tmp_path: Path) -> None:
    model, mark = make_model(), tmp_path / "killed"
    write_run(tmp_path / "made.lake", make_run(n_example=24, model=model), model, shard_examples=8)
    lake = open_lake(tmp_path / "made.lake")
    (name,) = lake.runs()
    run = lake.open(name, chunks=8)

    def killed_once(block: np.ndarray) -> np.ndarray:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    def killed(block: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        return block

    def summary(harm: Callable[[np.ndarray], np.ndarray] | None = None) -> xr.Dataset:
        states = run["hidden_state"]
        if harm is not None:
            states = states.copy(data=states.data.map_blocks(harm, meta=np.empty(0, states.dtype)))
        return lens_summary(logit_lens(run.assign(hidden_state=states), lake.model(name.partition("/")[0])))

    def others() -> list[xr.Dataset]:
        thoughts, settings = up_to_eot(run), TransferSettings(target="correct", folds=3, resamples=5, permutations=5)
        cells = thoughts.isel(layer=[0, 2], position=[1, 4])  # each is a piece of work
        return [
            traces(run, lake.model(name.partition("/")[0]), permutations=3),
            geometry(thoughts, resamples=5, shuffles=2),
            procrustes(thoughts, resamples=5, shuffles=3),
            transfer_probes({"one": cells, "other": cells}, ["one"], ["other"], settings),
        ]

    alone = others()

    def work() -> None:
        for one, other in zip(alone, others(), strict=True):
            xr.testing.assert_identical(one, other)
        xr.testing.assert_identical(summary(killed_once).compute(), summary().compute(scheduler="threads"))
        assert mark.exists()
        # What follows kills every worker that takes it up: one is enough to give up, and each takes seconds to start.
        get_client().cluster.scheduler.allowed_failures = 0  # type: ignore[no-untyped-call]
        summary(killed).compute()

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        pytest.raises(LakeError, match="workers died .* fewer --workers"),
        compute_on(workers=2),
    ):
        work()


def test_work_that_no_worker_is_left_for_is_an_error_and_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "START_SECONDS", 1.0)
    with Client(n_workers=0, processes=False, dashboard_address=None), pytest.raises(LakeError, match="no worker"):
        next(spread(abs, [(-1,)]))
