"""Differentiable Neural Computers: the library that is trained, exported and served."""

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.deepmind import from_deepmind
from dnc_serve.model.dnc import DNC
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.state import DNCState, MemoryState

__all__ = ["DNC", "DNCConfig", "DNCState", "MemoryState", "StateLayout", "from_deepmind"]
