"""The lake: layout, writing, committing, reading. The only package that touches Zarr."""

from store.layout import RunLayout
from store.read import Lake, Result, open_lake
from store.write import RunWriter, check_model, create_run, write_model

__all__ = ["Lake", "Result", "RunLayout", "RunWriter", "check_model", "create_run", "open_lake", "write_model"]
