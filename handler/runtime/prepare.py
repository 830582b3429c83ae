"""A model looked at before a server that runs takes it: resolved, loaded, compiled, and stepped once, in a process
that may fail.

`python -m dnc_serve.handler.runtime.prepare SOURCE STATE_DIR SCRATCH DEVICE CODE` prints the artifact's folder.
"""

import sys
from pathlib import Path

from dnc_serve.handler.config import COMPILED
from dnc_serve.handler.runtime.artifact import resolve_artifact


def prepare(source: str, state_dir: Path, scratch: Path, device: str, code: str) -> Path:
    """Raises what keeps the model from being served."""
    from dnc_serve.handler.engine.runner_choice import choose_runner
    from dnc_serve.model.artifact import load_artifact

    folder = resolve_artifact(source, None, state_dir / "artifacts", scratch).absolute()
    artifact = load_artifact(folder, device, torchscript=code != "program")
    choose_runner(artifact, device, code, [state_dir / COMPILED])
    return folder


def main(source: str, state_dir: str, scratch: str, device: str, code: str) -> None:
    """Ends with the folder on standard output, or with the reason on standard error."""
    try:
        sys.stdout.write(f"{prepare(source, Path(state_dir), Path(scratch), device, code)}\n")
    except Exception as exc:  # what whoever asked is told in one line
        sys.exit(" ".join(str(exc).split()) or type(exc).__name__)


if __name__ == "__main__":
    main(*sys.argv[1:])
