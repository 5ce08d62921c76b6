"""Everything that runs a model: load, think, capture, extract, re-enter. The only package that imports transformers."""

from extract.model.load import load_reasoner
from extract.model.reasoner import Reasoner, Thinking

__all__ = ["Reasoner", "Thinking", "load_reasoner"]
