"""The vocabulary of the lake: names, specs, rules and errors. Imports nothing else of this project.

Names are imported when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
