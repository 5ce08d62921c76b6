"""The command line, called in this process or in a fork of it."""

import os
from collections.abc import Callable

import pytest

import lake


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
            os._exit(int(stop.code or 0))
        finally:
            os._exit(99)
    return child
