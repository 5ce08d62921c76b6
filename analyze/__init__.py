"""Everything offline: analyses of a lake that need neither the model nor a GPU. Names are imported when first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
