"""Where analyses compute: this process, a scheduler that is running somewhere, or a few processes of one's own."""

import atexit
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import dask

from schemas import LakeError, UsageError

Piece = TypeVar("Piece")
UNWATCHED = {
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.worker.profile.enabled": False,
    "distributed.worker.multiprocessing-method": "forkserver" if sys.platform == "linux" else "spawn",
    # Dask's own also has glibc give freed memory back at once, and then each larger array is mapped anew.
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), 1
    ),
}
"""Settings for workers started here: without them dask samples each many times a second for a dashboard not shown."""
PRELOADED = ("distributed.nanny", "scipy.stats", "sklearn.linear_model", "store.read")
"""Imported once, which takes more than a second, by the process that workers are forked from."""
START_SECONDS = 180.0
"""Time limit for workers to start, usually a few seconds; and in which one must be there again if all are gone."""


@contextmanager
def compute_on(
    scheduler: str | None = None, workers: int | None = None, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Have dask compute in other processes within the block.

    Workers read the lake themselves, so its path or URL must mean the same to them. If a worker dies, the others do its
    tasks again.

    Parameters
    ----------
    scheduler
        Address of a running ``dask scheduler``, as in ``tcp://host:8786``.
    workers
        Number of processes to start on this machine for the duration of the block. With neither: threads of this
        process.
    meanwhile
        Called in this process at the beginning, while workers start.

    Raises
    ------
    UsageError
        If both are given, or no scheduler answers.
    LakeError
        If workers die at the same piece of work again and again.
    """
    if scheduler is None and workers is None:
        from dask.threaded import get

        # Unset, or told by a name, dask imports all of ``distributed`` to look for a client.
        with dask.config.set({"scheduler": get, "array.rechunk.method": "tasks"}):
            meanwhile()
            yield
        return
    if scheduler is not None and workers is not None:
        raise UsageError("--scheduler names running workers and --workers starts new ones; give one of them")
    from distributed import Client, LocalCluster
    from distributed.deploy.spec import close_clusters
    from distributed.utils import get_mp_context

    logging.getLogger("distributed").setLevel(logging.ERROR)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(
                f"no dask scheduler answers at {scheduler} ({error}); start one with: dask scheduler"
            ) from error
        with client, _deaths_in_one_line():
            meanwhile()
            yield
        return
    if workers is None or workers < 1:
        raise UsageError(f"--workers is {workers}; it must be at least 1")
    # Any free port: with dask's fixed one a second command at the same time would warn. Messages of workers about one
    # that died are silenced, as its work is done again.
    try:
        with dask.config.set(UNWATCHED):
            if sys.platform == "linux":
                get_mp_context().set_forkserver_preload([*PRELOADED])
            cluster = LocalCluster(
                n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False}, silence_logs=logging.CRITICAL, memory_limit=1 / workers,
            )  # fmt: skip
            cluster.scale(workers)  # which waits for none of them, as entering the cluster does
            meanwhile()
            with cluster, Client(cluster) as client, _deaths_in_one_line():
                _wait_for(client, workers)
                yield
    except KeyboardInterrupt:
        atexit.unregister(close_clusters)  # dask cannot close one that is not up yet; its processes end with this one
        raise


def _wait_for(client: Any, workers: int) -> None:
    """Wait until own workers have started, but not for ever."""
    from distributed import TimeoutError as TooLong

    try:
        client.wait_for_workers(workers, timeout=START_SECONDS)
    except TooLong as error:
        started = len(client.scheduler_info(n_workers=-1)["workers"])
        raise LakeError(
            f"of {workers} workers {started} have started in {START_SECONDS:.0f} s, as where processes, memory or open"
            " files are limited (ulimit -u, -v, -n); give fewer --workers, or none"
        ) from error


@contextmanager
def _deaths_in_one_line() -> Iterator[None]:
    """Say in one line that one worker after the other died at the same piece of work."""
    from distributed import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise LakeError(
            "workers died at the same piece of work one after the other, as they do where memory is short; give fewer"
            " --workers, or --limit, --layers or --positions"
        ) from error


def spread(
    function: Callable[..., Piece], calls: Iterable[Sequence[Any]], shared: Sequence[Any] = ()
) -> Iterator[Piece]:
    """``function(*call, *shared)`` for every call, in order: computed here, or by the workers if there are some.

    Two calls for each worker are under way at most.

    Parameters
    ----------
    calls
        Arguments of each call; dask arrays among them, or in lists, are computed where the call is made.
    shared
        Arguments of all calls, which are sent to each worker once.
    """
    client = _client()
    if client is None:
        for call in calls:
            yield function(*dask.compute(*call), *shared)
        return
    everywhere = [client.scatter([one], broadcast=True)[0] for one in shared]
    made = (client.submit(_made, function, _Unread(dask.optimize(*call)), *everywhere, pure=False) for call in calls)
    yield from _results(made, 2 * sum(client.nthreads().values()))


@dataclass(frozen=True, slots=True)
class _Unread:
    """Arguments whose dask arrays are hidden from the scheduler, which would read them on one worker for another."""

    arguments: Sequence[Any]


def _made(function: Callable[..., Piece], unread: _Unread, *shared: Any) -> Piece:
    """One call of :func:`spread`, what it reads included."""
    return function(*dask.compute(*unread.arguments, scheduler="synchronous"), *shared)


def in_turn(lazy: Iterable[Any]) -> Iterator[Any]:
    """Values of lazy objects in order; workers, where there are some, compute the next while one is used."""
    client = _client()
    if client is None:
        for one in lazy:
            yield one.compute()
        return
    yield from _results(map(client.compute, lazy), 2)


def _results(futures: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Results of futures in order, ``ahead`` of which are submitted at a time."""
    waiting: deque[Any] = deque()
    for one in futures:
        waiting.append(one)
        if len(waiting) >= ahead:
            yield _result(waiting.popleft())
    while waiting:
        yield _result(waiting.popleft())


def _result(future: Any) -> Any:
    """A future's result; an error where no worker is left to compute it, and none comes."""
    from distributed import TimeoutError as TooLong

    while True:
        try:
            return future.result(timeout=START_SECONDS)
        except TooLong as error:
            if future.done():  # the work's own
                raise
            if not future.client.scheduler_info(n_workers=-1)["workers"]:
                raise LakeError(
                    f"no worker has been there for {START_SECONDS:.0f} s; give the command again, which goes on where"
                    " it keeps pieces, or give it fewer --workers"
                ) from error


def _client() -> Any:
    """The dask client in force, if any; it can only be there if its package was imported."""
    distributed = sys.modules.get("distributed")
    if distributed is None or callable(dask.config.get("scheduler", None)):  # threads of this process, inside a client
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None
