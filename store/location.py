"""Where a lake is: a local folder, or any URL that obstore or fsspec can open."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from schemas import UnwritableLakeError, UsageError
from schemas.errors import OTHER_DISK
from store.local_files import files_below

OBSTORE_SCHEMES = ("s3", "gs", "gcs", "az", "azure", "abfs", "abfss")


@dataclass(frozen=True, slots=True)
class Place(os.PathLike[str]):
    """A folder called as its user calls it, by its whole path: where a process goes, what it has opened stays."""

    name: str
    path: str

    def __str__(self) -> str:
        """As it was called."""
        return self.name

    def __fspath__(self) -> str:
        """Where it is."""
        return self.path


def place_of(location: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A local folder as a :class:`Place`; any other location as it is."""
    folder = local_path(location)
    return location if folder is None else Place(str(location), str(folder.absolute()))


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether a lake's path names an object store rather than a local folder."""
    return "://" in str(location)


def local_path(location: str | os.PathLike[str]) -> Path | None:
    """Folder of a local lake, also of a ``file:`` URL (``%20`` is a space, ``#`` and ``?`` are plain); else ``None``.

    Raises
    ------
    UsageError
        If a file's URL names another host, or the path is empty.
    """
    text = str(location)
    if not text:
        raise UsageError("the path of a lake is empty and names no place")
    if text.startswith("file:/"):
        rest = text.removeprefix("file:")
        host, _, path = rest.removeprefix("//").partition("/") if rest.startswith("//") else ("", "", rest[1:])
        if host not in ("", "localhost"):
            raise UsageError(f"{text} names the host {host!r}; a folder of this machine is file:///PATH")
        return Path("/" + unquote(path))
    return None if is_url(location) else Path(location).expanduser()


def open_store(location: str | os.PathLike[str], *, read_only: bool = True) -> Store:
    """Zarr store at a local path or URL.

    Parameters
    ----------
    location
        A folder, or a URL: ``s3://``, ``gs://``, ``az://`` through obstore (credentials and endpoint from the usual
        environment variables), every other scheme through fsspec.
    read_only
        Refuse writes through this store.

    Raises
    ------
    UsageError
        If the URL cannot be opened with what is installed.
    """
    if (folder := local_path(location)) is not None:
        return LocalStore(folder.absolute(), read_only=read_only)  # a worker may be at home in another folder
    url = str(location).rstrip("/")
    try:
        if urlsplit(url).scheme in OBSTORE_SCHEMES:
            from obstore.store import from_url

            return ObjectStore(from_url(url), read_only=read_only)
        return FsspecStore.from_url(url, read_only=read_only)
    except ModuleNotFoundError as error:
        what = f"{url} needs {error.name}, which is not installed" if error.name else f"{url}: {error}"
        raise UsageError(f"{what}; pip install 'activation-lake[remote]'") from error
    except Exception as error:
        raise UsageError(f"{url} cannot be opened as a lake: {error}") from error


def unwritable(location: str | os.PathLike[str], error: Exception) -> UnwritableLakeError:
    """What is said of a result that could not be stored; ``read_only`` where the place lets nobody, or not this user.

    Read-only are a server of files, a folder without permission; a disk that is full, or no answer, is a failure.
    """
    if isinstance(error, OSError) and error.errno is not None:
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    else:
        known = ("NotImplementedError", "PermissionError", "PermissionDeniedError", "UnauthenticatedError")
        refused = any(kind.__name__ in known for kind in type(error).__mro__)
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno == errno.EXDEV:
        why = OTHER_DISK
    advice = "" if refused else "; mend that and give the same command again"
    text = f"{location} cannot be written ({why}); results are not kept{advice}"
    return UnwritableLakeError(text, read_only=refused)


REMOTE_PACKAGES = ("obstore", "httpx", "httpx2", "httpcore", "aiohttp", "botocore", "gcsfs", "adlfs", "huggingface_hub")
"""Those whose errors say that a store cannot be reached, or refuses."""


def remote_failure(error: BaseException, places: Sequence[str]) -> str | None:
    """One line about an error of a store that is not on this machine; ``None`` if it is another one."""
    where = ", ".join(place for place in places if is_url(place))
    known = any(kind.__module__.split(".")[0] in REMOTE_PACKAGES for kind in type(error).__mro__)
    if not known and not (where and isinstance(error, TimeoutError | ConnectionError)):
        return None
    where = where or "the store"
    what = " ".join(str(error).partition("Debug source")[0].split()) or "no answer came in time"
    return f"{where} cannot be reached, or refuses: {what}; look at address, network and credentials, and try again"


def keys_of(store: Store) -> set[str]:
    """Keys of all files of a lake; see :func:`store.local_files.files_below`."""
    return set(files_below(store.root) if isinstance(store, LocalStore) else sync(_listed(store)))


async def _listed(store: Store) -> list[str]:
    return [key async for key in store.list()]
