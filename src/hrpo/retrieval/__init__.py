"""Passages beside questions: index a corpus once, find passages once, train and evaluate on the file."""

from hrpo.retrieval.add import add_passages
from hrpo.retrieval.index import Index, build_index

__all__ = ["Index", "add_passages", "build_index"]
