"""The command line, called in this process."""

import pytest

import lake


def run_lake(*words: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as left:
        lake.main([str(word) for word in words])
    return int(left.value.code or 0)
