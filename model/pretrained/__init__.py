"""The trained models that come with the package, each a folder with weights, config and a card."""

from pathlib import Path

NAMES = ("copy", "recall", "graph", "traversal")


def path(name: str) -> Path:
    """The folder of a bundled model. Raises ValueError for an unknown name."""
    if name not in NAMES:
        raise ValueError(f"pretrained model is {name!r}; expected one of {', '.join(NAMES)}")
    return Path(__file__).parent / name
