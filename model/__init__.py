"""Models that remember: Differentiable Neural Computers, and the export of any model to what is served."""

from dnc_serve.model.artifact import Artifact, ArtifactError, load_artifact
from dnc_serve.model.config import DNCConfig
from dnc_serve.model.contract import ContractError
from dnc_serve.model.deepmind import from_deepmind
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.model.layout import StateLayout
from dnc_serve.model.package_checkpoint import from_dnc_package
from dnc_serve.model.rows import TensorSpec
from dnc_serve.model.state import DNCState, LinkedMemoryState, MemoryState, SparseMemoryState
from dnc_serve.model.weights import load_model, load_weights, save_weights

__all__ = [
    "DNC",
    "Artifact",
    "ArtifactError",
    "ContractError",
    "DNCConfig",
    "DNCState",
    "LinkedMemoryState",
    "MemoryState",
    "SparseMemoryState",
    "StateLayout",
    "TensorSpec",
    "export",
    "from_deepmind",
    "from_dnc_package",
    "load_artifact",
    "load_model",
    "load_weights",
    "save_weights",
]
