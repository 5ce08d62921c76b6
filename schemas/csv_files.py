"""Tables as files that a user named."""

import errno
from pathlib import Path
from typing import Any

from schemas.errors import UsageError
from schemas.whole_files import beside


def write_csv(table: Any, path: Path) -> None:
    """Write a data frame, without its index; folders on the way are made.

    Raises
    ------
    UsageError
        If nothing can be written there.
    """
    try:
        with beside(path) as partial:
            table.to_csv(partial, index=False)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UsageError(f"{path} cannot be written ({error.strerror or error}); name another place") from error
