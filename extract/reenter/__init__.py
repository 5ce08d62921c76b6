"""Experiments that go back into the model with stored activations, each one function with a labelled result."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
