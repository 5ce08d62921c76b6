"""Everything that runs a model: load, think, capture, extract, re-enter. The only package that imports transformers.

Names are imported when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
