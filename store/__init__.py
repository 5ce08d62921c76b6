"""The lake: layout, writing, committing, reading, verifying. The only package that touches Zarr."""

import os

import dask.threaded

from store.files import RECORD
from store.info import describe, describe_run, find, precision_text
from store.layout import MAX_SHARD_EXAMPLES, RunLayout
from store.location import local_path
from store.read import Lake, Result, open_lake
from store.remove import Removable, remove, select_removable
from store.select import select_result
from store.size import encoded_sizes, model_size, run_files_size
from store.verify import Damage, Verification, verify
from store.write import RunWriter, check_model, check_run, create_run, taken_up, write_model

__all__ = [
    "MAX_SHARD_EXAMPLES",
    "RECORD",
    "Damage",
    "Lake",
    "Removable",
    "Result",
    "RunLayout",
    "RunWriter",
    "Verification",
    "check_model",
    "check_run",
    "create_run",
    "describe",
    "describe_run",
    "encoded_sizes",
    "find",
    "local_path",
    "model_size",
    "open_lake",
    "precision_text",
    "remove",
    "run_files_size",
    "select_removable",
    "select_result",
    "taken_up",
    "verify",
    "write_model",
]


def _forget_threads() -> None:
    """A forked process has none of its parent's threads, though dask's pools still count on them."""
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
