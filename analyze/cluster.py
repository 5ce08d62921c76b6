"""Where analyses compute: this process, a scheduler that is running somewhere, or a few processes of one's own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dask

from schemas import LakeError, UsageError


@contextmanager
def compute_on(scheduler: str | None = None, workers: int | None = None) -> Iterator[None]:
    """Send what dask computes inside to other processes.

    Workers read the lake themselves, so its path or URL must mean the same to them. A worker that dies is replaced by
    the others: its tasks are done again.

    Parameters
    ----------
    scheduler
        Address of a running ``dask scheduler``, as in ``tcp://host:8786``.
    workers
        Number of processes to start on this machine, for as long as it lasts. With neither: threads of this process.

    Raises
    ------
    UsageError
        If both are given, or no scheduler answers.
    LakeError
        If workers die at the same piece of work again and again.
    """
    if scheduler is None and workers is None:
        with dask.config.set(scheduler="threads"):  # unset, dask imports all of ``distributed`` to look for a client
            yield
        return
    if scheduler is not None and workers is not None:
        raise UsageError("--scheduler names running workers and --workers starts new ones; give one of them")
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.ERROR)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(
                f"no dask scheduler answers at {scheduler} ({error}); start one with: dask scheduler"
            ) from error
        with client, _plain_deaths():
            yield
        return
    if workers is None or workers < 1:
        raise UsageError(f"--workers is {workers}; it must be at least 1")
    # What a worker says of another that has died is no error: its work is done again.
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
    )
    with cluster, Client(cluster), _plain_deaths():
        yield


@contextmanager
def _plain_deaths() -> Iterator[None]:
    """Say in a line what dask says of work at which one worker after the other died."""
    from distributed import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise LakeError(
            "workers died at the same piece of work one after the other, as they do where memory is short; give fewer"
            " --workers, or --limit, --layers or --positions"
        ) from error
