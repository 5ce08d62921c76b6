"""The command line, called in this process or in a fork of it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import lake
from store import RunWriter


def run_lake(*words: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as left:
        lake.main([str(word) for word in words])
    return int(left.value.code or 0)


def forked_lake(words: list[str], prepare: Callable[[], object]) -> int:
    """A command in a process of its own, which need not load what is loaded here; its id."""
    if (child := os.fork()) == 0:
        try:
            prepare()
            lake.main(words)
        except SystemExit as stop:
            with suppress(OSError):  # a terminal that is no more
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(int(stop.code or 0))
        finally:
            os._exit(99)
    return child


@contextmanager
def claimed_elsewhere(place: Path, run: str) -> Iterator[None]:
    """Within it another process holds the claim of the run's first shard."""
    (held, tell), (wait, release) = os.pipe(), os.pipe()
    if (holder := os.fork()) == 0:
        with RunWriter(place, run).claim(0) as claimed:
            os.write(tell, b"1" if claimed else b"0")
            os.read(wait, 1)
        os._exit(0)
    try:
        assert os.read(held, 1) == b"1"
        yield
    finally:
        os.write(release, b"1")
        os.waitpid(holder, 0)
