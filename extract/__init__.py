"""Everything that runs a model: load, think, capture, extract, re-enter. The only package that imports transformers."""

from extract.load import load_reasoner
from extract.reasoner import Reasoner, Thinking

__all__ = ["Reasoner", "Thinking", "load_reasoner"]
