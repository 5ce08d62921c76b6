"""Tables as files that a user named."""

import errno
from pathlib import Path
from typing import Any

from schemas.errors import UsageError
from schemas.whole_files import beside, check_outside


def check_folder(folder: Path) -> None:
    """Refuse, before anything is computed, a folder for tables that is a file or in a lake.

    Raises
    ------
    UsageError
        If it is.
    """
    check_outside(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; tables go into a folder")


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
