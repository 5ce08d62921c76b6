"""The lake: layout, writing, committing, reading, verifying. The only package that touches Zarr.

Names are imported when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
