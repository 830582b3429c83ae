"""Differentiable Neural Computers: the library that is trained, exported and served."""

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.deepmind import from_deepmind
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import Artifact, ArtifactError, load_artifact
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.package_checkpoint import from_dnc_package
from dnc_serve.model.state import DNCState, MemoryState
from dnc_serve.model.weights import load_model, load_weights, save_weights

__all__ = [
    "DNC",
    "Artifact",
    "ArtifactError",
    "DNCConfig",
    "DNCState",
    "MemoryState",
    "StateLayout",
    "from_deepmind",
    "from_dnc_package",
    "load_artifact",
    "load_model",
    "load_weights",
    "save_weights",
]
